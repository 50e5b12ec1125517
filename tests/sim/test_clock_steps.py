"""The venue's clock steps: what frames show changes, when they come does not."""

from __future__ import annotations

from typing import Any

import orjson

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.sim.actions import Action, SendFrame
from kcs.sim.clock_steps import ClockSteps
from kcs.sim.fault_text import parse_faults
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from tests.sim.helpers import START_NS, connected, request, seconds
from tests.sim.scripted import ms, stage

ALL = SimSettings().markets


def steps(text: str, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, str]]]:
    where = stage()
    clock = ClockSteps(parse_faults(text).clock_steps, where)
    made = []
    for _ in range(count):
        due_ns = clock.due_ns
        made.append((due_ns, clock.take()))
    return made, [(entry.at_ns, entry.detail) for entry in where.log.entries]


def test_once_and_for_good() -> None:
    made, told = steps("clock_step=-2ms@at:5ms", 1)
    assert made == [(ms(5), -ms(2))]
    assert told == [(ms(5), "-2ms")]
    clock = ClockSteps(parse_faults("clock_step=-2ms@at:5ms").clock_steps, stage())
    clock.take()
    assert clock.due_ns == FOREVER


def test_there_and_back_again() -> None:
    made, told = steps("clock_step=3ms@every:10ms@for:4ms", 4)
    assert made == [(ms(10), ms(3)), (ms(14), -ms(3)), (ms(20), ms(3)), (ms(24), -ms(3))]
    assert told == [(ms(10), "+3ms"), (ms(14), "-3ms"), (ms(20), "+3ms"), (ms(24), "-3ms")]


def test_two_at_once() -> None:
    made, _ = steps("clock_step=3ms@at:10ms,clock_step=-1ms@every:5ms", 2)
    assert made == [(ms(5), -ms(1)), (ms(10), ms(2))]


def test_by_chance() -> None:
    made, told = steps("clock_step=1ms@every:1ms@30%", 1_000)
    assert 250 < sum(by > 0 for _, by in made) < 350
    assert len(told) == sum(by > 0 for _, by in made)


def frames(faults: str, until_s: float = 6, *, step_ms: int | None = None) -> list[Action]:
    _, client = connected(SimSettings(rate=300, faults=parse_faults(faults)))
    got = client.receive(START_NS, "text", request(ALL))
    if step_ms is None:
        return got + client.poll(seconds(until_s))
    for turn in range(1, round(until_s * 1000) // step_ms + 1):
        got += client.poll(START_NS + turn * step_ms * NS_PER_MS)
    return got


def stamps(actions: list[Action], kind: str) -> list[tuple[int, int, dict[str, Any]]]:
    read = [(a.at_ns, orjson.loads(a.payload)) for a in actions if isinstance(a, SendFrame)]
    return [(at_ns, frame["timestamp"] * NS_PER_MS, frame) for at_ns, frame in read if frame["type"] == kind][30:]


def test_frames_show_the_other_time_and_come_when_they_would() -> None:
    plain, stepped = frames(""), frames("clock_step=-2s@at:2s@for:2s")
    assert [action.at_ns for action in plain] == [action.at_ns for action in stepped]
    for kind in ("trade", "orderbook"):
        for (at_ns, meant_ns, _), (_, shown_ns, _) in zip(stamps(plain, kind), stamps(stepped, kind), strict=True):
            off = -2 * NS_PER_S if seconds(2) <= at_ns < seconds(4) else 0
            assert shown_ns - meant_ns == off
    assert frames("clock_step=-2s@at:2s@for:2s", step_ms=7) == stepped


def test_trade_ids_are_never_given_twice() -> None:
    trades = stamps(frames("clock_step=-1s@every:500ms", 8), "trade")
    ids: dict[str, list[int]] = {}
    for _, _, frame in trades:
        ids.setdefault(frame["code"], []).append(frame["sequential_id"])
    assert sum(map(len, ids.values())) > 500
    for of_market in ids.values():
        assert of_market == sorted(set(of_market))


def test_a_bounded_advance_stops_before_the_step() -> None:
    exchange, _ = connected(SimSettings(rate=1_000, faults=parse_faults("clock_step=1s@at:1s")))
    before_ns = exchange.venue_ns(seconds(2))
    total = exchange.advance(seconds(2), 100)
    assert (total, exchange.venue_ns(seconds(2))) == (100, before_ns)
    while exchange.next_due_ns <= seconds(2):
        total += exchange.advance(seconds(2), 100)
    reference, _ = connected(SimSettings(rate=1_000))
    assert total == reference.advance(seconds(2))
    assert exchange.venue_ns(seconds(2)) == reference.venue_ns(seconds(3))
