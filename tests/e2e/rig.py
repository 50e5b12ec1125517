"""The whole loop in one process: simulator on a real socket, collector, capture, Kafka, replay, and a consumer.

async with simulated(...) as url: ...      result = await collected(url, directory, sink)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from kcs.capture.writer import WriterSettings
from kcs.clock import SystemClock
from kcs.exchanges import Subscription, venue
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import TopicRecord, read_topics
from kcs.live.backoff import BackoffSettings
from kcs.live.collector import Collector, CollectorResult, CollectorSettings
from kcs.live.receipt import DeliveryInfo
from kcs.live.session import SessionSettings
from kcs.model import CHANNELS
from kcs.replay.engine import Plan, ReplayResult, replay
from kcs.replay.source import plan
from kcs.sim.faults import Faults
from kcs.sim.server import SimServer, serve
from kcs.sim.settings import SimSettings
from kcs.sink import POSITION, Headers, Sink
from kcs.stats import LatencyHistogram, Ledger

TOPICS = (*CHANNELS, "gap", "reject")
_names = itertools.count()


def fresh_template(kind: str) -> str:
    """A topic template that no other test uses."""
    return f"{kind}{os.getpid()}-{next(_names)}.{{channel}}.{{exchange}}"


@dataclass(frozen=True, slots=True)
class Produced:
    """One record as the pipeline gave it to the sink."""

    topic: str
    key: bytes
    value: bytes
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...]


class Witness:
    """A sink that writes down what it passes on."""

    def __init__(self, inner: KafkaSink) -> None:
        self.inner = inner
        self.taken: list[Produced] = []
        self._capture = b""

    @property
    def acked(self) -> int:
        return self.inner.acked

    @property
    def failed(self) -> int:
        return self.inner.failed

    @property
    def full(self) -> bool:
        return self.inner.full

    def start(self, capture_id: bytes) -> None:
        self._capture = capture_id
        self.inner.start(capture_id)

    def route(self, channel: str, exchange: str, key: str) -> tuple[Any, str, bytes]:
        topic = self.inner.settings.template.format(channel=channel, exchange=exchange)
        return self.inner.route(channel, exchange, key), topic, key.encode()

    def emit(
        self,
        route: tuple[Any, str, bytes],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        target, topic, key = route
        identity = (("id", trade_id),) if trade_id else ()
        own = (("kcs", self._capture + position), *identity, *headers)
        self.taken.append(Produced(topic, key, value, recv_ns // 1_000_000, own))
        self.inner.emit(target, value, recv_ns, position, trade_id, headers)

    async def room(self) -> None:
        await self.inner.room()

    async def drain(self) -> None:
        await self.inner.drain()

    async def close(self) -> None:
        await self.inner.close()


@asynccontextmanager
async def simulated(rate: int = 500, *, faults: Faults | None = None, **settings: Any) -> AsyncIterator[SimServer]:
    """A simulated Upbit on a free port."""
    chosen = SimSettings(rate=rate, port=0, epoch_ns=None, faults=faults or Faults(), **settings)
    server = await serve(chosen, SystemClock())
    try:
        yield server
    finally:
        await server.aclose()


@asynccontextmanager
async def kafka(
    bootstrap: str, template: str, *, latency: LatencyHistogram | None = None, **settings: Any
) -> AsyncIterator[Witness]:
    """An open sink for all channels of Upbit, with a witness."""
    sink = KafkaSink(KafkaSettings(bootstrap, template, **settings), SystemClock(), latency=latency)
    await sink.open(["upbit"], CHANNELS)
    try:
        yield Witness(sink)
    finally:
        await sink.close(10)


def delivery(sink: KafkaSink) -> DeliveryInfo:
    return DeliveryInfo(sink.cluster_id, sink.settings.template, True, sink.partitions(), sink.delivery)


async def collected(
    url: str,
    directory: Path,
    sink: Sink,
    *,
    frames: int,
    markets: Sequence[str] = ("KRW-BTC", "KRW-ETH", "KRW-XRP"),
    writer: WriterSettings | None = None,
    info: DeliveryInfo | None = None,
    reconnects: int = 0,
    files: int = 1,
) -> CollectorResult:
    """A live run until so many frames were received, connections re-made and files begun."""
    settings = CollectorSettings(
        directory=directory,
        subscriptions=(Subscription(CHANNELS, tuple(markets), "DEFAULT"),),
        url=url,
        writer=writer or WriterSettings(),
        session=SessionSettings(BackoffSettings(base_s=0.01, cap_s=0.05)),
        drain_s=20.0,
    )
    collector = Collector(
        venue("upbit"),
        settings,
        sink=sink,
        clock=SystemClock(),
        rng=random.Random(1),
        log=lambda level, text: None,
        delivery=info,
    )
    running = asyncio.create_task(collector.run())

    def enough() -> bool:
        opens = sum(session.opens for session in collector.sessions)
        made = len(list(directory.glob("upbit-*.zst*")))
        return collector.ledger.received >= frames and opens > reconnects and made >= files

    async with asyncio.timeout(30):
        while not enough() and not running.done():  # noqa: ASYNC110 - files and counters have no event
            await asyncio.sleep(0.005)
    collector.request_stop()
    result = await running
    result.ledger.check()
    return result


async def replayed(
    paths: Sequence[Path], sink: Sink, speed: Fraction | None = None, *, from_ns: int | None = None
) -> tuple[ReplayResult, Ledger]:
    ledger = Ledger()
    result = await replay(Plan(plan(paths), speed, from_ns), sink, ledger, SystemClock())
    ledger.check()
    return result, ledger


async def consumed(sink: KafkaSink) -> list[TopicRecord]:
    """All records of all topics of a sink, as a consumer sees them."""
    topics = [sink.settings.template.format(channel=channel, exchange="upbit") for channel in TOPICS]
    existing = [topic for topic in topics if topic in sink.partitions()]
    return [record async for record in read_topics(sink.settings, existing)]


def position(headers: Sequence[tuple[str, bytes]]) -> tuple[bytes, int, int]:
    """(capture id, frame number, event index)"""
    header = dict(headers)["kcs"]
    number, index, _ = POSITION.unpack(header[8:])
    return header[:8], number, index


def assert_same(records: list[TopicRecord], taken: list[Produced]) -> None:
    """What was consumed is what was produced, byte for byte, in position order for each key and partition."""
    expected: defaultdict[tuple[str, bytes], list[Produced]] = defaultdict(list)
    for one in taken:
        expected[one.topic, one.key].append(one)
    found: defaultdict[tuple[str, bytes], list[Produced]] = defaultdict(list)
    order: defaultdict[tuple[str, int, bytes], list[tuple[int, int]]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.topic, r.partition, r.offset)):
        assert record.key is not None
        assert record.value is not None
        found[record.topic, record.key].append(
            Produced(record.topic, record.key, record.value, record.timestamp_ms, record.headers)
        )
        capture, number, index = position(record.headers)
        order[record.topic, record.partition, capture].append((number, index))
    assert found == expected
    for positions in order.values():
        assert positions == sorted(set(positions)), "each record once, in order of its position"
