"""Frames that the real Upbit sent in 2021, through the whole of kcs: what a consumer reads is what is in the JSON.

The expectation is made by a plain reading of the recording with the standard json module; nothing of kcs takes part in
it. Side as the venue's reference says: `ab` is the taker's, BID = bought = 1, ASK = sold = -1.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import TopicRecord, read_topics
from tests.cli.processes import run
from tests.e2e.rig import fresh_template, position

RECORDING = Path(__file__).resolve().parents[3] / "shared" / "captures" / "upbit.jsonl"
SIDES = {"BID": 1, "ASK": -1}

pytestmark = [
    pytest.mark.skipif(not RECORDING.exists(), reason=f"the recording is not here: {RECORDING}"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@dataclass(frozen=True, slots=True)
class Expected:
    """One record that must be in Kafka. `line` counts the recording's lines from 0: the frame's number."""

    channel: str
    market: str
    value: Any
    timestamp_ms: int
    line: int
    trade_id: bytes | None


def plain_reading() -> list[Expected]:
    """What is in the recording, read as a human would."""
    expected = []
    for number, line in enumerate(RECORDING.read_text().splitlines()):
        record = json.loads(line)
        if record["kind"] not in ("text", "binary"):
            continue
        frame = json.loads(record["payload"])
        received_ms = record["recv_ns"] // 1_000_000
        if frame["ty"] == "trade":
            trade = [frame["tp"], frame["tv"], SIDES[frame["ab"]], frame["ttms"] / 1000]
            expected.append(Expected("trade", frame["cd"], trade, received_ms, number, str(frame["sid"]).encode()))
        elif frame["ty"] == "orderbook":
            units = frame["obu"]
            book = {
                "asks": [[unit["ap"], unit["as"]] for unit in units if unit["ap"] and unit["as"]],
                "bids": [[unit["bp"], unit["bs"]] for unit in units if unit["bp"] and unit["bs"]],
                "ts": frame["tms"] / 1000,
            }
            expected.append(Expected("orderbook", frame["cd"], book, received_ms, number, None))
        else:
            raise AssertionError(f"line {number}: {frame['ty']}")
    return expected


def test_the_recording_holds_what_its_readme_says() -> None:
    """Guards the expectation itself: nothing is compared with nothing."""
    expected = plain_reading()
    assert len(expected) == 269
    trades = [one for one in expected if one.channel == "trade"]
    books = [one for one in expected if one.channel == "orderbook"]
    assert len(trades) + len(books) == 269
    assert min(len(trades), len(books)) > 50
    assert {one.value[2] for one in trades} == {1, -1}
    assert len({(one.market, one.trade_id) for one in trades}) == len(trades), "no trade is repeated"
    assert len({(one.market, json.dumps(one.value)) for one in books}) == len(books), "no book is repeated"
    best: dict[str, tuple[float, float]] = {}
    agreeing = 0
    for one in expected:
        if one.channel == "orderbook":
            best[one.market] = (one.value["asks"][0][0], one.value["bids"][0][0])
        elif one.market in best:
            ask, bid = best[one.market]
            agreeing += (one.value[0] >= ask) if one.value[2] == 1 else (one.value[0] <= bid)
    seen = sum(1 for one in trades if one.market in best)
    assert agreeing >= 0.9 * seen > 0, "who bought paid the ask: the side is the taker's"


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    done = run("import", "--exchange", "upbit", RECORDING, "real.zst", "--json", cwd=tmp_path)
    assert (done.code, done.json["lines"]) == (0, len(RECORDING.read_text().splitlines()))
    return tmp_path / "real.zst"


def through_kafka(capture: Path, bootstrap: str) -> list[TopicRecord]:
    """`kcs replay` in a process of its own, then a consumer."""
    template = fresh_template("real")
    done = run("replay", capture, "-b", bootstrap, "--topic", template, "--json", cwd=capture.parent)
    assert done.code == 0, done.err
    report = done.json
    assert report["records"] == {"produced": 269, "acked": 269, "failed": 0, "in_flight": 0}
    assert (report["frames"]["parsed"], report["frames"]["ignored"], report["frames"]["rejected"]) == (269, {}, {})
    assert report["suppressed"] == {}
    channels = ("trade", "orderbook", "ticker", "gap", "reject")
    topics = [template.format(channel=channel, exchange="upbit") for channel in channels]

    async def read() -> list[TopicRecord]:
        return [record async for record in read_topics(KafkaSettings(bootstrap), topics)]

    return asyncio.run(read())


def assert_exactly(records: list[TopicRecord], expected: list[Expected], order: Callable[[TopicRecord], Any]) -> None:
    """Each expected record once, each value equal, in the order of the recording within what `order` groups."""
    by_line = {one.line: one for one in expected}
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.topic, r.partition, r.offset)):
        _, line, index = position(record.headers)
        one = by_line[line]
        assert record.topic.split(".")[1] == one.channel
        assert record.key == one.market.encode()
        assert json.loads(record.value or b"") == one.value
        assert record.timestamp_ms == one.timestamp_ms
        assert dict(record.headers).get("id") == one.trade_id
        assert index == 0
        groups[order(record)].append(line)
    assert Counter(line for lines in groups.values() for line in lines) == Counter(by_line.keys())
    for lines in groups.values():
        assert lines == sorted(lines)


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


def test_real_frames_through_the_embedded_broker(imported: Path, embedded: str) -> None:
    records = through_kafka(imported, embedded)
    assert_exactly(records, plain_reading(), lambda record: (record.topic, record.partition))


@pytest.mark.kafka
def test_real_frames_through_a_real_kafka(imported: Path, real_kafka: str) -> None:
    """Records of 2021 stay: the topics that a replay makes keep them for ever."""
    records = through_kafka(imported, real_kafka)
    assert {record.partition for record in records} == {0}
    assert_exactly(records, plain_reading(), lambda record: record.topic)


def test_real_frames_as_printed(imported: Path) -> None:
    """The same on stdout: every digit as the venue wrote it, up to the spelling of numbers."""
    done = run("replay", imported, "--sink", "stdout", cwd=imported.parent)
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    found = [(row["topic"], row["key"], row["value"], row["timestamp"], row["headers"]["kcs"]["frame"]) for row in rows]
    assert found == [
        (f"replay.{one.channel}.upbit", one.market, one.value, one.timestamp_ms, one.line) for one in plain_reading()
    ]
    listed = run("cat", imported, "--json", cwd=imported.parent)
    frames = [json.loads(line) for line in listed.out.splitlines()]
    original = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    assert [(f["recv_ns"], f["kind"], f.get("payload"), f.get("url")) for f in frames] == [
        (o["recv_ns"], o["kind"], o.get("payload"), o.get("url")) for o in original
    ], "every frame byte for byte"
