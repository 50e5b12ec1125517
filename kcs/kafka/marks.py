"""Marks: how far a capture has come on each partition, read from the topics themselves.

A partition is acknowledged in position order, so the newest record of a capture on a partition (its *mark*) says that
everything up to it is there. Used after a crash (`kcs recover --produce`, the next `kcs live`) and by the sink when a
batch was lost in a way that leaves open whether it was written. Raises kcs.errors.KafkaError. Times in the units named.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from kcs.errors import KafkaError
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import admin_client, consumer_client, read_ranges
from kcs.sink import HEADER_NAME

POSITION_ORDER: Final = slice(0, 12)
"""Frame number and event index, the part of a position that orders the records of one capture."""

_WINDOW_MIN: Final = 1_000
_WINDOW_MAX: Final = 64_000
_ID_END: Final = 8
_HEADER_BYTES: Final = 28
_IN_SYNC_POLL_S: Final = 0.5
_DAY_MS: Final = 86_400_000


@dataclass(slots=True, frozen=True)
class Mark:
    """The newest record of a capture on a partition: `position` is 20 bytes, see `kcs.sink.POSITION`."""

    position: bytes
    offset: int

    @property
    def number(self) -> int:
        """The frame number."""
        return int.from_bytes(self.position[:8], "big")


Marks = dict[tuple[str, int], Mark]
"""(topic, partition) to its mark; a partition without records of the capture is missing."""


async def read_mark(
    settings: KafkaSettings, topic: str, partition: int, capture_id: bytes, *, floor: int = 0
) -> Mark | None:
    """The newest record of a capture on one partition at offset `floor` or above. None: there is none."""
    tp = TopicPartition(topic, partition)
    async with consumer_client(settings) as consumer:
        consumer.assign([tp])
        return await _backwards(settings, consumer, tp, capture_id, floor)


async def read_marks(
    settings: KafkaSettings, counts: Mapping[str, int], capture_id: bytes, *, since_ms: int | None = None
) -> Marks:
    """The marks of a capture on all partitions of the topics in `counts`.

    `since_ms`: receive time of the capture's first record; older records are not looked at, which keeps this short on
    a topic with years in it (not on the embedded broker, which cannot look up a time).
    """
    asked = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    marks = {}
    async with consumer_client(settings) as consumer:
        consumer.assign(asked)
        floors = await _floors(settings, consumer, asked, since_ms)
        for tp in asked:
            mark = await _backwards(settings, consumer, tp, capture_id, floors[tp])
            if mark is not None:
                marks[tp.topic, tp.partition] = mark
    return marks


@dataclass(slots=True, frozen=True)
class Extent:
    """Where a capture's records lie on a partition.

    `first` and `last`: offsets of the records with frame numbers below the capture's end; None: there is none.
    `orphans`: records with higher numbers, whose frames died with the process before they reached the disk.
    """

    first: int | None
    last: int | None
    orphans: int


async def read_extents(
    settings: KafkaSettings, marks: Marks, capture_id: bytes, end_number: int, *, since_ms: int | None = None
) -> dict[tuple[str, int], Extent]:
    """The extents of a capture with frame numbers below `end_number` on the partitions where it has marks.

    Reads a little from the capture's beginning on and, where there are orphans, backwards from the mark.
    """
    asked = [TopicPartition(topic, number) for topic, number in marks]
    extents: dict[tuple[str, int], Extent] = {}
    if not asked:
        return extents
    async with consumer_client(settings) as consumer:
        consumer.assign(asked)
        floors = await _floors(settings, consumer, asked, since_ms)
        for tp in asked:
            mark, floor = marks[tp.topic, tp.partition], floors[tp]
            last: int | None = mark.offset
            orphans = 0
            if mark.number >= end_number:
                last, orphans = await _orphans(settings, consumer, tp, capture_id, floor, mark.offset + 1, end_number)
            first = None if last is None else await _first(settings, consumer, tp, capture_id, floor, last)
            extents[tp.topic, tp.partition] = Extent(first, last, orphans)
    return extents


async def _floors(
    settings: KafkaSettings, consumer: Any, asked: list[TopicPartition], since_ms: int | None
) -> dict[TopicPartition, int]:
    """The offset on each partition below which there is no record from `since_ms` or later, or none at all."""
    if since_ms is None:
        starts: dict[TopicPartition, int] = await consumer.beginning_offsets(asked)
        return starts
    slack = await _clock_slack_ms(settings, sorted({tp.topic for tp in asked}))
    times = {tp: max(0, since_ms - slack[tp.topic]) for tp in asked}
    found = await consumer.offsets_for_times(times)
    ends = await consumer.end_offsets(asked)
    return {tp: found[tp].offset if found.get(tp) else ends[tp] for tp in asked}


async def _backwards(
    settings: KafkaSettings, consumer: Any, tp: TopicPartition, capture_id: bytes, floor: int
) -> Mark | None:
    """Read windows from the end towards `floor`, each four times the one before, until one has a record of ours."""
    high = (await consumer.end_offsets([tp]))[tp]
    lowest = max(floor, (await consumer.beginning_offsets([tp]))[tp])
    for low, end in _windows(lowest, high):
        mark = None
        async with contextlib.aclosing(_ours(settings, consumer, tp, low, end, capture_id)) as records:
            async for one in records:
                mark = one
        if mark is not None:
            return mark
    return None


def _windows(lowest: int, high: int) -> Iterator[tuple[int, int]]:
    """(low, high) from the end backwards, each window four times as long as the one before."""
    window = _WINDOW_MIN
    while high > lowest:
        low = max(lowest, high - window)
        yield low, high
        high, window = low, min(window * 4, _WINDOW_MAX)


async def _orphans(
    settings: KafkaSettings,
    consumer: Any,
    tp: TopicPartition,
    capture_id: bytes,
    floor: int,
    high: int,
    end_number: int,
) -> tuple[int | None, int]:
    """(offset of the newest record below `end_number`, records at or above it), from `high` backwards."""
    lowest = max(floor, (await consumer.beginning_offsets([tp]))[tp])
    orphans = 0
    for low, end in _windows(lowest, high):
        last = None
        async with contextlib.aclosing(_ours(settings, consumer, tp, low, end, capture_id)) as records:
            async for one in records:
                if one.number < end_number:
                    last = one.offset
                else:
                    orphans += 1
        if last is not None:
            return last, orphans
    return None, orphans


async def _first(
    settings: KafkaSettings, consumer: Any, tp: TopicPartition, capture_id: bytes, floor: int, last: int
) -> int:
    """Offset of the oldest record of ours at or after `floor`; there is one at `last`."""
    async with contextlib.aclosing(_ours(settings, consumer, tp, floor, last + 1, capture_id)) as records:
        async for one in records:
            return one.offset
    return last


async def _ours(
    settings: KafkaSettings, consumer: Any, tp: TopicPartition, low: int, high: int, capture_id: bytes
) -> AsyncGenerator[Mark, None]:
    """The records of a capture in an offset range."""
    async with contextlib.aclosing(read_ranges(settings, consumer, {tp: (low, high)})) as records:
        async for record in records:
            for name, content in record.headers:
                ours = name == HEADER_NAME and content and len(content) == _HEADER_BYTES  # others may write a null
                if ours and content[:_ID_END] == capture_id:
                    yield Mark(content[_ID_END:], record.offset)


async def wait_in_sync(settings: KafkaSettings, counts: Mapping[str, int], *, timeout_s: float = 60.0) -> None:
    """Return when every partition has a leader and at least `min.insync.replicas` replicas in sync.

    Before that, a record may still be missing from what a consumer sees. Raises KafkaError after `timeout_s`.
    """
    topics = sorted(counts)
    async with admin_client(settings) as admin:
        needed = await _min_in_sync(admin, topics)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            behind = [
                f"{topic['topic']}[{part['partition']}]"
                for topic in await admin.describe_topics(topics)
                for part in topic["partitions"]
                if part["leader"] < 0 or len(part["isr"]) < needed.get(topic["topic"], 1)
            ]
            if not behind:
                return
            if loop.time() > deadline:
                raise KafkaError(
                    f"too few replicas are in sync: {', '.join(behind[:5])}",
                    where=f"Kafka at {settings.bootstrap}",
                    remedy="wait until the brokers are back, then run it again",
                )
            await asyncio.sleep(_IN_SYNC_POLL_S)


async def _min_in_sync(admin: Any, topics: list[str]) -> dict[str, int]:
    name = "min.insync.replicas"
    return {topic: int(value) for topic, value in (await _configs(admin, topics, name)).items()}


async def _clock_slack_ms(settings: KafkaSettings, topics: list[str]) -> dict[str, int]:
    """How far the records' timestamps may lie before the collector's clock: not at all, where they are ours.

    A broker that sets them itself does so by its own clock. Where it does not say, the worst is assumed.
    """
    async with admin_client(settings) as admin:
        kinds = await _configs(admin, topics, "message.timestamp.type")
    return {topic: 0 if kinds.get(topic) == "CreateTime" else _DAY_MS for topic in topics}


async def _configs(admin: Any, topics: list[str], name: str) -> dict[str, str]:
    """The value of one setting of each topic; a topic that the broker does not tell about is left out."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {name: None}) for topic in topics]
    return {
        resource["resource_name"]: entry["config_value"]
        for answer in await admin.describe_configs(asked)
        for resource in answer.to_object()["resources"]
        for entry in resource["config_entries"]
    }
