"""Reading for an audit: from a time to what was there at the beginning, on the embedded broker and on a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from kcs.errors import KafkaError
from kcs.kafka import audit
from kcs.kafka.audit import Reading, reading, survey
from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.spool import Place
from tests.kafka.wire import FIRST_NS, emit, frame_of, opened

SETTINGS = KafkaSettings("nowhere:9092")


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


async def read(source: Reading) -> dict[Place, list[int]]:
    """Frame numbers by place."""
    found: defaultdict[Place, list[int]] = defaultdict(list)
    async with contextlib.aclosing(source.batches()) as batches:
        async for place, messages in batches:
            assert messages
            found[place] += [frame_of(message) for message in messages]  # type: ignore[arg-type]
    return dict(found)


def test_all_that_was_there_when_the_reading_began(embedded: str) -> None:
    async def run() -> None:
        async with opened(embedded) as sink:
            topic = sink.settings.template.format(channel="trade", exchange="upbit")
            for number in range(500):
                emit(sink, number)
            await sink.drain()
            found = await survey(sink.settings, [topic, "no-such-topic"])
            assert found.counts == {topic: 4}
            assert found.cluster_id == sink.cluster_id
            async with reading(sink.settings, found.counts, {topic: 2**60}, embedded=True) as source:
                assert source.offsets == 500
                for number in range(500, 600):
                    emit(sink, number)
                await sink.drain()
                frames = await read(source)
            assert sorted(number for numbers in frames.values() for number in numbers) == list(range(500))
            assert all(numbers == sorted(numbers) for numbers in frames.values())
            assert {place[0] for place in frames} == {topic}

    asyncio.run(run())


@pytest.mark.kafka
@pytest.mark.filterwarnings("default::ResourceWarning")
def test_from_a_time_on_and_from_where_the_log_begins(real_kafka: str) -> None:
    async def run() -> None:
        async with opened(real_kafka, partitions=2) as sink:
            topic = sink.settings.template.format(channel="trade", exchange="upbit")
            counts = sink.partitions()
            for number in range(2_000):  # a millisecond each
                emit(sink, number)
            await sink.drain()
            first_ms = FIRST_NS // 1_000_000

            async def frames_since(since_ms: int) -> tuple[list[int], Mapping[Place, int]]:
                async with reading(sink.settings, counts, dict.fromkeys(counts, since_ms), embedded=False) as source:
                    frames = await read(source)
                    assert source.offsets == sum(map(len, frames.values()))
                    return sorted(number for numbers in frames.values() for number in numbers), source.starts

            assert (await frames_since(0))[0] == list(range(2_000))
            frames, starts = await frames_since(first_ms + 1_500)
            assert frames == list(range(1_500, 2_000))
            assert set(starts.values()) == {0}
            assert (await frames_since(first_ms + 5_000))[0] == []
            admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka)
            await admin.start()
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=100)})
            await admin.close()
            frames, starts = await frames_since(0)
            assert len(frames) == 1_900
            assert starts[topic, 0] == 100
            assert starts[topic, 1] == 0

    asyncio.run(run())


def test_a_broker_that_is_away() -> None:
    async def run() -> None:
        with pytest.raises(KafkaError, match="no broker answers"):
            await survey(KafkaSettings("127.0.0.1:1"), ["trade.upbit"])

    asyncio.run(run())


# --- a consumer that gives what a test wants --------------------------------------------------------------------------


class Consumer:
    """`gives`: what each `getmany` returns; positions follow, or are as in `positions`."""

    def __init__(self, *gives: dict[TopicPartition, list[int]], positions: Mapping[TopicPartition, int] | None = None):
        self.gives = list(gives)
        self.positions = dict(positions or {})
        self.asked: list[tuple[TopicPartition, ...]] = []
        self.paused: list[TopicPartition] = []

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.positions.setdefault(tp, offset)

    def pause(self, tp: TopicPartition) -> None:
        self.paused.append(tp)

    async def position(self, tp: TopicPartition) -> int:
        return self.positions[tp]

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        self.asked.append(partitions)
        given = self.gives.pop(0) if self.gives else {}
        for tp, offsets in given.items():
            self.positions[tp] = offsets[-1] + 1
        return {tp: [SimpleNamespace(offset=offset) for offset in offsets] for tp, offsets in given.items()}


A, B = TopicPartition("t", 0), TopicPartition("t", 1)


def offsets_read(consumer: Consumer, ranges: dict[Place, tuple[int, int]]) -> list[tuple[int, list[int]]]:
    async def run() -> list[tuple[int, list[int]]]:
        source = Reading(SETTINGS, consumer, ranges, {})
        async with contextlib.aclosing(source.batches()) as batches:
            return [(place[1], [message.offset for message in messages]) async for place, messages in batches]

    return asyncio.run(run())


def test_nothing_beyond_the_end_and_no_partition_that_is_done() -> None:
    consumer = Consumer({A: [0, 1], B: [5, 6, 7, 8]}, {A: [2, 3, 4]})
    assert offsets_read(consumer, {("t", 0): (0, 3), ("t", 1): (5, 7), ("t", 2): (9, 9)}) == [
        (0, [0, 1]),
        (1, [5, 6]),
        (0, [2]),
    ]
    assert consumer.asked == [(A, B), (A,)]
    assert consumer.paused == [TopicPartition("t", 2), B, A]


def test_offsets_without_records_at_the_end_are_passed() -> None:
    consumer = Consumer({A: [0]}, positions={A: 0})
    consumer.gives.append({})

    async def position(tp: TopicPartition) -> int:
        return 5 if len(consumer.asked) > 1 else 1

    consumer.position = position  # type: ignore[method-assign]
    assert offsets_read(consumer, {("t", 0): (0, 5)}) == [(0, [0])]


def test_a_batch_that_lies_beyond_the_end_is_none() -> None:
    assert offsets_read(Consumer({A: [7, 8]}), {("t", 0): (0, 5)}) == []


def test_a_broker_that_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "STALL_S", -1.0)
    with pytest.raises(KafkaError, match=r"nothing arrives any more of t\[1\]"):
        offsets_read(Consumer({A: [0, 1]}, {}), {("t", 0): (0, 2), ("t", 1): (0, 2)})
