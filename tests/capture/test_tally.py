"""The summary that stands in the index: right, and bounded."""

from __future__ import annotations

import msgspec
import pytest

from kcs.capture.format import SUMMARY_BYTES_MAX, ChunkMeta, Malformed, header_fields
from kcs.capture.records import Appended, encode_fields
from kcs.capture.tally import (
    COUNTS_MAX,
    DAMAGE_MAX,
    GAPS_MAX,
    HOLES_MAX,
    STREAMS_MAX,
    Damage,
    Tally,
    fields_of,
)
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from tests.capture.making import header


def feed(tally: Tally, records: list[Appended]) -> None:
    tally.add_appended(records, fields_of(records))


def opened(stream: int, url: str, **more: bool) -> Appended:
    return (Kind.OPEN, stream, 1, encode_fields(OpenFields(url=url, **more)))  # type: ignore[arg-type]


def test_counts_streams_urls_gaps_reconnects() -> None:
    tally = Tally()
    feed(tally, [opened(1, "a"), (3, 1, 1, b""), (4, 1, 1, b""), (2, 1, 1, b""), opened(2, "c")])
    feed(tally, [(Kind.CLOSE, 1, 1, encode_fields(CloseFields(code=1000)))])
    feed(tally, [(Kind.GAP, 1, 1, encode_fields(GapFields(5, 9, "disconnect", frames=4)))])
    feed(tally, [opened(1, "b"), opened(1, "a"), opened(2, "c", continued=True)])
    summary = tally.summary(header_fields(header()))
    assert summary.kinds == {"open": 5, "sent": 1, "text": 1, "binary": 1, "close": 1, "gap": 1}
    one, two = summary.streams
    assert (one.stream, one.records, one.frames, one.opens, one.closes, one.urls) == (1, 8, 2, 3, 1, ("a", "b"))
    assert (two.stream, two.records, two.opens, two.urls) == (2, 2, 2, ("c",))
    assert summary.reconnects == 2
    assert summary.gap_count == 1
    assert (summary.gaps[0].from_ns, summary.gaps[0].cause, summary.gaps[0].frames) == (5, "disconnect", 4)


def test_times_and_holes_come_from_the_chunks() -> None:
    tally = Tally()
    tally.add_chunk(ChunkMeta(2, 3, 10, 20, 0, 50, 60))
    tally.add_chunk(ChunkMeta(5, 1, 10, 20, 0, 40, 45))
    tally.add_chunk(ChunkMeta(10, 1, 10, 20, 0, 70, 71))
    tally.skip_to(15)
    summary = tally.summary(header_fields(header()))
    assert (summary.first_ns, summary.last_ns, summary.raw_bytes, summary.stored_bytes) == (40, 71, 60, 30)
    assert (summary.holes, summary.missing) == (((0, 2), (6, 4), (11, 4)), 10)
    assert (tally.records, tally.next_number) == (5, 15)


def test_summary_is_bounded_however_wild_the_records() -> None:
    tally = Tally()
    wild = "x" * 5000
    for start in range(0, 3 * COUNTS_MAX, 1000):
        feed(tally, [opened(stream, wild + str(stream)) for stream in range(start, start + 1000)])
    feed(tally, [opened(0, f"{n}") for n in range(100)])
    gap: Appended = (Kind.GAP, 1, 1, encode_fields(GapFields(5, 9, wild)))
    feed(tally, [gap] * (GAPS_MAX + 7))
    for number in range(HOLES_MAX + 5):
        tally.add_chunk(ChunkMeta(2 * number + 1, 1, 1, 1, 0, 5, 5))
    damage = [Damage(0, 1, wild[:100])] * (DAMAGE_MAX + 1)
    summary = tally.summary(header_fields(header()), damage)
    assert len(tally._counts) <= COUNTS_MAX + 1000
    assert len(summary.streams) == STREAMS_MAX
    assert summary.kinds == {"open": 3 * COUNTS_MAX + (-3 * COUNTS_MAX) % 1000 + 100, "gap": GAPS_MAX + 7}
    assert (len(summary.gaps), summary.gap_count) == (GAPS_MAX, GAPS_MAX + 7)
    assert (len(summary.holes), summary.missing) == (HOLES_MAX, HOLES_MAX + 5)
    assert len(summary.recovered) == DAMAGE_MAX
    assert len(msgspec.json.encode(summary)) < SUMMARY_BYTES_MAX


@pytest.mark.parametrize("record", [(Kind.OPEN, 1, 1, b"{}"), (77, 1, 1, b""), (200, 1, 1, b"")])
def test_unreadable_records_are_refused_before_they_are_written(record: Appended) -> None:
    with pytest.raises(Malformed):
        fields_of([record])
