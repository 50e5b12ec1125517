"""A steady load through a `KafkaSink` as live offers it, and the comparison of what was produced with what Kafka holds.

Record `number` is a function of `number` alone, as a captured frame is: while the sink is full nothing is produced, and
when it has room the load catches up from where it stopped. What was given to the sink is kept as one hash a record.
Read back with librdkafka, which shares no code with the sink.

    load = Load(sink, rate=3_000)
    await load.run_while(something())
    await sink.drain()
    assert compare(load, bootstrap).clean       # else it says how many are lost, doubled, out of order, different
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

from confluent_kafka import Consumer, TopicPartition

from kcs.clock import SystemClock
from kcs.kafka.partition import partition_of
from kcs.kafka.sink import KafkaSink
from kcs.sink import POSITION

CAPTURE = b"load0001"
CHANNELS = ("trade", "orderbook", "ticker")
_SIZES = {"trade": 60, "orderbook": 1_100, "ticker": 230}
_SLICE = 128
_TICK_S = 0.005
_READ_TIMEOUT_S = 30.0
_READ_WAIT_S = 0.2

T = TypeVar("T")
Place = tuple[str, int]


class Load:
    """`rate` records a second of 24 markets on three channels, half of them trades, `age_ns` old."""

    def __init__(self, sink: KafkaSink, rate: int, *, seed: int = 1, age_ns: int = 0) -> None:
        self.sink = sink
        self.rate = rate
        self.number = 0
        """The next record's; as many were given to the sink."""
        self.produced: defaultdict[Place, list[bytes]] = defaultdict(list)
        """Position (12 bytes) and hash of each record, by the partition where it belongs, in order."""
        self.behind_max = 0
        self.stall_max_s = 0.0
        """Longest time without a single ack, whatever the partition, while something was in flight."""
        self.flight_max_s = 0.0
        """Longest time that one batch was under way: for so long its partition took nothing else."""
        self._clock = SystemClock()
        self._age_ns = age_ns
        rng = random.Random(seed)
        self._bodies = {
            channel: [rng.randbytes(size // 2).hex() for _ in range(64)] for channel, size in _SIZES.items()
        }
        self._markets = [f"KRW-{name:03d}" for name in range(24)]
        self._routes: dict[tuple[str, str], Any] = {}
        sink.start(CAPTURE)

    def _emit(self) -> None:
        number = self.number
        self.number += 1
        channel = "trade" if number % 2 else CHANNELS[1 + number // 2 % 2]
        market = self._markets[number * 7 % 24]
        value = f'["{self._bodies[channel][number % 64]}",{number}]'.encode()
        recv_ns = self._clock.now_ns() - self._age_ns
        trade_id = b"%d" % number if channel == "trade" else b""
        position = POSITION.pack(number, 0, recv_ns)
        route = self._routes.get((channel, market))
        if route is None:
            route = self._routes[channel, market] = self.sink.route(channel, "upbit", market)
        self.sink.emit(route, value, recv_ns, position, trade_id)
        headers = [("kcs", CAPTURE + position), *([("id", trade_id)] if trade_id else [])]
        topic = route.partition.topic
        place = (topic, partition_of(market.encode(), self.sink.partitions()[topic]))
        self.produced[place].append(position[:12] + _hash(market.encode(), value, recv_ns // 1_000_000, headers))

    async def run_while(self, work: Coroutine[Any, Any, T]) -> T:
        """Offer the load as long as `work` takes; returns its result. Catches up before it returns."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            await self._run(task)
        finally:
            task.cancel()
        return task.result()

    async def _run(self, task: asyncio.Task[Any]) -> None:
        loop = asyncio.get_running_loop()
        started_s, first = loop.time(), self.number
        acked, acked_s = self.sink.acked, started_s
        while True:
            due = first + int((loop.time() - started_s) * self.rate)
            self.behind_max = max(self.behind_max, due - self.number)
            for _ in range(_SLICE):
                if self.number >= due or self.sink.full:
                    break
                self._emit()
            if self.sink.acked != acked or not self.sink.in_flight:
                acked, acked_s = self.sink.acked, loop.time()
            self.stall_max_s = max(self.stall_max_s, loop.time() - acked_s)
            self.flight_max_s = max(self.flight_max_s, self._oldest_flight_s(loop.time()))
            caught_up = self.number >= due
            if task.done() and (caught_up or task.exception() is not None):
                return
            await asyncio.sleep(_TICK_S if caught_up or self.sink.full else 0)

    def _oldest_flight_s(self, now_s: float) -> float:
        parts = itertools.chain(*self.sink._partitions.values())
        return max((now_s - part.flying.shipped_s for part in parts if part.flying is not None), default=0.0)


def _hash(key: bytes, value: bytes, timestamp_ms: int, headers: list[tuple[str, bytes]]) -> bytes:
    return blake2b(repr((key, value, timestamp_ms, headers)).encode(), digest_size=16).digest()


@dataclass(slots=True, frozen=True)
class Comparison:
    """Of what a load produced with what the topics hold."""

    records: int
    partitions: int
    lost: int
    doubled: int
    disordered: int
    different: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.disordered or self.different)


def compare(load: Load, bootstrap: str) -> Comparison:
    """Read every partition back from its first record to its end. Blocks; AssertionError when nothing more comes."""
    topics = sorted(load.sink.partitions())
    found = _read(bootstrap, topics)
    lost = doubled = disordered = different = 0
    for place in sorted({*found, *load.produced}):
        got, wanted = found.get(place, []), load.produced.get(place, [])
        if got == wanted:
            continue
        positions = [record[:12] for record in got]
        known = {record[:12]: record for record in wanted}
        lost += len(known.keys() - set(positions))
        doubled += len(positions) - len(set(positions))
        disordered += sum(1 for one, other in itertools.pairwise(positions) if other < one)
        different += sum(1 for record in got if known.get(record[:12]) != record)
    records = sum(len(records) for records in found.values())
    return Comparison(records, len(found), lost, doubled, disordered, different)


def _read(bootstrap: str, topics: list[str]) -> dict[Place, list[bytes]]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "kcs-tests-read-back",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    found: defaultdict[Place, list[bytes]] = defaultdict(list)
    try:
        described = consumer.list_topics(timeout=_READ_TIMEOUT_S).topics
        left: dict[Place, int] = {}
        for topic in topics:
            for number in described[topic].partitions:
                marks = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_READ_TIMEOUT_S)
                if marks[1] > marks[0]:
                    left[topic, number] = marks[1]
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in left])
        silent = 0
        while left:
            messages = consumer.consume(1_000, timeout=_READ_WAIT_S)  # waits so long for the whole number
            silent = 0 if messages else silent + 1
            assert silent * _READ_WAIT_S < _READ_TIMEOUT_S, f"nothing comes any more of {sorted(left)}"
            for message in messages:
                place, offset, record = _seen(message)
                found[place].append(record)
                if offset + 1 >= left.get(place, 1 << 62):
                    del left[place]
    finally:
        consumer.close()
    return dict(found)


def _seen(message: Any) -> tuple[Place, int, bytes]:
    """Where a record is, its offset, and its position and hash as in `Load.produced`."""
    assert message.error() is None, message.error()
    headers = message.headers()
    content = _hash(message.key(), message.value(), message.timestamp()[1], headers)
    return (message.topic(), message.partition()), message.offset(), dict(headers)["kcs"][8:20] + content
