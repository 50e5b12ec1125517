"""Marks: how far a capture has come on each partition, read from the topics themselves.

A partition is acknowledged in position order, so the newest record of a capture on a partition (its *mark*) says that
everything up to it is there. Used after a crash (`kcs recover --produce`, the next `kcs live`) and by the sink when a
batch was lost in a way that leaves open whether it was written. Raises kcs.errors.KafkaError. Times in the units named.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
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


@dataclass(slots=True, frozen=True)
class Mark:
    """The newest record of a capture on a partition: `position` is 20 bytes, see `kcs.sink.POSITION`."""

    position: bytes
    offset: int


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
        floors = dict.fromkeys(asked, 0)
        if since_ms is not None:
            found = await consumer.offsets_for_times(dict.fromkeys(asked, since_ms))
            ends = await consumer.end_offsets(asked)
            floors = {tp: found[tp].offset if found.get(tp) else ends[tp] for tp in asked}
        for tp in asked:
            mark = await _backwards(settings, consumer, tp, capture_id, floors[tp])
            if mark is not None:
                marks[tp.topic, tp.partition] = mark
    return marks


async def _backwards(
    settings: KafkaSettings, consumer: Any, tp: TopicPartition, capture_id: bytes, floor: int
) -> Mark | None:
    """Read windows from the end towards `floor`, each four times the one before, until one has a record of ours."""
    high = (await consumer.end_offsets([tp]))[tp]
    lowest = max(floor, (await consumer.beginning_offsets([tp]))[tp])
    window = _WINDOW_MIN
    while high > lowest:
        low = max(lowest, high - window)
        mark = await _newest(settings, consumer, tp, low, high, capture_id)
        if mark is not None:
            return mark
        high, window = low, min(window * 4, _WINDOW_MAX)
    return None


async def _newest(
    settings: KafkaSettings, consumer: Any, tp: TopicPartition, low: int, high: int, capture_id: bytes
) -> Mark | None:
    newest = None
    async with contextlib.aclosing(read_ranges(settings, consumer, {tp: (low, high)})) as records:
        async for record in records:
            for name, content in record.headers:
                if name == HEADER_NAME and len(content) == _HEADER_BYTES and content[:_ID_END] == capture_id:
                    newest = Mark(content[_ID_END:], record.offset)
    return newest


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
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {"min.insync.replicas": None}) for topic in topics]
    needed = {}
    for answer in await admin.describe_configs(asked):
        for resource in answer.to_object()["resources"]:
            for entry in resource["config_entries"]:
                needed[resource["resource_name"]] = int(entry["config_value"])
    return needed
