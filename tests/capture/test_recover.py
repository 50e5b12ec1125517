"""Recovering and repacking: same capture, same numbers, and the truth about what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from kcs.capture.output import CaptureFile
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover, repack
from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError, DamagedCaptureError, NotACaptureError
from tests.capture.making import START_NS, all_kinds, append, chunks_of, frames, header, make, records_of, writer
from tests.capture.test_reader import flip


def test_killed_capture_becomes_a_sealed_one(tmp_path: Path) -> None:
    path = make(tmp_path, sealed=False)
    report = recover(path, tmp_path / "out.zst")
    with CaptureReader(tmp_path / "out.zst") as reader:
        assert reader.sealed
        assert reader.header == header()
        assert list(reader.records()) == list(frames(12))
        info = reader.info()
    assert (info.records, info.chunks, info.kinds, info.missing) == (12, 4, {"text": 12}, 0)
    assert (report.records, report.missing, report.complete, report.damage) == (12, 0, True, ())
    assert report.bytes == (tmp_path / "out.zst").stat().st_size
    assert report.capture_id == header().capture_id.hex()


def test_recovering_what_is_whole_gives_the_same_bytes(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for record in all_kinds():
        append(target, record)
        target.flush()
    (sealed,) = target.close(START_NS)
    assert recover(sealed.path, tmp_path / "out.zst").complete
    assert (tmp_path / "out.zst").read_bytes() == sealed.path.read_bytes()


def test_hole_in_the_middle_keeps_the_numbers(tmp_path: Path) -> None:
    path = make(tmp_path)
    second = chunks_of(path)[1]
    flip(path, second.offset + 90, 2)
    report = recover(path, tmp_path / "out.zst")
    assert (report.records, report.missing, report.holes, report.complete) == (9, 3, ((3, 3),), False)
    assert [(d.offset, d.records_lost, d.first_number) for d in report.damage] == [(second.offset, 3, 3)]
    assert [r.number for r in records_of(tmp_path / "out.zst")] == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    with CaptureReader(tmp_path / "out.zst") as reader:
        info = reader.info()
    assert (info.missing, info.holes, info.recovered) == (3, ((3, 3),), report.damage)


def test_records_lost_at_the_end_of_a_sealed_file_are_known_and_stay_known(tmp_path: Path) -> None:
    path = make(tmp_path)
    flip(path, chunks_of(path)[3].offset + 90, 2)
    one = recover(path, tmp_path / "one.zst")
    two = recover(tmp_path / "one.zst", tmp_path / "two.zst")
    assert one.missing == two.missing == 3
    assert one.holes == two.holes == ((9, 3),)
    assert (two.damage, two.complete) == ((), False)
    assert (tmp_path / "one.zst").read_bytes() == (tmp_path / "two.zst").read_bytes()


def test_cut_file_is_never_called_complete(tmp_path: Path) -> None:
    path = make(tmp_path)
    os.truncate(path, chunks_of(path)[3].offset)
    report = recover(path, tmp_path / "out.zst")
    assert (report.records, report.missing, report.complete) == (9, 0, False)
    assert [d.records_lost for d in report.damage] == [None]


def test_the_chunk_that_a_killed_collector_was_writing_is_no_loss_of_the_capture(tmp_path: Path) -> None:
    """Its records were never whole on disk: as if the kill had come a moment earlier. A seal in place says the same."""
    path = make(tmp_path, sealed=False)
    data, last = path.read_bytes(), chunks_of(path)[3]
    for length in (10, 80):
        path.write_bytes(data[: last.offset + length])
        report = recover(path, tmp_path / "out.zst", force=True)
        assert (report.records, report.missing, report.complete) == (9, 0, True)
        assert [(d.offset, d.length, d.records_lost) for d in report.damage] == [(last.offset, length, 0)]
    sealed = path.rename(path.with_suffix(""))
    assert recover(sealed, tmp_path / "out.zst", force=True).complete is False, "a sealed one was whole before"


def test_recover_from_every_cut_gives_a_file_that_reads_strictly(tmp_path: Path) -> None:
    path = make(tmp_path)
    data = path.read_bytes()
    first = chunks_of(path)[0].offset
    for end in range(first, len(data), 19):
        path.write_bytes(data[:end])
        report = recover(path, tmp_path / "out.zst", force=True)
        assert records_of(tmp_path / "out.zst") == list(frames(report.records))


def test_a_source_that_looks_like_a_dead_runs_leftover_is_not_removed(tmp_path: Path) -> None:
    path = make(tmp_path).rename(tmp_path / "out.zst.tmp")
    with pytest.raises(CaptureWriteError, match="same file"):
        recover(path, tmp_path / "out.zst")
    assert len(records_of(path)) == 12


def test_never_overwrites_unless_forced_and_never_itself(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "out.zst").write_bytes(b"precious")
    with pytest.raises(CaptureWriteError, match="exists already"):
        recover(path, tmp_path / "out.zst")
    assert (tmp_path / "out.zst").read_bytes() == b"precious"
    recover(path, tmp_path / "out.zst", force=True)
    assert len(records_of(tmp_path / "out.zst")) == 12
    with pytest.raises(CaptureWriteError, match="same file"):
        recover(path, path, force=True)
    assert len(records_of(path)) == 12


def test_a_live_capture_is_left_alone(tmp_path: Path) -> None:
    target = writer(tmp_path)
    with pytest.raises(CaptureBusyError):
        recover(target.path, tmp_path / "out.zst")
    target.close(START_NS)
    assert not (tmp_path / "out.zst").exists()


def test_what_is_no_capture_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"hello")
    with pytest.raises(NotACaptureError):
        recover(tmp_path / "in", tmp_path / "out.zst")
    with pytest.raises(CaptureWriteError, match="no such directory"):
        recover(make(tmp_path), tmp_path / "none" / "out.zst")
    assert not (tmp_path / "out.zst").exists()


def test_undecodable_chunk_is_left_out_and_named(tmp_path: Path) -> None:
    from tests.capture.test_reader import crafted, meta_of

    bomb = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bytes(200 << 20))
    path = crafted(tmp_path / "x.partial", meta_of(bomb), bomb)
    report = recover(path, tmp_path / "out.zst")
    assert (report.records, report.complete) == (0, False)
    assert "promises" in report.damage[0].what


# ---------------------------------------------------------------- repack


def quiet_capture(directory: Path) -> Path:
    """A chunk a record, as a quiet feed has it."""
    target = writer(directory)
    for record in frames(300):
        append(target, record)
        target.flush()
    return target.close(START_NS)[0].path


def test_repack_keeps_everything_but_the_size(tmp_path: Path) -> None:
    path = quiet_capture(tmp_path)
    before, size = records_of(path), path.stat().st_size
    with CaptureReader(path) as reader:
        old = reader.info()
        report = repack(path)
        assert list(reader.records()) == before  # a reader that has it open goes on
    assert records_of(path) == before
    with CaptureReader(path) as reader:
        new = reader.info()
    assert (report.chunks_before, report.chunks_after, report.records) == (300, 1, 300)
    assert report.bytes_before == size > 5 * report.bytes_after == 5 * path.stat().st_size
    assert (new.records, new.kinds, new.streams, new.raw_bytes) == (old.records, old.kinds, old.streams, old.raw_bytes)
    assert new.capture_id == old.capture_id
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_repack_is_near_one_frame_over_the_whole_stream(tmp_path: Path) -> None:
    path = quiet_capture(tmp_path)
    whole = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
    with whole:
        stream = whole.read()
    repack(path)
    with CaptureReader(path) as reader:
        assert reader.info().stored_bytes <= 1.05 * len(zstandard.compress(stream, 3))


def test_repack_honours_bounds_and_holes(tmp_path: Path) -> None:
    file = CaptureFile(tmp_path / "a.partial", tmp_path / "a.zst", header())
    for number in (0, 1, 2, 5, 6, 7):
        file.write(number, [(3, 1, 10 + number, b"x" * 100)])
    file.tally.skip_to(9)
    file.seal()
    before = records_of(tmp_path / "a.zst")
    assert repack(tmp_path / "a.zst").chunks_after == 2
    assert records_of(tmp_path / "a.zst") == before
    assert repack(tmp_path / "a.zst", chunk_bytes=250).chunks_after == 2
    with CaptureReader(tmp_path / "a.zst") as reader:
        assert reader.info().holes == ((3, 2), (8, 1))
        assert reader.next_number == 9


def test_repack_refuses_what_is_damaged_or_not_sealed_and_leaves_it(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    flip(path, chunks_of(path)[1].offset + 90, 2)
    data = path.read_bytes()
    with pytest.raises(DamagedCaptureError):
        repack(path)
    assert path.read_bytes() == data
    with pytest.raises(CaptureError, match="only a sealed"):
        repack(make(tmp_path / "b", sealed=False))
    assert list(tmp_path.rglob("*.tmp")) == []


def test_repack_keeps_the_old_file_when_the_new_one_reads_back_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path)
    data = path.read_bytes()
    write = CaptureFile.write_content

    def corrupting(self: CaptureFile, first: int, records: int, raw: bytes, low: int, high: int) -> None:
        write(self, first, records, raw.replace(b'"n":5', b'"n":6'), low, high)

    monkeypatch.setattr(CaptureFile, "write_content", corrupting)
    with pytest.raises(DamagedCaptureError, match="reads back differently"):
        repack(path)
    assert path.read_bytes() == data
    assert list(tmp_path.rglob("*.tmp")) == []


def test_sealed_file_counts_when_a_killed_repack_left_its_tmp(tmp_path: Path) -> None:
    path = make(tmp_path)
    path.with_name(path.name + ".tmp").write_bytes(path.read_bytes()[:200])
    assert repack(path).records == 12
    assert records_of(path) == list(frames(12))
