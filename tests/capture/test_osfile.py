"""Locks, exclusive creation, whole writes, typed errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kcs.capture.osfile import DirectoryLock, assert_not_locked, create_locked, write_all, write_error
from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError


def test_created_exclusively_with_mode_0640_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0o022)
    try:
        fd = create_locked(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(CaptureBusyError, match="still writing"):
        assert_not_locked(path)
    with pytest.raises(CaptureWriteError, match="exists already"):
        create_locked(path)
    os.close(fd)
    assert_not_locked(path)
    with pytest.raises(CaptureError, match="cannot open"):
        assert_not_locked(tmp_path / "none")


def test_second_lock_of_an_exchange_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, "upbit")
    lock.reserve(100_000)
    with pytest.raises(CaptureBusyError, match=f"process {os.getpid()}") as caught:
        DirectoryLock(tmp_path, "upbit")
    assert caught.value.where == str(tmp_path)
    assert "another directory" in caught.value.remedy
    DirectoryLock(tmp_path, "bithumb").release()
    lock.release()
    lock.release()
    DirectoryLock(tmp_path, "upbit").release()


def test_reserve_takes_space_and_gives_it_back(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path, "upbit")
    lock.reserve(300_000)
    lock.reserve(1000)
    assert lock.reserved_bytes == 300_000
    assert lock.path.stat().st_blocks * 512 >= 300_000
    lock.give_back()
    assert lock.path.stat().st_blocks == 0
    lock.release()
    assert lock.path.exists()


def test_missing_directories_are_made_and_files_in_the_way_are_named(tmp_path: Path) -> None:
    DirectoryLock(tmp_path / "a" / "b", "upbit").release()
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(CaptureWriteError, match="not a directory"):
            DirectoryLock(bad, "upbit")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CaptureWriteError, match="no permission"):
        DirectoryLock(tmp_path, "upbit")


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EACCES, "no permission"), (errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (9999, "odd")],
)
def test_every_system_error_says_what_and_why(number: int, says: str) -> None:
    error = write_error(OSError(number, "odd"), Path("/x/y"), "write")
    assert says in error.what
    assert error.what.startswith("cannot write")
    assert error.where == "/x/y"


def test_short_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    got = bytearray()

    def three_at_a_time(fd: int, data: bytes) -> int:
        got.extend(data[:3])
        return min(3, len(data))

    monkeypatch.setattr(os, "write", three_at_a_time)
    write_all(1, b"0123456789")
    assert got == b"0123456789"
