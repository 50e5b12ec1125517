"""The connection against an in-memory server: bytes in, calls out."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Opcode
from websockets.uri import parse_uri

from kcs.clock import NS_PER_S, SystemClock, VirtualClock
from kcs.errors import ConfigError
from kcs.live.actions import ConnectFailure, ConnectionEnd
from kcs.live.transport import LARGE_READ_BYTES, UNSENT_BYTES_MAX, ConnectFailed, Connection, Dialer, TransportSettings
from kcs.model import Kind
from tests.live.peer import Listener, Pair
from tests.live.rig import LOOPS
from tests.live.support import START_NS, settle

TEXT, BINARY = int(Kind.TEXT), int(Kind.BINARY)
Test = Callable[[], Coroutine[Any, Any, None]]


def on_loop(test: Test) -> Callable[[], None]:
    """Run an async test; every warning the loop has (a future never looked at) fails it."""

    def run() -> None:
        async def guarded() -> None:
            trouble: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
            await test()
            await settle()
            assert trouble == []

        asyncio.run(guarded())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


# ---------------------------------------------------------------- handshake


@on_loop
async def test_handshake_request_has_no_origin_and_no_extensions() -> None:
    pair = Pair().open()
    assert pair.request is not None
    headers = pair.request.headers
    assert pair.request.path == "/stream"
    assert headers["Host"] == "venue.test"
    assert headers["User-Agent"] == "kcs"
    assert "Origin" not in headers
    assert "Sec-WebSocket-Extensions" not in headers
    assert pair.listener.heard == [("opened", START_NS)]
    await pair.connection.handshaken


@on_loop
async def test_an_extension_we_did_not_ask_for_is_refused() -> None:
    pair = Pair()
    answer = pair.accept().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    pair.connection.data_received(answer)
    with pytest.raises(ConnectFailed) as failed:
        await pair.connection.handshaken
    assert failed.value.failure.cause == "handshake"
    assert pair.listener.heard == []
    assert pair.transport.aborted


@on_loop
async def test_everything_split_at_every_byte() -> None:
    """Handshake and frames arrive byte by byte, and in two pieces cut at each place: the same is heard."""

    def server_bytes(pair: Pair) -> bytes:
        answer = pair.accept()
        pair.server.send_binary(b'{"a":1}')
        pair.server.send_text("글".encode(), fin=False)
        pair.server.send_ping(b"p")
        pair.server.send_continuation(b"x" * 200, fin=True)
        pair.server.send_pong(b"kcs 1")
        pair.server.send_binary(b"")
        pair.server.send_binary(b"y" * 70_000)
        return answer + b"".join(pair.server.data_to_send())

    expected = [
        ("opened", START_NS),
        ("frame", BINARY, START_NS, b'{"a":1}'),
        ("frame", TEXT, START_NS, "글".encode() + b"x" * 200),
        ("pong", START_NS, b"kcs 1"),
        ("frame", BINARY, START_NS, b""),
        ("frame", BINARY, START_NS, b"y" * 70_000),
    ]
    whole = Pair()
    data = server_bytes(whole)
    whole.connection.data_received(data)
    assert whole.listener.heard == expected

    single = Pair()
    for byte in server_bytes(single)[:600]:
        single.connection.data_received(bytes([byte]))
    assert single.listener.heard == expected[:-1]

    for cut in range(1, 520):
        pair = Pair()
        data = server_bytes(pair)
        pair.connection.data_received(data[:cut])
        pair.connection.data_received(data[cut:])
        assert pair.listener.heard == expected


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (
            b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno",
            ConnectFailure("http", "Too Many Requests", 429, 7.0),
        ),
        (b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", ConnectFailure("http", "Teapot", 418)),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", ConnectFailure("http", "Forbidden", 403)),
        (
            b"HTTP/1.1 503 Busy\r\nRetry-After: Tue, 14 Nov 2023 22:15:00 GMT\r\nContent-Length: 0\r\n\r\n",
            ConnectFailure("http", "Busy", 503, 100.0),
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ConnectFailure("http", "OK", 200)),
        (b"SSH-2.0-OpenSSH_9\r\n", ConnectFailure("handshake", "did not receive a valid HTTP response")),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: wrong\r\n\r\n",
            ConnectFailure("handshake", "invalid Sec-WebSocket-Accept header: wrong"),
        ),
    ],
)
def test_refused_upgrades_have_a_typed_cause(answer: bytes, failure: ConnectFailure) -> None:
    @on_loop
    async def check() -> None:
        pair = Pair()
        for byte in answer:
            pair.connection.data_received(bytes([byte]))
        with pytest.raises(ConnectFailed) as failed:
            await pair.connection.handshaken
        assert failed.value.failure == failure
        assert pair.transport.aborted
        pair.lose()
        assert pair.listener.heard == []

    check()


@on_loop
async def test_a_connection_cut_during_the_handshake() -> None:
    for error, cause in ((None, "handshake"), (ConnectionResetError("reset"), "network")):
        pair = Pair()
        pair.connection.data_received(pair.accept()[:20])
        pair.lose(error)
        with pytest.raises(ConnectFailed) as failed:
            await pair.connection.handshaken
        assert failed.value.failure.cause == cause
        assert pair.listener.heard == []


# ---------------------------------------------------------------- frames


@on_loop
async def test_one_time_stamp_per_read_and_it_is_read_first() -> None:
    pair = Pair().open()

    class Ticking(VirtualClock):
        reads = 0

        def now_ns(self) -> int:
            self.reads += 1
            return START_NS + self.reads

    clock = Ticking()
    pair.connection._now_ns = clock.now_ns
    for _ in range(3):
        pair.server.send_binary(b"x")
        pair.server.send_binary(b"y")
        pair.from_server()
    assert [item[2] - START_NS for item in pair.listener.heard if item[0] == "frame"] == [1, 1, 2, 2, 3, 3]
    assert clock.reads == 3


@on_loop
async def test_a_fragmented_message_has_the_time_of_its_last_fragment() -> None:
    pair = Pair().open()
    for payload, fin in ((b"a", False), (b"b", False), (b"c", True)):
        if payload == b"a":
            pair.server.send_text(payload, fin)
        else:
            pair.server.send_continuation(payload, fin)
        pair.clock.advance(NS_PER_S)
        pair.from_server()
    assert pair.listener.heard[1:] == [("frame", TEXT, START_NS + 3 * NS_PER_S, b"abc")]


@on_loop
async def test_invalid_utf8_in_a_text_message_is_captured_as_it_is() -> None:
    pair = Pair().open()
    pair.server.send_text(b"\xff\xfe{")
    pair.from_server()
    assert pair.listener.heard[1:] == [("frame", TEXT, START_NS, b"\xff\xfe{")]
    assert not pair.transport.aborted


@on_loop
async def test_pings_are_answered() -> None:
    pair = Pair().open()
    pair.server.send_ping(b"are you there")
    pair.from_server()
    (pong,) = pair.at_server()
    assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"are you there")
    assert pair.listener.heard == [("opened", START_NS)]


@on_loop
async def test_sending() -> None:
    pair = Pair().open()
    assert pair.connection.send_text('[{"ticket":"글"}]')
    pair.connection.ping(b"kcs 1")
    text, ping = pair.at_server()
    assert (text.opcode, bytes(text.data).decode()) == (Opcode.TEXT, '[{"ticket":"글"}]')
    assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"kcs 1")


@on_loop
async def test_nothing_is_sent_before_the_handshake_or_after_the_end() -> None:
    pair = Pair()
    assert not pair.connection.send_text("early")
    pair.connection.ping(b"early")
    pair.open()
    pair.lose()
    assert not pair.connection.send_text("late")
    pair.connection.ping(b"late")
    pair.connection.close(1000)
    assert pair.transport.take() == b""


# ---------------------------------------------------------------- bounds


def frame_head(opcode: int, length: int, fin: bool = True) -> bytes:
    return struct.pack("!BBQ", (0x80 if fin else 0) | opcode, 127, length)


@on_loop
async def test_a_30_mb_frame_closes_with_1009_and_is_not_buffered() -> None:
    pair = Pair(frame_bytes_max=8 << 20).open()
    pair.connection.data_received(frame_head(2, 30_000_000) + b"x" * 65_536)
    for _ in range(400):
        pair.connection.data_received(b"x" * 65_536)
        assert len(pair.connection._websocket.reader.buffer) == 0
    (close,) = pair.at_server()
    assert close.opcode is Opcode.CLOSE
    assert struct.unpack("!H", bytes(close.data)[:2]) == (1009,)
    pair.lose()
    end = pair.listener.end()
    assert (end.code, end.cause) == (1009, "oversize")
    assert pair.listener.payloads() == []


@on_loop
async def test_a_frame_of_exactly_the_limit_passes() -> None:
    pair = Pair(frame_bytes_max=1000).open()
    pair.server.send_binary(b"x" * 1000)
    pair.from_server()
    assert pair.listener.payloads() == [b"x" * 1000]
    pair.server.send_binary(b"x" * 1001)
    pair.from_server()
    pair.lose()
    assert pair.listener.end().code == 1009


@on_loop
async def test_fragments_are_bounded_in_their_sum() -> None:
    pair = Pair(frame_bytes_max=1000).open()
    pair.server.send_binary(b"x" * 600, fin=False)
    pair.server.send_continuation(b"x" * 600, fin=True)
    pair.from_server()
    pair.lose()
    assert (pair.listener.end().code, pair.listener.payloads()) == (1009, [])


@on_loop
async def test_endless_empty_fragments_take_no_memory() -> None:
    pair = Pair(frame_bytes_max=1000).open()
    pair.connection.data_received(b"\x02\x00" + b"\x00\x00" * 100_000 + b"\x80\x01x")
    assert pair.listener.payloads() == [b"x"]
    assert pair.connection._partial is None


@on_loop
async def test_a_length_of_2_to_the_63() -> None:
    pair = Pair().open()
    pair.connection.data_received(frame_head(2, 1 << 63))
    pair.lose()
    assert pair.listener.end().code == 1009


@on_loop
async def test_a_peer_that_pings_but_does_not_read_is_cut_off() -> None:
    pair = Pair().open()
    pair.connection.pause_writing()
    ping = b"\x89\x7d" + b"p" * 125
    for _ in range(UNSENT_BYTES_MAX // 131 + 2):
        pair.connection.data_received(ping)
    assert pair.transport.aborted
    assert pair.transport.take() == b""
    pair.lose()
    assert pair.listener.end() == ConnectionEnd(1006, "", "write_stalled")


@on_loop
async def test_what_could_not_be_written_is_written_later() -> None:
    pair = Pair().open()
    pair.connection.pause_writing()
    assert pair.connection.send_text("one")
    assert pair.connection.send_text("two")
    assert pair.transport.take() == b""
    pair.connection.resume_writing()
    assert [bytes(frame.data) for frame in pair.at_server()] == [b"one", b"two"]
    assert pair.connection.send_text("three")
    assert [bytes(frame.data) for frame in pair.at_server()] == [b"three"]


# ---------------------------------------------------------------- when more comes than can be taken


def reads(pair: Pair) -> bool:
    return pair.transport.reading


def large_read(pair: Pair) -> bytes:
    """Many frames, together a large read."""
    for number in range(LARGE_READ_BYTES // 1000 + 1):
        pair.server.send_binary(b"%01000d" % number)
    return b"".join(pair.server.data_to_send())


@on_loop
async def test_after_a_large_read_everything_else_has_a_turn() -> None:
    pair = Pair().open()
    pair.server.send_binary(b"small")
    pair.from_server()
    assert reads(pair)
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(lambda: turns.append(f"other, reading {reads(pair)}"))
    pair.connection.data_received(large_read(pair))
    assert not reads(pair)
    assert len(pair.listener.heard) == 2 + LARGE_READ_BYTES // 1000 + 1  # all of it was handed on
    await asyncio.sleep(0)
    assert turns == ["other, reading False"]
    assert reads(pair)


@on_loop
async def test_a_connection_on_hold_reads_nothing_until_it_is_let_go() -> None:
    pair = Pair().open()
    pair.connection.hold(True)
    pair.connection.hold(True)
    assert not reads(pair)
    pair.connection.ping(b"kcs 1")  # the venue still hears that we are here
    assert [frame.data for frame in pair.at_server()] == [b"kcs 1"]
    await settle()
    assert not reads(pair)
    pair.connection.hold(False)
    assert reads(pair)


@on_loop
async def test_hold_and_turns_together() -> None:
    """A large read and a hold in either order: it reads again when both are over, and is asked once each."""
    pair = Pair().open()
    pair.connection.data_received(large_read(pair))
    pair.connection.hold(True)
    await settle()
    assert not reads(pair)
    pair.connection.data_received(large_read(pair))  # it was on its way
    await settle()
    assert not reads(pair)
    pair.connection.hold(False)
    assert reads(pair)
    pair.connection.data_received(large_read(pair))
    pair.connection.hold(True)
    pair.connection.hold(False)
    assert reads(pair)
    await settle()
    assert reads(pair)


@on_loop
async def test_a_connection_that_ends_while_it_pauses() -> None:
    pair = Pair().open()
    pair.connection.data_received(large_read(pair))
    pair.lose()
    await settle()
    assert not reads(pair)
    pair.connection.hold(True)
    pair.connection.hold(False)
    held = Pair().open()
    held.connection.hold(True)
    held.connection.abort()
    held.connection.hold(False)  # nobody resumes what is closing
    assert not reads(held)


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_a_flood_leaves_the_loop_to_others(loop: Any) -> None:
    """A real socket with megabytes waiting: between any two large reads the loop goes round."""
    turns: list[int] = []
    frames: list[bytes] = []
    reads_at: list[int] = []

    class Counting(Listener):
        def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
            frames.append(payload)
            if not reads_at or reads_at[-1] != len(turns):
                reads_at.append(len(turns))

    sent = [b"%01000d" % number for number in range(20_000)]

    async def flood(websocket: ServerConnection) -> None:
        transport = websocket.transport
        protocol = websocket.protocol
        for payload in sent:
            protocol.send_binary(payload)
        transport.write(b"".join(protocol.data_to_send()))
        await websocket.wait_closed()

    async def run() -> None:
        def turn() -> None:
            turns.append(1)
            if len(frames) < len(sent):
                asyncio.get_running_loop().call_soon(turn)

        async with serve(flood, "127.0.0.1", 0, compression=None) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
            connection = await Dialer(url, SystemClock(), TransportSettings()).dial(Counting())
            turn()
            async with asyncio.timeout(20):
                while len(frames) < len(sent):  # noqa: ASYNC110 - the flood has no event
                    await asyncio.sleep(0)
            connection.abort()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
    assert frames == sent
    assert len(reads_at) >= len(b"".join(sent)) // (2 * 256 * 1024)


# ---------------------------------------------------------------- ends


@on_loop
async def test_the_server_closes() -> None:
    for code, reason in ((1000, ""), (1001, "going away"), (1012, "restart"), (4000, "점검")):
        pair = Pair().open()
        pair.server.send_binary(b"last")
        pair.server.send_close(code, reason)
        pair.from_server()
        (echo,) = pair.at_server()
        assert struct.unpack("!H", bytes(echo.data)[:2]) == (code,)
        pair.clock.advance(5)
        pair.lose()
        assert pair.listener.heard[1:] == [
            ("frame", BINARY, START_NS, b"last"),
            ("closed", START_NS + 5, ConnectionEnd(code, reason, "remote")),
        ]


@on_loop
async def test_a_close_frame_without_a_code() -> None:
    pair = Pair().open()
    pair.server.send_close()
    pair.from_server()
    pair.lose()
    assert pair.listener.end() == ConnectionEnd(1005, "", "remote")


@on_loop
async def test_the_socket_is_lost_without_a_close_frame() -> None:
    for error in (None, ConnectionResetError()):
        pair = Pair().open()
        pair.lose(error)
        assert pair.listener.end() == ConnectionEnd(1006, "", "lost")


@on_loop
async def test_we_close_and_frames_on_the_way_still_count() -> None:
    pair = Pair().open()
    pair.server.send_binary(b"on the way")
    on_the_way = b"".join(pair.server.data_to_send())
    pair.connection.close(1000, "bye")
    (close,) = pair.at_server()
    assert bytes(close.data) == struct.pack("!H", 1000) + b"bye"
    pair.connection.data_received(on_the_way)
    pair.from_server()
    pair.lose()
    assert pair.listener.payloads() == [b"on the way"]
    assert pair.listener.end() == ConnectionEnd(1000, "bye", "remote")


@on_loop
async def test_a_peer_that_does_not_answer_the_close_is_cut_off() -> None:
    pair = Pair(close_within_s=0.0).open()
    pair.connection.close(1001, "no pong")
    assert not pair.transport.aborted
    await settle()
    assert pair.transport.aborted
    pair.lose()
    assert pair.listener.end() == ConnectionEnd(1006, "", "lost")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xf2\x01x", 1002),  # reserved bits
        (b"\x83\x00", 1002),  # reserved opcode
        (b"\x82\x81aaaax", 1002),  # masked by a server
        (b"\x80\x01x", 1002),  # continuation of nothing
        (b"\x02\x01x\x82\x01y", 1002),  # a message within a message
        (b"\x89\x7e\x00\x80" + b"p" * 128, 1002),  # a long ping
        (b"\x09\x00", 1002),  # a fragmented ping
        (b"\x88\x01x", 1002),  # half a close code
        (b"\x88\x02\x03\xe7", 1002),  # close code 999
        (b"\x88\x03\x03\xe8\xff", 1007),  # a close reason that is not UTF-8
    ],
)
def test_a_broken_peer_is_closed_with_the_right_code(data: bytes, code: int) -> None:
    @on_loop
    async def check() -> None:
        for pieces in ([data], [bytes([byte]) for byte in data]):
            pair = Pair().open()
            pair.server.send_binary(b"good")
            pair.from_server()
            for piece in pieces:
                pair.connection.data_received(piece)
            pair.lose()
            end = pair.listener.end()
            assert (end.code, end.cause) == (code, "protocol_error")
            assert pair.listener.payloads() == [b"good"]

    check()


@on_loop
async def test_a_handler_that_raises_is_a_crash_not_a_loss() -> None:
    class Broken(Listener):
        def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
            raise ZeroDivisionError

    pair = Pair(listener=Broken()).open()
    pair.server.send_binary(b"x")
    with pytest.raises(ZeroDivisionError) as raised:
        pair.from_server()
    pair.connection.connection_lost(raised.value)  # as asyncio does
    assert pair.listener.heard[1:] == [
        ("crashed", raised.value),
        ("closed", START_NS, ConnectionEnd(1006, "", "internal")),
    ]


# ---------------------------------------------------------------- dialing


SETTINGS = TransportSettings(handshake_within_s=5.0)


class Loop:
    """Stands in for the running loop's `create_connection`: notes how it is called and connects in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "create_connection", self.create_connection)

    async def create_connection(self, factory: Any, host: str, port: int, **options: Any) -> Any:
        self.calls.append((host, port, options))
        raise ConnectionRefusedError("nobody there")


def dial_failure(dialer: Dialer) -> Coroutine[Any, Any, ConnectFailure]:
    async def dial() -> ConnectFailure:
        with pytest.raises(ConnectFailed) as failed:
            await dialer.dial(Listener())
        return failed.value.failure

    return dial()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy", "socks_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_tls_is_verified_with_the_hosts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_loop
    async def check() -> None:
        loop = Loop(monkeypatch)
        failure = await dial_failure(Dialer("wss://api.upbit.com/websocket/v1", SystemClock(), SETTINGS))
        assert failure.cause == "refused"
        ((host, port, options),) = loop.calls
        assert (host, port, options["server_hostname"]) == ("api.upbit.com", 443, "api.upbit.com")
        context = options["ssl"]
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2

    check()


def test_no_tls_for_ws(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_loop
    async def check() -> None:
        loop = Loop(monkeypatch)
        await dial_failure(Dialer("ws://127.0.0.1:9801/x", SystemClock(), SETTINGS))
        assert loop.calls == [("127.0.0.1", 9801, {"ssl": None, "server_hostname": None})]

    check()


@pytest.mark.parametrize(
    "url",
    [
        "http://x", "x", "ws://", "ws://x/#f", "", "ws://user@x/",
        "ws://x:99999/", "ws://x:port/", "ws://[::1", "ws://\u00e9..x/",
    ],
)  # fmt: skip
def test_a_bad_url_is_told_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ConfigError):
        Dialer(url, SystemClock(), SETTINGS)


@pytest.mark.parametrize("proxy", ["socks5h://p:1080", "ftp://p:1", "http://user@p:1"])
def test_a_proxy_that_cannot_be_used_is_told_at_once(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(ConfigError) as error:
        Dialer("wss://api.upbit.com/", SystemClock(), SETTINGS)
    assert "prox" in str(error.value)


@on_loop
async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        failure = await dial_failure(Dialer(f"ws://127.0.0.1:{port}/", SystemClock(), SETTINGS))
    assert failure.cause == "refused"


@on_loop
async def test_a_host_name_that_cannot_be() -> None:
    failure = await dial_failure(Dialer(f"ws://{'a' * 64}.test/", SystemClock(), SETTINGS))
    assert failure.cause == "dns"


@on_loop
async def test_a_server_that_never_answers_times_out() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dialer = Dialer(f"ws://127.0.0.1:{port}/", SystemClock(), TransportSettings(handshake_within_s=0.05))
        assert (await dial_failure(dialer)).cause == "timeout"
        await gone.wait()  # nothing stays open


@on_loop
async def test_a_cancelled_attempt_leaves_nothing_open() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            arrived.set()
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dialing = asyncio.create_task(Dialer(f"ws://127.0.0.1:{port}/", SystemClock(), SETTINGS).dial(Listener()))
        await arrived.wait()
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing
        await gone.wait()


@on_loop
async def test_a_server_without_tls_is_a_tls_failure() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await dial_failure(Dialer(f"wss://127.0.0.1:{port}/", SystemClock(), SETTINGS))).cause == "tls"


@on_loop
async def test_nodelay_is_set() -> None:
    options: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.close()

    class Noting(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            super().connection_made(transport)
            options.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        uri = parse_uri(f"ws://127.0.0.1:{port}/")
        connection = Noting(uri, SystemClock(), Listener(), SETTINGS)
        await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", port)
        with pytest.raises(ConnectFailed):
            await connection.handshaken
    assert options[0] != 0


def test_only_the_public_parts_of_the_library_are_used() -> None:
    """Nothing with an underscore, and nothing that is not in a module's `__all__` where it has one."""
    import websockets.client
    import websockets.frames
    import websockets.http11
    import websockets.protocol
    import websockets.proxy
    import websockets.uri

    assert "ClientProtocol" in websockets.client.__all__
    assert {"Frame", "Opcode"} <= set(websockets.frames.__all__)
    assert "State" in websockets.protocol.__all__
    assert "SEND_EOF" in websockets.protocol.__all__
    assert {"get_proxy", "parse_proxy", "Proxy"} <= set(websockets.proxy.__all__)
    assert "parse_uri" in websockets.uri.__all__
    assert "Response" in websockets.http11.__all__
