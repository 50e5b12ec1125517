"""One life of `kcs live`: started as the command starts it, ended as the plan says, and what it left behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from kcs.errors import CaptureBusyError, CaptureWriteError, KcsError
from kcs.exchanges import Subscription, venue
from kcs.exchanges.base import Limits, Venue
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.live.backoff import BackoffSettings
from kcs.live.collector import Collector, CollectorResult, CollectorSettings
from kcs.live.session import SessionSettings
from kcs.live.transport import TransportSettings
from tests.dst.broker import Cluster
from tests.dst.disk import Disk
from tests.dst.loop import Crash, SimLoop
from tests.dst.network import Network, Received
from tests.dst.plan import LifePlan, Plan
from tests.dst.start import counted, start
from tests.dst.world import MS, SECOND, ProcessClock, World
from tests.dst.writer import SimWriter

LOOK_EVERY_TURNS = 8
HURRY_S = 0.05
"""Between the first and the second request to stop."""
LAST_WITHIN_S = 30.0
"""The last life has so long to deliver everything."""


@dataclass(slots=True)
class LifeReport:
    """`ended`: `clean`, `killed`, `power cut` or `not started` (then `error` says why)."""

    number: int
    plan: LifePlan
    started_ns: int
    ended_ns: int = 0
    ended: str = ""
    result: CollectorResult | None = None
    error: KcsError | None = None
    received: list[Received] = field(default_factory=list)
    captures: list[bytes] = field(default_factory=list)
    """Ids of the capture files that this life began."""
    queue_since_ns: int | None = None
    """At its death: receive time of the oldest record that the writer's thread had been given and not written."""
    flush_ns: int = 0
    fsync: bool = False
    failed: bool = False
    """Its capture had failed."""
    logs: list[str] = field(default_factory=list)

    @property
    def held_up_ns(self) -> int:
        """How much later than its timers the process may have been, by what the plan does to it."""
        return max((ns for _, ns in self.plan.stalls), default=0) + 2 * self.plan.disk.slow_ns + 20 * MS


@dataclass(slots=True)
class Life:
    """See the module docstring."""

    world: World
    plan: Plan
    disk: Disk
    network: Network
    cluster: Cluster
    report: LifeReport
    directory: Path
    writers: list[SimWriter] = field(default_factory=list)
    collector: Collector | None = None
    sink: KafkaSink | None = None
    _loop: SimLoop = field(init=False)
    _behind_since_ns: int = 0

    @property
    def clock(self) -> ProcessClock:
        """This process's."""
        return ProcessClock(self.world.clock, self.report.plan.clock_offset_ns)

    def live(self) -> LifeReport:
        """From the start to the end."""
        report, plan, world = self.report, self.report.plan, self.world
        loop = self._loop = SimLoop(world, self._look)
        loop.on_writer = self._on_writer
        loop.stalls.extend(plan.stalls)
        if plan.end in ("kill", "power"):
            loop.crash_at = plan.turn
        self.disk.crash_at_op = 1 + plan.turn % 150 if plan.end.endswith("in a write") else 0
        self.disk.born(loop)
        self.network.born(self.clock)
        try:
            loop.run_until_complete(self._main())
        except Crash as crash:
            self._died(crash)
        except BaseException:
            loop.bury()
            raise
        else:
            self._ended()
        report.ended_ns = world.clock.now + plan.clock_offset_ns
        report.received = self.network.received
        recorder = self.collector._recorder if self.collector is not None else None
        report.failed = any(writer.failed is not None for writer in self.writers)
        report.failed = report.failed or (recorder is not None and recorder.failure is not None)
        self._count()
        report.flush_ns, report.fsync = self.plan.writer.flush_ns, self.plan.writer.fsync
        report.captures = [capture for writer in self.writers for capture in writer.ids]
        self.cluster.process_gone(late=plan.late)
        return report

    # ------------------------------------------------------------ the command

    async def _main(self) -> None:
        report = self.report
        place = simulated_venue(self.plan)
        sink = self.sink = KafkaSink(self.kafka_settings(), self.clock)
        try:
            await self._run(place, sink)
        except KcsError as error:
            report.error = error
            self.world.tell(f"not started: {error}")
        finally:
            await sink.close(0)

    async def _run(self, place: Venue, sink: KafkaSink) -> None:
        report = self.report
        delivery, prepare = await start(self.directory, place, self.plan, sink, self.world, self.clock, self.log)
        collector = self.collector = Collector(
            place,
            self._settings(),
            sink=sink,
            clock=self.clock,
            rng=self.world.rng(f"life/{report.number}"),
            log=self.log,
            delivery=delivery,
            prepare=prepare,
            dial=self.network.dial,
        )
        self._arm(collector, report.plan)
        report.result = await collector.run()

    def _arm(self, collector: Collector, plan: LifePlan) -> None:
        loop = self._loop
        if plan.last:
            loop.create_task(self._stop_when_done(collector), name="stop when done")
        elif plan.end in ("stop", "force"):
            loop.call_later(plan.lasts_ns / SECOND, collector.request_stop)
            if plan.end == "force":
                loop.call_later(plan.lasts_ns / SECOND + HURRY_S, collector.request_stop)
        else:  # it dies at its turn, or when it has lived for long enough
            loop.call_later(plan.lasts_ns / SECOND, self._die)

    def _die(self) -> None:
        raise Crash("its time has come")

    async def _stop_when_done(self, collector: Collector) -> None:
        """The last life runs until it has nothing left to deliver, and a while longer."""
        await asyncio.sleep(self.report.plan.lasts_ns / SECOND)
        end_s = self._loop.time() + LAST_WITHIN_S
        while collector.lag is not None and self._loop.time() < end_s:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        collector.request_stop()  # `ended_well` tells if it was not done

    def kafka_settings(self) -> KafkaSettings:
        return KafkaSettings(
            "sim:9092",
            partitions=self.plan.partitions,
            buffer_bytes_max=self.plan.buffer_bytes_max,
            batch_bytes_max=self.plan.batch_bytes_max,
            settle_s=self.plan.settle_ns / SECOND,
        )

    def _settings(self) -> CollectorSettings:
        plan = self.plan
        return CollectorSettings(
            directory=self.directory,
            subscriptions=(Subscription(plan.channels, plan.markets, plan.wire_format),),
            connections=plan.connections,
            writer=plan.writer,
            session=SessionSettings(BackoffSettings(base_s=0.02, cap_s=0.3, healthy_s=1.0)),
            transport=TransportSettings(close_within_s=0.5),
            drain_s=LAST_WITHIN_S if self.report.plan.last else plan.drain_s,
            anchor_every_s=1.0,
        )

    def log(self, level: str, text: str) -> None:
        self.report.logs.append(f"{level}: {text}")
        self.world.tell(f"log {level}: {text}")
        counted(self.world, text)
        if text.startswith("delivery stops"):  # this disk never lies
            self.world.defect(text)

    # ------------------------------------------------------------ while it lives

    def _on_writer(self, writer: SimWriter) -> None:
        self.writers.append(writer)
        writer.on_rotation = self._rotated

    def _rotated(self) -> None:
        assert self.collector is not None
        assert self.collector._recorder is not None
        self.world.count("rotation")
        if self.collector._recorder.behind:
            self.world.count("rotation while behind")

    def _look(self) -> None:
        if self._loop.turns % LOOK_EVERY_TURNS:
            return
        plan, world = self.plan, self.world
        if self.sink is not None:
            parts = sum(self.sink.partitions().values())
            bound = plan.buffer_bytes_max + (parts + 2) * plan.batch_bytes_max + 64 * 1024
            if self.sink._buffered > bound:
                world.defect(f"the sink buffers {self.sink._buffered} bytes, more than {bound}")
        for writer in self.writers:
            bound = plan.writer.queue_bytes_max + plan.writer.chunk_bytes_max + 64 * 1024
            if writer.queued_bytes > bound:
                world.defect(f"the writer queues {writer.queued_bytes} bytes, more than {bound}")
        recorder = self.collector._recorder if self.collector is not None else None
        if recorder is not None and recorder.behind and recorder._behind_since_ns != self._behind_since_ns:
            self._behind_since_ns = recorder._behind_since_ns
            world.count("fell behind: " + ("late" if "late" in recorder._why else recorder._why))
        follower = recorder._follower if recorder is not None else None
        if follower is not None and len(follower._batch) > 512 + plan.writer.queue_bytes_max // 64:
            world.defect(f"the follower reads {len(follower._batch)} records ahead")

    # ------------------------------------------------------------ its end

    def _died(self, crash: Crash) -> None:
        report = self.report
        power = report.plan.end.startswith("power")
        report.ended = "power cut" if power else "killed"
        self.world.count(report.ended)
        self.world.count("died in a write", "writing call" in str(crash))
        self.world.tell(f"{report.ended} {crash}")
        waiting = [since for writer in self.writers if (since := writer.oldest_queued_ns()) is not None]
        report.queue_since_ns = min(waiting, default=None)
        self._loop.bury()
        self.disk.kill(power=power)
        self.network.gone()

    def _ended(self) -> None:
        report, world = self.report, self.world
        report.ended = "not started" if report.error is not None else "clean"
        world.count("not started" if report.error is not None else "stopped")
        self._loop.bury()
        self.network.gone()
        for path in self.disk.ended():
            world.defect(f"life {report.number} left {Path(path).name} open")
        if report.error is not None and not isinstance(report.error, CaptureWriteError | CaptureBusyError):
            world.defect(f"life {report.number} ended with {type(report.error).__name__}: {report.error}")

    def _count(self) -> None:
        """For the coverage report."""
        report, count = self.report, self.world.count
        recorder = self.collector._recorder if self.collector is not None else None
        count("catch-up", recorder.catch_ups if recorder is not None else 0)
        count("capture failed", report.failed)
        if report.result is not None:
            count("stopped while behind", report.result.behind)
            count("venue: rejected frames", sum(report.result.ledger.rejected.values()))
            count("venue: repeated trades", report.result.ledger.suppressed.get("trade_repeated", 0))


def simulated_venue(plan: Plan) -> Venue:
    """Upbit in a hurry: what takes minutes there takes seconds here."""
    heartbeat = replace(venue("upbit").heartbeat, ping_every_s=0.7, pong_within_s=0.5, silence_max_s=1.5)
    limits = Limits(connects_per_s=20.0, connection_age_max_s=plan.age_max_s)
    return replace(venue("upbit"), heartbeat=heartbeat, limits=limits)
