"""Faults over a real local socket: what a client of the served exchange meets, and that it is what the log says."""

from __future__ import annotations

import asyncio
import socket

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake

from kcs.clock import NS_PER_MS, NS_PER_S, SystemClock
from kcs.sim.fault_log import FaultEntry
from kcs.sim.fault_text import parse_faults
from kcs.sim.link import dial
from kcs.sim.settings import SimSettings
from kcs.sim.upbit import UpbitExchange
from tests.sim.helpers import everything, payloads, request
from tests.sim.test_server import connect, handshake, masked_text, rest, run, served, take

ALL = SimSettings().markets
SUBSCRIPTION = request(ALL, wire_format="SIMPLE")
MESSAGES = "drop=3%,duplicate=3%,bad_json=2%,truncated_json=2%,reorder=2%,junk@every:50,market_silent=200ms@every:700ms"


async def raw(port: int, *, subscribe: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(handshake() + (masked_text(request(ALL, ["trade"])) if subscribe else b""))
    return reader, writer


async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bool]:
    """(bytes after the handshake until the connection ended, whether by a reset)"""
    got, reset = b"", False
    try:
        while part := await reader.read(65_536):
            got += part
    except ConnectionResetError:
        reset = True
    writer.close()
    return len(got.partition(b"\r\n\r\n")[2]), reset


def in_memory(settings: SimSettings) -> tuple[list[bytes], list[FaultEntry]]:
    exchange = UpbitExchange(settings, 0)
    client = dial(exchange, 0)
    got = payloads(client.receive(0, "text", SUBSCRIPTION) + client.poll(10 * NS_PER_S))
    return got, exchange.fault_log.ordered()


@pytest.mark.parametrize("network", ["", ",latency=20ms,jitter=15ms,slicer=400B", ",limit_data=420KB"])
def test_the_same_goes_wrong_over_a_socket_as_in_memory(network: str) -> None:
    """Same frames to the client, same log but for the moments at which the network's own entries began."""
    faults = parse_faults(MESSAGES + network)
    wanted, log = in_memory(SimSettings(rate=1_000, frames_max=900, faults=faults))

    async def story() -> None:
        async with served(rate=1_000, frames_max=900, faults=faults) as server, connect(server.url) as client:
            await client.send(SUBSCRIPTION.decode())
            assert await rest(client) == wanted
            assert client.close_code == (1006 if "limit_data" in network else 1000)
            told = server.fault_log.ordered()
            if "limit_data" not in network:
                assert [one for one in told if one.crc is not None] == [one for one in log if one.crc is not None]
            assert {one.fault for one in told} >= {"drop", "duplicate", "reorder", "junk"}

    assert wanted != everything(SimSettings(rate=1_000, frames_max=900), "SIMPLE", 10)
    run(story)


def test_latency_on_the_wire() -> None:
    async def story() -> None:
        clock = SystemClock()
        faults = parse_faults("latency=150ms")
        async with served(faults=faults, epoch_ns=None, rate=500) as server:
            began_ns = clock.monotonic_ns()
            async with connect(server.url) as client:
                assert clock.monotonic_ns() - began_ns >= 150 * NS_PER_MS, "the handshake's answer is late too"
                await client.send(request(ALL, ["orderbook"], is_only_realtime=True).decode())
                for payload in await take(client, 20):
                    assert clock.now_ns() - orjson.loads(payload)["timestamp"] * NS_PER_MS >= 150 * NS_PER_MS

    run(story)


def test_a_reset_is_a_reset() -> None:
    async def story() -> None:
        async with served(rate=1_000, faults=parse_faults("reset_peer@at:300ms")) as server:
            size, reset = await gone(*await raw(server.port))
            assert size > 0
            assert reset
            assert [entry.at_ns for entry in server.fault_log.of("reset_peer")] == [300 * NS_PER_MS]
            async with connect(server.url) as client:
                await client.send(SUBSCRIPTION.decode())
                await take(client, 5)

    run(story)


def test_a_bare_reset_or_timeout_hits_the_handshake() -> None:
    async def story() -> None:
        async with served(faults=parse_faults("reset_peer")) as server:
            with pytest.raises((ConnectionResetError, InvalidHandshake, EOFError)):
                await connect(server.url)
        async with served(faults=parse_faults("timeout=200ms")) as server:
            began_ns = SystemClock().monotonic_ns()
            assert await gone(*await raw(server.port, subscribe=False)) == (0, False)
            assert SystemClock().monotonic_ns() - began_ns >= 199 * NS_PER_MS

    run(story)


def test_limit_data_counts_bytes_of_the_websocket() -> None:
    async def story() -> None:
        async with served(rate=1_000, faults=parse_faults("limit_data=20000B")) as server:
            size, reset = await gone(*await raw(server.port))
            assert (size, reset) == (20_000, False)

    run(story)


def test_a_slow_close_leaves_the_connection_half_dead() -> None:
    async def story() -> None:
        clock = SystemClock()
        faults = parse_faults("slow_close=400ms,close_code=1006@at:100ms")
        async with served(rate=1_000, faults=faults) as server:
            reader, writer = await raw(server.port)
            began_ns = clock.monotonic_ns()
            await gone(reader, writer)
            assert clock.monotonic_ns() - began_ns >= 480 * NS_PER_MS
            assert [entry.at_ns for entry in server.fault_log.of("close_code")] == [100 * NS_PER_MS]

    run(story)


def test_the_slicer_and_the_bandwidth_lose_nothing() -> None:
    faults = parse_faults("slicer=200B:50B:20us,bandwidth=400KB/s")

    async def story() -> list[bytes]:
        async with served(rate=2_000, faults=faults) as server, connect(server.url) as client:
            began_ns = SystemClock().monotonic_ns()
            await client.send(SUBSCRIPTION.decode())
            got = await take(client, 180)
            assert SystemClock().monotonic_ns() - began_ns >= sum(map(len, got)) * NS_PER_S // 400_000
            return got

    assert run(story) == everything(SimSettings(rate=2_000), "SIMPLE", 1)[:180]


def test_who_lets_too_much_wait_is_a_slow_consumer() -> None:
    async def story() -> None:
        faults = parse_faults("latency=10s")
        async with served(rate=5_000, faults=faults, queue_bytes_max=200_000, wait_for_client=False) as server:
            reader, writer = await raw(server.port)
            assert await gone(reader, writer) == (0, False)
            assert server.stats().slow_consumers == 1
            assert server.fault_log.counts["overflow"] == 1

    run(story)


def test_ignored_pings_over_the_wire() -> None:
    async def story() -> None:
        async with served(faults=parse_faults("ping_ignored@every:2")) as server, connect(server.url) as client:
            pongs = [await client.ping(f"{n}") for n in range(4)]
            await pongs[0]
            await pongs[2]  # the library takes a pong for the answer to all pings before it
            assert [entry.detail for entry in server.fault_log.of("ping_ignored")] == [b"1".hex(), b"3".hex()]
            assert not pongs[3].done()

    run(story)


def test_a_silent_stall_answers_pings() -> None:
    async def story() -> None:
        faults = parse_faults("silent_stall=10s@at:100ms")
        async with served(rate=1_000, faults=faults) as server, connect(server.url) as client:
            await client.send(SUBSCRIPTION.decode())
            while not server.fault_log.counts["silent_stall"]:
                await (await client.ping())
            sent = server.stats().frames_sent
            await (await client.ping("still"))
            assert server.stats().frames_sent == sent

    run(story)


@pytest.mark.parametrize("faults", ["latency=30s", "timeout=0s@at:50ms", "stall=30s@at:50ms", "slow_close=30s"])
def test_the_server_ends_in_time_whatever_the_network_is_like(faults: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kcs.sim.server._LINGER_S", 0.2)

    async def story() -> float:
        async with served(rate=500, faults=parse_faults(faults)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(handshake() + masked_text(request(ALL, ["trade"])))
                async with asyncio.timeout(5):
                    while not server.exchange.market:  # noqa: ASYNC110 - it has no event
                        await asyncio.sleep(0)
                began_ns = SystemClock().monotonic_ns()
                await server.aclose()
                return (SystemClock().monotonic_ns() - began_ns) / NS_PER_S

    assert run(story) < 3


def test_a_client_reads_the_end_of_the_market_through_a_slow_network() -> None:
    async def story() -> tuple[int, int | None]:
        async with served(rate=1_000, frames_max=100, faults=parse_faults("latency=500ms")) as server:
            client: ClientConnection = await connect(server.url)
            await client.send(SUBSCRIPTION.decode())
            frames = await rest(client)
            return len(frames), client.close_code

    assert run(story) == (130, 1000)


def test_a_closed_connection_is_told_to_the_library() -> None:
    async def story() -> None:
        async with served(rate=500, faults=parse_faults("close_code=1012@at:200ms,latency=50ms")) as server:
            client = await connect(server.url)
            await client.send(SUBSCRIPTION.decode())
            assert await rest(client)
            assert client.close_code == 1012

    run(story)
