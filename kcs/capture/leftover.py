"""Seals in place what a dead collector left: the `.partial` becomes the sealed capture, not a byte of it is copied.

Contract: whoever gets the file's lock may seal it. Every chunk is read and checked, one at a time; an unfinished chunk
at the end is cut off (its records were never whole on disk: they are lost with the process, like those in its memory);
index and trailer are appended, the file is synced and renamed, the directory synced. Damage in the middle stays where
it is: the index passes over it and the summary's `recovered` names it, so that holes show as after `recover`. When the
disk refuses, the `.partial` is as it was (without the unfinished end) and stays readable.

Time goes with the records, not with the bytes written: reading, checking and counting all of them. Blocks: call it in
a thread. Times in ns since the Unix epoch, sizes in bytes. Callers: `kcs.live.backlog`, `kcs recover --produce`.
Raises: `CaptureBusyError` while the writer lives, `CaptureWriteError` for what the system refuses, `NotACaptureError`
and `DamagedCaptureError` where nothing can be read, `NewerFormatError`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kcs.capture.format import DESCRIPTOR_BYTES, CaptureHeader
from kcs.capture.osfile import exists, lock_existing, write_error
from kcs.capture.output import CaptureFile, SealedCapture
from kcs.capture.reader import CaptureReader
from kcs.capture.tally import Damage
from kcs.errors import CaptureError, CaptureWriteError, DamagedCaptureError

PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True)
class SealedLeftover:
    """A capture that was sealed in place.

    `cut`: bytes of the unfinished chunk at its end. `damage`: what is damaged before that, left where it is.
    """

    capture: SealedCapture
    header: CaptureHeader
    cut: int
    damage: tuple[Damage, ...]


def seal_in_place(partial: Path) -> SealedLeftover:
    """Seal `NAME.zst.partial` as `NAME.zst`. See the module docstring."""
    if not partial.name.endswith(PARTIAL):
        raise CaptureError("not the name of an unsealed capture", where=str(partial), remedy=f"name a *.zst{PARTIAL}")
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    fd = lock_existing(partial)
    file: CaptureFile | None = None
    try:
        if exists(final):
            what = f"{final.name} exists already beside it"
            raise CaptureWriteError(what, where=str(partial), remedy="compare them (kcs info) and move one away")
        with CaptureReader(partial, strict=False) as reader:
            file = CaptureFile.adopt(fd, os.fstat(fd).st_size, partial, final, reader.header)
            return _rename(file, reader) if reader.sealed else _seal(file, reader)
    except OSError as exc:
        raise write_error(exc, partial, "seal it") from exc
    finally:
        if file is None:
            os.close(fd)
        else:
            file.abandon()


def _rename(file: CaptureFile, reader: CaptureReader) -> SealedLeftover:
    """Its writer died between the last byte and the rename."""
    info = reader.info()
    file.sync()
    sealed = file.publish(info.bytes)
    sealed = replace(sealed, records=info.records, first_ns=info.first_ns, last_ns=info.last_ns)
    return SealedLeftover(sealed, reader.header, 0, info.recovered)


def _seal(file: CaptureFile, reader: CaptureReader) -> SealedLeftover:
    kept_end = reader.start
    for chunk, batches in reader.decoded():
        file.keep(chunk.offset, chunk.meta, batches)
        kept_end = chunk.offset + DESCRIPTOR_BYTES + chunk.meta.stored_bytes
    damage = list(reader.damage)
    if damage and damage[0].offset == 0 and not file.tally.chunks:
        raise DamagedCaptureError("neither its header nor any chunk can be read", where=str(reader.path))
    cut = 0
    torn = reader.unfinished()
    if torn is not None:
        damage[-1] = torn
        cut = torn.length
        file.cut(torn.offset)
    else:
        # what lies behind is an index that was begun
        file.cut(max([kept_end, *(one.offset + one.length for one in damage)]))
        _count_lost_at_end(file, damage)
    return SealedLeftover(file.seal(damage), reader.header, cut, tuple(damage if torn is None else damage[:-1]))


def _count_lost_at_end(file: CaptureFile, damage: Sequence[Damage]) -> None:
    """A chunk that is lost at the end leaves a hole there, if its descriptor says how many records it had."""
    last = damage[-1] if damage else None
    if last is not None and last.records_lost and last.first_number is not None:
        file.tally.skip_to(last.first_number + last.records_lost)
