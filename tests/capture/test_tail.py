"""Following a file that is being written: nothing early, nothing twice, nothing missing, whatever the disk shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.capture.output import making as tool
from kcs.capture.reader import CaptureReader, RawRecord
from kcs.capture.records import encode_records
from kcs.capture.tail import CaptureTail
from kcs.capture.writer import CaptureWriter
from kcs.errors import DamagedCaptureError
from kcs.model import ClockFields, Kind
from tests.capture import making
from tests.capture.making import START_NS

ID = (1).to_bytes(8, "big")


def writer(directory: Path) -> CaptureWriter:
    return making.writer(directory, flush_ns=1 << 60)


def write(out: CaptureWriter, records: int) -> None:
    for _ in range(records):
        number = out.number
        if number % 7 == 3:
            out.append_fields(int(Kind.CLOCK), 0, START_NS + number, ClockFields(number, number))
        else:
            out.append(int(Kind.TEXT), number % 3, START_NS + number, b"frame %d" % number)


def rest(tail: CaptureTail) -> Iterator[RawRecord]:
    while batch := tail.read():
        yield from batch


def whole(path: Path) -> list[RawRecord]:
    with CaptureReader(path) as reader:
        return [record for batch in reader.batches() for record in batch]


def test_it_reads_what_reaches_the_disk_as_it_does_and_goes_on_after_the_seal(tmp_path: Path) -> None:
    out = writer(tmp_path)
    tail = CaptureTail(out.path, ID)
    found: list[RawRecord] = []
    for records in (5, 600, 1):
        write(out, records)
        assert tail.read() == [], "not flushed"
        out.flush()
        found += rest(tail)
        assert len(found) == out.number
    write(out, 4)
    (sealed,) = out.close(START_NS)
    found += rest(tail)
    assert found == whole(sealed.path)
    assert tail.read() == [], "the index is no chunk"
    tail.close()


def test_a_batch_is_never_more_than_512_records(tmp_path: Path) -> None:
    out = writer(tmp_path)
    write(out, 1300)
    out.flush()
    tail = CaptureTail(out.path, ID)
    sizes = []
    while batch := tail.read():
        sizes.append(len(batch))
    assert sizes == [512, 512, 276]
    out.close(START_NS)


def test_a_file_that_is_not_there_yet_is_nothing_yet(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    here.mkdir()
    out = writer(elsewhere)
    tail = CaptureTail(here / out.path.name, ID)
    assert tail.read() == []
    write(out, 3)
    out.flush()
    shutil.copy(out.path, here / out.path.name)
    assert len(tail.read()) == 3
    tail.close()
    (sealed,) = out.close(START_NS)
    (here / out.path.name).unlink()
    shutil.copy(sealed.path, here / sealed.path.name)
    late = CaptureTail(here / out.path.name, ID)
    assert len(late.read()) == 3, "sealed before it was opened"
    late.close()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_from_any_record_and_from_any_chunk_before_it(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[int], start: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("tail")
    out = writer(directory)
    offsets = [(0, 0)]
    for records in chunks:
        offsets.append((out.written_bytes(), out.number))
        write(out, records)
        out.flush()
    start = min(start, out.number)
    offset = data.draw(st.sampled_from([offset for offset, first in offsets if first <= start]))
    (sealed,) = out.close(START_NS)
    tail = CaptureTail(sealed.path, ID, number=start, offset=offset)
    assert list(rest(tail)) == whole(sealed.path)[start:]
    tail.close()


def test_at_every_length_it_yields_exactly_the_whole_chunks_and_later_the_rest(tmp_path: Path) -> None:
    out = writer(tmp_path / "whole")
    for _ in range(3):
        write(out, 2)
        out.flush()
    content = out.path.read_bytes()
    out.close(START_NS)
    growing = tmp_path / out.path.name
    for length in range(0, len(content), 3):
        growing.write_bytes(content[:length])
        tail = CaptureTail(growing, ID)
        early = list(rest(tail))
        assert len(early) % 2 == 0
        growing.write_bytes(content)
        found = early + list(rest(tail))
        assert [record[0] for record in found] == list(range(6))
        tail.close()


def test_what_does_not_match_its_checksum_is_never_returned(tmp_path: Path) -> None:
    out = writer(tmp_path / "whole")
    write(out, 2)
    out.flush()
    begin = out.written_bytes()
    write(out, 3)
    out.flush()
    content = bytearray(out.path.read_bytes())
    out.close(START_NS)
    for place in range(begin, len(content), 5):
        path = tmp_path / out.path.name
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        tail = CaptureTail(path, ID)
        assert len(tail.read()) == 2
        with pytest.raises(DamagedCaptureError, match=r"cannot be read back"):
            tail.read()
        tail.close()


def test_a_hole_and_another_capture_are_errors(tmp_path: Path) -> None:
    out = writer(tmp_path)
    write(out, 2)
    out.flush()
    behind = out.written_bytes()
    write(out, 2)
    out.flush()
    tail = CaptureTail(out.path, ID, number=1, offset=behind)
    with pytest.raises(DamagedCaptureError, match="record 1 is missing: the next one on disk is 2"):
        tail.read()
    tail.close()
    other = CaptureTail(out.path, b"other-id")
    with pytest.raises(DamagedCaptureError, match="another capture"):
        other.read()
    other.close()
    out.close(START_NS)


def test_a_chunk_of_nothing_but_ancillary_records_is_an_error_and_no_defect(tmp_path: Path) -> None:
    """Kinds of a later version, which this one passes over, have numbers: what follows them does not fit."""
    path = tmp_path / "a.zst"
    with tool(path, making.header()) as file:
        content = encode_records([(200, 1, START_NS, b"later")])
        file.write_content(0, 1, content, START_NS, START_NS)
        file.write(1, [(int(Kind.TEXT), 1, START_NS, b"x")])
        file.seal()
    tail = CaptureTail(path, making.header().capture_id)
    with pytest.raises(DamagedCaptureError, match="record 0 is missing"):
        tail.read()
    tail.close()
