"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.realkafka import KafkaUnavailable, RealKafka


@pytest.fixture(scope="session")
def real_kafka() -> Iterator[str]:
    """Bootstrap address of a real Kafka, one node for the whole run.

    Skips with the reason where Java or Maven is missing; with REQUIRE_REAL_KAFKA=1 (continuous integration) it fails.
    """
    kafka = RealKafka()
    try:
        kafka.start()
    except KafkaUnavailable as error:
        if os.environ.get("REQUIRE_REAL_KAFKA") == "1":
            pytest.fail(f"REQUIRE_REAL_KAFKA=1, but {error}")
        pytest.skip(f"no real Kafka: {error}")
    try:
        yield kafka.bootstrap
    finally:
        kafka.stop()
