"""What topics are checked for, without a broker; with one, see test_real.py and test_embedded.py."""

from __future__ import annotations

import logging

import pytest

from kcs.errors import KafkaError
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import _check_topic, agreed, is_embedded

HOUR_NS = 3_600 * 1_000_000_000


def check(configs: dict[str, str], age_ns: int | None, *, forever: bool = True) -> None:
    _check_topic(KafkaSettings("h:1", retention_forever=forever), "t", configs, age_ns)


def test_retention_shorter_than_the_age_is_refused_for_replays_only() -> None:
    hour = {"retention.ms": "3600000"}
    with pytest.raises(KafkaError, match=r"retention\.ms=3600000"):
        check(hour, HOUR_NS + 1)
    check(hour, HOUR_NS)
    check(hour, None)
    check({"retention.ms": "-1"}, 10**6 * HOUR_NS)
    check({}, 10**6 * HOUR_NS)
    check(hour, HOUR_NS + 1, forever=False)


def test_a_compacted_topic_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    check({"cleanup.policy": "delete"}, None)
    assert caplog.records == []
    check({"cleanup.policy": "compact,delete"}, None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_counts_of_an_earlier_run_win_unless_the_topic_has_fewer() -> None:
    assert agreed({"a": 6, "b": 1}, {"a": 2, "gone": 1}) == {"a": 2, "b": 1}
    with pytest.raises(KafkaError, match="1 partitions"):
        agreed({"a": 6, "b": 1}, {"b": 2})


def test_the_embedded_broker_is_known_by_its_cluster_id() -> None:
    assert is_embedded("mockCluster155d7cfd1730")
    assert not is_embedded("3n8mG_6uS0yphBZY8SUYfQ")
