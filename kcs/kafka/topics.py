"""Topics: making them, looking at them, reading them. Everything here opens its own connection and closes it.

Raises kcs.errors.KafkaError, naming the topic, the broker's answer and what to do. Not on the hot path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import NoError, TopicAlreadyExistsError, for_code

from kcs.clock import NS_PER_MS
from kcs.errors import KafkaError
from kcs.kafka.client import CONNECT_ERRORS, Client, adopt
from kcs.kafka.embedded import CLUSTER_ID_PREFIX
from kcs.kafka.quiet import calm
from kcs.kafka.refusals import broken_off, refusal
from kcs.kafka.settings import KafkaSettings, client_options, parse_bootstrap

FOREVER: Final = {"retention.ms": "-1"}
_POLL_MS: Final = 1_000
_READ_STALL_S: Final = 30.0
_FETCH_WAIT_MS: Final = 20
"""Ends are known before reading, so there is nothing to wait for at them; a fetch under way delays the next seek."""
_REPLICATION_DEFAULT: Final = -1
_log = logging.getLogger("kcs.kafka")


@dataclass(slots=True, frozen=True)
class TopicRecord:
    """One record as a consumer sees it; the timestamp in ms."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...]


def is_embedded(cluster_id: str) -> bool:
    """Whether this is the embedded broker: no admin calls, topics appear by themselves."""
    return cluster_id.startswith(CLUSTER_ID_PREFIX)


# --- making and checking ----------------------------------------------------------------------------------------------


async def ensure(
    settings: KafkaSettings, topics: Iterable[str], now_ns: int, oldest_ns: int | None = None
) -> tuple[str, set[str]]:
    """Make the missing topics and check the others; returns the cluster id and the topics that were made.

    On the embedded broker nothing needs making. Raises KafkaError where a topic cannot be made, or (with
    `retention_forever`) where an existing one would drop records as old as `oldest_ns` at once.
    """
    async with admin_client(settings) as admin:
        cluster_id = str((await admin.describe_cluster())["cluster_id"])
        if is_embedded(cluster_id):
            return cluster_id, set()
        existing = set(await admin.list_topics())
        wanted = sorted(set(topics))
        missing = [topic for topic in wanted if topic not in existing]
        if missing:
            await _create(settings, admin, missing)
        present = [topic for topic in wanted if topic in existing]
        if present:
            await _check_configs(settings, admin, present, now_ns - oldest_ns if oldest_ns is not None else None)
        return cluster_id, set(missing)


async def cluster_id(settings: KafkaSettings) -> str:
    """The id of the cluster at `settings.bootstrap`."""
    async with admin_client(settings) as admin:
        return str((await admin.describe_cluster())["cluster_id"])


async def _create(settings: KafkaSettings, admin: Any, missing: list[str]) -> None:
    replication = settings.replication or _REPLICATION_DEFAULT
    configs = FOREVER if settings.retention_forever else {}
    wanted = [
        # aiokafka takes the cluster's default replication only together with an empty assignment
        NewTopic(
            topic,
            settings.partitions,
            replication,
            replica_assignments=None if settings.replication else {},
            topic_configs=configs,
        )
        for topic in missing
    ]
    answer = (await admin.create_topics(wanted)).to_object()
    for result in answer["topic_errors"]:
        error = for_code(result["error_code"])
        if error not in (NoError, TopicAlreadyExistsError):
            raise KafkaError(
                f"topic cannot be created: {error.__name__.removesuffix('Error')}: {result.get('error_message') or ''}",
                where=f"topic {result['topic']} at {settings.bootstrap}",
                remedy="create it yourself, or change --partitions, --replication or --topic",
            )


async def _check_configs(settings: KafkaSettings, admin: Any, present: list[str], age_ns: int | None) -> None:
    names = {"retention.ms": None, "cleanup.policy": None}
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, names) for topic in present]
    for answer in await admin.describe_configs(asked):
        for resource in answer.to_object()["resources"]:
            topic = resource["resource_name"]
            if resource["error_code"] != 0:
                _log.warning(
                    "topic %s: its settings cannot be read (%s)", topic, for_code(resource["error_code"]).__name__
                )
                continue
            configs = {entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]}
            _check_topic(settings, topic, configs, age_ns)


def _check_topic(settings: KafkaSettings, topic: str, configs: Mapping[str, str], age_ns: int | None) -> None:
    if "compact" in configs.get("cleanup.policy", ""):
        _log.warning(
            "topic %s has cleanup.policy=%s: of each key only the newest record will stay",
            topic,
            configs["cleanup.policy"],
        )
    retention_ms = int(configs.get("retention.ms", "-1"))
    if settings.retention_forever and age_ns is not None and 0 <= retention_ms * NS_PER_MS < age_ns:
        raise KafkaError(
            f"its retention.ms={retention_ms} is less than the age of the records ({age_ns // NS_PER_MS} ms): "
            "the broker would delete them soon after they arrive",
            where=f"topic {topic} at {settings.bootstrap}",
            remedy=f"kafka-configs --alter --topic {topic} --add-config retention.ms=-1, or another --topic",
        )


def agreed(actual: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, int]:
    """The partition counts to use: those asked for (an earlier run's), else what the topics have now."""
    for topic in sorted(actual.keys() & asked.keys()):
        if actual[topic] < asked[topic]:
            raise KafkaError(
                f"it has {actual[topic]} partitions, but this capture's records went to {asked[topic]}",
                where=f"topic {topic}",
                remedy="deliver into a fresh topic: kcs replay with another --topic",
            )
    return {topic: asked.get(topic, count) for topic, count in actual.items()}


@contextlib.asynccontextmanager
async def admin_client(settings: KafkaSettings) -> AsyncIterator[Any]:
    """aiokafka's admin client, connected; its errors leave the block as KafkaError."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    client = adopt(admin._client, settings.connect_timeout_s, settings.cluster_id)
    try:
        await _started(settings, client, admin.start())
        yield admin
    except (ClientError, OSError, TimeoutError) as error:
        raise broken_off(settings, error, client.refusals, "the broker does not do it") from None
    finally:
        await admin.close()


async def _started(settings: KafkaSettings, client: Client, start: Any) -> None:
    calm()
    try:
        async with asyncio.timeout(settings.connect_timeout_s * (len(parse_bootstrap(settings.bootstrap)) + 1)):
            await start
    except (*CONNECT_ERRORS, ClientError) as error:
        raise refusal(settings, error, client.refusals, []) from None


# --- reading ----------------------------------------------------------------------------------------------------------


async def end_offsets(settings: KafkaSettings, counts: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """(topic, partition) to the offset that its next record will get."""
    asked = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    if not asked:
        return {}
    async with consumer_client(settings) as consumer:
        consumer.assign(asked)
        return {(tp.topic, tp.partition): offset for tp, offset in (await consumer.end_offsets(asked)).items()}


async def partition_counts(settings: KafkaSettings, topics: Iterable[str]) -> dict[str, int]:
    """Partition counts of topics that exist; a topic that does not is left out."""
    async with admin_client(settings) as admin:
        existing = sorted(set(topics) & set(await admin.list_topics()))
        described = await admin.describe_topics(existing) if existing else []
        return {topic["topic"]: len(topic["partitions"]) for topic in described}


async def read_topics(settings: KafkaSettings, topics: Iterable[str]) -> AsyncGenerator[TopicRecord, None]:
    """All records of some topics, from the oldest kept up to the end offsets found at the start.

    Within a partition in offset order. Raises KafkaError for a topic that does not exist, or when nothing more comes.
    """
    wanted = sorted(set(topics))
    counts = await partition_counts(settings, wanted)
    for topic in wanted:
        if topic not in counts:
            raise KafkaError("there is no such topic", where=f"topic {topic} at {settings.bootstrap}")
    asked = [TopicPartition(topic, number) for topic in wanted for number in range(counts[topic])]
    async with consumer_client(settings) as consumer:
        consumer.assign(asked)
        starts = await consumer.beginning_offsets(asked)
        ends = await consumer.end_offsets(asked)
        ranges = {tp: (starts[tp], ends[tp]) for tp in asked}
        async with contextlib.aclosing(read_ranges(settings, consumer, ranges)) as records:
            async for record in records:
                yield record


async def read_ranges(
    settings: KafkaSettings, consumer: Any, ranges: Mapping[TopicPartition, tuple[int, int]]
) -> AsyncGenerator[TopicRecord, None]:
    """Records of offset ranges (first, one past the last) of assigned partitions."""
    open_ends = {tp: high for tp, (low, high) in ranges.items() if low < high}
    for tp in open_ends:
        consumer.seek(tp, ranges[tp][0])
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _READ_STALL_S
    while open_ends:
        for tp, messages in (await consumer.getmany(*open_ends, timeout_ms=_POLL_MS)).items():
            deadline = loop.time() + _READ_STALL_S
            for message in messages:
                if message.offset < open_ends[tp]:
                    yield TopicRecord(
                        tp.topic,
                        tp.partition,
                        message.offset,
                        message.key,
                        message.value,
                        message.timestamp,
                        message.headers,
                    )
        for tp in list(open_ends):
            if await consumer.position(tp) >= open_ends[tp]:  # moves past what is not shown, too
                del open_ends[tp]
        if loop.time() > deadline:
            left = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in open_ends)
            raise KafkaError(f"nothing arrives any more of {left}", where=f"Kafka at {settings.bootstrap}")


@contextlib.asynccontextmanager
async def consumer_client(settings: KafkaSettings) -> AsyncIterator[Any]:
    """aiokafka's consumer without a group, connected; its errors leave the block as KafkaError."""
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_FETCH_WAIT_MS,
    )
    client = adopt(consumer._client, settings.connect_timeout_s, settings.cluster_id)
    try:
        await _started(settings, client, consumer.start())
        yield consumer
    except (ClientError, OSError, TimeoutError) as error:
        raise broken_off(settings, error, client.refusals, "it cannot be read") from None
    finally:
        await consumer.stop()
