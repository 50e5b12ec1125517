"""A Kafka cluster in memory that is slow, away, or answers wrongly as the plan says. Links write to it (`SimLink`).

What counts is what a real cluster may do to an idempotent producer that repeats without limit: a batch is written once
or never, whatever the producer hears; what it hears may come late or not at all; a dead producer's last batch may be
written after its death, within `settle_ns` of it (or later, where the plan has the documented exception). A batch that
is in the log may stay invisible to readers for a while (the high watermark lags).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final
from zlib import crc32

from aiokafka import errors

from kcs.clock import Clock
from kcs.errors import KafkaUnreachableError
from kcs.kafka.batch import Batch, BatchRecord
from kcs.kafka.settings import KafkaSettings
from tests.dst.loop import Crash, SimLoop
from tests.dst.world import MS, SECOND, World

CLUSTER_ID: Final = "simulated-cluster-0001"
Place = tuple[str, int]


@dataclass(slots=True)
class BrokerFaults:
    """Chances per batch, times in ns. `away` and `short_of_replicas`: (from, until) in absolute time."""

    slow: float = 0.0
    slow_ns: int = 0
    lost_ack: float = 0.0
    not_written: float = 0.0
    surfaces_later: float = 0.0
    fatal: float = 0.0
    refused: float = 0.0
    odd: float = 0.0
    """The broker fails on a batch with a code that says nothing (written or not)."""
    no_offset: float = 0.0
    watermark_lags: float = 0.0
    leader_change: float = 0.0
    away: list[tuple[int, int]] = field(default_factory=list)
    short_of_replicas: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Pending:
    """A batch on its way into the log."""

    place: Place
    records: list[BatchRecord]
    link: SimLink
    at_ns: int
    needs_client: bool
    """It is written only if the client lives to repeat it."""
    orphan: bool = False
    """Its client has given it up."""
    gone: bool = False


class Topic:
    """Partitions as lists of records; `visible`: how many of each a reader sees."""

    def __init__(self, partitions: int) -> None:
        self.logs: list[list[BatchRecord]] = [[] for _ in range(partitions)]
        self.visible = [0] * partitions


class Cluster:
    """See the module docstring."""

    def __init__(self, world: World, faults: BrokerFaults, *, settle_ns: int, batch_max: int, poison: int) -> None:
        self.world = world
        self.faults = faults
        self.settle_ns = settle_ns
        self.batch_max = batch_max
        self.poison = poison
        self.topics: dict[str, Topic] = {}
        self.links: list[SimLink] = []
        self.pending: list[Pending] = []
        self.poisoned: set[bytes] = set()
        """Positions (with capture id) of the records that were refused for their content."""
        self.doubtful: set[bytes] = set()
        """Captures of which a batch surfaced after the settle time: duplicates are possible, as documented."""
        self.rng = world.rng("broker")
        self.on_capture: Callable[[bytes], None] = lambda capture_id: None
        """Called with the id of each capture when the first record of it arrives."""
        self._captures: set[bytes] = set()
        self._odd: set[bytes] = set()

    # ------------------------------------------------------------ state

    def _within(self, episodes: Iterable[tuple[int, int]]) -> int:
        """The end of the episode that is on now; 0: none."""
        now = self.world.clock.now
        return max((until for start, until in episodes if start <= now < until), default=0)

    @property
    def away_until(self) -> int:
        return self._within(self.faults.away)

    @property
    def short_until(self) -> int:
        return self._within(self.faults.short_of_replicas)

    def log(self, place: Place) -> list[BatchRecord]:
        return self.topics[place[0]].logs[place[1]]

    # ------------------------------------------------------------ writing

    def write(self, place: Place, records: list[BatchRecord]) -> int:
        """Append; the offset of the first one."""
        topic, number = self.topics[place[0]], place[1]
        log = topic.logs[number]
        offset = len(log)
        log += records
        self.world.tell(f"broker wrote {place[0]}[{number}] {offset}+{len(records)}")
        if self.rng.random() < self.faults.watermark_lags:
            self.world.count("high watermark lagged")
            self.world.at(self.world.clock.now + self._soon(), lambda: self._show(topic, number, offset + len(records)))
        else:
            self._show(topic, number, len(log))
        return offset

    def _show(self, topic: Topic, number: int, end: int) -> None:
        topic.visible[number] = max(topic.visible[number], end)

    def _soon(self) -> int:
        """Twice that, an arrival and a watermark, is well within the settle time."""
        return self.rng.randint(0, self.settle_ns * 4 // 10)

    def sent(self, capture_id: bytes) -> None:
        """A batch of this capture is on its way."""
        if capture_id not in self._captures:
            self._captures.add(capture_id)
            self.on_capture(capture_id)

    def write_later(self, pending: Pending, then: Callable[[int], None] = lambda offset: None) -> None:
        def arrive() -> None:
            if not pending.gone:
                self.pending.remove(pending)
                then(self.write(pending.place, pending.records))

        self.pending.append(pending)
        self.world.at(pending.at_ns, arrive)

    def process_gone(self, *, late: bool) -> None:
        """The producers are dead."""
        for link in self.links:
            link.closed = True
        self.links.clear()
        for pending in list(self.pending):
            self._orphaned(pending, late=late)

    def link_gone(self, link: SimLink) -> None:
        """A producer was let go."""
        for pending in [one for one in self.pending if one.link is link]:
            self._orphaned(pending, late=False)

    def _orphaned(self, pending: Pending, *, late: bool) -> None:
        """Nobody waits for this batch: it is lost, or surfaces within the settle time, or (`late`) after it."""
        if pending.orphan and not late and pending.at_ns <= self.world.clock.now + self.settle_ns // 2:
            return
        pending.gone = True
        self.pending.remove(pending)
        if pending.needs_client or self.rng.random() < 0.4:
            self.world.count("dead batch lost")
            return
        delay = self._soon()
        if late:
            delay = self.settle_ns + self.rng.randint(SECOND, 3 * SECOND)
            self.doubtful.add(capture_of(pending.records[0]))
        self.world.count("dead batch surfaced late" if late else "dead batch surfaced")
        at_ns = self.world.clock.now + delay
        self.write_later(Pending(pending.place, pending.records, pending.link, at_ns, needs_client=False, orphan=True))

    # ------------------------------------------------------------ content

    def refuses(self, batch: Batch, records: list[BatchRecord]) -> Any:
        """The broker's error about the content, or None."""
        if batch.size > self.batch_max and len(records) > 1:
            self.world.count("batch too large")
            return errors.MessageSizeTooLargeError()
        if self.poison:
            bad = [record for record in records if crc32(full_position(record)) % self.poison == 0]
            if bad:
                self.world.count("content refused")
                if len(records) == 1:
                    self.poisoned.add(full_position(bad[0]))
                return errors.InvalidTimestampError()
        return None

    def odd(self, records: list[BatchRecord]) -> bool:
        """An odd failure, at most once a batch: a third one would rightly be taken for the record's fault."""
        first = full_position(records[0])
        if first in self._odd or self.rng.random() >= self.faults.odd:
            return False
        self._odd.update(full_position(record) for record in records)
        return True


class SimLink:
    """`kcs.kafka.link.Link`. After a batch that failed, the partition's sequence on this link is broken for good."""

    def __init__(self, cluster: Cluster, loop: SimLoop) -> None:
        self.cluster = cluster
        self.closed = False
        self._loop = loop
        self._broken: set[Place] = set()
        self._flying: set[Place] = set()

    def send(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        self._alive()
        cluster, place = self.cluster, (topic, partition)
        if self.closed:
            cluster.world.defect("a closed link was used")
        if any(place in link._flying for link in cluster.links):
            cluster.world.defect(f"two batches in flight on {topic}[{partition}]")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._flying.add(place)
        future.add_done_callback(lambda _: self._flying.discard(place))
        _Sending(self, place, batch, future).begin()
        return future

    async def partition_count(self, topic: str) -> int:
        self._alive()
        await answer(self.cluster)
        return len(self.cluster.topics[topic].logs)

    async def close(self) -> None:
        self._alive()
        self.closed = True
        if self in self.cluster.links:
            self.cluster.links.remove(self)
            self.cluster.link_gone(self)

    def _alive(self) -> None:
        if self._loop.dead:
            raise Crash("a dead process used the network")


class _Sending:
    """One batch: what becomes of it is drawn here."""

    def __init__(self, link: SimLink, place: Place, batch: Batch, future: asyncio.Future[Any]) -> None:
        self.link, self.place, self.batch, self.future = link, place, batch, future
        self.cluster, self.world, self.rng = link.cluster, link.cluster.world, link.cluster.rng
        self.records = batch.records()
        self.cluster.sent(capture_of(self.records[0]))

    def begin(self) -> None:
        cluster, rng, faults = self.cluster, self.rng, self.cluster.faults
        delay = rng.randint(MS // 5, 2 * MS)
        if rng.random() < faults.slow:
            self.world.count("broker slow")
            delay += rng.randint(0, faults.slow_ns)
        waits = max(cluster.away_until, cluster.short_until) - self.world.clock.now
        if waits > 0:
            self.world.count("batch waited for the broker")
            delay += waits + rng.randint(0, 100 * MS)
        if self.place in self.link._broken:
            self._fail(errors.OutOfOrderSequenceNumber(), delay)
            return
        refusal = cluster.refuses(self.batch, self.records)
        if refusal is not None:
            self._fail(refusal, min(delay, 50 * MS))
            return
        self._fate(delay, waits > 0)

    def _fate(self, delay: int, needs_client: bool) -> None:
        rng, faults, draw = self.rng, self.cluster.faults, self.rng.random()
        if self.cluster.odd(self.records):
            self._odd(delay)
        elif (draw := draw - faults.lost_ack) < 0:
            self.world.count("ack lost")
            self._write(delay, lambda _: self._fail(rng.choice(NO_ANSWER)(), rng.randint(MS, 400 * MS)))
        elif (draw := draw - faults.not_written) < 0:
            self.world.count("batch lost")
            self._fail(errors.KafkaConnectionError(), delay)
        elif (draw := draw - faults.surfaces_later) < 0:
            self.world.count("batch surfaced after its error")
            at_ns = self.world.clock.now + delay
            self._fail(errors.KafkaConnectionError(), delay)
            at_ns += self.cluster._soon()
            self.cluster.write_later(
                Pending(self.place, self.records, self.link, at_ns, needs_client=False, orphan=True)
            )
        elif (draw := draw - faults.fatal) < 0:
            self._fatal(delay)
        elif (draw := draw - faults.refused) < 0:
            self.world.count("broker refused for rights")
            self._fail(errors.TopicAuthorizationFailedError(), min(delay, 50 * MS))
        elif (draw := draw - faults.leader_change) < 0:
            self._leader_change(delay)
        else:
            self._write(delay, self._acknowledge, needs_client=needs_client)

    def _fatal(self, delay: int) -> None:
        """The sequence is broken. What was sent once is not written; what was repeated may be, from before."""
        self.world.count("producer fatal")
        error = self.rng.choice(FATAL)()
        if self.rng.random() < 0.5:
            self._fail(error, min(delay, 50 * MS))
        else:
            self._write(delay, lambda _: self._fail(error, 150 * MS + self.rng.randint(0, 300 * MS)))

    def _odd(self, delay: int) -> None:
        self.world.count("broker failed oddly")
        if self.rng.random() < 0.5:
            self._write(delay, lambda _: self._fail(errors.UnknownError(), MS))
        else:
            self._fail(self.rng.choice((errors.UnknownError, errors.CorruptRecordException))(), delay)

    def _leader_change(self, delay: int) -> None:
        """The client repeats until the new leader has it; whether the old one kept it makes no difference then."""
        self.world.count("leader changed")
        self._write(
            delay + self.rng.randint(50 * MS, 600 * MS), self._acknowledge, needs_client=self.rng.random() < 0.5
        )

    def _write(self, delay: int, then: Callable[[int], None], *, needs_client: bool = False) -> None:
        at_ns = self.world.clock.now + delay
        self.cluster.write_later(Pending(self.place, self.records, self.link, at_ns, needs_client), then)

    def _acknowledge(self, offset: int) -> None:
        if self.rng.random() < self.cluster.faults.no_offset:
            self.world.count("ack without offset")
            offset = -1
        self._later(MS, lambda: self.future.set_result(SimpleNamespace(offset=offset)))

    def _fail(self, error: BaseException, delay: int) -> None:
        self.link._broken.add(self.place)
        self._later(delay, lambda: self.future.set_exception(error))

    def _later(self, delay: int, tell: Callable[[], None]) -> None:
        loop = self.link._loop

        def told() -> None:
            if not self.future.done():
                tell()

        if not (loop.dead or loop.is_closed()):
            loop.call_later(delay / SECOND, told)


NO_ANSWER: Final = (errors.KafkaConnectionError, errors.RequestTimedOutError, errors.NotEnoughReplicasAfterAppendError)
FATAL: Final = (errors.OutOfOrderSequenceNumber, errors.InvalidProducerEpoch, errors.UnknownProducerId)


def full_position(record: BatchRecord) -> bytes:
    """Capture id, frame number and event index, from the header; what a record is known by."""
    return dict(record.headers)["kcs"][:20]


def capture_of(record: BatchRecord) -> bytes:
    return dict(record.headers)["kcs"][:8]


async def answer(cluster: Cluster) -> None:
    """A request and its answer. Raises KafkaUnreachableError while the cluster is away."""
    if cluster.away_until:
        cluster.world.count("broker away")
        await asyncio.sleep(cluster.rng.randint(5, 200) / 1000)
        raise KafkaUnreachableError("no broker answers", where="the simulated cluster")
    await asyncio.sleep(cluster.rng.randint(1, 4) / 1000)
    if cluster.away_until:
        raise KafkaUnreachableError("the connection broke", where="the simulated cluster")


def connector(cluster: Cluster) -> Callable[[KafkaSettings, Clock], Any]:
    """What stands for `kcs.kafka.link.connect`."""

    async def connect(settings: KafkaSettings, clock: Clock) -> SimLink:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        await answer(cluster)
        link = SimLink(cluster, loop)
        cluster.links.append(link)
        return link

    return connect
