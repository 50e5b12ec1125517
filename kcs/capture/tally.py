"""What a capture contains, counted while its records pass: the summary that stands in the index.

Contract: a `Tally` is fed every record of a file once, in any chunking, and gives a `Summary` whose size is bounded
however long the file: lists end at their named maxima, counts go on. Times in ns since the Unix epoch.
Callers: the writer's worker, the tools that make files, and the reader where a file has no index.
Raises `Malformed`/`Newer` for a body that is not what its kind wants, so that no unreadable record is ever written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

import msgspec

from kcs.capture.format import ChunkMeta, HeaderFields, Malformed, Newer
from kcs.capture.records import Appended, RawRecord, decode_fields
from kcs.model import FRAME_KINDS, Fields, GapFields, Kind, OpenFields

STREAMS_MAX: Final = 4096
COUNTS_MAX: Final = 4 * STREAMS_MAX
"""(kind, stream) pairs counted apart."""

URLS_OF_STREAM_MAX: Final = 8
URL_CHARS_MAX: Final = 512
GAPS_MAX: Final = 1000
HOLES_MAX: Final = 1000
DAMAGE_MAX: Final = 1000
"""Damage of its source that a recovered file's summary lists."""

DAMAGE_LISTED_MAX: Final = 10_000
"""Damaged places that a reader lists one by one."""

MORE_DAMAGE: Final = "damaged in more places than are listed"

_PLAIN: Final = FRAME_KINDS | {int(Kind.SENT)}
_KIND_AND_STREAM_APPENDED: Final = itemgetter(0, 1)
_KIND_AND_STREAM_READ: Final = itemgetter(1, 2)


class StreamSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """One connection: records of all kinds, data frames among them, opens and closes."""

    stream: int
    records: int = 0
    frames: int = 0
    opens: int = 0
    closes: int = 0
    urls: tuple[str, ...] = ()


class GapSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """One gap record."""

    stream: int
    from_ns: int
    to_ns: int
    cause: str
    frames: int | None = None


class Damage(msgspec.Struct, frozen=True):
    """One damaged place: `length` bytes at `offset` of the file that was read.

    `records_lost` is how many records it cost, None where nothing tells; `first_number` the first of them.
    """

    offset: int
    length: int
    what: str
    records_lost: int | None = None
    first_number: int | None = None


def note_damage(found: list[Damage], damage: Damage) -> None:
    """Append it to `found`; beyond `DAMAGE_LISTED_MAX` the last entry stands for all that follow, their cost summed up.

    A hostile file has as many damaged places as it likes.
    """
    if len(found) <= DAMAGE_LISTED_MAX:
        found.append(damage)
        return
    last = found[-1]
    lost = None if last.records_lost is None or damage.records_lost is None else last.records_lost + damage.records_lost
    offset = min(last.offset, damage.offset)
    end = max(last.offset + last.length, damage.offset + damage.length)
    found[-1] = Damage(offset, end - offset, MORE_DAMAGE, lost, last.first_number)


class Summary(msgspec.Struct, frozen=True, omit_defaults=True):
    """The index's summary; see section 5 of FORMAT.md."""

    header: HeaderFields
    first_ns: int | None = None
    last_ns: int | None = None
    raw_bytes: int = 0
    stored_bytes: int = 0
    kinds: dict[str, int] = {}
    streams: tuple[StreamSummary, ...] = ()
    gaps: tuple[GapSummary, ...] = ()
    gap_count: int = 0
    reconnects: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    missing: int = 0
    recovered: tuple[Damage, ...] = ()


def fields_of(records: Sequence[Appended]) -> list[tuple[int, Fields]]:
    """(stream, fields) of those records that have fields. Raises `Malformed` when one would be unreadable."""
    found = []
    for kind, stream, _, body in records:
        if kind not in _PLAIN:
            try:
                found.append((stream, decode_fields(kind, body)[0]))
            except Newer as exc:
                raise Malformed(f"kcs writes no {exc}") from exc
    return found


class Tally:
    """Counts; mutable, one a file, not thread-safe."""

    __slots__ = (
        "_counts",
        "_gaps",
        "_opened",
        "_others",
        "_urls",
        "chunks",
        "first_ns",
        "gap_count",
        "holes",
        "last_ns",
        "missing",
        "next_number",
        "raw_bytes",
        "reconnects",
        "records",
        "stored_bytes",
    )

    def __init__(self) -> None:
        self.records = 0
        self.chunks = 0
        self.next_number = 0
        self.raw_bytes = 0
        self.stored_bytes = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.gap_count = 0
        self.reconnects = 0
        self.missing = 0
        self.holes: list[tuple[int, int]] = []
        self._counts: Counter[tuple[int, int]] = Counter()
        self._gaps: list[GapSummary] = []
        self._urls: dict[int, list[str]] = {}
        self._opened: set[int] = set()
        self._others: Counter[int] = Counter()

    def add_chunk(self, meta: ChunkMeta) -> None:
        """Count a chunk as such: numbers, holes, sizes, times."""
        self.skip_to(meta.first_number)
        self.next_number = meta.next_number
        self.chunks += 1
        self.records += meta.records
        self.raw_bytes += meta.raw_bytes
        self.stored_bytes += meta.stored_bytes
        self.first_ns = meta.first_ns if self.first_ns is None else min(self.first_ns, meta.first_ns)
        self.last_ns = meta.last_ns if self.last_ns is None else max(self.last_ns, meta.last_ns)

    def skip_to(self, number: int) -> None:
        """The next record, if any, has this number; those before it are missing."""
        missing = number - self.next_number
        if missing > 0:
            self.missing += missing
            if len(self.holes) < HOLES_MAX:
                self.holes.append((self.next_number, missing))
            self.next_number = number

    def add_appended(self, records: Sequence[Appended], fields: Sequence[tuple[int, Fields]]) -> None:
        """Count records that are in the file now; `fields` is what `fields_of` gave for them."""
        self._counts.update(map(_KIND_AND_STREAM_APPENDED, records))
        for stream, one in fields:
            self._add_fields(stream, one)
        self._fold()

    def add_read(self, records: Sequence[RawRecord]) -> None:
        """Count records as read from a file."""
        self._counts.update(map(_KIND_AND_STREAM_READ, records))
        for record in records:
            if record[5] is not None:
                self._add_fields(record[2], record[5])
        self._fold()

    def _fold(self) -> None:
        """Keep the counts bounded: of too many streams, those seen last are counted together."""
        if len(self._counts) <= COUNTS_MAX:
            return
        known = set(list(dict.fromkeys(stream for _, stream in self._counts))[:STREAMS_MAX])
        for key in [key for key in self._counts if key[1] not in known]:
            self._others[key[0]] += self._counts.pop(key)

    def _add_fields(self, stream: int, fields: Fields) -> None:
        if isinstance(fields, OpenFields):
            self._add_open(stream, fields)
        elif isinstance(fields, GapFields):
            self.gap_count += 1
            if len(self._gaps) < GAPS_MAX:
                cause = fields.cause[:URL_CHARS_MAX]
                self._gaps.append(GapSummary(stream, fields.from_ns, fields.to_ns, cause, fields.frames))

    def _add_open(self, stream: int, fields: OpenFields) -> None:
        if stream in self._opened and not fields.continued:
            self.reconnects += 1
        if stream not in self._opened and len(self._opened) == STREAMS_MAX:
            return
        self._opened.add(stream)
        urls = self._urls.setdefault(stream, [])
        url = fields.url[:URL_CHARS_MAX]
        if url not in urls and len(urls) < URLS_OF_STREAM_MAX:
            urls.append(url)

    def summary(self, header: HeaderFields, recovered: Sequence[Damage] = ()) -> Summary:
        """The summary so far."""
        return Summary(
            header=header,
            first_ns=self.first_ns,
            last_ns=self.last_ns,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            kinds=self.kinds(),
            streams=self._streams(),
            gaps=tuple(self._gaps),
            gap_count=self.gap_count,
            reconnects=self.reconnects,
            holes=tuple(self.holes),
            missing=self.missing,
            recovered=tuple(recovered[:DAMAGE_MAX]),
        )

    def kinds(self) -> dict[str, int]:
        """Records by name of kind."""
        kinds = self._others.copy()
        for (kind, _), count in self._counts.items():
            kinds[kind] += count
        return {_kind_name(kind): kinds[kind] for kind in sorted(kinds)}

    def _streams(self) -> tuple[StreamSummary, ...]:
        by_stream: dict[int, dict[int, int]] = {}
        for (kind, stream), count in self._counts.items():
            by_stream.setdefault(stream, {})[kind] = count
        return tuple(
            StreamSummary(
                stream=stream,
                records=sum(counts.values()),
                frames=sum(counts.get(kind, 0) for kind in FRAME_KINDS),
                opens=counts.get(Kind.OPEN, 0),
                closes=counts.get(Kind.CLOSE, 0),
                urls=tuple(self._urls.get(stream, ())),
            )
            for stream, counts in sorted(by_stream.items())[:STREAMS_MAX]
        )


def _kind_name(kind: int) -> str:
    return Kind(kind).name.lower() if kind in Kind._value2member_map_ else str(kind)
