"""Producers that die and topics that go, on a real Kafka: what the sink makes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.producer.transaction_manager import PidAndEpoch

from kcs.errors import KafkaError
from kcs.kafka.sink import KafkaSink
from tests.kafka.wire import assert_whole, emit, fresh_template, opened, read_back

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]


def manager_of(sink: KafkaSink) -> Any:
    """aiokafka's notes about the producer that the sink has now."""
    link: Any = sink.link
    return link._producer._txn_manager


async def fence(sink: KafkaSink, topic: str, bootstrap: str) -> None:
    """Somebody writes with the same producer id and a newer epoch."""
    manager = manager_of(sink)
    other = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    await other.start()
    other._txn_manager._pid_and_epoch = PidAndEpoch(manager.producer_id, manager.producer_epoch + 1)
    await other.send_and_wait(topic, b"not ours", partition=0)
    await other.stop()


async def skip_numbers(sink: KafkaSink, topic: str, bootstrap: str) -> None:
    """The sequence has a hole: the broker thinks that records are missing."""
    manager_of(sink).increment_sequence_number(TopicPartition(topic, 0), 5)


@pytest.mark.parametrize(("kill", "said"), [(fence, "ProducerFenced"), (skip_numbers, "OutOfOrderSequenceNumber")])
def test_a_producer_that_died_is_replaced_in_order(
    real_kafka: str, kill: Callable[[KafkaSink, str, str], Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    template = fresh_template()
    topic = template.format(channel="trade", exchange="upbit")

    async def run() -> None:
        async with opened(real_kafka, template=template) as sink:
            for number in range(100):
                emit(sink, number)
                await asyncio.sleep(0)
            await sink.drain()
            before = sink.link
            await kill(sink, topic, real_kafka)
            for number in range(100, 300):
                emit(sink, number)
                emit(sink, number, channel="orderbook")
                await asyncio.sleep(0)
            await asyncio.wait_for(sink.drain(), 30)
            assert sink.link is not before
            assert (sink.acked, sink.failed, sink.in_flight) == (500, 0, 0)
            ours = [record for record in await read_back(sink) if record.value != b"not ours"]
            assert_whole(ours, set(range(300)))
            assert_whole(await read_back(sink, "orderbook"), set(range(100, 300)))

    asyncio.run(run())
    assert [said in record.getMessage() for record in caplog.records if "came back" in record.getMessage()] == [True]


def test_a_topic_deleted_while_running_is_named_and_filled_again_once_it_is_back(
    real_kafka: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    caplog.set_level(logging.WARNING)
    template = fresh_template()
    topic = template.format(channel="trade", exchange="upbit")

    async def run() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka)
        await admin.start()
        async with opened(real_kafka, template=template) as sink:
            for number in range(100):
                emit(sink, number)
            await sink.drain()
            await admin.delete_topics([topic])
            for number in range(100, 200):
                emit(sink, number)
                emit(sink, number, channel="orderbook")
                await asyncio.sleep(0)
            with pytest.raises(KafkaError, match=f"the cluster has no topic {topic}") as raised:
                await asyncio.wait_for(sink.drain(), 30)
            assert "make the topic again" in raised.value.remedy
            assert sink.in_flight == 100, "the other topics go on"
            assert await absent(admin, topic), "asking for it must not make it"
            await admin.create_topics([NewTopic(topic, 1, 1)])
            await delivered(sink)
            assert_whole(await read_back(sink), set(range(100, 200)))
            assert sink.went_back == 1
        await admin.close()

    asyncio.run(run())
    (line,) = [record.getMessage() for record in caplog.records if "went back" in record.getMessage()]
    assert "from 100 to 0" in line


async def absent(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


async def delivered(sink: KafkaSink) -> None:
    """Wait out the fault, which stands until the partition takes something."""
    async with asyncio.timeout(60):
        while sink.in_flight:
            try:
                await sink.drain()
            except KafkaError:
                await asyncio.sleep(0.1)
    assert sink.fault is None


def test_partitions_added_while_running_move_no_key(real_kafka: str) -> None:
    template = fresh_template()
    topic = template.format(channel="trade", exchange="upbit")

    async def run() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka)
        await admin.start()
        async with opened(real_kafka, template=template, partitions=2) as sink:
            for number in range(200):
                emit(sink, number)
            await sink.drain()
            await admin.create_partitions({topic: NewPartitions(6)})
            await sink.link._producer.client.force_metadata_update()  # type: ignore[union-attr]
            for number in range(200, 400):
                emit(sink, number)
            await asyncio.wait_for(sink.drain(), 30)
            assert sink.partitions()[topic] == 2
            records = await read_back(sink)
            assert_whole(records, set(range(400)))
            places = {(record.key, record.partition) for record in records}
            assert len(places) == len({key for key, _ in places}) == 7
            assert {partition for _, partition in places} <= {0, 1}
        await admin.close()

    asyncio.run(run())
