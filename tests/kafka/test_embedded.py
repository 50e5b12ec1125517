"""The sink on librdkafka's mock cluster: as it comes (the embedded broker), and made to fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka.embedded import PARTITION_BYTES_KEPT, PARTITIONS, EmbeddedBroker
from kcs.kafka.link import connect
from kcs.kafka.marks import read_mark, read_marks
from kcs.kafka.resume import ResumingSink
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import cluster_id, is_embedded, read_topics
from kcs.sink import POSITION, Sink
from tests.kafka import mockcluster
from tests.kafka.mockcluster import INIT_PRODUCER_ID, PRODUCE, MockCluster
from tests.kafka.wire import CAPTURE, FIRST_NS, assert_whole, emit, frame_of, fresh_template, opened, read_back

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def mock() -> Iterator[MockCluster]:
    with MockCluster() as cluster:
        yield cluster


def test_what_is_sent_is_what_is_read(broker: EmbeddedBroker) -> None:
    async def run() -> None:
        async with opened(broker.bootstrap) as sink:
            assert sink.embedded
            assert set(sink.partitions().values()) == {PARTITIONS}
            for number in range(5_000):
                emit(sink, number)
                if number % 500 == 0:
                    await asyncio.sleep(0)
            await sink.drain()
            assert (sink.acked, sink.failed, sink.in_flight) == (5_000, 0, 0)
            records = await read_back(sink)
            assert_whole(records, set(range(5_000)))
            for record in records:
                number = frame_of(record)
                assert record.key == f"KRW-{number % 7}".encode()
                assert record.value == b'["value of record %d"]' % number
                assert record.timestamp_ms == FIRST_NS // 1_000_000 + number
                assert record.headers[1] == ("id", b"id-%d" % number)
            ends = {partition: (0, sum(r.partition == partition for r in records) - 1) for partition in range(4)}
            assert dict(sink.offsets().popitem()[1]) == {number: end for number, end in ends.items() if end[1] >= 0}

    asyncio.run(run())


def test_two_brokers_are_two_clusters_and_close_twice() -> None:
    async def run() -> None:
        with EmbeddedBroker() as one, EmbeddedBroker() as two:
            ids = {await cluster_id(KafkaSettings(each.bootstrap)) for each in (one, two)}
            assert len(ids) == 2
            assert all(is_embedded(each) for each in ids)
            one.close()

    asyncio.run(run())


def test_it_keeps_the_newest_five_megabytes_as_documented(broker: EmbeddedBroker) -> None:
    async def run() -> None:
        async with opened(broker.bootstrap) as sink:
            for number in range(200):
                emit(sink, number, markets=1, value=b"x" * 50_000)
                await sink.room()
            await sink.drain()
            records = await read_back(sink)
            assert frame_of(records[-1]) == 199
            kept = sum(len(record.value or b"") for record in records)
            assert 0.8 * PARTITION_BYTES_KEPT < kept <= PARTITION_BYTES_KEPT

    asyncio.run(run())


def test_compressed_batches_read_back(broker: EmbeddedBroker) -> None:
    async def run() -> None:
        async with opened(broker.bootstrap, properties={"compression.type": "gzip"}) as sink:
            for number in range(100):
                emit(sink, number)
            await sink.drain()
            assert_whole(await read_back(sink), set(range(100)))

    asyncio.run(run())


def test_marks_and_going_on_above_them(broker: EmbeddedBroker) -> None:
    template = fresh_template()

    async def run() -> None:
        async with opened(broker.bootstrap, template=template) as sink:
            for number in range(3_000):
                emit(sink, number)
            await sink.drain()
            sink.start(b"another!")
            recv_ns = FIRST_NS
            for number in range(2_500):  # the first window of a backward scan has none of our records
                sink.emit(sink.route("trade", "upbit", "KRW-1"), b"1", recv_ns, POSITION.pack(number, 0, recv_ns), b"")
            await sink.drain()
        counts = {template.format(channel="trade", exchange="upbit"): 4}
        marks = await read_marks(sink.settings, counts, CAPTURE)
        topic = next(iter(counts))
        assert max(POSITION.unpack(mark.position)[0] for mark in marks.values()) == 2_999
        partition, mark = next((place[1], mark) for place, mark in marks.items())
        assert await read_mark(sink.settings, topic, partition, CAPTURE) == mark
        assert await read_mark(sink.settings, topic, partition, CAPTURE, floor=mark.offset + 1) is None
        assert await read_marks(sink.settings, counts, b"nobody's") == {}
        async with opened(broker.bootstrap, template=template) as sink:
            resuming = ResumingSink(sink, marks)
            as_sink: Sink = resuming
            for number in range(3_500):
                recv_ns = FIRST_NS + number * 1_000_000
                route = as_sink.route("trade", "upbit", f"KRW-{number % 7}")
                as_sink.emit(route, b"1", recv_ns, POSITION.pack(number, 0, recv_ns), b"")
            await as_sink.drain()
            assert (resuming.skipped, resuming.acked, resuming.failed, resuming.full) == (3_000, 500, 0, False)
            ours = [record for record in await read_back(sink) if dict(record.headers)["kcs"][:8] == CAPTURE]
            assert_whole(ours, set(range(3_500)))

    asyncio.run(run())


def test_reading_a_topic_that_is_not_there(broker: EmbeddedBroker) -> None:
    async def run() -> None:
        with pytest.raises(KafkaError, match=r"nowhere.*no such topic"):
            async for _ in read_topics(KafkaSettings(broker.bootstrap), ["nowhere"]):
                pass

    asyncio.run(run())


@pytest.mark.parametrize(
    "codes",
    [
        (mockcluster.NOT_LEADER,),
        (mockcluster.TIMED_OUT, mockcluster.TIMED_OUT),
        (mockcluster.NOT_ENOUGH_REPLICAS_AFTER_APPEND,),
        (mockcluster.TRANSPORT,),
        (mockcluster.OUT_OF_ORDER,),
        (mockcluster.INVALID_RECORD,),
        (mockcluster.NO_ERROR, mockcluster.OUT_OF_ORDER, mockcluster.OUT_OF_ORDER, mockcluster.NOT_LEADER),
        (mockcluster.TOPIC_AUTHORIZATION_FAILED,),
    ],
)
def test_whatever_a_broker_answers_order_and_count_stay(mock: MockCluster, codes: tuple[int, ...]) -> None:
    template = fresh_template()
    mock.create_topic(template.format(channel="trade", exchange="upbit"), 2)

    async def run() -> None:
        async with opened(mock.bootstrap, template=template, properties={"retry.backoff.ms": "20"}) as sink:
            mock.answer(PRODUCE, *codes)
            for number in range(100):
                emit(sink, number)
                if number % 10 == 0:
                    await asyncio.sleep(0)
            while sink.in_flight:
                with contextlib.suppress(KafkaError):  # no right to write, lifted at the second try
                    await asyncio.wait_for(sink.drain(), 20)
                await asyncio.sleep(0)
            assert (sink.acked, sink.failed, sink.in_flight) == (100, 0, 0)
            assert_whole(await read_back(sink), set(range(100)))

    asyncio.run(run())


def test_late_acks_do_not_break_the_order(mock: MockCluster) -> None:
    async def run() -> None:
        async with opened(mock.bootstrap, properties={"retry.backoff.ms": "20"}) as sink:
            mock.answer_late(PRODUCE, mockcluster.NO_ERROR, 150)
            mock.answer_late(PRODUCE, mockcluster.NOT_LEADER, 100)
            mock.answer_late(PRODUCE, mockcluster.NO_ERROR, 50)
            for number in range(200):
                emit(sink, number, markets=1)
                await asyncio.sleep(0)
            assert sink.in_flight > 0
            await asyncio.wait_for(sink.drain(), 20)
            assert_whole(await read_back(sink), set(range(200)))

    asyncio.run(run())


def test_a_broker_that_goes_and_comes_back(mock: MockCluster) -> None:
    async def run() -> None:
        async with opened(mock.bootstrap, properties={"retry.backoff.ms": "20"}) as sink:
            emit(sink, 0)
            await sink.drain()
            mock.down()
            for number in range(1, 50):
                emit(sink, number)
                await asyncio.sleep(0)
            await sink.drain(0.2)
            assert sink.in_flight == 49
            mock.up()
            await asyncio.wait_for(sink.drain(), 20)
            assert_whole(await read_back(sink), set(range(50)))

    asyncio.run(run())


def test_close_ends_though_the_broker_does_not_come_back(mock: MockCluster) -> None:
    async def run() -> None:
        async with opened(mock.bootstrap) as sink:
            emit(sink, 0)
            await sink.drain()
            mock.down()
            emit(sink, 1)
            await asyncio.wait_for(sink.close(0.1), 5)
            assert (sink.acked, sink.failed, sink.in_flight) == (1, 0, 1)

    asyncio.run(run())


def test_a_cluster_that_grants_no_producer_is_named(mock: MockCluster) -> None:
    async def run() -> None:
        mock.answer(INIT_PRODUCER_ID, *[15] * 100)
        with pytest.raises(KafkaError, match=r"advertised as 127\.0\.0\.1"):
            await connect(KafkaSettings(mock.bootstrap, connect_timeout_s=0.3), SystemClock())

    asyncio.run(run())
