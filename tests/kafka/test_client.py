"""aiokafka's client as adopted: how often it asks, whom it asks, and whom it does not believe."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient

from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka.client import Client, OtherCluster, adopt
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import cluster_id
from kcs.sink import POSITION
from tests.kafka.mockcluster import MockCluster
from tests.kafka.wire import Proxy
from tests.realkafka import free_port


@asynccontextmanager
async def connected(bootstrap: str, *, connect_s: float = 0.3) -> AsyncIterator[Client]:
    client = adopt(AIOKafkaClient(bootstrap_servers=bootstrap, retry_backoff_ms=100), connect_s)
    await client.bootstrap()
    try:
        yield client
    finally:
        await client.close()


def test_a_partition_without_a_leader_makes_no_storm_of_requests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    moments: list[float] = []
    enough = asyncio.Event()
    ask = Client._ask

    async def counted(self: Client, conn: Any, request: Any, cluster: Any) -> bool:
        moments.append(asyncio.get_running_loop().time())
        if len(moments) == 40:
            enough.set()
        return await ask(self, conn, request, cluster)

    async def run() -> None:
        with MockCluster() as cluster:
            cluster.create_topic("trade.upbit", 1)
            sink = KafkaSink(KafkaSettings(cluster.bootstrap), SystemClock())
            await sink.open(["upbit"], ["trade"])
            sink.start(b"capture1")
            cluster.set_leader("trade.upbit", 0, -1)
            monkeypatch.setattr(Client, "_ask", counted)
            sink.emit(sink.route("trade", "upbit", "KRW-BTC"), b"[1]", 1, POSITION.pack(0, 0, 1), b"")
            await asyncio.wait_for(enough.wait(), 20)
            assert moments[-1] - moments[0] > 2.0  # 16 at once, then ten a second; it was hundreds
            cluster.set_leader("trade.upbit", 0, 1)
            await asyncio.wait_for(sink.drain(), 10)
            assert sink.acked == 1
            await sink.close()

    asyncio.run(run())


def test_a_frozen_broker_does_not_hold_up_the_metadata() -> None:
    async def run() -> None:
        with MockCluster(brokers=2) as cluster:
            async with connected(cluster.bootstrap) as client:
                for node in (1, 2):
                    assert await client._get_conn(node) is not None
                cluster.set_delay_ms(60_000, broker=1)
                started_s = asyncio.get_running_loop().time()
                for _ in range(6):  # whom to ask first is by chance
                    assert await client.force_metadata_update()
                assert asyncio.get_running_loop().time() - started_s < 6 * 0.6

    asyncio.run(run())


def test_when_all_brokers_have_moved_the_first_address_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def run() -> None:
        with MockCluster() as cluster, socket.create_server(("127.0.0.1", free_port())) as listening:
            real_port = int(cluster.bootstrap.rpartition(":")[2])
            proxy = Proxy(real_port)
            await proxy.start(listening)
            cluster.advertise(listening.getsockname()[1])
            async with connected(cluster.bootstrap) as client:
                assert [broker.port for broker in client.cluster.brokers()] == [listening.getsockname()[1]]
                await client.force_metadata_update()
                await proxy.stop()
                listening.close()
                cluster.advertise(real_port)
                assert await client.force_metadata_update()
                assert [broker.port for broker in client.cluster.brokers()] == [real_port]

    asyncio.run(run())


def test_another_cluster_at_the_same_address_is_not_taken_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def run() -> None:
        with (
            MockCluster() as first,
            MockCluster() as second,
            socket.create_server(("127.0.0.1", free_port())) as listening,
        ):
            port = listening.getsockname()[1]
            for cluster in (first, second):
                cluster.advertise(port)
            proxies = [Proxy(int(cluster.bootstrap.rpartition(":")[2])) for cluster in (first, second)]
            await proxies[0].start(listening)
            bootstrap = f"127.0.0.1:{port}"
            found = await cluster_id(KafkaSettings(bootstrap))
            async with connected(bootstrap) as client:
                await proxies[0].stop()
                await proxies[1].start(listening)
                assert not await client.force_metadata_update()
                assert isinstance(client.refusals[bootstrap], OtherCluster)
                with pytest.raises(KafkaError, match="another cluster answers there") as raised:
                    await cluster_id(KafkaSettings(bootstrap, cluster_id=found))
                assert "run again" in raised.value.remedy
            await proxies[1].stop()

    asyncio.run(run())


def test_close_waits_for_nobody() -> None:
    """A broker that is frozen reads nothing: what was written to it must not keep the connection open."""

    async def run() -> None:
        deaf, over = asyncio.Event(), asyncio.Event()
        serving: list[Any] = []
        with MockCluster() as cluster:
            real_port = int(cluster.bootstrap.rpartition(":")[2])

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                serving.append(asyncio.current_task())
                answers, requests = await asyncio.open_connection("127.0.0.1", real_port)

                async def forward() -> None:
                    while not deaf.is_set() and (data := await reader.read(65536)):
                        requests.write(data)

                async def back() -> None:
                    while data := await answers.read(65536):
                        writer.write(data)

                tasks = [asyncio.ensure_future(forward()), asyncio.ensure_future(back())]
                await over.wait()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for each in (writer, requests):
                    each.transport.abort()

            async with await asyncio.start_server(serve, "127.0.0.1") as server:
                cluster.advertise(server.sockets[0].getsockname()[1])
                async with connected(cluster.bootstrap) as client:
                    conn = await client._get_conn(1)
                    deaf.set()
                    conn._writer.write(b"x" * 50_000_000)
                    await asyncio.wait_for(client.close(), 5)
                over.set()
                await asyncio.wait(serving)

    asyncio.run(run())
