"""Reading topics for an audit: what a cluster has, and its records since a time, partition by partition.

Used by `kcs verify --topic`; what the records mean is `kcs.kafka.compare`'s business. A reading covers what was in the
topics when it began, and nothing later. Raises kcs.errors.KafkaError when the broker is away or stops answering.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import TopicPartition

from kcs.errors import KafkaError
from kcs.kafka import topics
from kcs.kafka.compare import Message
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.spool import Place

STALL_S: Final = 30.0
"""A broker that gives nothing for so long cannot be read."""

_POLL_MS: Final = 1_000


@dataclass(slots=True, frozen=True)
class Survey:
    """A cluster and those of the topics asked for that it has, with their partition counts."""

    cluster_id: str
    counts: Mapping[str, int]


async def survey(settings: KafkaSettings, names: Iterable[str]) -> Survey:
    """Ask what there is."""
    return Survey(await topics.cluster_id(settings), await topics.partition_counts(settings, names))


class Reading:
    """The records of some partitions from one offset to another. Made by `reading`; to be read once."""

    def __init__(
        self,
        settings: KafkaSettings,
        consumer: Any,
        ranges: Mapping[Place, tuple[int, int]],
        starts: Mapping[Place, int],
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._ends = {TopicPartition(*place): end for place, (first, end) in ranges.items() if first < end}
        self.starts = starts
        """The first offset that the broker still has."""
        self.offsets = sum(end - first for first, end in ranges.values())
        """How many offsets there are to read; a compacted topic has fewer records than that."""
        for place, (first, end) in ranges.items():
            if first < end:
                consumer.seek(TopicPartition(*place), first)
            else:
                consumer.pause(TopicPartition(*place))

    async def batches(self) -> AsyncGenerator[tuple[Place, Sequence[Message]], None]:
        """Runs of records, never empty, of one partition each in offset order; partitions take turns."""
        consumer, ends = self._consumer, self._ends
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + STALL_S
        while ends:
            for tp, messages in (await consumer.getmany(*ends, timeout_ms=_POLL_MS)).items():
                deadline_s = loop.time() + STALL_S
                end = ends[tp]
                if messages[-1].offset >= end:
                    messages = [message for message in messages if message.offset < end]
                if messages:
                    yield (tp.topic, tp.partition), messages
            for tp in list(ends):
                if await consumer.position(tp) >= ends[tp]:  # moves past what is not shown, too
                    del ends[tp]
                    consumer.pause(tp)
            if loop.time() > deadline_s:
                left = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in ends)
                raise KafkaError(f"nothing arrives any more of {left}", where=f"Kafka at {self._settings.bootstrap}")


@contextlib.asynccontextmanager
async def reading(
    settings: KafkaSettings, counts: Mapping[str, int], since_ms: Mapping[str, int], *, embedded: bool
) -> AsyncIterator[Reading]:
    """All that is in these topics now, from the first record not older than `since_ms` (by topic) on.

    `counts`: topic to partitions. The embedded broker cannot look up a time: there everything is read.
    """
    asked = {
        TopicPartition(topic, number): since_ms[topic] for topic in sorted(counts) for number in range(counts[topic])
    }
    async with topics.consumer_client(settings) as consumer:
        consumer.assign(list(asked))
        starts = await consumer.beginning_offsets(list(asked)) if asked else {}
        ends = await consumer.end_offsets(list(asked)) if asked else {}
        firsts = dict(starts)
        if asked and not embedded:
            found = await consumer.offsets_for_times(dict(asked))
            firsts = {tp: ends[tp] if found.get(tp) is None else found[tp].offset for tp in asked}
        yield Reading(
            settings,
            consumer,
            {(tp.topic, tp.partition): (firsts[tp], ends[tp]) for tp in asked},
            {(tp.topic, tp.partition): starts[tp] for tp in asked},
        )
