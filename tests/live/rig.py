"""A collector between a scripted websocket server on localhost and a sink that the test controls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import uvloop
from websockets.asyncio.server import Server, ServerConnection, serve

from kcs.capture.reader import CaptureReader
from kcs.capture.writer import WriterSettings
from kcs.clock import Clock, SystemClock
from kcs.errors import KafkaError
from kcs.live.backoff import BackoffSettings
from kcs.live.collector import Collector, CollectorResult, CollectorSettings
from kcs.live.receipt import DeliveryInfo
from kcs.live.session import SessionSettings
from kcs.live.transport import TransportSettings
from kcs.model import Kind, Record
from kcs.pipeline import Pipeline
from kcs.sink import Headers, NullSink
from kcs.stats import Ledger
from tests.live.support import LineAdapter, make_subscription, make_venue

LOOPS: list[Any] = [None, uvloop.new_event_loop]
"""Loop factories: asyncio's own, and the one that runs in production."""

Script = Callable[[ServerConnection, int], Awaitable[None]]
"""Plays one connection; the number counts connections from 0. The server closes with 1000 when it returns."""


def trade(number: int, market: str = "KRW-BTC") -> bytes:
    return orjson.dumps({"m": market, "p": 100 + number, "i": number})


async def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait until it is true, as long as the loop has work; never by a guess of time."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


class TestSink:
    """Keeps records by capture; acks at once unless `hold`; `full` and `fault` are the test's to set."""

    __test__ = False

    def __init__(self, *, hold: bool = False) -> None:
        self.acked = 0
        self.failed = 0
        self._room = asyncio.Event()
        self._room.set()
        self.hold = hold
        self.fault: KafkaError | None = None
        self.values: dict[bytes, list[tuple[str, str, bytes]]] = {}
        self.order: list[str] = []
        self._current = b""
        self._held = asyncio.Event()

    @property
    def full(self) -> bool:
        return not self._room.is_set()

    @full.setter
    def full(self, full: bool) -> None:
        self._room.clear() if full else self._room.set()

    @property
    def all(self) -> list[tuple[str, str, bytes]]:
        return [item for values in self.values.values() for item in values]

    def start(self, capture_id: bytes) -> None:
        self._current = capture_id
        self.values.setdefault(capture_id, [])

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, str]:
        return channel, key

    def emit(
        self,
        route: tuple[str, str],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        self.values[self._current].append((*route, value))
        if not self.hold:
            self.acked += 1

    def release(self) -> None:
        """Ack everything."""
        self.hold = False
        self.acked = len(self.all) - self.failed
        self._held.set()

    async def room(self) -> None:
        await self._room.wait()

    async def drain(self) -> None:
        if self.fault is not None:
            raise self.fault
        if self.hold:
            await self._held.wait()

    async def close(self) -> None:
        raise AssertionError("the sink is the caller's to close")

    def delivery(self) -> DeliveryInfo:
        return DeliveryInfo("cluster-1", "{channel}.{exchange}", True, {"trade.testex": 1, "gap.testex": 1}, self.state)

    def state(self, capture_id: bytes) -> TestState | None:
        values = self.values.get(capture_id)
        if values is None:
            return None
        acked = 0 if self.hold else len(values) - self.failed
        last = len(values) - 1
        return TestState(len(values), acked, self.failed, {"trade.testex": {0: (0, last)}} if values else {})


@dataclass(frozen=True, slots=True)
class TestState:
    __test__ = False

    produced: int
    acked: int
    failed: int
    offsets: dict[str, dict[int, tuple[int, int]]]


@dataclass
class Rig:
    """`async with rig.serving(script)`, then `rig.start()`; `await rig.stop()` gives the result."""

    directory: Path
    clock: Clock = field(default_factory=SystemClock)
    writer: WriterSettings = field(default_factory=WriterSettings)
    venue: Any = None
    logs: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    collector: Collector = field(init=False)
    sink: Any = None
    running: asyncio.Task[CollectorResult] = field(init=False)

    def serving(self, script: Script) -> AbstractAsyncContextManager[Server]:
        async def handler(websocket: ServerConnection) -> None:
            number = self.connections
            self.connections += 1
            await script(websocket, number)

        return _Serving(self, handler)

    def start(
        self, *, delivery: bool = False, seed: int = 1, dial: Any = None, prepare: Any = None, **changes: Any
    ) -> Collector:
        self.sink = self.sink or TestSink()
        settings = CollectorSettings(
            directory=self.directory,
            subscriptions=changes.pop("subscriptions", (make_subscription(),)),
            url=changes.pop("url", self.url),
            writer=self.writer,
            session=SessionSettings(BackoffSettings(base_s=0.001, cap_s=0.01)),
            transport=TransportSettings(close_within_s=changes.pop("close_within_s", 2.0)),
            tick_s=0.002,
        )
        self.collector = Collector(
            self.venue or make_venue(),
            replace(settings, **changes),
            sink=self.sink,
            clock=self.clock,
            rng=random.Random(seed),
            log=lambda level, text: self.logs.append((level, text)),
            delivery=self.sink.delivery() if delivery else None,
            prepare=prepare,
            dial=dial,
        )
        self.running = asyncio.create_task(self.collector.run())
        return self.collector

    async def received(self, frames: int) -> None:
        await until(lambda: self.collector.ledger.received >= frames or self.running.done())
        assert self.collector.ledger.received == frames

    async def stop(self) -> CollectorResult:
        self.collector.request_stop()
        return await self.running


class _Serving:
    def __init__(self, rig: Rig, handler: Callable[[ServerConnection], Awaitable[None]]) -> None:
        self._rig = rig
        self._serving = serve(handler, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None)

    async def __aenter__(self) -> Server:
        server = await self._serving.__aenter__()
        self._rig.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        return server

    async def __aexit__(self, *exc: Any) -> None:
        await self._serving.__aexit__(*exc)


def read(path: Path) -> list[Record]:
    with CaptureReader(path) as reader:
        return list(reader.records())


def kinds(path: Path) -> list[str]:
    return [record.kind.name for record in read(path)]


def replayed(path: Path) -> tuple[str, list[Any], Ledger]:
    """Digest, emitted events and ledger of one file fed alone into a fresh pipeline, as replay does."""
    ledger = Ledger()
    pipeline = Pipeline("testex", LineAdapter(), NullSink(), ledger)
    events: list[Any] = []
    pipeline.tap = lambda event, recv_ns, number, index: events.append(event)
    with CaptureReader(path) as reader:
        pipeline.start(reader.header.capture_id)
        for batch in reader.batches():
            for number, kind, stream, recv_ns, payload, fields in batch:
                pipeline.number = number
                if kind in (Kind.TEXT, Kind.BINARY):
                    ledger.received += 1
                    ledger.captured += 1
                    pipeline.feed(stream, recv_ns, payload)
                else:
                    pipeline.control(kind, stream, recv_ns, fields, payload)
    return pipeline.digest(), events, ledger


def files(directory: Path, pattern: str) -> Iterator[Path]:
    return iter(sorted(directory.glob(pattern)))
