"""The server over a real local socket, spoken to by the websocket library's own client."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as library_connect
from websockets.exceptions import ConnectionClosed

from kcs.clock import NS_PER_MS, NS_PER_S, SystemClock
from kcs.errors import UsageError
from kcs.sim.fault_text import parse_faults
from kcs.sim.server import SimServer, serve
from kcs.sim.settings import SimSettings
from tests.sim.helpers import everything, request

T = TypeVar("T")


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[SimServer]:
    server = await serve(SimSettings(port=0, **options), SystemClock())
    try:
        yield server
    finally:
        await server.aclose()


def run(story: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(story(), 20)

    return asyncio.run(bounded())


def connect(url: str, **options: Any) -> library_connect:
    """Without the library's queue limit: a client that stopped reading could not see the answer to its close frame."""
    return library_connect(url, max_queue=None, **options)


async def take(client: ClientConnection, count: int) -> list[bytes]:
    return [as_bytes(await client.recv()) for _ in range(count)]


async def rest(client: ClientConnection) -> list[bytes]:
    """Everything until the connection ends."""
    frames: list[bytes] = []
    try:
        while True:
            frames.append(as_bytes(await client.recv()))
    except ConnectionClosed:
        return frames


def as_bytes(message: str | bytes) -> bytes:
    assert isinstance(message, bytes), "frames are binary"
    return message


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_client_gets_the_same_bytes_as_without_a_socket(compression: str | None) -> None:
    settings = SimSettings(rate=2_000, frames_max=600)

    async def story() -> tuple[list[bytes], int]:
        async with (
            served(rate=2_000, frames_max=600, compression=compression is not None) as server,
            connect(server.url, compression=compression) as client,
        ):
            await client.send(request(settings.markets, wire_format="SIMPLE").decode())
            frames = await rest(client)
            await server.wait_ended()
            assert client.close_code == 1000
            stats = server.stats()
            assert (stats.frames_sent, stats.market_frames, stats.slow_consumers) == (630, 600, 0)
            assert stats.bytes_sent == sum(map(len, frames))
            return frames, stats.clients_total

    assert run(story) == (everything(settings, "SIMPLE", 10), 1)


def test_several_clients_each_with_its_own_subscription() -> None:
    async def story() -> None:
        async with (
            served(rate=1_000) as server,
            connect(server.url) as first,
            connect(f"ws://127.0.0.1:{server.port}/any/path") as second,
        ):
            await first.send(request(["KRW-BTC"], ["trade"]))
            await second.send(request(["KRW-ETH"], ["orderbook"], wire_format="SIMPLE").decode())
            codes = {orjson.loads(frame)["code"] for frame in await take(first, 30)}
            keys = {(frame["ty"], frame["cd"]) for frame in map(orjson.loads, await take(second, 30))}
            assert codes == {"KRW-BTC"}
            assert keys == {("orderbook", "KRW-ETH")}
            assert server.stats().clients == 2

    run(story)


def test_pings_are_answered_and_the_text_ping_starts_nothing_at_once() -> None:
    async def story() -> None:
        async with served() as server, connect(server.url) as client:
            await client.send("PING")
            await (await client.ping(b"hello"))
            assert server.stats().frames_sent == 0

    run(story)


def test_an_error_closes_with_1000() -> None:
    async def story() -> None:
        async with served() as server, connect(server.url) as client:
            started_ns = SystemClock().monotonic_ns()
            await client.send('[{"type":"trade","codes":["KRW-BTC"]}]')
            (error,) = await rest(client)
            assert orjson.loads(error)["error"]["name"] == "NO_TICKET"
            assert client.close_code == 1000
            assert SystemClock().monotonic_ns() - started_ns >= 149 * NS_PER_MS

    run(story)


@pytest.mark.parametrize(("code", "seen"), [(1006, 1006), (1012, 1012), (4001, 4001)])
def test_the_drop_fault_over_the_wire(code: int, seen: int) -> None:
    async def story() -> int | None:
        async with served(faults=parse_faults(f"close_code={code}@after:1s")) as server:
            client = await connect(server.url)
            await rest(client)
            assert server.stats().clients == 0 or code != 1006
            return client.close_code

    assert run(story) == seen


def test_a_fragmented_request_is_one_request() -> None:
    async def story() -> None:
        async with served() as server, connect(server.url) as client:
            whole = request(["KRW-BTC"], ["ticker"]).decode()
            await client.send([whole[:9], whole[9:30], whole[30:]])
            assert orjson.loads((await take(client, 1))[0])["type"] == "ticker"

    run(story)


def test_a_slow_consumer_is_cut_off_and_others_are_not() -> None:
    async def story() -> None:
        async with served(rate=20_000, queue_bytes_max=200_000) as server, connect(server.url) as good:
            # A raw socket with a small buffer that subscribes and then never reads.
            with socket.socket() as lazy:
                lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                lazy.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(lazy, ("127.0.0.1", server.port))
                await loop.sock_sendall(lazy, handshake() + masked_text(request(server.settings.markets)))
                await good.send(request(["KRW-BTC"], ["trade"]))
                while server.stats().clients_total < 2 or server.stats().clients > 1:
                    await good.recv()
                assert server.stats().slow_consumers == 1
                assert await take(good, 5)

    run(story)


def handshake() -> bytes:
    return (
        b"GET /websocket/v1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


def masked_text(payload: bytes) -> bytes:
    """A text frame of 126 to 65535 bytes, masked with zeros."""
    return b"\x81\xfe" + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload


def test_the_market_list() -> None:
    def fetch(port: int, path: str) -> tuple[int, bytes, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]

    async def story() -> None:
        async with served(markets=("KRW-BTC", "BTC-ETH")) as server:
            for path in ("/v1/market/all", "/v1/market/all?is_details=true"):
                status, body, content_type = await asyncio.to_thread(fetch, server.port, path)
                assert (status, content_type) == (200, "application/json;charset=UTF-8")
                assert [entry["market"] for entry in orjson.loads(body)] == ["KRW-BTC", "BTC-ETH"]
                assert orjson.loads(body)[0] == {
                    "market": "KRW-BTC", "korean_name": "비트코인", "english_name": "Bitcoin",
                }  # fmt: skip
            assert server.stats().http_requests == 2

    run(story)


@pytest.mark.parametrize("noise", [b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_noise_on_the_port_does_no_harm(noise: bytes) -> None:
    async def story() -> None:
        async with served() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(noise)
            answer = await reader.read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
            writer.close()
            async with connect(server.url) as client:
                await client.send(request(["KRW-BTC"], ["ticker"]))
                assert await take(client, 1)

    run(story)


def test_frames_leave_when_due_spread_over_the_second() -> None:
    async def story() -> tuple[list[int], int]:
        clock = SystemClock()
        async with (
            served(rate=1_000, burst_percent=100, duration_ns=NS_PER_S, epoch_ns=None) as server,
            connect(server.url) as client,
        ):
            await client.send(request(server.settings.markets, ["orderbook"], is_only_realtime=True))
            late_ns = []
            try:
                while True:
                    frame = orjson.loads(await client.recv())
                    late_ns.append(clock.now_ns() - frame["timestamp"] * NS_PER_MS)
            except ConnectionClosed:
                return late_ns, server.stats().market_frames

    late_ns, frames = run(story)
    assert 980 <= frames <= 1_020
    assert len(late_ns) > 280
    assert min(late_ns) >= 0, "no frame leaves before its time"
    # With a machine shared with others only the middle is safe to judge; a bunch a second would be 500 ms.
    assert sorted(late_ns)[len(late_ns) // 2] < 100 * NS_PER_MS


def test_the_server_opens_the_market_at_once_when_told_so() -> None:
    async def story() -> int:
        async with served(rate=1_000, frames_max=50, wait_for_client=False) as server:
            await server.wait_ended()
            return server.stats().market_frames

    assert run(story) == 50


def test_aclose_says_goodbye_and_may_come_twice() -> None:
    async def story() -> int | None:
        async with served() as server:
            client = await connect(server.url)
            ended = asyncio.create_task(rest(client))
            await asyncio.sleep(0)
            await server.aclose()
            await server.wait_ended()
            await ended
            assert server.port == 0
            return client.close_code

    assert run(story) == 1001


def test_a_port_that_is_taken_is_a_usage_error() -> None:
    async def story() -> None:
        async with served() as server:
            with pytest.raises(UsageError, match="cannot listen") as caught:
                await serve(SimSettings(port=server.port), SystemClock())
            assert str(server.port) in str(caught.value)

    run(story)
