"""The broker that needs no installation: librdkafka's mock cluster, in this process, in memory.

It speaks the real protocol to any client, acknowledges, keeps offsets and serves consumers. It is not Kafka: a
partition keeps only its newest 5 MB, every topic appears by itself with 4 partitions, there are no admin calls and no
look-up by time, and everything is gone when it closes. The demo, the wire path, acks and digests run on it; for what
must last there is `-b`. It runs in a thread of C code that never takes the interpreter's lock.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from kcs.errors import KafkaError

PARTITIONS: Final = 4
"""Partitions of each topic on the embedded broker."""

PARTITION_BYTES_KEPT: Final = 5 * 1024 * 1024
"""Older records of a partition are dropped beyond this."""

CLUSTER_ID_PREFIX: Final = "mockCluster"
_START_TIMEOUT_S: Final = 10


class EmbeddedBroker:
    """`with EmbeddedBroker() as broker: broker.bootstrap`. Raises KafkaError if it cannot start."""

    __slots__ = ("_host", "bootstrap")

    def __init__(self) -> None:
        from confluent_kafka import KafkaException, Producer

        # log_level 3: librdkafka would announce the mock cluster on stderr
        self._host: Any = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 3})
        try:
            brokers = list(self._host.list_topics(timeout=_START_TIMEOUT_S).brokers.values())
        except KafkaException as error:
            raise KafkaError(
                f"the embedded broker did not start: {error}", remedy="use a real Kafka: -b HOST:PORT"
            ) from None
        self.bootstrap = f"{brokers[0].host}:{brokers[0].port}"

    def close(self) -> None:
        """Stop; its records are gone. Safe to call twice."""
        self._host = None  # librdkafka stops the cluster when its handle goes

    def __enter__(self) -> EmbeddedBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
