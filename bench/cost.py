"""What a frame costs, step by step, in CPU microseconds: the same stream of frames into more and more of kcs.

    python -m bench.cost --bootstrap HOST:PORT --rate 10000 --rounds 5

`null`       the socket, the websocket protocol and the receive stamp; frames are counted and dropped
`capture`    and the capture writer: append, compression and the disk in its thread
`pipeline`   and all of a run but Kafka, as `kcs capture`: session, parsing, de-duplication, encoding, digest
`kafka`      and Kafka, as `kcs live`: records to acks
`behind`     as `kafka`, but every frame is delivered from the capture: the sink is not ready for half of the time; then
             the follower catches up, while frames go on arriving and are captured and parsed as well

The simulator and Kafka run in processes of their own. The offered rate is fixed, so that a step that costs more does
not change what it is offered; the cost is user and system time of this process (all threads) by the frames received.
Each round goes through the steps in turn, and a ratio is to `null` in the same round: a loop that wakes for ten frames
pays less a frame than one that wakes for each, and that is the same for all steps. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import orjson

from bench.rig import simulator
from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.cli.running import measured, run_async
from kcs.clock import SystemClock
from kcs.exchanges import Subscription, venue
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.live.actions import ConnectionEnd
from kcs.live.collector import Collector, CollectorSettings
from kcs.live.transport import Connection, Dialer, TransportSettings
from kcs.model import CHANNELS
from kcs.sink import NullSink, Sink

STEPS = ("null", "capture", "pipeline", "kafka", "behind")
WITH_KAFKA = STEPS[3:]
TICK_S = 0.05
_names = itertools.count()

TRIES = 3
TOO_BUSY = 75
"""Exit code where the machine is too busy to measure anything."""


class Disturbed(Exception):
    """The machine was too busy: something else than the step was measured."""


class Counting:
    """The null writer: a handler of a connection that counts frames; `append` gets them where there is one."""

    def __init__(self, append: Callable[[int, int, int, bytes], None] | None = None) -> None:
        self.frames = 0
        self._append = append
        self._connection: Connection | None = None

    def opened(self, connection: Connection, now_ns: int) -> None:
        place = venue("upbit")
        for text in place.subscribe(_subscription(), "bench"):
            connection.send_text(text)

    def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
        self.frames += 1
        if self._append is not None:
            self._append(kind, 0, recv_ns, payload)

    def pong(self, recv_ns: int, payload: bytes) -> None: ...

    def closed(self, now_ns: int, end: ConnectionEnd) -> None: ...

    def crashed(self, error: BaseException) -> None:
        raise error


def _subscription() -> Subscription:
    place = venue("upbit")
    return Subscription(CHANNELS, place.default_markets, place.formats[0])


class Round:
    """One step once: `us` a frame over `seconds` after a warm-up."""

    def __init__(self, url: str, args: argparse.Namespace, directory: Path) -> None:
        self._url = url
        self._args = args
        self._directory = directory
        self._clock = SystemClock()

    async def null(self) -> float:
        return await self._received(None)

    async def capture(self) -> float:
        header = CaptureHeader(
            capture_id=os.urandom(8),
            run_id=bytes(8),
            exchange="upbit",
            url=self._url,
            created_ns=self._clock.now_ns(),
            kcs_version="bench",
            options={},
        )
        writer = CaptureWriter(self._place(), header, settings=WriterSettings(), new_id=lambda: os.urandom(8))
        try:
            return await self._received(writer)
        finally:
            writer.close(self._clock.now_ns())
            assert writer.failed is None

    async def _received(self, writer: CaptureWriter | None) -> float:
        """Frames straight from the connection, into a writer or into nothing."""
        handler = Counting(None if writer is None else _appending(writer))
        connection = await Dialer(self._url, self._clock, TransportSettings()).dial(handler)
        ticking = asyncio.ensure_future(self._tick(writer))
        try:
            return await self._measured(lambda: handler.frames)
        finally:
            ticking.cancel()
            connection.abort()

    async def _tick(self, writer: CaptureWriter | None) -> None:
        while True:
            if writer is not None:
                writer.tick(self._clock.now_ns())
            await asyncio.sleep(TICK_S)

    async def pipeline(self) -> float:
        return await self._run(NullSink())

    async def kafka(self) -> float:
        sink = await self._sink()
        try:
            return await self._run(sink)
        finally:
            await sink.close()

    async def _run(self, sink: Sink) -> float:
        collector = self._collector(sink)
        running = asyncio.ensure_future(collector.run())
        try:
            return await self._measured(lambda: collector.ledger.received)
        finally:
            await _ended(collector, running, catch_ups=0)

    async def behind(self) -> float:
        """From the first frame until the run has met the present: every frame went through the capture."""
        sink, ready = await self._sink(), asyncio.Event()

        async def prepare() -> None:
            await ready.wait()

        collector = self._collector(sink, prepare)
        cpu = process_time()
        running = asyncio.ensure_future(collector.run())
        try:
            await asyncio.sleep((self._args.warmup + self._args.seconds) / 2)
            ready.set()
            async with asyncio.timeout(60):
                while collector.lag is not None:  # noqa: ASYNC110 - the meeting has no event
                    await asyncio.sleep(0.01)
            us = (process_time() - cpu) / collector.ledger.received * 1e6
            await _ended(collector, running, catch_ups=1)
            return us
        finally:
            await sink.close()

    async def _measured(self, frames: Callable[[], int]) -> float:
        await asyncio.sleep(self._args.warmup)
        before, cpu = frames(), process_time()
        await asyncio.sleep(self._args.seconds)
        used, count = process_time() - cpu, frames() - before
        if count < self._args.rate * self._args.seconds * 0.9:
            raise Disturbed(f"only {count:,} frames came in {self._args.seconds} s")
        return used / count * 1e6

    async def _sink(self) -> KafkaSink:
        template = f"cost{os.getpid()}-{next(_names)}.{{channel}}.{{exchange}}"
        sink = KafkaSink(KafkaSettings(self._args.bootstrap, template=template), self._clock)
        await sink.open(["upbit"], CHANNELS)
        return sink

    def _collector(self, sink: Sink, prepare: Any = None) -> Collector:
        return Collector(
            venue("upbit"),
            CollectorSettings(directory=self._place(), subscriptions=(_subscription(),), url=self._url, drain_s=30.0),
            sink=sink,
            clock=self._clock,
            rng=Random(7),
            log=lambda level, text: None,
            prepare=prepare,
        )

    def _place(self) -> Path:
        place = self._directory / str(next(_names))
        place.mkdir()
        return place


def _appending(writer: CaptureWriter) -> Callable[[int, int, int, bytes], None]:
    """Not `writer.append` itself: the collector calls it from a method of its own, too."""

    def append(kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        writer.append(kind, stream, recv_ns, payload)

    return append


async def _ended(collector: Collector, running: asyncio.Future[Any], catch_ups: int) -> None:
    """A clean end, with nothing lost and nothing behind, or the figure is worth nothing."""
    collector.request_stop()
    result = await running
    result.ledger.check()
    if result.ledger.lost or result.behind:
        raise SystemExit(f"frames were lost: {result.ledger.report()}")
    if result.catch_ups != catch_ups:
        raise Disturbed(f"the run fell behind {result.catch_ups} times instead of {catch_ups}")


async def _rounds(url: str, args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {step: [] for step in args.steps}
    once = Round(url, args, directory)
    with measured(SystemClock()):  # the heap is frozen, as in every verb
        for _ in range(args.rounds):
            for step in args.steps:
                found[step].append(await _undisturbed(getattr(once, step)))
    return found


async def _undisturbed(step: Callable[[], Awaitable[float]]) -> float:
    for _ in range(TRIES - 1):
        try:
            return await step()
        except Disturbed as error:
            print(f"once more: {error}", file=sys.stderr)
    return await step()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--bootstrap", help="a real Kafka; without one the last two steps are left out")
    parser.add_argument("--steps", help=",".join(STEPS))
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a step")
    args = parser.parse_args(argv)
    possible = [step for step in STEPS if args.bootstrap or step not in WITH_KAFKA]
    args.steps = args.steps.split(",") if args.steps else possible
    if not set(args.steps) <= set(possible):
        parser.error(f"not all of {','.join(args.steps)} can be done; without --bootstrap: {','.join(possible)}")
    with tempfile.TemporaryDirectory(prefix="kcs-cost-") as directory, simulator(args.rate, CHANNELS) as url:
        try:
            found = run_async(lambda: _rounds(url, args, Path(directory)))
        except Disturbed as error:
            print(f"the machine is too busy: {error}", file=sys.stderr)
            sys.exit(TOO_BUSY)
    sys.stdout.buffer.write(orjson.dumps({"us": found, "rate": args.rate}) + b"\n")


if __name__ == "__main__":
    main()
