"""Captures as one time-ordered sequence of runs of records.

`plan` looks at each file's header and time range without reading its frames; `merged` then opens a file only when its
first record is next and closes it when it is done, so a sequence of a thousand rotated files needs two open at once.
Memory is bounded by one chunk an open file. Inside a file the recorded order is kept, whatever the times say.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcs.capture.reader import CaptureReader, RawRecord
from kcs.errors import UsageError


@dataclass(slots=True, frozen=True)
class Source:
    """One capture file to replay. Times are Unix ns; None where the file has no records."""

    path: Path
    exchange: str
    capture_id: bytes
    sealed: bool
    first_ns: int | None
    last_ns: int | None
    records: int
    bytes: int
    lost_before: bool = False
    """Recovered from a file whose damage cost records: what is here is not all that was captured."""


def plan(paths: Sequence[Path]) -> list[Source]:
    """Header and range of each file, ordered by first record. Raises CaptureError and UsageError."""
    if not paths:
        raise UsageError("no capture given", remedy="kcs replay FILE...")
    sources = []
    for path in paths:
        with CaptureReader(path, strict=False) as reader:
            info = reader.info()
            sources.append(
                Source(
                    path=path,
                    exchange=reader.header.exchange,
                    capture_id=reader.header.capture_id,
                    sealed=reader.sealed,
                    first_ns=info.first_ns,
                    last_ns=info.last_ns,
                    records=info.records,
                    bytes=info.bytes,
                    lost_before=any(damage.records_lost != 0 for damage in info.recovered),
                )
            )
    seen: dict[bytes, Path] = {}
    for source in sources:
        other = seen.setdefault(source.capture_id, source.path)
        if other is not source.path:
            raise UsageError(
                f"the same capture twice: {other} and {source.path}", remedy="name each capture once (--loop N repeats)"
            )
    return sorted(sources, key=lambda s: (s.first_ns is None, s.first_ns or 0, s.capture_id))


class Tape:
    """The records of one source, a chunk at a time. `lost` counts what the file holds no more.

    With `to_ns` it ends behind the last chunk that holds anything earlier, and what lies behind is nobody's loss. The
    descriptors say where that is, not the times met on the way: those of an import may run back.
    """

    __slots__ = ("_batch", "_batches", "_end", "_next", "_reader", "damaged", "lost", "order", "source")

    def __init__(self, source: Source, order: int, to_ns: int | None = None) -> None:
        self.source = source
        self.order = order
        self.lost = 0
        self.damaged = 0
        self._reader = CaptureReader(source.path, strict=False)
        self._end = None if to_ns is None else self._reader.end_number(to_ns)
        self._batches = self._reader.batches(until_number=self._end)
        self._batch: list[RawRecord] = []
        self._next = 0

    @property
    def head_ns(self) -> int:
        """Receive time of the next record; valid after `fill` returned True."""
        return self._batch[self._next][3]

    def fill(self) -> bool:
        """True when a next record exists; reads the next chunk if need be, closes the file at its end."""
        while self._next >= len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                self._finish()
                return False
            self._batch, self._next = batch, 0
            self.lost = self._reader.holes
        return True

    def take(self, until_ns: int | None) -> list[RawRecord]:
        """The records of the current chunk up to the first one later than `until_ns`."""
        batch, start = self._batch, self._next
        if until_ns is None:
            end = len(batch)
        else:
            end = start
            while end < len(batch) and batch[end][3] <= until_ns:
                end += 1
        self._next = end
        return batch[start:end] if start or end < len(batch) else batch

    def _finish(self) -> None:
        end = self._end
        damage = [d for d in self._reader.damage if end is None or d.first_number is None or d.first_number < end]
        self.damaged = len(damage)
        unknown = sum(1 for d in damage if d.records_lost is None)
        self.lost = max(self._reader.holes, sum(d.records_lost or 0 for d in damage)) + unknown
        self.close()

    def close(self) -> None:
        self._reader.close()


def _until_ns(tape: Tape, heap: list[tuple[int, int, Tape]], waiting: list[Source]) -> int | None:
    """The last time that may come before anything of another source; None: all of them.

    A tie is the earlier source's, wherever chunks happen to end, so that a repacked file merges as before.
    """
    bounds = []
    if heap:
        head_ns, order, _ = heap[0]
        bounds.append(head_ns if tape.order < order else head_ns - 1)
    if waiting:
        bounds.append(waiting[-1].first_ns or 0)
    return max(min(bounds), tape.head_ns) if bounds else None


def merged(sources: Sequence[Source], to_ns: int | None = None) -> Iterator[tuple[Tape, list[RawRecord]]]:
    """Runs of consecutive records with the tape they come from, ordered by receive time across files.

    Ties go to the earlier source. A run is never longer than a chunk. With `to_ns` nothing earlier is left out; later
    records are still among those given, since chunks are not cut.
    """
    waiting = [s for s in sources if s.first_ns is not None and (to_ns is None or s.first_ns < to_ns)]
    waiting.reverse()
    heap: list[tuple[int, int, Tape]] = []
    order = 0
    try:
        while waiting or heap:
            while waiting and (not heap or (waiting[-1].first_ns or 0) <= heap[0][0]):
                tape = Tape(waiting.pop(), order, to_ns)
                order += 1
                if tape.fill():
                    heapq.heappush(heap, (tape.head_ns, tape.order, tape))
                else:
                    yield tape, []
            if not heap:
                continue
            _, _, tape = heapq.heappop(heap)
            yield tape, tape.take(_until_ns(tape, heap, waiting))
            if tape.fill():
                heapq.heappush(heap, (tape.head_ns, tape.order, tape))
    finally:
        for _, _, tape in heap:
            tape.close()
