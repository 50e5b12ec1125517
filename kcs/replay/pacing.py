"""When a recorded frame is due. Anchored to the first frame: no sleeps are summed, so no error accumulates.

    due = anchor + (recv_ns - first_recv_ns) / speed

A consumer that stalls makes later frames late; they then go out back to back until the schedule is met again, and
their lateness is reported. Waiting is a sleep to shortly before the moment, then a short spin that keeps the event
loop turning. Speeds are exact fractions, so 0.25x of a week ends to the nanosecond where it should.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Final

from kcs.clock import NS_PER_S, Clock
from kcs.errors import UsageError
from kcs.stats import LatencyHistogram

SPIN_NS: Final = 1_500_000
"""Event loops wake up to a millisecond late; the rest of the wait is spun."""

SPEED_MIN: Final = Fraction(1, 1000)
SPEED_MAX: Final = Fraction(1_000_000)
_SPEED: Final = re.compile(r"\d{1,20}(?:\.\d{0,20})?|\.\d{1,20}")

Sleep = Callable[[float], Awaitable[object]]


def parse_speed(text: str) -> Fraction | None:
    """`max` -> None, `1`, `2.5`, `10x` -> that fraction. Raises UsageError."""
    if text == "max":
        return None
    number = text.removesuffix("x")
    # Only plain numbers: Fraction would spend its life on the digits of 1e999999999.
    speed = Fraction(number) if _SPEED.fullmatch(number) else Fraction(0)
    if not SPEED_MIN <= speed <= SPEED_MAX:
        raise UsageError(f"bad speed {text!r}", remedy="--speed max, 1, 0.5, 10 (from 0.001 to 1000000)")
    return speed


class Pacer:
    """Waits for the moment a frame is due. One pacer a run; `speed` None never waits."""

    __slots__ = ("_anchor_ns", "_clock", "_denominator", "_first_ns", "_numerator", "_sleep", "lateness")

    def __init__(
        self, speed: Fraction, clock: Clock, sleep: Sleep = asyncio.sleep, lateness: LatencyHistogram | None = None
    ) -> None:
        """`lateness`: where it is counted, to go on with an earlier pacer's."""
        self._clock = clock
        self._sleep = sleep
        self._numerator = speed.denominator
        self._denominator = speed.numerator
        self._anchor_ns = -1
        self._first_ns = 0
        self.lateness = lateness or LatencyHistogram()

    def due_ns(self, recv_ns: int) -> int:
        """The monotonic time at which the frame is due; the first call sets the anchor."""
        if self._anchor_ns < 0:
            self._anchor_ns = self._clock.monotonic_ns()
            self._first_ns = recv_ns
        return self._anchor_ns + (recv_ns - self._first_ns) * self._numerator // self._denominator

    async def wait(self, recv_ns: int) -> None:
        """Return when the frame is due, at once when it is late."""
        clock, due = self._clock, self.due_ns(recv_ns)
        left = due - clock.monotonic_ns()
        if left > SPIN_NS:
            await self._sleep((left - SPIN_NS) / NS_PER_S)
        while (left := due - clock.monotonic_ns()) > 0:
            await self._sleep(0)
        self.lateness.record_many([-left])
