"""`kcs verify --topic` on a real Kafka: a live run is found whole; what is done to its topics by hand is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from kcs.capture.writer import WriterSettings
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import TopicRecord
from kcs.sink import POSITION
from kcs.verify_topics import verify_topics
from tests.cli.processes import Done, run
from tests.e2e.rig import collected, consumed, delivery, fresh_template, kafka, position, simulated
from tests.kafka.test_real import create_topic

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]


async def lived(bootstrap: str, directory: Path, template: str, **how: Any) -> tuple[list[Path], list[TopicRecord]]:
    """A run of some seconds into fresh topics: its captures, and what is in Kafka of it."""
    async with simulated(1_500) as sim, kafka(bootstrap, template, partitions=2) as sink:
        info = delivery(sink.inner)
        result = await collected(sim.url, directory, sink, frames=1_200, info=info, **how)
        return [capture.path for capture in result.captures], await consumed(sink.inner)


async def produced(bootstrap: str, records: Iterable[TopicRecord]) -> None:
    """Append records as they are, one after the other."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for record in records:
        await producer.send(
            record.topic,
            record.value,
            record.key,
            partition=record.partition,
            timestamp_ms=record.timestamp_ms,
            headers=list(record.headers),
        )
    await producer.stop()


async def dropped(bootstrap: str, topic: str, partition: int, before: int) -> None:
    """What retention does: the records before this offset are gone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=before)})
    await admin.close()


def verify(paths: Iterable[Path], *args: object, cwd: Path) -> Done:
    return run("verify", *paths, *args, cwd=cwd)


def test_a_rotated_live_run_is_found_whole_then_what_is_added_is_named(real_kafka: str, tmp_path: Path) -> None:
    template = fresh_template("verify")
    writer = WriterSettings(flush_ns=100_000_000, size_max=20_000)
    paths, records = asyncio.run(lived(real_kafka, tmp_path / "captures", template, writer=writer, files=3))
    assert len(paths) >= 3
    done = verify(paths, "--topic", "-b", real_kafka, cwd=tmp_path)
    assert (done.code, done.err.count("whole; all in Kafka, once and in order")) == (0, len(paths)), done.err
    alone = verify(paths[1:2], "--topic", "-b", real_kafka, "--json", cwd=tmp_path)
    assert alone.code == 0, alone.err
    report = alone.json["topics"]
    assert report["ok"]
    assert report["expected"] == report["present"] == report["found"] > 0
    assert report["receipt"]["contradicts"] == []
    assert report["read"]["other_captures"] > 0

    mine = [record for record in records if position(record.headers)[0].hex() == alone.json["id"]]
    trades = [record for record in mine if ".trade." in record.topic]
    first, last = trades[0], trades[-1]
    beyond = dict(first.headers)["kcs"][:8] + POSITION.pack(10**9, 0, 1)
    strange = [
        first,
        replace(last, value=b"[]"),
        replace(first, headers=(("kcs", beyond),)),
        replace(first, partition=1 - first.partition),
        replace(first, headers=()),
    ]
    asyncio.run(produced(real_kafka, strange))
    done = verify(paths[1:2], "--topic", "-b", real_kafka, "--json", cwd=tmp_path)
    assert done.code == 3
    report = done.json["topics"]
    assert (report["missing"], report["doubled"], report["different"]) == (0, 2, 1)
    assert (report["misplaced"], report["orphans"], report["beyond"], report["out_of_order"]) == (1, 1, 1, 0)
    assert report["read"]["without_header"] == 1
    _, frame, event = position(first.headers)
    named = {(each["fault"], each["topic"], each["partition"], each["frame"]) for each in report["findings"]}
    assert named == {
        ("doubled", first.topic, first.partition, frame),
        ("doubled", last.topic, last.partition, position(last.headers)[1]),
        ("different", last.topic, last.partition, position(last.headers)[1]),
        ("orphan", first.topic, first.partition, 10**9),
        ("misplaced", first.topic, 1 - first.partition, frame),
    }
    doubled = next(each for each in report["findings"] if (each["fault"], each["frame"]) == ("doubled", frame))
    assert doubled["offset"] > max(
        r.offset for r in records if (r.topic, r.partition) == (first.topic, first.partition)
    )
    assert doubled["event"] == event
    text = verify(paths[1:2], "--topic", "-b", real_kafka, cwd=tmp_path).err
    for word in ("DOUBLED", "DIFFERENT", "value 1", "ORPHAN", "MISPLACED", "NOT AS IT SHOULD BE IN KAFKA"):
        assert word in text
    others = verify(paths[:1] + paths[2:3], "--topic", "-b", real_kafka, "--json", cwd=tmp_path)
    assert others.code == 3, "a file between them was left out"
    assert b'"ok":false' not in others.out.splitlines()[0]
    asyncio.run(dropped(real_kafka, first.topic, first.partition, 5))
    kept = verify(paths[:1], "--topic", "-b", real_kafka, "--json", cwd=tmp_path)
    report = kept.json["topics"]
    assert (kept.code, report["expired"], report["missing"]) == (3, 5, 0), "retention is no loss of kcs"
    assert report["log_starts"] == [{"topic": first.topic, "partition": first.partition, "offset": 5}]
    assert report["receipt"]["contradicts"] == []


DAMAGE: dict[str, tuple[Callable[[list[TopicRecord]], list[TopicRecord]], dict[str, int]]] = {
    "copied as it is": (lambda log: log, {}),
    "missing": (lambda log: log[:3] + log[5:], {"missing": 2}),
    "cut": (lambda log: log[:-4], {"missing": 4}),
    "out of order": (lambda log: [*log[:3], log[4], log[3], *log[5:]], {"out_of_order": 1}),
    "other bytes": (lambda log: [*log[:3], replace(log[3], value=b"[0]"), *log[4:]], {"different": 1}),
    "other time": (lambda log: [*log[:3], replace(log[3], timestamp_ms=5), *log[4:]], {"different": 1}),
}


def test_a_copy_of_topics_with_faults(real_kafka: str, tmp_path: Path) -> None:
    paths, records = asyncio.run(lived(real_kafka, tmp_path / "captures", fresh_template("verify")))
    for change, told in DAMAGE.values():
        template = fresh_template("copy")

        async def copy(
            template: str = template, change: Callable[[list[TopicRecord]], list[TopicRecord]] = change
        ) -> None:
            names = {
                topic: template.format(channel=topic.split(".")[1], exchange="upbit")
                for topic in {record.topic for record in records}
            }
            for name in names.values():
                await create_topic(real_kafka, name, partitions=2)
            moved = [replace(record, topic=names[record.topic]) for record in records]
            busiest = [record for record in moved if ".trade." in record.topic and record.partition == 0]
            busiest = busiest or [record for record in moved if ".trade." in record.topic]
            await produced(real_kafka, [record for record in moved if record not in busiest] + change(busiest))

        asyncio.run(copy())
        (verdict,) = verify_topics(
            paths, KafkaSettings(real_kafka), run=lambda main: asyncio.run(main()), template=template
        ).verdicts
        report = verdict.topics
        assert report is not None
        names = ("missing", "doubled", "out_of_order", "different", "orphans", "misplaced", "expired")
        counts = {name: getattr(report, name) for name in names}
        assert counts == {**dict.fromkeys(counts, 0), **told}, report.findings
        assert report.stated is None
