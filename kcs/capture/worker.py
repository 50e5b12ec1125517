"""The side of a capture writer that touches files: encodes, compresses, writes, rotates and seals.

Contract: called by one thread, the worker's, or by the caller where there is none. Raises `CaptureWriteError` for all
that the disk refuses. Caller: writer.py only.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kcs.capture.format import MIB, CaptureHeader
from kcs.capture.osfile import DirectoryLock, write_error
from kcs.capture.output import CaptureFile, SealedCapture
from kcs.capture.records import Appended
from kcs.clock import NS_PER_S
from kcs.errors import UsageError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """How to write. A chunk is handed over at three fifths of `flush_ns`; the rest is for timer and disk."""

    flush_ns: int = 250_000_000
    chunk_bytes_max: int = MIB // 8
    """Small: compressing competes with the event loop for the core, a chunk at a time. `repack` makes them large."""
    level: int = 3
    size_max: int | None = None
    age_max_ns: int | None = None
    fsync: bool = False
    threaded: bool = True
    queue_bytes_max: int = 64 * MIB
    reserve_bytes: int = 1 * MIB


@dataclass(frozen=True, slots=True)
class PendingChunk:
    """Records on their way to the worker. `bytes`: their size as content."""

    capture_id: bytes
    first_number: int
    records: list[Appended]
    bytes: int


@dataclass(frozen=True, slots=True)
class NextFile:
    """Seal the current file, whose next record would have number `ended`, and begin one with this header."""

    header: CaptureHeader
    ended: int


Job = PendingChunk | NextFile | None
"""What the worker is given; None ends it."""


def capture_name(header: CaptureHeader) -> str:
    """The sealed file's name: `{exchange}-{UTC start}-{id}.zst`. Raises `UsageError` for an unusable exchange name."""
    if not _NAME.fullmatch(header.exchange):
        raise UsageError(f"exchange name {header.exchange!r} cannot be part of a file name", remedy="a-z, 0-9, - and _")
    start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(header.created_ns // NS_PER_S))
    return f"{header.exchange}-{start}-{header.capture_id.hex()}.zst"


class Worker:
    """Writes files. Its methods run in the worker thread, or in the caller when there is none."""

    __slots__ = ("_directory", "_lock", "_settings", "broken", "ended", "file", "sealed", "written")

    def __init__(self, directory: Path, lock: DirectoryLock, header: CaptureHeader, settings: WriterSettings) -> None:
        self._directory = directory
        self._lock = lock
        self._settings = settings
        self.sealed: list[SealedCapture] = []
        """The files of this run so far. Grows by one small entry a rotation, by nothing that arrives from outside."""
        self.written = 0
        self.broken = False
        self.ended: int | None = None
        """After a failure: the number at which the current file should have ended."""
        self._reserve(0)
        self.file: CaptureFile = self._create(header)

    def _create(self, header: CaptureHeader) -> CaptureFile:
        final = self._directory / capture_name(header)
        partial = final.with_name(final.name + ".partial")
        return CaptureFile(partial, final, header, level=self._settings.level, fsync=self._settings.fsync)

    def _reserve(self, index_bytes: int) -> None:
        """Keep room for the index and its summary, growing in steps before the index needs it."""
        step = self._settings.reserve_bytes
        if step and index_bytes + step // 2 > self._lock.reserved_bytes:
            try:
                self._lock.reserve(index_bytes + step)
            except OSError as exc:
                raise write_error(exc, self._lock.path, "reserve space for the index") from exc

    def write(self, chunk: PendingChunk) -> None:
        """Raises `CaptureWriteError`."""
        self.file.write(chunk.first_number, chunk.records)
        self.written += len(chunk.records)
        self._reserve(self.file.index_bytes)

    def rotate(self, header: CaptureHeader) -> None:
        """Seal and begin the next. Raises `CaptureWriteError`."""
        self.sealed.append(self.file.seal())
        self.file = self._create(header)

    def close(self, *, disk_failed: bool) -> None:
        """Seal the last file, from the reserve if need be. Raises `CaptureWriteError`; the `.partial` then stays."""
        try:
            if disk_failed:
                with contextlib.suppress(OSError):
                    self._lock.give_back()
            if self.file.open:
                self.file.tally.skip_to(self.ended or 0)  # what is missing at the end must show
                self.sealed.append(self.file.seal())
        finally:
            self.file.abandon()
            with contextlib.suppress(OSError):
                self._lock.release()


def partial_path(directory: Path, header: CaptureHeader) -> Path:
    """Where the file stands while it is written."""
    return directory / f"{capture_name(header)}.partial"
