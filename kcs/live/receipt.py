"""The two small files beside a capture that say what became of it in Kafka. The capture itself knows nothing of Kafka.

    NAME.delivery.json   before the first record: which cluster, which topics with how many partitions, headers or not.
                         A capture with a delivery file and no receipt is what recovery takes up.
    NAME.receipt.json    when there is nothing more to deliver of the file.

Both are JSON, written to a temporary name and renamed, so a reader sees a whole file or none.

Delivery file: `cluster` is null while the broker was away when the file began: nothing of the capture is in Kafka then,
`bootstrap` says where it was meant to go, `partitions` may be empty, and whoever delivers writes the file anew before
the first record.

Receipt: `records` counts all of the capture, whoever delivered it (`acked` includes what was found in Kafka already).
`failed` of them were refused by the broker for their content; they are named in the log and will never be there.
`digest` is that of the whole capture. Some keys are there only where they say something:
    "recovered": true    delivered, in part at least, after its run had ended (by the next start or by `kcs recover`)
    "uncaptured": n      so many records in Kafka have frame numbers at or beyond the capture's end: their frames died
                         with the process before they reached the disk. They lie above `last` of their partition.
    "whole": false       the capture is damaged or has holes: all that is there is delivered; `digest` is null, and
                         "missing" says what is not there: {"records": n or null, "damage": [text, ...]}. What had been
                         delivered of the missing records before the damage is in Kafka and has no frame here.
    "absent": true       there was no capture beside the delivery file (a run that rotates may die before the new file
                         is made): nothing can be delivered, `uncaptured` counts what is in Kafka of it. This holds as
                         long as there is none.
`offsets` are the first and last offset a partition of the capture's records below its end.

Whoever delivers a capture holds its `Claim`, so that no two do it at once. Raises CaptureWriteError, CaptureBusyError,
and CaptureError for a file that cannot be read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec
import orjson

from kcs.capture.osfile import read_small, sync_directory, write_error, write_small
from kcs.errors import CaptureBusyError, CaptureError, NewerFormatError
from kcs.sink import RECORD_SCHEMA_VERSION

DELIVERY_VERSION: Final = 1
FILE_BYTES_MAX: Final = 16 * 1024 * 1024
"""No delivery file or receipt is larger; a longer one is something else."""
_JSON: Final = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE

T = TypeVar("T")
_Count = Annotated[int, msgspec.Meta(ge=0)]


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
    """Where a run delivers to; given by whoever opened the Kafka sink, or will open it.

    `partitions`: topic -> number of partitions, as read when the run began. `state(capture_id)`: None for a file that
    the sink does not know. `cluster_id` None: the broker was away so far, `bootstrap` is where it should be.
    """

    cluster_id: str | None
    template: str
    headers: bool
    partitions: Mapping[str, int]
    state: Callable[[bytes], DeliveryState | None]
    bootstrap: str = ""


class _Versioned(msgspec.Struct, frozen=True):
    """What files of every version have."""

    version: int


class DeliveryFile(msgspec.Struct, frozen=True):
    """A delivery file as read. `partitions` is empty where the counts were not known."""

    version: int
    capture: str
    cluster: str | None
    template: str
    headers: bool
    record_schema: int
    partitions: dict[str, Annotated[int, msgspec.Meta(ge=1)]] = {}
    bootstrap: str = ""


class ReceiptRecords(msgspec.Struct, frozen=True):
    """Records of the whole capture."""

    produced: _Count
    acked: _Count
    failed: _Count = 0


class ReceiptOffsets(msgspec.Struct, frozen=True):
    """Where the capture's records are on one partition."""

    first: _Count
    last: _Count


class Missing(msgspec.Struct, frozen=True):
    """What a capture lacks. `records` None: nothing tells how many."""

    records: int | None
    damage: tuple[str, ...] = ()


class Receipt(msgspec.Struct, frozen=True):
    """A receipt as read; see the module docstring."""

    version: int
    capture: str
    digest: str | None
    records: ReceiptRecords
    record_schema: int
    cluster: str = ""
    template: str = ""
    headers: bool = True
    offsets: dict[str, dict[int, ReceiptOffsets]] = {}
    recovered: bool = False
    uncaptured: int = 0
    whole: bool = True
    missing: Missing | None = None
    absent: bool = False


class Claim:
    """The right to deliver one capture: a lock on its delivery file, until `release` or the end of the process.

    A live run holds it from the first record of a file to its receipt; without one, until it ends. It keeps others
    (`kcs recover --produce`, the next start while this one still drains) from producing the same records.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, capture: Path) -> None:
        """Take it, at once or not at all. Raises CaptureBusyError, CaptureError where there is no delivery file."""
        self.path = delivery_path(capture)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise CaptureError(
                f"there is no {self.path.name} beside it: nothing of it was ever to go to Kafka",
                where=str(capture),
                remedy="kcs replay FILE --topic ... delivers all of it",
            ) from None
        except OSError as error:
            raise _unreadable(self.path, error.strerror or str(error)) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(self._fd), self.path.stat())
        except OSError:  # held, or replaced by its holder between opening and looking
            taken = True
        if taken:
            self.release()
            raise CaptureBusyError(
                "another kcs is delivering this capture",
                where=str(capture),
                remedy="let it finish, or stop it; then run this again",
            )

    @classmethod
    def unheld(cls, capture: Path) -> Claim:
        """One for a delivery file that is about to be written: it is held from the moment when the file appears."""
        claim = cls.__new__(cls)
        claim.path = delivery_path(capture)
        claim._fd = -1
        return claim

    def move_to(self, fd: int) -> None:
        """The delivery file is about to be replaced by the open, unlocked `fd`, whose owner this becomes."""
        old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let others; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def base_name(capture: Path) -> str:
    """`upbit-20260102T030405Z-0011223344556677` of the sealed or the partial file."""
    return capture.name.removesuffix(".partial").removesuffix(".zst")


def capture_of(base: Path) -> Path | None:
    """The file of a capture, sealed or not; None: neither is there, or it is empty. `base` is any of its names."""
    sealed = base.with_name(base_name(base) + ".zst")
    for path in (sealed, sealed.with_name(sealed.name + ".partial")):
        try:
            if path.stat().st_size:
                return path
        except OSError:
            continue
    return None


def delivery_path(capture: Path) -> Path:
    """Where the delivery file of this capture is."""
    return capture.with_name(base_name(capture) + ".delivery.json")


def receipt_path(capture: Path) -> Path:
    """Where the receipt of this capture is."""
    return capture.with_name(base_name(capture) + ".receipt.json")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_delivery(
    capture: Path, capture_id: bytes, delivery: DeliveryInfo, *, fsync: bool = False, claim: Claim | None = None
) -> Path:
    """Say where this capture's records go. To be called before the first of them is produced.

    `claim`: held by the caller since an earlier delivery file of this capture; it goes over to the new one.
    """
    content = {
        "version": DELIVERY_VERSION,
        "capture": capture_id.hex(),
        "cluster": delivery.cluster_id,
        "template": delivery.template,
        "headers": delivery.headers,
        "partitions": dict(sorted(delivery.partitions.items())),
        "record_schema": RECORD_SCHEMA_VERSION,
    }
    if delivery.cluster_id is None:
        content["bootstrap"] = delivery.bootstrap
    return _write(delivery_path(capture), content, fsync, claim)


def begin_delivery(capture: Path, capture_id: bytes, delivery: DeliveryInfo, *, fsync: bool = False) -> Claim:
    """`write_delivery` for a file that begins, and its claim, which nobody else can have had before."""
    claim = Claim.unheld(capture)
    try:
        write_delivery(capture, capture_id, delivery, fsync=fsync, claim=claim)
    except CaptureError:
        claim.release()
        raise
    return claim


def write_receipt(
    capture: Path,
    capture_id: bytes,
    digest: str | None,
    delivery: DeliveryInfo,
    state: DeliveryState,
    *,
    recovered: bool = False,
    uncaptured: int = 0,
    missing: Missing | None = None,
    absent: bool = False,
    fsync: bool = False,
) -> Path:
    """Say that nothing of this capture is left to deliver, and where it is.

    `missing`: the capture is not whole. `absent`: there is no capture; what is said holds as long as there is none.
    """
    content = {
        "version": DELIVERY_VERSION,
        "capture": capture_id.hex(),
        "file": base_name(capture) + ".zst",
        "digest": digest if missing is None else None,
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
    if recovered:
        content["recovered"] = True
    if uncaptured:
        content["uncaptured"] = uncaptured
    if missing is not None:
        content["whole"] = False
        content["missing"] = msgspec.to_builtins(missing)
    if absent:
        content["absent"] = True
    return _write(receipt_path(capture), content, fsync)


def _write(path: Path, content: dict[str, Any], fsync: bool, claim: Claim | None = None) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_small(temporary, orjson.dumps(content, option=_JSON), fsync=fsync)
        if claim is not None:
            claim.move_to(os.open(temporary, os.O_RDONLY | os.O_CLOEXEC))
        temporary.replace(path)
        if fsync:
            sync_directory(path.parent)
    except OSError as error:
        raise write_error(error, path, "write it") from error
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


def read_delivery(capture: Path) -> DeliveryFile | None:
    """The delivery file of a capture; None: there is none, so nothing of it was ever to go to Kafka.

    Raises CaptureError for one that cannot be read or understood.
    """
    return _read(delivery_path(capture), DeliveryFile)


def read_receipt(capture: Path) -> Receipt | None:
    """The receipt of a capture; None: there is none. Raises CaptureError for one that cannot be read or understood."""
    return _read(receipt_path(capture), Receipt)


def has_receipt(capture: Path) -> bool:
    """Whether nothing of the capture is left to deliver; `capture` is any of its names.

    A receipt that cannot be read (a power cut tore it) counts as none: a delivery finds everything there and writes it
    anew. One of a newer kcs counts.
    """
    try:
        receipt = read_receipt(capture)
        return receipt is not None and not (receipt.absent and capture_of(capture) is not None)
    except NewerFormatError:
        return True
    except CaptureError:
        return False


def _read(path: Path, kind: type[T]) -> T | None:
    content = read_small(path, FILE_BYTES_MAX)
    if content is None:
        return None
    try:
        version = msgspec.json.decode(content, type=_Versioned).version
        if version > DELIVERY_VERSION:
            what = f"version {version}; this kcs reads up to {DELIVERY_VERSION}"
            raise NewerFormatError(what, where=str(path), remedy="upgrade kcs: pip install -U kcs")
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, why: str) -> CaptureError:
    return CaptureError(
        f"it cannot be read: {why}",
        where=str(path),
        remedy="put it right or move it away; kcs replay delivers the capture into topics of its own",
    )
