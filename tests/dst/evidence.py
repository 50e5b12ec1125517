"""What is left of a run when its last life has ended; what the checks look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kcs.errors import CaptureError
from kcs.kafka.batch import BatchRecord
from kcs.live.receipt import base_name
from tests.dst.broker import Cluster, capture_of
from tests.dst.life import LifeReport
from tests.dst.plan import Plan
from tests.dst.replayed import Place, Replayed, replay
from tests.dst.world import World

Findings = Iterator[str]


@dataclass(slots=True)
class Evidence:
    """Everything there is after the last life.

    `receipts`: what the broker held when each receipt appeared. `bound`: names of the captures that ever had a delivery
    file, so that all of them must be delivered.
    """

    world: World
    plan: Plan
    directory: Path
    cluster: Cluster
    reports: list[LifeReport]
    receipts: dict[str, dict[Place, int]]
    bound: set[str]
    captures: dict[bytes, Replayed] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    _by_capture: dict[bytes, dict[Place, list[BatchRecord]]] = field(default_factory=dict)

    def load(self) -> None:
        for path in sorted(self.directory.glob("*.zst")):
            try:
                one = replay(path)
            except CaptureError as error:
                self.unreadable.append(f"{path.name}: {error}")
            else:
                self.captures[one.capture_id] = one

    def in_broker(self, capture_id: bytes) -> Iterator[tuple[Place, list[BatchRecord]]]:
        """What the broker holds of a capture, partition by partition."""
        if not self._by_capture:
            for name, topic in sorted(self.cluster.topics.items()):
                for number, log in enumerate(topic.logs):
                    for record in log:
                        places = self._by_capture.setdefault(capture_of(record), {})
                        places.setdefault((name, number), []).append(record)
        mine = self._by_capture.get(capture_id, {})
        for name, topic in sorted(self.cluster.topics.items()):
            for number in range(len(topic.logs)):
                yield (name, number), mine.get((name, number), [])

    def must_be_delivered(self, one: Replayed) -> bool:
        """Whatever once had a delivery file: it is synced before the first record, --fsync or not."""
        return bool(one.records) and base_name(one.path) in self.bound

    def life_of(self, capture_id: bytes) -> LifeReport | None:
        return next((report for report in self.reports if capture_id in report.captures), None)

    def captures_of(self, report: LifeReport) -> Iterator[Replayed]:
        """Those of one life, in order, as far as they can be read."""
        for capture_id in report.captures:
            if capture_id in self.captures:
                yield self.captures[capture_id]
