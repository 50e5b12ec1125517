"""The sink's shipping, bounds and counts on a fake cluster; its failures are in test_recovery.py."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kcs.clock import VirtualClock
from kcs.errors import KafkaError
from kcs.kafka import sink as sink_module
from kcs.kafka.partition import partition_of
from kcs.kafka.sink import KafkaSink
from kcs.sink import POSITION, RECORD_BYTES_MAX, Sink
from tests.kafka.fakes import CAPTURE, START_NS, FakeCluster, Latencies, emit, open_sink, patch, turns

TRADES = ("trade.upbit", 0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    patch(monkeypatch, cluster)
    return cluster


def batches(cluster: FakeCluster) -> list[list[int]]:
    return [[POSITION.unpack(record.position)[0] for record in records] for _, records in cluster.sent]


def test_is_a_sink(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink: Sink = await open_sink(cluster)
        await sink.close()

    asyncio.run(run())


def test_one_batch_flies_while_the_next_fills_and_its_ack_ships_that(cluster: FakeCluster) -> None:
    async def run() -> None:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster)
        emit(sink, 0)
        emit(sink, 1)
        assert batches(cluster) == []  # not before the end of the turn
        await turns()
        assert batches(cluster) == [[0, 1]]
        for number in (2, 3, 4):
            emit(sink, number)
            await turns()
        assert batches(cluster) == [[0, 1]]
        cluster.release()
        await turns()
        assert batches(cluster) == [[0, 1], [2, 3, 4]]
        assert (sink.produced, sink.acked, sink.in_flight) == (5, 2, 3)
        cluster.release()
        await sink.drain()
        assert (sink.produced, sink.acked, sink.in_flight) == (5, 5, 0)
        await sink.close()

    asyncio.run(run())


def test_a_full_batch_ships_within_the_turn_and_later_ones_wait(cluster: FakeCluster) -> None:
    async def run() -> None:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster, batch_bytes_max=2048, buffer_bytes_max=8192)
        for number in range(7):
            emit(sink, number, value=b"x" * 900)
        assert batches(cluster) == [[0, 1]]
        for expected in ([0, 1], [2, 3], [4, 5], [6]):
            assert batches(cluster)[-1] == expected
            cluster.release()
            await turns()
        assert cluster.positions(TRADES) == list(range(7))
        await sink.close()

    asyncio.run(run())


def test_full_above_the_mark_and_room_when_acks_come(cluster: FakeCluster) -> None:
    async def run() -> None:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster, batch_bytes_max=2048, buffer_bytes_max=4096)
        await asyncio.wait_for(sink.room(), 1)
        number = 0
        while not sink.full:
            emit(sink, number, value=b"x" * 900)
            number += 1
        room = asyncio.ensure_future(sink.room())
        await turns()
        assert not room.done()
        cluster.release()
        await asyncio.wait_for(room, 1)
        await asyncio.wait_for(sink.room(), 1)
        await sink.close(0)

    asyncio.run(run())


def test_drain_and_close_end_at_their_timeout_and_the_rest_counts_as_in_flight(cluster: FakeCluster) -> None:
    async def run() -> KafkaSink:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster)
        for number in range(3):
            emit(sink, number)
            await turns()
        await sink.drain(0.01)
        assert sink.in_flight == 3
        await sink.close(0.01)
        await sink.close()
        return sink

    sink = asyncio.run(run())
    assert (sink.produced, sink.acked, sink.failed, sink.in_flight) == (3, 0, 0, 3)
    assert all(link.closed for link in cluster.links)


def test_close_without_timeout_delivers_everything(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink = await open_sink(cluster)
        for number in range(3):
            emit(sink, number)
        await sink.close()
        assert sink.acked == 3

    asyncio.run(run())
    assert cluster.positions(TRADES) == [0, 1, 2]


def test_a_batch_never_holds_records_of_two_captures(cluster: FakeCluster) -> None:
    async def run() -> None:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster)
        emit(sink, 0)
        emit(sink, 1)
        sink.start(b"capture2")
        emit(sink, 0)
        assert sink.delivery(CAPTURE).in_flight == 2
        assert sink.delivery().in_flight == 1
        await turns()
        cluster.release()
        await turns()
        cluster.release()
        await turns()
        await sink.close()
        assert sink.offsets(CAPTURE) == {"trade.upbit": {0: (0, 1)}}
        assert sink.offsets(b"capture2") == {"trade.upbit": {0: (2, 2)}}
        assert (sink.delivery().acked, sink.delivery(CAPTURE).acked, sink.delivery(b"never...").acked) == (1, 2, 0)

    asyncio.run(run())
    captures = [dict(record.headers)["kcs"][:8] for record in cluster.log[TRADES]]
    assert captures == [CAPTURE, CAPTURE, b"capture2"]


def test_captures_that_take_turns_on_different_topics_do_not_cut_each_others_batches(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink = await open_sink(cluster)
        for number in range(4):
            sink.start(CAPTURE)
            emit(sink, number)
            sink.start(b"capture2")
            emit(sink, number, channel="orderbook")
        await sink.drain()
        assert batches(cluster) == [[0, 1, 2, 3], [0, 1, 2, 3]]
        assert (sink.delivery(CAPTURE).acked, sink.delivery(b"capture2").acked) == (4, 4)
        await sink.close()

    asyncio.run(run())


def test_records_carry_their_key_time_and_headers(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink = await open_sink(cluster)
        position = POSITION.pack(7, 3, START_NS + 999_999)
        sink.emit(sink.route("trade", "upbit", "KRW-ÄTH"), b"[2]", START_NS + 999_999, position, b"t-1", (("a", b"b"),))
        sink.emit(sink.route("trade", "upbit", "KRW-ÄTH"), b"[3]", START_NS + 1_000_000, position, b"")
        await sink.close()

    asyncio.run(run())
    first, second = cluster.log[TRADES]
    assert (first.key, first.value, first.timestamp_ms) == ("KRW-ÄTH".encode(), b"[2]", START_NS // 1_000_000)
    assert first.headers == [("kcs", CAPTURE + POSITION.pack(7, 3, START_NS + 999_999)), ("id", b"t-1"), ("a", b"b")]
    assert [name for name, _ in second.headers] == ["kcs"]
    assert second.timestamp_ms == START_NS // 1_000_000 + 1


def test_headers_can_be_off(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink = await open_sink(cluster, headers=False)
        sink.emit(
            sink.route("reject", "upbit", "0"), b"raw", START_NS, POSITION.pack(0, 0, START_NS), b"", (("r", b"x"),)
        )
        await sink.close()

    asyncio.run(run())
    assert cluster.log["reject.upbit", 0][0].headers == []


def test_latency_is_taken_at_the_ack_for_the_whole_batch(cluster: FakeCluster) -> None:
    latencies, clock = Latencies(), VirtualClock(START_NS)

    async def run() -> None:
        cluster.decide = lambda place, batch: None
        sink = await open_sink(cluster, clock=clock, latency=latencies)
        emit(sink, 0)
        emit(sink, 5)
        await turns()
        clock.advance(1_000_000)
        cluster.release()
        await turns()
        await sink.close()

    asyncio.run(run())
    assert latencies.taken == [1_000_000, 995_000]


def test_a_record_too_large_for_any_broker_fails_alone(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> KafkaSink:
        sink = await open_sink(cluster)
        emit(sink, 0)
        emit(sink, 1, value=b"x" * (RECORD_BYTES_MAX + 1))
        emit(sink, 2, value=b"x" * RECORD_BYTES_MAX)
        emit(sink, 3)
        await sink.close()
        return sink

    sink = asyncio.run(run())
    assert cluster.positions(TRADES) == [0, 2, 3]
    assert (sink.produced, sink.acked, sink.failed, sink.in_flight) == (4, 3, 1, 0)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    for part in (CAPTURE.hex(), "frame 1 event 0", "trade.upbit", "KRW-BTC", str(RECORD_BYTES_MAX + 1)):
        assert part in line


def test_key_and_headers_count_towards_what_a_broker_takes(cluster: FakeCluster) -> None:
    async def run() -> KafkaSink:
        sink = await open_sink(cluster)
        emit(sink, 0, key="K" * 200_000, value=b"x" * RECORD_BYTES_MAX)
        await sink.close()
        return sink

    assert asyncio.run(run()).failed == 1


def test_partitions_share_the_keys_as_the_java_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(partitions=6)
    patch(monkeypatch, cluster)

    async def run() -> None:
        sink = await open_sink(cluster)
        for number in range(60):
            emit(sink, number, key=f"KRW-{number}")
        await sink.close()
        assert sink.partitions()["trade.upbit"] == 6

    asyncio.run(run())
    for (_, partition), records in cluster.log.items():
        assert {partition_of(record.key, 6) for record in records} == {partition}
    assert len(cluster.log) == 6


def test_what_is_not_open_has_no_route(cluster: FakeCluster) -> None:
    async def run() -> None:
        sink = await open_sink(cluster)
        with pytest.raises(KafkaError, match="ticker"):
            sink.route("ticker", "upbit", "KRW-BTC")
        with pytest.raises(ValueError, match="8 bytes"):
            sink.start(b"short")
        await sink.close()

    asyncio.run(run())


def test_counts_of_an_earlier_run_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(partitions=6)
    patch(monkeypatch, cluster)

    async def run() -> None:
        sink = await open_sink(cluster)
        await sink.open(["upbit"], ["trade"], partitions={"trade.upbit": 2, "other": 9})
        assert sink.partitions() == {"trade.upbit": 2, "gap.upbit": 6, "reject.upbit": 6}
        with pytest.raises(KafkaError, match="6 partitions"):
            await sink.open(["upbit"], ["trade"], partitions={"trade.upbit": 7})
        await sink.close()

    asyncio.run(run())
    assert all(link.closed for link in cluster.links)


def test_a_fresh_producer_takes_over_before_the_sequence_runs_out(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_SEQUENCE_SOFT_MAX", 5)

    async def run() -> None:
        sink = await open_sink(cluster)
        for number in range(30):
            emit(sink, number)
            await turns()
        await sink.close()

    asyncio.run(run())
    assert cluster.positions(TRADES) == list(range(30))
    assert len(cluster.links) >= 4
    assert all(link.closed for link in cluster.links)


def test_asking_for_many_captures_forgets_none(cluster: FakeCluster) -> None:
    """A run that is behind asks, at each tick, what became of every file that waits for its receipt."""

    async def run() -> None:
        sink = await open_sink(cluster)
        emit(sink, 0)
        await sink.drain()
        for number in range(3_000):
            assert sink.delivery(number.to_bytes(8, "big")).acked == 0
        assert sink.delivery(CAPTURE).acked == 1
        emit(sink, 1)
        await sink.drain()
        assert sink.delivery(CAPTURE).acked == 2
        await sink.close()

    asyncio.run(run())
