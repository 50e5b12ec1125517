"""The two small files beside a capture that say what became of it in Kafka. The capture itself knows nothing of Kafka.

    NAME.delivery.json   before the first record: which cluster, which topics with how many partitions, headers or not.
                         A capture with a delivery file and no receipt is what recovery takes up.
    NAME.receipt.json    when every record of the file is acknowledged: digest, counts, first and last offset a
                         partition, the record schema. Never written for a file of which a record failed.

Both are JSON, written to a temporary name and renamed, so a reader sees a whole file or none. Raises CaptureWriteError.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from kcs.errors import CaptureWriteError
from kcs.sink import RECORD_SCHEMA_VERSION

DELIVERY_VERSION: Final = 1
_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


class DeliveryState(Protocol):
    """What became of one capture file's records so far."""

    @property
    def produced(self) -> int: ...
    @property
    def acked(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def offsets(self) -> Mapping[str, Mapping[int, tuple[int, int]]]:
        """topic -> partition -> (first, last)"""
        ...


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """Where a run delivers to; given by whoever opened the Kafka sink.

    `partitions`: topic -> number of partitions, as read when the run began. `state(capture_id)`: None for a file that
    the sink does not know.
    """

    cluster_id: str
    template: str
    headers: bool
    partitions: Mapping[str, int]
    state: Callable[[bytes], DeliveryState | None]


def base_name(capture: Path) -> str:
    """`upbit-20260102T030405Z-0011223344556677` of the sealed or the partial file."""
    return capture.name.removesuffix(".partial").removesuffix(".zst")


def delivery_path(capture: Path) -> Path:
    """Where the delivery file of this capture is."""
    return capture.with_name(base_name(capture) + ".delivery.json")


def receipt_path(capture: Path) -> Path:
    """Where the receipt of this capture is."""
    return capture.with_name(base_name(capture) + ".receipt.json")


def write_delivery(capture: Path, capture_id: bytes, delivery: DeliveryInfo, *, fsync: bool = False) -> Path:
    """Say where this capture's records go. To be called before the first of them is produced."""
    content = {
        "version": DELIVERY_VERSION,
        "capture": capture_id.hex(),
        "cluster": delivery.cluster_id,
        "template": delivery.template,
        "headers": delivery.headers,
        "partitions": dict(sorted(delivery.partitions.items())),
        "record_schema": RECORD_SCHEMA_VERSION,
    }
    return _write(delivery_path(capture), content, fsync)


def write_receipt(
    capture: Path, capture_id: bytes, digest: str, delivery: DeliveryInfo, state: DeliveryState, *, fsync: bool = False
) -> Path:
    """Say that every record of this capture is acknowledged, and where it is."""
    content = {
        "version": DELIVERY_VERSION,
        "capture": capture_id.hex(),
        "file": base_name(capture) + ".zst",
        "digest": digest,
        "records": {"produced": state.produced, "acked": state.acked, "failed": state.failed},
        "cluster": delivery.cluster_id,
        "template": delivery.template,
        "headers": delivery.headers,
        "offsets": {
            topic: {partition: {"first": first, "last": last} for partition, (first, last) in sorted(of_topic.items())}
            for topic, of_topic in sorted(state.offsets.items())
        },
        "record_schema": RECORD_SCHEMA_VERSION,
    }
    return _write(receipt_path(capture), content, fsync)


def _write(path: Path, content: dict[str, Any], fsync: bool) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as out:
            out.write(orjson.dumps(content, option=_JSON))
            if fsync:
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CaptureWriteError(f"cannot write it: {error.strerror or error}", where=str(path)) from error
    return path
