"""What kcs relies on in aiokafka beyond its documentation. When this fails after an upgrade, read kcs/kafka/batch.py,
kcs/kafka/link.py and kcs/kafka/sink.py before changing a line here: delivery guarantees hang on it.
"""

from __future__ import annotations

import asyncio

import aiokafka
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import BrokerResponseError, ProducerFenced, UnknownError, for_code
from aiokafka.partitioner import DefaultPartitioner, murmur2
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from kcs.kafka.batch import Batch, new_builder
from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.partition import partition_of
from kcs.kafka.tally import Tally

HEADERS = [("kcs", b"12345678" + b"p" * 20), ("id", b"17")]


def test_the_version_is_one_that_was_read() -> None:
    assert aiokafka.__version__.startswith("0.14.")


def test_the_builder_is_the_compiled_one() -> None:
    assert DefaultRecordBatchBuilder.__module__ == "aiokafka.record._crecords.default_records"
    assert type(new_builder(1024, None)._builder) is DefaultRecordBatchBuilder


def test_append_takes_five_positions_and_says_none_when_full() -> None:
    builder = new_builder(200, None)
    append = builder._builder.append
    assert append(0, 1_000, b"k", b"v" * 500, HEADERS) is not None  # the first is always taken
    assert append(1, 1_000, b"k", b"v", HEADERS) is None
    builder = new_builder(200, None)
    count = 0
    while builder._builder.append(count, 1_000, b"k", b"v", []) is not None:
        count += 1
    assert 0 < builder._builder.size() <= 200
    with pytest.raises(TypeError):
        append(0, 1_000, b"k", b"v", tuple(HEADERS))


def test_a_sealed_batch_reads_back_as_it_was_and_counts_its_records() -> None:
    builder = new_builder(4096, None)
    for number in range(3):
        builder._builder.append(number, 1_000 + number, b"k%d" % number, b"v%d" % number, HEADERS)
    batch = Batch(builder, [b"%020d" % number for number in range(3)], Tally(b"12345678"))
    assert builder.record_count() == 3
    assert builder.closed()
    raw = builder._build()
    assert builder._build() is raw
    assert len(raw) == batch.size
    assert DefaultRecordBatch(bytes(raw)).validate_crc()
    records = batch.records()
    assert [record.key for record in records] == [b"k0", b"k1", b"k2"]
    assert [record.timestamp_ms for record in records] == [1_000, 1_001, 1_002]
    assert records[2].headers == HEADERS
    first, rest = batch.halves(None)
    assert [len(first.positions), len(rest.positions)] == [1, 2]
    assert [*first.records(), *rest.records()] == records


def test_send_batch_does_not_wait_when_it_knows_the_topic() -> None:
    async def run() -> None:
        with EmbeddedBroker() as broker:
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True, acks="all")
            await producer.start()
            await producer.partitions_for("t")
            builder = new_builder(4096, None)
            builder._builder.append(0, 1_000, b"k", b"v", [])
            Batch(builder, [b"p"], Tally(b""))
            sending = producer.send_batch(builder, "t", partition=0)
            with pytest.raises(StopIteration) as done:
                sending.send(None)
            assert (await done.value.value).offset == 0
            assert producer._sender.sender_task is not None
            assert producer._closed is False
            await producer.stop()

    asyncio.run(run())


def test_sequence_numbers_go_negative_where_the_broker_wants_zero() -> None:
    """Why a sink changes producers long before 2**31 records on a partition. If this fails, aiokafka was mended."""

    async def run() -> int:
        manager, place = TransactionManager(None, 1), TopicPartition("t", 0)
        manager.increment_sequence_number(place, 2**31)
        return int(manager.sequence_number(place))

    assert asyncio.run(run()) == -(2**31)


def test_errors_are_sorted_by_these_classes() -> None:
    assert for_code(87) is UnknownError  # INVALID_RECORD
    assert for_code(10).__name__ == "MessageSizeTooLargeError"
    assert not issubclass(ProducerFenced, BrokerResponseError)
    assert [code for code in (6, 7, 19, 20, 56) if not for_code(code).retriable] == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # from Apache Kafka's own UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_hash_as_in_java(key: bytes, expected: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == expected & 0xFFFFFFFF
    for count in (1, 2, 3, 6, 50):
        assert partition_of(key, count) == DefaultPartitioner()(key, list(range(count)), [])
        assert partition_of(key, count) == (expected & 0x7FFFFFFF) % count
