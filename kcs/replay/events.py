"""Typed events of captures, for notebooks, exports and `kcs cat --events`: the same pipeline, read synchronously.

    for event in kcs.read("fixtures/upbit.zst"): ...

What comes out is what Kafka gets: parsed, de-duplicated, in capture order, files merged by time. Bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kcs.capture.reader import RawRecord
from kcs.errors import DamagedCaptureError
from kcs.exchanges import venue
from kcs.model import Event
from kcs.pipeline import Pipeline
from kcs.replay.source import Tape, merged, plan
from kcs.sink import NullSink
from kcs.stats import Ledger


class Positioned(msgspec.Struct, frozen=True, gc=False):
    """An event and where it came from: (capture id, frame number, event index) leads back to the frame."""

    exchange: str
    capture_id: bytes
    frame: int
    index: int
    recv_ns: int
    event: Event


class _Reader:
    """One file's pipeline with a tap that collects."""

    __slots__ = ("_out", "_pipeline", "_source")

    def __init__(self, tape: Tape, ledger: Ledger) -> None:
        self._source = tape.source
        self._out: list[Positioned] = []
        adapter = venue(tape.source.exchange).adapter()
        self._pipeline = Pipeline(tape.source.exchange, adapter, NullSink(), ledger, digest=False)
        self._pipeline.tap = self._take

    def _take(self, event: Event, recv_ns: int, number: int, index: int) -> None:
        source = self._source
        self._out.append(Positioned(source.exchange, source.capture_id, number, index, recv_ns, event))

    def events(self, run: Sequence[RawRecord]) -> list[Positioned]:
        self._out = []
        for record in run:
            self._pipeline.record(record)
        return self._out


def positioned(
    paths: Sequence[Path],
    *,
    from_ns: int | None = None,
    to_ns: int | None = None,
    strict: bool = True,
    ledger: Ledger | None = None,
) -> Iterator[Positioned]:
    """Every emitted event with its position, `from_ns` inclusive, `to_ns` exclusive, by receive time.

    `strict`: damage raises DamagedCaptureError once all intact events were given; else it is counted in
    `ledger.unread`. What lies behind `to_ns` is not read. A ledger passed in is filled and can be checked afterwards.
    """
    ledger = ledger if ledger is not None else Ledger()
    readers: dict[bytes, _Reader] = {}
    tapes: list[Tape] = []
    for tape, run in merged(plan(paths), to_ns):
        reader = readers.get(tape.source.capture_id)
        if reader is None:
            reader = readers[tape.source.capture_id] = _Reader(tape, ledger)
            tapes.append(tape)
        for item in reader.events(run):
            if (from_ns is None or item.recv_ns >= from_ns) and (to_ns is None or item.recv_ns < to_ns):
                yield item
    ledger.unread += sum(tape.lost for tape in tapes)
    ledger.settle(ledger.produced, 0)
    damaged = [tape for tape in tapes if tape.lost or tape.damaged]
    if strict and damaged:
        path = damaged[0].source.path
        raise DamagedCaptureError(
            f"{sum(tape.lost for tape in damaged):,} records cannot be read",
            where=str(path),
            remedy=f"kcs verify {path}; kcs recover {path} OUT.zst",
        )


def read(*paths: str | Path, from_ns: int | None = None, to_ns: int | None = None) -> Iterator[Event]:
    """Every event of one or several captures: Trade, OrderBook, Ticker, Gap, in the order Kafka gets them.

    Raises CaptureError for a file that cannot be opened; DamagedCaptureError at the end when something was missing.
    """
    for item in positioned([Path(path) for path in paths], from_ns=from_ns, to_ns=to_ns):
        yield item.event
