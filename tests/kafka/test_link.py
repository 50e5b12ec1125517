"""Connecting: a broker that is away, silent or something else is named within seconds."""

from __future__ import annotations

import asyncio

import pytest

from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka.link import _resumed, connect
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import cluster_id
from tests.realkafka import free_port


def test_a_broker_that_is_not_there() -> None:
    bootstrap = f"127.0.0.1:{free_port()}"

    async def run() -> None:
        sink = KafkaSink(KafkaSettings(bootstrap), SystemClock())
        with pytest.raises(KafkaError) as raised:
            await asyncio.wait_for(sink.open(["upbit"], ["trade"]), 5)
        assert bootstrap in str(raised.value)
        assert "-b HOST:PORT" in raised.value.remedy
        await sink.close()
        with pytest.raises(KafkaError, match=bootstrap):
            await cluster_id(KafkaSettings(bootstrap))

    asyncio.run(run())


def test_a_port_that_says_nothing() -> None:
    async def run() -> None:
        async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silence, "127.0.0.1") as server:
            bootstrap = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(KafkaError, match=r"nothing within 0\.3 s"):
                await asyncio.wait_for(connect(KafkaSettings(bootstrap, connect_timeout_s=0.3), SystemClock()), 3)

    asyncio.run(run())


def test_something_that_is_not_kafka() -> None:
    async def run() -> None:
        async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(web, "127.0.0.1") as server:
            bootstrap = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(KafkaError, match="no broker answers"):
                await asyncio.wait_for(connect(KafkaSettings(bootstrap, connect_timeout_s=1), SystemClock()), 3)

    asyncio.run(run())


def test_a_coroutine_that_waits_after_all_is_finished_as_a_task() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()

        async def sending() -> int:
            try:
                await first
            except KeyError:
                return int(await second)
            raise AssertionError

        started = sending()
        waiting_for = started.send(None)

        async def rest() -> int:
            return int(await _resumed(started, waiting_for))

        task = loop.create_task(rest())
        await asyncio.sleep(0)
        first.set_exception(KeyError())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.set_result(7)
        assert await task == 7

    asyncio.run(run())
