"""What an audit of topics found: the words of its report, and how the counts of a comparison become one. No I/O.

See `kcs.kafka.compare` for what each word means. Offsets are Kafka's; a position is (frame number, event index).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kcs.kafka.spool import POSITION_BYTES, Place
from kcs.sink import POSITION

if TYPE_CHECKING:
    from kcs.kafka.compare import Case, Line

EXAMPLES_MAX: Final = 20
"""Findings of one fault that a report names."""

FAULTS: Final = ("missing", "expired", "doubled", "out_of_order", "different", "misplaced", "orphan")


@dataclass(slots=True, frozen=True)
class Finding:
    """One fault, named. `offset` is None where there is no record. A missing run counts `records`, from this position
    to `last`; `fields` are those that differ; `why` says more of an orphan or of what is misplaced."""

    fault: str
    topic: str
    partition: int
    offset: int | None
    frame: int
    event: int
    records: int = 1
    last: tuple[int, int] | None = None
    fields: tuple[str, ...] = ()
    why: str = ""


@dataclass(slots=True, frozen=True)
class Contradiction:
    """A partition where the receipt gives other offsets than the topic; None: no record of the capture."""

    topic: str
    partition: int
    receipt: tuple[int, int] | None
    found: tuple[int, int] | None


@dataclass(slots=True, frozen=True)
class TopicReport:
    """What became of one capture in the topics; the words are those of the module docstring.

    `offsets` are those of the first and the last position present. `log_starts`: partitions whose first records are
    missing while the broker's log does not begin at 0. `stated`: what the receipt says, where there is one, and the
    `contradictions` to it.
    """

    expected: int
    present: int
    missing: int
    expired: int
    found: int
    doubled: int
    misplaced: int
    orphans: int
    beyond: int
    """Orphans behind the capture's end: their frames died with the process."""
    out_of_order: int
    different: int
    fields: Mapping[str, int]
    """How many records differ in what."""
    broker_times: int
    """Records whose timestamp the broker set (`message.timestamp.type=LogAppendTime`): it is not compared."""
    findings: tuple[Finding, ...]
    offsets: Mapping[Place, tuple[int, int]]
    log_starts: Mapping[Place, int]
    stated: Stated | None
    contradictions: tuple[Contradiction, ...]

    @property
    def ok(self) -> bool:
        """Every position there once, in order, as the capture makes it, and nothing else of this capture."""
        faults = (self.missing, self.expired, self.doubled, self.misplaced, self.orphans)
        return not any((*faults, self.out_of_order, self.different, self.contradictions))


@dataclass(slots=True, frozen=True)
class Stated:
    """What a receipt says: (first, last) offset by place, and how it came about.

    `whole` False: the capture had holes when it was delivered, so records whose frames are in them may be the first or
    the last. `failed` records were refused by the broker, `uncaptured` ones have frames beyond the capture's end.
    """

    offsets: Mapping[Place, tuple[int, int]]
    whole: bool = True
    recovered: bool = False
    failed: int = 0
    uncaptured: int = 0


class Reporter:
    """Makes the report of one capture."""

    def __init__(self, case: Case, starts: Mapping[Place, int], stated: Stated | None) -> None:
        self.case = case
        self.starts = starts
        self.stated = stated

    def report(self) -> TopicReport:
        case = self.case
        lines = [case.lines[place] for place in sorted(case.lines)]
        expired = sum(self._absent(line) for line in lines)
        absent = sum(line.absent for line in lines)
        expected = sum(line.shelf.count for line in lines)
        order = {fault: number for number, fault in enumerate(FAULTS)}
        return TopicReport(
            expected=expected,
            present=expected - absent,
            missing=absent - expired,
            expired=expired,
            found=case.found,
            doubled=case.doubled,
            misplaced=case.misplaced,
            orphans=case.orphans,
            beyond=case.beyond,
            out_of_order=case.out_of_order,
            different=case.different,
            fields=dict(sorted(case.fields.items())),
            broker_times=case.broker_times,
            findings=tuple(sorted(case.findings, key=lambda finding: order[finding.fault])),
            offsets={line.place: (line.first_offset, line.last_offset) for line in lines if line.first_offset >= 0},
            log_starts={
                line.place: self.starts[line.place]
                for line in lines
                if self.starts.get(line.place, 0) > 0 and line.leading()
            },
            stated=self.stated,
            contradictions=() if self.stated is None else tuple(self._contradictions(self.stated)),
        )

    def _absent(self, line: Line) -> int:
        """Name the runs of absent positions of one partition; returns how many of them have expired."""
        expired = min(line.leading(), self._dropped(line))
        for first, end in line.runs():
            for fault, low, high in (("expired", first, min(end, expired)), ("missing", max(first, expired), end)):
                if low < high:
                    frame, event, _ = POSITION.unpack(line.shelf.entry(high - 1, POSITION_BYTES))
                    position = line.shelf.entry(low, POSITION_BYTES)
                    self.case.note(fault, line.place, None, position, records=high - low, last=(frame, event))
        return expired

    def _dropped(self, line: Line) -> int:
        """How many records of this capture the broker may have dropped: no more than offsets of its range are gone."""
        said = self.stated.offsets.get(line.place) if self.stated is not None else None
        if said is None:
            return 0
        first, last = said
        return max(0, min(self.starts.get(line.place, 0), last + 1) - first)

    def _contradictions(self, stated: Stated) -> Iterable[Contradiction]:
        found = {
            line.place: (line.first_offset, line.last_offset)
            for line in self.case.lines.values()
            if line.first_offset >= 0
        }
        for place in sorted(stated.offsets.keys() | found.keys()):
            said, seen = stated.offsets.get(place), found.get(place)
            if not self._agree(place, said, seen, stated.whole):
                yield Contradiction(*place, said, seen)

    def _agree(self, place: Place, said: tuple[int, int] | None, seen: tuple[int, int] | None, whole: bool) -> bool:
        start = self.starts.get(place, 0)
        if said is None:
            return False
        first, last = said
        if last < start:
            return seen is None
        if seen is None:
            return False
        if not whole:
            return max(first, start) <= seen[0] and seen[1] <= last
        return seen[1] == last and (seen[0] == first if first >= start else seen[0] >= start)
