"""Compares what topics hold with what captures make, record by record. No I/O but the spool, no loop.

Contract: an `Audit` is told of its captures (`expect`; the pipeline fills what that returns), then given the records of
every partition in offset order (`take`; partitions may take turns as they like, captures too), then asked (`report`).
What each word means, exactly (docs/kafka.md, "Checking the topics"):

- A record *of a capture* is one whose `kcs` header names it. It is at its place when its position is one that the
  capture makes for that topic and partition; otherwise it is `misplaced` (made for another place) or an `orphan`.
- The first record at a position's place makes the position *present*; every further one is `doubled`. A position with
  none is `missing`, or `expired` where the broker is known to have dropped it.
- A record that makes its position present after a higher one was present on that partition is `out_of_order`.
- A record at its place, doubled or not, that is not what the capture makes of that position is `different`.

So expected = present + missing + expired, and found = present + doubled + misplaced + orphans. Counts are exact,
findings are bounded to `EXAMPLES_MAX` of each fault. Memory: nothing that grows with a capture but, on a partition
where something is missing or late, one byte a record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from kcs.kafka.findings import EXAMPLES_MAX, FAULTS, Finding, Reporter, Stated, TopicReport
from kcs.kafka.spool import (
    ENTRY_BYTES,
    ORDER_BYTES,
    POSITION_BYTES,
    Expectation,
    Place,
    Shelf,
    Spool,
    differences,
    entry_of,
)
from kcs.sink import HEADER_NAME, POSITION

_HEADER_BYTES: Final = 28
_ID_BYTES: Final = 8
_LOG_APPEND_TIME: Final = 1


class Message(Protocol):
    """A record as a consumer gets it (aiokafka's ConsumerRecord). `timestamp_type` 1: the broker set the time."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    timestamp_type: int | None
    headers: Sequence[tuple[str, bytes]]


class Line:
    """One capture on one partition: how far the comparison is.

    `next` is the index behind the highest position present; its entry is at `at` in `block`, a part of the shelf.
    `hint` is the index behind the last record found. `missing` has a 1 for each position below `next` that has no
    record so far; it exists only where one was passed over.
    """

    __slots__ = ("at", "block", "first_offset", "hint", "last_offset", "missing", "next", "place", "shelf")

    def __init__(self, place: Place, shelf: Shelf) -> None:
        self.place = place
        self.shelf = shelf
        self.next = 0
        self.hint = 0
        self.missing: bytearray | None = None
        self.first_offset = -1
        self.last_offset = -1
        self.seek()

    def seek(self) -> None:
        """Have the entry that is due at hand; none when all are present."""
        self.at = 0
        self.block = self.shelf.entries(self.next) if self.next < self.shelf.count else b""

    def jump(self, index: int) -> None:
        """`index`, at or above `next`, is present; what was passed over is missing so far."""
        if index > self.next:
            if self.missing is None:
                self.missing = bytearray(self.shelf.count)
            self.missing[self.next : index] = b"\1" * (index - self.next)
        behind = self.at + (index + 1 - self.next) * ENTRY_BYTES
        self.next = index + 1
        if behind < len(self.block):
            self.at = behind
        else:
            self.seek()

    def sight(self, offset: int) -> None:
        """The record at `offset` makes a position present."""
        if self.first_offset < 0:
            self.first_offset = offset
        self.last_offset = offset

    @property
    def absent(self) -> int:
        """Positions without a record."""
        return self.shelf.count - self.next + (self.missing.count(1) if self.missing is not None else 0)

    def leading(self) -> int:
        """How many positions are absent before the first that is present."""
        if not self.next:
            return self.shelf.count
        return 0 if self.missing is None else self.missing.find(0)

    def runs(self) -> Iterable[tuple[int, int]]:
        """(first index, one past the last) of each run of absent positions."""
        if self.missing is not None:
            end = 0
            while 0 <= (first := self.missing.find(1, end)) < self.next:
                end = self.missing.find(0, first)  # `next - 1` is present
                yield first, end
        if self.next < self.shelf.count:
            yield self.next, self.shelf.count


class Case:
    """One capture of an audit: its lines and counts."""

    __slots__ = (
        "beyond", "broker_times", "different", "doubled", "end", "expectation", "fields", "findings", "found", "holes",
        "lines", "misplaced", "noted", "orphans", "out_of_order", "strays",
    )  # fmt: skip

    def __init__(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self.end = 0
        self.holes: list[tuple[int, int]] = []
        self.lines: dict[Place, Line] = {}
        self.found = self.doubled = self.misplaced = self.orphans = self.beyond = 0
        self.out_of_order = self.different = self.broker_times = 0
        self.fields: dict[str, int] = {}
        self.noted = dict.fromkeys(FAULTS, 0)
        self.findings: list[Finding] = []
        self.strays: list[Line] = []
        """The lines in the order in which a stray was found in them last."""

    def begin(self) -> None:
        """Everything is spooled."""
        self.lines = {place: Line(place, shelf) for place, shelf in self.expectation.shelves.items()}
        self.strays = list(self.lines.values())

    def note(self, fault: str, place: Place, offset: int | None, position: bytes, **more: Any) -> None:
        """Count a finding of this fault, and keep it while there is room."""
        self.noted[fault] += 1
        if self.noted[fault] <= EXAMPLES_MAX:
            frame, event, _ = POSITION.unpack(position[:POSITION_BYTES])
            self.findings.append(Finding(fault, *place, offset, frame, event, **more))

    def index_of(self, line: Line, position: bytes) -> int | None:
        """The index of the entry of this position; None: the capture does not make it for this partition."""
        entry, count = line.shelf.entry, line.shelf.count
        order = position[:ORDER_BYTES]
        if line.hint < count and entry(line.hint, ORDER_BYTES) == order:  # most strange records follow each other
            return line.hint
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if entry(middle, ORDER_BYTES) < order:
                low = middle + 1
            else:
                high = middle
        return low if low < count and entry(low, ORDER_BYTES) == order else None

    def odd(self, line: Line, message: Message, entry: bytes) -> None:
        """A record that is not exactly the one that is due on its partition."""
        index = self.index_of(line, entry)
        if index is None:
            self.stray(line.place, message.offset, entry)
            return
        place, offset = line.place, message.offset
        line.hint = index + 1
        fields = self._fields(line, index, message, entry)
        if index >= line.next:
            line.jump(index)
            line.sight(offset)
        elif line.missing is not None and line.missing[index]:
            line.missing[index] = 0
            line.sight(offset)
            self.out_of_order += 1
            self.note("out_of_order", place, offset, entry)
        else:
            self.doubled += 1
            self.note("doubled", place, offset, entry, fields=fields)
        if fields:
            self.different += 1
            for name in fields:
                self.fields[name] = self.fields.get(name, 0) + 1
            self.note("different", place, offset, entry, fields=fields)

    def _fields(self, line: Line, index: int, message: Message, entry: bytes) -> tuple[str, ...]:
        fields = differences(line.shelf.entry(index), entry, line.shelf.named)
        if "timestamp" in fields and message.timestamp_type == _LOG_APPEND_TIME:
            self.broker_times += 1
            return tuple(name for name in fields if name != "timestamp")
        return fields

    def stray(self, place: Place, offset: int, position: bytes) -> None:
        """A record of this capture that is not made for this partition."""
        frame, _, _ = POSITION.unpack(position[:POSITION_BYTES])
        if frame < self.end:
            for line in self.strays:
                index = self.index_of(line, position)
                if index is not None:
                    line.hint = index + 1
                    self.strays.remove(line)
                    self.strays.insert(0, line)
                    self.misplaced += 1
                    topic, partition = line.place
                    self.note("misplaced", place, offset, position, why=f"belongs to {topic}[{partition}]")
                    return
        self.orphans += 1
        if frame >= self.end:
            self.beyond += 1
            why = f"the capture ends before frame {self.end}"
        elif self._in_hole(frame):
            why = "its frame is missing in the capture"
        else:
            why = "the capture makes no such record"
        self.note("orphan", place, offset, position, why=why)

    def _in_hole(self, frame: int) -> bool:
        at = bisect_right(self.holes, (frame, 1 << 64)) - 1
        return at >= 0 and frame < self.holes[at][0] + self.holes[at][1]


class Audit:
    """See the module docstring. Single-threaded; `close` lets the spool go."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._cases: dict[bytes, Case] = {}
        self.other_captures = 0
        """Records read that belong to captures which are not part of this audit."""
        self.without_header = 0
        """Records read without a `kcs` header, or with one that is none."""

    def expect(self, capture_id: bytes, place_of: Any) -> Expectation:
        """Begin a capture; its pipeline fills what this returns. `place_of`: see `Expectation`."""
        expectation = Expectation(self._spool, place_of)
        self._cases[capture_id] = Case(expectation)
        return expectation

    def expected(self, capture_id: bytes, end: int, holes: Sequence[tuple[int, int]]) -> None:
        """The capture is fed. `end`: one past the last number that it ever had; `holes`: (first, how many) missing."""
        case = self._cases[capture_id]
        case.expectation.seal()
        case.end = end
        case.holes = sorted(holes)

    def begin(self) -> None:
        """All captures are fed; records may come."""
        for case in self._cases.values():
            case.begin()

    def take(self, place: Place, messages: Iterable[Message]) -> None:
        """The next records of a partition, in offset order."""
        cases = self._cases
        for message in messages:
            headers = message.headers
            header = headers[0][1] if headers and headers[0][0] == HEADER_NAME else _header(headers)
            if header is None or len(header) != _HEADER_BYTES:
                self.without_header += 1
                continue
            case = cases.get(header[:_ID_BYTES])
            if case is None:
                self.other_captures += 1
                continue
            case.found += 1
            line = case.lines.get(place)
            if line is None:
                case.stray(place, message.offset, header[_ID_BYTES:])
                continue
            entry = entry_of(header[_ID_BYTES:], message, line.shelf.named)
            at = line.at
            if line.block[at : at + ENTRY_BYTES] != entry:
                case.odd(line, message, entry)
                continue
            line.next = line.hint = line.next + 1
            line.at = at = at + ENTRY_BYTES
            if at == len(line.block):
                line.seek()
            line.last_offset = message.offset
            if line.first_offset < 0:
                line.first_offset = message.offset

    def report(
        self, capture_id: bytes, starts: Mapping[Place, int] | None = None, stated: Stated | None = None
    ) -> TopicReport:
        """What became of this capture. `starts`: the first offset that the broker still has, by place."""
        return Reporter(self._cases[capture_id], starts or {}, stated).report()

    def close(self) -> None:
        """Release the temporary file; safe to call twice."""
        self._spool.close()


def _header(headers: Sequence[tuple[str, bytes]]) -> bytes | None:
    return next((content for name, content in headers if name == HEADER_NAME), None)
