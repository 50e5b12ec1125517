"""When a fault happens on one connection: chances and timetables. Integers only; imports the generator and the faults.

Everything here is asked with times (ns of the caller's clock) that never run back, and answers from these calls alone:
who asks at the same times in the same order gets the same answers. No timer is needed except where a fault must act
without anything else happening; then `Timetable.due_ns` says when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kcs.sim.fault_log import FaultEntry, SimFaultLog
from kcs.sim.faults import CERTAIN, Fault, When
from kcs.sim.prng import SplitMix64, derive
from kcs.sim.schedule import FOREVER

Origin = Callable[[], int | None]
"""When the market opened, in the caller's time; None while it has not."""

_STRIKE_ALWAYS: Final = -1


@dataclass(frozen=True, slots=True)
class Stage:
    """Where faults happen: one connection, made at `opened_ns`. `connection` counts from 1; 0 is the venue itself."""

    seed: int
    connection: int
    opened_ns: int
    origin: Origin
    log: SimFaultLog
    bytes_max: int

    def stream(self, name: str) -> SplitMix64:
        """A random stream of its own for the fault of this name (`faults.numbered`)."""
        return derive(self.seed, f"fault.{self.connection}.{name}")

    def virtual_ns(self, at_ns: int) -> int:
        """ns since the market opened; 0 before."""
        origin_ns = self.origin()
        return 0 if origin_ns is None else max(0, at_ns - origin_ns)

    def note(self, fault: str, at_ns: int, detail: str = "", *, counts: bool = True) -> None:
        """Something was done that concerns no single frame."""
        self.log.add(FaultEntry(self.virtual_ns(at_ns), self.connection, fault, detail), counts=counts)


class Chance:
    """Draws with one fault's chance; a certain one draws nothing."""

    __slots__ = ("_rng", "_threshold")

    def __init__(self, chance: int, rng: SplitMix64) -> None:
        self._rng = rng
        self._threshold = _STRIKE_ALWAYS if chance == CERTAIN else (chance << 64) // CERTAIN

    def draw(self) -> bool:
        """Whether it happens this time."""
        return self._threshold < 0 or self._rng.bits() < self._threshold


class Timetable:
    """The moments, or the beginnings of windows, of one schedule, as far as a connection made at `opened_ns` sees them.

    A window that had begun by then counts; a moment does not.
    """

    __slots__ = ("_due_ns", "_length_ns", "_opened_ns", "_origin", "_when")

    def __init__(self, when: When, length_ns: int, stage: Stage) -> None:
        self._when = when
        self._length_ns = length_ns
        self._opened_ns = stage.opened_ns
        self._origin = stage.origin
        self._due_ns = self._first()

    @property
    def due_ns(self) -> int:
        """The next beginning; FOREVER when there is none, or none yet because the market has not opened."""
        if self._due_ns is None:
            self._due_ns = self._first()
        return FOREVER if self._due_ns is None else self._due_ns

    def _first(self) -> int | None:
        when = self._when
        if when.kind == "after":
            return self._opened_ns + when.ns
        if when.kind not in ("at", "every"):
            return FOREVER
        origin_ns = self._origin()
        if origin_ns is None:
            return None
        if when.kind == "at":
            due_ns = origin_ns + when.ns
            return due_ns if due_ns + self._length_ns > self._opened_ns else FOREVER
        turn = (self._opened_ns - origin_ns - self._length_ns) // when.ns + 1
        return origin_ns + max(1, turn) * when.ns

    def advance(self) -> None:
        """Go on to the next one."""
        self._due_ns = self.due_ns + self._when.ns if self._when.kind == "every" else FOREVER

    def skip(self, now_ns: int) -> None:
        """Leave out what is over at `now_ns`."""
        over_ns = now_ns - self.due_ns - self._length_ns
        if over_ns >= 0:
            if self._when.kind == "every":
                self._due_ns = self.due_ns + (over_ns // self._when.ns + 1) * self._when.ns
            else:
                self._due_ns = FOREVER


class Strikes:
    """Which of many things (frames, pings, subscriptions) a fault hits."""

    __slots__ = ("_chance", "_count", "_every", "_table", "_windowed")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        when = fault.when
        self._chance = Chance(fault.chance, stage.stream(name))
        self._every = when.ns if when.kind == "frames" else 0
        self._count = 0
        self._windowed = when.for_ns > 0
        timed = when.kind in ("at", "every", "after")
        self._table = Timetable(when, when.for_ns, stage) if timed else None

    def hit(self, at_ns: int) -> bool:
        """Whether the next thing, which happens at `at_ns`, is hit."""
        table = self._table
        if table is None:
            if self._every:
                self._count += 1
                if self._count < self._every:
                    return False
                self._count = 0
            return self._chance.draw()
        if self._windowed:
            table.skip(at_ns)
            return table.due_ns <= at_ns and self._chance.draw()
        if table.due_ns > at_ns:
            return False
        table.skip(at_ns)  # moments that passed without any thing to hit are one
        return self._chance.draw()


class Windows:
    """The stretches of time in which a fault lasts. `start_ns`, `end_ns`: the newest one.

    Without a timetable a window begins with a thing that is hit, or, where `standing`, the connection is one window.
    """

    __slots__ = ("_chance", "_fresh", "_length_ns", "_opened_ns", "_strikes", "_table", "end_ns", "start_ns")

    def __init__(self, fault: Fault, name: str, stage: Stage, *, standing: bool = False) -> None:
        when = fault.when
        self._length_ns = fault.length_ns
        self._opened_ns = stage.opened_ns
        self._chance = Chance(fault.chance, stage.stream(name))
        self._strikes: Strikes | None = None
        self._table = Timetable(when, self._length_ns, stage)
        self._fresh = False
        self.start_ns = self.end_ns = -FOREVER
        if standing and when.kind == "always":
            self._fresh = self._chance.draw()
            self.start_ns = stage.opened_ns
            self.end_ns = FOREVER if self._fresh else -FOREVER
        elif when.kind in ("always", "frames"):
            self._strikes = Strikes(fault, name, stage)

    def inside(self, at_ns: int) -> bool:
        """Whether the fault is at work at `at_ns`, when one of the things happens that may begin a window."""
        if self.lasts(at_ns):
            return True
        if self._strikes is None or not self._strikes.hit(at_ns):
            return False
        self._begin(at_ns, at_ns + self._length_ns)
        return True

    def lasts(self, at_ns: int) -> bool:
        """The same when anything else happens: only a timetable begins a window."""
        if at_ns < self.end_ns:
            return True
        table = self._table
        if table.due_ns > at_ns:
            return False
        table.skip(at_ns)
        due_ns = table.due_ns
        if due_ns > at_ns:
            return False
        table.advance()
        if not self._chance.draw():
            return False
        self._begin(max(due_ns, self._opened_ns), due_ns + self._length_ns)
        return True

    def _begin(self, start_ns: int, end_ns: int) -> None:
        self.start_ns, self.end_ns = start_ns, end_ns
        self._fresh = True

    def entered(self) -> bool:
        """True once for each window: after the first `inside` that was in it."""
        fresh, self._fresh = self._fresh, False
        return fresh
