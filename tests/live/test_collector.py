"""The collector against a scripted websocket server on localhost: what is captured, produced and said."""

from __future__ import annotations

import asyncio
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request
from websockets.server import ServerProtocol

from kcs.capture.reader import CaptureReader
from kcs.capture.writer import WriterSettings
from kcs.clock import NS_PER_S, VirtualClock
from kcs.errors import CaptureBusyError, CaptureWriteError, ConfigError, KafkaError, LedgerError
from kcs.exchanges.base import Limits
from kcs.live.collector import Collector
from kcs.live.receipt import read_receipt
from kcs.live.recorder import Recorder
from kcs.live.session import Phase
from kcs.model import GapFields, Kind, OpenFields, Record
from kcs.sink import RECORD_SCHEMA_VERSION, NullSink
from tests.live.rig import LOOPS, Rig, Script, TestSink, files, kinds, read, replayed, trade, until
from tests.live.support import MARKETS, START_NS, make_subscription, make_venue


async def quiet(websocket: ServerConnection, number: int) -> None:
    """Says nothing more until the client goes."""
    async for _ in websocket:
        pass


def run_on(loop: Any, coroutine: Any) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(coroutine)


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_connect_capture_feed_and_a_clean_stop(tmp_path: Path, loop: Any) -> None:
    heard: list[str | bytes] = []
    ended: list[int | None] = []

    async def script(websocket: ServerConnection, number: int) -> None:
        heard.append(await websocket.recv())
        for index in range(100):
            await websocket.send(trade(index))
        await websocket.send('{"up":1}')
        await websocket.send("nonsense")
        async for message in websocket:
            heard.append(message)
        ended.append(websocket.close_code)

    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(script):
            rig.start()
            await rig.received(102)
            result = await rig.stop()
        assert str(heard[0]).endswith("trade KRW-BTC,KRW-ETH")
        assert ended == [1000]
        ledger = result.ledger
        ledger.check()
        assert (ledger.received, ledger.captured, ledger.parsed) == (102, 102, 100)
        assert (ledger.ignored, ledger.rejected) == ({"heartbeat": 1}, {"not_json": 1})
        assert (ledger.produced, ledger.acked, ledger.in_flight) == (101, 101, 0)
        assert not ledger.lost
        assert (result.stopped_by, result.signal, result.failure, result.behind) == ("request", None, None, False)
        assert (result.drained, result.reconnects, result.gaps, result.records_lost) == (True, 0, 0, 0)
        (capture,) = result.captures
        assert capture.sealed
        assert capture.receipt is None
        records = read(capture.path)
        assert [r.kind.name for r in records[:3]] == ["CLOCK", "OPEN", "SENT"]
        assert records[1].fields == OpenFields(rig.url, "start", 0)
        assert records[2].payload.decode() == heard[0]
        assert [r.payload for r in records if r.kind is Kind.BINARY] == [trade(index) for index in range(100)]
        assert [r.payload for r in records if r.kind is Kind.TEXT] == [b'{"up":1}', b"nonsense"]
        assert records[-1].kind is Kind.CLOSE
        assert (records[-1].fields.code, records[-1].fields.cause, records[-1].fields.frames) == (1000, "stop", 102)
        assert [r.number for r in records] == list(range(len(records)))
        times = [r.recv_ns for r in records]
        assert times == sorted(times)
        digest, events, _ = replayed(capture.path)
        assert capture.digest == digest == result.digest
        assert len(events) == 100

    run_on(loop, run())


def test_the_header_says_what_changes_records(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(quiet):
            rig.start(options={"dedup": True})
            await until(lambda: rig.connections == 1)
            result = await rig.stop()
        with CaptureReader(result.captures[0].path) as reader:
            header = reader.header
        assert (header.exchange, header.url, header.sequence) == ("testex", rig.url, 0)
        assert header.run_id == header.capture_id == result.captures[0].capture_id
        assert dict(header.options) == {
            "channels": ["trade"],
            "markets": ["KRW-BTC", "KRW-ETH"],
            "format": "",
            "depth": None,
            "dedup": True,
        }

    asyncio.run(run())


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_reconnecting_writes_close_open_gap_and_loses_no_number(tmp_path: Path, loop: Any) -> None:
    async def script(websocket: ServerConnection, number: int) -> None:
        await websocket.recv()
        await websocket.send(trade(number))
        if number == 0:
            await websocket.close(1012, "restart")
        elif number == 1:
            websocket.transport.abort()
        else:
            await quiet(websocket, number)

    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(script):
            rig.start()
            await rig.received(3)
            result = await rig.stop()
        result.ledger.check()
        assert (result.reconnects, result.gaps) == (2, 2)
        (capture,) = result.captures
        records = [r for r in read(capture.path) if r.kind not in (Kind.SENT, Kind.CLOCK)]
        frame, close, opened, gap = "BINARY", "CLOSE", "OPEN", "GAP"
        expected = [opened, frame, close, opened, gap, frame, close, opened, gap, frame, close]
        assert [r.kind.name for r in records] == expected
        closes = [r.fields for r in records if r.kind is Kind.CLOSE]
        assert [(c.code, c.reason, c.cause, c.frames) for c in closes] == [
            (1012, "restart", "remote", 1),
            (1006, "", "lost", 2),
            (1000, "", "stop", 3),
        ]
        assert [r.fields.cause for r in records if r.kind is Kind.OPEN] == ["start", "remote", "lost"]
        frames = [r.recv_ns for r in records if r.kind is Kind.BINARY]
        gaps = [r.fields for r in records if r.kind is Kind.GAP]
        assert gaps == [
            GapFields(frames[0], frames[1], "disconnect", MARKETS),
            GapFields(frames[1], frames[2], "disconnect", MARKETS),
        ]
        assert replayed(capture.path)[0] == capture.digest
        assert result.ledger.gaps == 2

    run_on(loop, run())


def test_a_venue_that_refuses_is_asked_again_and_counted(tmp_path: Path) -> None:
    attempts: list[int] = []

    async def run() -> None:
        rig = Rig(tmp_path)

        def refuse(websocket: ServerConnection, request: object) -> object:
            attempts.append(1)
            return websocket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "busy\n") if len(attempts) < 3 else None

        async def handler(websocket: ServerConnection) -> None:
            await websocket.send(trade(1))
            await quiet(websocket, 0)

        async with serve(handler, "127.0.0.1", 0, process_request=refuse) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            rig.start(url=f"ws://127.0.0.1:{port}/")
            await rig.received(1)
            result = await rig.stop()
        assert result.connect_failures == {"http_503": 2}
        assert (result.reconnects, result.gaps) == (0, 0)

    asyncio.run(run())


def test_nobody_there_at_all(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.start(url="ws://127.0.0.1:1/")
        await until(lambda: rig.collector.sessions != () and bool(rig.collector.sessions[0].connect_failures))
        result = await rig.stop()
        assert set(result.connect_failures) <= {"refused", "network"}
        assert kinds(result.captures[0].path) == ["CLOCK"]
        result.ledger.check()

    asyncio.run(run())


def test_a_bad_url_is_an_error_before_a_file_exists(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(ConfigError):
            Rig(tmp_path).start(url="http://nowhere/")

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_an_oversize_message_closes_and_leaves_a_gap(tmp_path: Path) -> None:
    async def script(websocket: ServerConnection, number: int) -> None:
        await websocket.send(trade(number))
        if number == 0:
            await websocket.send(b"x" * 30_000_000)
        await quiet(websocket, number)

    async def run() -> None:
        rig = Rig(tmp_path, venue=make_venue(limits=Limits(frame_bytes_max=1 << 20, connects_per_s=1000)))
        async with rig.serving(script):
            rig.start()
            await rig.received(2)
            result = await rig.stop()
        closes = [r.fields for r in read(result.captures[0].path) if r.kind is Kind.CLOSE]
        assert [(c.code, c.cause) for c in closes] == [(1009, "oversize"), (1000, "stop")]
        assert result.gaps == 1

    asyncio.run(run())


def test_only_data_counts_against_silence(tmp_path: Path) -> None:
    """A heartbeat says nothing about the subscription; a frame rejected, or not parsed, is the venue talking."""

    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig = Rig(tmp_path, clock=clock)
        sent: list[ServerConnection] = []

        async def script(websocket: ServerConnection, number: int) -> None:
            sent.append(websocket)
            await quiet(websocket, number)

        async with rig.serving(script):
            rig.start()
            await until(lambda: rig.collector.sessions != () and rig.collector.sessions[0].is_open and bool(sent))
            (session,) = rig.collector.sessions
            heard = []
            for count, frame in enumerate((trade(1), b'{"up":1}', b"junk", b'{"up":2}', b'{"up":3}', trade(2)), 1):
                if count == 6:
                    rig.sink.full = True
                clock.advance(NS_PER_S)
                await sent[0].send(frame)
                await rig.received(count)
                heard.append((session.last_data_ns - START_NS) // NS_PER_S)
            await rig.stop()
        assert heard == [1, 1, 3, 3, 3, 6]

    asyncio.run(run())


def test_two_streams_are_captured_under_their_numbers(tmp_path: Path) -> None:
    async def script(websocket: ServerConnection, number: int) -> None:
        market = str(await websocket.recv()).split()[-1]
        await websocket.send(trade(1, market))
        await quiet(websocket, number)

    async def run() -> None:
        rig = Rig(tmp_path, venue=make_venue(limits=Limits(connects_per_s=1000)))
        async with rig.serving(script):
            rig.start(subscriptions=(make_subscription("KRW-A"), make_subscription("KRW-B")))
            await rig.received(2)
            result = await rig.stop()
        frames = {r.stream: r.payload for r in read(result.captures[0].path) if r.kind is Kind.BINARY}
        assert frames == {0: trade(1, "KRW-A"), 1: trade(1, "KRW-B")}
        assert {market for session in rig.collector.sessions for market in session.markets} == {"KRW-A", "KRW-B"}

    asyncio.run(run())


def test_changing_the_subscription_while_it_runs(tmp_path: Path) -> None:
    heard: list[str | bytes] = []

    async def script(websocket: ServerConnection, number: int) -> None:
        async for message in websocket:
            heard.append(message)

    async def run() -> None:
        rig = Rig(tmp_path, venue=make_venue(limits=Limits(messages_per_s=1000)))
        async with rig.serving(script):
            rig.start()
            await until(lambda: len(heard) == 2)
            rig.collector.subscribe(0, make_subscription("KRW-XRP"))
            await until(lambda: len(heard) == 3)
            result = await rig.stop()
        assert str(heard[2]).endswith("trade KRW-XRP")
        sent = [r.payload.decode() for r in read(result.captures[0].path) if r.kind is Kind.SENT]
        assert sent == heard

    asyncio.run(run())


# ---------------------------------------------------------------- ends


def test_duration_ends_the_run(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(quiet):
            rig.start(duration_s=0.05)
            result = await rig.running
        assert result.stopped_by == "duration"
        assert result.captures[0].sealed

    asyncio.run(run())


def test_a_signal_is_reported(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(quiet):
            rig.start()
            await until(lambda: rig.connections == 1)
            rig.collector.request_stop(2)
            result = await rig.running
        assert (result.stopped_by, result.signal) == ("signal", 2)

    asyncio.run(run())


def test_a_peer_that_ignores_the_close_delays_the_end_only_so_long(tmp_path: Path) -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            protocol = ServerProtocol()
            protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
            (request,) = protocol.events_received()
            assert isinstance(request, Request)
            protocol.send_response(protocol.accept(request))
            protocol.send_binary(trade(1))
            writer.write(b"".join(protocol.data_to_send()))
            while await _read(reader):
                pass
            writer.close()
            gone.set()

        async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
            rig = Rig(tmp_path)
            rig.start(url=f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", close_within_s=0.05)
            await rig.received(1)
            result = await rig.stop()
            await gone.wait()
        close = read(result.captures[0].path)[-1]
        assert (close.kind, close.fields.code, close.fields.cause) == (Kind.CLOSE, 1006, "stop")

    asyncio.run(run())


def test_a_second_stop_does_not_wait_for_the_peer(tmp_path: Path) -> None:
    async def run() -> None:
        done = asyncio.Event()
        held: list[ServerConnection] = []

        async def stuck(websocket: ServerConnection, number: int) -> None:
            held.append(websocket)
            await websocket.send(trade(1))
            websocket.transport.pause_reading()  # the close frame is never seen
            await done.wait()

        rig = Rig(tmp_path)
        async with rig.serving(stuck):
            rig.start(close_within_s=1000.0)
            await rig.received(1)
            rig.collector.request_stop(2)
            await until(lambda: rig.collector.sessions[0].phase is Phase.CLOSING)
            rig.collector.request_stop(2)
            result = await rig.running
            held[0].transport.abort()
            done.set()
        close = read(result.captures[0].path)[-1]
        assert (close.kind, close.fields.code, close.fields.cause) == (Kind.CLOSE, 1006, "stop")

    asyncio.run(run())


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1024)
    except ConnectionError:
        return b""


def test_stopping_while_connecting(tmp_path: Path) -> None:
    async def run() -> None:
        arrived = asyncio.Event()

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            while await _read(reader):
                pass
            writer.close()

        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            rig = Rig(tmp_path)
            rig.start(url=f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            await arrived.wait()
            result = await rig.stop()
        assert kinds(result.captures[0].path) == ["CLOCK"]
        assert result.connect_failures == {}

    asyncio.run(run())


def test_a_sink_that_never_acks_is_waited_for_only_so_long(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = TestSink(hold=True)
        async with rig.serving(_sends(5)):
            rig.start(drain_s=0.02, delivery=True)
            await rig.received(5)
            result = await rig.stop()
        assert not result.drained
        assert (result.ledger.in_flight, result.ledger.lost) == (5, True)
        assert result.captures[0].receipt is None
        assert not list(files(tmp_path, "*.receipt.json"))
        result.ledger.check()

    asyncio.run(run())


def test_a_second_stop_does_not_wait_for_the_sink(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = TestSink(hold=True)
        async with rig.serving(_sends(5)):
            rig.start(drain_s=1000.0)
            await rig.received(5)
            rig.collector.request_stop(2)
            rig.collector.request_stop(2)
            result = await rig.running
        assert not result.drained
        assert result.captures[0].sealed

    asyncio.run(run())


def test_a_sink_that_broke_down_does_not_break_the_seal(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = TestSink(hold=True)
        rig.sink.fault = KafkaError("the broker is gone")
        async with rig.serving(_sends(5)):
            rig.start()
            await rig.received(5)
            result = await rig.stop()
        assert not result.drained
        assert result.captures[0].sealed
        assert any("the broker is gone" in text for _, text in rig.logs)

    asyncio.run(run())


def _sends(count: int) -> Script:
    async def script(websocket: ServerConnection, number: int) -> None:
        for index in range(count):
            await websocket.send(trade(index))
        await quiet(websocket, number)

    return script


# ---------------------------------------------------------------- failing


def test_a_disk_that_fails_ends_the_run_and_leaves_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        rig = Rig(tmp_path, writer=WriterSettings(flush_ns=1))
        more = asyncio.Event()

        async def script(websocket: ServerConnection, number: int) -> None:
            for index in range(10):
                await websocket.send(trade(index))
            await more.wait()
            index = 10
            while True:
                await websocket.send(trade(index))
                index += 1

        real = os.write

        def full(fd: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        async with rig.serving(script):
            rig.start(delivery=True)
            await rig.received(10)
            (partial,) = files(tmp_path, "*.partial")
            await until(lambda: len(read_tolerantly(partial)) >= 12)
            monkeypatch.setattr(os, "write", full)
            more.set()
            await until(lambda: any("the capture failed" in text for _, text in rig.logs))
            monkeypatch.setattr(os, "write", real)
            result = await rig.running
        assert isinstance(result.failure, CaptureWriteError)
        assert result.stopped_by == "capture"
        assert result.digest is None
        assert not list(files(tmp_path, "*.receipt.json"))
        assert result.ledger.unwritten == result.records_lost > 0
        (capture,) = result.captures
        frames = [r.payload for r in read_tolerantly(capture.path) if r.kind is Kind.BINARY]
        assert frames[:10] == [trade(index) for index in range(10)]
        result.ledger.check()

    asyncio.run(run())


def read_tolerantly(path: Path) -> list[Record]:
    with CaptureReader(path, strict=False) as reader:
        return list(reader.records())


def test_a_second_collector_on_the_directory_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        rig, other = Rig(tmp_path), Rig(tmp_path)
        async with rig.serving(_sends(1)):
            rig.start()
            await rig.received(1)
            other.start(url=rig.url)
            with pytest.raises(CaptureBusyError):
                await other.running
            await rig.stop()

    asyncio.run(run())


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def run() -> None:
        rig = Rig(tmp_path / "file")
        rig.start(url="ws://127.0.0.1:1/")
        with pytest.raises(CaptureWriteError):
            await rig.running

    asyncio.run(run())


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_defect_ends_the_run_loudly_after_sealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Any) -> None:
    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        rig = Rig(tmp_path)

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr("kcs.pipeline.Pipeline._trade", broken)
        async with rig.serving(_sends(1)):
            rig.start()
            with pytest.raises(ZeroDivisionError):
                await rig.running
        (path,) = files(tmp_path, "*.zst")
        assert "BINARY" in kinds(path)
        assert any("a defect" in text for level, text in rig.logs if level == "error")

    run_on(loop, run())


def test_a_defect_while_connecting_ends_the_run_too(tmp_path: Path) -> None:
    async def dial(handler: object) -> object:
        raise ZeroDivisionError

    async def run() -> None:
        rig = Rig(tmp_path)
        rig.start(dial=dial, url="ws://127.0.0.1:1/")
        with pytest.raises(ZeroDivisionError):
            await rig.running
        assert list(files(tmp_path, "*.zst"))

    asyncio.run(run())


def test_a_defect_in_a_timer_ends_the_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(quiet):
            rig.start()
            await until(lambda: rig.connections == 1)
            monkeypatch.setattr(Collector, "tick", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await rig.running
        assert list(files(tmp_path, "*.zst"))

    asyncio.run(run())


def test_numbers_that_disagree_end_the_run_but_the_capture_is_sealed_without_a_receipt(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(_sends(3)):
            collector = rig.start(delivery=True)
            await rig.received(3)
            collector._pipeline.number += 1
            with pytest.raises(LedgerError, match="the pipeline at"):
                await rig.running
        (path,) = files(tmp_path, "*.zst")
        assert kinds(path).count("BINARY") == 3
        assert not list(files(tmp_path, "*.receipt.json"))

    asyncio.run(run())


# ---------------------------------------------------------------- one run after another


def test_the_next_run_begins_with_the_gap_between_them(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(_sends(2)):
            rig.start()
            await rig.received(2)
            first = await rig.stop()
            again = Rig(tmp_path, url=rig.url)
            again.start(seed=2)
            await again.received(2)
            second = await again.stop()
        assert (first.gaps, second.gaps) == (0, 1)
        last_ns = read(first.captures[0].path)[-1].recv_ns
        records = read(second.captures[0].path)
        (gap,) = [r.fields for r in records if r.kind is Kind.GAP]
        first_frame_ns = next(r.recv_ns for r in records if r.kind is Kind.BINARY)
        assert gap == GapFields(last_ns, first_frame_ns, "collector_down", MARKETS)
        assert second.digest == replayed(second.captures[0].path)[0]

    asyncio.run(run())


def test_another_exchange_whose_name_begins_alike_is_no_earlier_run(tmp_path: Path) -> None:
    async def run() -> None:
        other = Rig(tmp_path, venue=make_venue(name="testex-spot"))
        async with other.serving(_sends(1)):
            other.start()
            await other.received(1)
            await other.stop()
            rig = Rig(tmp_path, url=other.url)
            rig.start(seed=2)
            await rig.received(1)
            assert (await rig.stop()).gaps == 0

    asyncio.run(run())


def test_a_run_that_was_killed_is_an_earlier_run(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(_sends(2)):
            rig.start()
            await rig.received(2)
            sealed = (await rig.stop()).captures[0].path
            # As kill -9 leaves it: chunks without an index, under the name of a file being written.
            last_ns = read(sealed)[-1].recv_ns
            data = sealed.read_bytes()
            partial = sealed.with_name(sealed.name + ".partial")
            partial.write_bytes(data[: data.index(b"INDX") - 8])
            sealed.unlink()
            again = Rig(tmp_path, url=rig.url)
            again.start(seed=2)
            await again.received(2)
            result = await again.stop()
        (gap,) = [r.fields for r in read(result.captures[0].path) if r.kind is Kind.GAP]
        assert (gap.from_ns, gap.cause) == (last_ns, "collector_down")

    asyncio.run(run())


def test_files_of_other_exchanges_and_junk_are_no_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "testex-20990101T000000Z-00.zst").write_bytes(b"junk")
    (tmp_path / "testex-20990101T000000Z-01.zst.partial").write_bytes(b"")
    (tmp_path / "testex-20990101T000000Z-02.zst").mkdir()
    (tmp_path / "other-20990101T000000Z-00.zst").write_bytes(b"junk")

    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(_sends(1)):
            rig.start()
            await rig.received(1)
            result = await rig.stop()
        assert result.gaps == 0

    asyncio.run(run())


# ---------------------------------------------------------------- rotation, delivery, receipts


def rotated_run(tmp_path: Path, rotations: int) -> tuple[list[Path], list[str | None], TestSink]:
    """A run of which each third of the frames is in its own file; the second connection opens in the second file."""
    sink: list[TestSink] = []
    paths: list[Path] = []
    digests: list[str | None] = []

    async def run() -> None:
        clock = VirtualClock(START_NS)
        settings = WriterSettings(threaded=False, age_max_ns=NS_PER_S if rotations else None)
        rig = Rig(tmp_path, clock=clock, writer=settings, venue=make_venue(limits=Limits(connects_per_s=1000)))
        steps = [asyncio.Event() for _ in range(3)]

        async def script(websocket: ServerConnection, number: int) -> None:
            if number == 0:
                for index in range(10):
                    await websocket.send(trade(index, "KRW-A"))
                await steps[0].wait()
                # The last three again, as after a reconnection, and one that is new.
                for index in (7, 8, 9, 10):
                    await websocket.send(trade(index, "KRW-A"))
                await steps[1].wait()
                return
            await steps[2].wait()
            for index in (9, 10, 11):
                await websocket.send(trade(index, "KRW-A"))
            await quiet(websocket, number)

        async def advance(files_sealed: int) -> None:
            clock.advance(NS_PER_S)
            if rotations:
                await until(lambda: len(list(files(tmp_path, "*.zst"))) == files_sealed)

        async with rig.serving(script):
            rig.start()
            sink.append(rig.sink)
            await rig.received(10)
            await advance(1)
            steps[0].set()
            await rig.received(14)
            steps[1].set()
            await until(lambda: rig.collector.sessions[0].opens == 1 and not rig.collector.sessions[0].is_open)
            await advance(2)
            clock.advance(NS_PER_S // 10)
            await until(lambda: rig.connections == 2)
            steps[2].set()
            await rig.received(17)
            result = await rig.stop()
        result.ledger.check()
        paths.extend(capture.path for capture in result.captures)
        digests.extend(capture.digest for capture in result.captures)

    asyncio.run(run())
    return paths, digests, sink[0]


def test_each_rotated_file_alone_gives_what_the_run_gave(tmp_path: Path) -> None:
    paths, digests, sink = rotated_run(tmp_path / "rotated", 2)
    assert len(paths) == 3
    assert [replayed(path)[0] for path in paths] == digests
    # And together they are the run that was never rotated.
    whole, _, whole_sink = rotated_run(tmp_path / "whole", 0)
    assert len(whole) == 1
    assert [event for path in paths for event in replayed(path)[1]] == replayed(whole[0])[1]
    assert [item for item in sink.all if item[0] == "trade"] == [i for i in whole_sink.all if i[0] == "trade"]


def test_a_rotated_file_begins_with_open_streams_and_state(tmp_path: Path) -> None:
    paths, _, _ = rotated_run(tmp_path, 2)
    first, second, third = (read(path) for path in paths)
    assert [r.kind.name for r in first[:2]] == ["CLOCK", "OPEN"]
    assert [r.kind.name for r in second[:5]] == ["CLOCK", "OPEN", "STATE", "STATE", "BINARY"]
    opened = second[1].fields
    assert isinstance(opened, OpenFields)
    assert (opened.continued, opened.cause, opened.frames) == (True, "continued", 10)
    # Nothing is open when the third begins; the gap that ends there began in the second.
    assert [r.kind.name for r in third if r.kind is not Kind.SENT][:5] == ["CLOCK", "STATE", "OPEN", "GAP", "BINARY"]
    headers = []
    for path in paths:
        with CaptureReader(path) as reader:
            headers.append(reader.header)
    assert [header.sequence for header in headers] == [0, 1, 2]
    assert len({header.run_id for header in headers}) == 1
    assert len({header.capture_id for header in headers}) == 3


def test_delivery_and_receipt(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(_sends(5)):
            rig.start(delivery=True)
            await rig.received(5)
            (delivery,) = files(tmp_path, "*.delivery.json")
            assert not list(files(tmp_path, "*.receipt.json"))
            result = await rig.stop()
        (capture,) = result.captures
        base = capture.path.name.removesuffix(".zst")
        assert delivery.name == f"{base}.delivery.json"
        assert orjson.loads(delivery.read_bytes()) == {
            "version": 1,
            "capture": capture.capture_id.hex(),
            "cluster": "cluster-1",
            "template": "{channel}.{exchange}",
            "headers": True,
            "partitions": {"gap.testex": 1, "trade.testex": 1},
            "record_schema": RECORD_SCHEMA_VERSION,
        }
        assert capture.receipt == capture.path.with_name(f"{base}.receipt.json")
        assert orjson.loads(capture.receipt.read_bytes()) == {
            "version": 1,
            "capture": capture.capture_id.hex(),
            "file": capture.path.name,
            "digest": capture.digest,
            "records": {"produced": 5, "acked": 5, "failed": 0},
            "cluster": "cluster-1",
            "template": "{channel}.{exchange}",
            "headers": True,
            "offsets": {"trade.testex": {"0": {"first": 0, "last": 4}}},
            "record_schema": RECORD_SCHEMA_VERSION,
        }
        assert not list(files(tmp_path, "*.tmp"))

    asyncio.run(run())


def test_a_rotated_files_receipt_waits_for_its_acks(tmp_path: Path) -> None:
    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig = Rig(tmp_path, clock=clock, writer=WriterSettings(threaded=False, age_max_ns=NS_PER_S))
        rig.sink = TestSink(hold=True)
        async with rig.serving(_sends(3)):
            rig.start(delivery=True)
            await rig.received(3)
            clock.advance(NS_PER_S)
            await until(lambda: len(list(files(tmp_path, "*.zst"))) == 1)
            assert not list(files(tmp_path, "*.receipt.json"))
            rig.sink.release()
            await until(lambda: len(list(files(tmp_path, "*.receipt.json"))) == 1)
            result = await rig.stop()
        assert [capture.receipt is not None for capture in result.captures] == [True, True]
        assert len(list(files(tmp_path, "*.delivery.json"))) == 2

    asyncio.run(run())


def test_a_record_that_the_broker_refused_for_good_stands_in_the_receipt(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = TestSink(hold=True)
        async with rig.serving(_sends(3)):
            rig.start(delivery=True)
            await rig.received(3)
            rig.sink.failed = 1
            rig.sink.release()
            result = await rig.stop()
        receipt = read_receipt(result.captures[0].path)
        assert receipt is not None, "nothing is left to deliver"
        assert (receipt.records.produced, receipt.records.acked, receipt.records.failed) == (3, 2, 1)
        assert result.ledger.failed == 1
        assert result.ledger.lost
        result.ledger.check()

    asyncio.run(run())


def test_without_kafka_there_is_neither(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = NullSink()
        async with rig.serving(_sends(3)):
            rig.start()
            await rig.received(3)
            await rig.stop()
        assert not list(files(tmp_path, "*.json"))

    asyncio.run(run())


def test_the_clock_is_anchored_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anchored: list[int] = []
    anchor = Recorder.anchor

    def noting(self: Recorder, now_ns: int) -> None:
        anchor(self, now_ns)
        anchored.append(now_ns)

    monkeypatch.setattr(Recorder, "anchor", noting)

    async def run() -> None:
        clock = VirtualClock(START_NS)
        rig = Rig(tmp_path, clock=clock)
        async with rig.serving(_sends(1)):
            rig.start()
            await rig.received(1)
            for minute in range(1, 4):
                clock.set(START_NS + minute * 60 * NS_PER_S)
                rig.collector.sessions[0].on_data(clock.now_ns())  # not a test of silence
                await until(lambda: anchored[-1] == clock.now_ns())
            result = await rig.stop()
        anchors = [r for r in read(result.captures[0].path) if r.kind is Kind.CLOCK]
        assert len(anchors) == 4
        assert anchors[0].number == 0

    asyncio.run(run())
