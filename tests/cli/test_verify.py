"""`kcs verify`: on files, against receipts and digests, with the files of a run; and with --topic against Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kcs.errors import KafkaError
from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.spool import Place
from kcs.live.receipt import delivery_path, receipt_path
from kcs.model import CloseFields, Kind, OpenFields
from kcs.sink import POSITION, RECORD_SCHEMA_VERSION
from kcs.verify import verify
from tests.cli.processes import Done, run
from tests.delivering import CLUSTER, Lists, rotated
from tests.e2e.rig import fresh_template
from tests.kafka.topiclog import Msg
from tests.realkafka import free_port
from tests.replay.making import START_NS, capture_id, make, trade, trades, writer

Call = Callable[..., Done]
TRADES: Place = ("trade.upbit", 0)
BROKER = ("-b", "lists:9092")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path, 1, trades(100))


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Lists:
    """A cluster in lists, which `kcs` in this process takes for the broker."""
    return Lists(partitions=1).patch(monkeypatch)


def lines(done: Done) -> list[Any]:
    return [json.loads(line) for line in done.out.splitlines()]


# --- without Kafka ----------------------------------------------------------------------------------------------------


def test_verify_a_whole_file_against_digest_and_receipt(path: Path, kcs: Call) -> None:
    digest = verify(path).digest
    receipt_path(path).write_text(json.dumps({"digest": digest, "record_schema": RECORD_SCHEMA_VERSION}))
    done = kcs("verify", path, "--digest", digest, "--json")
    assert done.code == 0
    found = done.json
    assert (found["ok"], found["digest"], found["holes"], found["damage"]) == (True, digest, 0, [])
    assert [row["matches"] for row in found["compared"]] == [True, True]
    text = kcs("verify", path)
    assert (text.code, text.out) == (0, b"")
    assert "whole" in text.err
    assert digest in text.err


def test_verify_says_where_frames_are_missing(tmp_path: Path, kcs: Call) -> None:
    target = writer(tmp_path, 1)
    target.append_fields(Kind.OPEN, 3, START_NS, OpenFields("ws://venue.test/"))
    target.append_fields(Kind.CLOSE, 3, START_NS, CloseFields(1006, frames=1_700))
    path = target.close(START_NS)[0].path
    done = kcs("verify", path, "--json")
    assert (done.code, done.json["ok"]) == (3, False)
    assert done.json["miscounted"] == [{"number": 1, "stream": 3, "said": 1_700, "counted": 0}]
    text = kcs("verify", path).err
    assert "1,700" in text
    assert "NOT WHOLE" in text


def test_verify_another_digest_or_receipt_is_exit_3(path: Path, kcs: Call) -> None:
    done = kcs("verify", path, "--digest", "0" * 64)
    assert done.code == 3
    assert "NOT EQUAL" in done.err
    receipt_path(path).write_text(json.dumps({"digest": "f" * 64, "record_schema": RECORD_SCHEMA_VERSION}))
    assert kcs("verify", path).code == 3
    receipt_path(path).write_text(json.dumps({"digest": "f" * 64, "record_schema": 999}))
    done = kcs("verify", path)
    assert done.code == 0
    assert "not comparable" in done.err
    assert kcs("verify", path, path, "--digest", "0" * 64).code == 2


def test_files_of_a_run_in_any_order(tmp_path: Path, kcs: Call) -> None:
    paths = rotated(tmp_path, drop=(0, 3))
    done = kcs("verify", paths[1], paths[0], "--json")
    assert done.code == 3
    first, second = lines(done)
    assert (first["path"], first["ok"]) == (str(paths[0]), True)
    assert second["miscounted"] == [{"number": 0, "stream": 0, "said": 40, "counted": 37}]
    assert (first["topics"], first["absent"]) == (None, None)
    done = kcs("verify", paths[2], paths[0], "--json")
    assert [line["absent"] for line in lines(done)] == [None, [1, 1]]
    assert "file 1 of this run" in kcs("verify", paths[2], paths[0]).err


# --- with Kafka -------------------------------------------------------------------------------------------------------


def test_all_there_is_exit_0(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    done = kcs("verify", path, "--topic", *BROKER, "--json")
    assert done.code == 0
    report = done.json
    assert report["ok"]
    assert report["topics"] == {
        "ok": True,
        "cluster": CLUSTER,
        "template": "{channel}.{exchange}",
        "expected": 100,
        "present": 100,
        "missing": 0,
        "expired": 0,
        "found": 100,
        "doubled": 0,
        "misplaced": 0,
        "orphans": 0,
        "beyond": 0,
        "out_of_order": 0,
        "different": 0,
        "different_in": {},
        "broker_times": 0,
        "findings": [],
        "offsets": [{"topic": "trade.upbit", "partition": 0, "first": 0, "last": 99}],
        "log_starts": [],
        "receipt": {"whole": True, "recovered": False, "failed": 0, "uncaptured": 0, "contradicts": []},
        "read": {"records": 100, "other_captures": 0, "without_header": 0},
        "warnings": [],
    }
    text = kcs("verify", path, "--topic", *BROKER)
    assert (text.code, text.out) == (0, b"")
    assert "100 of 100 records present" in text.err
    assert "receipt  equal, upbit-" in text.err
    assert "whole; all in Kafka, once and in order" in text.err


def harm(lists: Lists) -> None:
    """Each fault once, on a log of a hundred trades."""
    log = lists.log[TRADES]
    log[40] = replace(log[40], value=b"[]", timestamp=0)
    log[60], log[61] = log[61], log[60]
    doubled, strange = log[70], (("kcs", capture_id(1) + POSITION.pack(5_000, 2, START_NS)),)
    lists.log["ticker.upbit", 0].append(log[80])
    del log[10:13]
    log += [doubled, Msg(0, b"KRW-BTC", b"[]", 0, strange)]
    for place, messages in lists.log.items():
        lists.log[place] = [replace(each, offset=offset) for offset, each in enumerate(messages)]


def test_every_fault_is_named_and_exit_3(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    harm(lists)
    done = kcs("verify", path, "--topic", *BROKER, "--json")
    assert (done.code, done.json["ok"]) == (3, False)
    report = done.json["topics"]
    named = {
        each["fault"]: (each["topic"], each["partition"], each["offset"], each["frame"], each["event"])
        for each in report["findings"]
    }
    assert named == {
        "missing": (*TRADES, None, 10, 0),
        "different": (*TRADES, 37, 40, 0),
        "out_of_order": (*TRADES, 58, 60, 0),
        "doubled": (*TRADES, 97, 70, 0),
        "misplaced": ("ticker.upbit", 0, 0, 80, 0),
        "orphan": (*TRADES, 98, 5_000, 2),
    }
    missing = report["findings"][0]
    assert (missing["records"], missing["last"]) == (3, [12, 0])
    assert report["different_in"] == {"timestamp": 1, "value": 1}
    assert report["receipt"]["contradicts"] == [
        {"topic": "trade.upbit", "partition": 0, "receipt": [0, 99], "found": [0, 96]}
    ]
    assert (report["missing"], report["present"], report["found"], report["beyond"]) == (3, 97, 100, 1)
    text = kcs("verify", path, "--topic", *BROKER).err
    for told in (
        "MISSING       3 records are not there",
        "trade.upbit[0]: frame 10 event 0 to frame 12 event 0 (3 records)",
        "DOUBLED       1 records",
        "trade.upbit[0] offset 97: frame 70 event 0",
        "OUT OF ORDER  1 records",
        "DIFFERENT     1 records are not what the capture makes (timestamp 1, value 1)",
        "MISPLACED     1 records",
        "belongs to trade.upbit[0]",
        "ORPHAN        1 records are not of this capture's frames (1 behind its end)",
        "the capture ends before frame 100",
        "RECEIPT       trade.upbit[0]: offsets 0 to 99 by the receipt, 0 to 96 in the topic",
        "whole; NOT AS IT SHOULD BE IN KAFKA",
    ):
        assert told in text


def test_many_faults_are_named_up_to_a_bound(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    lists.log[TRADES] = [replace(each, value=b"") for each in lists.log[TRADES]]
    text = kcs("verify", path, "--topic", *BROKER).err
    assert "DIFFERENT  100 records" in text
    assert text.count(": frame ") == 5
    assert "... (--json names more)" in text
    assert len(kcs("verify", path, "--topic", *BROKER, "--json").json["topics"]["findings"]) == 20


def test_what_the_receipt_and_the_broker_say_is_shown(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path, recovered=True, uncaptured=4)
    log = lists.log[TRADES]
    lists.log[TRADES] = [replace(each, timestamp_type=1, timestamp=0) for each in log[5:]]
    lists.starts = {TRADES: 5}
    done = kcs("verify", path, "--topic", *BROKER)
    assert done.code == 3
    for told in (
        "EXPIRED  5 records were there",
        "the broker's log of trade.upbit[0] begins at offset 5: older ones expired",
        "95 timestamps were set by the broker",
        "delivered, in part at least, after its run had ended",
        "4 records have frames beyond the capture's end",
    ):
        assert told in done.err
    assert "RECEIPT" not in done.err


def test_several_captures_in_one_go(tmp_path: Path, lists: Lists, kcs: Call) -> None:
    paths = rotated(tmp_path)
    for capture in paths:
        lists.deliver(capture)
    del lists.log[TRADES][50]
    done = kcs("verify", *reversed(paths), "--topic", *BROKER, "--json")
    assert done.code == 3
    assert [(line["path"], line["ok"], line["topics"]["missing"]) for line in lines(done)] == [
        (str(paths[0]), True, 0),
        (str(paths[1]), False, 1),
        (str(paths[2]), True, 0),
    ]


def test_a_digest_is_compared_as_well(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    done = kcs("verify", path, "--topic", *BROKER, "--digest", "0" * 64, "--json")
    assert (done.code, done.json["topics"]["ok"], done.json["ok"]) == (3, True, False)


def test_calls_that_cannot_be_meant(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    for args, told in (
        (("--topic",), "-b HOST:PORT"),
        (("--topic", "{channel}.{exchange}", *BROKER), "--template '{channel}.{exchange}'"),
        (("--template", "{exchange}", *BROKER), "{channel}"),
        (("--topic", "-b", "not an address!"), "not a broker address"),
        (("--topic", *BROKER, "-X", "sasl.pasword=x"), "did you mean"),
    ):
        done = kcs("verify", path, *args)
        assert (done.code, done.out) == (2, b""), args
        assert told in done.err
    receipt_path(path).unlink()
    delivery_path(path).unlink()
    done = kcs("verify", path, "--topic", *BROKER)
    assert done.code == 2
    assert "--template" in done.err


def test_a_broker_that_cannot_be_read_is_exit_1(path: Path, lists: Lists, kcs: Call) -> None:
    lists.deliver(path)
    lists.failing = KafkaError("nothing arrives any more of trade.upbit[0]")
    done = kcs("verify", path, "--topic", *BROKER, "--json")
    assert (done.code, done.out) == (1, b"")
    assert "nothing arrives any more" in done.err


def test_a_broker_that_is_away_is_exit_1(path: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run("verify", path, "--template", "{channel}.{exchange}", "-b", address, cwd=tmp_path, within_s=10.0)
    assert (done.code, done.out) == (1, b"")
    assert address in done.err


def test_the_broker_may_stand_in_the_environment(path: Path, lists: Lists, kcs: Call, monkeypatch: Any) -> None:
    lists.deliver(path)
    monkeypatch.setenv("KCS_BOOTSTRAP", "lists:9092")
    monkeypatch.setenv("KCS_TOPIC", "elsewhere.{channel}")
    assert kcs("verify", path, "--topic").code == 0, "the template of a run to come has nothing to do with it"


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


def test_on_the_embedded_broker(embedded: str, tmp_path: Path) -> None:
    path = make(tmp_path, 1, [(START_NS + n, trade(n, f"KRW-{n % 9}")) for n in range(400)])
    template = fresh_template("cli")
    where = ("--template", template, "-b", embedded)
    assert run("replay", path, "--topic", template, "-b", embedded, "--json", cwd=tmp_path).code == 0
    done = run("verify", path, *where, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    report = done.json["topics"]
    assert (report["expected"], report["present"], report["receipt"]) == (400, 400, None)
    assert len({each["partition"] for each in report["offsets"]}) == 3, "where those nine keys are of four"
    assert run("replay", path, "--topic", template, "-b", embedded, "--json", cwd=tmp_path).code == 0
    done = run("verify", path, *where, "--json", cwd=tmp_path)
    assert (done.code, done.json["topics"]["doubled"]) == (3, 400)
