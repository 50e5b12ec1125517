"""Pacing under a virtual clock: exact ends at any speed, stalls are made up for, lateness is what it was."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import VirtualClock
from kcs.errors import UsageError
from kcs.replay.pacing import Pacer, parse_speed

SPIN_STEP_NS = 20_000


class VirtualSleeper:
    """asyncio.sleep in virtual time; oversleeps by a given amount, as event loops do."""

    def __init__(self, clock: VirtualClock, late_ns: int = 0) -> None:
        self.clock = clock
        self.late_ns = late_ns
        self.naps = 0

    async def __call__(self, seconds: float) -> None:
        if seconds > 0:
            self.naps += 1
            self.clock.advance(round(seconds * 1e9) + self.late_ns)
        else:
            self.clock.advance(SPIN_STEP_NS)


def run(
    speed: Fraction, recv_ns: list[int], late_ns: int = 0, stalls: dict[int, int] | None = None
) -> tuple[int, Pacer]:
    """Elapsed virtual ns from the first frame to the last, and the pacer."""
    clock = VirtualClock(5_000)
    pacer = Pacer(speed, clock, VirtualSleeper(clock, late_ns))
    fed: list[int] = []

    async def play() -> None:
        for i, recv in enumerate(recv_ns):
            await pacer.wait(recv)
            fed.append(clock.monotonic_ns())
            clock.advance((stalls or {}).get(i, 0))

    asyncio.run(play())
    return fed[-1] - fed[0], pacer


@pytest.mark.parametrize("speed", ["0.25", "0.5", "1", "10"])
@pytest.mark.parametrize("late_ns", [0, 900_000], ids=["exact timers", "timers 0.9 ms late"])
def test_a_run_ends_when_the_recording_says_at_any_speed(speed: str, late_ns: int) -> None:
    frames = [10**18 + i * 10_000_000 for i in range(2_000)]
    factor = parse_speed(speed)
    assert factor is not None
    elapsed, pacer = run(factor, frames, late_ns)
    ideal = int((frames[-1] - frames[0]) / factor)
    assert 0 <= elapsed - ideal <= SPIN_STEP_NS, "an error would have been summed up over 2,000 sleeps"
    assert pacer.lateness.max_ns <= SPIN_STEP_NS


def test_a_stalled_consumer_is_late_and_the_schedule_is_met_again_afterwards() -> None:
    frames = [i * 10_000_000 for i in range(1_000)]
    elapsed, pacer = run(Fraction(1), frames, stalls={100: 2_000_000_000})
    assert elapsed - 9_990_000_000 <= SPIN_STEP_NS, "the two seconds were made up for"
    assert 1_980_000_000 <= pacer.lateness.max_ns <= 2_000_000_000
    assert pacer.lateness.quantile_ns(0.5) is not None


def test_a_stall_at_the_end_shows_in_the_time_and_in_the_lateness() -> None:
    frames = [i * 10_000_000 for i in range(100)]
    elapsed, pacer = run(Fraction(1), frames, stalls={97: 1_000_000_000})
    assert elapsed >= 970_000_000 + 1_000_000_000
    assert pacer.lateness.max_ns >= 900_000_000


@given(
    st.lists(st.integers(0, 3_000_000_000), min_size=2, max_size=30),
    st.fractions(min_value=Fraction(1, 8), max_value=Fraction(64)),
)
@settings(max_examples=50, deadline=None)
def test_no_frame_is_ever_early(gaps: list[int], speed: Fraction) -> None:
    clock = VirtualClock()
    pacer = Pacer(speed, clock, VirtualSleeper(clock))
    start: list[int] = []

    async def play() -> None:
        recv = 0
        for gap in gaps:
            recv += gap
            await pacer.wait(recv)
            start.append(clock.monotonic_ns())
            assert Fraction(clock.monotonic_ns() - start[0]) >= (recv - gaps[0]) / speed - 1

    asyncio.run(play())


def test_frames_that_are_due_at_once_take_no_sleep() -> None:
    clock = VirtualClock()
    sleeper = VirtualSleeper(clock)
    pacer = Pacer(Fraction(1), clock, sleeper)

    async def play() -> None:
        for _ in range(100):
            await pacer.wait(7)

    asyncio.run(play())
    assert sleeper.naps == 0


@pytest.mark.parametrize(
    ("text", "speed"),
    [("max", None), ("1", Fraction(1)), ("0.5", Fraction(1, 2)), ("10x", Fraction(10)), ("2.5", Fraction(5, 2))],
)
def test_speeds(text: str, speed: Fraction | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["0", "-1", "fast", "", "1/0", "nan", "inf", "1e99", "1e999999999", "9" * 30, "x"])
def test_bad_speeds(text: str) -> None:
    with pytest.raises(UsageError, match="speed"):
        parse_speed(text)
