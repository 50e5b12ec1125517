"""What a sink does when a batch fails for good: a new link, a look at the partition, the batch again or in halves.

Until a partition is through, its failed batch counts as flying, so nothing of a higher position is sent on it; other
partitions go on. Used by `KafkaSink` only; never raises: what cannot be solved now is tried again, more and more
slowly, with `sink.fault` set where somebody has to act.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from kcs.errors import KafkaError
from kcs.kafka import topics
from kcs.kafka.batch import Batch
from kcs.kafka.failures import Verdict, named, verdict_of

if TYPE_CHECKING:
    from kcs.kafka.link import Link
    from kcs.kafka.sink import KafkaSink, Partition

_PAUSE_MIN_S: Final = 0.1
_PAUSE_MAX_S: Final = 10.0
_ALONE_ATTEMPTS: Final = 3
"""How often a record that the broker fails on, for a reason not known to be its content, is sent alone."""
_POSITION_ORDER: Final = slice(0, 12)
"""Frame number and event index: what orders the positions of one capture."""
_log = logging.getLogger("kcs.kafka")


class Recovery:
    """Brings the failed batches of one sink home."""

    __slots__ = ("_blamed", "_lock", "_renewing", "_sink", "_tasks")

    def __init__(self, sink: KafkaSink) -> None:
        self._sink = sink
        self._blamed: dict[Partition, KafkaError] = {}
        self._lock: asyncio.Lock | None = None
        self._renewing: Link | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def fault(self) -> KafkaError | None:
        """Why some partition cannot go on, or None."""
        return next(iter(self._blamed.values()), None)

    def succeeded(self, part: Partition) -> None:
        """The partition delivers."""
        if self._blamed:
            self._blamed.pop(part, None)

    def begin(self, part: Partition, batch: Batch, link: Link, error: BaseException) -> None:
        """Take over a partition whose batch failed on `link`."""
        self.spawn(self._recover(part, batch, link, error))

    def renew_soon(self, link: Link) -> None:
        """Replace a link that still works."""
        if self._renewing is not link:
            self._renewing = link
            self.spawn(self._renew(link))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside the sink; `close` waits for it or ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End whatever is being tried."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _recover(self, part: Partition, batch: Batch, link: Link, error: BaseException) -> None:
        verdict = verdict_of(error)
        where = f"topic {part.topic} partition {part.number}"
        _log.warning("%s: a batch of %d records came back: %s", where, len(batch.positions), named(error))
        if verdict is Verdict.REFUSED:
            remedy = "give this user the right to write there, or see what the broker says"
            self._blame(part, KafkaError(f"the broker takes nothing: {named(error)}", where=where, remedy=remedy))
        if batch.attempts and verdict is not Verdict.CONTENT:
            await asyncio.sleep(_pause_s(batch.attempts))
        batch.attempts += 1
        await self._renew(link)
        if verdict is not Verdict.CONTENT:
            await asyncio.sleep(self._sink.settings.settle_s)
            if await self._was_written(part, batch):
                return
        self._again(part, batch, verdict, error)

    def _again(self, part: Partition, batch: Batch, verdict: Verdict, error: BaseException) -> None:
        """Send an unwritten batch again: in halves if a record of it is at fault, without it if it is the only one."""
        sink = self._sink
        compression = sink.compression
        records = batch.records()
        if verdict in (Verdict.REFUSED, Verdict.UNKNOWN):
            sink.resume(part, batch, [batch.rebuilt(records, compression)])
        elif len(records) > 1:
            middle = len(records) // 2
            halves = [batch.rebuilt(half, compression) for half in (records[:middle], records[middle:])]
            for half in halves:
                half.attempts = 0
            sink.resume(part, batch, halves)
        elif verdict is Verdict.MAYBE_CONTENT and batch.attempts < _ALONE_ATTEMPTS:
            sink.resume(part, batch, [batch.rebuilt(records, compression)])
        else:
            sink.lose(part, batch.tally, records[0].position, records[0].key, named(error))
            sink.resume(part, batch, [])

    async def _renew(self, failed: Link) -> None:
        """Return when the sink ships over another link than `failed`; tries without limit."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            attempts = 0
            while self._sink.link is failed:
                try:
                    self._sink.adopt(await self._sink.connector(self._sink.settings))
                except KafkaError as error:
                    _log.warning("no new producer yet: %s", error.what)
                    await asyncio.sleep(_pause_s(attempts))
                    attempts += 1

    async def _was_written(self, part: Partition, batch: Batch) -> bool:
        """Look for the batch above the last offset known to be acked. A batch is written whole or not at all."""
        sink = self._sink
        if not sink.settings.headers:
            self._blame(
                part,
                KafkaError(
                    "whether the last batch was written cannot be told without the header 'kcs'",
                    where=f"topic {part.topic} partition {part.number}",
                    remedy="run with headers; kcs replay the capture into a new topic",
                ),
            )
            await asyncio.get_running_loop().create_future()  # nothing may follow on this partition
        attempts = 0
        while True:
            try:
                mark = await topics.read_mark(
                    sink.settings, part.topic, part.number, batch.tally.capture_id, floor=part.floor
                )
            except KafkaError as error:
                _log.warning("%s", error)
                await asyncio.sleep(_pause_s(attempts))
                attempts += 1
            else:
                break
        if mark is None or mark.position[_POSITION_ORDER] < batch.positions[-1][_POSITION_ORDER]:
            return False
        sink.ack(part, batch, mark.offset + 1 - len(batch.positions))
        return True

    def _blame(self, part: Partition, fault: KafkaError) -> None:
        if part not in self._blamed:
            _log.error("%s", fault)
        self._blamed[part] = fault
        self._sink.wake()


def _pause_s(attempts: int) -> float:
    return float(min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2 ** min(attempts, 10)))
