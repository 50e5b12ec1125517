"""Clocks never run back."""

from __future__ import annotations

import pytest

from kcs.clock import SystemClock, VirtualClock


def test_the_system_clock_is_near_the_wall_and_never_runs_back() -> None:
    clock = SystemClock()
    assert abs(clock.now_ns() - clock.wall_ns()) < 1_000_000_000
    readings = [clock.now_ns() for _ in range(1000)]
    assert readings == sorted(readings)


def test_the_virtual_clock_moves_only_when_told() -> None:
    clock = VirtualClock(100)
    clock.advance(5)
    clock.set(50)
    assert (clock.now_ns(), clock.monotonic_ns(), clock.wall_ns()) == (105, 5, 105)
    clock.set(200)
    assert clock.now_ns() == 200
    with pytest.raises(ValueError, match="never runs back"):
        clock.advance(-1)
