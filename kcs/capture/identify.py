"""What a file is before it is read: its header, its index, or what else it looks like.

Contract: `identify` returns what a reader needs to begin, and never reads more than some megabytes. Raises
`NotACaptureError`, `NewerFormatError`, and `DamagedCaptureError` where nothing can be read at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kcs.capture.format import (
    DESCRIPTOR_BYTES,
    HEADER_FIXED_BYTES,
    MAGIC,
    MIB,
    CaptureHeader,
    Malformed,
    Newer,
    decode_descriptor,
    decode_header,
    decode_json,
    header_json_bytes,
    header_of_fields,
)
from kcs.capture.scan import Index, RawFile, find_index, find_tags
from kcs.capture.tally import Damage, Summary
from kcs.errors import DamagedCaptureError, NewerFormatError, NotACaptureError

SEARCH_BYTES_MAX: Final = 32 * MIB
"""How far a first chunk is looked for when the header is damaged."""

_NAME: Final = re.compile(r"(.+)-\d{8}T\d{6}Z-[0-9a-f]{16}\.zst(?:\.partial|\.tmp)?")

_LOOKS: Final = (
    (b"\x1f\x8b", "gzip", "decompress it; if it holds JSON lines, kcs import reads them"),
    (b"\x28\xb5\x2f\xfd", "a plain Zstandard file", "zstd -dc FILE shows what is in it; kcs import reads JSON lines"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"PAR1", "a Parquet file", "kcs export makes those from captures; name the capture"),
    (b"{", "JSON lines", "kcs import --exchange NAME IN.jsonl OUT.zst"),
    (b"[", "JSON", "kcs import --exchange NAME IN.jsonl OUT.zst reads one object a line"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A capture's header and index. `start`: offset of the first chunk. `damage`: what is wrong with the header."""

    header: CaptureHeader
    start: int
    index: Index | None
    damage: tuple[Damage, ...]
    index_damage: Damage | None


def identify(file: RawFile, path: Path) -> Identity:
    """Header and index of `file`. A damaged header is replaced by the summary's copy, or by what the name says."""
    index: Index | None = None
    index_damage: Damage | None = None
    try:
        index = find_index(file)
    except Malformed as exc:
        if not path.name.endswith(".partial"):
            index_damage = Damage(file.size, 0, f"{exc}: cut, damaged, or never sealed", None)
    except Newer as exc:
        raise newer(exc, path) from exc
    try:
        length = HEADER_FIXED_BYTES + header_json_bytes(file.read(0, HEADER_FIXED_BYTES))
        header = decode_header(file.read(0, length))
    except Newer as exc:
        raise newer(exc, path) from exc
    except Malformed as exc:
        return _without_header(file, path, index, index_damage, str(exc))
    if index is not None and index.trailer.capture_id != header.capture_id:
        raise DamagedCaptureError("header and index belong to different captures", where=str(path))
    return Identity(header, length, index, (), index_damage)


def newer(exc: Newer, path: Path) -> NewerFormatError:
    """The typed error for `exc`."""
    return NewerFormatError(f"written by a newer kcs: {exc}", where=str(path), remedy="upgrade kcs: pip install -U kcs")


def _without_header(file: RawFile, path: Path, index: Index | None, index_damage: Damage | None, what: str) -> Identity:
    first = _first_chunk(file, index)
    if first is None:
        raise _not_a_capture(file, path)
    capture_id, start = first
    damage = (Damage(0, start, what, 0),)
    try:
        if index is not None:
            header = header_of_fields(decode_json(index.summary(), Summary).header)
            if header.capture_id == capture_id:
                return Identity(header, start, index, damage, index_damage)
    except Malformed:
        pass  # the summary is damaged too: the name is left
    match = _NAME.fullmatch(path.name)
    header = CaptureHeader(
        capture_id=capture_id,
        run_id=capture_id,
        exchange=match[1] if match else "",
        url="",
        created_ns=0,
        kcs_version="",
    )
    return Identity(header, start, index, damage, index_damage)


def _first_chunk(file: RawFile, index: Index | None) -> tuple[bytes, int] | None:
    """(capture id, offset) of the first chunk, or of the index of a file without chunks."""
    if index is not None:
        try:
            index.check_entries()
            offset = next((offset for offset, _ in index.entries()), index.offset)
        except Malformed:
            pass
        else:
            return index.trailer.capture_id, offset
    known = None if index is None else index.trailer.capture_id
    for offset in find_tags(file, known, 0, min(file.size, SEARCH_BYTES_MAX)):
        try:
            return decode_descriptor(file.read(offset, DESCRIPTOR_BYTES), known)[0], offset
        except (Malformed, Newer):
            continue
    return None


def _not_a_capture(file: RawFile, path: Path) -> NotACaptureError | DamagedCaptureError:
    head = file.read(0, 256)
    if not head:
        return NotACaptureError("not a capture: the file is empty", where=str(path))
    if len(head) >= 12 and head[8:16] == MAGIC[: len(head) - 8]:
        return DamagedCaptureError(
            "the header is damaged or cut, and no whole chunk follows: nothing can be read", where=str(path)
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, name, remedy in _LOOKS:
        if head.startswith(magic) or (magic in b"{[" and text.startswith(magic)):
            return NotACaptureError(f"not a capture: it looks like {name}", where=str(path), remedy=remedy)
    if head[0] >> 4 == 5 and head[1:4] == b"\x2a\x4d\x18":
        return NotACaptureError("not a capture: a Zstandard file of another program", where=str(path))
    shown = head[:8].hex(" ")
    return NotACaptureError(f"not a capture: it begins with bytes {shown}", where=str(path))
