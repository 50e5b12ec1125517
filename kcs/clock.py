"""The only module that reads a clock. Imports nothing of kcs.

`SystemClock` is anchored once to the wall clock and then follows the monotonic clock, so it never runs back and a step
of the wall clock cannot reorder a capture; the capture's clock records show such a step afterwards.
`VirtualClock` moves only when told to: tests, fixtures and the simulator's virtual time run on it.
All times are integer nanoseconds; `now_ns` is since the Unix epoch.
"""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Where kcs gets its time from."""

    def now_ns(self) -> int:
        """Unix time in ns; never smaller than the value before."""
        ...

    def monotonic_ns(self) -> int:
        """ns since an arbitrary start; for durations."""
        ...

    def wall_ns(self) -> int:
        """The machine's wall clock as it is now, steps included; for clock records only."""
        ...


class SystemClock:
    """Wall time at the moment of creation plus monotonic time since."""

    __slots__ = ("_offset_ns",)

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


class VirtualClock:
    """A clock that stands still until `advance` or `set` moves it forward."""

    __slots__ = ("_now_ns", "_start_ns")

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._start_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._now_ns - self._start_ns

    def wall_ns(self) -> int:
        return self._now_ns

    def advance(self, ns: int) -> None:
        """Move forward by `ns` (>= 0)."""
        if ns < 0:
            raise ValueError(f"a clock never runs back (asked for {ns} ns)")
        self._now_ns += ns

    def set(self, now_ns: int) -> None:
        """Move forward to `now_ns`; a time in the past leaves the clock where it is."""
        self._now_ns = max(self._now_ns, now_ns)
