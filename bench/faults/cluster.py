"""Three real Kafka brokers under load, and what may happen to them: is each record there once, in order, byte for byte?

    python -m bench.faults cluster                                  every scenario, about fifteen minutes
    python -m bench.faults cluster --scenario pause --scenario two-down
    python -m bench.faults cluster --scenario outage --minutes 10

A `KafkaSink` as `kcs live` has it (uvloop, headers, idempotent, acks=all, 64 MiB of buffer) takes records at a steady
rate; while it is full nothing is produced, and what is due is made up for later, as the follower does from the capture.
In the end everything is read back with librdkafka and compared with what was given to the sink (`tests/kafka/load.py`).
Needs Java 17 and, the first time, Maven.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from confluent_kafka import ElectionType
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from bench.faults.verdict import Verdict, say
from kcs.clock import SystemClock
from kcs.errors import KafkaError
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.stats import LatencyHistogram
from tests.kafka.load import CHANNELS, Load, compare
from tests.realcluster import RealCluster
from tests.realkafka import KafkaUnavailable

PARTITIONS = 2
BUFFER_BYTES = 64 * 1024 * 1024
DAY_NS = 86_400_000_000_000
RSS_GROWTH_MAX_MIB = 16
"""Between the moment when the buffer is full and the end of an outage."""
CPU_AWAY_MAX = 0.05
DRAIN_MAX_S = 120.0
_SAMPLE_S = 1.0
_names = itertools.count()


@dataclass(slots=True)
class Use:
    """Memory and processor time of this process while brokers were away, sampled each second."""

    rss_mib: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def sample(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.rss_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.cpu_s.append(used.ru_utime + used.ru_stime)


class Lines(logging.Handler):
    """Counts what the log says at level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        logging.getLogger("bench.faults.lines").debug(record.getMessage())


@dataclass(slots=True)
class Stage:
    """What a scenario acts on. `away_s`: how long brokers are away where the scenario has a length."""

    cluster: RealCluster
    sink: KafkaSink
    load: Load
    away_s: float
    verdict: Verdict
    admin: AdminClient
    use: Use = field(default_factory=Use)

    @property
    def topic(self) -> str:
        return self.sink.settings.template.format(channel="trade", exchange="upbit")

    async def leader(self) -> int:
        return await asyncio.to_thread(self.cluster.leader, self.topic)

    async def do(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Something that blocks."""
        return await asyncio.to_thread(action, *arguments)

    async def healed(self, *numbers: int) -> None:
        """Brokers started again and everything in sync."""
        await self.do(self.cluster.restart, *numbers)
        await self.do(self.cluster.wait_in_sync)


Scenario = Callable[[Stage], Awaitable[None]]


async def leader(stage: Stage) -> None:
    """kill -9 the leader of a partition, start it again; twice"""
    for _ in range(2):
        number = await stage.leader()
        await stage.do(stage.cluster.kill, number)
        await asyncio.sleep(5)
        await stage.healed(number)


async def leader_old(stage: Stage) -> None:
    """the same with records two days old, which no broker recognises when they are repeated"""
    await leader(stage)


async def two_down(stage: Stage) -> None:
    """kill -9 two of three for a minute"""
    number = await stage.leader()
    down = [number, number % 3 + 1]
    await stage.do(stage.cluster.kill, *down)
    await asyncio.sleep(stage.away_s)
    await stage.healed(*down)


async def pause(stage: Stage) -> None:
    """SIGSTOP the leader of a partition for 20 s"""
    number = await stage.leader()
    stage.cluster.pause(number)
    await asyncio.sleep(20)
    stage.cluster.resume(number)
    await stage.do(stage.cluster.wait_in_sync)


async def pause_long(stage: Stage) -> None:
    """SIGSTOP the leader of a partition for 45 s, longer than a request may take (30 s)"""
    number = await stage.leader()
    stage.cluster.pause(number)
    await asyncio.sleep(45)
    stage.cluster.resume(number)
    await stage.do(stage.cluster.wait_in_sync)


async def rolling(stage: Stage) -> None:
    """stop each broker in good order and start it again, as an update of the cluster does"""
    for number in (1, 2, 3):
        await stage.do(stage.cluster.halt, number)
        await stage.healed(number)


async def elect(stage: Stage) -> None:
    """leaders moved by election, back and forth"""
    number = await stage.leader()
    await stage.do(stage.cluster.halt, number)
    await stage.healed(number)
    await stage.do(lambda: stage.admin.elect_leaders(ElectionType.PREFERRED).result(30))
    await asyncio.sleep(2)
    assert await stage.leader() == number, "the preferred leader was not elected"


async def outage(stage: Stage) -> None:
    """kill -9 all three brokers; back after some minutes on the same ports"""
    await stage.do(stage.cluster.kill, 1, 2, 3)
    await watched(stage)
    await stage.healed(1, 2, 3)


async def outage_old(stage: Stage) -> None:
    """the same with records two days old: their fate is looked up before they are repeated"""
    await outage(stage)


async def leaderless(stage: Stage) -> None:
    """kill -9 the only replica of a partition: no leader for a minute, in a cluster that answers"""
    number = await stage.leader()
    await stage.do(stage.cluster.kill, number)
    await watched(stage)
    await stage.healed(number)


async def watched(stage: Stage) -> None:
    """Wait, and judge memory and processor from the moment when the sink takes no more."""
    full_at = None
    for second in range(round(stage.away_s / _SAMPLE_S)):
        await asyncio.sleep(_SAMPLE_S)
        stage.use.sample()
        if full_at is None and stage.sink.full:
            full_at = second + 5  # what was allocated on the way is settled
    if full_at is None:
        stage.verdict.tell("buffer full", "never")
        return
    stage.verdict.tell("buffer full", f"after {full_at - 5} s: the sink took no more")
    rss, cpu = stage.use.rss_mib[full_at:], stage.use.cpu_s[full_at:]
    if len(rss) > 1:
        share = (cpu[-1] - cpu[0]) / (len(cpu) - 1) / _SAMPLE_S
        stage.verdict.judge(
            "memory while full",
            f"{rss[0]:.0f} -> {rss[-1]:.0f} MiB, max {max(rss):.0f}, over {len(rss)} s",
            f"grows < {RSS_GROWTH_MAX_MIB} MiB",
            max(rss) - rss[0] < RSS_GROWTH_MAX_MIB,
        )
        stage.verdict.judge("processor while full", f"{share:.1%}", f"< {CPU_AWAY_MAX:.0%}", share < CPU_AWAY_MAX)


async def partitions(stage: Stage) -> None:
    """partitions are added to a topic; the records of a key stay where they are"""
    count = stage.sink.partitions()[stage.topic]
    await stage.do(
        lambda: stage.admin.create_partitions([NewPartitions(stage.topic, 3 * count)])[stage.topic].result(30)
    )
    await asyncio.sleep(5)
    number = await stage.leader()
    await stage.do(stage.cluster.halt, number)
    await stage.healed(number)  # everybody asks for the metadata again
    now = len(stage.cluster.metadata(stage.topic).topics[stage.topic].partitions)
    stage.verdict.judge(
        "partitions", f"{now}, in use {stage.sink.partitions()[stage.topic]}", f"in use {count}", now > count
    )


SCENARIOS: dict[str, Scenario] = {
    "leader": leader,
    "leader-old": leader_old,
    "two-down": two_down,
    "pause": pause,
    "pause-long": pause_long,
    "rolling": rolling,
    "elect": elect,
    "partitions": partitions,
    "leaderless": leaderless,
    "outage": outage,
    "outage-old": outage_old,
}


async def run(name: str, cluster: RealCluster, args: argparse.Namespace) -> Verdict:
    """One scenario from a fresh sink on fresh topics to the comparison."""
    scenario = SCENARIOS[name]
    verdict = Verdict(f"{name}: {scenario.__doc__}")
    lines, histogram = Lines(), LatencyHistogram()
    logging.getLogger().addHandler(lines)
    settings = KafkaSettings(
        cluster.bootstrap,
        f"{name}{os.getpid()}-{next(_names)}.{{channel}}.{{exchange}}",
        partitions=PARTITIONS,
        replication=1 if scenario is leaderless else None,
        buffer_bytes_max=BUFFER_BYTES,
    )
    sink = KafkaSink(settings, SystemClock(), latency=histogram)
    try:
        await sink.open(["upbit"], CHANNELS)
        load = Load(sink, args.rate, age_ns=2 * DAY_NS if scenario in (leader_old, outage_old) else 0)
        away_s = 60 * args.minutes if args.minutes else {"outage": 300.0, "outage-old": 120.0}.get(name, 60.0)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        stage = Stage(cluster, sink, load, away_s, verdict, admin)
        await load.run_while(_surrounded(scenario, stage))
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        await sink.drain(DRAIN_MAX_S)
        verdict.tell("records", f"{load.number:,} at {args.rate:,}/s, 3 topics x {PARTITIONS} partitions")
        verdict.tell(
            "longest time without an ack", f"{load.stall_max_s:.1f} s; of one partition {load.flight_max_s:.1f} s"
        )
        verdict.tell("furthest behind", f"{load.behind_max:,} records")
        verdict.tell("drained in", f"{loop.time() - before_s:.1f} s")
        verdict.tell("log lines at WARNING and above", lines.count)
        counts = f"{sink.acked:,} acked, {sink.failed:,} failed, {sink.in_flight:,} in flight"
        verdict.judge("counts", counts, "all acked", sink.acked == load.number == sink.produced)
        seen = await asyncio.to_thread(compare, load, cluster.bootstrap)
        verdict.judge("lost", seen.lost, "0", not seen.lost)
        verdict.judge("doubled", seen.doubled, "0", not seen.doubled)
        verdict.judge("out of order", seen.disordered, "0", not seen.disordered)
        verdict.judge("different bytes or partition", seen.different, "0", not seen.different)
    except KafkaError as error:
        verdict.judge("sink", error.what, "no error", False)
    finally:
        await sink.close(0)
        logging.getLogger().removeHandler(lines)
    return verdict


async def _surrounded(scenario: Scenario, stage: Stage) -> None:
    """The load runs two seconds before and after."""
    await asyncio.sleep(2)
    await scenario(stage)
    await asyncio.sleep(2)


def main(argv: Sequence[str]) -> int:
    """0: every promise was kept in every scenario."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults cluster", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="default: all, one after the other")
    parser.add_argument("--minutes", type=float, help="how long brokers are away; default 1, in an outage 5")
    parser.add_argument("--rate", type=int, default=3_000, help="records a second; default 3000")
    args = parser.parse_args(argv)
    code = 0
    for name in args.scenario or SCENARIOS:
        say(f"{name}: three brokers start")
        try:
            with RealCluster() as cluster, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                code |= runner.run(run(name, cluster, args)).show()
        except KafkaUnavailable as error:
            say(f"no cluster: {error}")
            return 1
    return code
