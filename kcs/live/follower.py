"""The second half of a run that has fallen behind: goes through the capture until it meets the present.

While a run is CATCHING UP its first pipeline stays at the present, muted; `Follower` holds the second one, which reads
the capture from the first record that was not produced and feeds the sink. Where it has fed all there is, both must
know the same, and the first one takes over (kcs/live/recorder.py). Nothing is dropped on the way, and nothing is kept:
what waits is on disk, or in the writer's bounded queue.

`step` feeds at most `SLICE_RECORDS` and never waits, so that capturing comes first; the `State` that it returns says
what to wait for. Pressure is tested before a frame; a frame once fed is taken whole. One loop, no clock. Raises
CaptureError where the disk does not give back what it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Final, Protocol

from kcs.capture.records import RawRecord
from kcs.capture.tail import CaptureTail
from kcs.capture.writer import CaptureWriter
from kcs.errors import CaptureError
from kcs.model import FRAME_KINDS
from kcs.pipeline import Pipeline
from kcs.sink import Sink

SLICE_RECORDS: Final = 128
"""Records fed a turn of the loop: one to two milliseconds."""
SLICE_RECORDS_LATE: Final = 16
"""The same while the loop itself is late."""


class State(Enum):
    """What a step ended with."""

    MORE = auto()
    """There is more to feed: come back next turn."""
    FULL = auto()
    """The sink takes nothing: wait for its `room`."""
    DISK = auto()
    """The next record is on its way to the disk."""
    MET = auto()
    """All there is was fed."""


class File(Protocol):
    """A capture file of the run. `ended`: how many records it holds; None while it is written."""

    @property
    def path(self) -> Path: ...
    @property
    def capture_id(self) -> bytes: ...
    @property
    def ended(self) -> int | None: ...


class Follower:
    """See the module docstring. `pipeline` is bound to the sink and stands in `files[index]`.

    `offset`: where in that file to begin looking for its record; 0 where the file begins.
    """

    def __init__(
        self, pipeline: Pipeline, sink: Sink, writer: CaptureWriter, files: Sequence[File], index: int, offset: int = 0
    ) -> None:
        self.pipeline = pipeline
        self.at_ns: int | None = None
        """Receive time of the last record fed: how far back the run's delivery is."""
        self.frames = 0
        """Data frames fed."""
        self.late = False
        """The loop is late: take little."""
        self._sink = sink
        self._writer = writer
        self._files = files
        self._index = index
        self._batch: Sequence[RawRecord] = ()
        self._next = 0
        file = files[index]
        self._tail = CaptureTail(file.path, file.capture_id, number=pipeline.number, offset=offset)

    def step(self, *, from_memory: bool = True) -> State:
        """Feed some. `from_memory` False: only what is on disk, for a capture that failed."""
        left = SLICE_RECORDS_LATE if self.late else SLICE_RECORDS
        while left:
            if self._next == len(self._batch):
                state = self._more(from_memory)
                if state is not State.MORE:
                    return state
            if self._sink.full:
                return State.FULL
            left -= 1
            self._feed(self._batch[self._next])
            self._next += 1
        return State.MORE

    def close(self) -> None:
        """Release the file; safe to call twice."""
        self._tail.close()

    def _feed(self, record: RawRecord) -> None:
        """As `Pipeline.record`, but what was received and captured is counted already."""
        number, kind, stream, recv_ns, payload, fields = record
        pipeline = self.pipeline
        pipeline.number = number
        if kind in FRAME_KINDS:
            self.frames += 1
            pipeline.feed(stream, recv_ns, payload)
        else:
            pipeline.control(kind, stream, recv_ns, fields, payload)
        self.at_ns = recv_ns

    def _more(self, from_memory: bool) -> State:
        """The next records, from the disk or from the writer's hands, of this file or the next."""
        while True:
            file = self._files[self._index]
            number = self.pipeline.number
            if file.ended is None and number == self._writer.number:
                return State.MET
            if file.ended is not None and number >= file.ended:
                if self._index + 1 == len(self._files):
                    return State.MET
                self._turn_page()
                continue
            # Asked first: what the writer has left is all on disk, unless somebody takes it away.
            left = file.capture_id != self._writer.capture_id and self._writer.written_bytes() > 0
            batch: Sequence[RawRecord] = self._tail.read()
            if not batch and from_memory and file.ended is None:
                batch = self._writer.unwritten(number)
                if batch and batch[0][0] != number:
                    return State.DISK  # it was written just now
                if batch:
                    self._tail.number = batch[-1][0] + 1
            if not batch and left:
                raise CaptureError(
                    f"its records from {number} on are gone, and they were not delivered yet",
                    where=str(file.path),
                    remedy="put it back and run kcs recover --produce on it; remove only captures that have a receipt",
                )
            if not batch:
                return State.DISK
            self._batch, self._next = batch, 0
            return State.MORE

    def _turn_page(self) -> None:
        self._tail.close()
        self._index += 1
        file = self._files[self._index]
        self._tail = CaptureTail(file.path, file.capture_id)
        self.pipeline.start(file.capture_id)
