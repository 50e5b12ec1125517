"""Compares what opens and closes say of a stream's data frames with what is there.

Contract: a `FrameCount` is fed every record of one file in order. The first open of a stream in the file gives the
base (a rotated file's says what came before it); every later open or close that carries a count is compared. A count
of 0 claims nothing: captures made elsewhere carry none. What missing numbers may explain is not reported again.
A count that is given what the file before it in the same run ended with (`before`) compares the first open as well:
frames that were lost between two files of a run leave no hole in either.
Memory is bounded by `STREAMS_MAX` streams and `FOUND_MAX` findings. Raises nothing. Caller: verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from kcs.capture.records import RawRecord
from kcs.capture.tally import STREAMS_MAX
from kcs.model import FRAME_KINDS, CloseFields, OpenFields

FOUND_MAX: Final = 1000


class Miscount(msgspec.Struct, frozen=True):
    """Record `number` says that its stream had `said` data frames so far; the file has `counted`."""

    number: int
    stream: int
    said: int
    counted: int


class EndOfStream(msgspec.Struct, frozen=True):
    """A stream where a file ends: `counted` data frames so far, and at most `unsure` more that missing numbers were."""

    counted: int
    unsure: int


class _Stream:
    """`count`: frames so far by the last count that was believed; `holes`: how many numbers were missing then."""

    __slots__ = ("count", "holes")

    def __init__(self, count: int, holes: int) -> None:
        self.count = count
        self.holes = holes


class FrameCount:
    """Counts; mutable, one a file, not thread-safe."""

    __slots__ = ("_due", "_holes", "_streams", "found")

    def __init__(self, before: Mapping[int, EndOfStream] | None = None) -> None:
        self.found: list[Miscount] = []
        self._streams = {stream: _Stream(end.counted, -end.unsure) for stream, end in (before or {}).items()}
        self._holes = 0
        self._due = 0

    def add(self, records: Sequence[RawRecord]) -> None:
        """Count the next records of the file."""
        streams = self._streams
        for number, kind, stream, _, _, fields in records:
            if number != self._due:
                self._holes += number - self._due
            self._due = number + 1
            if kind in FRAME_KINDS:
                known = streams.get(stream)
                if known is not None:
                    known.count += 1
            elif isinstance(fields, OpenFields | CloseFields):
                self._compare(number, stream, fields)

    def ends(self, missing: int) -> dict[int, EndOfStream]:
        """The streams as this file leaves them, for the next file of the run. `missing`: numbers that no record has."""
        holes = max(missing, self._holes)
        return {stream: EndOfStream(known.count, holes - known.holes) for stream, known in self._streams.items()}

    def _compare(self, number: int, stream: int, fields: OpenFields | CloseFields) -> None:
        known = self._streams.get(stream)
        if known is None:
            if isinstance(fields, OpenFields) and len(self._streams) < STREAMS_MAX:
                self._streams[stream] = _Stream(fields.frames, self._holes)
            return
        if fields.frames:
            missing = fields.frames - known.count
            if not 0 <= missing <= self._holes - known.holes and len(self.found) < FOUND_MAX:
                self.found.append(Miscount(number, stream, fields.frames, known.count))
            known.count, known.holes = fields.frames, self._holes
