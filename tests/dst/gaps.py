"""The check that a gap record stands wherever a stream's frames are interrupted; see kcs/live/lane.py for lanes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from kcs.live.session import CLEAN
from kcs.model import FRAME_KINDS, CloseFields, Fields, GapFields, OpenFields
from tests.dst.evidence import Evidence, Findings
from tests.dst.network import Received


@dataclass(slots=True)
class _Stream:
    """One stream's records since its last frame: the first close, the last gap; and where it stands."""

    frame: Received | None = None
    close: CloseFields | None = None
    closed_ns: int = 0
    gap: GapFields | None = None
    is_open: bool = False
    trial: bool = False
    """Its connection is to replace its lane's other one, which has the say until then: it has no gaps."""
    was_trial: bool = False
    """The same at the close."""

    def note(self, recv_ns: int, fields: Fields | None) -> None:
        if isinstance(fields, GapFields):
            self.gap = fields
        elif isinstance(fields, OpenFields):
            self.is_open = True
            self.trial = self.trial or fields.cause == "planned"
        elif isinstance(fields, CloseFields):
            self.is_open = False
            if self.close is None:
                self.close, self.closed_ns, self.was_trial = fields, recv_ns, self.trial

    def wrong(self, frame: Received) -> str | None:
        """What is missing between the frame before and this one of another connection."""
        before, close, gap = self.frame, self.close, self.gap
        if before is None or before.connection == frame.connection:
            return None
        if close is None:
            return f"no close of connection {before.connection} of stream {frame.stream}"
        if close.cause in CLEAN or self.was_trial:
            return None
        # A stream that was replaced misses nothing until it is taken for the next renewal.
        until_ns = self.closed_ns if self.trial else frame.recv_ns
        if gap is not None and gap.from_ns <= before.recv_ns and gap.to_ns >= until_ns:
            return None
        return f"no gap covers the change to connection {frame.connection}"

    def took(self, frame: Received, twin: _Stream) -> None:
        """The frame is the last one now; a trial whose twin is gone is none any more."""
        self.frame, self.close, self.gap = frame, None, None
        if not twin.is_open:
            self.trial = False


def gaps_recorded(evidence: Evidence) -> Findings:
    """Where a stream's frames go on after its connection was lost, a gap covers the time between them."""
    lanes = evidence.plan.connections
    for report in evidence.reports:
        received = iter(report.received)
        streams: dict[int, _Stream] = defaultdict(_Stream)
        for one in evidence.captures_of(report):
            for _, kind, number, recv_ns, _, fields in one.records:
                stream, twin = streams[number], streams[(number + lanes) % (2 * lanes)]
                if isinstance(fields, CloseFields):
                    evidence.world.count(f"close: {fields.cause}")
                if kind not in FRAME_KINDS:
                    stream.note(recv_ns, fields)
                    continue
                frame = next(received, None)
                if frame is None:
                    break  # `frames_captured` tells
                wrong = stream.wrong(frame)
                if wrong is not None:
                    yield f"life {report.number}: {wrong}"
                stream.took(frame, twin)
