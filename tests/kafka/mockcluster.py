"""librdkafka's mock cluster with its controls: errors to answer with, delays, brokers that go down and come back.

`confluent_kafka` exposes the cluster but not these, so they are reached in the same shared library through ctypes.
For tests only.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType

import confluent_kafka

PRODUCE, INIT_PRODUCER_ID = 0, 22
NO_ERROR, NOT_LEADER, TIMED_OUT, TOO_LARGE, NOT_ENOUGH_REPLICAS_AFTER_APPEND = 0, 6, 7, 10, 20
TOPIC_AUTHORIZATION_FAILED, OUT_OF_ORDER, INVALID_RECORD, TRANSPORT = 29, 45, 87, -195
"""Kafka's error codes; TRANSPORT is librdkafka's: the broker closes the connection instead of answering."""

_RD_KAFKA_PRODUCER = 0


def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    bundled = sorted((package.parent / "confluent_kafka.libs").glob("librdkafka*"))
    library = ctypes.CDLL(str(bundled[0]) if bundled else "librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class MockCluster:
    """`with MockCluster() as cluster: cluster.bootstrap`."""

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        message = ctypes.create_string_buffer(512)
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        handle = self._library.rd_kafka_new(_RD_KAFKA_PRODUCER, conf, message, len(message))
        assert handle, message.value
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._handle, brokers))
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, topic: str, partitions: int) -> None:
        assert self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), partitions, 1) == 0

    def answer(self, api: int, *codes: int) -> None:
        """The next requests of this kind get these error codes, in this order."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api), ctypes.c_size_t(len(codes)), array
        )

    def answer_late(self, api: int, code: int, delay_ms: int, broker: int = 1) -> None:
        """One answer with this code, so much later."""
        pushed = self._library.rd_kafka_mock_broker_push_request_error_rtts(
            self._cluster, ctypes.c_int32(broker), ctypes.c_int16(api), ctypes.c_size_t(1), code, delay_ms
        )
        assert pushed == 0

    def set_delay_ms(self, delay_ms: int, broker: int = 1) -> None:
        """All answers of a broker take this long."""
        assert self._library.rd_kafka_mock_broker_set_rtt(self._cluster, ctypes.c_int32(broker), delay_ms) == 0

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        """-1: the partition has no leader."""
        name, cluster = topic.encode(), self._cluster
        assert self._library.rd_kafka_mock_partition_set_leader(cluster, name, partition, ctypes.c_int32(broker)) == 0

    def advertise(self, port: int, broker: int = 1) -> None:
        """The metadata say that this broker is at another port of 127.0.0.1; it stays where it is."""
        self._library.rd_kafka_mock_broker_set_host_port(
            self._cluster, ctypes.c_int32(broker), b"127.0.0.1", ctypes.c_int(port)
        )

    def down(self, broker: int = 1) -> None:
        assert self._library.rd_kafka_mock_broker_set_down(self._cluster, ctypes.c_int32(broker)) == 0

    def up(self, broker: int = 1) -> None:
        assert self._library.rd_kafka_mock_broker_set_up(self._cluster, ctypes.c_int32(broker)) == 0

    def __enter__(self) -> MockCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)
