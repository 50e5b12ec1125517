"""One seed from beginning to end: the lives one after the other, then the checks."""

from __future__ import annotations

import gc
import shutil
import signal
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kcs.capture.writer import CaptureWriter
from kcs.live.receipt import base_name, read_delivery
from kcs.sim.upbit import UpbitExchange
from tests.dst import client
from tests.dst.broker import BrokerFaults, Cluster
from tests.dst.checks import check
from tests.dst.disk import Disk
from tests.dst.evidence import Evidence
from tests.dst.life import Life, LifeReport
from tests.dst.loop import Hang
from tests.dst.network import Network, NetworkFaults
from tests.dst.plan import Plan, draw, placed
from tests.dst.start import hurried
from tests.dst.world import World
from tests.dst.writer import SimWriter

HANGS_S: Final = 10
_MEMORY: Final = Path("/dev/shm")


@dataclass(slots=True)
class Outcome:
    """What a seed came to. `failures`: what the checks found, as `checker: text`; empty is good."""

    seed: int
    failures: list[str]
    trace_hash: str
    frames: int
    counts: Counter[str] = field(default_factory=Counter)


def run_seed(seed: int, *, verbose: bool = False, keep: Path | None = None) -> Outcome:
    """Run one seed. `keep`: a directory that is left with the captures in it, to look at."""
    world = World(seed, verbose=verbose)
    plan = draw(world)
    with _directory(keep) as root, _alarm(world), _no_collector():
        run = _Run(world, plan, root)
        failures = run.lives()
        if not failures:
            failures = check(run.evidence())
        failures = [f"defect: {text}" for text in world.defects] + failures
        frames = sum(len(report.received) for report in run.reports)
    if verbose:
        for text in failures:
            print(f"FAILED {text}")
    return Outcome(seed, failures, world.trace_hash, frames, world.counts)


@contextmanager
def _no_collector() -> Iterator[None]:
    """No finalizer runs in the middle: neither of the seed before nor of a life that has ended, whose coroutines would
    do what they do at their end whenever the collector happened to come by."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Run:
    def __init__(self, world: World, plan: Plan, root: Path) -> None:
        self.world, self.plan, self.directory = world, plan, root / "captures"
        self.directory.mkdir()
        world.root = str(root)
        self.disk = Disk(self.directory, world)
        self.cluster = Cluster(
            world,
            BrokerFaults(),
            settle_ns=plan.settle_ns,
            batch_max=plan.broker_batch_max,
            poison=plan.poison,
        )
        exchange = UpbitExchange(plan.sim, world.clock.now)
        self.network = Network(world, exchange, NetworkFaults(), plan.latency_ns, plan.coalesce_ns)
        self.reports: list[LifeReport] = []
        self.receipts: dict[str, dict[tuple[str, int], int]] = {}
        """Name of each receipt to what the broker held when it appeared: records by partition."""
        self.bound: set[str] = set()
        """Names of the captures that ever had a delivery file."""
        self.disk.on_name = self._named
        self.cluster.on_capture = self._announced

    def lives(self) -> list[str]:
        with (
            self.disk.installed(),
            client.installed(self.cluster),
            client.replaced(CaptureWriter, SimWriter),
            hurried(),
        ):
            for number, life_plan in enumerate(self.plan.lives):
                try:
                    self._live(number)
                except (Exception, Hang):  # noqa: BLE001 - whatever it is, it is a defect of this seed
                    self.disk.kill()
                    return [f"life {number}: {traceback.format_exc()}"]
                self.world.sleep_until(self.world.clock.now + life_plan.pause_ns)
        return []

    def _live(self, number: int) -> None:
        world = self.world
        plan = placed(self.plan.lives[number], world.clock.now)
        self.cluster.faults, self.disk.faults, self.network.faults = plan.broker, plan.disk, plan.network
        world.tell(f"life {number} begins, to end by {plan.end}")
        self._add_partitions(plan.new_partitions)
        report = LifeReport(number, plan, world.clock.now)
        life = Life(world, self.plan, self.disk, self.network, self.cluster, report, self.directory)
        self.reports.append(life.live())

    def _announced(self, capture_id: bytes) -> None:
        """Before the first record of a capture its delivery file says where they go, and a power cut cannot take it."""
        name = capture_id.hex()
        for path in self.directory.glob(f"*-{name}.delivery.json"):
            delivery = read_delivery(path.with_name(path.name.removesuffix(".delivery.json") + ".zst"))
            if delivery is None or delivery.cluster is None or not delivery.partitions:
                self.world.defect(f"{name} is produced, and its delivery file does not say where")
            elif not self.disk.durable(path):
                self.world.defect(f"{name} is produced, and a power cut would take its delivery file")
            return
        self.world.defect(f"{name} is produced without a delivery file")

    def _add_partitions(self, count: int) -> None:
        """Somebody makes the topics larger: keys go elsewhere from then on, but those of captures that have begun."""
        for topic in self.cluster.topics.values() if count else ():
            self.world.count("partition added")
            topic.logs += [[] for _ in range(count)]
            topic.visible += [0] * count

    def _named(self, path: str) -> None:
        if path.endswith(".delivery.json"):
            self.bound.add(base_name(Path(path.removesuffix(".delivery.json"))))
        if path.endswith(".receipt.json"):
            places = {
                (name, number): len(log)
                for name, topic in self.cluster.topics.items()
                for number, log in enumerate(topic.logs)
            }
            self.receipts[Path(path).name] = places

    def evidence(self) -> Evidence:
        return Evidence(self.world, self.plan, self.directory, self.cluster, self.reports, self.receipts, self.bound)


@contextmanager
def _alarm(world: World) -> Iterator[None]:
    """A seed takes a fraction of a second; one that computes for `HANGS_S` spins in a callback, and is ended."""

    def ring(*_: Any) -> None:
        raise Hang(f"seed {world.seed}: still not done after {HANGS_S} s of computing")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, HANGS_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="kcs-dst-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        yield Path(name)
