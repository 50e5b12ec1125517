"""The timetable: rates, order, grid and bursts under virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kcs.clock import NS_PER_S
from kcs.sim.schedule import FOREVER, BookGrid, RestSlots
from kcs.sim.settings import SimSettings


def books_until(grid: BookGrid, end_ns: int) -> list[tuple[int, int]]:
    found = []
    while grid.due_ns < end_ns:
        found.append((grid.due_ns, grid.market))
        grid.advance()
    return found


def rest_until(rest: RestSlots, end_ns: int) -> list[tuple[int, int, bool]]:
    found = []
    while rest.due_ns < end_ns:
        found.append((rest.due_ns, rest.market, rest.in_burst))
        rest.advance()
    return found


@pytest.mark.parametrize(
    ("rate", "cycles"), [(1, 200), (7, 60), (100, 20), (1_000, 4), (10_000, 2), (60_000, 1)], ids=str
)
@pytest.mark.parametrize(
    "channels", [("trade", "orderbook", "ticker"), ("trade",), ("orderbook",), ("orderbook", "ticker")], ids="+".join
)
def test_the_rate_is_the_asked_one(rate: int, cycles: int, channels: tuple[str, ...]) -> None:
    settings = SimSettings(rate=rate, channels=channels)
    end_ns = cycles * 3_200_000_000
    frames = len(books_until(BookGrid(settings), end_ns)) + len(rest_until(RestSlots(settings), end_ns))
    wanted = rate * end_ns // NS_PER_S
    # Each market's book may be one step off; the rest is exact to one frame.
    assert abs(frames - wanted) <= max(wanted // 100, 12)


@pytest.mark.parametrize("rate", [1, 50, 5_000])
def test_times_are_in_order_and_spread_over_the_second(rate: int) -> None:
    settings = SimSettings(rate=rate, burst_percent=100)
    times = [due for due, _, _ in rest_until(RestSlots(settings), 20 * NS_PER_S)]
    assert times == sorted(times)
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) <= max(4 * NS_PER_S // rate, 210_000_000), "without bursts no slot stays empty"


def test_the_books_of_a_market_stay_on_its_grid() -> None:
    for rate, step_ns in ((1_000, 10 * NS_PER_S // 300), (100, 100_000_000)):
        grid = BookGrid(SimSettings(rate=rate))
        assert grid.step_ns == step_ns
        phases: dict[int, set[int]] = {}
        for due_ns, market in books_until(grid, 10 * NS_PER_S):
            phases.setdefault(market, set()).add(due_ns % step_ns)
        assert all(len(phase) == 1 for phase in phases.values())
        assert len({min(phase) for phase in phases.values()}) == len(phases) == 10


def test_busy_markets_publish_more_books_than_quiet_ones() -> None:
    markets = [market for _, market in books_until(BookGrid(SimSettings(rate=50)), 60 * NS_PER_S)]
    bitcoin, tron = markets.count(0), markets.count(6)
    assert bitcoin > 5 * tron > 0


@pytest.mark.parametrize("percent", [100, 200, 1_000])
def test_a_burst_has_the_asked_height_and_one_market_in_front(percent: int) -> None:
    settings = SimSettings(rate=10_000, channels=("trade",), burst_percent=percent)
    frames = rest_until(RestSlots(settings), 10 * 3_200_000_000)
    inside = [market for _, market, in_burst in frames if in_burst]
    assert abs(len(inside) - 10 * 3_000 * percent // 100) <= 10
    outside = [market for _, market, in_burst in frames if not in_burst]
    assert abs(outside.count(0) / len(outside) - 8 / 37) < 0.02


def test_channels_that_are_not_simulated_have_no_timetable() -> None:
    assert BookGrid(SimSettings(channels=("trade",))).due_ns == FOREVER
    assert RestSlots(SimSettings(channels=("orderbook",))).due_ns == FOREVER
