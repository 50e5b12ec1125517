"""The replay engine: ranges, loops, back-pressure, pacing, interruption; whatever happens, the ledger says it."""

from __future__ import annotations

import asyncio
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kcs.capture.format import DESCRIPTOR_BYTES
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover
from kcs.cli.report import RunReport
from kcs.clock import SystemClock, VirtualClock
from kcs.errors import KafkaError
from kcs.model import GapFields, Kind, OpenFields
from kcs.replay import engine
from kcs.replay.engine import Plan, Progress, ReplayResult, replay
from kcs.replay.source import plan
from kcs.sink import NullSink
from kcs.stats import Ledger
from kcs.verify import verify
from tests.replay.making import (
    MS,
    SECOND,
    START_NS,
    ListSink,
    SlowSink,
    StuckSink,
    VirtualSleeper,
    make,
    play,
    trade,
    trades,
    until,
    writer,
)


def exit_code(result: ReplayResult, ledger: Ledger) -> int:
    return RunReport("replay", result.seconds, ledger, interrupted=result.interrupted).exit_code()


# --- what comes out -------------------------------------------------------------------------------------------------


def test_everything_comes_out_in_order_with_the_digest_of_verify(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(1_000))
    sink = ListSink()
    result, ledger = play([path], sink)
    assert sink.numbers == [(1, number) for number in range(1_000)]
    assert result.played[0].digest == verify(path).digest
    assert (ledger.received, ledger.parsed, ledger.produced, ledger.acked) == (1_000,) * 4
    assert exit_code(result, ledger) == 0


def test_several_files_are_merged_and_each_has_its_own_digest(tmp_path: Path) -> None:
    one = make(tmp_path, 1, trades(300))
    two = make(tmp_path, 2, trades(300, first=1_000, at_ns=START_NS + 5 * MS), chunk=13)
    sink = ListSink()
    result, ledger = play([one, two], sink)
    assert sink.times == sorted(sink.times)
    assert len(sink.records) == ledger.acked == 600
    assert {p.path: p.digest for p in result.played} == {path: verify(path).digest for path in (one, two)}
    # A record belongs to the capture that was announced last: a wrong one would carry a wrong position in Kafka.
    for capture, _, _, number, _, value in sink.records:
        assert value.startswith(b"[%d.5," % (number + (1_000 if capture == 2 else 0)))


def test_each_file_has_a_pipeline_of_its_own(tmp_path: Path) -> None:
    """The same trade in two captures is no duplicate: what one file becomes does not depend on the other."""
    one = make(tmp_path, 1, trades(10))
    two = make(tmp_path, 2, trades(10))
    _, ledger = play([one, two], ListSink())
    assert (ledger.produced, ledger.suppressed) == (20, {})


def test_speed_changes_nothing_but_the_time(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(300, step_ns=3 * MS))
    sinks = {speed: ListSink() for speed in (None, Fraction(1), Fraction(10), Fraction(1, 4))}
    digests = set()
    for speed, sink in sinks.items():
        clock = VirtualClock(START_NS)
        result, _ = play([path], sink, speed=speed, clock=clock, sleep=VirtualSleeper(clock))
        digests.add(result.played[0].digest)
    assert len(digests) == 1
    assert None not in digests
    assert all(sink.records == sinks[None].records for sink in sinks.values())


# --- ranges and loops -----------------------------------------------------------------------------------------------


def test_from_feeds_the_state_before_it_and_emits_from_there(tmp_path: Path) -> None:
    """A trade that repeats one from before T is a duplicate although that one was not emitted."""
    frames = [(START_NS + i * MS, trade(i % 100)) for i in range(200)]
    path = make(tmp_path, 1, frames)
    sink = ListSink()
    result, ledger = play([path], sink, from_ns=START_NS + 50 * MS)
    assert sink.numbers == [(1, number) for number in range(50, 100)]
    assert ledger.suppressed == {"trade_repeated": 100}
    assert (ledger.received, ledger.acked) == (150, 50)
    assert result.played[0].digest is None
    assert exit_code(result, ledger) == 0


def test_the_speed_reached_is_that_of_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bringing the state up to T takes time too, but nothing was to be played in it."""
    clock = VirtualClock(START_NS)
    path = make(tmp_path, 1, trades(400, step_ns=10 * MS))
    feed_muted = engine._Line._feed_muted

    async def slow(self: Any, run: list[Any]) -> list[Any]:
        clock.advance(7 * SECOND)
        return await feed_muted(self, run)

    monkeypatch.setattr(engine._Line, "_feed_muted", slow)
    how = {"from_ns": START_NS + 2 * SECOND, "speed": Fraction(2), "loops": 2}
    result, _ = play([path], ListSink(), clock=clock, sleep=VirtualSleeper(clock), **how)
    assert result.recorded_s == pytest.approx(2 * 1.99)
    assert result.speed_reached == pytest.approx(2, rel=0.01)
    assert result.seconds > 14


def test_from_and_to_are_a_half_open_range_over_all_files(tmp_path: Path) -> None:
    one = make(tmp_path, 1, trades(100))
    two = make(tmp_path, 2, trades(100, first=500, at_ns=START_NS + 5 * MS))
    sink = ListSink()
    result, ledger = play([one, two], sink, from_ns=START_NS + 105 * MS, to_ns=START_NS + 205 * MS)
    assert sink.times == [START_NS + t * MS for t in range(105, 205, 5)]
    assert ledger.received == ledger.acked == 20
    assert [p.digest for p in result.played] == [None, None]


def test_to_alone_stops_reading(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(10_000), chunk=100)
    sink, seen = ListSink(), []
    ledger = Ledger()

    async def run() -> ReplayResult:
        how = Plan(plan([path]), to_ns=START_NS + 100 * MS)
        return await replay(how, sink, ledger, VirtualClock(), on_progress=seen.append)

    result = asyncio.run(run())
    assert sink.numbers == [(1, number) for number in range(10)]
    assert len(seen) <= 2, "chunks behind the end were read"
    assert (result.played[0].digest, ledger.unread) == (None, 0)


@pytest.mark.parametrize("index", [True, False])
def test_to_finds_everything_before_it_where_times_run_back(tmp_path: Path, index: bool) -> None:
    """Only an import can be like that. The early part lies behind chunks that are too late, others follow it."""
    parts = [(0, START_NS + 20 * SECOND), (300, START_NS + SECOND), (600, START_NS + 30 * SECOND)]
    frames = [frame for first, at_ns in parts for frame in trades(300, first=first, at_ns=at_ns, step_ns=MS)]
    path = make(tmp_path, 1, frames)
    if not index:
        path = tmp_path / "cut.zst.partial"
        path.write_bytes(make(tmp_path, 2, frames).read_bytes()[:-40])
    other = make(tmp_path, 3, trades(10, first=5_000, at_ns=START_NS + 5 * SECOND, step_ns=2 * SECOND))
    sink = ListSink()
    result, ledger = play([path, other], sink, to_ns=START_NS + 10 * SECOND)
    assert [number for capture, number in sink.numbers if capture != 3] == [*range(300, 600)]
    assert [number for capture, number in sink.numbers if capture == 3] == [0, 1, 2]
    assert (ledger.received, ledger.unread) == (303, 0)
    assert exit_code(result, ledger) == 0


def test_to_counts_what_is_lost_before_it_and_not_behind(tmp_path: Path) -> None:
    whole = make(tmp_path, 1, trades(500, step_ns=MS), chunk=50)
    with CaptureReader(whole) as reader:
        offsets = [chunk.offset for chunk in reader.chunks()]
    content = bytearray(whole.read_bytes())
    for hit in (2, 8):
        content[offsets[hit] + DESCRIPTOR_BYTES + 20] ^= 0x10
    whole.write_bytes(content)
    for chunks, unread in ((2, 0), (5, 50), (8, 50), (10, 100)):
        result, ledger = play([whole], ListSink(), to_ns=START_NS + chunks * 50 * MS)
        assert (ledger.received, ledger.unread) == (chunks * 50 - unread, unread)
        assert exit_code(result, ledger) == (3 if unread else 0)


def test_a_range_without_records_is_empty_and_no_loss(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(100))
    for how in ({"from_ns": START_NS + 3_600 * SECOND}, {"to_ns": START_NS}):
        sink = ListSink()
        result, ledger = play([path], sink, **how)
        assert sink.records == []
        assert exit_code(result, ledger) == 0
        assert result.speed_reached is None


def test_loops_repeat_the_whole_and_have_no_digest(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(50))
    sink = ListSink()
    clock = VirtualClock(START_NS)
    result, ledger = play([path], sink, loops=3, speed=Fraction(1), clock=clock, sleep=VirtualSleeper(clock))
    assert sink.numbers == [(1, number) for number in range(50)] * 3
    assert ledger.acked == 150
    assert ledger.suppressed == {}, "a second pass begins with an empty window"
    assert result.played[0].digest is None
    assert result.recorded_s == pytest.approx(3 * 0.49)
    assert result.seconds == pytest.approx(3 * 0.49, abs=0.001)
    assert result.lateness is not None
    assert result.lateness.count == 150


def test_gaps_and_opens_are_played_too(tmp_path: Path) -> None:
    controls = [
        (START_NS, Kind.OPEN, OpenFields("ws://venue.test/")),
        (START_NS, Kind.GAP, GapFields(START_NS - SECOND, START_NS, "collector_down")),
    ]
    path = make(tmp_path, 1, trades(5), controls=controls)
    sink = ListSink()
    _, ledger = play([path], sink)
    assert [record[1] for record in sink.records] == ["gap", *["trade"] * 5]
    assert (ledger.gaps, ledger.received) == (1, 5)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_damage_is_counted_and_costs_the_digest_and_the_exit_code(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(500), chunk=50)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\x00\xff\x00" + whole[len(whole) // 2 + 3 :])
    sink = ListSink()
    result, ledger = play([path], sink)
    assert ledger.unread == 500 - len(sink.records) > 0
    assert sink.numbers == sorted(sink.numbers)
    assert result.played[0].digest is None
    assert result.played[0].damage
    assert exit_code(result, ledger) == 3


def test_damage_is_counted_in_each_pass(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(100), chunk=50)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\x00\xff\x00" + whole[len(whole) // 2 + 3 :])
    _, once = play([path], ListSink())
    _, twice = play([path], ListSink(), loops=2)
    assert twice.unread == 2 * once.unread > 0


@pytest.mark.parametrize(("name", "code"), [("copy.zst.partial", 0), ("copy.zst", 3)])
def test_a_file_that_was_never_sealed_gives_what_it_has_and_no_digest(tmp_path: Path, name: str, code: int) -> None:
    """A `.partial` says by its name that more may have followed; under a sealed file's name it is a loss."""
    target = writer(tmp_path, 1)
    for recv_ns, payload in trades(100):
        target.append(Kind.TEXT, 0, recv_ns, payload)
    target.flush()
    copy = tmp_path / name
    copy.write_bytes(target.path.read_bytes())
    target.close(START_NS)
    sink = ListSink()
    result, ledger = play([copy], sink)
    assert len(sink.records) == 100
    assert result.played[0].digest is None
    assert ledger.received == 100
    assert exit_code(result, ledger) == code


# --- back-pressure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room_for", "each"), [(1, 1), (7, 3), (1_000, 13), (100_000, 1)])
@pytest.mark.parametrize("speed", [None, Fraction(10)], ids=["max", "10x"])
def test_a_slow_sink_gets_everything_and_is_never_overrun(
    tmp_path: Path, room_for: int, each: int, speed: Fraction | None
) -> None:
    path = make(tmp_path, 1, trades(3_000, step_ns=MS))
    sink = SlowSink(room_for, each)
    clock = VirtualClock(START_NS)

    async def sleep(seconds: float) -> None:
        clock.advance(max(20_000, round(seconds * 1e9)))
        await asyncio.sleep(0)

    result, ledger = play([path], sink, speed=speed, clock=clock, sleep=sleep)
    assert sink.numbers == [(1, number) for number in range(3_000)]
    assert sink.over == 0, "a frame was fed while the sink was full"
    assert (ledger.acked, ledger.failed, ledger.in_flight) == (3_000, 0, 0)
    assert result.played[0].digest == verify(path).digest
    if room_for == 1 and speed is None:
        assert sink.waits >= 2_900


def test_records_that_fail_are_the_exit_code(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(1_000))
    result, ledger = play([path], SlowSink(100, 50, fail_every=10))
    assert (ledger.acked, ledger.failed, ledger.in_flight) == (900, 100, 0)
    assert exit_code(result, ledger) == 3
    assert result.played[0].digest == verify(path).digest, "the capture is whole, whatever the sink lost"


def test_a_sink_that_breaks_down_ends_the_replay_with_its_error(tmp_path: Path) -> None:
    class Broken(ListSink):
        def take(self) -> None:
            self.acked += 1
            self.full = self.acked == 100

        async def room(self) -> None:
            raise KafkaError("the topic is gone", where="trade.upbit")

    ledger = Ledger()
    path = make(tmp_path, 1, trades(1_000))

    async def run() -> None:
        with pytest.raises(KafkaError, match="the topic is gone"):
            await replay(Plan(plan([path])), Broken(), ledger, VirtualClock())

    asyncio.run(run())
    assert ledger.received == ledger.produced == 100


# --- pacing ---------------------------------------------------------------------------------------------------------


class StallingSink(ListSink):
    """Virtual time passes while it takes certain records: a consumer that stalls."""

    def __init__(self, clock: VirtualClock, stalls: dict[int, int]) -> None:
        super().__init__()
        self._clock = clock
        self._stalls = stalls
        self.taken_ns: list[int] = []

    def take(self) -> None:
        self.taken_ns.append(self._clock.monotonic_ns())
        self._clock.advance(self._stalls.get(self.acked, 0))
        self.acked += 1


@pytest.mark.parametrize("speed", ["0.25", "0.5", "1", "10"])
def test_a_replay_takes_as_long_as_it_should(tmp_path: Path, speed: str) -> None:
    factor = Fraction(speed)
    path = make(tmp_path, 1, trades(500, step_ns=7 * MS))
    clock = VirtualClock(START_NS)
    sink = StallingSink(clock, {})
    result, _ = play([path], sink, speed=factor, clock=clock, sleep=VirtualSleeper(clock))
    recorded_ns = 499 * 7 * MS
    assert abs((sink.taken_ns[-1] - sink.taken_ns[0]) - recorded_ns / factor) <= 20_000
    assert all(
        0 <= at - sink.taken_ns[0] - number * 7 * MS / factor <= 20_000 for number, at in enumerate(sink.taken_ns)
    )
    assert result.speed_reached == pytest.approx(float(factor), rel=1e-3)
    assert result.lateness is not None
    assert result.lateness.max_ns <= 20_000


@pytest.mark.parametrize("speed", ["0.25", "0.5", "1", "10"])
def test_a_consumer_that_stalls_makes_it_late_for_a_while_and_the_end_is_on_time(tmp_path: Path, speed: str) -> None:
    factor = Fraction(speed)
    path = make(tmp_path, 1, trades(1_000, step_ns=10 * MS))
    clock = VirtualClock(START_NS)
    sink = StallingSink(clock, {100: SECOND // 4, 101: SECOND // 4, 500: SECOND // 10})
    result, ledger = play([path], sink, speed=factor, clock=clock, sleep=VirtualSleeper(clock))
    assert abs((sink.taken_ns[-1] - sink.taken_ns[0]) - 999 * 10 * MS / factor) <= 20_000
    assert ledger.acked == 1_000
    assert result.lateness is not None
    expected = SECOND // 2 - 2 * 10 * MS / factor
    assert expected - 1 * MS <= result.lateness.max_ns <= SECOND // 2
    gaps = [b - a for a, b in zip(sink.taken_ns, sink.taken_ns[1:], strict=False)]
    assert min(gaps) >= 0
    if factor >= 1:
        assert gaps[102:110] == [0] * 8, "late frames go out back to back"


def test_a_consumer_that_never_catches_up_is_reported_not_dropped(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(200, step_ns=10 * MS))
    clock = VirtualClock(START_NS)
    sink = StallingSink(clock, dict.fromkeys(range(200), 20 * MS))
    result, ledger = play([path], sink, speed=Fraction(1), clock=clock, sleep=VirtualSleeper(clock))
    assert ledger.acked == 200
    assert result.speed_reached == pytest.approx(0.5, rel=0.02)
    assert result.lateness is not None
    assert result.lateness.max_ns == pytest.approx(199 * 10 * MS, rel=0.01)


def test_real_time_at_ten_times_the_speed(tmp_path: Path) -> None:
    """The real clock and the real sleep: never early, and late by no more than a busy machine explains."""
    path = make(tmp_path, 1, trades(200, step_ns=10 * MS))
    result, _ = play([path], ListSink(), speed=Fraction(10), clock=SystemClock())
    assert 0.199 <= result.seconds <= 0.199 + 1.0
    assert result.speed_reached is not None
    assert result.speed_reached <= 10.0


# --- interruption ---------------------------------------------------------------------------------------------------


def interrupted(path: Path, sink: Any, when: Any, **how: Any) -> tuple[ReplayResult, Ledger, float]:
    """Replay; `when(stop)` is awaited beside it and sets `stop`. Third: real seconds from then to the end."""
    ledger = Ledger()

    async def run() -> tuple[ReplayResult, float]:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        task = asyncio.ensure_future(replay(Plan(plan([path]), **how), sink, ledger, SystemClock(), stop=stop))
        await when(stop)
        stop.set()
        began_s = loop.time()
        return await task, loop.time() - began_s

    result, seconds = asyncio.run(run())
    ledger.check()
    return result, ledger, seconds


@pytest.mark.parametrize("chunk", [10, 4_000])
def test_stop_ends_after_the_frame_at_hand(tmp_path: Path, chunk: int) -> None:
    path = make(tmp_path, 1, trades(20_000, step_ns=1_000), chunk=chunk)
    sink = ListSink()

    async def soon(stop: asyncio.Event) -> None:
        await until(lambda: len(sink.records) >= 1_000)

    result, ledger, _ = interrupted(path, sink, soon)
    assert 1_000 <= len(sink.records) < 20_000
    assert sink.numbers == [(1, number) for number in range(len(sink.records))]
    assert result.interrupted
    assert result.played[0].digest is None
    assert ledger.in_flight == 0
    assert exit_code(result, ledger) == 130
    assert result.recorded_s == pytest.approx((len(sink.records) - 1) * 1e-6)


def test_stop_while_the_next_frame_is_an_hour_away_ends_at_once(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3, step_ns=3_600 * SECOND))
    sink = ListSink()

    async def soon(stop: asyncio.Event) -> None:
        await until(lambda: bool(sink.records))
        await asyncio.sleep(0)

    result, ledger, seconds = interrupted(path, sink, soon, speed=Fraction(1))
    assert seconds < 2.0
    assert (result.interrupted, sink.drained) == (True, 1)
    assert ledger.received == ledger.acked == 1
    assert exit_code(result, ledger) == 130


@pytest.mark.parametrize("speed", [None, Fraction(1_000)])
@pytest.mark.parametrize("room_for", [1, 100, 300])
def test_stop_while_the_sink_is_stuck_ends_within_the_grace_and_says_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int, speed: Fraction | None
) -> None:
    monkeypatch.setattr(engine, "STOP_GRACE_S", 0.15)
    path = make(tmp_path, 1, trades(1_000, step_ns=MS))
    sink = StuckSink(room_for)

    async def it_is_stuck(stop: asyncio.Event) -> None:
        await sink.stuck.wait()

    timeouts: list[float] = []
    wait = asyncio.wait

    async def watched(tasks: Any, *, timeout: float | None = None, **how: Any) -> Any:  # noqa: ASYNC109
        timeouts.extend([] if timeout is None else [timeout])
        return await wait(tasks, timeout=timeout, **how)

    monkeypatch.setattr(asyncio, "wait", watched)
    result, ledger, seconds = interrupted(path, sink, it_is_stuck, speed=speed)
    assert sum(timeouts) == pytest.approx(0.15, abs=0.05), "one grace for feeding and draining together"
    assert (ledger.produced, ledger.acked, ledger.in_flight) == (room_for, 0, room_for)
    assert ledger.received == ledger.captured == room_for
    assert result.interrupted
    assert exit_code(result, ledger) == 3
    assert 0.1 <= seconds < 0.15 + 2.0


def test_stop_while_draining_waits_for_the_acks(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(500))
    sink = SlowSink(10_000, 1)

    async def all_fed(stop: asyncio.Event) -> None:
        await until(lambda: len(sink.records) >= 500)

    result, ledger, _ = interrupted(path, sink, all_fed)
    assert (ledger.acked, ledger.in_flight) == (500, 0)
    assert exit_code(result, ledger) in (0, 130)
    assert len(result.played) == 1


# --- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [10, 1_000], ids=["a quiet feed's small chunks", "large chunks"])
def test_progress_and_the_loops_turn(tmp_path: Path, chunk: int) -> None:
    path = make(tmp_path, 1, trades(5_000, step_ns=1_000), chunk=chunk)
    seen: list[Progress] = []
    turns = 0

    async def run() -> None:
        nonlocal turns
        task = asyncio.ensure_future(
            replay(Plan(plan([path])), ListSink(), Ledger(), VirtualClock(), on_progress=seen.append)
        )
        while not task.done():
            turns += 1
            await asyncio.sleep(0)

    asyncio.run(run())
    assert seen[-1] == Progress(5_000, START_NS + 4_999 * 1_000)
    assert [p.frames for p in seen] == sorted(p.frames for p in seen)
    assert turns >= 5_000 // engine.SLICE_FRAMES - 5, "the loop got its turn while the replay ran"


@pytest.mark.slow
def test_memory_is_bounded_whatever_the_size_of_the_capture(tmp_path: Path) -> None:
    target = writer(tmp_path, 1)
    filler = b" " * 250_000
    records = 1_200
    for number in range(records):
        at_ns = START_NS + number * MS
        target.append(Kind.SENT, 0, at_ns, filler)
        target.append(Kind.TEXT, 0, at_ns, trade(number))
    (sealed,) = target.close(START_NS)

    class Counting(ListSink):
        def emit(self, *args: Any, **kwargs: Any) -> None:
            self.acked += 1

    sink = Counting()
    tracemalloc.start()
    try:
        result, ledger = play([sealed.path], sink)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (sink.acked, ledger.received) == (records, records)
    assert result.played[0].digest is not None
    assert peak < 16 << 20, f"{peak >> 20} MiB for a capture of {records * len(filler) >> 20} MiB in chunks of 1 MiB"


def test_the_scenario_in_which_others_lose_87600_of_107600(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(107_600, step_ns=100_000), chunk=5_000)
    sink = SlowSink(room_for=2_000, each=100)
    result, ledger = play([path], sink)
    assert (ledger.received, ledger.acked, ledger.failed, ledger.in_flight) == (107_600, 107_600, 0, 0)
    assert sink.over == 0
    assert [record[3] for record in sink.records] == list(range(107_600))
    assert exit_code(result, ledger) == 0


def test_the_wait_for_room_is_lateness_of_the_frame_that_waited(tmp_path: Path) -> None:
    clock = VirtualClock()

    class BusyAtTheEnd(NullSink):
        @property
        def full(self) -> bool:
            return self.acked == 9

        async def room(self) -> None:
            clock.advance(5 * SECOND)

    path = make(tmp_path, 1, trades(10, step_ns=10 * MS))

    async def sleep(seconds: float) -> None:
        clock.advance(int(seconds * SECOND) or 10_000)

    plan_ = Plan(plan([path]), speed=Fraction(1))
    result = asyncio.run(replay(plan_, BusyAtTheEnd(), Ledger(), clock, sleep=sleep))
    assert result.lateness is not None
    assert result.lateness.max_ns >= 4 * SECOND


def test_a_file_saved_from_a_cut_one_has_no_digest(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(60), chunk=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    saved = tmp_path / "saved.zst"
    recover(path, saved)
    result = asyncio.run(replay(Plan(plan([saved])), NullSink(), Ledger(), VirtualClock()))
    assert [one.digest for one in result.played] == [None], "what live made of it was more"
