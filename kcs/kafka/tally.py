"""What became of one capture's records: the numbers a receipt needs. No I/O, no client library."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

_CAPTURES_MAX: Final = 1024

Offsets = dict[str, dict[int, tuple[int, int]]]
"""topic -> partition -> (first, last) offset."""


@dataclass(slots=True, frozen=True)
class Delivery:
    """State of one capture file's records at one moment. `produced = acked + failed + in_flight`."""

    capture_id: bytes
    produced: int
    acked: int
    failed: int
    offsets: Mapping[str, Mapping[int, tuple[int, int]]]

    @property
    def in_flight(self) -> int:
        return self.produced - self.acked - self.failed


class Tally:
    """Counts of one capture file, kept by the sink."""

    __slots__ = ("acked", "capture_id", "failed", "offsets", "produced")

    def __init__(self, capture_id: bytes) -> None:
        self.capture_id = capture_id
        self.produced = 0
        self.acked = 0
        self.failed = 0
        self.offsets: Offsets = {}

    def ack(self, topic: str, partition: int, base_offset: int, records: int) -> None:
        """`records` were written from `base_offset` on; -1 when the broker no longer knows where."""
        self.acked += records
        if base_offset < 0:
            return
        partitions = self.offsets.setdefault(topic, {})
        first, _ = partitions.get(partition, (base_offset, 0))
        partitions[partition] = (first, base_offset + records - 1)

    def delivery(self, unsealed: int = 0) -> Delivery:
        """A snapshot; `unsealed` records are taken but not yet counted."""
        offsets = {topic: dict(partitions) for topic, partitions in self.offsets.items()}
        return Delivery(self.capture_id, self.produced + unsealed, self.acked, self.failed, offsets)


class Tallies:
    """The tallies of the newest 1024 captures; a sink sees one capture after the other."""

    __slots__ = ("_tallies",)

    def __init__(self) -> None:
        self._tallies: OrderedDict[bytes, Tally] = OrderedDict()

    def of(self, capture_id: bytes) -> Tally:
        """The tally of a capture whose records come now."""
        tally = self._tallies.setdefault(capture_id, Tally(capture_id))
        if len(self._tallies) > _CAPTURES_MAX:
            self._tallies.popitem(last=False)
        return tally

    def seen(self, capture_id: bytes) -> Tally:
        """The same for who only asks: an empty one for a capture never seen or forgotten; none is forgotten for it.

        A run that is behind asks for each of its files, again and again, and there may be more than are kept.
        """
        return self._tallies.get(capture_id) or Tally(capture_id)


class LatencySink(Protocol):
    """Takes latencies in ns, many at once."""

    def record_many(self, latencies_ns: list[int], /) -> Any:
        """Take them."""
        ...
