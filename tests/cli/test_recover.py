"""`kcs recover --produce`: what a crash left goes where it began to go; exit code and report say what became of it."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import InvalidTimestampError

import kcs.deliver
from kcs.clock import SystemClock
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import read_topics
from kcs.live.receipt import delivery_path, read_receipt, receipt_path
from kcs.sink import POSITION
from kcs.verify import verify
from tests.broker import Broker, begin_delivery, made_by
from tests.capture.making import chunks_of
from tests.capture.test_reader import flip
from tests.cli.processes import Done, run
from tests.e2e.rig import fresh_template
from tests.kafka.fakes import Answer
from tests.replay.making import START_NS, make, trade, trades, writer
from tests.test_deliver import COUNTS, frames, produce_some

Call = Callable[..., Done]
PRODUCE = ("recover", "--produce", "-b", "fake:9092", "--settle", "0s")


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker(COUNTS)
    broker.install(monkeypatch)
    monkeypatch.setattr(kcs.deliver, "deliver", functools.partial(kcs.deliver.deliver, connector=broker.connect))
    return broker


def begun(directory: Path, number: int = 1, count: int = 200, first: int = 0) -> Path:
    path = make(directory, number, frames(count, first))
    begin_delivery(path, COUNTS)
    return path


def unsealed(path: Path, cut: int | None = None) -> Path:
    """The same as a dead collector leaves it: no index, and perhaps an unfinished chunk at the end."""
    last = chunks_of(path)[-1]
    os.truncate(path, last.offset + 72 + last.meta.stored_bytes if cut is None else last.offset + cut)
    return path.rename(path.with_name(path.name + ".partial"))


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_partial_is_sealed_delivered_and_receipted(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    path = begun(tmp_path)
    produce_some(broker, path, 70)
    partial = unsealed(path)
    done = kcs(*PRODUCE, partial, "--json")
    assert done.code == 0, done.err
    assert "sealed what a dead run left" in done.err
    assert broker.holds() == made_by(path, COUNTS)
    report = done.json
    (capture,) = report["captures"]
    counts = {"produced": 200, "already": 70, "acked": 130, "failed": 0, "in_flight": 0}
    assert (report["verb"], report["records"], report["uncaptured"], report["warnings"]) == ("recover", counts, 0, [])
    assert capture == {
        "path": str(path),
        "id": "0000000000000001",
        "exchange": "upbit",
        "sealed": True,
        "cut": 0,
        "delivered": True,
        "records": counts,
        "uncaptured": 0,
        "missing": None,
        "digest": verify(path).digest,
        "receipt": str(receipt_path(path)),
        "error": None,
    }
    assert not partial.exists()
    again = kcs(*PRODUCE, path, "--json")
    assert (again.code, again.json["captures"][0]["delivered"]) == (0, True)
    assert again.json["captures"][0]["records"] is None
    text = kcs(*PRODUCE, path)
    assert (text.code, text.out) == (0, b"")
    assert "it has a receipt" in text.err


def test_as_a_table(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    path = begun(tmp_path)
    produce_some(broker, path, 200, beyond=range(200, 205))
    done = kcs(*PRODUCE, path)
    assert (done.code, done.out) == (3, b""), "the raw frames of five records in Kafka are lost"
    for text in ("200 in all: 200 were in Kafka already, 0 delivered now", "5 records in Kafka", verify(path).digest):
        assert text in done.err
    assert kcs(*PRODUCE, "-q", path).err == ""


def test_oldest_first_whatever_the_order_of_the_names(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    paths = [begun(tmp_path, number, 50, number * 50) for number in (1, 2, 3)]
    done = kcs(*PRODUCE, paths[2], paths[0], paths[1], "--json")
    assert done.code == 0
    assert [capture["path"] for capture in done.json["captures"]] == [str(path) for path in paths]
    assert done.json["records"]["acked"] == 150
    for place, records in broker.log.items():
        order = [(dict(record.headers)["kcs"][:8], POSITION.unpack(record.position)[0]) for record in records]
        assert order == sorted(order), place


def test_what_cannot_be_delivered_is_named_and_the_others_are(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    good, bad = begun(tmp_path, 1), begun(tmp_path, 2)
    begin_delivery(bad, COUNTS, headers=False)
    done = kcs(*PRODUCE, bad, good, tmp_path / "missing.zst", "--json")
    assert done.code == 1
    by_path = {capture["path"]: capture for capture in done.json["captures"]}
    assert by_path[str(good)]["error"] is None
    assert "headers were off" in by_path[str(bad)]["error"]
    assert by_path[str(bad)]["delivered"] is None
    assert "missing.zst" in by_path[str(tmp_path / "missing.zst")]["error"]
    assert receipt_path(good).exists()
    assert not receipt_path(bad).exists()
    text = kcs(*PRODUCE, bad)
    assert text.code == 1
    assert "headers were off" in text.err
    assert "kcs replay" in text.err


def test_loss_is_exit_3(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    damaged = begun(tmp_path, 1)
    flip(damaged, chunks_of(damaged)[1].offset + 90, 2)
    done = kcs(*PRODUCE, damaged, "--json")
    assert done.code == 3
    assert done.json["captures"][0]["missing"]["records"] == 50
    assert done.json["captures"][0]["digest"] is None
    refused = begun(tmp_path, 2)
    broker.decide = lambda place, batch: Answer(InvalidTimestampError())
    done = kcs(*PRODUCE, refused, "--json")
    assert done.code == 3
    assert done.json["records"]["failed"] == 200
    assert done.json["captures"][0]["delivered"] is False


def test_an_unfinished_chunk_is_cut_off_and_no_loss_of_the_capture(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    path = begun(tmp_path)
    done = kcs(*PRODUCE, unsealed(path, cut=90), "--json")
    assert (done.code, done.json["captures"][0]["cut"]) == (0, 90)
    assert done.json["records"]["produced"] == 150
    assert verify(path).ok


def test_a_full_disk_keeps_nothing_from_being_delivered(
    broker: Broker, tmp_path: Path, kcs: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kcs.capture import output

    def full(fd: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    partial = unsealed(begun(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(output, "write_all", full)
        done = kcs(*PRODUCE, partial, "--json")
    assert done.code == 0
    assert "delivering it as it is" in done.err
    (capture,) = done.json["captures"]
    assert (capture["path"], capture["sealed"], capture["receipt"]) == (str(partial), False, None)
    assert broker.holds() == made_by(partial, COUNTS)
    assert kcs(*PRODUCE, partial, "--json").json["captures"][0]["receipt"] is not None


def test_a_collector_that_is_still_running(broker: Broker, tmp_path: Path, kcs: Call) -> None:
    target = writer(tmp_path, 1)
    target.append(3, 0, START_NS, trade(1))
    target.flush()
    begin_delivery(target.path, COUNTS)
    done = kcs(*PRODUCE, target.path)
    assert done.code == 1
    assert "its collector is still running" in done.err
    target.close(START_NS)
    assert broker.holds() == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("recover", "a.zst"), "IN and OUT are wanted"),
        (("recover", "a.zst", "b.zst", "c.zst"), "3 names are given"),
        (("recover", "a.zst", "b.zst", "-b", "x:1"), "are for --produce"),
        (("recover", "--produce", "a.zst"), "-b HOST:PORT"),
        (("recover", "--produce", "a.zst", "-b", "x:1", "--force"), "--force is for IN OUT"),
        (("recover", "--produce", "a.zst", "-b", "x:1", "--settle", "soon"), "settle"),
        (("recover", "--produce", "a.zst", "-b", "x:1", "-X", "nonsense=1"), "unknown property"),
        (("recover",), "Missing argument"),
    ],
)
def test_usage(args: tuple[str, ...], said: str, kcs: Call, tmp_path: Path) -> None:
    done = kcs(*args)
    assert (done.code, done.out) == (2, b"")
    assert said in done.err
    assert os.listdir(tmp_path) == []


# --- on a real Kafka --------------------------------------------------------------------------------------------------


async def live_until(bootstrap: str, path: Path, template: str, partitions: int, frames_fed: int) -> KafkaSettings:
    """What a live run did before it died: the delivery file, and the records of so many frames."""
    settings = KafkaSettings(bootstrap, template=template, partitions=partitions)
    sink = KafkaSink(settings, SystemClock())
    await sink.open(["upbit"], ["trade"])
    begin_delivery(path, sink.partitions(), cluster=sink.cluster_id, template=template)
    sink.start((1).to_bytes(8, "big"))
    for topic, key, value, header in made_by(path, sink.partitions(), template):
        number, _, recv_ns = POSITION.unpack(header[8:])
        if number < frames_fed:
            channel = topic.split(".")[1]
            sink.emit(sink.route(channel, "upbit", key.decode()), value, recv_ns, header[8:], b"")
    await sink.close()
    return settings


async def holds(settings: KafkaSettings) -> dict[tuple[str, int], list[tuple[bytes, bytes, bytes]]]:
    found: dict[tuple[str, int], list[tuple[bytes, bytes, bytes]]] = {}
    names = [settings.template.format(channel=channel, exchange="upbit") for channel in ("trade", "gap", "reject")]
    async for record in read_topics(settings, names):
        assert record.key is not None
        assert record.value is not None
        found.setdefault((record.topic, record.partition), []).append(
            (record.key, record.value, dict(record.headers)["kcs"])
        )
    return found


def expected(path: Path, counts: dict[str, int], template: str) -> dict[tuple[str, int], list[Any]]:
    from kcs.kafka.partition import partition_of

    found: dict[tuple[str, int], list[Any]] = {}
    for topic, key, value, header in made_by(path, counts, template):
        found.setdefault((topic, partition_of(key, counts[topic])), []).append((key, value, header))
    return found


@pytest.mark.kafka
@pytest.mark.filterwarnings("default::ResourceWarning")
def test_on_a_real_kafka_with_partitions_added_since(real_kafka: str, tmp_path: Path) -> None:
    now_ns = SystemClock().now_ns()
    template = fresh_template("rec")
    path = made_now(tmp_path, now_ns)
    settings = asyncio.run(live_until(real_kafka, path, template, 3, 400))
    counts = json.loads(delivery_path(path).read_text())["partitions"]
    asyncio.run(add_partitions(real_kafka, template.format(channel="trade", exchange="upbit"), 5))
    partial = unsealed(path)
    done = run("recover", "--produce", partial, "-b", real_kafka, "--settle", "0s", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["records"] == {"produced": 1000, "already": 400, "acked": 600, "failed": 0, "in_flight": 0}
    found = asyncio.run(holds(settings))
    assert found == expected(path, counts, template)
    receipt = read_receipt(path)
    assert receipt is not None
    assert {(t, p): (o.first, o.last) for t, ps in receipt.offsets.items() for p, o in ps.items()} == {
        place: (0, len(records) - 1) for place, records in found.items()
    }
    assert receipt.digest == verify(path).digest


def made_now(tmp_path: Path, now_ns: int) -> Path:
    """A capture of the present: what is older than a topic keeps would vanish from it."""
    from kcs.capture.writer import CaptureWriter, WriterSettings
    from kcs.model import Kind
    from tests.replay.making import capture_header

    header = replace(capture_header(1), created_ns=now_ns)
    target = CaptureWriter(tmp_path / "1", header, settings=WriterSettings(threaded=False), new_id=lambda: bytes(8))
    for number, (_, payload) in enumerate(frames(1000)):
        target.append(Kind.TEXT, 0, now_ns + number * 1_000, payload)
        if number % 100 == 99:
            target.flush()
    return target.close(now_ns)[0].path


async def add_partitions(bootstrap: str, topic: str, count: int) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(count)})
    await admin.close()


@pytest.mark.kafka
def test_a_topic_that_is_gone_and_another_cluster(real_kafka: str, tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(5))
    begin_delivery(path, {"gone.trade": 1}, cluster="another")
    done = run("recover", "--produce", path, "-b", real_kafka, cwd=tmp_path)
    assert done.code == 1
    assert "its records went to cluster another" in done.err
    from kcs.kafka import topics

    cluster = asyncio.run(topics.cluster_id(KafkaSettings(real_kafka)))
    begin_delivery(path, {"gone.trade": 1}, cluster=cluster)
    done = run("recover", "--produce", path, "-b", real_kafka, cwd=tmp_path)
    assert done.code == 1
    assert "topic gone.trade" in done.err
    assert "it is gone" in done.err
    assert "try: create it again with 1 partitions" in done.err
