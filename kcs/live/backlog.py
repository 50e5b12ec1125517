"""What earlier runs of an exchange left in a directory: captures to seal, and captures to deliver.

    seal_left(directory, exchange, log)
        seals every `.partial` whose writer is dead, in place
    left_captures(directory, exchange, cluster_id, bootstrap, log)
        what is left to deliver to this cluster, oldest first; each goes to `kcs.deliver.deliver`

`log(level, text)` is told what is passed over, and why (in one line what goes to one other cluster): no file here may
keep a run from starting. Both block on the disk (`seal_left` reads whole files: 10 to 20 s a GB): call them in a
thread. Both may run while a run of this exchange captures into the same directory: what is being written is under a
lock and left alone. Raise CaptureError only where the directory itself cannot be read.
"""

from __future__ import annotations

import calendar
import re
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kcs.capture.leftover import PARTIAL, SealedLeftover, seal_in_place
from kcs.capture.osfile import assert_not_locked, remove_stale
from kcs.capture.reader import CaptureReader
from kcs.clock import NS_PER_S, SystemClock
from kcs.errors import CaptureBusyError, CaptureError
from kcs.live.receipt import Claim, DeliveryFile, base_name, capture_of, has_receipt, read_delivery

Log = Callable[[str, str], None]
"""log(level, text); level is `info`, `warning` or `error`."""

EMPTY_AGE_NS: Final = 60 * NS_PER_S
_DEFAULT_PORT: Final = "9092"
_NAME: Final = re.compile(r"(.+)-(\d{8}T\d{6}Z)-[0-9a-f]{16}")


def seal_left(directory: Path, exchange: str, log: Log) -> list[SealedLeftover]:
    """Seal what dead runs of the exchange left; what was sealed, oldest name first.

    What cannot be sealed (a full disk, no permission, nothing readable in it) stays as it is, with a warning; it can
    still be delivered from the `.partial`. An empty file, of a run that died before it wrote a byte, is removed once it
    is `EMPTY_AGE_NS` old: before that its writer may just have made it and not yet have its lock.
    """
    sealed = []
    for partial in _files(directory, f"{exchange}-*.zst{PARTIAL}"):
        try:
            if _is_empty(partial, log) or not _belongs(partial, exchange):
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


def _is_empty(partial: Path, log: Log) -> bool:
    """Whether there is not a byte in it; then it is removed, if it is old enough."""
    try:
        status = partial.lstat()
    except OSError:
        return False  # who opens it says why
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    if SystemClock().wall_ns() - status.st_mtime_ns > EMPTY_AGE_NS:
        remove_stale(partial)
        log("info", f"removed an empty file of a dead run: {partial}")
    return True


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

    The order is that of (created_ns, sequence) in their headers. Where a delivery file has no capture beside it, the
    sealed name is given all the same: what is in Kafka of it has to be counted. A capture whose delivery began while
    the broker was away names no cluster but brokers; it belongs here if `bootstrap` has one of their addresses.
    """
    found: list[tuple[int, int, str, Path]] = []
    elsewhere: dict[str, list[Path]] = {}
    for file in _files(directory, f"{exchange}-*.delivery.json"):
        base = file.with_name(file.name.removesuffix(".delivery.json"))
        try:
            left = None if has_receipt(base) else _left(base, exchange)
            delivery = None if left is None else read_delivery(base)
            if left is None or delivery is None:
                continue
            where = _elsewhere(delivery, cluster_id, bootstrap)
            if where is None:
                found.append(left)
            else:
                elsewhere.setdefault(where, []).append(left[-1])
        except CaptureBusyError:
            continue  # being written, or being delivered
        except CaptureError as error:
            log("warning", f"not delivered: {error}")
    for where, paths in elsewhere.items():
        log("warning", _told(paths, where, cluster_id))
    return [path for *_, path in sorted(found)]


def _left(base: Path, exchange: str) -> tuple[int, int, str, Path] | None:
    """(created_ns, sequence, name, path) of a delivery file's capture; None: it is another exchange's.

    Raises CaptureBusyError while somebody has it.
    """
    path = capture_of(base)
    if path is None:
        named = _NAME.fullmatch(base.name)
        if named is None or named[1] != exchange:
            return None
        Claim(base).release()
        return begun_ns(base), 0, base.name, base.with_name(f"{base.name}.zst")
    with CaptureReader(path, strict=False) as reader:
        header = reader.header
    if header.exchange != exchange:
        return None
    if path.name.endswith(PARTIAL):
        assert_not_locked(path)
    Claim(path).release()
    return header.created_ns, header.sequence, path.name, path


def begun_ns(capture: Path) -> int:
    """When it began, by its name, to the second; 0 where the name does not say."""
    named = _NAME.fullmatch(base_name(capture))
    try:
        return 0 if named is None else calendar.timegm(time.strptime(named[2], "%Y%m%dT%H%M%SZ")) * NS_PER_S
    except ValueError:
        return 0


def _elsewhere(delivery: DeliveryFile, cluster_id: str, bootstrap: str) -> str | None:
    """Where it goes if not to this cluster."""
    if delivery.cluster is None:
        return None if _servers(delivery.bootstrap) & _servers(bootstrap) else f"the brokers at {delivery.bootstrap}"
    return None if delivery.cluster == cluster_id else f"cluster {delivery.cluster}"


def _told(paths: Sequence[Path], where: str, cluster_id: str) -> str:
    """One line about captures that go elsewhere: there may be thousands."""
    named = f"{paths[0]}" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more like it"
    return (
        f"not delivered to the end: {named}: meant for {where}, and this is cluster {cluster_id};"
        " kcs recover --produce FILE... -b HOST:PORT delivers what is left"
    )


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
