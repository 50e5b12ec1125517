"""A run that falls behind and catches up: what reaches the sink, what the ledger says, what is written beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.server import ServerConnection

from kcs.capture.writer import WriterSettings
from kcs.clock import NS_PER_S, VirtualClock
from kcs.errors import DamagedCaptureError, KafkaError, LedgerError
from kcs.live import follower as follower_module
from kcs.live.collector import CollectorResult
from kcs.live.receipt import DeliveryInfo
from kcs.live.recorder import Recorder
from tests.live.rig import Rig, TestSink, files, read, replayed, trade, until
from tests.live.support import START_NS


class Tap:
    """A venue whose frames the test sends one by one."""

    def __init__(self) -> None:
        self.sent = 0
        self._to: list[ServerConnection] = []

    async def script(self, websocket: ServerConnection, number: int) -> None:
        self._to.append(websocket)
        await websocket.wait_closed()

    async def send(self, rig: Rig, count: int, make: Callable[[int], bytes] = trade) -> None:
        await until(lambda: bool(self._to))
        for number in range(self.sent, self.sent + count):
            await self._to[-1].send(make(number))
        self.sent += count
        await rig.received(self.sent)


def prices(sink: TestSink) -> list[float]:
    return [orjson.loads(value)[0] for channel, _, value in sink.all if channel == "trade"]


def assert_delivered(rig: Rig, result: CollectorResult) -> None:
    """What the sink got is what the captures say, file by file, once and in order, and receipts say so."""
    result.ledger.check()
    assert not result.ledger.lost
    assert not result.behind
    for capture in result.captures:
        digest, events, _ = replayed(capture.path)
        assert capture.digest == digest
        assert len(rig.sink.values[capture.capture_id]) == len(events)
        assert capture.receipt is not None
        assert orjson.loads(capture.receipt.read_bytes())["digest"] == digest
    assert prices(rig.sink) == [100.0 + number for number in range(len(prices(rig.sink)))]
    assert list(rig.sink.values) == [capture.capture_id for capture in result.captures]


def test_a_full_sink_stops_the_delivery_not_the_capture_and_the_run_catches_up(tmp_path: Path) -> None:
    async def run() -> None:
        rig, tap = Rig(tmp_path, sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True)
            await tap.send(rig, 10)
            rig.sink.full = True
            await tap.send(rig, 300)
            assert len(prices(rig.sink)) == 10
            assert (rig.collector.ledger.parsed, rig.collector.ledger.behind) == (10, 300)
            lag = rig.collector.lag
            assert lag is not None
            assert lag.frames == 300
            rig.sink.full = False
            await until(lambda: rig.collector.lag is None)
            assert (rig.collector.ledger.parsed, rig.collector.ledger.behind) == (310, 0)
            await tap.send(rig, 20)
            assert len(prices(rig.sink)) == 330, "DIRECT again: at once"
            rig.sink.full = True
            await tap.send(rig, 5)
            rig.sink.full = False
            result = await rig.stop()
        assert result.catch_ups == 2
        assert result.ledger.parsed == 335
        assert_delivered(rig, result)

    asyncio.run(run())


def test_a_sink_that_stays_full_leaves_the_rest_to_the_next_start(tmp_path: Path) -> None:
    async def run() -> None:
        rig, tap = Rig(tmp_path, sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True, drain_s=0.05)
            await tap.send(rig, 10)
            rig.sink.full = True
            await tap.send(rig, 30)
            result = await rig.stop()
        ledger = result.ledger
        ledger.check()
        assert (ledger.captured, ledger.parsed, ledger.behind) == (40, 10, 30)
        assert ledger.lost
        assert (result.behind, result.drained, result.digest, result.catch_ups) == (True, False, None, 0)
        assert result.captures[0].receipt is None
        assert any("delivery is still behind" in text and "next start" in text for _, text in rig.logs)
        assert replayed(result.captures[0].path)[2].parsed == 40
        assert len(list(files(tmp_path, "*.delivery.json"))) == 1

    asyncio.run(run())


def test_a_run_that_is_behind_rotates_and_catches_up_file_by_file(tmp_path: Path) -> None:
    """The adapter's counts are in each trade: state that the fork did not carry over would show in the records."""

    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig, tap = Rig(tmp_path, clock=clock, writer=WriterSettings(age_max_ns=NS_PER_S), sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True)
            await tap.send(rig, 10)
            rig.sink.full = True
            for count in range(1, 4):
                await tap.send(rig, 200)
                clock.advance(NS_PER_S)
                await until(lambda count=count: len(list(files(tmp_path, "*.zst"))) == count)  # type: ignore[misc]
            await tap.send(rig, 200)
            rig.sink.full = False
            await until(lambda: rig.collector.lag is None)
            await tap.send(rig, 1)
            result = await rig.stop()
        assert len(result.captures) == 4
        assert result.catch_ups == 1
        assert [orjson.loads(value)[1] for _, _, value in rig.sink.all] == [float(n + 1) for n in range(811)]
        assert_delivered(rig, result)

    asyncio.run(run())


def test_what_the_thread_has_not_written_yet_is_followed_from_memory(tmp_path: Path) -> None:
    async def run() -> None:
        settings = WriterSettings(flush_ns=3600 * NS_PER_S, chunk_bytes_max=1 << 20)
        rig, tap = Rig(tmp_path, writer=settings, sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start()
            rig.sink.full = True
            await tap.send(rig, 50)
            rig.sink.full = False
            await until(lambda: rig.collector.lag is None)
            assert len(prices(rig.sink)) == 50
            (partial,) = files(tmp_path, "*.partial")
            assert read(partial) == []
            await rig.stop()

    asyncio.run(run())


def test_the_sink_may_come_later_than_the_frames(tmp_path: Path) -> None:
    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig, tap = Rig(tmp_path, clock=clock, writer=WriterSettings(age_max_ns=NS_PER_S), sink=TestSink()), Tap()
        ready = asyncio.Event()

        async def prepare() -> DeliveryInfo:
            await ready.wait()
            return rig.sink.delivery()

        async with rig.serving(tap.script):
            rig.start(prepare=prepare)
            await tap.send(rig, 20)
            assert rig.collector.ledger.behind == 20
            lag = rig.collector.lag
            assert lag is not None
            assert lag.frames == 20
            clock.advance(NS_PER_S)
            await until(lambda: len(list(files(tmp_path, "*.zst"))) == 1)
            await tap.send(rig, 20)
            assert rig.sink.all == []
            assert list(files(tmp_path, "*.delivery.json")) == []
            ready.set()
            await until(lambda: rig.collector.lag is None)
            await tap.send(rig, 20)
            assert len(list(files(tmp_path, "*.delivery.json"))) == 2
            result = await rig.stop()
        assert len(prices(rig.sink)) == 60
        assert len(result.captures) == 2
        assert_delivered(rig, result)

    asyncio.run(run())


def test_a_sink_that_comes_when_the_first_frames_are_on_disk(tmp_path: Path) -> None:
    async def run() -> None:
        rig, tap, ready = Rig(tmp_path, writer=WriterSettings(flush_ns=1), sink=TestSink()), Tap(), asyncio.Event()

        async def prepare() -> None:
            await ready.wait()

        async with rig.serving(tap.script):
            rig.start(prepare=prepare, delivery=True)
            await tap.send(rig, 20)
            (partial,) = files(tmp_path, "*.partial")
            await until(lambda: len([r for r in read(partial) if r.kind.name == "BINARY"]) == 20)
            ready.set()
            await until(lambda: rig.collector.lag is None)
            result = await rig.stop()
        assert len(prices(rig.sink)) == 20
        assert_delivered(rig, result)

    asyncio.run(run())


def test_a_sink_that_never_comes_costs_nothing_but_the_delivery(tmp_path: Path) -> None:
    async def run() -> None:
        rig, tap, cancelled = Rig(tmp_path, sink=TestSink()), Tap(), asyncio.Event()

        async def prepare() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with rig.serving(tap.script):
            rig.start(prepare=prepare, drain_s=0.05)
            await tap.send(rig, 20)
            result = await rig.stop()
        assert cancelled.is_set()
        result.ledger.check()
        assert (result.ledger.behind, result.behind, result.digest) == (20, True, None)
        assert replayed(result.captures[0].path)[2].parsed == 20

    asyncio.run(run())


def test_a_late_loop_captures_first(tmp_path: Path) -> None:
    """A tick that comes more than 100 ms late mutes the delivery; a calm one lets it catch up."""

    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig, tap = Rig(tmp_path, clock=clock, sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True)
            await tap.send(rig, 10)
            recorder = rig.collector._recorder
            assert recorder is not None
            recorder.late(99_000_000)
            assert not recorder.behind
            recorder.late(101_000_000)
            assert recorder.behind
            await tap.send(rig, 1)
            await until(lambda: rig.collector.lag is None)
            result = await rig.stop()
        assert result.catch_ups == 1
        assert_delivered(rig, result)

    asyncio.run(run())


def test_a_partition_that_cannot_go_on_is_named_once_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        monkeypatch.setattr("kcs.live.recorder._FAULT_S", 0.0)
        rig, tap = Rig(tmp_path, sink=TestSink()), Tap()
        broken, asked = True, 0

        async def room() -> None:
            nonlocal asked
            asked += 1
            if broken:
                raise KafkaError("no right to write", where="topic trade.testex")
            await rig.sink._room.wait()

        async with rig.serving(tap.script):
            rig.start(delivery=True)
            monkeypatch.setattr(rig.sink, "room", room)
            rig.sink.full = True
            await tap.send(rig, 10)
            await until(lambda: asked > 3)
            broken = False
            rig.sink.full = False
            await until(lambda: rig.collector.lag is None)
            result = await rig.stop()
        assert len([text for level, text in rig.logs if "no right to write" in text and level == "warning"]) == 1
        assert_delivered(rig, result)

    asyncio.run(run())


def test_a_capture_that_fails_while_the_run_is_behind_delivers_what_is_on_disk_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        rig, tap = Rig(tmp_path, writer=WriterSettings(flush_ns=1), sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True, drain_s=5.0)
            rig.sink.full = True
            await tap.send(rig, 30)
            (partial,) = files(tmp_path, "*.partial")
            await until(lambda: len([r for r in read(partial) if r.kind.name == "BINARY"]) == 30)

            def refuse(*_: Any) -> int:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr("os.write", refuse)
            await tap._to[-1].send(trade(30))
            await until(lambda: any("the capture failed" in text for _, text in rig.logs))
            rig.sink.full = False
            result = await rig.running
        assert result.failure is not None
        assert result.ledger.parsed == 30
        assert len(prices(rig.sink)) == 30
        result.ledger.check()
        assert result.captures[0].receipt is None

    asyncio.run(run())


def test_a_disk_that_does_not_give_back_stops_the_delivery_not_the_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        rig, tap = Rig(tmp_path, sink=TestSink()), Tap()

        def refuse(self: Any) -> list[Any]:
            raise DamagedCaptureError("the checksum does not match")

        async with rig.serving(tap.script):
            rig.start(delivery=True, drain_s=0.05)
            await tap.send(rig, 10)
            monkeypatch.setattr("kcs.live.follower.CaptureTail.read", refuse)
            rig.sink.full = True
            await tap.send(rig, 10)
            rig.sink.full = False
            await until(lambda: any("delivery stops" in text for _, text in rig.logs))
            await tap.send(rig, 10)
            result = await rig.stop()
        assert (result.ledger.captured, result.ledger.behind, result.stopped_by) == (30, 20, "request")
        assert result.behind
        assert replayed(result.captures[0].path)[2].parsed == 30
        assert len([text for _, text in rig.logs if "delivery stops" in text]) == 1

    asyncio.run(run())


def test_a_file_that_was_taken_away_before_it_was_delivered_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig, tap = Rig(tmp_path, clock=clock, writer=WriterSettings(age_max_ns=NS_PER_S), sink=TestSink()), Tap()
        async with rig.serving(tap.script):
            rig.start(delivery=True, drain_s=0.05)
            rig.sink.full = True
            for number in range(1, 4):
                await tap.send(rig, 10)
                clock.advance(NS_PER_S)
                await until(lambda n=number: len(list(files(tmp_path, "*.zst"))) == n)  # type: ignore[misc]
            second = sorted(files(tmp_path, "*.zst"), key=lambda path: read(path)[0].recv_ns)[1]
            second.unlink()
            rig.sink.full = False
            await until(lambda: any("delivery stops" in text for _, text in rig.logs))
            await tap.send(rig, 10)
            result = await rig.stop()
        (told,) = [text for _, text in rig.logs if "delivery stops" in text]
        assert second.name in told
        assert "recover --produce" in told
        assert (result.ledger.captured, result.ledger.behind) == (40, 30)

    asyncio.run(run())


def test_two_that_do_not_agree_are_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        rig, tap = Rig(tmp_path, sink=TestSink()), Tap()
        feed = follower_module.Follower._feed

        def forgetful(self: Any, record: Any) -> None:
            if record[4] != trade(15):
                feed(self, record)

        monkeypatch.setattr(follower_module.Follower, "_feed", forgetful)
        async with rig.serving(tap.script):
            rig.start(delivery=True, drain_s=0.05)
            await tap.send(rig, 10)
            rig.sink.full = True
            await tap.send(rig, 10)
            rig.sink.full = False
            with pytest.raises(LedgerError, match="live and its own capture do not agree"):
                await rig.running
        assert len([text for _, text in rig.logs if "do not agree" in text]) == 1, "told once"
        assert list(files(tmp_path, "*.receipt.json")) == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("late_ns", "most"), [(0, follower_module.SLICE_RECORDS), (10**9, follower_module.SLICE_RECORDS_LATE)]
)
def test_a_turn_of_the_loop_feeds_a_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_ns: int, most: int
) -> None:
    async def run() -> None:
        lateness = Recorder.late
        monkeypatch.setattr(Recorder, "late", lambda self, _: lateness(self, late_ns))
        rig, tap, slices = Rig(tmp_path, sink=TestSink()), Tap(), list[int]()
        step = follower_module.Follower.step

        def counted(self: Any, **options: Any) -> Any:
            before = self.frames
            state = step(self, **options)
            slices.append(self.frames - before)
            return state

        monkeypatch.setattr(follower_module.Follower, "step", counted)
        async with rig.serving(tap.script):
            rig.start()
            rig.sink.full = True
            await tap.send(rig, 500)
            slices.clear()
            rig.sink.full = False
            await until(lambda: rig.collector.lag is None)
            await rig.stop()
        assert max(slices) == most
        assert sum(slices) == 500

    asyncio.run(run())
