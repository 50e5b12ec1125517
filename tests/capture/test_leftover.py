"""Sealing in place what a dead collector left: nothing is copied, nothing intact is lost, and the damage shows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcs.capture import leftover, output
from kcs.capture.format import DESCRIPTOR_BYTES, encode_header
from kcs.capture.leftover import seal_in_place
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover, repack
from kcs.capture.scan import Chunk
from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError, DamagedCaptureError, NotACaptureError
from tests.capture.making import START_NS, all_kinds, append, chunks_of, frames, header, make, records_of, writer
from tests.capture.test_reader import flip


def left(directory: Path, chunks: int = 4) -> tuple[Path, list[Chunk]]:
    """An unsealed capture without a writer, and its chunks."""
    path = make(directory, chunks, sealed=False)
    return path, chunks_of(path)


def end_of(chunk: Chunk) -> int:
    return chunk.offset + DESCRIPTOR_BYTES + chunk.meta.stored_bytes


def test_it_becomes_what_its_writer_would_have_made_of_it(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole").read_bytes()
    path, _ = left(tmp_path)
    inode = path.stat().st_ino
    done = seal_in_place(path)
    assert done.capture.path == path.with_suffix("")
    assert not path.exists()
    assert done.capture.path.stat().st_ino == inode, "in place"
    assert done.capture.path.read_bytes() == whole
    assert (done.capture.records, done.cut, done.damage, done.header) == (12, 0, (), header())
    assert (done.capture.first_ns, done.capture.last_ns) == (START_NS, START_NS + 11_000_000)
    assert done.capture.bytes == len(whole)


def test_every_kind_is_counted(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for record in all_kinds():
        append(target, record)
        target.flush()
    target._worker.file.abandon()
    target._worker._lock.release()
    with CaptureReader(target.path) as reader:
        expected = reader.info()
    with CaptureReader(seal_in_place(target.path).capture.path) as reader:
        info = reader.info()
    assert (info.kinds, info.streams, info.gaps) == (expected.kinds, expected.streams, expected.gaps)


def test_an_unfinished_chunk_is_cut_off_at_every_byte_and_named(tmp_path: Path) -> None:
    path, chunks = left(tmp_path)
    data = path.read_bytes()
    for end in range(chunks[3].offset + 1, len(data)):
        path.write_bytes(data[:end])
        done = seal_in_place(path)
        sealed = done.capture.path
        assert (done.capture.records, done.cut, done.damage) == (9, end - chunks[3].offset, ())
        assert records_of(sealed) == list(frames(9))
        with CaptureReader(sealed) as reader:
            (torn,) = reader.info().recovered
        assert (torn.offset, torn.length, torn.records_lost) == (chunks[3].offset, done.cut, 0)
        assert ("of 3 records" in torn.what) is (end - chunks[3].offset >= DESCRIPTOR_BYTES)
        sealed.unlink()


def test_an_index_that_was_begun_is_made_anew(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole").read_bytes()
    path, chunks = left(tmp_path)
    for end in range(end_of(chunks[3]) + 20, len(whole), 7):
        path.write_bytes(whole[:end])
        done = seal_in_place(path)
        assert done.capture.path.read_bytes() == whole
        done.capture.path.unlink()


def test_a_whole_index_only_needs_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path / "whole").read_bytes()
    path, _ = left(tmp_path)
    path.write_bytes(whole)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(errno.EACCES, "no")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(CaptureWriteError):
            seal_in_place(path)
    assert path.read_bytes() == whole
    done = seal_in_place(path)
    assert done.capture.path.read_bytes() == whole
    assert (done.capture.records, done.capture.last_ns) == (12, START_NS + 11_000_000)


def test_damage_in_the_middle_stays_is_passed_over_and_named(tmp_path: Path) -> None:
    path, chunks = left(tmp_path)
    flip(path, chunks[1].offset + 90, 2)
    data = path.read_bytes()
    done = seal_in_place(path)
    sealed = done.capture.path
    assert sealed.read_bytes()[: len(data)] == data
    assert [(d.offset, d.records_lost, d.first_number) for d in done.damage] == [(chunks[1].offset, 3, 3)]
    assert [record.number for record in records_of(sealed)] == [0, 1, 2, 6, 7, 8, 9, 10, 11], "strictly"
    with CaptureReader(sealed) as reader:
        info = reader.info()
        assert list(reader.chunks()) == [chunks[0], *chunks[2:]]
        assert reader.damage == []
    assert (info.missing, info.holes, info.recovered) == (3, ((3, 3),), done.damage)
    report = recover(sealed, tmp_path / "out.zst")
    assert (report.complete, report.holes, report.damage) == (False, ((3, 3),), ())
    repack(sealed)
    assert records_of(sealed) == records_of(tmp_path / "out.zst")


def test_gaps_between_chunks_that_the_summary_does_not_name_are_damage(tmp_path: Path) -> None:
    """What a seal in place passed over is named; a file of which chunks vanish otherwise is not trusted."""
    path, chunks = left(tmp_path)
    flip(path, chunks[1].offset + 90, 2)
    sealed = seal_in_place(path).capture.path
    named = b'"offset":%d' % chunks[1].offset
    data = sealed.read_bytes()
    assert data.count(named) == 1
    from kcs.capture.format import encode_index, pack_entry

    entries = b"".join(pack_entry(chunk.offset, chunk.meta) for chunk in (chunks[0], *chunks[2:]))
    end = end_of(chunks[3])
    whole = data[data.index(b'{"header"', end) : data.rindex(b"}") + 1]
    length = b'"length":%d' % (DESCRIPTOR_BYTES + chunks[1].meta.stored_bytes)
    assert whole.count(length) == 1
    half = whole.replace(length, b'"length":%d' % DESCRIPTOR_BYTES)
    for summary in (b'{"header":{}}', b"nothing", half):
        parts = encode_index(header().capture_id, entries, summary, offset=end, records=9, next_number=12)
        sealed.write_bytes(data[:end] + b"".join(parts))
        with pytest.raises(DamagedCaptureError, match="index entry"):
            records_of(sealed)
        assert len(records_of(sealed, strict=False)) == 9


def test_a_damaged_last_chunk_leaves_a_hole_at_the_end(tmp_path: Path) -> None:
    path, chunks = left(tmp_path)
    flip(path, chunks[3].offset + 90, 2)
    data = path.read_bytes()
    done = seal_in_place(path)
    assert done.capture.path.read_bytes().startswith(data), "it is damage, not an unfinished chunk: it stays"
    with CaptureReader(done.capture.path) as reader:
        assert len(list(reader.records())) == 9
        assert (reader.next_number, reader.holes) == (12, 3)
        assert reader.info().holes == ((9, 3),)


def test_zeros_at_the_end_after_a_power_cut_are_damage(tmp_path: Path) -> None:
    path, _ = left(tmp_path)
    with path.open("ab") as file:
        file.write(bytes(4096))
    done = seal_in_place(path)
    assert [(d.length, d.records_lost) for d in done.damage] == [(4096, None)]
    assert records_of(done.capture.path) == list(frames(12))


def test_damage_before_an_unfinished_chunk(tmp_path: Path) -> None:
    path, chunks = left(tmp_path)
    os.truncate(path, chunks[3].offset + 80)
    flip(path, chunks[2].offset + 90, 2)
    done = seal_in_place(path)
    assert (done.cut, [d.first_number for d in done.damage]) == (80, [6])
    assert records_of(done.capture.path) == list(frames(6))


def test_a_damaged_header_is_no_reason_to_lose_the_rest(tmp_path: Path) -> None:
    path, _ = left(tmp_path)
    flip(path, 20, 2)
    done = seal_in_place(path)
    assert (done.header.exchange, [d.offset for d in done.damage]) == ("upbit", [0])
    assert records_of(done.capture.path, strict=False) == list(frames(12))


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 7), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_happened_to_it_every_readable_record_is_kept(
    tmp_path: Path, at: int, end: int, bit: int, cut: bool
) -> None:
    for name in tmp_path.glob("upbit-*"):
        name.unlink()
    path, _ = left(tmp_path)
    size = path.stat().st_size
    flip(path, at % size, bit)
    if cut:
        os.truncate(path, end % size)
    try:
        before = records_of(path, strict=False)
    except CaptureError:
        with pytest.raises(CaptureError):
            seal_in_place(path)
        assert path.exists()
        return
    try:
        done = seal_in_place(path)
    except CaptureError:
        assert before == [], "its header is damaged and no chunk is whole"
        assert path.exists()
        return
    assert records_of(done.capture.path, strict=False) == before
    assert all(record in list(frames(12)) for record in before)


# ---------------------------------------------------------------- refusals


def test_a_live_capture_is_left_alone(tmp_path: Path) -> None:
    target = writer(tmp_path)
    with pytest.raises(CaptureBusyError):
        seal_in_place(target.path)
    target.close(START_NS)


def test_a_file_that_is_sealed_meanwhile_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking another process may seal it: the lock is then on a file of another name."""
    path, _ = left(tmp_path)
    from kcs.capture import osfile

    def seal_first(fd: int, operation: int) -> None:
        monkeypatch.undo()
        seal_in_place(path)

    monkeypatch.setattr(osfile.fcntl, "flock", seal_first)
    with pytest.raises(CaptureBusyError):
        seal_in_place(path)
    assert records_of(path.with_suffix("")) == list(frames(12))


def test_what_holds_nothing_stays(tmp_path: Path) -> None:
    for name, content, error in (
        ("a.zst.partial", b"", NotACaptureError),
        ("b.zst.partial", encode_header(header())[:-1], DamagedCaptureError),
        ("c.zst.partial", b"hello", NotACaptureError),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(error):
            seal_in_place(path)
        assert path.read_bytes() == content
    with pytest.raises(CaptureError, match="gone"):
        seal_in_place(tmp_path / "d.zst.partial")
    with pytest.raises(CaptureError, match="not the name"):
        seal_in_place(tmp_path / "d.zst")


def test_a_header_alone_becomes_an_empty_capture(tmp_path: Path) -> None:
    path = tmp_path / "x.zst.partial"
    path.write_bytes(encode_header(header()))
    done = seal_in_place(path)
    assert (done.capture.records, records_of(done.capture.path)) == (0, [])


def test_a_sealed_file_beside_it_is_never_overwritten(tmp_path: Path) -> None:
    path, _ = left(tmp_path)
    path.with_suffix("").write_bytes(b"precious")
    with pytest.raises(CaptureWriteError, match="exists already"):
        seal_in_place(path)
    assert path.with_suffix("").read_bytes() == b"precious"
    assert records_of(path) == list(frames(12))


@pytest.mark.parametrize("torn", [False, True])
def test_a_full_disk_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool) -> None:
    path, chunks = left(tmp_path)
    if torn:
        os.truncate(path, chunks[3].offset + 80)
    kept = path.read_bytes()[: chunks[3].offset if torn else None]

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(output, "write_all", full)
        with pytest.raises(CaptureWriteError, match="disk is full"):
            seal_in_place(path)
    assert path.read_bytes() == kept
    assert seal_in_place(path).capture.records == (9 if torn else 12)


def test_a_read_only_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = left(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(leftover, "lock_existing", leftover.lock_existing)
        patched.setattr(os, "open", refuse)
        with pytest.raises(CaptureWriteError, match="no permission"):
            seal_in_place(path)
    assert records_of(path) == list(frames(12))
