"""A sink whose broker is away: named within seconds, nothing left behind, and the same sink opens when it is back."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection

from kcs.clock import SystemClock
from kcs.errors import KafkaError, KafkaUnreachableError
from kcs.kafka.client import Client
from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import cluster_id
from tests.kafka.wire import Proxy
from tests.realkafka import free_port

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sink_at(bootstrap: str, **options: Any) -> KafkaSink:
    return KafkaSink(KafkaSettings(bootstrap, connect_timeout_s=0.3, **options), SystemClock())


def sockets_open() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass  # the directory's own descriptor
    return found


@asynccontextmanager
async def nothing_left(*, sockets: bool = True) -> AsyncIterator[None]:
    """Of the block no task, socket, connection or complaint to the loop may be left.

    `sockets` False beside an embedded broker, which opens and closes its own in this process as it likes.
    """
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await asyncio.sleep(0)
    before = sockets_open()
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, (Client, AIOKafkaConnection))] == []
    assert complaints == []
    if sockets:
        assert sockets_open() <= before


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[str]:
    """A server on a free port that does this with each connection."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        while tasks:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def answer_versions(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The first request of a client is for the versions; after its answer this peer says nothing more."""
    size = int.from_bytes(await reader.readexactly(4))
    request = await reader.readexactly(size)
    versions = ((0, 0, 8), (3, 0, 5), (18, 0, 2), (22, 0, 1))
    body = request[4:8] + bytes(2) + len(versions).to_bytes(4)
    body += b"".join(each.to_bytes(2) for version in versions for each in version)
    writer.write(len(body).to_bytes(4) + body)
    await reader.read()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(4)


@pytest.mark.parametrize("talk", [silent, answer_versions, web, hang_up])
def test_a_peer_that_is_no_broker_is_unreachable_and_leaves_nothing(talk: Talk) -> None:
    async def run() -> None:
        async with serving(talk) as bootstrap, nothing_left():
            sink = sink_at(bootstrap)
            for _ in range(3):
                with pytest.raises(KafkaUnreachableError) as raised:
                    await asyncio.wait_for(sink.open(["upbit"], ["trade"]), 5)
                assert bootstrap in raised.value.where
                assert "-X security.protocol" in raised.value.remedy
            with pytest.raises(KafkaUnreachableError):
                await cluster_id(sink.settings)
            await sink.close()
            del sink, raised

    asyncio.run(run())


def test_a_host_that_does_not_answer_does_not_hide_the_next() -> None:
    """A full backlog is what a machine that is gone looks like: nothing at all comes back."""

    async def run() -> None:
        with EmbeddedBroker() as broker, socket.create_server(("127.0.0.1", free_port()), backlog=0) as full:
            host, port = full.getsockname()
            fillers = [socket.socket() for _ in range(2)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex((host, port))
            async with nothing_left(sockets=False):
                sink = sink_at(f"{host}:{port}")
                with pytest.raises(KafkaUnreachableError, match=r"nothing within 0\.3 s"):
                    await asyncio.wait_for(sink.open(["upbit"], ["trade"]), 5)
                for _ in range(4):  # the order of the addresses is by chance
                    both = sink_at(f"{host}:{port},{broker.bootstrap}")
                    await asyncio.wait_for(both.open(["upbit"], ["trade"]), 5)
                    await both.close()
                del sink, both
            for filler in fillers:
                filler.close()

    asyncio.run(run())


def test_the_same_sink_opens_when_the_broker_is_back() -> None:
    async def run() -> None:
        port = free_port()
        sink = sink_at(f"127.0.0.1:{port}")
        async with nothing_left():
            for _ in range(20):
                with pytest.raises(KafkaUnreachableError, match="no broker answers"):
                    await sink.open(["upbit"], ["trade"])
        with EmbeddedBroker() as broker:
            proxy = Proxy(int(broker.bootstrap.rpartition(":")[2]))
            with socket.create_server(("127.0.0.1", port)) as listening:
                await proxy.start(listening)
                await sink.open(["upbit"], ["trade"])
                sink.start(b"capture1")
                sink.emit(sink.route("trade", "upbit", "KRW-BTC"), b"[1]", 1, bytes(20), b"")
                await sink.drain()
                assert sink.acked == 1
                await sink.close()
                await proxy.stop()

    asyncio.run(run())


def test_an_open_that_is_given_up_leaves_nothing() -> None:
    async def run() -> None:
        async with serving(answer_versions) as bootstrap, nothing_left():
            sink = KafkaSink(KafkaSettings(bootstrap), SystemClock())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sink.open(["upbit"], ["trade"]), 0.05)
            await sink.close()
            del sink

    asyncio.run(run())


def test_unreachable_is_a_kafka_error() -> None:
    assert issubclass(KafkaUnreachableError, KafkaError)
