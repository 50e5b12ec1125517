"""Going on with a capture that is partly in Kafka: a sink that skips what lies at or below the marks.

Used by whoever delivers a capture after a crash (`kcs recover --produce`, the next `kcs live`); see `kcs.kafka.marks`.
"""

from __future__ import annotations

from collections.abc import Mapping

from kcs.kafka.marks import POSITION_ORDER, Mark
from kcs.kafka.partition import Route
from kcs.kafka.sink import KafkaSink
from kcs.sink import Headers


class ResumingSink:
    """A `KafkaSink` for a capture that is partly in Kafka already: what lies at or below a partition's mark is skipped.

    Wraps an open sink; the records skipped are counted in `skipped` and nowhere else.
    """

    __slots__ = ("_marks", "_sink", "skipped")

    def __init__(self, sink: KafkaSink, marks: Mapping[tuple[str, int], Mark]) -> None:
        self._sink = sink
        self._marks = {place: mark.position[POSITION_ORDER] for place, mark in marks.items()}
        self.skipped = 0

    @property
    def acked(self) -> int:
        return self._sink.acked

    @property
    def failed(self) -> int:
        return self._sink.failed

    @property
    def full(self) -> bool:
        return self._sink.full

    def start(self, capture_id: bytes) -> None:
        """The capture whose marks these are."""
        self._sink.start(capture_id)

    def route(self, channel: str, exchange: str, key: str) -> tuple[Route, bytes]:
        """The sink's route and the mark of its partition (empty: none)."""
        route = self._sink.route(channel, exchange, key)
        return route, self._marks.get((route.partition.topic, route.partition.number), b"")

    def emit(
        self,
        route: tuple[Route, bytes],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        """Take one record, or skip it when it is there already."""
        if position[POSITION_ORDER] <= route[1]:
            self.skipped += 1
        else:
            self._sink.emit(route[0], value, recv_ns, position, trade_id, headers)

    async def room(self) -> None:
        await self._sink.room()

    async def drain(self) -> None:
        await self._sink.drain()

    async def close(self) -> None:
        await self._sink.close()
