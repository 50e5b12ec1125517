"""A Kafka in a list for whoever delivers captures: `tests.kafka.fakes` and what is asked of a cluster besides."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kcs.capture.reader import CaptureReader
from kcs.exchanges import venue
from kcs.kafka import marks, topics
from kcs.kafka.batch import Batch
from kcs.kafka.marks import Extent, Mark, Marks
from kcs.kafka.partition import partition_of
from kcs.kafka.settings import KafkaSettings
from kcs.live.receipt import DeliveryInfo, write_delivery
from kcs.pipeline import Pipeline
from kcs.sink import POSITION, Headers
from kcs.stats import Ledger
from tests.kafka.fakes import Answer, FakeCluster, patch

CLUSTER = "fake"
Place = tuple[str, int]
Made = tuple[str, bytes, bytes, bytes]
"""(topic, key, value, position with the capture id before it)"""


class Broker(FakeCluster):
    """`topics`: name to partitions. `asked`: what it was asked, in order."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        super().__init__()
        self.topics = dict(counts)
        self.cluster_id = CLUSTER
        self.asked: list[str] = []
        self.in_sync = asyncio.Event()
        self.in_sync.set()

    async def connect(self, settings: KafkaSettings, clock: Any) -> Any:
        link = await super().connect(settings, clock)
        link.partition_count = self._count  # type: ignore[method-assign]
        return link

    async def _count(self, topic: str) -> int:
        return self.topics[topic]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let everything see this broker and no other."""
        patch(monkeypatch, self)

        async def ensure(settings: KafkaSettings, wanted: Iterable[str], *_: Any) -> tuple[str, set[str]]:
            made = set(wanted) - self.topics.keys()
            self.topics |= dict.fromkeys(made, settings.partitions)
            return self.cluster_id, made

        async def cluster_id(settings: KafkaSettings) -> str:
            return self.cluster_id

        async def partition_counts(settings: KafkaSettings, names: Iterable[str]) -> dict[str, int]:
            return {name: self.topics[name] for name in names if name in self.topics}

        async def wait_in_sync(settings: KafkaSettings, counts: Mapping[str, int]) -> None:
            self.asked.append("in sync?")
            await self.in_sync.wait()

        for module, function in (
            (topics, ensure),
            (topics, cluster_id),
            (topics, partition_counts),
            (marks, wait_in_sync),
            (marks, self.read_marks),
            (marks, self.read_extents),
        ):
            monkeypatch.setattr(module, function.__name__, function)

    async def read_marks(
        self, settings: KafkaSettings, counts: Mapping[str, int], capture_id: bytes, *, since_ms: int | None = None
    ) -> Marks:
        self.asked.append("marks?")
        found = {}
        for topic, count in counts.items():
            for number in range(count):
                mark = await self.read_mark(settings, topic, number, capture_id)
                if mark is not None:
                    found[topic, number] = mark
        return found

    async def read_extents(
        self, settings: KafkaSettings, found: Marks, capture_id: bytes, end: int, *, since_ms: int | None = None
    ) -> dict[Place, Extent]:
        return {place: self._extent(place, mark, capture_id, end) for place, mark in found.items()}

    def _extent(self, place: Place, mark: Mark, capture_id: bytes, end: int) -> Extent:
        ours = [
            (offset, POSITION.unpack(dict(record.headers)["kcs"][8:])[0])
            for offset, record in enumerate(self.log[place][: mark.offset + 1])
            if dict(record.headers)["kcs"][:8] == capture_id
        ]
        captured = [offset for offset, number in ours if number < end]
        orphans = len(ours) - len(captured)
        return Extent(captured[0], captured[-1], orphans) if captured else Extent(None, None, orphans)

    def holds(self) -> list[Made]:
        """Everything in all partitions, each in offset order."""
        return [
            (topic, record.key, record.value, dict(record.headers)["kcs"])
            for (topic, _), records in sorted(self.log.items())
            for record in records
        ]

    def die_at(self, number: int, *, written: bool) -> asyncio.Event:
        """The batch `number` is never answered, though it may be `written`, nor any after it; the event says when."""
        died = asyncio.Event()
        count = 0

        def decide(place: Place, batch: Batch) -> Answer | None:
            nonlocal count
            count += 1
            if count < number:
                return Answer()
            if count == number:
                died.set()
                if written:
                    self.write(place, batch)
            return None

        self.decide = decide
        return died

    def revive(self) -> None:
        """A new process talks to it; what the dead one had under way is gone."""
        self.held.clear()
        self.links.clear()
        self.decide = lambda place, batch: Answer()


class MadeSink:
    """Keeps what a capture makes, by partition."""

    def __init__(self, template: str, counts: Mapping[str, int]) -> None:
        self.acked = self.failed = 0
        self.full = False
        self.template = template
        self.counts = counts
        self.capture = b""
        self.made: defaultdict[Place, list[Made]] = defaultdict(list)

    def start(self, capture_id: bytes) -> None:
        self.capture = capture_id

    def route(self, channel: str, exchange: str, key: str) -> tuple[Place, bytes]:
        topic = self.template.format(channel=channel, exchange=exchange)
        return (topic, partition_of(key.encode(), self.counts[topic])), key.encode()

    def emit(
        self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        place, key = route
        self.made[place].append((place[0], key, value, self.capture + position))

    async def room(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...


def made_by(path: Path, counts: Mapping[str, int], template: str = "{channel}.{exchange}") -> list[Made]:
    """What the capture makes: partition by partition, in order."""
    sink = MadeSink(template, counts)
    with CaptureReader(path, strict=False) as reader:
        exchange = reader.header.exchange
        pipeline = Pipeline(exchange, venue(exchange).adapter(), sink, Ledger())
        pipeline.start(reader.header.capture_id)
        for batch in reader.batches():
            for record in batch:
                pipeline.record(record)
    return [made for _, records in sorted(sink.made.items()) for made in records]


def begin_delivery(
    path: Path,
    counts: Mapping[str, int],
    *,
    cluster: str | None = CLUSTER,
    template: str = "{channel}.{exchange}",
    headers: bool = True,
    bootstrap: str = "",
    state: Callable[[bytes], Any] = lambda capture_id: None,
) -> Path:
    """The delivery file of a capture, as a live run writes it; returns its path."""
    with CaptureReader(path, strict=False) as reader:
        capture_id = reader.header.capture_id
    return write_delivery(path, capture_id, DeliveryInfo(cluster, template, headers, counts, state, bootstrap))
