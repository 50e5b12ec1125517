"""The ceilings of Kafka that kcs is compared with in the same run: a bare aiokafka producer.

`ready_batches` ships records whose bytes exist already, in batches of kcs's size, one unacknowledged batch a partition:
nothing is read, parsed, encoded, hashed, and there are no headers. `idle_latency` is one small record at a time with
nothing else going on: no receive-to-ack can be below it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

from aiokafka import AIOKafkaProducer

from kcs.clock import SystemClock
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import ensure
from kcs.model import CHANNELS
from kcs.replay.engine import Plan, replay
from kcs.replay.source import plan
from kcs.sink import NullSink
from kcs.stats import Ledger

FLOOR_BYTES = 100
FLOOR_PAUSE_S = 0.001

Ready = tuple[int, bytes, bytes]
"""timestamp ms, key, value."""


class _Keeper(NullSink):
    """Keeps what would have been produced, by channel."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, list[Ready]] = {}

    def route(self, channel: str, exchange: str, key: str) -> Any:
        return self.kept.setdefault(channel, []), key.encode()

    def emit(self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Any = ()) -> None:
        records, key = route
        records.append((recv_ns // 1_000_000, key, value))
        self.acked += 1


@dataclass(slots=True, frozen=True)
class ReadyRecords:
    """The records of a tape as they go into Kafka, by channel."""

    channels: dict[str, list[Ready]]

    @property
    def records(self) -> int:
        return sum(map(len, self.channels.values()))

    @classmethod
    async def of(cls, tape: Path) -> ReadyRecords:
        """Replay the tape into memory."""
        keeper = _Keeper()
        await replay(Plan(plan([tape])), keeper, Ledger(), SystemClock())
        return cls({channel: kept for channel, kept in keeper.kept.items() if channel in CHANNELS})


async def ready_batches(ready: ReadyRecords, settings: KafkaSettings) -> float:
    """Seconds from the first batch to the last ack; each channel into partition 0 of a topic of its own."""
    topics = {f"{settings.template.split('.')[0]}.ready.{channel}": kept for channel, kept in ready.channels.items()}
    producer = await _producer(settings.bootstrap, list(topics), settings.batch_bytes_max)
    try:
        started = perf_counter()
        await asyncio.gather(*(_ship(producer, topic, kept) for topic, kept in topics.items()))
        return perf_counter() - started
    finally:
        await producer.stop()


async def _ship(producer: Any, topic: str, records: list[Ready]) -> None:
    flying: asyncio.Future[Any] | None = None
    batch = producer.create_batch()
    for timestamp_ms, key, value in records:
        if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
            if flying is not None:
                await flying
            flying = await producer.send_batch(batch, topic, partition=0)
            batch = producer.create_batch()
            batch.append(timestamp=timestamp_ms, key=key, value=value)
    if flying is not None:
        await flying
    await (await producer.send_batch(batch, topic, partition=0))


async def idle_latency(bootstrap: str, topic: str, seconds: float) -> dict[str, float]:
    """`send_and_wait` of 100 B about a thousand times a second: p50, p90, p99 and maximum in ms."""
    producer = await _producer(bootstrap, [topic], 16_384)
    latencies = []
    try:
        value = b"x" * FLOOR_BYTES
        for _ in range(200):
            await producer.send_and_wait(topic, value, partition=0)
        until = perf_counter() + seconds
        while (started := perf_counter()) < until:
            await producer.send_and_wait(topic, value, partition=0)
            latencies.append((perf_counter() - started) * 1e3)
            await asyncio.sleep(FLOOR_PAUSE_S)
    finally:
        await producer.stop()
    cuts = quantiles(latencies, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(latencies)}


async def _producer(bootstrap: str, topics: list[str], batch_bytes: int) -> Any:
    await ensure(KafkaSettings(bootstrap), topics, SystemClock().now_ns(), None)
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=batch_bytes
    )
    await producer.start()
    for topic in topics:
        await producer.partitions_for(topic)
    return producer
