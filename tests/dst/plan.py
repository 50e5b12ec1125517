"""What a seed stands for: sizes, speeds, and which things fail how often. Drawn once, before anything runs.

Each run switches on a random half of the kinds of faults: runs with few kinds reach states that runs with all of them
never do. Sizes are small, so that rotation, full buffers and catching up happen all the time. Times in ns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from kcs.capture.writer import WriterSettings
from kcs.sim.fault_text import parse_faults
from kcs.sim.faults import Faults
from kcs.sim.settings import SimSettings
from tests.dst.broker import BrokerFaults
from tests.dst.disk import DiskFaults
from tests.dst.network import NetworkFaults
from tests.dst.world import MS, NEVER, World

MARKETS: Final = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "BTC-ETH")
CHANNELS: Final = ("trade", "orderbook", "ticker")
ENDS: Final = ("kill", "kill", "power", "stop", "stop", "force", "kill in a write", "power in a write")


@dataclass(slots=True)
class LifePlan:
    """One life of the process. `end`: how it ends, at the latest after `lasts_ns`; `turn`: the callback or the writing
    call in which it dies. `late`: its last batches surface after the settle time."""

    lasts_ns: int
    end: str
    turn: int
    pause_ns: int
    broker: BrokerFaults
    disk: DiskFaults
    network: NetworkFaults
    stalls: tuple[tuple[int, int], ...] = ()
    clock_offset_ns: int = 0
    """How far the machine's clock is ahead."""
    new_partitions: int = 0
    """So many are added to each topic before it."""
    late: bool = False
    last: bool = False


@dataclass(slots=True)
class Plan:
    """One run."""

    sim: SimSettings
    connections: int
    age_max_s: float | None
    """The venue ends a connection that is older: it is renewed before."""
    channels: tuple[str, ...]
    markets: tuple[str, ...]
    wire_format: str
    writer: WriterSettings
    buffer_bytes_max: int
    batch_bytes_max: int
    partitions: int
    broker_batch_max: int
    poison: int
    settle_ns: int
    drain_s: float
    latency_ns: int
    coalesce_ns: int
    lives: list[LifePlan]


def draw(world: World) -> Plan:
    """The plan of `world.seed`."""
    rng = world.rng("plan")
    markets = MARKETS[: rng.randint(1, 4)]
    channels = CHANNELS if rng.random() < 0.7 else tuple(rng.sample(CHANNELS, rng.randint(1, 2)))
    settle_ns = rng.choice((200 * MS, 500 * MS))
    on = _switch(rng)
    rate = rng.choice((4, 40, 100, 200, 300, 500))
    lives = [_life(rng, on, settle_ns) for _ in range(rng.randint(1, 5))]
    return Plan(
        sim=SimSettings(
            seed=rng.getrandbits(32),
            rate=rate,
            markets=markets,
            channels=channels,
            faults=_venue_faults(rng, on),
        ),
        connections=2 if on("two connections", 0.3) else 1,
        age_max_s=rng.choice((0.8, 2.0)) if on("renewal", 0.3) else None,
        channels=channels,
        markets=markets,
        wire_format=rng.choice(("SIMPLE", "SIMPLE", "DEFAULT", "JSON_LIST")),
        writer=_writer(rng, on),
        buffer_bytes_max=rng.choice((16, 48)) * 1024,
        batch_bytes_max=rng.choice((2, 4, 8) if rate < 200 else (8, 16)) * 1024,
        partitions=rng.choice((1, 1, 2, 3)),
        broker_batch_max=rng.choice((3, 4)) * 1024 if on("too large") else 1 << 30,
        poison=rng.choice((60, 200, 600)) if on("poison", 0.1) else 0,
        settle_ns=settle_ns,
        drain_s=rng.choice((0.3, 1.0, 3.0)),
        latency_ns=rng.randint(MS, 30 * MS),
        coalesce_ns=rng.choice((0, 5 * MS, 20 * MS)),
        lives=[*lives, _last(settle_ns)],
    )


Switch = Callable[..., bool]


def _switch(rng: Random) -> Switch:
    drawn: dict[str, bool] = {}

    def on(name: str, chance: float = 0.5) -> bool:
        if name not in drawn:
            drawn[name] = rng.random() < chance
        return drawn[name]

    return on


VENUE_FAULTS: Final = (
    "junk@every:7", "junk=2%", "drop=3%", "duplicate=5%", "reorder=5%", "bad_json=2%", "truncated_json=2%",
    "silent_stall=2500ms@every:3s", "market_silent=1s@every:2s", "stall=400ms@every:1s", "late_snapshot=300ms@50%",
    "ping_ignored=30%", "clock_step=-500ms@every:2s@for:1s", "close_code=1000@after:2s", "close_code=1001@every:1500ms",
    "close_code=1006@after:1s", "close_code=1012@every:3s@50%",
)  # fmt: skip
"""What the simulator does wrong on the websocket level; each in an eighth of the runs that have any."""


def _venue_faults(rng: Random, on: Switch) -> Faults:
    chosen = [text for text in VENUE_FAULTS if rng.random() < 0.125] if on("venue faults", 0.7) else []
    return parse_faults({text.partition("@")[0].partition("=")[0]: text for text in chosen}.values())


def _writer(rng: Random, on: Switch) -> WriterSettings:
    return WriterSettings(
        flush_ns=rng.choice((50, 100, 250)) * MS,
        chunk_bytes_max=rng.choice((2, 8, 32)) * 1024,
        level=1,
        size_max=rng.choice((20, 40, 100)) * 1024 if on("rotation by size") else None,
        age_max_ns=rng.choice((300, 700, 1500)) * MS if on("rotation by age") else None,
        fsync=on("fsync"),
        threaded=True,
        queue_bytes_max=rng.choice((512, 1024)) * 1024,
        reserve_bytes=8 * 1024,
    )


def _life(rng: Random, on: Switch, settle_ns: int) -> LifePlan:
    lasts = rng.choice((300, 1000, 3000, 6000)) * MS
    return LifePlan(
        lasts_ns=rng.randint(20 * MS, lasts),
        end=rng.choice(ENDS),
        turn=int(10 ** rng.uniform(0, 3.7)),
        pause_ns=rng.choice((0, 50, 400, 1500)) * MS,
        broker=_broker(rng, on, lasts, settle_ns),
        disk=_disk(rng, on, lasts),
        network=_network(rng, on),
        stalls=_stalls(rng) if on("stalls", 0.3) else (),
        clock_offset_ns=rng.randint(-3000, 3000) * MS if on("clocks", 0.15) else 0,
        new_partitions=int(on("partitions grow", 0.15) and rng.random() < 0.4),
        late=on("late batches", 0.08) and rng.random() < 0.5,
    )


def _broker(rng: Random, on: Switch, lasts: int, settle_ns: int) -> BrokerFaults:
    faults = BrokerFaults()
    if on("broker slow"):
        faults.slow, faults.slow_ns = rng.choice((0.05, 0.3, 0.9)), rng.choice((50, 300, 1500)) * MS
    if on("lost acks"):
        faults.lost_ack = rng.choice((0.01, 0.05, 0.2))
    if on("lost batches"):
        faults.not_written = rng.choice((0.01, 0.05))
    if on("surfacing batches"):
        faults.surfaces_later = rng.choice((0.01, 0.05))
    if on("fatal"):
        faults.fatal = rng.choice((0.01, 0.05))
    if on("rights", 0.2):
        faults.refused = 0.02
    if on("odd failures", 0.3):
        faults.odd = 0.05
    if on("no offsets", 0.3):
        faults.no_offset = 0.1
    if on("watermark", 0.3):
        faults.watermark_lags = 0.1
    if on("leaders"):
        faults.leader_change = rng.choice((0.01, 0.1))
    if on("broker away"):
        faults.away = _episodes(rng, lasts)
    if on("replicas", 0.3):
        faults.short_of_replicas = _episodes(rng, lasts)
    return faults


def _episodes(rng: Random, lasts: int) -> list[tuple[int, int]]:
    """Relative to the life's beginning; one in three begins before it, one in four outlives it."""
    episodes = []
    for _ in range(rng.randint(0, 2)):
        start = 0 if rng.random() < 0.33 else rng.randint(0, lasts)
        until = NEVER if rng.random() < 0.15 else start + rng.randint(50 * MS, lasts)
        episodes.append((start, until))
    return episodes


def _disk(rng: Random, on: Switch, lasts: int) -> DiskFaults:
    faults = DiskFaults()
    if on("disk slow"):
        faults.slow, faults.slow_ns = rng.choice((0.05, 0.3)), rng.choice((5, 60, 400)) * MS
    if on("short writes"):
        faults.short = rng.choice((0.05, 0.3))
    if on("disk full", 0.3) and rng.random() < 0.5:
        faults.full_from_ns = rng.randint(0, lasts)
        faults.full_until_ns = NEVER if rng.random() < 0.5 else faults.full_from_ns + rng.randint(10 * MS, lasts)
        faults.full_bytes = rng.randint(0, 4096)
    if on("fsync fails", 0.2):
        faults.fsync_fails = rng.choice((0.02, 0.2))
    if on("rename fails", 0.2):
        faults.rename_fails = rng.choice((0.05, 0.3))
    return faults


def _network(rng: Random, on: Switch) -> NetworkFaults:
    faults = NetworkFaults()
    if on("refusals"):
        faults.refused, faults.http, faults.hangs = rng.choice((0.1, 0.5)), 0.02, 0.05
    if on("cuts"):
        faults.cuts = rng.choice((0.2, 1.0))
    if on("network stalls"):
        faults.stalls, faults.stall_ns = rng.choice((0.5, 2.0)), rng.choice((100, 800)) * MS
    if on("silence", 0.3):
        faults.silent = 0.4
    if on("close unanswered", 0.3):
        faults.no_close = 0.5
    return faults


def _stalls(rng: Random) -> tuple[tuple[int, int], ...]:
    turns = sorted(int(10 ** rng.uniform(0.5, 3.3)) for _ in range(rng.randint(1, 4)))
    return tuple((turn, rng.randint(20, 400) * MS) for turn in turns)


def _last(settle_ns: int) -> LifePlan:
    """The last life: everything is well again, and it must end with nothing left to do."""
    return LifePlan(
        lasts_ns=1000 * MS,
        end="stop",
        turn=0,
        pause_ns=settle_ns,
        broker=BrokerFaults(),
        disk=DiskFaults(),
        network=NetworkFaults(),
        last=True,
    )


def absolute(episodes: list[tuple[int, int]], now_ns: int) -> list[tuple[int, int]]:
    """Episodes that are given from the life's beginning, in absolute time."""
    return [(now_ns + start, NEVER if until >= NEVER else now_ns + until) for start, until in episodes]


def placed(plan: LifePlan, now_ns: int) -> LifePlan:
    """The life's plan with absolute times."""
    broker = replace(
        plan.broker,
        away=absolute(plan.broker.away, now_ns),
        short_of_replicas=absolute(plan.broker.short_of_replicas, now_ns),
    )
    disk = replace(plan.disk)
    if disk.full_from_ns < NEVER:
        disk.full_from_ns += now_ns
        disk.full_until_ns = NEVER if disk.full_until_ns >= NEVER else disk.full_until_ns + now_ns
    return replace(plan, broker=broker, disk=disk)
