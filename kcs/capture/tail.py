"""Follows one capture file that is still being written: its records from a number on, as whole chunks reach the disk.

Contract: what is returned has matched its checksums, in order and without a hole; a chunk that is not there whole yet
is simply not there yet. The file may be sealed and renamed meanwhile. Memory is bounded by one chunk. Never waits:
where nothing more is on disk, ask the writer (`CaptureWriter.unwritten`) or come back. One thread, not the writer's.
Raises `DamagedCaptureError` when what is there does not fit (a disk that lies), `CaptureError` when the system refuses.
Caller: kcs/live/follower.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

import zstandard

from kcs.capture.format import (
    DESCRIPTOR_BYTES,
    FRAME,
    HEADER_FIXED_BYTES,
    INDEX_TAG,
    ChunkMeta,
    Malformed,
    Newer,
    decode_descriptor,
    decode_header,
    header_json_bytes,
)
from kcs.capture.records import RawRecord, decompress, iter_batches
from kcs.errors import CaptureError, DamagedCaptureError

_PARTIAL: Final = ".partial"


class CaptureTail:
    """See the module docstring. `number`: the record that `read` returns next."""

    def __init__(self, path: Path, capture_id: bytes, *, number: int = 0, offset: int = 0) -> None:
        """`path`: the `.partial` or the sealed name. `offset`: where a chunk begins, at or before that of `number`;
        0 where the file begins. Opens nothing yet: the file may not be there."""
        self.path = path.with_name(path.name.removesuffix(_PARTIAL))
        self.number = number
        self._id = capture_id
        self._offset = offset
        self._fd = -1
        self._batches: Iterator[list[RawRecord]] = iter(())
        self._decompressor = zstandard.ZstdDecompressor()

    def read(self) -> list[RawRecord]:
        """Records from `number` on, at most 512, in order; empty when the disk has no more of them now."""
        try:
            while True:
                for batch in self._batches:
                    if not batch:
                        continue  # nothing but ancillary records
                    found = batch if batch[0][0] >= self.number else [r for r in batch if r[0] >= self.number]
                    if found:
                        self._expect(found[0][0])
                        self.number = found[-1][0] + 1
                        return found
                if not self._next_chunk():
                    return []
        except (Malformed, Newer) as exc:
            raise self._damaged(str(exc)) from exc
        except OSError as exc:
            raise CaptureError(f"cannot follow it: {exc.strerror or exc}", where=str(self.path)) from exc

    def close(self) -> None:
        """Release the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next_chunk(self) -> bool:
        """Take up the next chunk that holds `number` or later; False when it is not on disk whole."""
        while self._open():
            head = os.pread(self._fd, DESCRIPTOR_BYTES, self._offset)
            if len(head) < DESCRIPTOR_BYTES:
                return False
            if head[FRAME.size :].startswith(INDEX_TAG):
                return False  # all has been read
            _, meta = decode_descriptor(head, self._id)
            end = self._offset + DESCRIPTOR_BYTES + meta.stored_bytes
            if os.fstat(self._fd).st_size < end:
                return False
            start, self._offset = self._offset + DESCRIPTOR_BYTES, end
            if meta.next_number > self.number:
                self._batches = self._decoded(meta, os.pread(self._fd, meta.stored_bytes, start))
                return True
        return False

    def _decoded(self, meta: ChunkMeta, stored: bytes) -> Iterator[list[RawRecord]]:
        if crc32(stored) != meta.crc:
            raise Malformed(f"the checksum of the chunk from record {meta.first_number} does not match")
        raw = decompress(stored, meta.raw_bytes, self._decompressor)
        return iter_batches(raw, meta.first_number, meta.records)

    def _open(self) -> bool:
        """True when the file is open and a chunk may follow at `_offset`."""
        if self._fd < 0:
            for path in (self.path.with_name(self.path.name + _PARTIAL), self.path):
                try:
                    self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    break
                except FileNotFoundError:
                    continue
            else:
                return False
        if not self._offset:
            head = os.pread(self._fd, HEADER_FIXED_BYTES, 0)
            if len(head) < HEADER_FIXED_BYTES:
                return False
            length = HEADER_FIXED_BYTES + header_json_bytes(head)
            content = os.pread(self._fd, length, 0)
            if len(content) < length:
                return False
            if decode_header(content).capture_id != self._id:
                raise Malformed("it is another capture")
            self._offset = length
        return True

    def _expect(self, number: int) -> None:
        if number != self.number:
            raise self._damaged(f"record {self.number} is missing: the next one on disk is {number}")

    def _damaged(self, what: str) -> DamagedCaptureError:
        return DamagedCaptureError(
            f"what was just written cannot be read back: {what}",
            where=f"{self.path}, offset {self._offset}",
            remedy="check the disk; kcs verify says what is left of the capture",
        )
