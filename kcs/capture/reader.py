"""Reads captures: by index when sealed, by walking when not, cut or damaged.

Contract: every record yielded is vouched for by checksums, in file order with ascending numbers; what is missing is
raised (strict) or listed in `damage` (tolerant). Memory is bounded by one chunk, whatever the file claims. `recv_ns` is
not sorted. Times in ns since the Unix epoch; ranges are `from_ns <= recv_ns < to_ns`.
Raises: `NotACaptureError`, `NewerFormatError`, `DamagedCaptureError` (strict), `CaptureError` when the system fails.
Any thread may use a reader; several iterations at a time are fine, but `damage` is that of the one begun last.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import zstandard

from kcs.capture.format import (
    DESCRIPTOR_BYTES,
    CaptureHeader,
    ChunkMeta,
    Malformed,
    Newer,
    decode_descriptor,
    decode_json,
    header_fields,
)
from kcs.capture.identify import identify, newer
from kcs.capture.info import CaptureInfo
from kcs.capture.records import BATCH_RECORDS_MAX, RawRecord, decompress, iter_batches
from kcs.capture.scan import Chunk, RawFile, Walker, Wanted
from kcs.capture.tally import Damage, Summary, Tally, note_damage
from kcs.errors import CaptureError, DamagedCaptureError, NotACaptureError
from kcs.model import Kind, Record

__all__ = ["CaptureHeader", "CaptureInfo", "CaptureReader", "Damage", "RawRecord"]

HOLES_MAX: Final = 1000

_KINDS: Final = {int(kind): kind for kind in Kind}


class CaptureReader:
    """One capture file, open for reading. A context manager."""

    def __init__(self, path: Path | str, *, strict: bool = True) -> None:
        """Open and identify. `strict` False: read whatever is intact and list the rest in `damage`."""
        self.path = _existing(Path(path))
        self._fd = _open(self.path)
        try:
            self._file = RawFile(self._fd, _regular_size(self._fd, self.path))
            self._identity = identify(self._file, self.path)
        except OSError as exc:
            self.close()
            raise _system_error(exc, self.path) from exc
        except BaseException:
            self.close()
            raise
        self._strict = strict
        self.header: CaptureHeader = self._identity.header
        self.sealed: bool = self._identity.index is not None
        self.damage: list[Damage] = list(self._identity.damage)
        """Damage met so far; complete when an iteration over the whole file has ended. Bounded, see `note_damage`."""
        if self._identity.index_damage is not None:
            self.damage.append(self._identity.index_damage)
        self.holes = 0
        """Numbers that no record has, as far as an iteration over everything has come. An ancillary record, which is
        passed over, has its number; a chunk that a range leaves out counts like a hole."""
        self.missing: list[tuple[int, int]] = []
        """The same by name: (first number, how many) of each run of numbers, at most `HOLES_MAX` runs."""
        if strict and self._identity.damage:
            self.close()
            raise self._damaged(self._identity.damage[0])

    def __enter__(self) -> CaptureReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ------------------------------------------------------------ records

    def batches(
        self,
        from_ns: int | None = None,
        to_ns: int | None = None,
        *,
        from_number: int = 0,
        until_number: int | None = None,
    ) -> Iterator[list[RawRecord]]:
        """Lists of (number, kind, stream, recv_ns, payload, fields), never empty, at most 512 long, within one chunk.

        Only records with `from_ns <= recv_ns < to_ns` and `number >= from_number`; chunks without any are not read.
        It ends before a chunk that begins at `until_number` or later.
        """
        low = -1 if from_ns is None else from_ns
        high = 1 << 64 if to_ns is None else to_ns

        def wanted(meta: ChunkMeta) -> bool:
            return meta.last_ns >= low and meta.first_ns < high and meta.next_number > from_number

        decompressor = zstandard.ZstdDecompressor()
        everything = from_ns is None and to_ns is None and not from_number
        self.holes = due = 0
        self.missing = []
        for chunk in self.chunks(None if everything else wanted):
            meta = chunk.meta
            whole = low <= meta.first_ns and meta.last_ns < high and from_number <= meta.first_number
            done = meta.first_number
            if until_number is not None and done >= until_number:
                self._hole(due, until_number)
                return
            self._hole(due, done)
            try:
                raw = decompress(chunk.stored, meta.raw_bytes, decompressor)
                for batch in iter_batches(raw, meta.first_number, meta.records):
                    done = min(done + BATCH_RECORDS_MAX, meta.next_number)
                    if not whole:
                        batch = [r for r in batch if low <= r[3] < high and r[0] >= from_number]
                    if batch:
                        yield batch
            except Malformed as exc:  # the checksums match: whoever wrote this was broken, or malicious
                length = DESCRIPTOR_BYTES + meta.stored_bytes
                self._on_damage(Damage(chunk.offset, length, str(exc), meta.next_number - done, done))
            except Newer as exc:
                raise newer(exc, self.path) from exc
            due = done
        self._hole(due, self.next_number or 0)

    def _hole(self, first: int, until: int) -> None:
        if first >= until:
            return
        self.holes += until - first
        if len(self.missing) < HOLES_MAX:
            self.missing.append((first, until - first))

    def records(self, from_ns: int | None = None, to_ns: int | None = None) -> Iterator[Record]:
        """The same records one by one, as `model.Record`."""
        for batch in self.batches(from_ns, to_ns):
            for number, kind, stream, recv_ns, payload, fields in batch:
                yield Record(number, _KINDS[kind], stream, recv_ns, payload, fields)

    def chunks(self, wanted: Wanted | None = None) -> Iterator[Chunk]:
        """The chunks as stored, checksums verified; for tools that move them without decoding.

        `wanted` is asked with each chunk's numbers and times, and may say no: such a chunk is not read.
        """
        identity = self._identity
        self.damage = list(identity.damage)
        if identity.index_damage is not None and self._strict:
            raise self._damaged(identity.index_damage)
        walker = Walker(self._file, self.header.capture_id, identity.start, self._on_damage)
        try:
            if identity.index is not None:
                yield from walker.by_index(identity.index, wanted)
                if wanted is None:  # a whole reading leaves no byte unchecked
                    self.summary()
            else:
                yield from walker.by_walking(wanted)
        except Newer as exc:
            raise newer(exc, self.path) from exc
        except OSError as exc:
            raise _system_error(exc, self.path) from exc
        if identity.index_damage is not None:
            at_end = identity.index_damage
            lost = 0 if walker.reached_index else None
            note_damage(self.damage, Damage(at_end.offset, at_end.length, at_end.what, lost))

    def _on_damage(self, damage: Damage) -> None:
        if self._strict:
            raise self._damaged(damage)
        note_damage(self.damage, damage)

    def _damaged(self, damage: Damage) -> DamagedCaptureError:
        lost = "unknown" if damage.records_lost is None else str(damage.records_lost)
        return DamagedCaptureError(
            f"damaged: {damage.what} (records lost: {lost})",
            where=f"{self.path}, offset {damage.offset}",
            remedy=f"kcs recover {self.path} OUT.zst saves every intact record",
        )

    def end_number(self, to_ns: int) -> int | None:
        """First number of the chunk behind the last one with a record earlier than `to_ns`; None: there is no chunk.

        From the index or the descriptors alone: no chunk is read, and `damage` stays as it is.
        """
        end: int | None = None

        def wanted(meta: ChunkMeta) -> bool:
            nonlocal end
            if meta.first_ns < to_ns:
                end = None
            elif end is None:
                end = meta.first_number
            return False

        identity = self._identity
        walker = Walker(self._file, self.header.capture_id, identity.start, lambda damage: None)
        index = identity.index
        try:
            for chunk in walker.by_walking(wanted) if index is None else walker.by_index(index, wanted):
                wanted(chunk.meta)  # its descriptor is damaged, so it was found by its content
        except Newer as exc:
            raise newer(exc, self.path) from exc
        except OSError as exc:
            raise _system_error(exc, self.path) from exc
        return end

    def unfinished(self) -> Damage | None:
        """The chunk at the end of a `.partial` that was being written when its collector died, as what it is: no record
        of it was ever whole on disk, so it cost none. To be asked after an iteration over everything; None: there is
        no such chunk.
        """
        last = self.damage[-1] if self.damage else None
        if last is None or self.sealed or not self.path.name.endswith(".partial"):
            return None
        if last.offset + last.length != self._file.size:
            return None
        head = self._file.read(last.offset, DESCRIPTOR_BYTES)
        records = ""
        if len(head) == DESCRIPTOR_BYTES:
            try:
                meta = decode_descriptor(head, self.header.capture_id)[1]
            except (Malformed, Newer):
                return None
            if last.offset + DESCRIPTOR_BYTES + meta.stored_bytes <= self._file.size:
                return None
            records = f" of {meta.records} records"
        what = f"cut off: {last.length} bytes of a chunk{records} that was being written when the collector died"
        return Damage(last.offset, last.length, what, 0, last.first_number)

    # ------------------------------------------------------------ info

    @property
    def start(self) -> int:
        """Offset of the first chunk, or of where it would be."""
        return self._identity.start

    @property
    def next_number(self) -> int | None:
        """The number after the last record that the file ever held; known of sealed files only."""
        index = self._identity.index
        return None if index is None else index.trailer.next_number

    def info(self) -> CaptureInfo:
        """What the file holds: from the summary when sealed, else by reading everything once."""
        index = self._identity.index
        summary = self.summary()
        if index is not None and summary is not None:
            trailer = index.trailer
            return self._info(summary, trailer.entries, trailer.records)
        tally = Tally()
        for chunk, batches in self.decoded():
            tally.add_chunk(chunk.meta)
            for batch in batches:
                tally.add_read(batch)
        return self._info(tally.summary(header_fields(self.header)), tally.chunks, tally.records)

    def summary(self) -> Summary | None:
        """The index's summary; None where there is no index or the summary is damaged (strict: raises)."""
        index = self._identity.index
        if index is None:
            return None
        try:
            return decode_json(index.summary(), Summary)
        except Malformed as exc:
            self._on_damage(Damage(index.offset, self._file.size - index.offset, str(exc), 0))
            return None
        except OSError as exc:
            raise _system_error(exc, self.path) from exc

    def decoded(self) -> Iterator[tuple[Chunk, list[list[RawRecord]]]]:
        """Chunks together with their records; a chunk that cannot be decoded whole is damage."""
        decompressor = zstandard.ZstdDecompressor()
        for chunk in self.chunks():
            meta = chunk.meta
            try:
                raw = decompress(chunk.stored, meta.raw_bytes, decompressor)
                batches = list(iter_batches(raw, meta.first_number, meta.records))
            except Malformed as exc:
                length = DESCRIPTOR_BYTES + meta.stored_bytes
                self._on_damage(Damage(chunk.offset, length, str(exc), meta.records, meta.first_number))
                continue
            except Newer as exc:
                raise newer(exc, self.path) from exc
            yield chunk, batches

    def _info(self, summary: Summary, chunks: int, records: int) -> CaptureInfo:
        header = header_fields(self.header)
        return CaptureInfo(
            path=str(self.path),
            sealed=self.sealed,
            capture_id=header.capture_id,
            run_id=header.run_id,
            sequence=header.sequence,
            exchange=header.exchange,
            url=header.url,
            created_ns=header.created_ns,
            kcs_version=header.kcs_version,
            options=header.options,
            bytes=self._file.size,
            raw_bytes=summary.raw_bytes,
            stored_bytes=summary.stored_bytes,
            chunks=chunks,
            records=records,
            missing=summary.missing,
            kinds=summary.kinds,
            first_ns=summary.first_ns,
            last_ns=summary.last_ns,
            streams=summary.streams,
            gaps=summary.gaps,
            gap_count=summary.gap_count,
            reconnects=summary.reconnects,
            holes=summary.holes,
            recovered=summary.recovered,
            damage=tuple(self.damage),
        )


def _existing(path: Path) -> Path:
    """`path`, or the sealed file if `path` is a `.partial` that was sealed meanwhile."""
    if path.name.endswith(".partial") and not path.exists():
        sealed = path.with_name(path.name.removesuffix(".partial"))
        if sealed.exists():
            return sealed
    return path


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block here
    except OSError as exc:
        raise _system_error(exc, path) from exc


def _regular_size(fd: int, path: Path) -> int:
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise NotACaptureError(
            "not a capture: it is a directory", where=str(path), remedy=f"name the files: {path}/*.zst"
        )
    if not stat.S_ISREG(status.st_mode):
        raise NotACaptureError("not a capture: not a regular file", where=str(path))
    return status.st_size


def _system_error(exc: OSError, path: Path) -> CaptureError:
    return CaptureError(f"cannot read: {exc.strerror or exc}", where=str(path))
