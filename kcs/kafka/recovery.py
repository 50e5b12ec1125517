"""What a sink does when a batch fails for good: a new link, a look at the partition, the batch again or in halves.

Until a partition is through, its failed batch counts as flying, so nothing of a higher position is sent on it; other
partitions go on. Used by `KafkaSink` only; never raises: what cannot be solved now is tried again, more and more
slowly, with `fault` set where somebody has to act.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kcs.errors import ConfigError, KafkaError, KafkaUnreachableError
from kcs.kafka.batch import BATCH_BYTES_MIN, Batch
from kcs.kafka.failures import Verdict, named, remedy_of, too_large, verdict_of, was_judged
from kcs.kafka.marks import POSITION_ORDER, read_mark
from kcs.kafka.quiet import OURS
from kcs.kafka.settings import retry_pause_s

if TYPE_CHECKING:
    from kcs.kafka.link import Link
    from kcs.kafka.partition import Partition
    from kcs.kafka.sink import KafkaSink

_PAUSE_MIN_S: Final = 0.1
_PAUSE_MAX_S: Final = 2.0
_ALONE_ATTEMPTS: Final = 3
"""How often a record that the broker fails on, for a reason not known to be its content, is sent alone."""
_log = logging.getLogger("kcs.kafka")
_retries = logging.getLogger(OURS)
"""Thinned out (`kcs.kafka.quiet`): what repeats itself while a broker is away."""


class Recovery:
    """Brings the failed batches of one sink home."""

    __slots__ = ("_blamed", "_closing", "_lock", "_renewing", "_sink", "_tasks")

    def __init__(self, sink: KafkaSink) -> None:
        self._sink = sink
        self._blamed: dict[Partition, KafkaError] = {}
        self._lock = asyncio.Lock()
        self._renewing: Link | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closing: dict[asyncio.Task[Any], None] = {}
        """In the order of their beginning: what happens at the end must not depend on addresses."""

    @property
    def fault(self) -> KafkaError | None:
        """Why some partition cannot go on, or None."""
        return next(iter(self._blamed.values()), None)

    def succeeded(self, part: Partition) -> None:
        """The partition delivers."""
        if self._blamed:
            self._blamed.pop(part, None)

    def went_back(self, part: Partition, base_offset: int) -> None:
        """The partition gave a batch an offset that it had given away before: it lost what it had acknowledged."""
        _log.error(
            "topic %s partition %d: its offsets went back from %d to %d: it was deleted and made again, or its leader "
            "died with what it had acknowledged; see kcs verify FILE --topic for what is missing",
            part.topic, part.number, part.floor, base_offset,
        )  # fmt: skip

    def begin(self, part: Partition, batch: Batch, link: Link, error: BaseException) -> None:
        """Take over a partition whose batch failed on `link`."""
        task = _spawn(self._tasks, self._recover(part, batch, link, error))
        task.add_done_callback(partial(self._ended, part))

    def renew_soon(self, link: Link) -> None:
        """Replace a link that still works."""
        if self._renewing is not link:
            self._renewing = link
            _spawn(self._tasks, self._renew(link))

    def retire(self, link: Link) -> None:
        """Close a link that is not used any more."""
        _spawn(self._closing, link.close())

    async def close(self) -> None:
        """End whatever is being tried."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._closing, return_exceptions=True)

    async def _recover(self, part: Partition, batch: Batch, link: Link, error: BaseException) -> None:
        verdict = verdict_of(error)
        # aiokafka pauses before it repeats a batch: what came back sooner was sent once
        once = asyncio.get_running_loop().time() - batch.shipped_s < retry_pause_s(self._sink.settings)
        where = f"topic {part.topic} partition {part.number}"
        _retries.warning("%s: a batch of %d records came back: %s", where, len(batch.positions), named(error))
        if verdict is Verdict.REFUSED:
            self._blame(
                part, KafkaError(f"the broker takes nothing: {named(error)}", where=where, remedy=remedy_of(error))
            )
        if batch.attempts and verdict is not Verdict.CONTENT:
            await asyncio.sleep(_pause_s(batch.attempts))
        batch.attempts += 1
        await self._renew(link, part)
        unwritten = verdict is Verdict.CONTENT or (once and was_judged(error))
        if not unwritten and await self._was_written(part, batch):
            return
        self._again(part, batch, verdict, error)

    def _again(self, part: Partition, batch: Batch, verdict: Verdict, error: BaseException) -> None:
        """Send an unwritten batch again: in halves if a record of it is at fault, not at all if it is the only one."""
        sink = self._sink
        if verdict in (Verdict.REFUSED, Verdict.UNKNOWN):
            sink.resume(part, batch, [batch.rebuilt(batch.records(), sink.compression)])
        elif len(batch.positions) > 1:
            if too_large(error):
                part.batch_bytes_max = max(BATCH_BYTES_MIN, min(part.batch_bytes_max, batch.size // 2))
            halves = batch.halves(sink.compression)
            for half in halves:
                half.attempts = 0
            sink.resume(part, batch, halves)
        elif verdict is Verdict.MAYBE_CONTENT and batch.attempts < _ALONE_ATTEMPTS:
            sink.resume(part, batch, [batch.rebuilt(batch.records(), sink.compression)])
        else:
            record = batch.records()[0]
            sink.lose(part, batch.tally, record.position, record.key, named(error))
            sink.resume(part, batch, [])

    async def _renew(self, failed: Link, part: Partition | None = None) -> None:
        """Return when the sink ships over another link than `failed`; tries without limit.

        A refusal that waiting cannot cure becomes the fault of `part`, and is tried again all the same.
        """
        async with self._lock:
            attempts = 0
            while self._sink.link is failed:
                try:
                    self._sink.adopt(await self._sink.connector(self._sink.settings, self._sink.clock))
                except (KafkaError, ConfigError) as error:  # a password's file may be missing while it is replaced
                    _retries.warning("no new producer yet: %s", error.what)
                    if part is not None and not isinstance(error, KafkaUnreachableError):
                        self._blame(part, error)
                    await asyncio.sleep(_pause_s(attempts))
                    attempts += 1

    async def _was_written(self, part: Partition, batch: Batch) -> bool:
        """Look for the batch above the last offset known to be acked, and count it if it is there.

        A batch is written whole or not at all. First things settle: an attempt may still be under way, and a leader
        that has written a batch does not show it before enough replicas have it.
        """
        sink = self._sink
        if not sink.settings.headers:
            await self._stuck(part)
        await asyncio.sleep(sink.settings.settle_s)
        attempts = 0
        while True:
            try:
                mark = await read_mark(sink.settings, part.topic, part.number, batch.tally.capture_id, floor=part.floor)
            except (KafkaError, ConfigError) as error:
                _retries.warning("whether the batch was written cannot be read yet: %s", error)
                if not isinstance(error, KafkaUnreachableError):
                    self._blame(part, error)
                await asyncio.sleep(_pause_s(attempts))
                attempts += 1
            else:
                break
        if mark is None or mark.position[POSITION_ORDER] < batch.positions[-1][POSITION_ORDER]:
            return False
        sink.ack(part, batch, mark.offset + 1 - len(batch.positions))
        return True

    async def _stuck(self, part: Partition) -> None:
        """Without positions in the topic nobody can tell; nothing may follow on this partition."""
        fault = KafkaError(
            "whether the last batch was written cannot be told without the header 'kcs'",
            where=f"topic {part.topic} partition {part.number}",
            remedy="replay the capture into a new topic; run with headers",
        )
        self._blame(part, fault)
        await asyncio.get_running_loop().create_future()

    def _ended(self, part: Partition, task: asyncio.Task[None]) -> None:
        """What nobody expected must not leave a partition waiting for ever without a word."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            fault = KafkaError(
                f"a defect in kcs ends the delivery: {error!r}",
                where=f"topic {part.topic} partition {part.number}",
                remedy="stop the run (twice, to wait for nothing) and start it again: the rest is delivered then",
            )
            self._blame(part, fault)

    def _blame(self, part: Partition, error: KafkaError | ConfigError) -> None:
        fault = error
        if not isinstance(fault, KafkaError):
            fault = KafkaError(error.what, where=error.where, remedy=error.remedy)
        if part not in self._blamed:
            _log.error("%s", fault)
        self._blamed[part] = fault
        self._sink.wake()


def _spawn(tasks: dict[asyncio.Task[Any], None], work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.get_running_loop().create_task(work)
    tasks[task] = None
    task.add_done_callback(lambda done: tasks.pop(done, None))
    return task


def _pause_s(attempts: int) -> float:
    return float(min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2 ** min(attempts, 10)))
