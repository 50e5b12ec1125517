"""`verify_topics`: where captures went, what is read, what is refused; rotated files; what the capture itself lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover
from kcs.errors import CaptureError, ConfigError, KafkaError, UsageError
from kcs.live.receipt import delivery_path, receipt_path
from kcs.sink import POSITION
from tests.delivering import CLUSTER, Lists, rotated, verified
from tests.kafka.topiclog import Msg
from tests.replay.making import MS, SECOND, START_NS, capture_id, make, trade, trades

TRADES = ("trade.upbit", 0)


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Lists:
    return Lists(partitions=1).patch(monkeypatch)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return make(tmp_path, 1, trades(100))


def change(path: Path, **content: object) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **content}))


# --- where it went ----------------------------------------------------------------------------------------------------


def test_as_the_receipt_says(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    found = verified(capture)
    (verdict,) = found.verdicts
    assert verdict.ok
    assert verdict.topics is not None
    assert (verdict.topics.expected, verdict.topics.present, verdict.topics.contradictions) == (100, 100, ())
    assert (found.templates, found.cluster_id, found.read) == (("{channel}.{exchange}",), CLUSTER, 100)


def test_as_the_delivery_file_says_where_there_is_no_receipt(capture: Path, lists: Lists) -> None:
    lists.deliver(capture, receipt=False)
    (verdict,) = verified(capture).verdicts
    assert verdict.ok
    assert verdict.topics is not None
    assert verdict.topics.stated is None


def test_as_the_receipt_says_where_there_is_no_delivery_file(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    delivery_path(capture).unlink()
    assert verified(capture).verdicts[0].ok


def test_partition_counts_are_those_of_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody added partitions since: a key's records stay where they were put, and the new ones are read as well."""
    lists = Lists(partitions=2).patch(monkeypatch)
    path = make(tmp_path, 1, [(START_NS + n, trade(n, f"KRW-{n % 9}")) for n in range(90)])
    lists.deliver(path)
    lists.counts["trade.upbit"] = 5
    lists.log |= {("trade.upbit", n): [] for n in (2, 3, 4)}
    assert verified(path).verdicts[0].ok
    moved = lists.log["trade.upbit", 0].pop(3)
    lists.log["trade.upbit", 4].append(replace(moved, offset=0))
    report = verified(path).verdicts[0].topics
    assert report is not None
    assert (report.missing, report.misplaced) == (1, 1)


def test_a_template_that_is_given(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = Lists(template="copy.{channel}.{exchange}").patch(monkeypatch)
    lists.deliver(capture)
    receipt_path(capture).unlink()
    delivery_path(capture).unlink()
    with pytest.raises(UsageError, match="nothing beside the capture") as raised:
        verified(capture)
    assert "--template" in raised.value.remedy
    found = verified(capture, template="copy.{channel}.{exchange}")
    assert found.verdicts[0].ok
    assert found.templates == ("copy.{channel}.{exchange}",)


def test_a_copy_elsewhere_has_offsets_of_its_own(capture: Path, lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    lists.deliver(capture)
    copy = Lists(template="copy.{channel}.{exchange}").patch(monkeypatch)
    receipt, delivery = receipt_path(capture).read_bytes(), delivery_path(capture).read_bytes()
    copy.append(("copy.trade.upbit", 0), b"", b"", 0, ())
    copy.deliver(capture)
    receipt_path(capture).write_bytes(receipt)
    delivery_path(capture).write_bytes(delivery)
    (verdict,) = verified(capture, template=copy.template).verdicts
    assert verdict.ok
    assert verdict.topics is not None
    assert verdict.topics.stated is None, "the receipt is about other topics"


def test_the_same_template_on_another_cluster_is_a_copy(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    lists.cluster_id = "another"
    change(receipt_path(capture), offsets={})
    with pytest.raises(KafkaError, match="delivered to cluster cluster-of-lists, this is another"):
        verified(capture)
    assert verified(capture, template="{channel}.{exchange}").verdicts[0].ok


def test_the_template_of_the_receipt_given_by_hand_is_no_copy(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    report = verified(capture, template="{channel}.{exchange}").verdicts[0].topics
    assert report is not None
    assert report.stated is not None


def test_what_cannot_be_checked_is_refused(capture: Path, lists: Lists, tmp_path: Path) -> None:
    lists.deliver(capture)
    for content, told in (
        ({"headers": False}, "without headers"),
        ({"record_schema": 99}, "record schema 99"),
        ({"capture": "00" * 8}, "about capture 0000000000000000"),
    ):
        kept = receipt_path(capture).read_bytes()
        change(receipt_path(capture), **content)
        with pytest.raises(CaptureError, match=told):
            verified(capture)
        receipt_path(capture).write_bytes(kept)
    receipt_path(capture).unlink()
    change(delivery_path(capture), cluster=None)
    with pytest.raises(CaptureError, match="nothing of it was delivered") as raised:
        verified(capture)
    assert "recover --produce" in raised.value.remedy
    delivery_path(capture).write_bytes(b"{")
    with pytest.raises(CaptureError, match="cannot be read"):
        verified(capture)
    for template, error in (("{exchange}", ConfigError), ("nowhere.{channel}", KafkaError)):
        delivery_path(capture).unlink(missing_ok=True)
        with pytest.raises(error):
            verified(capture, template=template)
    copy = tmp_path / "copy.zst"
    copy.write_bytes(capture.read_bytes())
    with pytest.raises(UsageError, match="the same capture twice"):
        verified(capture, copy)


def test_a_topic_that_is_gone_has_lost_its_records(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    lists.log.clear()
    lists.counts.clear()
    report = verified(capture).verdicts[0].topics
    assert report is not None
    assert (report.missing, report.present) == (100, 0)


def test_a_broker_that_stops_answering_is_an_error(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    lists.failing = KafkaError("nothing arrives any more")
    with pytest.raises(KafkaError, match="nothing arrives"):
        verified(capture)


def test_reading_begins_at_the_first_moment_of_the_captures(tmp_path: Path, lists: Lists) -> None:
    late = make(tmp_path, 1, trades(5, at_ns=START_NS + 90 * SECOND))
    early = make(tmp_path, 2, [(START_NS - 70 * SECOND + n, trade(n)) for n in (5, 1, 9)])
    for path in (late, early):
        lists.deliver(path)
    for paths in ((late, early), (early, late)):
        assert all(verdict.ok for verdict in verified(*paths).verdicts)
        assert set(lists.asked.values()) == {(START_NS - 70 * SECOND) // MS}
    verified(late)
    assert set(lists.asked.values()) == {START_NS // MS}, "when the file was begun, where that is earlier"


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_faults_are_named_and_the_capture_stays_whole(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    log = lists.log[TRADES]
    log[7] = replace(log[7], value=b"[]")
    del log[99]
    stray = Msg(99, b"KRW-BTC", b"[]", 0, (("kcs", capture_id(1) + POSITION.pack(100, 0, 5)),))
    log.append(stray)
    (verdict,) = verified(capture).verdicts
    assert verdict.whole
    assert not verdict.ok
    report = verdict.topics
    assert report is not None
    assert [(each.fault, each.offset, each.frame) for each in report.findings] == [
        ("missing", None, 99),
        ("different", 7, 7),
        ("orphan", 99, 100),
    ]
    assert report.beyond == 1, "the capture's last frame is 99"
    assert [(one.receipt, one.found) for one in report.contradictions] == [((0, 99), (0, 98))]


@pytest.mark.parametrize("said", [{"recovered": True}, {"uncaptured": 3}])
def test_a_receipt_of_a_later_delivery(capture: Path, lists: Lists, said: dict[str, object]) -> None:
    lists.deliver(capture, **said)
    (verdict,) = verified(capture).verdicts
    assert verdict.ok
    assert verdict.topics is not None
    assert verdict.topics.stated is not None
    assert {key: getattr(verdict.topics.stated, key) for key in said} == said


def test_a_receipt_of_a_damaged_capture(tmp_path: Path, lists: Lists) -> None:
    """What is in Kafka of the missing frames is called by its name; the rest is held against what is left."""
    path = make(tmp_path, 1, trades(60), chunk=20)
    lists.deliver(path)
    with CaptureReader(path) as reader:
        second = list(reader.chunks())[1]
    content = bytearray(path.read_bytes())
    content[second.offset + 100] ^= 1
    path.write_bytes(content)
    change(receipt_path(path), whole=False, digest=None, missing={"records": 20})
    (verdict,) = verified(path).verdicts
    report = verdict.topics
    assert report is not None
    assert not verdict.whole
    lost = second.meta.records
    assert (report.expected, report.missing, report.orphans, report.beyond) == (60 - lost, 0, lost, 0)
    assert {each.why for each in report.findings} == {"its frame is missing in the capture"}
    assert report.contradictions == ()
    assert [(one.matches, one.why) for one in verdict.comparisons] == [(None, "it carries no digest")]


def test_a_tail_that_died_with_the_process_is_beyond_the_end(tmp_path: Path, lists: Lists) -> None:
    whole = make(tmp_path, 1, trades(60), chunk=20)
    lists.deliver(whole, receipt=False)
    with CaptureReader(whole) as reader:
        last = list(reader.chunks())[-1]
    whole.write_bytes(whole.read_bytes()[: last.offset])
    saved = tmp_path / "saved.zst"
    recover(whole, saved)
    (verdict,) = verified(saved, template="{channel}.{exchange}").verdicts
    report = verdict.topics
    assert report is not None
    assert (report.missing, report.orphans, report.beyond) == (0, last.meta.records, last.meta.records)


# --- several files ----------------------------------------------------------------------------------------------------


def test_a_rotated_run_is_one_log(tmp_path: Path, lists: Lists) -> None:
    paths = rotated(tmp_path)
    for path in paths:
        lists.deliver(path)
    found = verified(paths[2], paths[0], paths[1])
    assert [verdict.path for verdict in found.verdicts] == paths
    assert all(verdict.ok for verdict in found.verdicts)
    assert (found.read, found.other_captures) == (120, 0)
    (alone,) = verified(paths[1]).verdicts
    assert alone.ok


def test_each_fault_is_of_its_own_file(tmp_path: Path, lists: Lists) -> None:
    paths = rotated(tmp_path)
    for path in paths:
        lists.deliver(path)
    del lists.log[TRADES][45]
    reports = [verdict.topics for verdict in verified(*paths).verdicts]
    assert [report.missing for report in reports if report is not None] == [0, 1, 0]


def test_captures_of_several_venues_or_topics_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Lists(), Lists(template="other.{channel}")
    paths = [make(tmp_path, 1, trades(20)), make(tmp_path, 2, trades(30))]
    one.counts |= other.counts
    one.log |= other.log
    one.patch(monkeypatch)
    one.deliver(paths[0])
    one.template = "other.{channel}"
    one.deliver(paths[1])
    found = verified(*paths)
    assert [verdict.topics.present for verdict in found.verdicts if verdict.topics] == [20, 30]
    assert all(verdict.ok for verdict in found.verdicts)
    assert found.templates == ("{channel}.{exchange}", "other.{channel}")


def test_progress_goes_to_the_end(capture: Path, lists: Lists) -> None:
    lists.deliver(capture)
    told: list[tuple[int, int]] = []
    verified(capture, on_progress=lambda read, total: told.append((read, total)))
    assert told[-1] == (100, 100)
