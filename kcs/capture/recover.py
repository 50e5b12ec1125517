"""Saves what can be saved, and packs what is whole more tightly. Both make a new file of the same capture.

Contract: capture id, record numbers and record bytes stay; holes stay holes. Nothing is overwritten unless asked, and
the new file appears under its name only when it is complete and synced. Sizes in bytes.
Raises: `CaptureBusyError` while a collector writes the source, `CaptureWriteError`, and what a reader raises for files
that are no captures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from kcs.capture.format import CHUNK_RECORDS_MAX, MIB
from kcs.capture.osfile import assert_not_locked
from kcs.capture.output import CaptureFile, making, refuse_source
from kcs.capture.reader import CaptureReader
from kcs.capture.records import decompress
from kcs.capture.scan import Chunk
from kcs.capture.tally import Damage
from kcs.errors import CaptureError, DamagedCaptureError

REPACK_CHUNK_BYTES: Final = 16 * MIB


class RecoverReport(msgspec.Struct, frozen=True):
    """What `recover` kept and what is missing.

    `missing` counts the records known to be lost, `holes` are their (first number, count); `damage` lists the places
    by byte range. `complete`: nothing is missing, and nothing unknown either.
    """

    source: str
    target: str
    capture_id: str
    records: int
    chunks: int
    bytes: int
    first_ns: int | None
    last_ns: int | None
    next_number: int
    missing: int
    holes: tuple[tuple[int, int], ...]
    damage: tuple[Damage, ...]
    complete: bool


class RepackReport(msgspec.Struct, frozen=True):
    """What `repack` did to the file at `path`."""

    path: str
    records: int
    chunks_before: int
    chunks_after: int
    bytes_before: int
    bytes_after: int


def recover(source: Path, target: Path, *, force: bool = False) -> RecoverReport:
    """Copy every intact chunk of `source` into a new sealed file `target`.

    `force` replaces an existing `target`. The source is only read. An undamaged source gives an equal capture.
    """
    refuse_source(source, target)
    with CaptureReader(source, strict=False) as reader:
        assert_not_locked(reader.path)
        summary = reader.summary()
        with making(target, reader.header, force=force) as file:
            for chunk, batches in reader.decoded():
                file.copy(chunk.meta, chunk.stored, batches)
            tally = file.tally
            tally.skip_to(reader.next_number or 0)
            earlier = summary.recovered if summary is not None else ()
            unfinished = reader.unfinished()
            damage = tuple(reader.damage if unfinished is None else (*reader.damage[:-1], unfinished))
            sealed = file.seal((*earlier, *damage))
    return RecoverReport(
        source=str(reader.path),
        target=str(target),
        capture_id=sealed.capture_id.hex(),
        records=sealed.records,
        chunks=tally.chunks,
        bytes=sealed.bytes,
        first_ns=sealed.first_ns,
        last_ns=sealed.last_ns,
        next_number=tally.next_number,
        missing=tally.missing,
        holes=tuple(tally.holes),
        damage=damage,
        complete=not tally.missing and all(one.records_lost == 0 for one in (*earlier, *damage)),
    )


def repack(path: Path, *, chunk_bytes: int = REPACK_CHUNK_BYTES, level: int = 3) -> RepackReport:
    """Rewrite a sealed capture in place with chunks of about `chunk_bytes`: same records, numbers and id, smaller file.

    The new file is read back before it takes the old one's name. Raises `DamagedCaptureError` for a damaged source.
    """
    with CaptureReader(path) as reader:
        summary = reader.summary()
        if summary is None or reader.next_number is None:
            raise CaptureError("only a sealed capture can be repacked", where=str(path), remedy="kcs recover it first")
        before = reader.info()
        digest = hashlib.sha256()
        with making(path, reader.header, level=level, force=True) as file:
            for run in _runs(reader, min(chunk_bytes, REPACK_CHUNK_BYTES)):
                digest.update(run.raw)
                file.write_content(run.first_number, run.records, run.raw, run.first_ns, run.last_ns)
            file.tally.skip_to(reader.next_number)
            stored = file.tally.stored_bytes
            size = file.finish(msgspec.structs.replace(summary, stored_bytes=stored))
            _verify(file, before.records, digest.digest())
            file.publish(size)
    return RepackReport(
        path=str(path),
        records=before.records,
        chunks_before=before.chunks,
        chunks_after=file.tally.chunks,
        bytes_before=before.bytes,
        bytes_after=size,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """Contents of consecutive chunks without a hole between them, joined."""

    first_number: int
    records: int
    raw: bytes
    first_ns: int
    last_ns: int


def _contents(reader: CaptureReader) -> Iterator[tuple[Chunk, bytes]]:
    decompressor = zstandard.ZstdDecompressor()
    for chunk in reader.chunks():
        yield chunk, decompress(chunk.stored, chunk.meta.raw_bytes, decompressor)


def _runs(reader: CaptureReader, chunk_bytes: int) -> Iterator[_Run]:
    """The records of a file in runs of about `chunk_bytes` of content."""
    parts: list[tuple[Chunk, bytes]] = []
    size = records = 0
    for chunk, raw in _contents(reader):
        meta = chunk.meta
        if parts and (
            meta.first_number != parts[-1][0].meta.next_number
            or size + len(raw) > chunk_bytes
            or records + meta.records > CHUNK_RECORDS_MAX
        ):
            yield _join(parts)
            parts, size, records = [], 0, 0
        parts.append((chunk, raw))
        size += len(raw)
        records += meta.records
    if parts:
        yield _join(parts)


def _join(parts: list[tuple[Chunk, bytes]]) -> _Run:
    metas = [chunk.meta for chunk, _ in parts]
    return _Run(
        first_number=metas[0].first_number,
        records=sum(meta.records for meta in metas),
        raw=b"".join(raw for _, raw in parts),
        first_ns=min(meta.first_ns for meta in metas),
        last_ns=max(meta.last_ns for meta in metas),
    )


def _verify(file: CaptureFile, records: int, digest: bytes) -> None:
    """Read the new file back; raises `DamagedCaptureError` unless it holds the same content."""
    found = hashlib.sha256()
    with CaptureReader(file.path) as reader:
        count = 0
        for chunk, raw in _contents(reader):
            found.update(raw)
            count += chunk.meta.records
    if count != records or found.digest() != digest:
        raise DamagedCaptureError("the repacked file reads back differently; the old one is kept", where=str(file.path))
