"""Live digest = replay digest at 1x, 10x and max; consumed = produced records; on the embedded and a real Kafka."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from kcs.capture.reader import CaptureReader
from kcs.capture.writer import WriterSettings
from kcs.kafka.embedded import EmbeddedBroker
from kcs.live.receipt import delivery_path, receipt_path
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from kcs.sim.fault_text import parse_faults
from kcs.sink import NullSink
from kcs.stats import LatencyHistogram
from kcs.verify import verify
from tests.e2e.rig import assert_same, collected, consumed, delivery, fresh_template, kafka, replayed, simulated

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")

SPEEDS = [Fraction(1), Fraction(10), None]


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


async def the_loop(bootstrap: str, directory: Path, *, frames: int, real: bool) -> None:
    """Collect, then replay at all speeds; compare digests and every record. Under 4 MB a partition."""
    latency = LatencyHistogram()
    junk = parse_faults("junk@every:50")
    async with (
        simulated(2_000, faults=junk) as sim,
        kafka(bootstrap, fresh_template("live"), latency=latency) as sink,
    ):
        info = delivery(sink.inner) if real else None
        result = await collected(sim.url, directory, sink, frames=frames, info=info)
        (capture,) = result.captures
        assert capture.digest == result.digest == verify(capture.path).digest
        assert (result.drained, result.behind, result.failure) == (True, False, None)
        ledger = result.ledger
        assert (ledger.acked, ledger.failed, ledger.in_flight) == (ledger.produced, 0, 0)
        assert ledger.produced == len(sink.taken) == latency.count > frames * 0.9
        assert sum(ledger.rejected.values()) > 0, "junk is part of the proof"
        assert_same(await consumed(sink.inner), sink.taken)
        live = [(one.topic.split(".", 1)[1], one.key, one.value, one.timestamp_ms, one.headers) for one in sink.taken]
        if real:
            assert_receipt(capture.path, sink.inner.cluster_id, capture.digest, len(sink.taken))
            assert verify(capture.path).ok
    for speed in SPEEDS:
        async with kafka(bootstrap, fresh_template("replay"), retention_forever=True) as again:
            played, ledger = await replayed([capture.path], again, speed)
            assert played.played[0].digest == capture.digest
            assert (ledger.acked, ledger.lost) == (result.ledger.acked, False)
            assert live == [
                (one.topic.split(".", 1)[1], one.key, one.value, one.timestamp_ms, one.headers) for one in again.taken
            ]
            assert_same(await consumed(again.inner), again.taken)
            if speed is not None:
                assert played.seconds >= played.recorded_s / speed


def assert_receipt(capture: Path, cluster: str, digest: str, records: int) -> None:
    delivered = json.loads(delivery_path(capture).read_text())
    receipt = json.loads(receipt_path(capture).read_text())
    assert delivered["cluster"] == receipt["cluster"] == cluster
    assert receipt["digest"] == digest
    assert receipt["records"] == {"produced": records, "acked": records, "failed": 0}
    counted = sum(
        partition["last"] - partition["first"] + 1
        for partitions in receipt["offsets"].values()
        for partition in partitions.values()
    )
    assert counted == records, "fresh topics: offsets without a hole are the number of records"
    (compared,) = verify(capture).comparisons
    assert compared.matches is True


def test_the_loop_on_the_embedded_broker(embedded: str, tmp_path: Path) -> None:
    asyncio.run(the_loop(embedded, tmp_path, frames=800, real=False))
    assert not list(tmp_path.glob("*.json")), "the embedded broker keeps nothing that could be receipted"


@pytest.mark.kafka
def test_the_loop_on_a_real_kafka(real_kafka: str, tmp_path: Path) -> None:
    asyncio.run(the_loop(real_kafka, tmp_path, frames=1_000, real=True))


@pytest.mark.kafka
def test_several_partitions_keep_the_order_of_each_key(real_kafka: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with simulated(4_000) as sim, kafka(real_kafka, fresh_template("six"), partitions=6) as sink:
            markets = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE")
            result = await collected(sim.url, tmp_path, sink, frames=3_000, markets=markets, info=delivery(sink.inner))
            records = await consumed(sink.inner)
            assert_same(records, sink.taken)
            assert len({record.partition for record in records}) > 1
            assert_receipt(result.captures[0].path, sink.inner.cluster_id, str(result.digest), len(sink.taken))

    asyncio.run(run())


def test_a_forced_reconnect_is_recorded_produced_and_replayed(embedded: str, tmp_path: Path) -> None:
    async def run() -> None:
        faults = parse_faults("close_code=1006@after:1s")
        async with simulated(400, faults=faults) as sim, kafka(embedded, fresh_template("drop")) as sink:
            result = await collected(sim.url, tmp_path, sink, frames=500, reconnects=1)
            (capture,) = result.captures
            assert result.reconnects >= 1
            assert result.gaps >= 1
            await assert_recorded(capture.path)
            gaps = [json.loads(one.value) for one in sink.taken if one.topic.split(".")[1] == "gap"]
            assert len(gaps) == result.gaps == result.ledger.gaps
            assert gaps[0]["cause"] == "lost" or gaps[0]["cause"] == "disconnect"
            assert gaps[0]["stream"] == 0
            assert gaps[0]["from"] < gaps[0]["to"]
            assert_same(await consumed(sink.inner), sink.taken)
        played, ledger = await replayed([capture.path], NullSink())
        assert played.played[0].digest == capture.digest
        assert ledger.gaps == result.ledger.gaps

    asyncio.run(run())


async def assert_recorded(path: Path) -> None:
    """close -> open -> gap, and the open records count the frames that came before, so that a hole would show."""
    with CaptureReader(path) as reader:
        records = list(reader.records())
    kinds = [record.kind for record in records]
    close = kinds.index(Kind.CLOSE)
    then = [record for record in records[close:] if record.kind in (Kind.CLOSE, Kind.GAP, Kind.OPEN)][:3]
    assert sorted(record.kind.name for record in then) == ["CLOSE", "GAP", "OPEN"]
    frames = sum(kind in (Kind.TEXT, Kind.BINARY) for kind in kinds[:close])
    for record in then:
        if isinstance(record.fields, CloseFields | OpenFields):
            assert record.fields.frames == frames
        elif isinstance(record.fields, GapFields):
            assert record.fields.from_ns <= record.fields.to_ns
    assert isinstance(then[0].fields, CloseFields)
    assert then[0].fields.code == 1006


@pytest.mark.kafka
@pytest.mark.parametrize("how", ["size", "age"])
def test_each_rotated_file_replays_to_its_receipt_and_all_together(real_kafka: str, tmp_path: Path, how: str) -> None:
    async def run() -> None:
        limit = {"size_max": 20_000} if how == "size" else {"age_max_ns": 400_000_000}
        writer = WriterSettings(flush_ns=100_000_000, **limit)
        async with simulated(1_500) as sim, kafka(real_kafka, fresh_template(how)) as sink:
            info = delivery(sink.inner)
            result = await collected(sim.url, tmp_path, sink, frames=1_500, writer=writer, info=info, files=4)
            assert len(result.captures) >= 4
            assert result.digest is None
            assert_same(await consumed(sink.inner), sink.taken)
        for capture in result.captures:
            receipt = json.loads(receipt_path(capture.path).read_text())
            played, ledger = await replayed([capture.path], NullSink())
            assert played.played[0].digest == capture.digest == receipt["digest"]
            assert ledger.acked == receipt["records"]["acked"]
            assert verify(capture.path).ok
        together, ledger = await replayed([capture.path for capture in result.captures], NullSink())
        assert {p.path: p.digest for p in together.played} == {c.path: c.digest for c in result.captures}
        assert ledger.acked == result.ledger.acked
        assert ledger.suppressed == result.ledger.suppressed
        with CaptureReader(result.captures[1].path) as reader:
            kinds = [record.kind for record in reader.records()]
        assert kinds[:2] == [Kind.CLOCK, Kind.OPEN]
        assert Kind.STATE in kinds, "a rotated file stands alone"

    asyncio.run(run())
