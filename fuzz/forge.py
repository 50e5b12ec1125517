"""Bytes to capture files whose checksums are right, so that a fuzzer gets behind them.

A fuzzer that flips bits of a real capture is stopped by the first checksum. `forge` reads its input as a list of
instructions instead, each an operation (1 byte), a length (2 bytes, big-endian) and so much data, and builds what they
say with the codec of kcs: headers, chunks and indexes that are well-formed outside and hostile inside, or raw bytes.
Any input is a list of instructions; what is missing at its end counts as empty. Deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final
from zlib import crc32

import zstandard

from kcs.capture.format import (
    CHUNK_RECORDS_MAX,
    FRAME,
    HEADER_FIXED_BYTES,
    MAGIC,
    SKIPPABLE_MAGIC,
    VERSION,
    ChunkMeta,
    encode_descriptor,
    encode_index,
    pack_entry,
)
from kcs.capture.records import RECORD

CAPTURE_ID: Final = bytes(range(8))
START_NS: Final = 1_700_000_000_000_000_000

_HEAD: Final = Struct(">BH")
_HEADER: Final = Struct("<II8sHHI8sI")
_COMPRESS: Final = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True).compress
_INSTRUCTIONS_MAX: Final = 64


@dataclass(slots=True)
class _File:
    """What has been built so far."""

    data: bytearray
    entries: bytearray
    records: int = 0
    number: int = 0

    def put_header(self, text: bytes, version: int = VERSION) -> None:
        size = HEADER_FIXED_BYTES - FRAME.size + len(text)
        head = _HEADER.pack(SKIPPABLE_MAGIC, size, MAGIC, version, 0, len(text), CAPTURE_ID, 0)[:-4]
        self.data += head + crc32(text, crc32(head)).to_bytes(4, "little") + text

    def put_chunk(self, stored: bytes, records: int, raw_bytes: int, *, first: int, low: int, high: int) -> None:
        meta = ChunkMeta(first, records, len(stored), raw_bytes, crc32(stored), low, high)
        self.entries += pack_entry(len(self.data), meta)
        self.data += encode_descriptor(CAPTURE_ID, meta) + stored
        self.records += records
        self.number = first + records

    def put_index(self, summary: bytes, entries: bytes | None = None, *, more: int = 0) -> None:
        parts = encode_index(
            CAPTURE_ID,
            bytes(self.entries) if entries is None else entries[: len(entries) // 56 * 56],
            summary,
            offset=len(self.data),
            records=self.records,
            next_number=self.number + more,
        )
        for part in parts:
            self.data += part


def instructions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(operation, data) of each instruction."""
    at = 0
    for _ in range(_INSTRUCTIONS_MAX):
        if at >= len(data):
            return
        operation, length = _HEAD.unpack(data[at : at + 3].ljust(3, b"\0"))
        at += 3
        yield operation, data[at : at + length]
        at += length


def encode(*steps: tuple[int, bytes]) -> bytes:
    """The input that gives these instructions; for seeds."""
    return b"".join(_HEAD.pack(operation, len(data)) + data for operation, data in steps)


def records(data: bytes) -> tuple[bytes, int, int, int]:
    """Data as records: (content, count, smallest time, largest time); each is kind, stream, seconds, length, body."""
    parts, count, low, high, at = [], 0, 1 << 62, 0, 0
    while at + 5 <= len(data) and count < 512:
        kind, stream, seconds = data[at], data[at + 1], data[at + 2]
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        body = data[at + 5 : at + 5 + length]
        at += 5 + length
        recv_ns = START_NS + seconds * 1_000_000_000
        low, high = min(low, recv_ns), max(high, recv_ns)
        parts.append(RECORD.pack(recv_ns, len(body), stream, kind) + body)
        count += 1
    return b"".join(parts), count, min(low, high), high


def forge(data: bytes) -> bytes:
    """The file that these instructions describe."""
    file = _File(bytearray(), bytearray())
    for operation, content in instructions(data):
        what = operation % 10
        if what == 0:
            file.data += content
        elif what == 1:
            file.put_header(content)
        elif what == 2:  # an honest chunk
            raw, count, low, high = records(content)
            if count:
                file.put_chunk(_COMPRESS(raw), count, len(raw), first=file.number, low=low, high=high)
        elif what == 3:  # a chunk whose descriptor lies
            raw, count, low, high = records(content[6:])
            lies = content[:6].ljust(6, b"\0")
            file.put_chunk(
                _COMPRESS(raw),
                max(1, (count + lies[0] - 128) % CHUNK_RECORDS_MAX),
                max(0, len(raw) + lies[1] - 128),
                first=file.number + lies[2],
                low=low + lies[3],
                high=max(low + lies[3], high - lies[4]),
            )
        elif what == 4:  # a chunk of any content
            raw = content[2:]
            count = max(1, int.from_bytes(content[:2], "big"))
            file.put_chunk(_COMPRESS(raw), count, len(raw), first=file.number, low=START_NS, high=START_NS + 1)
        elif what == 5:  # a chunk that is no zstd frame, or a strange one
            file.put_chunk(content[4:], 1, int.from_bytes(content[:4], "big"), first=file.number, low=0, high=1)
        elif what == 6:
            file.put_index(content)
        elif what == 7:
            file.put_index(b"{}", content)
        elif what == 8:  # flip or cut
            _spoil(file.data, content)
        else:
            file.put_index(content[1:], more=content[0] if content else 0)
    return bytes(file.data)


def _spoil(data: bytearray, how: bytes) -> None:
    at = int.from_bytes(how[:3], "big")
    if not data:
        return
    if len(how) > 3:
        data[at % len(data)] ^= how[3]
    else:
        del data[at % len(data) :]
