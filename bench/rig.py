"""What is measured in a process of its own: replay to acks, and receive-to-ack latency of a live run.

    python -m bench.rig replay TAPE --bootstrap HOST:PORT --rounds 5        TAPE from `python -m bench.rig tape OUT_DIR`
    python -m bench.rig live --bootstrap HOST:PORT --channel trade --rounds 5 --seconds 6

Each prints one JSON object on stdout. They use kcs as its verbs do (loop, sinks, settings, collector, frozen heap);
headers, digest, recording, acks=all and idempotence are on. They are what to put a profiler on (README.md).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

import orjson

from bench.reference import ReadyRecords, idle_latency, ready_batches
from bench.tapes import FIXTURE, ROOT, long_tape
from kcs.cli.running import measured, run_async
from kcs.clock import SystemClock
from kcs.exchanges import Subscription, venue
from kcs.kafka.embedded import EmbeddedBroker
from kcs.kafka.settings import REPLAY_BUFFER_BYTES, KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.live.collector import Collector, CollectorSettings
from kcs.model import CHANNELS
from kcs.replay.engine import Plan, replay
from kcs.replay.source import plan
from kcs.stats import GcMeter, LatencyHistogram, Ledger, LoopMeter

# --- replay to acks ---------------------------------------------------------------------------------------------------


async def replay_round(tape: Path, settings: KafkaSettings) -> dict[str, Any]:
    """One replay at full speed; the clock runs from the first read to the last ack."""
    clock, ledger = SystemClock(), Ledger()
    sink = KafkaSink(settings, clock)
    await sink.open(["upbit"], CHANNELS)
    try:
        with measured(clock) as meters:
            cpu = process_time()
            result = await replay(Plan(plan([tape])), sink, ledger, clock)
            cpu = process_time() - cpu
    finally:
        await sink.close()
    ledger.check()
    if ledger.lost or ledger.acked != ledger.produced:
        raise SystemExit(f"records were lost: {ledger.report()}")
    digest = result.played[0].digest
    if digest is None:
        raise SystemExit("the replay had no digest")
    gc = meters.gc.report()
    return {
        "frames": ledger.received,
        "records": ledger.acked,
        "frames_per_s": ledger.received / result.seconds,
        "cpu_us": cpu / ledger.received * 1e6,
        "gc_share": gc.share,
        "gc_pause_max_ms": gc.pause_max_ms,
        "digest": digest,
    }


async def replays(tape: Path, bootstrap: str, rounds: int, warmup_rounds: int) -> dict[str, Any]:
    """Rounds of (ready-made records, replay), after as many of both as the warm-up says."""
    ready = await ReadyRecords.of(tape)
    kept: list[dict[str, Any]] = []
    for number in range(warmup_rounds + rounds):
        settings = _settings(bootstrap, f"bench{os.getpid()}r{number}", buffer_bytes_max=REPLAY_BUFFER_BYTES)
        seconds = await ready_batches(ready, settings)
        figures = await replay_round(tape, settings)
        figures["ready_records_per_s"] = ready.records / seconds
        if number >= warmup_rounds:
            kept.append(figures)
    digests = {figures.pop("digest") for figures in kept}
    if len(digests) != 1:
        raise SystemExit(f"one tape, several digests: {digests}")
    return {"digest": digests.pop(), "rounds": kept}


def _settings(bootstrap: str, prefix: str, partitions: int = 1, **sizes: int) -> KafkaSettings:
    return KafkaSettings(bootstrap, template=f"{prefix}.{{channel}}.{{exchange}}", partitions=partitions, **sizes)


# --- receive to ack ---------------------------------------------------------------------------------------------------


class Stopwatch:
    """Latencies of the round at hand; the sink knows only `record_many`."""

    def __init__(self) -> None:
        self.histogram = LatencyHistogram()

    def record_many(self, latencies_ns: list[int]) -> None:
        self.histogram.record_many(latencies_ns)


async def live(url: str, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """A live run: warm up, then the rounds, then a clean stop and a ledger that balances."""
    clock, stopwatch = SystemClock(), Stopwatch()
    prefix = f"bench{os.getpid()}x{len(args.channel)}x{args.partitions}"
    sink = KafkaSink(_settings(args.bootstrap, prefix, args.partitions), clock, latency=stopwatch)
    place = venue("upbit")
    await sink.open([place.name], args.channel)
    subscription = Subscription(tuple(args.channel), place.default_markets, place.formats[0])
    told: list[str] = []
    collector = Collector(
        place,
        CollectorSettings(directory=directory, subscriptions=(subscription,), url=url),
        sink=sink,
        clock=clock,
        rng=Random(7),
        log=lambda level, text: told.append(f"{level}: {text}"),
    )
    try:
        with measured(clock):
            running = asyncio.ensure_future(collector.run())
            await asyncio.sleep(args.warmup)
            rounds = [await _live_round(collector, stopwatch, clock, args.seconds) for _ in range(args.rounds)]
            collector.request_stop()
            result = await running
    finally:
        await sink.close()
    result.ledger.check()
    if result.ledger.lost or result.behind or result.digest is None:
        raise SystemExit(f"frames were lost or behind: {result.ledger.report()}; {told}")
    return {"rounds": rounds, "records": result.ledger.acked, "digest": result.digest}


async def _live_round(collector: Collector, stopwatch: Stopwatch, clock: SystemClock, seconds: float) -> dict[str, Any]:
    gc, lag, ledger = GcMeter(clock), LoopMeter(clock), collector.ledger
    stopwatch.histogram = LatencyHistogram()
    gc.start()
    lag.start(asyncio.get_running_loop())
    received, cpu, started = ledger.received, process_time(), perf_counter()
    await asyncio.sleep(seconds)
    elapsed = perf_counter() - started
    lag.stop()
    gc.stop()
    report = gc.report()
    return {
        "ack_latency_ms": stopwatch.histogram.report_ms(),
        "loop_lag_ms": lag.report_ms(),
        "frames_per_s": (ledger.received - received) / elapsed,
        "cpu_share": (process_time() - cpu) / elapsed,
        "gc_share": report.share,
        "gc_pause_max_ms": report.pause_max_ms,
    }


@contextmanager
def simulator(rate: int, channels: Sequence[str]) -> Iterator[str]:
    """The simulated exchange in a process of its own; its URL."""
    command = [sys.executable, "-m", "kcs", "sim", "--port", "0", "--rate", str(rate), "--epoch", "now"]
    command += ["--channel", ",".join(channels), "--market", ",".join(venue("upbit").default_markets)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the simulator did not start: {' '.join(command)}")
        yield url
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def live_with_floor(args: argparse.Namespace) -> dict[str, Any]:
    """The floor (one record at a time, nothing else running), the live run, the floor again."""
    floors = []
    with tempfile.TemporaryDirectory(prefix="kcs-bench-") as directory:
        if args.floor:
            floors.append(run_async(lambda: idle_latency(args.bootstrap, f"bench{os.getpid()}.floor", args.floor)))
        with simulator(args.rate, args.channel) as url:
            figures = run_async(lambda: live(url, args, Path(directory)))
        if args.floor:
            floors.append(run_async(lambda: idle_latency(args.bootstrap, f"bench{os.getpid()}.floor", args.floor)))
    return {**figures, "floor_ms": floors}


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.rig", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    tape = verbs.add_parser("tape", help="make a tape to replay; prints its path")
    tape.add_argument("out", type=Path)
    tape.add_argument("--source", type=Path, default=FIXTURE)
    tape.add_argument("--frames", type=int, default=200_000)
    again = verbs.add_parser("replay", help="replay to acks beside batches of ready-made records")
    again.add_argument("tape", type=Path)
    again.add_argument("--bootstrap", help="default: the embedded broker")
    again.add_argument("--rounds", type=int, default=5)
    again.add_argument("--warmup-rounds", type=int, default=1)
    watch = verbs.add_parser("live", help="receive-to-ack latency, from the simulator, recording on")
    watch.add_argument("--bootstrap", required=True)
    watch.add_argument("--channel", action="append", choices=CHANNELS, required=True)
    watch.add_argument("--partitions", type=int, default=1)
    watch.add_argument("--rate", type=int, default=10_000)
    watch.add_argument("--warmup", type=float, default=5.0, help="seconds")
    watch.add_argument("--rounds", type=int, default=5)
    watch.add_argument("--seconds", type=float, default=6.0, help="of a round")
    watch.add_argument("--floor", type=float, default=3.0, help="seconds of the floor before and after; 0: none")
    return parser


def main() -> None:
    """Do what the arguments say; the result is one line of JSON."""
    args = _parser().parse_args()
    if args.verb == "tape":
        print(long_tape(args.source, args.out, args.frames))
        return
    if args.verb == "live":
        result = live_with_floor(args)
    else:
        with ExitStack() as stack:
            bootstrap = args.bootstrap or stack.enter_context(EmbeddedBroker()).bootstrap
            result = run_async(lambda: replays(args.tape, bootstrap, args.rounds, args.warmup_rounds))
    sys.stdout.buffer.write(orjson.dumps(result) + b"\n")


def outcome(*arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run this file in a child process and return what it prints; for the benches. Raises RuntimeError."""
    command = [sys.executable, "-m", "bench.rig", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).decode("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {tail}")
    found: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return found


def flattened(rounds: Sequence[dict[str, Any]], *path: str) -> list[float]:
    """One figure of every round: flattened(rounds, "ack_latency_ms", "p50")."""
    values: list[Any] = list(rounds)
    for name in path:
        values = [value[name] for value in values]
    return [float(value) for value in itertools.chain(values)]


if __name__ == "__main__":
    main()
