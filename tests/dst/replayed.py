"""What a capture makes, by replay: the records of each partition, their order, the digest. The truth for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kcs.capture.framecount import FrameCount
from kcs.capture.reader import CaptureReader, RawRecord
from kcs.exchanges import venue
from kcs.kafka.partition import partition_of
from kcs.live.receipt import read_delivery
from kcs.pipeline import Pipeline
from kcs.sink import HEADER_NAME, Headers
from kcs.stats import Ledger

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Made:
    """One record as it must stand in Kafka."""

    key: bytes
    value: bytes
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class Replayed:
    """One sealed capture. `made`: by partition, full position (20 bytes) to record, in capture order."""

    path: Path
    capture_id: bytes
    run_id: bytes
    next_number: int
    """The number after the last record that it holds."""
    end_number: int
    """The number after the last one that it ever held, as its index says."""
    whole: bool
    """No number is missing, at the end neither, and nothing unknown was cut away."""
    digest: str
    ledger: Ledger
    records: list[RawRecord]
    made: dict[Place, dict[bytes, Made]] = field(default_factory=dict)
    miscounts: list[str] = field(default_factory=list)

    @property
    def produced(self) -> int:
        return sum(len(records) for records in self.made.values())


class _Keeper:
    """A sink that keeps everything."""

    acked = failed = 0
    full = False

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self.made: dict[Place, dict[bytes, Made]] = {}
        self._partitions = partitions
        self._capture = b""

    def start(self, capture_id: bytes) -> None:
        self._capture = capture_id

    def route(self, channel: str, exchange: str, key: str) -> Any:
        raw = key.encode()
        place = f"{channel}.{exchange}", partition_of(raw, self._partitions.get(f"{channel}.{exchange}", 1))
        return self.made.setdefault(place, {}), raw

    def emit(
        self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        records, key = route
        full = self._capture + position
        own = ((HEADER_NAME, full), *((("id", trade_id),) if trade_id else ()), *headers)
        assert full[:20] not in records, "one position twice"
        records[full[:20]] = Made(key, value, recv_ns // 1_000_000, own)

    async def room(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...


def replay(path: Path) -> Replayed:
    """Read strictly, feed everything to a fresh pipeline. Raises CaptureError for a file that is not whole."""
    delivery = read_delivery(path)
    keeper = _Keeper(delivery.partitions if delivery is not None else {})
    ledger, count = Ledger(), FrameCount()
    records: list[RawRecord] = []
    with CaptureReader(path) as reader:
        header = reader.header
        pipeline = Pipeline(header.exchange, venue(header.exchange).adapter(), keeper, ledger)
        pipeline.start(header.capture_id)
        for batch in reader.batches():
            count.add(batch)
            records += batch
            for record in batch:
                pipeline.record(record)
        end_number = reader.next_number or 0
        next_number = records[-1][0] + 1 if records else 0
        summary = reader.summary()
        lost = any(one.records_lost != 0 for one in summary.recovered) if summary is not None else True
        whole = not (reader.holes or lost)
    return Replayed(
        path=path,
        capture_id=header.capture_id,
        run_id=header.run_id,
        next_number=next_number,
        end_number=end_number,
        whole=whole,
        digest=pipeline.digest(),
        ledger=ledger,
        records=records,
        made=keeper.made,
        miscounts=[str(one) for one in count.found],
    )
