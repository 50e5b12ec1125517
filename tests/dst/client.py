"""What stands for aiokafka's consumer and admin client: the same calls, answered by the simulated cluster.

`kcs.kafka.topics` and `kcs.kafka.marks` run on them as they are: creating topics, reading marks, waiting for replicas.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, Final

from aiokafka import TopicPartition

from kcs import deliver
from kcs.kafka import link, sink, topics
from kcs.kafka.settings import KafkaSettings
from tests.dst.broker import CLUSTER_ID, Cluster, Topic, answer, connector

FETCH_RECORDS_MAX: Final = 200
REPLICAS: Final = 3
MIN_IN_SYNC: Final = 2


class SimConsumer:
    """The calls that `kcs.kafka` makes of AIOKafkaConsumer."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._positions: dict[TopicPartition, int] = {}

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._positions = dict.fromkeys(partitions, 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset

    async def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        await answer(self._cluster)
        return {tp: self._cluster.topics[tp.topic].visible[tp.partition] for tp in partitions}

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
        await answer(self._cluster)
        return {tp: self._first_at(tp, since_ms) for tp, since_ms in times.items()}

    def _first_at(self, tp: TopicPartition, since_ms: int) -> Any:
        topic = self._cluster.topics[tp.topic]
        for offset, record in enumerate(topic.logs[tp.partition][: topic.visible[tp.partition]]):
            if record.timestamp_ms >= since_ms:
                return SimpleNamespace(offset=offset, timestamp=record.timestamp_ms)
        return None

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0) -> dict[TopicPartition, list[Any]]:
        await answer(self._cluster)
        found = {}
        for tp in partitions:
            topic, first = self._cluster.topics[tp.topic], self._positions[tp]
            end = min(topic.visible[tp.partition], first + FETCH_RECORDS_MAX)
            records = topic.logs[tp.partition][first:end]
            if records:
                found[tp] = [_message(first + i, record) for i, record in enumerate(records)]
                self._positions[tp] = end
        return found


def _message(offset: int, record: Any) -> Any:
    return SimpleNamespace(
        offset=offset,
        key=record.key,
        value=record.value,
        timestamp=record.timestamp_ms,
        headers=tuple(record.headers),
    )


class SimAdmin:
    """The calls that `kcs.kafka` makes of AIOKafkaAdminClient."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def describe_cluster(self) -> dict[str, Any]:
        return {"cluster_id": CLUSTER_ID}

    async def list_topics(self) -> list[str]:
        await answer(self._cluster)
        return sorted(self._cluster.topics)

    async def create_topics(self, wanted: list[Any]) -> Any:
        await answer(self._cluster)
        for new in wanted:
            self._cluster.topics.setdefault(new.name, Topic(new.num_partitions))
        return _object({"topic_errors": [{"topic": new.name, "error_code": 0} for new in wanted]})

    async def describe_configs(self, asked: list[Any]) -> list[Any]:
        await answer(self._cluster)
        values = {
            "retention.ms": "-1",
            "cleanup.policy": "delete",
            "min.insync.replicas": str(MIN_IN_SYNC),
            "message.timestamp.type": "CreateTime",
        }
        return [
            _object({
                "resources": [{
                    "error_code": 0,
                    "resource_name": one.name,
                    "config_entries": [{"config_names": name, "config_value": values[name]} for name in one.configs],
                }],
            })
            for one in asked
        ]  # fmt: skip

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        await answer(self._cluster)
        in_sync = 1 if self._cluster.short_until else REPLICAS
        if in_sync < MIN_IN_SYNC:
            self._cluster.world.count("replicas out of sync when asked")
        return [
            {
                "topic": name,
                "partitions": [
                    {"partition": i, "leader": 1, "isr": list(range(in_sync))}
                    for i in range(len(self._cluster.topics[name].logs))
                ],
            }
            for name in names
            if name in self._cluster.topics
        ]


def _object(content: dict[str, Any]) -> Any:
    return SimpleNamespace(to_object=lambda: content)


@contextmanager
def installed(cluster: Cluster) -> Iterator[None]:
    """Whoever in kcs connects to Kafka, connects to this cluster."""

    @asynccontextmanager
    async def consumer(settings: KafkaSettings) -> AsyncIterator[SimConsumer]:
        await answer(cluster)
        yield SimConsumer(cluster)

    @asynccontextmanager
    async def admin(settings: KafkaSettings) -> AsyncIterator[SimAdmin]:
        await answer(cluster)
        yield SimAdmin(cluster)

    with ExitStack() as stack:
        stack.enter_context(replaced(topics.consumer_client, consumer))
        stack.enter_context(replaced(topics.admin_client, admin))
        stack.enter_context(replaced(link.connect, connector(cluster)))
        yield


@contextmanager
def replaced(original: Any, new: Any) -> Iterator[None]:
    """`new` stands wherever a module of kcs holds `original`; modules imported meanwhile get the original as well."""
    _put(original, new)
    try:
        yield
    finally:
        _put(new, original)


def _put(old: Any, new: Any) -> None:
    """Attributes of modules, and defaults of keyword parameters."""
    for name, module in list(sys.modules.items()):
        if name.startswith("kcs.") and module is not None:
            members = vars(module)
            for attribute in [attribute for attribute, value in members.items() if value is old]:
                setattr(module, attribute, new)
    for defaults in _DEFAULTS:
        for parameter in [parameter for parameter, default in defaults.items() if default is old]:
            defaults[parameter] = new


_DEFAULTS: Final[list[dict[str, Any]]] = [
    function.__kwdefaults__ for function in (sink.KafkaSink.__init__, deliver.deliver) if function.__kwdefaults__
]
"""Where a function of kcs has one of these as the default of a parameter."""
