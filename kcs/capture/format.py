"""The codec of the frames of a capture file: bytes to values and back, as FORMAT.md says. No file, no clock, no thread.

What is inside a chunk is in `records.py`.

Contract: encoders return exactly the bytes of FORMAT.md; decoders take bytes that may be anything and either return
what those bytes say or raise `Malformed` (damaged) or `Newer` (a later version). Every length is compared with its
named bound before anyone allocates by it. Units: times in ns since the Unix epoch, sizes in bytes.
Callers: writer, reader and tools of this package, which turn `Malformed` and `Newer` into the typed errors of
`kcs.errors` with file and offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, TypeVar, cast
from zlib import crc32

import msgspec

VERSION: Final = 1

MIB: Final = 1024 * 1024
HEADER_JSON_BYTES_MAX: Final = 1 * MIB
PAYLOAD_BYTES_MAX: Final = 64 * MIB
CHUNK_RAW_BYTES_MAX: Final = 96 * MIB
CHUNK_STORED_BYTES_MAX: Final = 97 * MIB
CHUNK_RECORDS_MAX: Final = 262_144
INDEX_ENTRIES_MAX: Final = 4_194_304
SUMMARY_BYTES_MAX: Final = 8 * MIB
FRAME: Final = Struct("<II")
SKIPPABLE_MAGIC: Final = 0x184D2A5C
MAGIC: Final = b"\x89KCS\r\n\x1a\n"
CHUNK_TAG: Final = b"CHNK"
INDEX_TAG: Final = b"INDX"
END_MAGIC: Final = b"kcs end\n"

_HEADER: Final = Struct("<II8sHHI8sI")
_DESCRIPTOR: Final = Struct("<II4s8sHHQIIIIQQII")
_INDEX_HEAD: Final = Struct("<II4s8sHH")
_TRAILER: Final = Struct("<QQQIIII8sHHI8s")
ENTRY: Final = Struct("<QQIIIIQQ")
_LENGTH: Final = Struct("<I")

HEADER_FIXED_BYTES: Final = _HEADER.size
DESCRIPTOR_BYTES: Final = _DESCRIPTOR.size
INDEX_HEAD_BYTES: Final = _INDEX_HEAD.size
TRAILER_BYTES: Final = _TRAILER.size
ENTRY_BYTES: Final = ENTRY.size

Option = str | int | float | bool | Sequence[str] | None
"""A value in a header's options."""

T = TypeVar("T")


class Malformed(ValueError):
    """The bytes are not what the format says; the text says how, without file or offset."""


class Newer(ValueError):
    """The bytes use something that a later version of the format defines."""


@dataclass(frozen=True, slots=True)
class CaptureHeader:
    """What a capture says about itself. `options` is everything that changes the records produced from it."""

    capture_id: bytes
    run_id: bytes
    exchange: str
    url: str
    created_ns: int
    kcs_version: str
    sequence: int = 0
    options: Mapping[str, Option] = field(default_factory=dict)
    seed: int | None = None
    host: str = ""


class HeaderFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """The header as JSON; ids as hex text."""

    capture_id: str
    run_id: str
    exchange: str
    url: str
    created_ns: int
    kcs_version: str
    sequence: int = 0
    options: dict[str, str | int | float | bool | list[str] | None] = {}
    seed: int | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class ChunkMeta:
    """What a descriptor and an index entry both say about a chunk. `first_ns`/`last_ns`: smallest and largest time."""

    first_number: int
    records: int
    stored_bytes: int
    raw_bytes: int
    crc: int
    first_ns: int
    last_ns: int

    @property
    def next_number(self) -> int:
        """The number after its last record."""
        return self.first_number + self.records


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 64 bytes of a sealed file."""

    index_offset: int
    records: int
    next_number: int
    entries: int
    entries_crc: int
    summary_bytes: int
    summary_crc: int
    capture_id: bytes


# ---------------------------------------------------------------- header


def header_fields(header: CaptureHeader) -> HeaderFields:
    """The header in its JSON shape."""
    options = {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in header.options.items()}
    return HeaderFields(
        capture_id=header.capture_id.hex(),
        run_id=header.run_id.hex(),
        exchange=header.exchange,
        url=header.url,
        created_ns=header.created_ns,
        kcs_version=header.kcs_version,
        sequence=header.sequence,
        options=cast("dict[str, str | int | float | bool | list[str] | None]", options),
        seed=header.seed,
        host=header.host,
    )


def header_of_fields(fields: HeaderFields) -> CaptureHeader:
    """Back from JSON. Raises `Malformed` when an id is not 8 bytes of hex."""
    try:
        capture_id, run_id = bytes.fromhex(fields.capture_id), bytes.fromhex(fields.run_id)
    except ValueError as exc:
        raise Malformed(f"an id in the header is not hex: {exc}") from exc
    if len(capture_id) != 8 or len(run_id) != 8:
        raise Malformed("an id in the header is not 8 bytes")
    return CaptureHeader(
        capture_id=capture_id,
        run_id=run_id,
        exchange=fields.exchange,
        url=fields.url,
        created_ns=fields.created_ns,
        kcs_version=fields.kcs_version,
        sequence=fields.sequence,
        options=fields.options,
        seed=fields.seed,
        host=fields.host,
    )


def encode_header(header: CaptureHeader) -> bytes:
    """The header frame. Raises `Malformed` when an id is not 8 bytes or the JSON exceeds its bound."""
    if len(header.capture_id) != 8 or len(header.run_id) != 8:
        raise Malformed("capture_id and run_id are 8 bytes each")
    text = msgspec.json.encode(header_fields(header))
    if len(text) > HEADER_JSON_BYTES_MAX:
        raise Malformed(f"header JSON of {len(text)} bytes; at most {HEADER_JSON_BYTES_MAX}")
    size = HEADER_FIXED_BYTES - FRAME.size + len(text)
    head = _HEADER.pack(SKIPPABLE_MAGIC, size, MAGIC, VERSION, 0, len(text), header.capture_id, 0)[:-4]
    return head + _LENGTH.pack(crc32(text, crc32(head))) + text


def looks_like_header(data: bytes) -> bool:
    """True when `data` begins as a capture does (frame magic and kcs magic)."""
    return data[:4] == _LENGTH.pack(SKIPPABLE_MAGIC) and data[8:16] == MAGIC


def header_json_bytes(data: bytes) -> int:
    """Size of the JSON that follows the fixed part in `data`; raises `Malformed` beyond the bound."""
    if len(data) < HEADER_FIXED_BYTES or not looks_like_header(data):
        raise Malformed("no capture header")
    _, size, _, _, _, length, _, _ = _HEADER.unpack_from(data)
    if length > HEADER_JSON_BYTES_MAX or size != HEADER_FIXED_BYTES - FRAME.size + length:
        raise Malformed(f"impossible header length {length}")
    return cast(int, length)


def decode_header(data: bytes) -> CaptureHeader:
    """The header frame, whole. Raises `Malformed` or `Newer`; the latter only when the checksum holds."""
    length = header_json_bytes(data)
    _, _, _, version, flags, _, capture_id, crc = _HEADER.unpack_from(data)
    text = data[HEADER_FIXED_BYTES : HEADER_FIXED_BYTES + length]
    if len(text) != length:
        raise Malformed(f"header cut: {len(text)} of {length} bytes")
    if crc32(text, crc32(data[: HEADER_FIXED_BYTES - 4])) != crc:
        raise Malformed("header checksum does not match")
    if version > VERSION or flags:
        raise Newer(f"format version {version}, flags {flags:#06x}; this kcs reads up to version {VERSION}")
    if version == 0:
        raise Malformed("format version 0")
    header = header_of_fields(decode_json(text, HeaderFields))
    if header.capture_id != capture_id:
        raise Malformed("the two capture ids of the header differ")
    return header


def decode_json(text: bytes, kind: type[T]) -> T:
    """JSON to a typed value; raises `Malformed`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"bad JSON: {exc}") from exc


# ---------------------------------------------------------------- chunk


def encode_descriptor(capture_id: bytes, meta: ChunkMeta) -> bytes:
    """The descriptor frame of a chunk."""
    head = _DESCRIPTOR.pack(
        SKIPPABLE_MAGIC,
        DESCRIPTOR_BYTES - FRAME.size,
        CHUNK_TAG,
        capture_id,
        0,
        0,
        meta.first_number,
        meta.records,
        meta.stored_bytes,
        meta.raw_bytes,
        meta.crc,
        meta.first_ns,
        meta.last_ns,
        0,
        0,
    )[:-4]
    return head + _LENGTH.pack(crc32(head))


def decode_descriptor(data: bytes, capture_id: bytes | None) -> tuple[bytes, ChunkMeta]:
    """(capture id, meta) of a descriptor frame. `capture_id` None accepts any file's. Raises `Malformed` or `Newer`."""
    if len(data) < DESCRIPTOR_BYTES:
        raise Malformed(f"descriptor cut: {len(data)} of {DESCRIPTOR_BYTES} bytes")
    magic, size, tag, found, flags, _, first, records, stored, raw, crc, low, high, _, own = _DESCRIPTOR.unpack_from(
        data
    )
    if magic != SKIPPABLE_MAGIC or size != DESCRIPTOR_BYTES - FRAME.size or tag != CHUNK_TAG:
        raise Malformed("no chunk descriptor")
    if crc32(data[: DESCRIPTOR_BYTES - 4]) != own:
        raise Malformed("descriptor checksum does not match")
    if capture_id is not None and found != capture_id:
        raise Malformed(f"chunk of another capture ({found.hex()})")
    if flags:
        raise Newer(f"chunk flags {flags:#06x}")
    meta = ChunkMeta(first, records, stored, raw, crc, low, high)
    check_meta(meta)
    return found, meta


def check_meta(meta: ChunkMeta) -> None:
    """Raises `Malformed` when a number exceeds its bound."""
    if not 0 < meta.records <= CHUNK_RECORDS_MAX:
        raise Malformed(f"impossible record count {meta.records}")
    if meta.stored_bytes > CHUNK_STORED_BYTES_MAX:
        raise Malformed(f"impossible chunk length {meta.stored_bytes}; at most {CHUNK_STORED_BYTES_MAX}")
    if meta.raw_bytes > CHUNK_RAW_BYTES_MAX:
        raise Malformed(f"impossible content length {meta.raw_bytes}; at most {CHUNK_RAW_BYTES_MAX}")
    if meta.first_ns > meta.last_ns or meta.last_ns >> 63:
        raise Malformed(f"impossible times {meta.first_ns}..{meta.last_ns}")
    if meta.next_number >> 63:
        raise Malformed(f"impossible record number {meta.first_number}")


# ---------------------------------------------------------------- index


def pack_entry(offset: int, meta: ChunkMeta) -> bytes:
    """The index entry of the chunk whose descriptor is at `offset`."""
    return ENTRY.pack(
        offset,
        meta.first_number,
        meta.records,
        meta.stored_bytes,
        meta.raw_bytes,
        meta.crc,
        meta.first_ns,
        meta.last_ns,
    )


def encode_index(
    capture_id: bytes, entries: bytes, summary: bytes, *, offset: int, records: int, next_number: int
) -> list[bytes]:
    """The parts of the index frame at file offset `offset`, in order (parts: the entries may be large)."""
    size = INDEX_HEAD_BYTES - FRAME.size + len(entries) + len(summary) + TRAILER_BYTES
    head = _INDEX_HEAD.pack(SKIPPABLE_MAGIC, size, INDEX_TAG, capture_id, 0, 0)
    body = _TRAILER.pack(
        offset,
        records,
        next_number,
        len(entries) // ENTRY_BYTES,
        crc32(entries),
        len(summary),
        crc32(summary),
        capture_id,
        0,
        0,
        0,
        END_MAGIC,
    )[: TRAILER_BYTES - 12]
    return [head, entries, summary, body + _LENGTH.pack(crc32(body, crc32(head))) + END_MAGIC]


def decode_trailer(data: bytes) -> Trailer:
    """The last 64 bytes of a file. Raises `Malformed`; `check_index_head` must follow, it holds the checksum."""
    if len(data) != TRAILER_BYTES or data[-8:] != END_MAGIC:
        raise Malformed("no trailer")
    offset, records, number, entries, entries_crc, summary, summary_crc, capture_id, _, _, _, _ = _TRAILER.unpack(data)
    if entries > INDEX_ENTRIES_MAX or summary > SUMMARY_BYTES_MAX:
        raise Malformed(f"impossible index: {entries} entries, summary of {summary} bytes")
    return Trailer(offset, records, number, entries, entries_crc, summary, summary_crc, capture_id)


def check_index_head(head: bytes, trailer: Trailer, data: bytes) -> None:
    """Raises unless the index frame's first bytes and the trailer (`data`) vouch for each other."""
    if len(head) != INDEX_HEAD_BYTES or crc32(data[: TRAILER_BYTES - 12], crc32(head)) != _crc_of_trailer(data):
        raise Malformed("index checksum does not match")
    magic, size, tag, capture_id, flags, _ = _INDEX_HEAD.unpack(head)
    expected = INDEX_HEAD_BYTES - FRAME.size + trailer.entries * ENTRY_BYTES + trailer.summary_bytes + TRAILER_BYTES
    if magic != SKIPPABLE_MAGIC or tag != INDEX_TAG or size != expected or capture_id != trailer.capture_id:
        raise Malformed("index and trailer do not belong together")
    if flags or _TRAILER.unpack(data)[8]:
        raise Newer("index flags")


def _crc_of_trailer(data: bytes) -> int:
    return cast(int, _TRAILER.unpack(data)[10])


def iter_entries(block: bytes) -> Iterator[tuple[int, ChunkMeta]]:
    """(descriptor's file offset, meta) of each entry in a block of whole entries. Raises `Malformed`."""
    for offset, first, records, stored, raw, crc, low, high in ENTRY.iter_unpack(block):
        meta = ChunkMeta(first, records, stored, raw, crc, low, high)
        check_meta(meta)
        yield offset, meta
