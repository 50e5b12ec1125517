"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.realcluster import RealCluster
from tests.realkafka import KafkaUnavailable, RealKafka


@pytest.fixture(scope="session")
def real_kafka() -> Iterator[str]:
    """Bootstrap address of a real Kafka, one node for the whole run.

    Skips with the reason where Java or Maven is missing; with REQUIRE_REAL_KAFKA=1 (continuous integration) it fails.
    """
    kafka = RealKafka()
    _begin(kafka)
    try:
        yield kafka.bootstrap
    finally:
        kafka.stop()


@pytest.fixture
def real_cluster() -> Iterator[RealCluster]:
    """Three real brokers for one test, which may do anything to them. Skips or fails as `real_kafka` does."""
    cluster = RealCluster()
    _begin(cluster)
    try:
        yield cluster
    finally:
        cluster.stop()


def _begin(kafka: RealKafka | RealCluster) -> None:
    try:
        kafka.start()
    except KafkaUnavailable as error:
        if os.environ.get("REQUIRE_REAL_KAFKA") == "1":
            pytest.fail(f"REQUIRE_REAL_KAFKA=1, but {error}")
        pytest.skip(f"no real Kafka: {error}")
