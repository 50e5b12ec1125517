"""Lanes in virtual time: renewals without a hole, twins that cover each other, and new sockets that never do harm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_S
from kcs.live.lane import AGE_PARTS, LONGER_MAX, StreamResult
from kcs.live.rhythm import RhythmSettings
from kcs.model import GapFields, OpenFields
from tests.live.support import MARKETS, START_NS, URL, make_subscription
from tests.live.venue import Street

S = NS_PER_S


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def check(street: Street) -> None:
    """Whatever happened: each trade came out once at most, each stream's opens, closes and counts tell one story."""
    assert len(set(street.emitted)) == len(street.emitted)
    assert set(street.emitted) == street.captured()
    is_open: dict[int, bool] = {}
    frames: dict[int, int] = {}
    for kind, stream, at_ns, fields in street.notes:
        if kind == "frame":
            assert is_open[stream]
            frames[stream] = frames.get(stream, 0) + 1
        elif kind in ("OPEN", "CLOSE"):
            assert is_open.get(stream, False) == (kind == "CLOSE")
            is_open[stream] = kind == "OPEN"
            assert fields.frames == frames.get(stream, 0)
        elif kind == "GAP":
            assert fields.from_ns <= fields.to_ns == at_ns
    assert not any(is_open.values())


def uncovered(street: Street) -> list[GapFields]:
    return [gap for _, gap in street.gaps if gap.covered_by is None]


# ---------------------------------------------------------------- renewing


@on_a_loop
async def test_a_renewal_opens_the_new_one_first_and_loses_nothing() -> None:
    street = await Street().start()
    await street.run(30)
    street.lanes.renew(street.clock.now_ns())
    await street.until(lambda: len(street.closes) == 1)
    await street.run(30)
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])
    assert street.opens == [(0, OpenFields(URL)), (1, OpenFields(URL, "planned"))]
    ((stream, close), _) = street.closes
    assert (stream, close.code, close.cause) == (0, 1000, "planned")
    kinds = [(kind, stream) for kind, stream, _, _ in street.notes if kind in ("OPEN", "CLOSE", "frame")]
    opened, closed = kinds.index(("OPEN", 1)), kinds.index(("CLOSE", 0))
    between = kinds[opened:closed]
    assert ("frame", 1) in between, "the new one had delivered when the old one was closed"
    assert between.index(("frame", 1)) < closed - opened
    assert ("frame", 0) in between, "and the old one went on delivering meanwhile"
    assert street.captured(0) & street.captured(1), "both were captured"
    assert street.lanes.results() == (
        StreamResult(0, len([k for k in kinds if k == ("frame", 0)]), None, 1),
        StreamResult(1, len([k for k in kinds if k == ("frame", 1)]), None, 1),
    )
    assert all(session.reconnects == 0 for session in street.lanes.sessions)


@on_a_loop
async def test_the_two_numbers_take_turns() -> None:
    street = await Street().start()
    for _ in range(5):
        street.lanes.renew(street.clock.now_ns())
        await street.run(10)
    await street.stop()
    check(street)
    assert [stream for stream, _ in street.opens] == [0, 1, 0, 1, 0, 1]
    assert [close.cause for _, close in street.closes] == ["planned"] * 5 + ["stop"]
    assert (street.gaps, street.missed()) == ([], [])


@on_a_loop
async def test_a_connection_is_renewed_before_the_venues_age_limit_lanes_not_together() -> None:
    street = await Street(connections=2, age_max_s=200).start()
    await street.run(190)
    at = [(stream, (recv_ns - START_NS) / S) for kind, stream, recv_ns, _ in street.notes if kind == "OPEN"]
    planned = dict(at[2:])
    assert set(planned) == {2, 3}
    assert all(200 * AGE_PARTS[0] <= seconds <= 200 * AGE_PARTS[1] + 2 for seconds in planned.values())
    assert abs(planned[2] - planned[3]) > 1
    await street.run(400)
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])
    assert {close.cause for _, close in street.closes} == {"planned", "stop"}
    for lane in (0, 1):
        times = [(recv_ns - START_NS) / S for kind, s, recv_ns, _ in street.notes if kind == "OPEN" and s % 2 == lane]
        assert all(later - earlier <= 200 for earlier, later in pairwise(times))


@on_a_loop
async def test_a_reconnection_starts_the_age_anew() -> None:
    street = await Street(age_max_s=200).start()
    await street.run(140)
    street.lose(0)
    await street.run(140)
    assert {stream for stream, _ in street.opens} == {0}
    await street.run(70)
    assert {stream for stream, _ in street.opens} == {0, 1}


@on_a_loop
async def test_without_a_limit_nothing_is_renewed() -> None:
    street = await Street().start()
    await street.run(600)
    assert street.dials == 1


@on_a_loop
async def test_what_does_not_deliver_is_not_renewed() -> None:
    street = Street()
    street.plan = ["refuse", "mute"]
    await street.start()
    street.lanes.renew(street.clock.now_ns())
    await street.run(5)
    street.lanes.renew(street.clock.now_ns())
    await street.run(5)
    assert street.dials == 2
    assert sum("nothing to renew" in text for text in street.logs) == 2


@on_a_loop
async def test_a_request_is_carried_out_once() -> None:
    street = await Street().start()
    for _ in range(3):
        street.lanes.renew(street.clock.now_ns())
    await street.run(300)
    assert street.dials == 2


# ---------------------------------------------------------------- a new socket that fails


@pytest.mark.parametrize("word", ["refuse", "mute", "hang"])
@on_a_loop
async def test_a_new_socket_that_fails_never_harms_the_old_one(word: str) -> None:
    street = await Street().start()
    street.plan = [word] * 500
    street.lanes.renew(street.clock.now_ns())
    await street.run(400)
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])
    assert [(close.code, close.cause) for stream, close in street.closes if stream == 0] == [(1000, "stop")]
    assert {close.cause for stream, close in street.closes if stream == 1} <= {"abandoned", "silence", "stop"}
    assert {gap.cause for _, gap in street.gaps} == set()
    assert sum("brought nothing" in text for text in street.logs) >= 2


@on_a_loop
async def test_a_renewal_that_failed_is_tried_again_ever_later_until_it_works() -> None:
    street = await Street(silence_max_s=1000).start()
    street.plan = ["mute"] * 3
    begun_s = street.now_s
    street.lanes.renew(street.clock.now_ns())
    await street.until(lambda: any(close.cause == "planned" for _, close in street.closes), 700)
    at = [(recv_ns - START_NS) / S - begun_s for kind, s, recv_ns, _ in street.notes if kind == "OPEN" and s == 1]
    assert [round(seconds / 30) for seconds in at] == [0, 3, 9, 21]  # 30 + 60, 60 + 120, 120 + 240 s
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])


@on_a_loop
async def test_the_wait_between_attempts_is_bounded() -> None:
    street = await Street(step_s=2.5, silence_max_s=10_000).start()
    await street.run(10)
    street.plan = ["mute"] * 100
    street.lanes.renew(street.clock.now_ns())
    await street.run(4 * 3600)
    at = [(recv_ns - START_NS) / S for kind, s, recv_ns, _ in street.notes if kind == "OPEN" and s == 1]
    waits = [later - earlier for earlier, later in pairwise(at)]
    assert max(waits) <= LONGER_MAX * 90 + 10


@on_a_loop
async def test_a_new_socket_that_is_lost_before_it_delivered_leaves_no_gap() -> None:
    street = await Street().start()
    street.plan = ["mute", "mute"]
    street.lanes.renew(street.clock.now_ns())
    await street.run(2)
    street.lose(1)
    await street.run(5)
    street.lose(1)
    await street.run(30)
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])
    assert [open_.cause for stream, open_ in street.opens if stream == 1] == ["planned", "lost", "lost"]


@on_a_loop
async def test_the_old_one_is_lost_during_the_trial_and_comes_back_first() -> None:
    street = await Street(silence_max_s=1000).start()
    street.plan = ["mute"]
    street.lanes.renew(street.clock.now_ns())
    await street.run(2)
    street.lose(0)
    await street.run(60)
    await street.stop()
    check(street)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.covered_by, gap.markets) == (0, "disconnect", None, MARKETS)
    assert all(gap.from_ns <= street.traded[number] <= gap.to_ns for number in street.missed())
    assert [close.cause for s, close in street.closes if s == 1] == ["abandoned"]


@on_a_loop
async def test_the_old_one_is_lost_during_the_trial_and_the_new_one_takes_its_place() -> None:
    street = await Street().start()
    street.plan = ["hang"] + ["refuse"] * 2 + ["hang"] * 20
    street.lanes.renew(street.clock.now_ns())
    await street.run(2)
    street.lose(0)
    await street.run(20)
    assert street.lines == []
    # The trial outlives its time while it is the only hope; the old one's next attempt hangs for ever.
    await street.run(60)
    (trial,) = [slot for slot in street.lanes.slots if slot.stream == 1]
    trial.abort()
    street.plan = ["ok"]
    await street.run(20)
    await street.stop()
    check(street)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause) == (0, "disconnect")
    assert street.missed()
    assert all(gap.from_ns <= street.traded[number] <= gap.to_ns for number in street.missed())
    assert street.lanes.sessions[1].frames > 0


@on_a_loop
async def test_a_stop_during_a_trial_ends_both() -> None:
    for word in ("mute", "hang", "refuse", "ok"):
        street = await Street().start()
        street.plan = [word] * 10
        street.lanes.renew(street.clock.now_ns())
        await street.run(0.5)
        await street.stop()
        check(street)
        assert street.gaps == []


@on_a_loop
async def test_a_stop_in_the_moment_of_the_start_ends_as_well() -> None:
    """The task that was to connect is cancelled before it ran a single step."""
    street = Street()
    street.lanes.start(street.clock.now_ns())
    await street.stop()
    assert street.dials == 0


@on_a_loop
async def test_an_old_one_that_had_died_unnoticed_does_not_retire_as_if_nothing_were() -> None:
    for seconds in (1, 7):
        street = await Street().start()
        await street.run(10)
        street.line_of(0).dead = True
        await street.run(seconds)
        street.lanes.renew(street.clock.now_ns())
        await street.run(30)
        await street.stop()
        check(street)
        assert street.missed()
        ((stream, gap),) = street.gaps
        assert (stream, gap.cause) == (0, "disconnect")
        assert all(gap.from_ns <= street.traded[number] <= gap.to_ns for number in street.missed())
        assert [close.cause for s, close in street.closes] == ["ping_timeout", "stop"]
        assert {s for s, _ in street.opens} == {0, 1}
        assert len(street.opens) == 2, "the new one took over at once"


@on_a_loop
async def test_no_renewal_begins_while_the_retired_one_still_closes() -> None:
    street = await Street().start()
    street.line_of(0).close = lambda code, reason="": None  # type: ignore[method-assign]
    street.lanes.renew(street.clock.now_ns())
    await street.run(5)
    street.lanes.renew(street.clock.now_ns())
    await street.run(60)
    assert street.dials == 2
    street.lose(0)
    await street.run(5)
    assert street.dials == 3
    await street.stop()
    check(street)
    assert (street.gaps, street.missed()) == ([], [])


@on_a_loop
async def test_the_new_one_knows_what_the_old_one_had_learned_of_its_markets() -> None:
    street = await Street(rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    street.lanes.renew(street.clock.now_ns())
    await street.run(4)
    assert street.lanes.sessions[1].is_open
    street.mute_markets.add("KRW-ETH")
    last_ns = street.lanes.sessions[1].markets["KRW-ETH"]
    await street.run(40)
    assert set(street.lanes.sessions[1].silent) == {"KRW-ETH"}
    street.mute_markets.clear()
    await street.run(2)
    await street.stop()
    check(street)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.markets, gap.from_ns) == (1, "market_silence", ("KRW-ETH",), last_ns)


@on_a_loop
async def test_a_market_silent_on_the_old_one_has_its_gap_end_with_it() -> None:
    street = await Street(rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    street.mute_markets.add("KRW-ETH")
    await street.run(40)
    street.lanes.renew(street.clock.now_ns())
    await street.run(4)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.markets) == (0, "market_silence", ("KRW-ETH",))
    await street.stop()


@on_a_loop
async def test_another_subscription_reaches_every_connection_of_it_and_no_other() -> None:
    one, two = make_subscription("KRW-BTC"), make_subscription("KRW-ETH")
    street = await Street(connections=2, subscriptions=(one, two)).start()
    street.lanes.renew(street.clock.now_ns())
    await street.run(5)
    assert [session.stream for session in street.lanes.sessions] == list(range(8))
    assert {s.stream: s.subscription.markets for s in street.lanes.sessions} == {
        stream: ("KRW-BTC",) if stream % 4 < 2 else ("KRW-ETH",) for stream in range(8)
    }
    street.lanes.subscribe(1, make_subscription("KRW-XRP"), street.clock.now_ns())
    await street.run(1)
    changed = [s.subscription.markets for s in street.lanes.sessions if s.stream % 4 >= 2]
    assert changed == [("KRW-XRP",)] * 4
    assert all(s.subscription == one for s in street.lanes.sessions if s.stream % 4 < 2)


@on_a_loop
async def test_what_is_open_is_what_a_rotated_file_begins_with() -> None:
    street = await Street(connections=2).start()
    street.plan = ["mute"]
    street.lose(1)
    assert [stream for stream, _ in street.lanes.continued()] == [0]
    street.lanes.renew(street.clock.now_ns())
    await street.run(1.5)
    streams = [stream for stream, _ in street.lanes.continued()]
    assert streams == sorted(streams)
    assert {0, 1} <= set(streams)
    assert all(fields.continued for _, fields in street.lanes.continued())


# ---------------------------------------------------------------- twins


@on_a_loop
async def test_the_second_connection_fills_the_gap_of_the_first() -> None:
    street = await Street(connections=2).start()
    await street.run(20)
    street.plan = ["refuse"] * 6
    street.lose(0)
    await street.run(30)
    await street.stop()
    check(street)
    assert street.missed() == []
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.covered_by, gap.markets) == (0, "disconnect", 1, MARKETS)
    first, second = street.lanes.results()
    inside = {number for number, at_ns in street.traded.items() if gap.from_ns < at_ns < gap.to_ns}
    assert len(inside) >= 4
    assert second.saved is not None
    assert first.saved is not None
    assert second.saved >= len(inside)
    assert first.saved + second.saved == len(street.emitted)
    assert (first.opens, second.opens) == (2, 1)


@on_a_loop
async def test_a_gap_of_both_is_covered_by_nobody() -> None:
    street = await Street(connections=2).start()
    await street.run(20)
    street.plan = ["refuse"] * 12
    street.lose(0)
    await street.run(1)
    street.lose(1)
    await street.run(60)
    await street.stop()
    check(street)
    assert street.missed()
    assert [gap.covered_by for _, gap in street.gaps] == [None, None]


@on_a_loop
async def test_a_twin_that_came_later_than_the_gap_began_covers_nothing() -> None:
    street = Street(connections=2)
    street.plan = ["ok", *["refuse"] * 8]
    await street.start()
    street.lose(0)
    await street.run(60)
    ((stream, gap),) = street.gaps
    assert (stream, gap.covered_by) == (0, None)


@on_a_loop
async def test_a_twin_that_says_nothing_covers_nothing() -> None:
    street = await Street(connections=2).start()
    await street.run(60)
    street.line_of(1).dead = True
    await street.run(4)
    street.lose(0)
    await street.until(lambda: bool(street.gaps), 8)
    ((stream, gap),) = street.gaps
    assert (stream, gap.covered_by) == (0, None)


@on_a_loop
async def test_a_market_that_is_silent_on_one_connection_alone_is_covered_by_the_other() -> None:
    street = await Street(connections=2, rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    street.line_of(0).deaf.add("KRW-ETH")
    await street.run(40)
    street.line_of(0).deaf.clear()
    await street.run(2)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.markets, gap.covered_by) == (0, "market_silence", ("KRW-ETH",), 1)
    await street.stop()
    check(street)
    assert street.missed() == []


@on_a_loop
async def test_a_venue_that_forgot_a_market_is_reminded() -> None:
    street = await Street(rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    line = street.line_of(0)
    line.forgetful = True
    line.deaf.add("KRW-ETH")
    forgot_ns = street.clock.now_ns()
    await street.run(120)
    ((_, gap),) = street.gaps
    assert gap.cause == "market_silence"
    assert 20 * S < gap.to_ns - forgot_ns < 35 * S
    assert all(gap.from_ns < street.traded[number] <= gap.to_ns for number in street.missed())
    assert street.missed()
    assert len(street.fields("sent")) == 2, "the subscription, and the subscription again"
    await street.stop()


@on_a_loop
async def test_a_market_that_is_silent_on_both_is_covered_by_nobody() -> None:
    street = await Street(connections=2, rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    street.mute_markets.add("KRW-ETH")
    await street.run(40)
    street.mute_markets.clear()
    await street.run(2)
    assert [(gap.cause, gap.covered_by) for _, gap in street.gaps] == [("market_silence", None)] * 2


@on_a_loop
async def test_a_market_that_the_twin_did_not_hear_either_is_not_covered_by_it() -> None:
    """Its patience is longer, so it has not called the market silent; that it brought nothing of it counts."""
    street = await Street(connections=2, rhythm=RhythmSettings(floor_s=20, samples=8, watched=2)).start()
    await street.run(120)
    street.line_of(1).deaf.add("KRW-ETH")
    await street.run(40)
    street.line_of(1).deaf.clear()
    await street.run(5)
    ((_, gap),) = street.gaps
    assert gap.covered_by == 0
    for line in street.lines:
        line.deaf.add("KRW-ETH")
    await street.run(30)
    assert [bool(session.silent) for session in street.lanes.sessions] == [True, False]
    street.line_of(0).deaf.clear()
    await street.run(2)
    _, (stream, gap) = street.gaps
    assert (stream, gap.cause, gap.covered_by) == (0, "market_silence", None)


@on_a_loop
async def test_the_time_without_a_collector_is_one_gap_however_many_connections_follow() -> None:
    street = Street(connections=2, down_since_ns=START_NS - 100 * S)
    street.plan = ["refuse", "ok"]
    await street.start()
    await street.run(10)
    ((stream, gap),) = street.gaps
    assert (stream, gap.cause, gap.from_ns) == (1, "collector_down", START_NS - 100 * S)


@on_a_loop
async def test_subscriptions_side_by_side_are_no_twins() -> None:
    street = await Street(subscriptions=(make_subscription("KRW-BTC"), make_subscription("KRW-ETH"))).start()
    await street.run(20)
    street.lose(0)
    await street.run(10)
    ((stream, gap),) = street.gaps
    assert (stream, gap.covered_by, gap.markets) == (0, None, ("KRW-BTC",))
    assert [result.saved for result in street.lanes.results()] == [None, None]


EVENTS = ("lose", "die", "renew", "refuse", "mute", "hang", "wait")


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 2),
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3), st.integers(1, 12)), max_size=12),
)
def test_whatever_is_lost_lies_in_a_gap_that_nobody_covers(
    connections: int, events: list[tuple[str, int, int]]
) -> None:
    """Connections are lost, die unnoticed, are renewed and refused, in any order: no trade is missed in silence."""

    async def run() -> None:
        street = await Street(connections=connections).start()
        for what, which, seconds in events:
            lines = [line for line in street.lines if line.handler.stream == which]  # type: ignore[attr-defined]
            if what == "lose" and lines:
                street.lose(which)
            elif what == "die" and lines:
                lines[0].dead = True
            elif what == "renew":
                street.lanes.renew(street.clock.now_ns())
            elif what in ("refuse", "mute", "hang"):
                street.plan.append(what)
            await street.run(seconds)
        for slot in street.lanes.slots:
            if slot._dialing is not None:
                slot.abort()  # as the dialer's own time limit would
        street.plan = []
        await street.run(40)
        await street.stop()
        check(street)
        gaps = uncovered(street)
        for number in street.missed():
            at_ns = street.traded[number]
            assert any(gap.from_ns <= at_ns <= gap.to_ns for gap in gaps), f"trade {number} is missed in silence"

    asyncio.run(run())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((0, 0.5, 3, 17, 40)), st.integers(0, 1), st.integers(25, 60)), max_size=4))
def test_what_no_connection_brings_of_a_market_lies_in_a_gap_that_nobody_covers(
    silences: list[tuple[float, int, int]],
) -> None:
    """One market stops on one connection or the other, one after the other or both at once, and comes back."""

    async def run() -> None:
        rhythm = RhythmSettings(floor_s=5, samples=8, watched=2)
        street = await Street(connections=2, rhythm=rhythm).start()
        await street.run(60)
        ends: list[tuple[float, int]] = []
        for wait_s, stream, seconds in [*silences, (120, 0, 25)]:
            end_s = street.now_s + wait_s
            while street.now_s < end_s:
                await street.run(street.step_s)
                for over_s, of in [end for end in ends if end[0] <= street.now_s]:
                    street.line_of(of).deaf.discard("KRW-ETH")
                    ends.remove((over_s, of))
            if not any(of == stream for _, of in ends):
                street.line_of(stream).deaf.add("KRW-ETH")
                ends.append((street.now_s + seconds, stream))
        await street.stop()
        check(street)
        gaps = uncovered(street)
        for number in street.missed():
            at_ns = street.traded[number]
            assert any(gap.from_ns <= at_ns <= gap.to_ns for gap in gaps), f"trade {number} is missed in silence"
        assert all(gap.cause == "market_silence" for gap in gaps)
        assert all(gap.markets == ("KRW-ETH",) for gap in gaps)

    with patch("kcs.live.rhythm.FRAMES_LEAST", 5):
        asyncio.run(run())
