"""Capture and pipeline in lock step: every record goes first to the writer, then to the pipeline, under one number.

Contract: `frame`, `control` and `sent` are the only ways a record comes into being in a live run, so the numbers of
both sides agree (checked on each tick). A frame costs one append and one feed; nothing is awaited. When the sink is
full the run *falls behind*: capture goes on, the pipeline is fed no more (a hole in what it knows would make every
later record doubtful), frames are counted as `behind`, and `kcs replay` delivers them from the capture. When the
capture fails nothing more is fed: what is not captured is not produced. Owned by one loop, not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcs.capture.writer import CaptureWriter, SealedCapture
from kcs.clock import Clock
from kcs.errors import CaptureWriteError, LedgerError
from kcs.live.receipt import DeliveryInfo, base_name, write_delivery, write_receipt
from kcs.model import ClockFields, Fields, Kind, OpenFields
from kcs.pipeline import Pipeline
from kcs.sink import Sink
from kcs.stats import Ledger

_OPEN = int(Kind.OPEN)
_SENT = int(Kind.SENT)
_CLOCK = int(Kind.CLOCK)
_STATE = int(Kind.STATE)


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """One capture file of a run. `digest` is None when not every frame of it was fed; `receipt` when there is none."""

    path: Path
    capture_id: bytes
    digest: str | None
    receipt: Path | None
    records: int
    bytes: int
    first_ns: int | None
    last_ns: int | None
    sealed: bool = True
    """False when the disk refused: `path` is the `.partial`, which stays readable; the numbers are not known."""


@dataclass(slots=True)
class _File:
    """A capture file of this run: where it will be once sealed, and what a receipt needs."""

    path: Path
    capture_id: bytes
    digest: str | None = None
    records: int = 0
    produced: int = 0
    receipt: Path | None = None


class Recorder:
    """See the module docstring. `log(level, text)` is told once of falling behind and of a failed capture."""

    def __init__(
        self,
        writer: CaptureWriter,
        pipeline: Pipeline,
        sink: Sink,
        clock: Clock,
        log: Callable[[str, str], None],
        *,
        delivery: DeliveryInfo | None = None,
        anchor_every_ns: int,
        fsync: bool = False,
    ) -> None:
        self._writer = writer
        self._append = writer.append
        self._pipeline = pipeline
        self._feed = pipeline.feed
        self._ledger: Ledger = pipeline.ledger
        self._sink = sink
        self._clock = clock
        self._log = log
        self._delivery = delivery
        self._fsync = fsync
        self._anchor_every_ns = anchor_every_ns
        self._anchor_due_ns = 0
        self._files: list[_File] = []
        self._unreceipted: list[_File] = []
        """Finished files whose records are not all acknowledged yet: all that a tick looks at."""
        self._produced_before = 0
        self._feeding = True
        self._behind = False
        self.failure: CaptureWriteError | None = None
        """Why the capture failed; nothing is recorded from then on."""

    @property
    def behind(self) -> bool:
        """True once the sink was full: the rest of the run is captured only."""
        return self._behind

    def begin(self, now_ns: int) -> None:
        """The first record of a file: tell the sink, write the delivery file, anchor the clock."""
        writer = self._writer
        sealed = writer.path.with_name(base_name(writer.path) + ".zst")
        self._files.append(_File(sealed, writer.capture_id))
        self._produced_before = self._ledger.produced
        self._pipeline.start(writer.capture_id)
        if self._delivery is not None and not self._behind:
            try:
                write_delivery(sealed, writer.capture_id, self._delivery, fsync=self._fsync)
            except CaptureWriteError as error:
                self.fail(error)
        self.anchor(now_ns)

    def frame(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        """One data frame: capture it, then produce from it. HOT."""
        ledger = self._ledger
        ledger.received += 1
        if self.failure is not None:
            ledger.uncaptured += 1
            return
        self._append(kind, stream, recv_ns, payload)
        ledger.captured += 1
        if self._feeding and not self._sink.full:
            self._feed(stream, recv_ns, payload)
        else:
            self._not_fed()

    def control(self, kind: int, stream: int, recv_ns: int, fields: Fields, payload: bytes = b"") -> None:
        """One record of any other kind that has fields."""
        if self.failure is not None:
            return
        self._writer.append_fields(kind, stream, recv_ns, fields, payload)
        if self._feeding:
            self._pipeline.control(kind, stream, recv_ns, fields, payload)

    def sent(self, stream: int, recv_ns: int, text: str) -> None:
        """A text message that we sent."""
        if self.failure is not None:
            return
        payload = text.encode()
        self._writer.append(_SENT, stream, recv_ns, payload)
        if self._feeding:
            self._pipeline.control(_SENT, stream, recv_ns, None, payload)

    def anchor(self, now_ns: int) -> None:
        """A clock record: how the capture's time relates to the wall clock now."""
        self._anchor_due_ns = now_ns + self._anchor_every_ns
        self.control(_CLOCK, 0, now_ns, ClockFields(self._clock.wall_ns(), self._clock.monotonic_ns()))

    def tick(self, now_ns: int) -> None:
        """Every 50 ms: hand the open chunk on, anchor the clock, write the receipts that have become true."""
        if self._feeding and self._writer.number != self._pipeline.number:
            told = f"capture is at record {self._writer.number}, the pipeline at {self._pipeline.number}"
            raise LedgerError(told, where=str(self._writer.path))
        if now_ns >= self._anchor_due_ns:
            self.anchor(now_ns)
        self._writer.tick(now_ns)
        self.write_receipts()

    def rotation_due(self, now_ns: int) -> bool:
        """Is it time for the next file?"""
        return self.failure is None and self._writer.rotation_due(now_ns)

    def rotate(self, now_ns: int, continued: Sequence[tuple[int, OpenFields]]) -> None:
        """Finish this file and begin the next, which stands alone: open streams and parser state come first.

        A run that is behind has no state of the present to save; its files begin without.
        """
        self._finish_file()
        self._writer.rotate(now_ns)
        if self._writer.failed is not None:
            self.fail(self._writer.failed)
            return
        self.begin(now_ns)
        for stream, fields in continued:
            self.control(_OPEN, stream, now_ns, fields)
        if self._feeding:
            for stream, state, payload in self._pipeline.save():
                self.control(_STATE, stream, now_ns, state, payload)

    def finish(self) -> None:
        """No record follows. `close_writer` and `results` come next."""
        self._finish_file()

    def close_writer(self, now_ns: int) -> list[SealedCapture]:
        """Seal. Blocks for the last chunk and the index: call it in a thread. A failure is in `failure` afterwards."""
        sealed = self._writer.close(now_ns)
        if self._writer.failed is not None:
            self.fail(self._writer.failed)
        held = {capture.capture_id: capture.records for capture in sealed}
        for file in self._files:
            if held.get(file.capture_id) != file.records:
                file.digest = None  # the disk failed after it was finished: it holds less than was produced from it
        return sealed

    @property
    def records_lost(self) -> int:
        """Records of any kind that were taken and are not on disk; final after `close_writer`, 0 unless it failed."""
        return self._writer.uncaptured

    def results(self, sealed: Sequence[SealedCapture]) -> list[CaptureResult]:
        """What there is of this run, file by file."""
        by_id = {capture.capture_id: capture for capture in sealed}
        results = []
        for file in self._files:
            capture = by_id.get(file.capture_id)
            if capture is None:
                partial = file.path.with_name(file.path.name + ".partial")
                results.append(CaptureResult(partial, file.capture_id, None, None, 0, 0, None, None, sealed=False))
                continue
            results.append(
                CaptureResult(
                    capture.path,
                    capture.capture_id,
                    file.digest,
                    file.receipt,
                    capture.records,
                    capture.bytes,
                    capture.first_ns,
                    capture.last_ns,
                )
            )
        return results

    def write_receipts(self) -> None:
        """A finished file of which every record is acknowledged gets its receipt."""
        if self._delivery is None:
            return
        if self._unreceipted:
            self._unreceipted = [file for file in self._unreceipted if not self._receipted(file, self._delivery)]

    def _receipted(self, file: _File, delivery: DeliveryInfo) -> bool:
        """Write this file's receipt when it has become true. True when nothing more is to be done for it."""
        if file.digest is None:
            return True
        state = delivery.state(file.capture_id)
        if state is None or state.produced != file.produced or state.acked != file.produced:
            return False
        try:
            file.receipt = write_receipt(file.path, file.capture_id, file.digest, delivery, state, fsync=self._fsync)
        except CaptureWriteError as error:
            # Everything is delivered; without a receipt recovery looks again and finds nothing to do.
            self._log("warning", f"no receipt: {error}")
            file.digest = None
        return True

    def fail(self, error: CaptureWriteError) -> None:
        """The capture cannot go on: the run stops, loudly."""
        if self.failure is None:
            self.failure = error
            self._feeding = False
            self._log("error", f"the capture failed, stopping: {error}")

    def _finish_file(self) -> None:
        file = self._files[-1]
        file.records = self._writer.number
        file.produced = self._ledger.produced - self._produced_before
        if self._feeding:
            file.digest = self._pipeline.digest()
            if self._delivery is not None:
                self._unreceipted.append(file)

    def _not_fed(self) -> None:
        self._ledger.behind += 1
        if self._behind:
            return
        self._behind = True
        self._feeding = False
        self._log(
            "error",
            "Kafka does not keep up: from here on this run only captures; "
            "`kcs replay --topic '{channel}.{exchange}'` delivers the capture afterwards",
        )
