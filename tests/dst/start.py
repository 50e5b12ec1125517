"""The beginning of a life, as `kcs live` begins: the sink opened or not, and what has to be done before it delivers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kcs.cli import preparing
from kcs.cli.preparing import Preparation, delivery_info
from kcs.clock import Clock
from kcs.errors import KafkaUnreachableError
from kcs.exchanges.base import Venue
from kcs.kafka.sink import KafkaSink
from kcs.live.collector import Log, Prepare
from kcs.live.receipt import DeliveryInfo
from tests.dst.plan import Plan
from tests.dst.world import SECOND, World

RETRY_S: Final = 0.2
"""Instead of the seconds that the command waits: lives are short here."""

_DELIVERED: Final = re.compile(r"(\d[\d,]*) records delivered, \d")


async def start(
    directory: Path, place: Venue, plan: Plan, sink: KafkaSink, world: World, clock: Clock, log: Log
) -> tuple[DeliveryInfo, Prepare | None]:
    """What the collector is given. Raises KafkaError where the command would not start."""

    async def open_() -> None:
        await sink.open([place.name], plan.channels)

    try:
        await open_()
    except KafkaUnreachableError:
        world.count("broker away at start")
    preparation = Preparation(sink, open_, directory, place.name, plan.settle_ns / SECOND, clock, log)
    return delivery_info(sink), preparation.run if await preparation.needed() else None


def counted(world: World, text: str) -> None:
    """Coverage by what the run says of itself."""
    if text.startswith("sealed what a dead run left"):
        world.count("sealed after a crash")
    found = _DELIVERED.search(text)
    if found is not None and found[1] != "0":
        world.count("delivered after a crash")


@contextmanager
def hurried() -> Iterator[None]:
    """With the waits of a start as short as everything else here."""
    before = preparing.RETRY_S, preparing.REFUSED_RETRY_S
    _set_waits(RETRY_S, RETRY_S)
    try:
        yield
    finally:
        _set_waits(*before)


def _set_waits(retry_s: float, refused_retry_s: float) -> None:
    preparing.RETRY_S, preparing.REFUSED_RETRY_S = retry_s, refused_retry_s  # type: ignore[misc]
