"""The sink on a real Kafka: bytes, order, topics, refusals, lost and late acks, a broker that dies."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from confluent_kafka import Producer

from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka import topics
from kcs.kafka.marks import read_marks, wait_in_sync
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.sink import POSITION, RECORD_BYTES_MAX
from tests.kafka.wire import (
    CAPTURE,
    FIRST_NS,
    Proxy,
    assert_whole,
    emit,
    frame_of,
    fresh_template,
    opened,
    read_back,
)
from tests.realkafka import RealKafka

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]
DAY_NS = 86_400 * 1_000_000_000


async def create_topic(bootstrap: str, topic: str, partitions: int = 1, **configs: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    named = {key.replace("_", "."): value for key, value in configs.items()}
    answer = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=named)])
    assert answer.to_object()["topic_errors"][0]["error_code"] == 0
    await admin.close()


def test_topics_partitions_bytes_order_times_and_offsets(real_kafka: str) -> None:
    async def run() -> None:
        async with opened(real_kafka, partitions=3) as sink:
            assert set(sink.partitions().values()) == {3}
            assert not sink.embedded
            for number in range(6_000):
                emit(sink, number, channel="orderbook" if number % 3 == 0 else "trade")
                if number % 250 == 0:
                    await asyncio.sleep(0)
            await sink.drain()
            books, trades = await read_back(sink, "orderbook"), await read_back(sink, "trade")
            assert_whole(books, {number for number in range(6_000) if number % 3 == 0})
            assert_whole(trades, {number for number in range(6_000) if number % 3})
            for record in books + trades:
                number = frame_of(record)
                recv_ns = FIRST_NS + number * 1_000_000
                assert record.key == f"KRW-{number % 7}".encode()
                assert record.value == b'["value of record %d"]' % number
                assert record.timestamp_ms == recv_ns // 1_000_000
                assert record.headers == (
                    ("kcs", CAPTURE + POSITION.pack(number, 0, recv_ns)),
                    ("id", b"id-%d" % number),
                )
            for records in (books, trades):
                offsets = sink.offsets()[records[0].topic]
                for partition, (first, last) in offsets.items():
                    found = [record.offset for record in records if record.partition == partition]
                    assert (first, last) == (found[0], found[-1])
                assert set(offsets) == {record.partition for record in records}

    asyncio.run(run())


def test_partitions_are_those_of_librdkafka_and_java(real_kafka: str) -> None:
    topic = fresh_template().format(channel="trade", exchange="upbit")

    async def run() -> None:
        await create_topic(real_kafka, topic, partitions=6)
        settings = KafkaSettings(real_kafka)
        producer = Producer({"bootstrap.servers": real_kafka, "partitioner": "murmur2"})
        for number in range(100):
            producer.produce(topic, key=f"KRW-{number}".encode(), value=b"x")
        producer.flush(10)
        sink = KafkaSink(KafkaSettings(real_kafka, template=topic.replace("trade", "{channel}")), SystemClock())
        await sink.open(["upbit"], ["trade"])
        async for record in topics.read_topics(settings, [topic]):
            assert record.key is not None
            assert sink.route("trade", "upbit", record.key.decode()).partition.number == record.partition
        await sink.close()

    asyncio.run(run())


@pytest.mark.parametrize(("channel", "name"), [("trade", "{channel}"), ("trade", "x" * 245 + "{channel}")])
def test_a_topic_that_cannot_be_made(real_kafka: str, channel: str, name: str) -> None:
    replication = 3 if name == "{channel}" else None

    async def run() -> None:
        sink = KafkaSink(
            KafkaSettings(real_kafka, template="impossible." + name if replication else name, replication=replication),
            SystemClock(),
        )
        with pytest.raises(Exception, match=r"InvalidReplicationFactor|legal topic name"):
            await sink.open(["upbit"], [channel])
        await sink.close()

    asyncio.run(run())


def test_replay_topics_keep_forever_and_short_lived_ones_are_refused(real_kafka: str) -> None:
    template = fresh_template()

    async def configured(topic: str) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka)
        await admin.start()
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": None})
        answers = await admin.describe_configs([resource])
        await admin.close()
        return answers[0].to_object()["resources"][0]["config_entries"][0]["config_value"]

    async def run() -> None:
        async with opened(real_kafka, template=template, retention_forever=True):
            assert await configured(template.format(channel="trade", exchange="upbit")) == "-1"
        short = fresh_template()
        await create_topic(real_kafka, short.format(channel="trade", exchange="upbit"), retention_ms="3600000")
        clock = SystemClock()
        settings = KafkaSettings(real_kafka, template=short, retention_forever=True)
        sink = KafkaSink(settings, clock)
        with pytest.raises(KafkaError, match=r"retention\.ms=3600000") as raised:
            await sink.open(["upbit"], ["trade"], oldest_ns=clock.now_ns() - DAY_NS)
        assert "retention.ms=-1" in raised.value.remedy
        await sink.open(["upbit"], ["trade"], oldest_ns=clock.now_ns() - DAY_NS // 48)
        await sink.close()

    asyncio.run(run())


def test_a_record_that_the_topic_refuses_fails_alone(real_kafka: str, caplog: pytest.LogCaptureFixture) -> None:
    template = fresh_template()

    async def run() -> None:
        await create_topic(real_kafka, template.format(channel="trade", exchange="upbit"), max_message_bytes="20000")
        async with opened(real_kafka, template=template) as sink:
            for number in range(200):
                emit(sink, number, value=b"x" * (30_000 if number in (50, 51, 120) else 700))
                if number == 80:
                    await asyncio.sleep(0)
            await asyncio.wait_for(sink.drain(), 30)
            assert (sink.produced, sink.acked, sink.failed, sink.in_flight) == (200, 197, 3, 0)
            assert_whole(await read_back(sink), set(range(200)) - {50, 51, 120})

    asyncio.run(run())
    lost = [record.getMessage() for record in caplog.records if "record lost" in record.getMessage()]
    assert [f"frame {number} " in line for number, line in zip((50, 51, 120), lost, strict=True)] == [True] * 3
    assert all("MessageSizeTooLarge" in line and "KRW-" in line for line in lost)


def test_records_that_are_too_old_fail_alone(real_kafka: str) -> None:
    template = fresh_template()

    async def run() -> None:
        topic = template.format(channel="trade", exchange="upbit")
        await create_topic(real_kafka, topic, message_timestamp_before_max_ms=str(3_600_000))
        async with opened(real_kafka, template=template) as sink:
            now_ns = SystemClock().now_ns()
            route = sink.route("trade", "upbit", "KRW-BTC")
            for number in range(8):
                recv_ns = now_ns - (DAY_NS if number == 3 else 0)
                sink.emit(route, b"1", recv_ns, POSITION.pack(number, 0, recv_ns), b"")
            await asyncio.wait_for(sink.drain(), 30)
            assert (sink.acked, sink.failed) == (7, 1)
            assert_whole(await read_back(sink), set(range(8)) - {3})

    asyncio.run(run())


def test_the_largest_record_is_taken_by_a_default_broker(real_kafka: str) -> None:
    async def run() -> None:
        async with opened(real_kafka) as sink:
            emit(sink, 0, value=b"x" * RECORD_BYTES_MAX)
            emit(sink, 1)
            await asyncio.wait_for(sink.drain(), 30)
            assert (sink.acked, sink.failed) == (2, 0)

    asyncio.run(run())


def test_marks_of_a_capture_since_a_time(real_kafka: str) -> None:
    template = fresh_template()

    async def run() -> None:
        async with opened(real_kafka, template=template, partitions=2) as sink:
            for number in range(500):
                emit(sink, number)
            await sink.drain()
            counts = {template.format(channel="trade", exchange="upbit"): 2}
            await wait_in_sync(sink.settings, sink.partitions())
            whole = await read_marks(sink.settings, counts, CAPTURE)
            assert {place: mark.offset for place, mark in whole.items()} == {
                (topic, partition): last
                for topic, partitions in sink.offsets().items()
                for partition, (_, last) in partitions.items()
            }
            first_ms = FIRST_NS // 1_000_000
            assert await read_marks(sink.settings, counts, CAPTURE, since_ms=first_ms) == whole
            assert await read_marks(sink.settings, counts, CAPTURE, since_ms=first_ms + 1_000) == {}

    asyncio.run(run())


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()
    return f"{host}:{port}"


async def through(proxy: Proxy, bootstrap: str, on_answer: Callable[[bytes], Any]) -> None:
    """Produce through the proxy while it does that, and expect every record once and in order."""
    async with opened(bootstrap, properties={"retry.backoff.ms": "20"}) as sink:
        proxy.on_answer = on_answer
        for number in range(400):
            emit(sink, number)
            await asyncio.sleep(0.001)
        await asyncio.wait_for(sink.drain(), 60)
        assert (sink.acked, sink.failed, sink.in_flight) == (400, 0, 0)
        proxy.on_answer = lambda data: asyncio.sleep(0)
        assert_whole(await read_back(sink), set(range(400)))


def test_lost_acks_write_nothing_twice(
    proxied_kafka: tuple[RealKafka, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    kafka, listening = proxied_kafka
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def run() -> None:
        proxy = Proxy(kafka.port)
        await proxy.start(listening)
        answers = 0

        async def lose_some(data: bytes) -> None:
            nonlocal answers
            answers += 1
            if answers % 5 == 0:  # connecting takes four answers, so each connection gets something done
                raise ConnectionError("cut before the ack came through")

        await through(proxy, address(listening), lose_some)
        assert proxy.cuts >= 5
        await proxy.stop()

    asyncio.run(run())


def test_late_acks_keep_one_batch_in_flight_and_the_order(proxied_kafka: tuple[RealKafka, socket.socket]) -> None:
    kafka, listening = proxied_kafka

    async def run() -> None:
        proxy = Proxy(kafka.port)
        await proxy.start(listening)
        await through(proxy, address(listening), lambda data: asyncio.sleep(0.02))
        await proxy.stop()

    asyncio.run(run())


def test_acks_later_than_the_timeout_write_nothing_twice(
    proxied_kafka: tuple[RealKafka, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    kafka, listening = proxied_kafka
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def run() -> None:
        proxy = Proxy(kafka.port)
        await proxy.start(listening)
        late = [0.6, 0.6]
        properties = {"retry.backoff.ms": "20", "request.timeout.ms": "300"}
        async with opened(address(listening), properties=properties, connect_timeout_s=10) as sink:
            proxy.on_answer = lambda data: asyncio.sleep(late.pop() if late else 0)
            for number in range(100):
                emit(sink, number)
                await asyncio.sleep(0)
            await asyncio.wait_for(sink.drain(), 60)
            assert late == []
            assert_whole(await read_back(sink), set(range(100)))
        await proxy.stop()

    asyncio.run(run())


@pytest.mark.slow
def test_a_broker_killed_in_the_middle(
    proxied_kafka: tuple[RealKafka, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    kafka, listening = proxied_kafka
    caplog.set_level(logging.CRITICAL, "aiokafka")

    async def run() -> None:
        proxy = Proxy(kafka.port)
        await proxy.start(listening)
        async with opened(address(listening), properties={"retry.backoff.ms": "50"}) as sink:
            for number in range(100):
                emit(sink, number)
                await asyncio.sleep(0)
            kafka.kill()
            for number in range(100, 200):
                emit(sink, number)
                await asyncio.sleep(0)
            await asyncio.to_thread(kafka.resume)
            await asyncio.wait_for(sink.drain(), 60)
            assert (sink.acked, sink.failed, sink.in_flight) == (200, 0, 0)
            assert_whole(await read_back(sink), set(range(200)))
        await proxy.stop()

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("age_ns", [0, 2 * DAY_NS])
def test_a_batch_written_by_a_broker_that_died_before_its_ack_is_not_written_twice(
    proxied_kafka: tuple[RealKafka, socket.socket], caplog: pytest.LogCaptureFixture, age_ns: int
) -> None:
    """With records older than a day the broker has forgotten the producer when it is back: idempotence is no help."""
    kafka, listening = proxied_kafka
    caplog.set_level(logging.CRITICAL, "aiokafka")
    first_ns = SystemClock().now_ns() - age_ns

    async def run() -> None:
        proxy = Proxy(kafka.port)
        await proxy.start(listening)
        async with opened(address(listening), properties={"retry.backoff.ms": "50"}, settle_s=0.1) as sink:
            emit(sink, 0, first_ns=first_ns)
            await sink.drain()
            answered = asyncio.Event()

            async def hold(data: bytes) -> None:
                answered.set()
                await asyncio.get_running_loop().create_future()

            proxy.on_answer = hold
            for number in range(1, 10):
                emit(sink, number, first_ns=first_ns)
            await answered.wait()  # the batch is written, its ack in the proxy's hands
            kafka.kill()
            await proxy.stop()
            proxy.on_answer = lambda data: asyncio.sleep(0)
            await asyncio.to_thread(kafka.resume)
            await proxy.start(listening)
            await asyncio.wait_for(sink.drain(), 60)
            assert (sink.acked, sink.failed, sink.in_flight) == (10, 0, 0)
            assert_whole(await read_back(sink), set(range(10)))
            assert next(iter(sink.offsets().values())) == {0: (0, 9)}
        await proxy.stop()

    asyncio.run(run())
