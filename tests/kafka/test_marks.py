"""Where a capture stands on a partition, read from a real Kafka: marks, orphans, first and last offsets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka import marks
from kcs.kafka.marks import Extent, read_extents, read_marks, wait_in_sync
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.sink import POSITION
from tests.kafka.wire import CAPTURE, fresh_template, opened

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]

OTHER = b"capture2"
MS = 1_000_000


async def put(sink: KafkaSink, numbers: Iterable[int], first_ns: int, *, capture: bytes = CAPTURE) -> None:
    """Records of one market with these frame numbers, a millisecond apart, acknowledged."""
    sink.start(capture)
    for number in numbers:
        recv_ns = first_ns + number * MS
        sink.emit(sink.route("trade", "upbit", "KRW-BTC"), b"1", recv_ns, POSITION.pack(number, 0, recv_ns), b"")
        if number % 100 == 99:
            await asyncio.sleep(0)
    await sink.drain()


def test_first_last_and_orphans(real_kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other captures before, between and after; small windows, so that the search goes over several."""
    monkeypatch.setattr(marks, "_WINDOW_MIN", 10)
    monkeypatch.setattr(marks, "_WINDOW_MAX", 40)
    first_ns = SystemClock().now_ns()
    topic = fresh_template()

    async def run() -> None:
        async with opened(real_kafka, template=topic) as sink:
            name, counts = topic.format(channel="trade", exchange="upbit"), sink.partitions()
            await put(sink, range(30), first_ns - 60_000 * MS, capture=OTHER)
            assert await read_marks(sink.settings, counts, CAPTURE) == {}
            assert await read_extents(sink.settings, {}, CAPTURE, 5) == {}
            await put(sink, range(100), first_ns)
            await put(sink, range(30, 60), first_ns, capture=OTHER)
            await put(sink, range(100, 200), first_ns)
            await put(sink, range(60, 200), first_ns, capture=OTHER)
            for since_ms in (None, first_ns // MS):
                found = await read_marks(sink.settings, counts, CAPTURE, since_ms=since_ms)
                ((place, mark),) = found.items()
                assert (place, mark.number, mark.offset) == ((name, 0), 199, 259)
                for end, expected in (
                    (200, Extent(30, 259, 0)),
                    (1_000, Extent(30, 259, 0)),
                    (199, Extent(30, 258, 1)),
                    (100, Extent(30, 129, 100)),
                    (1, Extent(30, 30, 199)),
                    (0, Extent(None, None, 200)),
                ):
                    extents = await read_extents(sink.settings, found, CAPTURE, end, since_ms=since_ms)
                    assert extents == {(name, 0): expected}, end

    asyncio.run(run())


async def make_topic(bootstrap: str, topic: str, **configs: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    named = {key.replace("_", "."): value for key, value in configs.items()}
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=named)])
    await admin.close()


def test_a_broker_that_sets_the_time_itself_may_have_another_clock(real_kafka: str) -> None:
    """With LogAppendTime a record is not older than the collector says, but it may look so."""
    template = fresh_template()
    later_ns = SystemClock().now_ns() + 3_600_000 * MS  # the collector's clock is an hour ahead

    async def run() -> None:
        await make_topic(
            real_kafka, template.format(channel="trade", exchange="upbit"), message_timestamp_type="LogAppendTime"
        )
        async with opened(real_kafka, template=template) as sink:
            await put(sink, range(10), later_ns)
            (mark,) = (await read_marks(sink.settings, sink.partitions(), CAPTURE, since_ms=later_ns // MS)).values()
            assert (mark.number, mark.offset) == (9, 9)

    asyncio.run(run())


def test_waiting_for_replicas_ends_with_what_is_missing(
    real_kafka: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    monkeypatch.setattr(marks, "_IN_SYNC_POLL_S", 0.01)
    topic = fresh_template().format(channel="trade", exchange="upbit")

    async def run() -> None:
        await make_topic(real_kafka, topic, min_insync_replicas="2")
        settings = KafkaSettings(real_kafka)
        with pytest.raises(KafkaError, match="too few replicas") as caught:
            await wait_in_sync(settings, {topic: 1}, timeout_s=0.1)
        assert f"{topic}[0]" in str(caught.value)

    asyncio.run(run())
