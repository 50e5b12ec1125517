"""Delivers a capture that an earlier run left behind: exactly what is not in Kafka yet, partition by partition.

    deliver(path, settings, clock, settle_s=..., stop=...) -> Delivered                   one capture
    deliver_all(paths, settings, clock, log=..., settle_s=..., stop=...) -> [Delivered]   several, oldest first

The delivery file beside the capture says where its records went: cluster, topic template, partition counts, headers.
With the capture's `Claim` in hand (whoever delivered it is dead) it waits until enough replicas are in sync, lets what
the dead process had under way arrive (`settle_s`), reads the newest record of the capture on each partition (its mark;
`kcs.kafka.marks`), feeds the capture from its start through a pipeline of its own, and produces what lies above the
marks. When all is acknowledged it writes the receipt. Killed at any point it may simply be run again.

Records in Kafka whose frames died with the process (`Delivered.orphans`) stay: they were real. A damaged capture is
delivered as far as it goes, and its receipt says `"whole": false`. A capture that could not be sealed (a full disk) is
delivered from its `.partial` and gets its receipt once it is sealed. Where there is only a delivery file, see
`kcs.absent`.

Contract: yields to the loop at least every `SLICE_RECORDS` records; memory is bounded by one chunk and the sink's
buffer; `stop` ends it after the record at hand, and the next run goes on. Times in s unless named otherwise.
Raises: UndeliverableError (the capture can never be delivered as it is, others can), CaptureBusyError (another process
writes or delivers it), CaptureError, KafkaError (try again later). Callers: the command line, and `kcs live` at start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from kcs.absent import settle_absent
from kcs.capture.framecount import FrameCount
from kcs.capture.leftover import PARTIAL
from kcs.capture.osfile import assert_not_locked
from kcs.capture.reader import CaptureReader, RawRecord
from kcs.clock import NS_PER_MS, NS_PER_S, Clock
from kcs.destination import channels_of, check_cluster, check_file, settings_of
from kcs.errors import CaptureError, CaptureWriteError, KafkaError, UndeliverableError
from kcs.exchanges import venue
from kcs.kafka import marks as kafka_marks
from kcs.kafka.link import Connect, connect
from kcs.kafka.marks import Extent, Marks
from kcs.kafka.resume import ResumingSink
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.sink import KafkaSink
from kcs.kafka.tally import Delivery
from kcs.live.receipt import (
    Claim,
    DeliveryFile,
    DeliveryInfo,
    Missing,
    capture_of,
    has_receipt,
    read_delivery,
    write_delivery,
    write_receipt,
)
from kcs.outcome import Delivered, described
from kcs.pipeline import Pipeline
from kcs.stats import Ledger

__all__ = ["Delivered", "deliver", "deliver_all", "described"]

SETTLE_S: Final = 5.0
SLICE_RECORDS: Final = 128
_MARGIN_NS: Final = 1 * NS_PER_S
"""Marks are looked for from so long before the capture's beginning on."""
_DAMAGE_SHOWN: Final = 20

Log = Callable[[str, str], None]
"""log(level, text); level is `info`, `warning` or `error`."""

T = TypeVar("T")


class _Stopped(Exception):
    """`stop` was set."""


async def deliver(
    path: Path,
    settings: KafkaSettings,
    clock: Clock,
    *,
    settle_s: float = SETTLE_S,
    drain_s: float = 10.0,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[int], None] | None = None,
    connector: Connect = connect,
) -> Delivered:
    """Deliver what is left of the capture at `path`, sealed or not. See the module docstring.

    Of `settings` the connection counts; template, headers and partition counts are those of the delivery file.
    `drain_s`: how long to wait for acks once `stop` is set. `on_progress` is told the number of records fed.
    """
    claim = _claim(path)
    try:
        if has_receipt(path):
            raise CaptureError("it has a receipt: nothing of it is left to deliver", where=str(path))
        delivery = read_delivery(path)
        assert delivery is not None, "a claim is a lock on it"
        if capture_of(path) is None:
            return await settle_absent(path, delivery, settings_of(path, delivery, settings), clock, settle_s)
        with CaptureReader(path, strict=False) as reader:
            check_file(path, reader.header, delivery)
            job = _Job(reader, settings_of(path, delivery, settings), clock, delivery, claim, stop)
            job.on_progress = on_progress
            return await job.run(settle_s, drain_s, connector)
    finally:
        claim.release()


async def deliver_all(
    paths: Iterable[Path],
    settings: KafkaSettings,
    clock: Clock,
    *,
    log: Log,
    settle_s: float = SETTLE_S,
    drain_s: float = 10.0,
    stop: asyncio.Event | None = None,
) -> list[Delivered]:
    """Deliver several captures in the order given, letting things settle once.

    One that cannot be delivered is told to `log` as an error and passed over. Raises KafkaError, and then the captures
    that were delivered have their receipts.
    """
    done = []
    for path in paths:
        if stop is not None and stop.is_set():
            break
        try:
            one = await deliver(path, settings, clock, settle_s=settle_s, drain_s=drain_s, stop=stop)
        except (UndeliverableError, CaptureError) as error:
            log("error", f"not delivered: {error}")
            continue
        settle_s = 0.0
        done.append(one)
    return done


def _claim(path: Path) -> Claim:
    """Raises CaptureBusyError while another process writes or delivers it."""
    if path.name.endswith(PARTIAL) and path.exists():
        assert_not_locked(path)  # first: the claim of a file that just begins must not be in its writer's way
    return Claim(path)


class _Job:
    """One delivery, in steps."""

    def __init__(
        self,
        reader: CaptureReader,
        settings: KafkaSettings,
        clock: Clock,
        delivery: DeliveryFile,
        claim: Claim,
        stop: asyncio.Event | None,
    ) -> None:
        self.reader = reader
        self.path = reader.path
        self.header = reader.header
        self.settings = settings
        self.clock = clock
        self.delivery = delivery
        self.claim = claim
        self.stop = stop
        self.on_progress: Callable[[int], None] | None = None
        self.ledger = Ledger()
        self.counted = FrameCount()
        self.next_number = 0
        """The number after the last record that was fed."""

    @property
    def since_ns(self) -> int:
        """No record of the capture was received earlier; 0 where its header is lost."""
        return max(0, self.header.created_ns - _MARGIN_NS)

    # --- delivering ---------------------------------------------------------------------------------------------------

    async def run(self, settle_s: float, drain_s: float, connector: Connect) -> Delivered:
        started_ns = self.clock.monotonic_ns()
        sink = KafkaSink(self.settings, self.clock, connector=connector)
        resuming, found, pipeline, stopped = ResumingSink(sink, {}), Marks(), None, False
        try:
            try:
                found = await self._unless_stopped(self._prepare(sink, settle_s))
                resuming = ResumingSink(sink, found)
                pipeline = self._pipeline(resuming)
                await self._feed(pipeline, resuming)
                await self._unless_stopped(sink.drain())
            except _Stopped:
                stopped = True
                with contextlib.suppress(KafkaError):  # in flight is in flight, whatever the reason
                    await sink.drain(drain_s)
            self.ledger.settle(resuming.skipped + sink.acked, sink.failed)
            self.ledger.check()
            return await self._finish(pipeline, sink, resuming.skipped, found, stopped, started_ns)
        finally:
            await sink.close(0)

    async def _prepare(self, sink: KafkaSink, settle_s: float) -> Marks:
        """Everything up to the marks."""
        delivery = self.delivery
        await check_cluster(self.path, delivery, self.settings)
        channels = channels_of(self.header, delivery, self.settings.template)
        await sink.open([self.header.exchange], channels, partitions=delivery.partitions)
        if delivery.cluster is None or not delivery.partitions:
            write_delivery(self.path, self.header.capture_id, self._info(sink), fsync=True, claim=self.claim)
        await kafka_marks.wait_in_sync(self.settings, sink.partitions())
        if settle_s > 0:
            await asyncio.sleep(settle_s)
        return await kafka_marks.read_marks(
            self.settings, sink.partitions(), self.header.capture_id, since_ms=self.since_ns // NS_PER_MS
        )

    def _info(self, sink: KafkaSink) -> DeliveryInfo:
        return DeliveryInfo(sink.cluster_id, self.settings.template, True, sink.partitions(), sink.delivery)

    def _pipeline(self, sink: ResumingSink) -> Pipeline:
        pipeline = Pipeline(self.header.exchange, venue(self.header.exchange).adapter(), sink, self.ledger)
        pipeline.start(self.header.capture_id)
        return pipeline

    async def _feed(self, pipeline: Pipeline, sink: ResumingSink) -> None:
        """All records of the capture, a slice a turn of the loop. Raises _Stopped."""
        left = SLICE_RECORDS
        for batch in self.reader.batches():
            self.counted.add(batch)
            start = 0
            while start < len(batch):
                if left <= 0:
                    left = SLICE_RECORDS
                    await self._turn()
                records = batch[start : start + left]
                await self._slice(pipeline, sink, records)
                start += len(records)
                left -= len(records)
        await self._turn()

    async def _slice(self, pipeline: Pipeline, sink: ResumingSink, records: list[RawRecord]) -> None:
        for record in records:
            if sink.full:
                await self._unless_stopped(sink.room())
            pipeline.record(record)
            self.next_number = record[0] + 1

    async def _turn(self) -> None:
        """Tell how far it is, and let the loop do what else there is. Raises _Stopped."""
        if self.on_progress is not None:
            self.on_progress(self.next_number)
        await asyncio.sleep(0)
        if self.stop is not None and self.stop.is_set():
            raise _Stopped

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when `stop` is set: then raises _Stopped."""
        if self.stop is None:
            return await work
        task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                raise _Stopped
            return task.result()
        finally:
            stopping.cancel()
            task.cancel()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _finish(
        self, pipeline: Pipeline | None, sink: KafkaSink, already: int, found: Marks, stopped: bool, started_ns: int
    ) -> Delivered:
        """Count, and say in the receipt that nothing is left, if nothing is."""
        missing = extents = receipt = unreceipted = None
        settled = pipeline is not None and not stopped and not self.ledger.in_flight
        if settled:
            end = self.reader.next_number if self.reader.next_number is not None else self.next_number
            extents = await kafka_marks.read_extents(
                self.settings, found, self.header.capture_id, end, since_ms=self.since_ns // NS_PER_MS
            )
            missing = self._missing()
        orphans = sum(extent.orphans for extent in (extents or {}).values())
        digest = pipeline.digest() if settled and pipeline is not None and missing is None else None
        if settled and not self.path.name.endswith(PARTIAL):
            try:
                receipt = self._write_receipt(sink, digest, extents or {}, orphans, missing)
            except CaptureWriteError as error:
                unreceipted = error
        return Delivered(
            path=self.path,
            capture_id=self.header.capture_id,
            exchange=self.header.exchange,
            sealed=self.reader.sealed,
            ledger=self.ledger,
            already=already,
            orphans=orphans,
            digest=digest,
            missing=missing,
            receipt=receipt,
            unreceipted=unreceipted,
            stopped=not settled,
            seconds=(self.clock.monotonic_ns() - started_ns) / NS_PER_S,
        )

    def _write_receipt(
        self,
        sink: KafkaSink,
        digest: str | None,
        extents: Mapping[tuple[str, int], Extent],
        orphans: int,
        missing: Missing | None,
    ) -> Path:
        offsets = sink.offsets(self.header.capture_id)
        for (topic, partition), extent in extents.items():
            if extent.first is not None and extent.last is not None:
                _, last = offsets.get(topic, {}).get(partition, (0, extent.last))
                offsets.setdefault(topic, {})[partition] = (extent.first, last)
        ledger = self.ledger
        state = Delivery(self.header.capture_id, ledger.produced, ledger.acked, ledger.failed, offsets)
        return write_receipt(
            self.path,
            self.header.capture_id,
            digest,
            self._info(sink),
            state,
            recovered=True,
            uncaptured=orphans,
            missing=missing,
            fsync=True,
        )

    def _missing(self) -> Missing | None:
        """What the capture lacks, by the measure of `kcs verify`; None: nothing. Sets the ledger's `unread`."""
        summary = self.reader.summary()
        damage = [
            *self.reader.damage,
            *(one for one in (summary.recovered if summary else ()) if one.records_lost != 0),
        ]
        texts = [f"offset {one.offset}: {one.what}" for one in damage]
        texts += [
            f"record {one.number} says {one.said} frames of stream {one.stream} by then, here are {one.counted}"
            for one in self.counted.found
        ]
        if not texts and not self.reader.holes:
            return None
        known = max(self.reader.holes, sum(one.records_lost or 0 for one in damage))
        known += sum(max(0, one.said - one.counted) for one in self.counted.found)
        unknown = sum(one.records_lost is None for one in damage)
        self.ledger.unread = known + unknown
        if len(texts) > _DAMAGE_SHOWN:
            texts[_DAMAGE_SHOWN:] = [f"and {len(texts) - _DAMAGE_SHOWN} more: kcs verify names them"]
        return Missing(None if unknown else known, tuple(texts))
