"""A Kafka in a list: what links write, what they answer, and when. For tests of the sink without a broker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber

from kcs.clock import Clock, VirtualClock
from kcs.errors import KafkaUnreachableError, KcsError
from kcs.kafka import recovery, topics
from kcs.kafka.batch import Batch, BatchRecord
from kcs.kafka.marks import Mark
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.sink import POSITION

CAPTURE = b"capture1"
START_NS = 1_700_000_000_000_000_000


class Answer:
    """What becomes of one batch: is it written, and what does the producer hear?"""

    def __init__(self, error: BaseException | None = None, *, written: bool | None = None) -> None:
        self.error = error
        self.written = error is None if written is None else written


class FakeCluster:
    """Keeps what was written. `decide(place, batch)` gives an `Answer`, or None to leave the ack to `release`."""

    def __init__(self, partitions: int = 1) -> None:
        self.partitions = partitions
        self.log: defaultdict[tuple[str, int], list[BatchRecord]] = defaultdict(list)
        self.sent: list[tuple[tuple[str, int], list[BatchRecord]]] = []
        self.held: list[tuple[tuple[str, int], Batch, asyncio.Future[Any]]] = []
        self.links: list[FakeLink] = []
        self.decide: Callable[[tuple[str, int], Batch], Answer | None] = lambda place, batch: Answer()
        self.refuse_links = 0
        self.refusal: KcsError = KafkaUnreachableError("no broker answers")

    async def connect(self, settings: KafkaSettings, clock: Clock) -> FakeLink:
        if self.refuse_links:
            self.refuse_links -= 1
            raise self.refusal
        link = FakeLink(self)
        self.links.append(link)
        return link

    def write(self, place: tuple[str, int], batch: Batch) -> Any:
        offset = len(self.log[place])
        self.log[place] += batch.records()
        return SimpleNamespace(offset=offset)

    def release(self, number: int = 0) -> None:
        """Write and acknowledge a batch that is held."""
        place, batch, answer = self.held.pop(number)
        answer.set_result(self.write(place, batch))

    async def read_mark(
        self, settings: KafkaSettings, topic: str, partition: int, capture_id: bytes, *, floor: int = 0
    ) -> Mark | None:
        newest = None
        for offset, record in enumerate(self.log[topic, partition]):
            if offset >= floor and dict(record.headers)["kcs"][:8] == capture_id:
                newest = Mark(dict(record.headers)["kcs"][8:], offset)
        return newest

    def positions(self, place: tuple[str, int]) -> list[int]:
        """Frame numbers on a partition, in offset order."""
        return [POSITION.unpack(record.position)[0] for record in self.log[place]]


class FakeLink:
    """Like aiokafka: after a batch that failed, the partition's sequence on this link is broken for good."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.broken: set[tuple[str, int]] = set()
        self.flying: set[tuple[str, int]] = set()
        self.closed = False

    def send(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        place = (topic, partition)
        assert not self.closed, "a closed link was used"
        assert all(place not in link.flying for link in self.cluster.links), "two batches in flight on a partition"
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.cluster.sent.append((place, batch.records()))
        self.flying.add(place)
        future.add_done_callback(lambda _: self.flying.discard(place))
        answer = Answer(OutOfOrderSequenceNumber()) if place in self.broken else self.cluster.decide(place, batch)
        if answer is None:
            self.cluster.held.append((place, batch, future))
            return future
        where = self.cluster.write(place, batch) if answer.written else None
        if answer.error is None:
            asyncio.get_running_loop().call_soon(future.set_result, where)
        else:
            self.broken.add(place)
            asyncio.get_running_loop().call_soon(future.set_exception, answer.error)
        return future

    async def partition_count(self, topic: str) -> int:
        return self.cluster.partitions

    async def close(self) -> None:
        self.closed = True


class Latencies:
    """Takes latencies as a histogram does."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def record_many(self, latencies_ns: list[int]) -> None:
        self.taken += latencies_ns


def patch(monkeypatch: pytest.MonkeyPatch, cluster: FakeCluster) -> None:
    """Let the sink see `cluster` wherever it would open a connection of its own, and let it not pause."""

    async def ensure(*_: Any) -> tuple[str, set[str]]:
        return "fake", set()

    async def end_offsets(settings: KafkaSettings, counts: Mapping[str, int]) -> dict[tuple[str, int], int]:
        return {}

    monkeypatch.setattr(topics, "ensure", ensure)
    monkeypatch.setattr(topics, "end_offsets", end_offsets)
    monkeypatch.setattr(recovery, "read_mark", cluster.read_mark)
    monkeypatch.setattr(recovery, "_PAUSE_MIN_S", 0.0)


async def open_sink(cluster: FakeCluster, **options: Any) -> KafkaSink:
    """A sink on the fake, with channels trade and orderbook of upbit, its capture begun."""
    clock = options.pop("clock", VirtualClock(START_NS))
    latency = options.pop("latency", None)
    settings = KafkaSettings("fake:9092", settle_s=0, **options)
    sink = KafkaSink(settings, clock, latency=latency, connector=cluster.connect)
    await sink.open(["upbit"], ["trade", "orderbook"])
    sink.start(CAPTURE)
    return sink


def emit(sink: KafkaSink, number: int, *, key: str = "KRW-BTC", channel: str = "trade", value: bytes = b"[1]") -> None:
    """One record with frame number `number`, received `number` us after the start."""
    recv_ns = START_NS + number * 1_000
    sink.emit(sink.route(channel, "upbit", key), value, recv_ns, POSITION.pack(number, 0, recv_ns), b"")


async def turns(count: int = 5) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)
