"""Captures delivered into topics that are lists, with the files beside them; for tests of `kcs verify --topic`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kcs.capture.reader import CaptureReader
from kcs.exchanges import venue
from kcs.kafka.audit import Survey
from kcs.kafka.partition import partition_of
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.spool import Place
from kcs.kafka.tally import Delivery
from kcs.live.receipt import DeliveryInfo, write_delivery, write_receipt
from kcs.model import CHANNELS, CloseFields, Kind, OpenFields
from kcs.pipeline import Pipeline
from kcs.sink import Headers
from kcs.stats import Ledger
from kcs.verify_topics import TopicVerdicts, verify_topics
from tests.kafka.topiclog import Msg
from tests.replay.making import MS, SECOND, START_NS, trade, writer

CLUSTER = "cluster-of-lists"
TEMPLATE = "{channel}.{exchange}"
SETTINGS = KafkaSettings("lists:9092")


class LogSink:
    """Appends what a pipeline makes to the topics of a `Lists`."""

    full = False

    def __init__(self, lists: Lists, template: str) -> None:
        self.acked = 0
        self.failed = 0
        self.offsets: dict[str, dict[int, tuple[int, int]]] = {}
        self._lists = lists
        self._template = template
        self._capture = b""

    def start(self, capture_id: bytes) -> None:
        self._capture = capture_id

    def route(self, channel: str, exchange: str, key: str) -> tuple[Place, bytes]:
        topic = self._template.format(channel=channel, exchange=exchange)
        return (topic, partition_of(key.encode(), self._lists.counts[topic])), key.encode()

    def emit(
        self,
        route: tuple[Place, bytes],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        (topic, partition), key = route
        identity = (("id", trade_id),) if trade_id else ()
        offset = self._lists.append(
            (topic, partition),
            key,
            value,
            recv_ns // 1_000_000,
            (("kcs", self._capture + position), *identity, *headers),
        )
        first, _ = self.offsets.setdefault(topic, {}).get(partition, (offset, 0))
        self.offsets[topic][partition] = (first, offset)
        self.acked += 1

    async def room(self) -> None:
        raise AssertionError("never full")

    async def drain(self) -> None:
        raise AssertionError("nothing in flight")

    async def close(self) -> None:
        raise AssertionError("nothing to release")


class Lists:
    """A cluster in lists. `asked` is the `since_ms` of the last reading, `failing` what reading raises."""

    def __init__(self, partitions: int = 2, template: str = TEMPLATE, *, exchange: str = "upbit") -> None:
        topics = [template.format(channel=channel, exchange=exchange) for channel in (*CHANNELS, "gap", "reject")]
        self.template = template
        self.counts = dict.fromkeys(topics, partitions)
        self.cluster_id = CLUSTER
        self.log: dict[Place, list[Msg]] = {(topic, n): [] for topic in topics for n in range(partitions)}
        self.starts: dict[Place, int] = {}
        self.asked: Mapping[str, int] = {}
        self.failing: Exception | None = None

    def append(
        self, place: Place, key: bytes, value: bytes, timestamp: int, headers: tuple[tuple[str, bytes], ...]
    ) -> int:
        offset = len(self.log[place])
        self.log[place].append(Msg(offset, key, value, timestamp, headers))
        return offset

    def deliver(self, capture: Path, *, receipt: bool = True, **more: Any) -> LogSink:
        """Produce a capture as live does, and write its delivery file and receipt. `more`: see `write_receipt`."""
        sink, ledger = LogSink(self, self.template), Ledger()
        with CaptureReader(capture) as reader:
            pipeline = Pipeline(reader.header.exchange, venue(reader.header.exchange).adapter(), sink, ledger)
            pipeline.start(reader.header.capture_id)
            for batch in reader.batches():
                for record in batch:
                    pipeline.record(record)
            capture_id = reader.header.capture_id
        state = Delivery(capture_id, sink.acked, sink.acked, 0, sink.offsets)
        info = DeliveryInfo(self.cluster_id, self.template, True, self.counts, lambda _: state)
        write_delivery(capture, capture_id, info)
        if receipt:
            write_receipt(capture, capture_id, pipeline.digest(), info, state, **more)
        return sink

    # What `kcs.kafka.audit` offers.

    async def survey(self, settings: KafkaSettings, names: Iterable[str]) -> Survey:
        return Survey(self.cluster_id, {name: self.counts[name] for name in names if name in self.counts})

    @contextlib.asynccontextmanager
    async def reading(
        self, settings: KafkaSettings, counts: Mapping[str, int], since_ms: Mapping[str, int], *, embedded: bool
    ) -> AsyncIterator[Any]:
        self.asked = since_ms
        yield _Reading(self, counts)

    def patch(self, monkeypatch: Any) -> Lists:
        """Stand in for the broker."""
        monkeypatch.setattr("kcs.verify_topics.survey", self.survey)
        monkeypatch.setattr("kcs.verify_topics.reading", self.reading)
        return self


class _Reading:
    """Batches of seven records, partitions in turn."""

    def __init__(self, lists: Lists, counts: Mapping[str, int]) -> None:
        self._lists = lists
        self._counts = counts
        self.starts = {place: lists.starts.get(place, 0) for place in lists.log}
        self.offsets = sum(len(log) for log in lists.log.values())

    async def batches(self) -> AsyncIterator[tuple[Place, Sequence[Msg]]]:
        left = {place: list(log) for place, log in self._lists.log.items() if place[0] in self._counts and log}
        while left:
            for place in sorted(left):
                yield place, left[place][:7]
                left[place] = left[place][7:]
            left = {place: log for place, log in left.items() if log}
            if self._lists.failing is not None:
                raise self._lists.failing


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """As the command line runs what talks to a broker."""
    return asyncio.run(main())


def verified(*paths: Path, **how: Any) -> TopicVerdicts:
    """The verdicts of these captures."""
    return verify_topics(paths, SETTINGS, run=run, **how)


def rotated(directory: Path, *, files: int = 3, drop: tuple[int, int] | None = None, **settings: Any) -> list[Path]:
    """A run of so many files, 40 trades each, on one stream; `drop` (file, n): its last n frames are not there."""
    target = writer(directory, 1)
    target.append_fields(Kind.OPEN, 0, START_NS, OpenFields("ws://venue.test/"))
    count = 0
    for number in range(files):
        if number:
            target.rotate(START_NS + number * SECOND)
            target.append_fields(
                Kind.OPEN, 0, START_NS + number * SECOND, OpenFields("ws://venue.test/", "continued", count, True)
            )
        left_out = drop[1] if drop is not None and drop[0] == number else 0
        for n in range(40):
            if n == 20:
                target.flush()
            if n < 40 - left_out:
                target.append(Kind.TEXT, 0, START_NS + number * SECOND + n * MS, trade(count, f"KRW-{count % 5}"))
            count += 1
    target.append_fields(Kind.CLOSE, 0, START_NS + files * SECOND, CloseFields(1000, frames=count))
    return [sealed.path for sealed in target.close(START_NS)]
