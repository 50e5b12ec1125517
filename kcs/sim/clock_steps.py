"""The venue's clock steps: `clock_step`. Its frames show another time from then on; when they come does not change.

Used by any dialect's exchange: `due_ns` (the caller's clock) is the next step, `take` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kcs.sim.faults import Fault, duration_text, numbered
from kcs.sim.moments import Chance, Stage, Timetable
from kcs.sim.schedule import FOREVER


class _Step:
    """One fault: there, and back where it lasts for a time."""

    __slots__ = ("back_ns", "chance", "fault", "table")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.fault = fault
        self.table = Timetable(fault.when, 0, stage)
        self.chance = Chance(fault.chance, stage.stream(name))
        self.back_ns = FOREVER


class ClockSteps:
    """All steps of a simulation; made when the market opens."""

    def __init__(self, faults: Sequence[Fault], stage: Stage) -> None:
        self._stage = stage
        self._steps = [_Step(fault, name, stage) for name, fault in numbered(faults)]

    @property
    def due_ns(self) -> int:
        """When the next step is."""
        return min(min(step.table.due_ns, step.back_ns) for step in self._steps)

    def take(self) -> int:
        """By how much the clock steps at `due_ns`."""
        at_ns, by_ns = self.due_ns, 0
        for step in self._steps:
            value = step.fault.value
            if step.back_ns == at_ns:
                step.back_ns = FOREVER
                self._stage.note("clock_step", at_ns, _signed(-value), counts=False)
                by_ns -= value
            elif step.table.due_ns == at_ns:
                step.table.advance()
                if step.chance.draw():
                    self._stage.note("clock_step", at_ns, _signed(value))
                    by_ns += value
                    if step.fault.when.for_ns:
                        step.back_ns = at_ns + step.fault.when.for_ns
        return by_ns


def _signed(ns: int) -> str:
    return f"{'-' if ns < 0 else '+'}{duration_text(abs(ns))}"
