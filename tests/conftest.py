"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.realkafka import KafkaUnavailable, RealKafka


@pytest.fixture(scope="session")
def real_kafka() -> Iterator[str]:
    """Bootstrap address of a real Kafka, one node for the whole run.

    Skips with the reason where Java or Maven is missing; with KCS_REQUIRE_KAFKA=1 (continuous integration) it fails.
    """
    kafka = RealKafka()
    try:
        kafka.start()
    except KafkaUnavailable as error:
        if os.environ.get("KCS_REQUIRE_KAFKA") == "1":
            pytest.fail(f"KCS_REQUIRE_KAFKA=1, but {error}")
        pytest.skip(f"no real Kafka: {error}")
    try:
        yield kafka.bootstrap
    finally:
        kafka.stop()
