"""Helpers for tests on a broker: produce numbered records, read them back, and a proxy that cuts and delays."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kcs.clock import SystemClock
from kcs.kafka import topics
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.topics import TopicRecord
from kcs.sink import POSITION

CAPTURE = b"capture1"
FIRST_NS = 1_700_000_000_123_456_789
_names = itertools.count()


def fresh_template() -> str:
    """A topic template that no other test uses."""
    return f"t{os.getpid()}-{next(_names)}.{{channel}}.{{exchange}}"


@asynccontextmanager
async def opened(bootstrap: str, *, template: str = "", **options: Any) -> AsyncIterator[KafkaSink]:
    """An open sink for channels trade and orderbook of upbit; closed without waiting longer than 20 s."""
    options.setdefault("settle_s", 0)
    sink = KafkaSink(KafkaSettings(bootstrap, template=template or fresh_template(), **options), SystemClock())
    await sink.open(["upbit"], ["trade", "orderbook"])
    sink.start(CAPTURE)
    try:
        yield sink
    finally:
        await sink.close(20)


def emit(
    sink: KafkaSink,
    number: int,
    *,
    channel: str = "trade",
    markets: int = 7,
    value: bytes | None = None,
    first_ns: int = FIRST_NS,
) -> None:
    """Record `number`: its market, time, position and trade id follow from it."""
    recv_ns = first_ns + number * 1_000_000
    content = b'["value of record %d"]' % number if value is None else value
    route = sink.route(channel, "upbit", f"KRW-{number % markets}")
    sink.emit(route, content, recv_ns, POSITION.pack(number, 0, recv_ns), b"id-%d" % number)


async def read_back(sink: KafkaSink, channel: str = "trade") -> list[TopicRecord]:
    """All records of a channel's topic."""
    topic = sink.settings.template.format(channel=channel, exchange="upbit")
    return [record async for record in topics.read_topics(sink.settings, [topic])]


def frame_of(record: TopicRecord) -> int:
    """The frame number in a record's header."""
    header = dict(record.headers)["kcs"]
    assert header[:8] == CAPTURE
    return int(POSITION.unpack(header[8:])[0])


def assert_whole(records: list[TopicRecord], expected: set[int]) -> None:
    """Each expected record once, and on each partition in position order."""
    frames: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        frames[record.partition].append(frame_of(record))
    for numbers in frames.values():
        assert numbers == sorted(numbers)
    assert sorted(itertools.chain(*frames.values())) == sorted(expected)


class Proxy:
    """A TCP proxy before a broker. `on_answer(bytes)` may sleep (a late ack) or raise ConnectionError (a lost one)."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0
        self.on_answer: Callable[[bytes], Any] = _pass

    async def start(self, listening: socket.socket) -> None:
        """Serve a listening socket, which stays open when the proxy stops."""
        self._server = await asyncio.start_server(self._serve, sock=listening.dup())

    async def stop(self) -> None:
        """Cut every connection and take no new one."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(requests)
            copying = asyncio.ensure_future(_copy(reader, requests, _pass))
            try:
                await _copy(answers, writer, self.on_answer_now)
            finally:
                copying.cancel()
        except (ConnectionError, asyncio.CancelledError):
            self.cuts += 1
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()

    async def on_answer_now(self, data: bytes) -> None:
        await self.on_answer(data)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: Callable[[bytes], Any]) -> None:
    while data := await reader.read(65536):
        await before(data)
        writer.write(data)
        await writer.drain()


async def _pass(data: bytes) -> None:
    """Let it through."""
