"""What became of one capture that `kcs.deliver` delivered: as data, and in a line for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kcs.errors import CaptureWriteError
from kcs.live.receipt import Missing
from kcs.stats import Ledger


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one capture.

    `ledger` is that of the whole capture, however much was there before: its `acked` includes `already`, the records
    found in Kafka; its `unread` are records that the damaged file holds no more. `orphans`: records in Kafka with frame
    numbers at or beyond the capture's end. `missing` None: the capture is whole. `stopped`: it was told to stop before
    all was delivered. `receipt` None: it was stopped, records are in flight, the file is a `.partial`, or the disk
    refused the receipt (`unreceipted`): then the next delivery finds nothing to send and writes it.
    """

    path: Path
    capture_id: bytes
    exchange: str
    sealed: bool
    ledger: Ledger
    already: int
    orphans: int
    digest: str | None
    missing: Missing | None
    receipt: Path | None
    unreceipted: CaptureWriteError | None
    stopped: bool
    seconds: float
    absent: bool = False
    """There is no capture beside the delivery file; only `orphans` says something."""

    @property
    def complete(self) -> bool:
        """All that the capture holds is in Kafka."""
        return not self.stopped and self.ledger.acked == self.ledger.produced


def described(done: Delivered) -> str:
    """One line about a delivery."""
    ledger = done.ledger
    if done.absent and done.missing is not None:
        return f"{done.path}: {done.missing.damage[0]}; {done.orphans:,} records of it are in Kafka"
    sent = ledger.acked - done.already
    text = f"{done.path}: {sent:,} records delivered, {done.already:,} were there already"
    if done.orphans:
        text += f"; {done.orphans:,} records of frames that died with the process are in Kafka beyond the capture's end"
    if ledger.failed:
        text += f"; {ledger.failed:,} failed"
    if done.missing is not None:
        text += "; the capture is not whole"
    if done.unreceipted is not None:
        text += f"; no receipt: {done.unreceipted.what}"
    if done.stopped or ledger.in_flight:
        text += "; stopped before the end, the next start goes on"
    return text
