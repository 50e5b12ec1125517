"""One capture file being made: header, chunks, seal. Used by one thread at a time.

Contract: `path` is created exclusively and locked; every chunk reaches it in one write, and when a write fails the
file is cut back to its last whole chunk, so the `.partial` is valid at every moment. Same calls, same bytes.
Times in ns since the Unix epoch, sizes in bytes. Raises `CaptureWriteError` for everything the system refuses and for
records that the format cannot hold. Callers: the writer's worker, recover, repack, import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from kcs.capture.format import (
    CHUNK_RAW_BYTES_MAX,
    CHUNK_RECORDS_MAX,
    INDEX_ENTRIES_MAX,
    MIB,
    CaptureHeader,
    ChunkMeta,
    Malformed,
    encode_descriptor,
    encode_header,
    encode_index,
    header_fields,
    pack_entry,
)
from kcs.capture.osfile import create_locked, exists, remove_stale, sync_directory, write_all, write_error
from kcs.capture.records import RECORD_HEAD_BYTES, Appended, RawRecord, compressor, encode_records
from kcs.capture.tally import Damage, Summary, Tally, fields_of
from kcs.errors import CaptureWriteError

SYNC_EVERY_BYTES: Final = 32 * MIB
"""Written data is synced this often, so that the sync at the seal has little left to do."""

_RECV_NS: Final = itemgetter(2)


@dataclass(frozen=True, slots=True)
class SealedCapture:
    """A finished file. `first_ns`/`last_ns` are the smallest and largest receive time, None without records."""

    path: Path
    capture_id: bytes
    records: int
    bytes: int
    first_ns: int | None
    last_ns: int | None


class CaptureFile:
    """A capture being written to `path`, to be renamed to `final` by `seal`."""

    __slots__ = ("_compress", "_entries", "_fd", "_fsync", "_unsynced", "end", "final", "header", "path", "tally")

    def __init__(
        self,
        path: Path,
        final: Path,
        header: CaptureHeader,
        *,
        level: int = 3,
        fsync: bool = False,
        replace: bool = False,
    ) -> None:
        """Create it and write the header. `replace`: `final` may exist and is replaced by the seal."""
        if not replace and exists(final):
            raise CaptureWriteError(
                "it exists already",
                where=str(final),
                remedy="choose another name; nothing is overwritten without --force",
            )
        try:
            head = encode_header(header)
        except Malformed as exc:
            raise CaptureWriteError(f"cannot describe this capture: {exc}", where=str(path)) from exc
        self.path = path
        self.final = final
        self.header = header
        self.tally = Tally()
        self.end = 0
        self._entries = bytearray()
        self._compress = compressor(level).compress
        self._fsync = fsync
        self._unsynced = 0
        self._fd = create_locked(path)
        try:
            self._put(head, "write the header")
        except CaptureWriteError:
            self.discard()
            raise

    @classmethod
    def adopt(cls, fd: int, size: int, path: Path, final: Path, header: CaptureHeader) -> CaptureFile:
        """A dead writer's file of `size` bytes, locked: `keep` names its chunks, `cut` its end, `seal` finishes it."""
        file = cls.__new__(cls)
        file.path = path
        file.final = final
        file.header = header
        file.tally = Tally()
        file.end = size
        file._entries = bytearray()
        file._compress = compressor(3).compress
        file._fsync = False
        file._unsynced = 0
        file._fd = fd
        return file

    @property
    def open(self) -> bool:
        """False after `seal` or `abandon`."""
        return self._fd >= 0

    @property
    def index_bytes(self) -> int:
        """What the index needs now, without the summary."""
        return len(self._entries)

    @property
    def chunks_full(self) -> bool:
        """True when the index is half way to its bound: time for another file."""
        return self.tally.chunks * 2 >= INDEX_ENTRIES_MAX

    def write(self, first_number: int, records: Sequence[Appended]) -> None:
        """One chunk of these records, numbered from `first_number`."""
        try:
            raw = encode_records(records)
            if len(raw) > CHUNK_RAW_BYTES_MAX or len(records) > CHUNK_RECORDS_MAX:
                raise Malformed(f"a chunk of {len(raw)} bytes and {len(records)} records exceeds the format's bounds")
            fields = fields_of(records)
        except Malformed as exc:
            raise CaptureWriteError(f"records from number {first_number}: {exc}", where=str(self.path)) from exc
        times = list(map(_RECV_NS, records))
        stored = self._compress(raw)
        meta = ChunkMeta(first_number, len(records), len(stored), len(raw), crc32(stored), min(times), max(times))
        self._append(meta, stored)
        self.tally.add_appended(records, fields)

    def copy(self, meta: ChunkMeta, stored: bytes, batches: Iterable[Sequence[RawRecord]]) -> None:
        """A chunk of another file of this capture as it is; `batches` are its records, for the summary."""
        self._append(meta, stored)
        for batch in batches:
            self.tally.add_read(batch)

    def keep(self, offset: int, meta: ChunkMeta, batches: Iterable[Sequence[RawRecord]]) -> None:
        """A chunk that stands at `offset` of an adopted file; `batches` are its records, for the summary."""
        if self.tally.chunks == INDEX_ENTRIES_MAX:
            raise CaptureWriteError(f"it has more than {INDEX_ENTRIES_MAX} chunks", where=str(self.path))
        self._entries += pack_entry(offset, meta)
        self.tally.add_chunk(meta)
        for batch in batches:
            self.tally.add_read(batch)

    def cut(self, end: int) -> None:
        """Take away what lies behind `end`; the index goes there. Raises `CaptureWriteError`."""
        self.end = end
        try:
            os.ftruncate(self._fd, end)
            os.lseek(self._fd, end, os.SEEK_SET)
        except OSError as exc:
            raise write_error(exc, self.path, "cut its torn end") from exc

    def sync(self) -> None:
        """Make what was written last. Raises `CaptureWriteError`."""
        try:
            os.fsync(self._fd)
        except OSError as exc:
            raise write_error(exc, self.path, "sync it") from exc

    def write_content(self, first_number: int, records: int, raw: bytes, first_ns: int, last_ns: int) -> None:
        """A chunk of this content; its records are not counted, the seal needs a summary made elsewhere."""
        stored = self._compress(raw)
        self._append(ChunkMeta(first_number, records, len(stored), len(raw), crc32(stored), first_ns, last_ns), stored)

    def _append(self, meta: ChunkMeta, stored: bytes) -> None:
        if meta.first_number < self.tally.next_number:
            raise CaptureWriteError(
                f"record numbers would run back from {self.tally.next_number} to {meta.first_number}",
                where=str(self.path),
            )
        offset = self.end
        self._put(encode_descriptor(self.header.capture_id, meta) + stored, "write")
        self._entries += pack_entry(offset, meta)
        self.tally.add_chunk(meta)

    def _put(self, data: bytes, doing: str) -> None:
        try:
            write_all(self._fd, data)
            self._unsynced += len(data)
            if self._fsync or self._unsynced >= SYNC_EVERY_BYTES:
                os.fdatasync(self._fd)
                self._unsynced = 0
        except OSError as exc:
            self._cut_back()
            raise write_error(exc, self.path, doing) from exc
        self.end += len(data)

    def _cut_back(self) -> None:
        """Take away what a failed write left. When that fails too, the disk's first complaint is the one to report."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.end)
            os.lseek(self._fd, self.end, os.SEEK_SET)

    def seal(self, recovered: Sequence[Damage] = ()) -> SealedCapture:
        """Index, sync, rename, sync of the directory. When it fails the `.partial` is as it was, and still open.

        `recovered`: the damage of the file that this one was recovered from.
        """
        return self.publish(self.finish(self.tally.summary(header_fields(self.header), recovered)))

    def finish(self, summary: Summary) -> int:
        """Write the index and sync; the file is then complete under its temporary name. Returns its size."""
        parts = encode_index(
            self.header.capture_id,
            bytes(self._entries),
            msgspec.json.encode(summary),
            offset=self.end,
            records=self.tally.records,
            next_number=self.tally.next_number,
        )
        try:
            for part in parts:
                write_all(self._fd, part)
            os.fsync(self._fd)
        except OSError as exc:
            self._cut_back()
            raise write_error(exc, self.path, "seal the capture") from exc
        return self.end + sum(map(len, parts))

    def publish(self, size: int) -> SealedCapture:
        """Rename the finished file of `size` bytes to its final name, and make the name last."""
        try:
            self.path.rename(self.final)
        except OSError as exc:
            self._cut_back()
            raise write_error(exc, self.path, "seal the capture") from exc
        self.abandon()
        try:
            sync_directory(self.final.parent)
        except OSError as exc:
            raise write_error(exc, self.final, "make the sealed capture's name last") from exc
        tally = self.tally
        return SealedCapture(self.final, self.header.capture_id, tally.records, size, tally.first_ns, tally.last_ns)

    def abandon(self) -> None:
        """Close the descriptor and leave the file as it is; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Close and remove the unfinished file."""
        if self._fd >= 0:
            self.abandon()
            with contextlib.suppress(OSError):
                self.path.unlink()


def temporary_path(target: Path) -> Path:
    """Where a tool's new file stands until it is sealed."""
    return target.with_name(target.name + ".tmp")


def refuse_source(source: Path | int, target: Path) -> None:
    """Raises `CaptureWriteError` when making `target` would remove `source`, a path or an open file's descriptor.

    The temporary file counts too: a dead tool's is replaced, and it may be what is to be read.
    """
    for path in (target, temporary_path(target)):
        try:
            same = os.path.samestat(os.stat(source), path.stat())
        except OSError:
            continue  # one of them is not there; who opens it says so
        if same:
            what = "source and target are the same file"
            raise CaptureWriteError(what, where=str(path), remedy="name another target")


@contextlib.contextmanager
def making(target: Path, header: CaptureHeader, *, level: int = 3, force: bool = False) -> Iterator[CaptureFile]:
    """A file for tools, `TARGET.tmp` until sealed, removed when anything fails; a dead tool's `.tmp` is replaced.

    `force`: an existing `target` is replaced by the seal. Raises `CaptureWriteError`, `CaptureBusyError`.
    """
    path = temporary_path(target)
    remove_stale(path)
    file = CaptureFile(path, target, header, level=level, replace=force)
    try:
        yield file
    finally:
        file.discard()


class ChunkPacker:
    """Gathers numbered records into chunks of about `chunk_bytes` and writes them to a file.

    A jump in the numbers ends a chunk, since numbers inside a chunk are implicit. Call `flush` at the end.
    """

    __slots__ = ("_bytes", "_chunk_bytes", "_file", "_first", "_records")

    def __init__(self, file: CaptureFile, chunk_bytes: int) -> None:
        self._file = file
        self._chunk_bytes = min(chunk_bytes, 16 * MIB)
        self._records: list[Appended] = []
        self._first = 0
        self._bytes = 0

    def add(self, number: int, record: Appended) -> None:
        """Take a record; `number` must be larger than the one before."""
        if number != self._first + len(self._records):
            self.flush()
        if not self._records:
            self._first = number
        self._records.append(record)
        self._bytes += RECORD_HEAD_BYTES + len(record[3])
        if self._bytes >= self._chunk_bytes or len(self._records) == CHUNK_RECORDS_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        if self._records:
            self._file.write(self._first, self._records)
            self._records = []
            self._bytes = 0
