"""`KafkaSink`: records into Kafka, in capture order on each partition, exactly once as long as the process lives.

Contract: `kcs.sink.Sink`, plus `open`, timeouts on `drain` and `close`, `delivery` and `offsets` for receipts. One
event loop, not thread-safe. Times in ns unless named otherwise.

- A partition has at most ONE unacknowledged batch. While it flies the next one fills; the ack ships it. A partition
  that is free ships at the end of the loop turn in which it got a record. Batches closed by their size wait in a
  buffer whose mark is `buffer_bytes_max`: above it `full` is True.
- aiokafka repeats what may be repeated, without limit. `kcs.kafka.recovery` deals with the rest; meanwhile the
  partition sends nothing.
- Raises kcs.errors.KafkaError from `open`, and from `room` and `drain` while a partition cannot go on before somebody
  acts (`fault`). Records that are lost for good are counted in `failed` and named on the logger `kcs.kafka`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from struct import Struct
from typing import Any, Final

from kcs.clock import Clock
from kcs.errors import KafkaError
from kcs.kafka import topics
from kcs.kafka.batch import Batch, new_builder, record_bytes
from kcs.kafka.failures import LIBRARY_ERRORS
from kcs.kafka.link import Connect, Link, connect
from kcs.kafka.links import Links
from kcs.kafka.partition import Partition, Route, no_builder, partition_of
from kcs.kafka.recovery import Recovery
from kcs.kafka.settings import KafkaSettings, producer_options, topic_names
from kcs.kafka.tally import Delivery, LatencySink, Offsets, Tallies, Tally
from kcs.sink import HEADER_NAME, POSITION, RECORD_BYTES_MAX, Headers

ID_HEADER: Final = "id"
_BROKER_BYTES_MAX: Final = 1_048_588
"""Kafka's default `message.max.bytes`; a record of `RECORD_BYTES_MAX` with any sane key and headers is below."""
_SEQUENCE_SOFT_MAX: Final = 2**30
"""aiokafka 0.14 miscounts a partition's sequence beyond 2**31; a fresh producer takes over long before."""
_RECV_NS: Final = Struct(">12xQ")
_log = logging.getLogger("kcs.kafka")


class KafkaSink:
    """See the module's docstring. `latency` gets receive-to-ack times; `connector` is for tests."""

    def __init__(
        self,
        settings: KafkaSettings,
        clock: Clock,
        *,
        latency: LatencySink | None = None,
        connector: Connect = connect,
    ) -> None:
        self.settings = settings
        self.acked = 0
        self.failed = 0
        self.went_back = 0
        """How often a partition's offsets went back: records that it had acknowledged are gone."""
        self.cluster_id = ""
        self.embedded = False
        self.clock = clock
        self._latency = latency
        self.connector = connector
        self.compression: str | None = producer_options(settings).get("compression_type")
        self._headers = settings.headers
        self._names: dict[tuple[str, str], str] = {}
        self._partitions: dict[str, list[Partition]] = {}
        self._touched: list[Partition] = []
        self._sealed = 0
        self.full = False
        """True while more than `buffer_bytes_max` wait for their acks. An attribute: it is read before every frame."""
        self._buffered = 0
        self._changed: asyncio.Future[None] | None = None
        self._capture = b""
        self._tallies = Tallies()
        self._tally = self._tallies.of(b"")
        self._recovery = Recovery(self)
        self._links = Links(self._recovery.retire)
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(
        self,
        exchanges: Iterable[str],
        channels: Iterable[str],
        *,
        partitions: Mapping[str, int] | None = None,
        oldest_ns: int | None = None,
    ) -> None:
        """Connect, make missing topics, learn partition counts. Raises KafkaError, ConfigError.

        `gap` and `reject` topics are opened too. `partitions` (topic to count) fixes counts that an earlier run of the
        same capture used; a topic with fewer raises. `oldest_ns`: receive time of the oldest record to come, compared
        with the topics' retention when `retention_forever` is set.
        """
        self._names = topic_names(self.settings.template, channels, exchanges)
        link = await self.connector(self.settings, self.clock)
        try:
            wanted = sorted(set(self._names.values()))
            cluster_id, created = await topics.ensure(self.settings, wanted, self.clock.now_ns(), oldest_ns)
            counts = topics.agreed({topic: await link.partition_count(topic) for topic in wanted}, partitions or {})
            old = {topic: count for topic, count in counts.items() if topic not in created}
            ends = await topics.end_offsets(self.settings, old)
        except BaseException:
            await link.close()
            raise
        self.adopt(link)
        self.cluster_id = cluster_id
        self.embedded = topics.is_embedded(cluster_id)
        self._partitions = {
            topic: [
                Partition(topic, number, ends.get((topic, number), 0), self.settings.batch_bytes_max)
                for number in range(count)
            ]
            for topic, count in counts.items()
        }

    async def drain(self, timeout_s: float | None = None) -> None:
        """Return when every record taken is acked or failed, or after `timeout_s`: `in_flight` says what is left."""
        self._ship_touched()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.in_flight:
                    await self._change()

    async def room(self) -> None:
        """Return when `full` is False."""
        while self.full:
            await self._change()

    async def close(self, timeout_s: float | None = None) -> None:
        """Drain (at most `timeout_s`), then let go; what is still in flight stays counted so. Safe to call twice."""
        if self._closed:
            return
        try:
            with contextlib.suppress(KafkaError):  # `fault` and `in_flight` tell
                await self.drain(timeout_s)
        finally:
            self._closed = True
            await self._recovery.close()
            for link in self._links.clear():
                await link.close()
            self.wake()

    @property
    def fault(self) -> KafkaError | None:
        """Why a partition cannot go on until somebody acts; None while all is well."""
        return self._recovery.fault

    # --- taking records -----------------------------------------------------------------------------------------------

    def start(self, capture_id: bytes) -> None:
        """Records from now on belong to this capture. A batch never holds records of two, but captures that take turns
        on different topics do not cut each other's batches."""
        if len(capture_id) != 8:
            raise ValueError(f"a capture id has 8 bytes, not {len(capture_id)}")
        self._capture = capture_id
        self._tally = self._tallies.of(capture_id)

    def route(self, channel: str, exchange: str, key: str) -> Route:
        """Where records of this channel and key go. Raises KafkaError for a channel or exchange that is not open."""
        name = self._names.get((channel, exchange))
        if name is None or name not in self._partitions:
            raise KafkaError(
                f"channel {channel!r} of {exchange!r} is not open", where=f"Kafka at {self.settings.bootstrap}"
            )
        raw_key = key.encode()
        parts = self._partitions[name]
        return Route(parts[partition_of(raw_key, len(parts))], raw_key)

    def emit(
        self, route: Route, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        """Take one record; it is shipped by the end of this loop turn or by the ack before it."""
        part = route.partition
        if not self._headers:
            own = []
        elif trade_id:
            own = [(HEADER_NAME, self._capture + position), (ID_HEADER, trade_id), *headers]
        else:
            own = [(HEADER_NAME, self._capture + position), *headers]
        positions = part.positions
        if (
            part.tally is not self._tally
            or part.append(len(positions), recv_ns // 1_000_000, route.key, value, own) is None
        ):
            self._emit_first(part, route.key, value, recv_ns // 1_000_000, position, own)
        else:
            positions.append(position)

    def _emit_first(
        self,
        part: Partition,
        key: bytes,
        value: bytes,
        timestamp_ms: int,
        position: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        """The record does not fit the open batch, or there is none: begin one. Here large records are seen as well."""
        if len(value) > RECORD_BYTES_MAX or record_bytes(key, value, headers) > _BROKER_BYTES_MAX:
            self._tally.produced += 1
            self._sealed += 1
            self.lose(part, self._tally, position, key, f"its value of {len(value)} bytes is above {RECORD_BYTES_MAX}")
            return
        if part.positions:
            part.waiting.append(self._seal(part))
            self._ship_next(part)
        part.tally = self._tally
        part.builder = new_builder(part.batch_bytes_max, self.compression)
        part.append = part.builder._builder.append
        part.append(0, timestamp_ms, key, value, headers)
        part.positions.append(position)
        if part.flying is None:
            if not self._touched:
                asyncio.get_running_loop().call_soon(self._ship_touched)
            self._touched.append(part)

    # --- shipping -----------------------------------------------------------------------------------------------------

    def _seal(self, part: Partition) -> Batch:
        batch = Batch(part.builder, part.positions, part.tally)
        part.builder = None
        part.append = no_builder
        part.positions = []
        records = len(batch.positions)
        self._sealed += records
        batch.tally.produced += records
        self._buffer(batch.size)
        return batch

    def _buffer(self, change: int) -> None:
        """So many bytes more (or fewer) wait for their acks."""
        self._buffered += change
        self.full = self._buffered > self.settings.buffer_bytes_max

    def _ship_touched(self) -> None:
        touched, self._touched = self._touched, []
        for part in touched:
            self._ship_next(part)

    def _ship_next(self, part: Partition) -> None:
        """Ship what comes next if nothing flies; order on the partition is the order of `emit`."""
        if part.flying is not None or self._closed:
            return
        if part.waiting:
            self._ship(part, self._next(part))
        elif part.positions:
            self._ship(part, self._seal(part))

    def _next(self, part: Partition) -> Batch:
        """The oldest waiting batch, cut to what the broker is known to take."""
        batch = part.waiting.popleft()
        while batch.size > part.batch_bytes_max and len(batch.positions) > 1:
            first, rest = batch.halves(self.compression)
            self._buffer(first.size + rest.size - batch.size)
            part.waiting.appendleft(rest)
            batch = first
        return batch

    def _ship(self, part: Partition, batch: Batch) -> None:
        link = self._links.current
        assert link is not None, "open() comes before emit()"
        part.flying = batch
        if part.link is not link:
            part.link = link
            part.sent = 0
        part.sent += len(batch.positions)
        if part.sent > _SEQUENCE_SOFT_MAX:
            self._recovery.renew_soon(link)
        self._links.took_off(link)
        batch.shipped_s = asyncio.get_running_loop().time()
        try:
            acknowledged = link.send(batch, part.topic, part.number)
        except LIBRARY_ERRORS as error:
            self._links.landed(link)
            self._recovery.begin(part, batch, link, error)
        else:
            acknowledged.add_done_callback(partial(self._settled, part, batch, link))

    def _settled(self, part: Partition, batch: Batch, link: Link, acknowledged: asyncio.Future[Any]) -> None:
        if self._closed or acknowledged.cancelled():
            if not acknowledged.cancelled():
                acknowledged.exception()  # looked at, so that asyncio does not report it
            return
        self._links.landed(link)
        error = acknowledged.exception()
        if error is None:
            self.ack(part, batch, acknowledged.result().offset)
        else:
            self._recovery.begin(part, batch, link, error)

    def ack(self, part: Partition, batch: Batch, base_offset: int) -> None:
        """Count a batch that is in Kafka and let its partition go on."""
        records = len(batch.positions)
        self.acked += records
        batch.tally.ack(part.topic, part.number, base_offset, records)
        if base_offset >= 0:
            if base_offset < part.floor:
                self.went_back += 1
                self._recovery.went_back(part, base_offset)
            part.floor = base_offset + records
        self._buffer(-batch.size)
        if self._latency is not None:
            now_ns, packed = self.clock.now_ns(), b"".join(batch.positions)
            self._latency.record_many([now_ns - recv_ns for (recv_ns,) in _RECV_NS.iter_unpack(packed)])
        self._recovery.succeeded(part)
        part.flying = None
        self._ship_next(part)
        self.wake()

    def lose(self, part: Partition, tally: Tally, position: bytes, key: bytes, reason: str) -> None:
        """Count and name a record that is lost for good."""
        self.failed += 1
        tally.failed += 1
        number, event, recv_ns = POSITION.unpack(position)
        shown_key = key.decode("utf-8", "replace")
        _log.error(
            "record lost: capture %s frame %d event %d (received at %d ns), topic %s partition %d key %s: %s",
            tally.capture_id.hex(), number, event, recv_ns, part.topic, part.number, shown_key, reason,
        )  # fmt: skip
        self.wake()

    def resume(self, part: Partition, batch: Batch, pieces: Iterable[Batch]) -> None:
        """Put `pieces` in the place of a batch that came back, and let the partition go on."""
        self._buffer(-batch.size)
        parts = list(pieces)
        self._buffer(sum(piece.size for piece in parts))
        part.waiting.extendleft(reversed(parts))
        part.flying = None
        self._ship_next(part)
        self.wake()

    @property
    def link(self) -> Link | None:
        """The link that batches are shipped over now."""
        return self._links.current

    def adopt(self, link: Link) -> None:
        """Ship over this link from now on; partitions move to it batch by batch."""
        self._links.adopt(link)

    # --- what became of them ------------------------------------------------------------------------------------------

    @property
    def produced(self) -> int:
        """Records taken so far."""
        return self._sealed + sum(len(part.positions) for part in self._all_partitions())

    @property
    def in_flight(self) -> int:
        """Records that are neither acked nor failed."""
        return self.produced - self.acked - self.failed

    @property
    def oldest_ns(self) -> int | None:
        """Receive time of the oldest record that is neither acked nor failed; None when there is none."""
        oldest: list[bytes] = []
        for part in self._all_partitions():
            batch = part.flying or (part.waiting[0] if part.waiting else None)
            positions = part.positions if batch is None else batch.positions
            oldest += positions[:1]
        return min((_RECV_NS.unpack(position)[0] for position in oldest), default=None)

    def partitions(self) -> dict[str, int]:
        """Partition count of each open topic."""
        return {topic: len(parts) for topic, parts in self._partitions.items()}

    def delivery(self, capture_id: bytes | None = None) -> Delivery:
        """What became of one capture's records (default: the current one's); the last 1024 captures are known."""
        tally = self._tally if capture_id is None else self._tallies.seen(capture_id)
        unsealed = sum(len(part.positions) for part in self._all_partitions() if part.tally is tally)
        return tally.delivery(unsealed)

    def offsets(self, capture_id: bytes | None = None) -> Offsets:
        """topic -> partition -> (first, last) offset of one capture's acked records (default: the current one's)."""
        return {topic: dict(partitions) for topic, partitions in self.delivery(capture_id).offsets.items()}

    def _all_partitions(self) -> Iterator[Partition]:
        for parts in self._partitions.values():
            yield from parts

    async def _change(self) -> None:
        """Wait until something was acked, lost or blocked. Raises `fault`."""
        if self.fault is not None:
            raise self.fault
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def wake(self) -> None:
        """Something changed for those who wait in `room` or `drain`."""
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
