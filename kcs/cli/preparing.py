"""What `kcs live` does about Kafka while it captures already: what earlier runs left is delivered, oldest first, and a
broker that was away is opened when it comes back. Used by collecting.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kcs.clock import NS_PER_S, Clock
from kcs.errors import ConfigError, KafkaError, KafkaUnreachableError
from kcs.live.backlog import left_captures, seal_left
from kcs.live.collector import Log
from kcs.live.receipt import DeliveryInfo

if TYPE_CHECKING:
    from kcs.kafka.sink import KafkaSink

RETRY_S: Final = 2.0
"""Between two attempts to reach a broker. Opening takes up to five seconds by itself."""
REFUSED_RETRY_S: Final = 30.0
"""The same where it answers and refuses: somebody has to act."""
REFUSALS_MAX: Final = 3
"""A capture that is refused so often, for what no waiting cures, must not keep the run from its own delivery."""
TELL_EVERY_NS: Final = 60 * NS_PER_S
"""What is waited for is told at once, and again so often."""


def delivery_info(sink: KafkaSink) -> DeliveryInfo:
    """Where a run with this sink delivers to; before the sink is open, where it will."""
    return DeliveryInfo(
        cluster_id=sink.cluster_id or None,
        template=sink.settings.template,
        headers=sink.settings.headers,
        partitions=sink.partitions(),
        state=sink.delivery,
        bootstrap=sink.settings.bootstrap,
    )


class Preparation:
    """Of one exchange's run. `open_` opens the sink; `settle_s`: see `kcs.deliver`."""

    def __init__(
        self,
        sink: KafkaSink,
        open_: Callable[[], Awaitable[None]],
        directory: Path,
        exchange: str,
        settle_s: float,
        clock: Clock,
        log: Log,
    ) -> None:
        self._sink = sink
        self._open = open_
        self._directory = directory
        self._exchange = exchange
        self._settle_s = settle_s
        self._clock = clock
        self._log = log
        self._told: set[tuple[str, str]] = set()
        self._refusals: dict[Path, int] = {}
        self._passed_over: set[Path] = set()
        self._waited_for = ""
        self._tell_again_ns = 0

    async def needed(self) -> bool:
        """False where live may deliver at once: the sink is open, and no earlier run left anything."""
        return not self._is_open or await asyncio.to_thread(self._anything_left)

    async def run(self) -> DeliveryInfo | None:
        """Seal what dead runs left, open, deliver. Tries for as long as it takes; cancel it to stop."""
        await asyncio.to_thread(seal_left, self._directory, self._exchange, self._log)
        while True:
            try:
                if not self._is_open:
                    await self._open()
                    self._log("info", "Kafka is there")
                await self._deliver()
            except KafkaUnreachableError as error:
                await self._wait(error, RETRY_S)
            except (KafkaError, ConfigError) as error:  # a password's file may be missing while it is replaced
                await self._wait(error, REFUSED_RETRY_S)
            else:
                return None if self._sink.embedded else delivery_info(self._sink)

    async def _wait(self, error: KafkaError | ConfigError, seconds: float) -> None:
        now_ns = self._clock.monotonic_ns()
        text = f"{error}; trying again, capturing goes on"
        if text != self._waited_for or now_ns >= self._tell_again_ns:  # a night without a broker is no 10,000 lines
            self._waited_for, self._tell_again_ns = text, now_ns + TELL_EVERY_NS
            self._log("warning", text)
        await asyncio.sleep(seconds)

    async def _deliver(self) -> None:
        """What earlier runs left. Run again after a failure it finds less."""
        from kcs.deliver import deliver_all, described

        if self._sink.embedded:
            return
        left = [path for path in await asyncio.to_thread(self._left) if path not in self._passed_over]
        if left:
            self._log("info", f"delivering first what {len(left)} captures of earlier runs owe to Kafka")
        for path in left:
            try:
                delivered = await deliver_all(
                    [path], self._sink.settings, self._clock, log=self._log, settle_s=self._settle_s
                )
            except KafkaUnreachableError:
                raise
            except KafkaError as error:
                self._refusals[path] = self._refusals.get(path, 0) + 1
                if self._refusals[path] < REFUSALS_MAX:
                    raise
                self._passed_over.add(path)
                self._log("error", f"passed over, the next start tries again: {path} is not delivered: {error}")
                continue
            for done in delivered:
                self._settle_s = 0.0  # what dead processes had under way has arrived by now
                self._log("info", described(done))

    @property
    def _is_open(self) -> bool:
        return self._sink.link is not None

    def _anything_left(self) -> bool:
        partials = self._directory.glob(f"{self._exchange}-*.zst.partial")
        return any(partials) or bool(self._left())

    def _left(self) -> list[Path]:
        sink = self._sink
        return left_captures(self._directory, self._exchange, sink.cluster_id, sink.settings.bootstrap, self._once)

    def _once(self, level: str, text: str) -> None:
        """What is passed over is told when it is first seen, not with each look."""
        if (level, text) not in self._told:
            self._told.add((level, text))
            self._log(level, text)
