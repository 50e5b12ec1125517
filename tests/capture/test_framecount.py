"""What opens and closes say of frames, against what is there: holes, streams, rotation, files without counts."""

from __future__ import annotations

import pytest

from kcs.capture import framecount
from kcs.capture.framecount import FrameCount, Miscount
from kcs.capture.records import RawRecord
from kcs.model import CloseFields, Kind, OpenFields


def opened(number: int, frames: int = 0, *, stream: int = 0, continued: bool = False) -> RawRecord:
    return number, int(Kind.OPEN), stream, 5, b"", OpenFields("ws://x", "start", frames, continued)


def closed(number: int, frames: int = 0, *, stream: int = 0) -> RawRecord:
    return number, int(Kind.CLOSE), stream, 5, b"", CloseFields(1006, "", "lost", frames)


def frame(number: int, *, stream: int = 0, kind: Kind = Kind.TEXT) -> RawRecord:
    return number, int(kind), stream, 5, b"{}", None


def found(*records: RawRecord, at_once: int = 100) -> list[Miscount]:
    count = FrameCount()
    for start in range(0, len(records), at_once):
        count.add(records[start : start + at_once])
    return count.found


@pytest.mark.parametrize("at_once", [1, 100])
def test_a_capture_that_agrees(at_once: int) -> None:
    records = [opened(0), frame(1), frame(2, kind=Kind.SENT), frame(3, kind=Kind.BINARY), closed(4, 2)]
    records += [opened(5, 2), frame(6), closed(7, 3)]
    assert found(*records, at_once=at_once) == []


@pytest.mark.parametrize("said", [1, 3, 1_000, -1])
def test_another_number_than_is_there_is_found(said: int) -> None:
    assert found(opened(0), frame(1), frame(2), closed(3, said)) == [Miscount(3, 0, said, 2)]


def test_one_difference_is_found_once() -> None:
    records = [opened(0), frame(1), closed(2, 4), opened(3, 4), frame(4), closed(5, 5)]
    assert found(*records) == [Miscount(2, 0, 4, 1)]


def test_streams_are_counted_apart() -> None:
    records = [opened(0), opened(1, stream=7), frame(2, stream=7), frame(3), frame(4), closed(5, 2), frame(6, stream=7)]
    assert found(*records, closed(7, 2, stream=7)) == []
    assert found(*records, closed(7, 3, stream=7)) == [Miscount(7, 7, 3, 2)]


def test_a_rotated_file_begins_with_what_came_before_it() -> None:
    records = [opened(0, 1_000, continued=True), frame(1), frame(2)]
    assert found(*records, closed(3, 1_002)) == []
    assert found(*records, closed(3, 1_001)) == [Miscount(3, 0, 1_001, 1_002)]


@pytest.mark.parametrize(("missing", "known"), [(1, True), (3, True), (4, False)])
def test_a_hole_explains_as_many_as_it_is_long(missing: int, known: bool) -> None:
    records = [opened(0), frame(1), frame(5), closed(6, 2 + missing), opened(7, 2 + missing), frame(8)]
    assert found(*records, closed(9, 3 + missing)) == ([] if known else [Miscount(6, 0, 6, 2)])
    assert found(*records, closed(9, 4 + missing))[-1] == Miscount(9, 0, 4 + missing, 3 + missing), "only one's own"


def test_what_carries_no_counts_claims_nothing() -> None:
    assert found(opened(0), frame(1), closed(2), opened(3), frame(4), closed(5)) == []
    assert found(frame(0), closed(1, 500)) == [], "no open gave a base"
    assert found(frame(0), opened(1, 500), frame(2), closed(3, 501)) == []


def after(*records: RawRecord, missing: int = 0, before: FrameCount | None = None) -> FrameCount:
    """The count of the file that follows one with these records; `missing` of that one's numbers are not there."""
    count = before or FrameCount()
    count.add(records)
    return FrameCount(count.ends(missing))


@pytest.mark.parametrize(("said", "agrees"), [(3, True), (2, False), (4, False), (0, True)])
def test_the_next_file_of_a_run_begins_where_this_one_ended(said: int, agrees: bool) -> None:
    count = after(opened(0), frame(1), frame(2), frame(3))
    count.add([opened(0, said, continued=True), frame(1)])
    assert count.found == ([] if agrees else [Miscount(0, 0, said, 3)])


def test_a_stream_that_reconnects_in_the_next_file_counts_on() -> None:
    count = after(opened(0), frame(1), closed(2, 1), opened(3, 1, stream=5), frame(4, stream=5))
    count.add([opened(0, 1), opened(1, 2, stream=5), opened(2, 77, stream=9)])
    assert count.found == [], "of stream 9 nothing was known"
    count = after(opened(0), frame(1), closed(2, 4))
    count.add([opened(0, 4)])
    assert count.found == [], "told once, by the close"


@pytest.mark.parametrize(("said", "agrees"), [(1, True), (3, True), (4, False)])
def test_missing_numbers_at_the_end_may_have_been_frames(said: int, agrees: bool) -> None:
    count = after(opened(0), frame(1), missing=2)
    count.add([opened(0, said, continued=True)])
    assert (count.found == []) == agrees


def test_a_stream_without_an_open_in_a_file_is_counted_on() -> None:
    count = after(frame(0, stream=3), before=after(opened(0, 10, stream=3), frame(1, stream=3)))
    count.add([opened(0, 12, stream=3)])
    assert count.found == [], "its frames count, wherever its open was"
    count.add([opened(1, 14, stream=3)])
    assert count.found == [Miscount(1, 3, 14, 12)]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framecount, "STREAMS_MAX", 3)
    monkeypatch.setattr(framecount, "FOUND_MAX", 2)
    streams = range(10)
    opens = [opened(n, stream=n) for n in streams]
    closes = [closed(10 + n, 5, stream=n) for n in streams]
    assert [one.stream for one in found(*opens, *closes)] == [0, 1]
    count = FrameCount()
    count.add(opens)
    assert len(count._streams) == 3
