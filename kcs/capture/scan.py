"""Finds the chunks of a capture file, by its index or by walking, and says what is damaged.

Contract: yields chunks whose stored bytes match their checksum, in file order with strictly ascending record numbers;
everything else is reported to `on_damage`, which may raise (strict) or note it (tolerant). Memory is bounded by one
chunk: every length is checked against the format's bounds and the file's size before anything is read by it.
Callers: reader, recover. Raises `Newer` for flags of a later version, OSError when the disk fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from kcs.capture.format import (
    CHUNK_STORED_BYTES_MAX,
    CHUNK_TAG,
    DESCRIPTOR_BYTES,
    ENTRY_BYTES,
    INDEX_HEAD_BYTES,
    INDEX_TAG,
    MIB,
    SUMMARY_BYTES_MAX,
    TRAILER_BYTES,
    ChunkMeta,
    Malformed,
    Trailer,
    check_index_head,
    decode_descriptor,
    decode_json,
    decode_trailer,
    encode_descriptor,
    iter_entries,
)
from kcs.capture.records import salvage
from kcs.capture.tally import Damage, Summary

ENTRIES_BLOCK: Final = 4096 * ENTRY_BYTES
"""Index entries are read in blocks of this size."""

Wanted = Callable[[ChunkMeta], bool]
OnDamage = Callable[[Damage], None]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk whose stored bytes match their checksum. `offset` is its descriptor's."""

    offset: int
    meta: ChunkMeta
    stored: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a file: from `offset`, where record `number` is due, to `end`, before `end_number` if known."""

    offset: int
    number: int
    end: int
    end_number: int | None


@dataclass(frozen=True, slots=True)
class _Found:
    """Where walking can go on: a descriptor (with its first number) or the index (None)."""

    offset: int
    first_number: int | None


@dataclass(frozen=True, slots=True)
class RawFile:
    """An open file of known size; reads never move a position, so threads may share it."""

    fd: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        data = os.pread(self.fd, length, offset)
        if len(data) == length or offset + len(data) >= self.size:
            return data
        parts = [data]
        got = len(data)
        while got < length:
            more = os.pread(self.fd, length - got, offset + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)


class Index:
    """The index of a sealed file, read on demand. `find_index` makes it; its trailer has been verified."""

    __slots__ = ("_entries_end", "_entries_start", "_file", "_left_out", "trailer")

    def __init__(self, file: RawFile, trailer: Trailer) -> None:
        self._file = file
        self._left_out: list[tuple[int, int]] | None = None
        self.trailer = trailer
        self._entries_start = trailer.index_offset + INDEX_HEAD_BYTES
        self._entries_end = self._entries_start + trailer.entries * ENTRY_BYTES

    @property
    def offset(self) -> int:
        """Where the chunks end."""
        return self.trailer.index_offset

    def summary(self) -> bytes:
        """The summary's JSON. Raises `Malformed` when its checksum does not match."""
        data = self._file.read(self._entries_end, min(self.trailer.summary_bytes, SUMMARY_BYTES_MAX))
        if crc32(data) != self.trailer.summary_crc:
            raise Malformed("the summary's checksum does not match")
        return data

    def leaves_out(self, start: int, end: int) -> bool:
        """Whether the summary names all bytes from `start` to `end` as damage: a seal in place leaves that there."""
        if self._left_out is None:
            try:
                recovered = decode_json(self.summary(), Summary).recovered
            except Malformed:
                recovered = ()
            self._left_out = sorted((damage.offset, damage.offset + damage.length) for damage in recovered)
        for first, last in self._left_out:
            if first <= start:
                start = max(start, last)
        return start >= end

    def check_entries(self) -> None:
        """Raises `Malformed` when the entries' checksum does not match."""
        crc = 0
        for block in self._blocks():
            crc = crc32(block, crc)
        if crc != self.trailer.entries_crc:
            raise Malformed("the checksum of the index entries does not match")

    def entries(self) -> Iterator[tuple[int, ChunkMeta]]:
        """(descriptor's offset, meta) of each chunk. Raises `Malformed`."""
        for block in self._blocks():
            yield from iter_entries(block)

    def _blocks(self) -> Iterator[bytes]:
        for start in range(self._entries_start, self._entries_end, ENTRIES_BLOCK):
            yield self._file.read(start, min(ENTRIES_BLOCK, self._entries_end - start))


def find_index(file: RawFile) -> Index:
    """The index at the file's end. Raises `Malformed` when there is none or it is damaged."""
    data = file.read(max(0, file.size - TRAILER_BYTES), TRAILER_BYTES)
    trailer = decode_trailer(data)
    if trailer.index_offset + INDEX_HEAD_BYTES > file.size:
        raise Malformed("the index is outside the file")
    check_index_head(file.read(trailer.index_offset, INDEX_HEAD_BYTES), trailer, data)
    end = trailer.index_offset + INDEX_HEAD_BYTES + trailer.entries * ENTRY_BYTES + trailer.summary_bytes
    if end + TRAILER_BYTES != file.size:
        raise Malformed("the index does not end with the file")
    return Index(file, trailer)


class Walker:
    """Yields the chunks of one file. `start`: where the first chunk should be."""

    __slots__ = ("_file", "_id", "_on_damage", "_start", "reached_index")

    def __init__(self, file: RawFile, capture_id: bytes, start: int, on_damage: OnDamage) -> None:
        self._file = file
        self._id = capture_id
        self._start = start
        self._on_damage = on_damage
        self.reached_index = False
        """Walking met the index: no chunk is missing at the end."""

    # ------------------------------------------------------------ by index

    def by_index(self, index: Index, wanted: Wanted | None = None) -> Iterator[Chunk]:
        """Chunks by the index; those not `wanted` are not read. Falls back to walking where the index is damaged."""
        position, number = self._start, 0
        try:
            index.check_entries()
            for offset, meta in index.entries():
                end = offset + DESCRIPTOR_BYTES + meta.stored_bytes
                if offset < position or meta.first_number < number or end > index.offset:
                    raise Malformed("an index entry does not follow the one before")
                if offset != position and not index.leaves_out(position, offset):
                    raise Malformed("an index entry does not follow the one before")
                if wanted is None or wanted(meta):
                    chunk = self._indexed(offset, meta)
                    if chunk is not None:
                        yield chunk
                position, number = end, meta.next_number
            covered = position == index.offset or (position < index.offset and index.leaves_out(position, index.offset))
            if not covered or number > index.trailer.next_number:
                raise Malformed("the index entries do not cover the file")
        except Malformed as exc:
            self._on_damage(Damage(index.offset, self._file.size - index.offset, str(exc), 0))
            yield from self.by_walking(wanted, Place(position, number, index.offset, index.trailer.next_number))

    def _indexed(self, offset: int, meta: ChunkMeta) -> Chunk | None:
        data = self._file.read(offset, DESCRIPTOR_BYTES + meta.stored_bytes)
        stored = data[DESCRIPTOR_BYTES:]
        if len(stored) != meta.stored_bytes or crc32(stored) != meta.crc:
            self._lost(offset, len(data), meta, "the chunk's checksum does not match")
            return None
        try:
            if decode_descriptor(data[:DESCRIPTOR_BYTES], self._id)[1] != meta:
                raise Malformed("the descriptor differs from its index entry")
        except Malformed as exc:  # the index entry vouches for the chunk
            self._on_damage(Damage(offset, DESCRIPTOR_BYTES, str(exc), 0, meta.first_number))
        return Chunk(offset, meta, stored)

    def _lost(self, offset: int, length: int, meta: ChunkMeta, what: str) -> None:
        self._on_damage(Damage(offset, length, what, meta.records, meta.first_number))

    # ------------------------------------------------------------ by walking

    def by_walking(self, wanted: Wanted | None = None, at: Place | None = None) -> Iterator[Chunk]:
        """Chunks by their descriptors, from `at`, or from the start of the file to its end."""
        place = at or Place(self._start, 0, self._file.size, None)
        position, number, limit = place.offset, place.number, place.end
        search_from = position + 1
        while position < limit:
            try:
                meta = self._descriptor(position, number)
            except Malformed as exc:
                if self._is_index(position):
                    self.reached_index = True
                    return
                found = self._search(search_from, number, limit)
                chunk = self._resolve(Place(position, number, limit, place.end_number), found, str(exc))
                if chunk is not None:
                    yield chunk
                    number = chunk.meta.next_number
                if found is None:
                    return
                position, search_from = found.offset, found.offset + 1
                continue
            body = position + DESCRIPTOR_BYTES
            following = body + meta.stored_bytes
            search_from = following + 1
            if following > limit:
                self._lost(position, limit - position, meta, f"cut: {limit - body} of {meta.stored_bytes} bytes")
                return
            if wanted is None or wanted(meta):
                stored = self._file.read(body, meta.stored_bytes)
                if crc32(stored) == meta.crc:
                    yield Chunk(position, meta, stored)
                else:
                    self._lost(position, following - position, meta, "the chunk's checksum does not match")
                    search_from = body  # bytes may be missing inside it, then the next chunk begins earlier
            position, number = following, meta.next_number

    def _resolve(self, at: Place, found: _Found | None, what: str) -> Chunk | None:
        """The chunk at a bad descriptor, if it can be saved without it. Reports the damage either way."""
        after = at.end if found is None else found.offset
        following = at.end_number if found is None or found.first_number is None else found.first_number
        chunk = self._salvage(at.offset, after, at.number)
        if chunk is not None:
            what = f"{what}; its records were found by their own checksum"
            self._on_damage(Damage(at.offset, DESCRIPTOR_BYTES, what, 0, at.number))
            return chunk
        offset = min(at.offset, after)
        lost = None if following is None else following - at.number
        self._on_damage(Damage(offset, after - offset, what, lost, at.number))
        return None

    def _descriptor(self, position: int, number: int) -> ChunkMeta:
        """The descriptor at `position`. Raises `Malformed`, also when its numbers run backwards."""
        meta = decode_descriptor(self._file.read(position, DESCRIPTOR_BYTES), self._id)[1]
        if meta.first_number < number:
            raise Malformed(f"record numbers run back from {number} to {meta.first_number}")
        return meta

    def _is_index(self, position: int) -> bool:
        head = self._file.read(position, INDEX_HEAD_BYTES)
        return head[8:20] == INDEX_TAG + self._id

    def _search(self, start: int, number: int, limit: int) -> _Found | None:
        """The next good descriptor, or the index, at or after `start`."""
        for position in find_tags(self._file, self._id, start, limit):
            if self._is_index(position):
                return _Found(position, None)
            try:
                return _Found(position, self._descriptor(position, number).first_number)
            except Malformed:
                continue
        return None

    def _salvage(self, position: int, after: int, number: int) -> Chunk | None:
        """The chunk at `position`, whose descriptor is damaged, if a checksum still proves what and whose it is.

        The descriptor is made again from the content and the number that is due. Either its checksum is the one that
        stands there, or only the checksum is damaged; so neither a foreign chunk nor a wrong number can pass.
        """
        length = after - position - DESCRIPTOR_BYTES
        if not 0 < length <= CHUNK_STORED_BYTES_MAX:
            return None
        damaged = self._file.read(position, DESCRIPTOR_BYTES)
        stored = self._file.read(position + DESCRIPTOR_BYTES, length)
        found = salvage(stored)
        if found is None:
            return None
        meta = ChunkMeta(number, found.records, length, found.raw_bytes, crc32(stored), found.first_ns, found.last_ns)
        rebuilt = encode_descriptor(self._id, meta)
        proven = rebuilt[-4:] == damaged[-4:] or rebuilt[:-4] == damaged[:-4]
        return Chunk(position, meta, stored) if proven else None


def find_tags(file: RawFile, capture_id: bytes | None, start: int, limit: int) -> Iterator[int]:
    """Offsets where a descriptor or index frame of this capture may begin, ascending. None: of any capture."""
    tags = [tag + (capture_id or b"") for tag in (CHUNK_TAG, INDEX_TAG)]
    length = len(tags[0])
    base = start + 8  # the tag stands behind the 8 bytes of the skippable frame
    while base < limit:
        block = file.read(base, min(MIB, limit - base) + length - 1)
        hits = []
        for tag in tags:
            at = block.find(tag)
            while at >= 0:
                hits.append(at)
                at = block.find(tag, at + 1)
        for at in sorted(hits):
            if at < MIB:
                yield base + at - 8
        base += MIB
