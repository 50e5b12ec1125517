"""One capture file being made, with a disk that fails."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from kcs.capture.osfile import remove_stale
from kcs.capture.output import CaptureFile, ChunkPacker, making
from kcs.capture.records import Appended, encode_records
from kcs.clock import SystemClock
from kcs.errors import CaptureBusyError, CaptureWriteError
from tests.capture.making import header, make, records_of

RECORDS: list[Appended] = [(3, 1, 1000 + n, b"frame %d" % n) for n in range(5)]


def new(directory: Path) -> CaptureFile:
    return CaptureFile(directory / "a.zst.partial", directory / "a.zst", header())


def test_zstd_reads_the_record_stream_through_all_frames(tmp_path: Path) -> None:
    path = make(tmp_path, chunks=3)
    with path.open("rb") as source:
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        stream = reader.read()
    expected = encode_records([(r.kind, r.stream, r.recv_ns, r.payload) for r in records_of(path)])
    assert stream == expected


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd program")
@pytest.mark.parametrize("sealed", [True, False])
def test_the_zstd_program_agrees(tmp_path: Path, sealed: bool) -> None:
    path = make(tmp_path, chunks=3, sealed=sealed)
    subprocess.run(["zstd", "-t", "-q", "--format=zstd", path], check=True)
    done = subprocess.run(["zstd", "-dc", path], capture_output=True, check=True)
    expected = encode_records([(r.kind, r.stream, r.recv_ns, r.payload) for r in records_of(path)])
    assert done.stdout == expected


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(b"precious")
    with pytest.raises(CaptureWriteError, match="exists already") as caught:
        new(tmp_path)
    assert "--force" in caught.value.remedy
    assert (tmp_path / "a.zst").read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zst"]


def test_numbers_never_run_back(tmp_path: Path) -> None:
    file = new(tmp_path)
    file.write(5, RECORDS)
    with pytest.raises(CaptureWriteError, match="run back from 10 to 9"):
        file.write(9, RECORDS)
    file.write(12, RECORDS)
    assert file.seal().records == 10
    assert [r.number for r in records_of(tmp_path / "a.zst")] == [*range(5, 10), *range(12, 17)]


class FullDisk:
    """An `os.write` that takes `room` bytes and then has no more space."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.real = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(fd, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 71, 72, 73, 100])
def test_failed_chunk_leaves_the_whole_ones_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    file = new(tmp_path)
    file.write(0, RECORDS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(room))
        with pytest.raises(CaptureWriteError, match="disk is full"):
            file.write(5, RECORDS)
    assert len(records_of(file.path)) == 5
    sealed = file.seal()
    assert sealed.records == 5
    assert [r.payload for r in records_of(sealed.path)] == [r[3] for r in RECORDS]


@pytest.mark.parametrize("room", [0, 10, 30, 100])
def test_failed_seal_leaves_the_partial_readable_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    file = new(tmp_path)
    file.write(0, RECORDS)
    before = file.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(room))
        with pytest.raises(CaptureWriteError, match="cannot seal"):
            file.seal()
    assert file.path.read_bytes() == before
    assert len(records_of(file.path)) == 5
    assert file.seal().records == 5
    assert not file.path.exists()


def test_no_room_for_the_header_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(20))
        with pytest.raises(CaptureWriteError, match="disk is full"):
            new(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sync_that_fails_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CaptureFile(tmp_path / "a.partial", tmp_path / "a.zst", header(), fsync=True)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(CaptureWriteError, match="input/output error"):
            file.write(0, RECORDS)
    file.write(0, RECORDS)
    assert file.seal().records == 5


def test_packer_ends_a_chunk_where_numbers_jump_or_it_is_full(tmp_path: Path) -> None:
    file = new(tmp_path)
    packer = ChunkPacker(file, 100)
    numbers = [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]
    for number in numbers:
        packer.add(number, (3, 1, 5, b"x" * 20))
    packer.flush()
    file.seal()
    assert file.tally.chunks == 4
    assert [r.number for r in records_of(tmp_path / "a.zst")] == numbers


def test_seal_of_a_day_of_small_chunks_is_quick(tmp_path: Path) -> None:
    file = new(tmp_path)
    file.write(0, RECORDS)
    file._entries *= 345_600
    clock = SystemClock()
    start = clock.monotonic_ns()
    file.seal()
    assert clock.monotonic_ns() - start < 1_000_000_000


def test_tools_leave_nothing_behind_when_they_fail_and_replace_a_dead_ones_rest(tmp_path: Path) -> None:
    target = tmp_path / "out.zst"
    (tmp_path / "out.zst.tmp").write_bytes(b"of a tool that was killed")

    def fail() -> None:
        with making(target, header()) as file:
            file.write(0, RECORDS)
            with pytest.raises(CaptureBusyError), making(target, header()):
                pass
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_two_tools_that_find_one_dead_file_do_not_remove_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one removes the dead file and begins its own after this one has opened the dead one."""
    target, path = tmp_path / "out.zst", tmp_path / "out.zst.tmp"
    path.write_bytes(b"of a tool that was killed")
    flock, others = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not others:
            path.unlink()
            others.append(None)
            others[0] = CaptureFile(path, target, header())
        flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with pytest.raises(CaptureBusyError), making(target, header()):
            pass
    others[0].write(0, RECORDS)
    assert others[0].seal().records == 5
    assert len(records_of(target)) == 5


def test_the_lock_is_held_while_a_dead_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.zst.tmp"
    path.write_bytes(b"of a tool that was killed")
    unlink, refused = Path.unlink, []

    def watched(self: Path, missing_ok: bool = False) -> None:
        with pytest.raises(CaptureBusyError), making(tmp_path / "out.zst", header()):
            pass
        refused.append(self)
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", watched)
        remove_stale(path)
    assert refused == [path]
    assert not path.exists()
    remove_stale(path)


def test_a_new_file_that_was_taken_before_its_lock_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        (tmp_path / "a.zst.partial").unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(CaptureBusyError):
        new(tmp_path)


def test_unencodable_header_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CaptureWriteError, match="8 bytes"):
        CaptureFile(tmp_path / "p", tmp_path / "f", replace(header(), capture_id=b""))
    assert list(tmp_path.iterdir()) == []
