"""A delivery file with no capture beside it: nothing can be delivered, but what is in Kafka of it is counted.

A run that rotates writes the delivery file of the next capture while the disk is still busy with the file before. When
it dies then, records of the new capture may be in Kafka that have no frame anywhere. They are counted as `uncaptured`
in a receipt, which holds as long as there is no capture: one that was only moved away is delivered once it is back.

Used by `kcs.deliver`. Raises UndeliverableError, KafkaError, CaptureWriteError.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from kcs.clock import NS_PER_MS, NS_PER_S, Clock
from kcs.destination import check_cluster
from kcs.errors import UndeliverableError
from kcs.kafka import marks as kafka_marks
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.tally import Delivery
from kcs.live.backlog import begun_ns
from kcs.live.receipt import DeliveryFile, DeliveryInfo, Missing, base_name, delivery_path, write_receipt
from kcs.outcome import Delivered
from kcs.stats import Ledger

WHY: Final = "there is no such capture: its run died before the file was made, or it was moved away"


async def settle_absent(
    path: Path, delivery: DeliveryFile, settings: KafkaSettings, clock: Clock, settle_s: float
) -> Delivered:
    """Count what is in Kafka of a capture that is not there, and write the receipt. The caller holds the claim."""
    started_ns = clock.monotonic_ns()
    capture_id = _id(path, delivery)
    await check_cluster(path, delivery, settings)
    orphans = 0
    if delivery.headers and delivery.cluster is not None and delivery.partitions:
        since_ms = begun_ns(path) // NS_PER_MS
        await kafka_marks.wait_in_sync(settings, delivery.partitions)
        await asyncio.sleep(settle_s)
        found = await kafka_marks.read_marks(settings, delivery.partitions, capture_id, since_ms=since_ms)
        extents = await kafka_marks.read_extents(settings, found, capture_id, 0, since_ms=since_ms)
        orphans = sum(extent.orphans for extent in extents.values())
    missing = Missing(None, (WHY,))
    info = DeliveryInfo(
        delivery.cluster, delivery.template, delivery.headers, delivery.partitions, lambda _: None, delivery.bootstrap
    )
    receipt = write_receipt(
        path,
        capture_id,
        None,
        info,
        Delivery(capture_id, 0, 0, 0, {}),
        recovered=True,
        uncaptured=orphans,
        missing=missing,
        absent=True,
        fsync=True,
    )
    return Delivered(
        path=path,
        capture_id=capture_id,
        exchange=base_name(path).rsplit("-", 2)[0],
        sealed=False,
        ledger=Ledger(),
        already=0,
        orphans=orphans,
        digest=None,
        missing=missing,
        receipt=receipt,
        unreceipted=None,
        stopped=False,
        seconds=(clock.monotonic_ns() - started_ns) / NS_PER_S,
        absent=True,
    )


def _id(path: Path, delivery: DeliveryFile) -> bytes:
    try:
        capture_id = bytes.fromhex(delivery.capture)
    except ValueError:
        capture_id = b""
    if len(capture_id) != 8 or not base_name(path).endswith(delivery.capture):
        what = f"it names capture {delivery.capture!r}, and there is none"
        raise UndeliverableError(what, where=str(delivery_path(path)), remedy="remove it")
    return capture_id
