"""Locks, exclusive creation, whole writes, typed errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kcs.capture.osfile import (
    DirectoryLock,
    assert_not_locked,
    create_locked,
    lock_existing,
    make_directory,
    read_small,
    remove_stale,
    write_all,
    write_error,
    write_small,
)
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


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Sets it; the old one comes back."""
    before = os.umask(0o022)
    try:
        yield lambda mask: (os.umask(mask), None)[1]
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("mask", "file", "directory"), [(0o022, 0o640, 0o750), (0o077, 0o600, 0o700), (0, 0o640, 0o750)]
)
def test_all_that_is_made_is_for_owner_and_group_and_the_umask_is_respected(
    tmp_path: Path, umask: Callable[[int], None], mask: int, file: int, directory: int
) -> None:
    umask(mask)
    lock = DirectoryLock(tmp_path / "a" / "b", "upbit")
    lock.release()
    write_small(tmp_path / "a" / "small", b"x")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert path.stat().st_mode & 0o7777 == directory
    for path in (lock.path, tmp_path / "a" / "small"):
        assert path.stat().st_mode & 0o7777 == file


def test_directories_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    make_directory(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o777
    (tmp_path / "link").symlink_to(tmp_path)
    make_directory(tmp_path / "link" / "x")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "dangling")


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / ".upbit.lock"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(CaptureWriteError, match="symbolic link") as error:
        DirectoryLock(tmp_path, "upbit")
    assert error.value.where == str(link)
    for refuse in (lock_existing, remove_stale, create_locked):
        with pytest.raises(CaptureWriteError):
            refuse(link)
    assert link.is_symlink()
    write_small(link, b"mine")
    assert not link.is_symlink()
    assert link.read_bytes() == b"mine"
    assert victim.read_bytes() == b"precious"


def test_a_link_to_nowhere_makes_no_file_there(tmp_path: Path) -> None:
    (tmp_path / ".upbit.lock").symlink_to(tmp_path / "planted")
    with pytest.raises(CaptureWriteError, match="symbolic link"):
        DirectoryLock(tmp_path, "upbit")
    assert not (tmp_path / "planted").exists()


def test_a_small_file_is_read_whole_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert read_small(path, 10) is None
    for content in (b"", b"0123456789"):
        path.write_bytes(content)
        assert read_small(path, 10) == content
    path.write_bytes(b"0123456789+")
    with pytest.raises(CaptureError, match="more than 10 bytes"):
        read_small(path, 10)
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CaptureError, match="no regular file"):
            read_small(what, 10)


def test_a_pipe_in_the_place_of_a_capture_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_not_locked(tmp_path / "pipe")
    os.close(lock_existing(tmp_path / "pipe"))
