"""What the simulated venue and its network do wrong on purpose: the faults, their units and their text form.

A fault is drawn from the seed or stands in a timetable, so the same settings do the same wrong at the same virtual
times, in memory, over a socket and on a tape. Faults of the websocket level are done by `mischief`, those of the
network (named and meant as toxiproxy names and means them) by `toxics`; `fault_text` reads the text form. Every value
is an integer: times in ns, sizes in bytes, chances in parts of 10**9. Imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

CERTAIN: Final = 1_000_000_000
"""The chance 100 %: parts of 10**9."""


class Style(Enum):
    """How a fault happens, which decides what may stand after `@`."""

    STRIKE = auto()
    """Hits single things (frames, pings, subscriptions)."""
    WINDOW = auto()
    """Lasts as long as its value says."""
    END = auto()
    """Ends the connection."""
    STATE = auto()
    """Is a property of a connection, always or inside windows (`for`)."""
    STEP = auto()
    """Happens to the venue, not to a connection."""


class Value(Enum):
    """What stands after `=`, besides a chance."""

    NONE = auto()
    TIME = auto()
    SIGNED_TIME = auto()
    MARKET_TIME = auto()
    SIZE = auto()
    RATE = auto()
    SLICES = auto()
    CODE = auto()
    COUNT = auto()


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One entry of the catalogue. `unit`: what a chance without timetable counts; `bare`: may stand without any `@`."""

    style: Style
    value: Value
    unit: str
    example: str
    toxic: bool = False
    bare: bool = False


FAULTS: Final[dict[str, FaultKind]] = {
    "latency": FaultKind(Style.STATE, Value.TIME, "connection", "latency=50ms", toxic=True, bare=True),
    "jitter": FaultKind(Style.STATE, Value.TIME, "connection", "jitter=20ms", toxic=True, bare=True),
    "bandwidth": FaultKind(Style.STATE, Value.RATE, "connection", "bandwidth=100KB/s", toxic=True, bare=True),
    "slicer": FaultKind(Style.STATE, Value.SLICES, "connection", "slicer=64B", toxic=True, bare=True),
    "slow_close": FaultKind(Style.STATE, Value.TIME, "connection", "slow_close=2s", toxic=True, bare=True),
    "limit_data": FaultKind(Style.STATE, Value.SIZE, "connection", "limit_data=64KiB", toxic=True, bare=True),
    "timeout": FaultKind(Style.WINDOW, Value.TIME, "connection", "timeout=5s@at:20s", toxic=True, bare=True),
    "reset_peer": FaultKind(Style.END, Value.NONE, "connection", "reset_peer@at:12s", toxic=True, bare=True),
    "drop": FaultKind(Style.STRIKE, Value.NONE, "market frame", "drop=1%"),
    "truncated_json": FaultKind(Style.STRIKE, Value.NONE, "market frame", "truncated_json=0.1%"),
    "bad_json": FaultKind(Style.STRIKE, Value.NONE, "market frame", "bad_json=0.1%"),
    "duplicate": FaultKind(Style.STRIKE, Value.NONE, "market frame", "duplicate=1%"),
    "reorder": FaultKind(Style.STRIKE, Value.COUNT, "market frame", "reorder=1%"),
    "junk": FaultKind(Style.STRIKE, Value.NONE, "market frame", "junk@every:1000"),
    "silent_stall": FaultKind(Style.WINDOW, Value.TIME, "market frame", "silent_stall=5s@every:60s"),
    "market_silent": FaultKind(Style.WINDOW, Value.MARKET_TIME, "market frame", "market_silent=KRW-BTC:20s@at:30s"),
    "stall": FaultKind(Style.WINDOW, Value.TIME, "market frame", "stall=2s@every:30s"),
    "close_code": FaultKind(Style.END, Value.CODE, "market frame", "close_code=1012@every:30s"),
    "late_snapshot": FaultKind(Style.STRIKE, Value.TIME, "subscription", "late_snapshot=2s", bare=True),
    "ping_ignored": FaultKind(Style.STRIKE, Value.NONE, "ping", "ping_ignored=10%"),
    "clock_step": FaultKind(Style.STEP, Value.SIGNED_TIME, "", "clock_step=-2s@at:30s"),
}
"""Where several could hit one frame, the first in this order does."""

WhenKind = Literal["always", "at", "every", "after", "frames"]


@dataclass(frozen=True, slots=True)
class When:
    """A timetable. `at`, `every` count from the opening of the market, `after` from the connection's own beginning.

    `ns`: the moment or the period; for `frames` the period in things counted. `for_ns`: the length of each window that
    begins then, 0 for the moment alone.
    """

    kind: WhenKind = "always"
    ns: int = 0
    for_ns: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault as asked for. `value` in the unit of its kind; `extra`: slicer's variation (bytes) and delay (ns)."""

    name: str
    value: int = 0
    market: str = ""
    extra: tuple[int, ...] = ()
    chance: int = CERTAIN
    when: When = When()

    @property
    def kind(self) -> FaultKind:
        """Its entry in the catalogue."""
        return FAULTS[self.name]

    @property
    def length_ns(self) -> int:
        """How long each occurrence lasts; 0 for a moment."""
        return self.value if self.kind.style is Style.WINDOW else self.when.for_ns

    def __str__(self) -> str:
        """The text form that `fault_text` reads back."""
        value = self.value_text
        parts = [f"{self.name}={value}" if value else self.name]
        when = self.when
        if when.kind == "frames":
            parts.append(f"every:{when.ns}")
        elif when.kind != "always":
            parts.append(f"{when.kind}:{duration_text(when.ns)}")
        if when.for_ns:
            parts.append(f"for:{duration_text(when.for_ns)}")
        if self.chance != CERTAIN or (when.kind == "always" and not self.kind.bare):
            parts.append(chance_text(self.chance))
        return "@".join(parts)

    @property
    def value_text(self) -> str:
        """The value as it is written; empty where there is none."""
        wanted = self.kind.value
        if wanted is Value.NONE or (wanted is Value.COUNT and self.value == 1):
            return ""
        if wanted is Value.CODE or wanted is Value.COUNT:
            return str(self.value)
        if wanted is Value.SIZE or wanted is Value.RATE:
            return size_text(self.value) + ("/s" if wanted is Value.RATE else "")
        if wanted is Value.SLICES:
            variation, delay_ns = self.extra
            return f"{size_text(self.value)}:{size_text(variation)}:{duration_text(delay_ns)}"
        sign = "-" if self.value < 0 else ""
        text = sign + duration_text(abs(self.value))
        return f"{self.market}:{text}" if self.market else text


@dataclass(frozen=True, slots=True)
class Faults:
    """All faults of a simulation; empty: none. Made by `fault_text.parse_faults`."""

    items: tuple[Fault, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.items)

    def __str__(self) -> str:
        return ",".join(map(str, self.items))

    @property
    def toxics(self) -> tuple[Fault, ...]:
        """What acts on bytes, between the dialect and the socket."""
        return tuple(fault for fault in self.items if fault.kind.toxic)

    @property
    def mischief(self) -> tuple[Fault, ...]:
        """What acts on messages."""
        return tuple(fault for fault in self.items if not fault.kind.toxic and fault.kind.style is not Style.STEP)

    @property
    def clock_steps(self) -> tuple[Fault, ...]:
        """What acts on the venue's clock."""
        return self.named("clock_step")

    @property
    def markets(self) -> tuple[str, ...]:
        """Markets that are named."""
        return tuple(fault.market for fault in self.items if fault.market)

    def named(self, name: str) -> tuple[Fault, ...]:
        """All faults of one name."""
        return tuple(fault for fault in self.items if fault.name == name)


_DURATION_UNITS: Final = (
    ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000),
)  # fmt: skip


_SIZE_UNITS: Final = (("GB", 10**9), ("MB", 10**6), ("KB", 10**3), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def duration_text(ns: int) -> str:
    """A duration in the largest unit that says it in whole numbers."""
    return "0s" if not ns else _in_units(ns, _DURATION_UNITS, "ns")


def size_text(size: int) -> str:
    """A size in the largest unit that says it in whole numbers."""
    return "0B" if not size else _in_units(size, _SIZE_UNITS, "B")


def _in_units(amount: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    unit, size = next(((unit, size) for unit, size in units if amount % size == 0), (smallest, 1))
    return f"{amount // size}{unit}"


def chance_text(chance: int) -> str:
    """A chance as a percentage."""
    whole, rest = divmod(chance, CERTAIN // 100)
    return f"{whole}.{rest:07d}".rstrip("0").rstrip(".") + "%"


def numbered(faults: Iterable[Fault]) -> list[tuple[str, Fault]]:
    """Each fault with the name of its own random stream, so that none shifts what another draws."""
    seen: dict[str, int] = {}
    named = []
    for fault in faults:
        count = seen[fault.name] = seen.get(fault.name, 0) + 1
        named.append((f"{fault.name}.{count}", fault))
    return named
