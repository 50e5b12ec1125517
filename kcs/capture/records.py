"""The codec of what is inside a chunk: records, their fields, and the Zstandard frame around them.

Contract and callers are those of `format.py`: decoders take bytes that may be anything, and raise `Malformed` or
`Newer`. Section 4.3 of FORMAT.md has the byte table. Times in ns since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as StructError
from typing import Final

import msgspec
import zstandard

from kcs.capture.format import CHUNK_RAW_BYTES_MAX, CHUNK_RECORDS_MAX, PAYLOAD_BYTES_MAX, Malformed, Newer
from kcs.model import FIELDS_OF_KIND, Fields, Kind

RECORD: Final = Struct("<QIIB")
RECORD_HEAD_BYTES: Final = RECORD.size
_LENGTH: Final = Struct("<I")

FIELDS_BYTES_MAX: Final = 1024 * 1024
"""JSON of a record's fields: decoded, short texts take twenty times their bytes."""

BATCH_RECORDS_MAX: Final = 512
"""Records in one list of `iter_batches`: few enough to stay in the cache, and to share the loop with others."""

ANCILLARY_KIND: Final = 128
"""Kinds from here on may be ignored by who does not know them."""

Appended = tuple[int, int, int, bytes]
"""(kind, stream, recv_ns, body): a record on its way into a file."""

RawRecord = tuple[int, int, int, int, bytes, Fields | None]
"""(number, kind, stream, recv_ns, payload, fields): a record as read; fields only for kinds that have them."""


def compressor(level: int) -> zstandard.ZstdCompressor:
    """A compressor that makes frames as section 4.2 wants them."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)


def decompress(stored: bytes, raw_bytes: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The content of a chunk's frame, exactly `raw_bytes` long; allocates only that. Raises `Malformed`."""
    try:
        promised = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as exc:
        raise Malformed(f"no zstd frame: {exc}") from exc
    if promised != raw_bytes:  # also -1, unknown: nothing bounds such a frame
        raise Malformed(f"the frame promises {promised} bytes, its descriptor {raw_bytes}")
    try:
        raw = decompressor.decompress(stored, max_output_size=raw_bytes, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as exc:
        raise Malformed(f"zstd: {exc}") from exc
    if len(raw) != raw_bytes:
        raise Malformed(f"{len(raw)} bytes of content, {raw_bytes} promised")
    return raw


_DEFAULTS: Final = {
    cls: dict(zip(reversed(cls.__struct_fields__), reversed(cls.__struct_defaults__), strict=False))
    for cls in FIELDS_OF_KIND.values()
}


def encode_fields(fields: Fields, payload: bytes = b"") -> bytes:
    """The body of a record that has fields."""
    defaults = _DEFAULTS[type(fields)]
    shown = {}
    for name in fields.__struct_fields__:  # by equality: msgspec omits defaults by identity, equal texts would differ
        value = getattr(fields, name)
        if name not in defaults or value != defaults[name]:
            shown[name] = value
    text = msgspec.json.encode(shown)
    return _LENGTH.pack(len(text)) + text + payload


_FIELD_DECODERS: Final = {int(kind): msgspec.json.Decoder(fields) for kind, fields in FIELDS_OF_KIND.items()}


def decode_fields(kind: int, body: bytes) -> tuple[Fields, bytes]:
    """(fields, payload) of the body of a record of a kind that has fields. Raises `Malformed`, `Newer`."""
    decoder = _FIELD_DECODERS.get(kind)
    if decoder is None:
        raise Newer(f"record kind {kind}")
    if len(body) < 4:
        raise Malformed("fields cut")
    end = 4 + _LENGTH.unpack_from(body)[0]
    if end - 4 > FIELDS_BYTES_MAX:
        raise Malformed(f"impossible fields of {end - 4} bytes; at most {FIELDS_BYTES_MAX}")
    if end > len(body):
        raise Malformed(f"fields of {end - 4} bytes in a body of {len(body)}")
    try:
        return decoder.decode(body[4:end]), body[end:]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"bad fields of a {Kind(kind).name.lower()} record: {exc}") from exc


def as_read(number: int, record: Appended) -> RawRecord:
    """A record as a reader would give it. Raises `Malformed`, `Newer`."""
    kind, stream, recv_ns, body = record
    if Kind.SENT <= kind <= Kind.BINARY:
        return number, kind, stream, recv_ns, body, None
    fields, payload = decode_fields(kind, body)
    return number, kind, stream, recv_ns, payload, fields


def encode_records(records: Sequence[Appended]) -> bytes:
    """The content of a chunk. Raises `Malformed` for a number outside its field."""
    pack = RECORD.pack
    parts: list[bytes] = []
    push = parts.append
    try:
        for kind, stream, recv_ns, body in records:
            push(pack(recv_ns, len(body), stream, kind))
            push(body)
    except StructError as exc:
        raise Malformed(f"record {(kind, stream, recv_ns)} does not fit its fields: {exc}") from exc
    return b"".join(parts)


def iter_batches(raw: bytes, first: int, count: int) -> Iterator[list[RawRecord]]:
    """The `count` records of a chunk's content in lists of at most BATCH_RECORDS_MAX. The hot read path.

    `first` is the first record's number. Raises `Malformed` when the content does not hold exactly `count` records.
    """
    unpack = RECORD.unpack_from
    position = 0
    size = len(raw)
    stop = first + count
    if size > PAYLOAD_BYTES_MAX:
        _check_lengths(raw)
    try:
        for start in range(first, stop, BATCH_RECORDS_MAX):
            batch: list[RawRecord] = []
            push = batch.append
            for number in range(start, min(start + BATCH_RECORDS_MAX, stop)):
                recv_ns, length, stream, kind = unpack(raw, position)
                position += 17
                end = position + length
                if (
                    2 <= kind <= 4
                ):  # SENT, TEXT, BINARY: no fields; comparing numbers, an enum costs more than the slice
                    push((number, kind, stream, recv_ns, raw[position:end], None))
                elif kind < ANCILLARY_KIND:
                    fields, payload = decode_fields(kind, raw[position:end])
                    push((number, kind, stream, recv_ns, payload, fields))
                position = end
            if position > size:  # the last slice was short: not a record
                raise Malformed("the last record runs past the end of its chunk")
            yield batch
    except StructError as exc:
        raise Malformed(f"the chunk ends before its {count} records") from exc
    if position != size:
        raise Malformed(f"{size - position} bytes after the last record of the chunk")


def _check_lengths(raw: bytes) -> None:
    """Raises `Malformed` for a body beyond its bound; only a chunk larger than that may have one."""
    position = 0
    while position + RECORD_HEAD_BYTES <= len(raw):
        length = RECORD.unpack_from(raw, position)[1]
        if length > PAYLOAD_BYTES_MAX:
            raise Malformed(f"impossible body of {length} bytes; at most {PAYLOAD_BYTES_MAX}")
        position += RECORD_HEAD_BYTES + length


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What a chunk without its descriptor turned out to hold."""

    records: int
    raw_bytes: int
    first_ns: int
    last_ns: int


def salvage(stored: bytes) -> Salvaged | None:
    """What a zstd frame holds, if its own checksum and every length in it are right; else None."""
    try:
        frame = zstandard.get_frame_parameters(stored)
        if not frame.has_checksum or not 0 < frame.content_size <= CHUNK_RAW_BYTES_MAX:
            return None
        raw = decompress(stored, frame.content_size, zstandard.ZstdDecompressor())
        records, low, high = _measure(raw)
    except (Malformed, zstandard.ZstdError):
        return None
    return Salvaged(records, len(raw), low, high)


def _measure(raw: bytes) -> tuple[int, int, int]:
    """(records, smallest, largest recv_ns) of a chunk's content. Raises `Malformed`."""
    position = records = 0
    low, high = 1 << 63, 0
    try:
        while position < len(raw):
            recv_ns, length, _, _ = RECORD.unpack_from(raw, position)
            position += RECORD_HEAD_BYTES + length
            records += 1
            low, high = min(low, recv_ns), max(high, recv_ns)
    except StructError as exc:
        raise Malformed("cut record") from exc
    if position != len(raw) or not records <= CHUNK_RECORDS_MAX or high >> 63:
        raise Malformed("not records")
    return records, low, high
