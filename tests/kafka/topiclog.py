"""Topics as lists: what captures make of a few numbers, messages as a consumer gets them, and an oracle for audits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kcs.kafka.compare import Audit
from kcs.kafka.spool import Place
from kcs.sink import POSITION

START_NS = 1_767_258_000_000_000_000
TOPICS = {channel: f"{channel}.upbit" for channel in ("trade", "orderbook", "ticker", "gap", "reject")}


@dataclass(frozen=True, slots=True)
class Made:
    """One record that a capture makes."""

    channel: str
    key: str
    number: int
    index: int = 0
    value: bytes = b"[1]"
    trade_id: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def recv_ns(self) -> int:
        return START_NS + self.number * 1_000_000

    @property
    def position(self) -> bytes:
        return POSITION.pack(self.number, self.index, self.recv_ns)

    @property
    def at(self) -> tuple[int, int]:
        return self.number, self.index


@dataclass(frozen=True, slots=True)
class Msg:
    """One record as a consumer gets it."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: tuple[tuple[str, bytes], ...]
    timestamp_type: int | None = 0


def partition_of(channel: str, key: str) -> int:
    """Some partition of two; the gap and reject topics have one."""
    return 0 if channel in ("gap", "reject") else sum(key.encode()) % 2


def place_of(channel: str, exchange: str, key: bytes) -> Place:
    assert exchange == "upbit"
    return TOPICS[channel], partition_of(channel, key.decode())


def place(made: Made) -> Place:
    return TOPICS[made.channel], partition_of(made.channel, made.key)


def message(made: Made, capture_id: bytes, offset: int = 0) -> Msg:
    """The record as it should be."""
    identity = (("id", made.trade_id),) if made.trade_id else ()
    headers = (("kcs", capture_id + made.position), *identity, *made.headers)
    return Msg(offset, made.key.encode(), made.value, made.recv_ns // 1_000_000, headers)


def logs(captures: Mapping[bytes, Sequence[Made]]) -> dict[Place, list[Msg]]:
    """The topics as they should be, captures one after the other; offsets are not set."""
    found: dict[Place, list[Msg]] = {}
    for capture_id, records in captures.items():
        for made in records:
            found.setdefault(place(made), []).append(message(made, capture_id))
    return found


def numbered(log: Iterable[Msg], first: int = 0) -> list[Msg]:
    """With offsets from `first` on."""
    return [replace(each, offset=offset) for offset, each in enumerate(log, first)]


def expecting(
    captures: Mapping[bytes, Sequence[Made]],
    *,
    ends: Mapping[bytes, int] | None = None,
    holes: Sequence[tuple[int, int]] = (),
) -> Audit:
    """An audit of these captures, fed and begun."""
    audit = Audit()
    for capture_id, records in captures.items():
        sink = audit.expect(capture_id, place_of)
        sink.start(capture_id)
        routes = {}
        for made in records:
            known = (made.channel, made.key)
            if known not in routes:
                routes[known] = sink.route(made.channel, "upbit", made.key)
            sink.emit(routes[known], made.value, made.recv_ns, made.position, made.trade_id, made.headers)
        end = max((made.number for made in records), default=-1) + 1
        audit.expected(capture_id, (ends or {}).get(capture_id, end), holes)
    audit.begin()
    return audit


@dataclass(slots=True)
class Told:
    """What an audit should say of one capture: counts, and (fault, topic, partition, offset, frame, event) of each."""

    expected: int = 0
    found: int = 0
    doubled: int = 0
    misplaced: int = 0
    orphans: int = 0
    beyond: int = 0
    out_of_order: int = 0
    different: int = 0
    named: set[tuple[str, str, int, int | None, int, int]] = field(default_factory=set)
    fields: dict[int | None, tuple[str, ...]] = field(default_factory=dict)
    """offset -> what differs, by partition-free key; offsets are unique over a test's topics."""


def oracle(capture_id: bytes, records: Sequence[Made], log: Mapping[Place, Sequence[Msg]]) -> Told:
    """The definitions of docs/kafka.md, written down naively."""
    told = Told(expected=len(records))
    here: dict[Place, dict[tuple[int, int], Made]] = {}
    for made in records:
        here.setdefault(place(made), {})[made.at] = made
    end = max((made.number for made in records), default=-1) + 1
    present: dict[Place, set[tuple[int, int]]] = {where: set() for where in here}
    for where, messages in log.items():
        for each in messages:
            header = next((content for name, content in each.headers if name == "kcs"), b"")
            if len(header) != 28 or header[:8] != capture_id:
                continue
            told.found += 1
            number, index, recv_ns = POSITION.unpack(header[8:])
            at, name = (number, index), (*where, each.offset, number, index)
            if at not in here.get(where, {}):
                elsewhere = number < end and any(at in made for made in here.values())
                told.misplaced += elsewhere
                told.orphans += not elsewhere
                told.beyond += number >= end
                told.named.add(("misplaced" if elsewhere else "orphan", *name))
                continue
            seen = present[where]
            if at in seen:
                told.doubled += 1
                told.named.add(("doubled", *name))
            elif seen and max(seen) > at:
                told.out_of_order += 1
                told.named.add(("out_of_order", *name))
            seen.add(at)
            differing = _differing(here[where][at], each, recv_ns)
            if differing:
                told.different += 1
                told.named.add(("different", *name))
                told.fields[each.offset] = differing
    for where, made_here in here.items():
        told.named |= {("missing", *where, None, *at) for at in made_here if at not in present[where]}
    return told


def _differing(made: Made, found: Msg, recv_ns: int) -> tuple[str, ...]:
    named = "reason" if made.channel == "reject" else "id"
    should = message(made, b"")
    own, rest = _parted(should.headers, named)
    its, others = _parted(found.headers, named)
    different = {
        "header kcs": recv_ns != made.recv_ns,
        "timestamp": should.timestamp != found.timestamp,
        "key": should.key != found.key,
        "value": should.value != found.value,
        f"header {named}": own != its,
        "headers": rest != others,
    }
    return tuple(name for name, differs in different.items() if differs)


def _parted(headers: Sequence[tuple[str, bytes]], named: str) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    rest = list(headers)
    rest.remove(next(each for each in rest if each[0] == "kcs"))
    own = next((each for each in rest if each[0] == named), None)
    if own is not None:
        rest.remove(own)
    return None if own is None else own[1], rest
