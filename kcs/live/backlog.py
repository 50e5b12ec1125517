"""What earlier runs of an exchange left in a directory: captures to seal, and captures to deliver.

    seal_left(directory, exchange, log)
        seals every `.partial` whose writer is dead, in place
    left_captures(directory, exchange, cluster_id, bootstrap, log)
        what is left to deliver to this cluster, oldest first; each goes to `kcs.deliver.deliver`

`log(level, text)` is told of each file that is passed over, and why: no file here may keep a run from starting. Both
block on the disk (`seal_left` reads whole files: 10 to 20 s a GB): call them in a thread. Both may run while a run of
this exchange captures into the same directory: what is being written is under a lock and left alone.
Raise CaptureError only where the directory itself cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kcs.capture.format import CaptureHeader
from kcs.capture.leftover import PARTIAL, SealedLeftover, seal_in_place
from kcs.capture.osfile import assert_not_locked
from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureBusyError, CaptureError
from kcs.live.receipt import Claim, DeliveryFile, base_name, delivery_path, has_receipt, read_delivery

Log = Callable[[str, str], None]
"""log(level, text); level is `info`, `warning` or `error`."""

_DEFAULT_PORT = "9092"


def seal_left(directory: Path, exchange: str, log: Log) -> list[SealedLeftover]:
    """Seal what dead runs of the exchange left; what was sealed, oldest name first.

    What cannot be sealed (a full disk, no permission, nothing readable in it) stays as it is, with a warning; it can
    still be delivered from the `.partial`.
    """
    sealed = []
    for partial in _files(directory, f"{exchange}-*.zst{PARTIAL}"):
        try:
            if not _belongs(partial, exchange):
                continue
            done = seal_in_place(partial)
        except CaptureBusyError:
            continue
        except CaptureError as error:
            if partial.exists():
                log("warning", f"a dead run's capture stays as it is: {error}")
            continue
        log("info", described(done))
        sealed.append(done)
    return sealed


def described(done: SealedLeftover) -> str:
    """One line about what was sealed."""
    text = f"sealed what a dead run left: {done.capture.path}, {done.capture.records:,} records"
    if done.cut:
        text += f"; an unfinished chunk of {done.cut:,} bytes at its end was cut off"
    if done.damage:
        text += f"; damaged in {len(done.damage):,} places, kcs info names them"
    return text


def left_captures(directory: Path, exchange: str, cluster_id: str, bootstrap: str, log: Log) -> list[Path]:
    """Captures with a delivery file that names this cluster and without a receipt, sealed or not, oldest first.

    The order is that of (created_ns, sequence) in their headers. A capture whose delivery began while the broker was
    away names no cluster but the brokers' addresses; it belongs here if `bootstrap` has one of them.
    """
    found: list[tuple[int, int, str, Path]] = []
    for file in _files(directory, f"{exchange}-*.delivery.json"):
        base = file.with_name(file.name.removesuffix(".delivery.json"))
        try:
            if has_receipt(base):
                continue
            left = _left(base, exchange, cluster_id, bootstrap, log)
        except CaptureBusyError:
            continue  # being written, or being delivered
        except CaptureError as error:
            log("warning", f"not delivered: {error}")
            continue
        if left is not None:
            path, header = left
            found.append((header.created_ns, header.sequence, path.name, path))
    return [path for *_, path in sorted(found)]


def _left(base: Path, exchange: str, cluster_id: str, bootstrap: str, log: Log) -> tuple[Path, CaptureHeader] | None:
    """The capture of a delivery file, if it is this exchange's and there is something to deliver here."""
    delivery = read_delivery(base)
    if delivery is None:
        return None
    path = capture_of(base)
    if path is None:
        log("warning", f"{delivery_path(base)} names a capture that was not delivered to its end and is not there")
        return None
    with CaptureReader(path, strict=False) as reader:
        header = reader.header
    if header.exchange != exchange:
        return None
    if path.name.endswith(PARTIAL):
        assert_not_locked(path)  # first: the claim of a file that just begins must not be in its writer's way
    Claim(path).release()
    if not _meant_for(delivery, cluster_id, bootstrap):
        where = (
            f"cluster {delivery.cluster}" if delivery.cluster is not None else f"the brokers at {delivery.bootstrap}"
        )
        log("warning", f"{path} is not delivered to its end: it belongs to {where}, and this is cluster {cluster_id}")
        return None
    return path, header


def capture_of(base: Path) -> Path | None:
    """The file of a capture, sealed or not; None: neither is there. `base` is any of its names."""
    sealed = base.with_name(base_name(base) + ".zst")
    for path in (sealed, sealed.with_name(sealed.name + PARTIAL)):
        if path.exists():
            return path
    return None


def _meant_for(delivery: DeliveryFile, cluster_id: str, bootstrap: str) -> bool:
    if delivery.cluster is not None:
        return delivery.cluster == cluster_id
    return bool(_servers(delivery.bootstrap) & _servers(bootstrap))


def _servers(bootstrap: str) -> set[str]:
    """The addresses of `host[:port],...`, each with its port."""
    named = {part.strip() for part in bootstrap.split(",") if part.strip()}
    return {name if name.rpartition(":")[2].isdigit() else f"{name}:{_DEFAULT_PORT}" for name in named}


def _belongs(path: Path, exchange: str) -> bool:
    """Whether it is this exchange's: the name alone cannot tell `a-b` from `a`."""
    with CaptureReader(path, strict=False) as reader:
        return reader.header.exchange == exchange


def _files(directory: Path, pattern: str) -> list[Path]:
    """Files of the directory by name. Raises CaptureError where it cannot be read."""
    try:
        return sorted(directory.glob(pattern))
    except OSError as error:
        raise CaptureError(f"cannot read: {error.strerror or error}", where=str(directory)) from error
