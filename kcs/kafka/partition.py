"""What the sink keeps for each partition, the handle of `emit`, and which partition a key belongs to. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiokafka.partitioner import murmur2

if TYPE_CHECKING:
    from kcs.kafka.batch import Batch
    from kcs.kafka.link import Link


class Partition:
    """One partition as the sink sees it: the open batch, those that wait, the one that flies."""

    __slots__ = (
        "append", "batch_bytes_max", "builder", "floor", "flying", "link", "number", "positions", "sent", "tally",
        "topic", "waiting",
    )  # fmt: skip

    def __init__(self, topic: str, number: int, floor: int, batch_bytes_max: int) -> None:
        self.topic = topic
        self.number = number
        self.batch_bytes_max = batch_bytes_max
        """Shrinks when the broker finds a batch too large."""
        self.floor = floor
        """Records of ours that are not acknowledged have this offset or a higher one."""
        self.builder: Any = None
        self.append: Callable[..., Any] = no_builder
        self.positions: list[bytes] = []
        self.tally: Any = None
        """Whose records the open batch holds."""
        self.waiting: deque[Batch] = deque()
        self.flying: Batch | None = None
        self.link: Link | None = None
        self.sent = 0
        """Records sent over `link`: its sequence number."""


class Route:
    """Handle of `emit`: where the records of one (channel, key) go."""

    __slots__ = ("key", "partition")

    def __init__(self, partition: Partition, key: bytes) -> None:
        self.partition = partition
        self.key = key


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that the Java client's default partitioner picks for a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def no_builder(*_: Any) -> None:
    """Stands where a partition has no open batch: nothing fits."""
