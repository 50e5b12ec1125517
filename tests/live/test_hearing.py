"""Which market has fallen silent: learned from each market's own rhythm, told once, never by a stall of the line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_S
from kcs.live.hearing import MARKETS_MAX, NAMES_TOLD_MAX, PASS_NS, SLICE, STEP_NS, Hearing, told
from kcs.live.rhythm import PATIENCE_MAX, RhythmSettings
from tests.live.support import START_NS

S = NS_PER_S
MINUTE = 60.0
HOUR = 3600.0


@dataclass
class Room:
    """Markets that speak by their own laws, and a hearing that listens; one second a step, in virtual time."""

    markets: tuple[str, ...]
    settings: RhythmSettings = field(default_factory=lambda: RhythmSettings(watched=2))
    now_ns: int = START_NS
    frames: int = 0

    def __post_init__(self) -> None:
        self.hearing = Hearing(self.settings, self.markets)
        self.hearing.opened(self.now_ns, 0)
        self.begun: list[tuple[float, str]] = []
        self.next_ns: dict[str, int] = {}

    @property
    def now_s(self) -> float:
        return (self.now_ns - START_NS) / S

    def speak(self, market: str) -> None:
        self.frames += 1
        if self.hearing.silent:
            self.hearing.speaks(market, self.now_ns, self.frames)
        self.hearing.on_market(market, self.now_ns)

    def tick(self) -> None:
        while self.hearing.next_due_ns <= self.now_ns:
            found = self.hearing.scan(self.now_ns, self.frames)
            self.begun += [(self.now_s, market) for market in found.begun]

    def run(self, seconds: float, *laws: tuple[str, Callable[[], float]]) -> None:
        """Each market speaks, then again after what its law gives in seconds; the hearing is asked when it is due."""
        end_ns = self.now_ns + round(seconds * S)
        due = {market: self.next_ns.get(market, self.now_ns + round(law() * S)) for market, law in laws}
        rules = dict(laws)
        while True:
            market = min(due, key=lambda name: due[name]) if due else None
            spoken_ns = end_ns if market is None else due[market]
            at_ns = min(spoken_ns, self.hearing.next_due_ns, end_ns)
            if at_ns >= end_ns:
                break
            self.now_ns = at_ns
            if market is not None and at_ns == spoken_ns:
                self.speak(market)
                due[market] += round(rules[market]() * S)
            self.tick()
        self.now_ns = end_ns
        self.next_ns |= due

    def named(self) -> list[str]:
        return [market for _, market in self.begun]


def every(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def test_a_lively_market_that_stops_is_named_after_the_floor() -> None:
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    assert room.begun == []
    last_ns = room.hearing.markets["B"]
    room.run(60, ("A", every(0.1)))
    ((at_s, market),) = room.begun
    assert market == "B"
    assert 20 < at_s - (last_ns - START_NS) / S < 22
    assert room.hearing.silent["B"].from_ns == last_ns


def test_a_market_with_a_slow_rhythm_gets_the_time_that_it_takes() -> None:
    room = Room(("A", "B"))
    room.run(2 * HOUR, ("A", every(1)), ("B", every(60)))
    last_ns = room.hearing.markets["B"]
    room.run(HOUR, ("A", every(1)))
    ((at_s, _),) = room.begun
    assert 3.9 * MINUTE < at_s - (last_ns - START_NS) / S < 4.1 * MINUTE


def test_a_market_of_which_little_is_known_is_not_judged() -> None:
    room = Room(("A", "B", "C"))
    room.run(20, ("A", every(0.1)), ("B", every(1)))  # 20 pauses of B; nothing ever from C
    room.run(HOUR, ("A", every(0.1)))
    assert room.begun == []


def test_a_burst_is_no_rhythm() -> None:
    """Many pauses in a short time say nothing of what comes after it."""
    for seconds, named in ((390, []), (410, ["B"])):
        room = Room(("A", "B"), RhythmSettings())
        room.run(seconds, ("A", every(0.1)), ("B", every(1)))
        room.run(HOUR, ("A", every(0.1)))
        assert room.named() == named


def test_a_stream_that_is_silent_as_a_whole_makes_no_market_silent() -> None:
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.1)))
    room.run(HOUR)
    assert room.begun == []


def test_after_a_stall_of_the_line_nobody_is_accused() -> None:
    """The first frame after a stall proves the stream alive while all the others have been silent as long as it."""
    markets = tuple(f"M{number}" for number in range(40))
    room = Room(markets)
    laws = [(market, every(0.5 + number / 100)) for number, market in enumerate(markets)]
    room.run(300, *laws)
    room.now_ns += 50 * S
    room.speak("M0")
    room.hearing.next_due_ns = room.now_ns
    room.tick()
    assert room.begun == []
    room.next_ns.clear()
    room.run(30, *laws)
    assert room.begun == []


def test_a_night_in_which_everything_slows_down_accuses_nobody() -> None:
    """Every market a hundred times slower within a moment: only the count of frames tells that it is not one market."""
    markets = tuple(f"M{number}" for number in range(20))
    room = Room(markets)
    rng = random.Random(3)
    room.run(HOUR, *((market, lambda: rng.expovariate(1.0)) for market in markets))
    room.next_ns.clear()
    room.run(HOUR, *((market, lambda: rng.expovariate(0.01)) for market in markets))
    assert room.begun == []


def test_no_connection_is_no_pause() -> None:
    room = Room(("A", "B"))
    laws = ("A", every(0.1)), ("B", every(0.5))
    room.run(300, *laws)
    room.now_ns += round(3 * HOUR * S)
    room.hearing.opened(room.now_ns, room.frames)
    room.next_ns.clear()
    room.run(60, *laws)
    assert room.begun == []
    stopped_s = room.now_s
    room.run(60, ("A", every(0.1)))
    ((at_s, market),) = room.begun
    assert market == "B"
    assert at_s - stopped_s < 23, "the three hours were not learned"


def test_a_market_that_does_not_come_back_with_the_connection_is_named() -> None:
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    last_ns = room.hearing.markets["B"]
    room.now_ns += 10 * S
    room.hearing.opened(room.now_ns, room.frames)
    opened_s = room.now_s
    room.next_ns.clear()
    room.run(60, ("A", every(0.1)))
    ((at_s, market),) = room.begun
    assert market == "B"
    assert 20 < at_s - opened_s < 23
    assert room.hearing.silent["B"].from_ns == last_ns, "its data is missing since its last event"


def test_each_silence_is_told_once_and_the_next_one_needs_twice_the_pause() -> None:
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    waits = []
    for _ in range(4):
        stopped_s = room.now_s
        room.run(20 * MINUTE, ("A", every(0.1)))
        waits.append(room.begun[-1][0] - stopped_s)
        room.speak("B")  # the snapshot that it is asked for
    assert len(room.begun) == 4
    assert [round(wait / 20) for wait in waits] == [1, 2, 4, 8]


def test_patience_comes_back_by_halves_and_is_bounded() -> None:
    room = Room(("A", "B"))
    laws = ("A", every(0.1)), ("B", every(0.5))
    room.run(300, *laws)
    for _ in range(10):
        room.run(HOUR, ("A", every(0.1)))
        room.speak("B")
    assert room.hearing._rhythms["B"]._patience == PATIENCE_MAX
    room.next_ns.clear()
    for expected in (PATIENCE_MAX // 2, PATIENCE_MAX // 4):
        before = room.hearing._rhythms["B"]._patience
        while room.hearing._rhythms["B"]._patience == before:
            room.run(MINUTE, *laws)
        assert room.hearing._rhythms["B"]._patience == expected


def test_old_pauses_are_forgotten_after_two_windows() -> None:
    room = Room(("A", "B"), RhythmSettings(window_s=600, watched=2))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    room.run(15, ("A", every(0.1)))  # B pauses for 15 s
    room.next_ns.clear()
    room.run(5 * MINUTE, ("A", every(0.1)), ("B", every(0.5)))
    assert room.hearing._rhythms["B"].longest_ns > 12 * S
    room.run(25 * MINUTE, ("A", every(0.1)), ("B", every(0.5)))
    assert room.hearing._rhythms["B"].longest_ns < 3 * S


def test_a_silence_is_not_learned_as_a_pause() -> None:
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    room.run(HOUR, ("A", every(0.1)))
    assert room.named() == ["B"]
    room.next_ns.clear()
    room.run(MINUTE, ("A", every(0.1)), ("B", every(0.5)))
    assert room.hearing._rhythms["B"].longest_ns < 3 * S


def test_a_silence_whose_end_nobody_told_is_found_by_the_scan() -> None:
    """As with a venue whose frames only a parser that knows the stream can read."""
    room = Room(("A", "B"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)))
    room.run(MINUTE, ("A", every(0.1)))
    from_ns = room.hearing.silent["B"].from_ns
    room.now_ns += S
    room.hearing.on_market("B", room.now_ns)
    room.hearing.next_due_ns = room.now_ns
    ((market, silence),) = room.hearing.scan(room.now_ns, room.frames).ended
    assert (market, silence.from_ns) == ("B", from_ns)
    assert room.hearing.silent == {}


def test_what_is_no_longer_asked_for_may_be_silent() -> None:
    room = Room(("A", "B", "C"))
    room.run(300, ("A", every(0.1)), ("B", every(0.5)), ("C", every(0.5)))
    room.run(MINUTE, ("A", every(0.1)))
    assert sorted(room.named()) == ["B", "C"]
    from_ns = room.hearing.silent["B"].from_ns
    ((market, silence),) = room.hearing.watch(("A", "C"), room.now_ns, room.frames)
    assert (market, silence.from_ns) == ("B", from_ns)
    assert set(room.hearing.silent) == {"C"}
    room.next_ns.clear()
    room.run(HOUR, ("A", every(0.1)))
    assert sorted(room.named()) == ["B", "C"]


def test_who_takes_over_knows_what_the_other_had_learned() -> None:
    room = Room(("A", "B"))
    room.run(2 * HOUR, ("A", every(1)), ("B", every(60)))
    heir = Room(("A", "B"), now_ns=room.now_ns)
    heir.run(5, ("A", every(1)))
    heir.hearing.adopt(room.hearing, heir.frames)
    assert heir.hearing.unheard() == ()
    heir.run(HOUR, ("A", every(1)))
    ((at_s, market),) = heir.begun
    assert market == "B"
    assert 3.5 * MINUTE < at_s - room.now_s < 5.5 * MINUTE
    assert heir.hearing.silent["B"].from_ns == room.hearing.markets["B"]


def test_many_markets_are_looked_at_in_slices_and_all_of_them_in_turn() -> None:
    markets = tuple(f"M{number}" for number in range(855))
    hearing = Hearing(RhythmSettings(), markets)
    hearing.opened(START_NS, 0)
    assert hearing.next_due_ns == START_NS + PASS_NS
    steps = -(-855 // SLICE)
    now_ns = START_NS
    for market in markets:
        hearing.on_market(market, now_ns)
    looked = 0
    for step in range(steps):
        now_ns = hearing.next_due_ns
        hearing.scan(now_ns, 0)
        assert len(hearing._rhythms) - looked <= SLICE
        looked = len(hearing._rhythms)
        assert hearing.next_due_ns == now_ns + (PASS_NS if step == steps - 1 else STEP_NS)
    assert looked == 855


def test_one_of_855_is_found() -> None:
    markets = tuple(f"M{number}" for number in range(855))
    room = Room(markets, RhythmSettings(samples=8, watched=2))
    for second in range(120):
        for market in markets:
            if market != "M437" or second < 60:
                room.speak(market)
        room.now_ns += S
        room.tick()
    ((at_s, market),) = room.begun
    assert market == "M437"
    assert 80 < at_s < 90


def test_names_from_outside_are_bounded() -> None:
    hearing = Hearing(RhythmSettings(), ("A",))
    for number in range(MARKETS_MAX + 10):
        hearing.on_market(f"X{number}", START_NS + number)
    assert len(hearing.markets) == MARKETS_MAX
    hearing.opened(START_NS, 0)
    hearing.scan(START_NS + PASS_NS, 5)
    assert len(hearing._rhythms) == 0, "only what was asked for is watched"


def test_names_for_a_log_line() -> None:
    assert told(("A", "B")) == "A, B"
    many = told([f"M{number}" for number in range(NAMES_TOLD_MAX + 7)])
    assert many.endswith("and 7 more")


def poisson(rng: random.Random) -> Iterator[float]:
    mean = rng.choice((0.3, 2.0, 10.0))
    while True:
        yield rng.expovariate(1 / mean)


def heavy(rng: random.Random) -> Iterator[float]:
    """A few long pauses among many short ones, as quiet markets trade."""
    while True:
        yield min(0.5 * rng.paretovariate(1.2), 600.0)


@pytest.mark.parametrize("law", [poisson, heavy])
def test_markets_that_are_only_random_are_hardly_ever_accused(law: Callable[[random.Random], Iterator[float]]) -> None:
    rng = random.Random(11)
    room = Room(tuple(f"M{number}" for number in range(30)), RhythmSettings())
    laws = [(market, law(random.Random(rng.random()))) for market in room.markets]
    room.run(1.5 * HOUR, *((market, pauses.__next__) for market, pauses in laws))
    assert len(room.begun) <= 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_said_and_asked_a_silence_begins_and_ends_in_turn(data: st.DataObject) -> None:
    """Begun and ended alternate for each market; a silence begins at its market's last event; memory is bounded."""
    markets = ("A", "B", "C")
    hearing = Hearing(RhythmSettings(floor_s=2, samples=2, factor=1, watched=1), markets)
    hearing.opened(START_NS, 0)
    now_ns, frames, open_since = START_NS, 0, dict[str, int]()
    steps = data.draw(st.lists(st.tuples(st.sampled_from((*markets, "X", "open", "watch", "wait")), st.integers(0, 9))))
    for what, seconds in steps * 8:
        now_ns += seconds * S // 4
        if what == "open":
            hearing.opened(now_ns, frames)
        elif what == "watch":
            for market, _ in hearing.watch(("A", "B") if seconds % 2 else markets, now_ns, frames):
                del open_since[market]
        elif what != "wait":
            frames += 40
            ended = hearing.speaks(what, now_ns, frames)
            assert (ended is not None) == (what in open_since)
            open_since.pop(what, None)
            hearing.on_market(what, now_ns)
        found = hearing.scan(now_ns, frames)
        assert found.ended == ()
        for market in found.begun:
            assert market not in open_since
            assert hearing.silent[market].from_ns == hearing.markets[market]
            open_since[market] = now_ns
        assert set(hearing.silent) == set(open_since)
        assert len(hearing._rhythms) <= len(markets)
