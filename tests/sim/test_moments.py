"""Chances and timetables, asked directly."""

from __future__ import annotations

import pytest

from kcs.clock import NS_PER_S
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.fault_text import parse_faults
from kcs.sim.faults import CERTAIN, Fault
from kcs.sim.moments import Chance, Stage, Strikes, Timetable, Windows
from kcs.sim.prng import SplitMix64
from kcs.sim.schedule import FOREVER


def stage(*, seed: int = 7, connection: int = 1, opened: int = 0, origin: int | None = 0) -> Stage:
    """Times in whole seconds."""
    started_ns = None if origin is None else origin * NS_PER_S
    return Stage(seed, connection, opened * NS_PER_S, lambda: started_ns, SimFaultLog(), 1 << 20)


def fault(text: str) -> Fault:
    (one,) = parse_faults(text).items
    return one


def due_s(table: Timetable, count: int) -> list[int | None]:
    """The next `count` beginnings in seconds, None for never."""
    found: list[int | None] = []
    for _ in range(count):
        found.append(None if table.due_ns == FOREVER else table.due_ns // NS_PER_S)
        table.advance()
    return found


@pytest.mark.parametrize("percent", [0, 1, 25, 50, 100])
def test_a_chance_is_kept_over_many_draws(percent: int) -> None:
    chance = Chance(CERTAIN * percent // 100, SplitMix64(3))
    hits = sum(chance.draw() for _ in range(20_000))
    assert abs(hits - 200 * percent) <= 4 * (200 * percent * (100 - percent) / 100) ** 0.5


@pytest.mark.parametrize(
    ("text", "opened", "due"),
    [
        ("close_code=1012@at:9s", 0, [9, None]),
        ("close_code=1012@at:9s", 8, [9, None]),
        ("close_code=1012@at:9s", 9, [None]),
        ("close_code=1012@every:10s", 0, [10, 20, 30]),
        ("close_code=1012@every:10s", 10, [20, 30]),
        ("close_code=1012@every:10s", 35, [40, 50]),
        ("close_code=1012@after:7s", 35, [42, None]),
        ("silent_stall=3s@at:9s", 11, [9, None]),
        ("silent_stall=3s@at:9s", 12, [None]),
        ("silent_stall=3s@at:0s", 0, [0, None]),
        ("silent_stall=3s@every:10s", 0, [10, 20]),
        ("silent_stall=3s@every:10s", 22, [20, 30]),
        ("silent_stall=3s@every:10s", 23, [30, 40]),
        ("silent_stall=3s@after:0s", 5, [5, None]),
        ("drop=1%", 5, [None]),
        ("drop@every:5", 5, [None]),
    ],
)
def test_what_a_connection_sees_of_a_timetable(text: str, opened: int, due: list[int | None]) -> None:
    one = fault(text)
    assert due_s(Timetable(one.when, one.length_ns, stage(opened=opened)), len(due)) == due


def test_nothing_is_due_before_the_market_opens() -> None:
    opened: list[int | None] = [None]
    early = Stage(7, 1, 2 * NS_PER_S, lambda: opened[0], SimFaultLog(), 1)
    table = Timetable(fault("close_code=1012@every:10s").when, 0, early)
    assert table.due_ns == FOREVER
    assert early.virtual_ns(5 * NS_PER_S) == 0
    opened[0] = 5 * NS_PER_S
    assert table.due_ns == 15 * NS_PER_S
    assert early.virtual_ns(6 * NS_PER_S) == NS_PER_S
    after = Timetable(fault("close_code=1012@after:3s").when, 0, stage(opened=2, origin=None))
    assert after.due_ns == 5 * NS_PER_S, "a connection's own time needs no market"


def test_skipping_is_what_advancing_is() -> None:
    one = fault("silent_stall=3s@every:10s")
    for now in range(60):
        skipped, stepped = (Timetable(one.when, one.length_ns, stage()) for _ in range(2))
        skipped.skip(now * NS_PER_S)
        while stepped.due_ns + one.length_ns <= now * NS_PER_S:
            stepped.advance()
        assert skipped.due_ns == stepped.due_ns
    once = Timetable(fault("silent_stall=3s@at:9s").when, 3 * NS_PER_S, stage())
    once.skip(12 * NS_PER_S)
    assert once.due_ns == FOREVER


def hits(text: str, times: list[float], **options: int) -> list[float]:
    strikes = Strikes(fault(text), "x", stage(**options))
    return [at for at in times if strikes.hit(round(at * NS_PER_S))]


def test_every_nth() -> None:
    assert hits("drop@every:3", [float(n) for n in range(10)]) == [2, 5, 8]


def test_a_moment_hits_the_first_thing_after_it_once() -> None:
    assert hits("drop@at:3s", [1, 2.9, 3, 3.1, 9]) == [3]
    assert hits("drop@every:5s", [1, 6, 7, 8, 21, 22, 26]) == [6, 21, 26], "what passed without any is one"


def test_a_window_hits_all_in_it() -> None:
    assert hits("drop@every:5s@for:1s", [0, 4.9, 5, 5.5, 6, 9, 10.2, 11, 31, 35.5]) == [5, 5.5, 10.2, 35.5]


def test_streams_depend_on_seed_connection_and_name() -> None:
    one = fault("drop=50%")

    def drawn(name: str, **options: int) -> list[bool]:
        strikes = Strikes(one, name, stage(**options))
        return [strikes.hit(0) for _ in range(64)]

    base = drawn("drop.1")
    assert base == drawn("drop.1")
    assert (
        len({tuple(base), tuple(drawn("drop.2")), tuple(drawn("drop.1", seed=8)), tuple(drawn("drop.1", connection=2))})
        == 4
    )


def inside(windows: Windows, times: list[float]) -> list[float]:
    return [at for at in times if windows.inside(round(at * NS_PER_S))]


def test_windows_by_timetable() -> None:
    windows = Windows(fault("silent_stall=2s@every:10s"), "x", stage(opened=11))
    assert inside(windows, [11, 11.9, 12, 19.9, 21, 22, 45, 50.5]) == [11, 11.9, 21, 50.5]
    windows = Windows(fault("silent_stall=2s@every:10s"), "x", stage(opened=11))
    assert windows.inside(round(11.5 * NS_PER_S))
    assert (windows.start_ns, windows.end_ns) == (11 * NS_PER_S, 12 * NS_PER_S), "it had begun before the connection"
    assert windows.entered()
    assert not windows.entered()
    assert windows.lasts(round(11.9 * NS_PER_S))
    assert not windows.entered()


def test_a_window_by_chance_begins_with_what_is_hit_and_takes_its_time() -> None:
    windows = Windows(fault("silent_stall=2s@every:3"), "x", stage())
    assert inside(windows, [0, 1, 2, 3, 3.9, 4, 5, 6, 7]) == [2, 3, 3.9, 6, 7]
    windows = Windows(fault("silent_stall=2s@every:1"), "x", stage())
    assert not windows.lasts(0), "other things begin no window"
    assert windows.inside(0)
    assert windows.lasts(1)


def test_the_chance_of_a_window_is_drawn_once_a_window() -> None:
    windows = Windows(fault("silent_stall=4s@every:10s@50%"), "x", stage())
    seen = [[windows.inside(n * NS_PER_S) for n in range(at, at + 4)] for at in range(10, 2_000, 10)]
    assert all(len(set(one)) == 1 for one in seen)
    assert 70 < sum(one[0] for one in seen) < 130


def test_a_standing_fault_is_drawn_once_a_connection() -> None:
    lucky = 0
    for connection in range(1, 401):
        windows = Windows(fault("latency=5ms@25%"), "latency.1", stage(connection=connection), standing=True)
        answers = {windows.inside(n * NS_PER_S) for n in range(3)}
        assert len(answers) == 1
        assert windows.entered() == answers.pop()
        lucky += windows.lasts(9 * NS_PER_S)
    assert 70 < lucky < 130
