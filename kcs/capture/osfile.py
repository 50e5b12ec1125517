"""The operating system's side of writing captures: exclusive creation, locks, whole writes, typed errors.

Contract: every failure of the system leaves here as `CaptureWriteError` or `CaptureBusyError` with path, cause and
remedy. Files are for owner and group only (less the umask), and nothing is written through a symbolic link: who may
put one into a directory must not choose where kcs writes. Callers: output, writer and the tools of this package,
`kcs.live.receipt`. Sizes in bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

_REASONS: Final = {
    errno.EACCES: ("no permission", "check owner and mode, or choose another directory"),
    errno.EPERM: ("not permitted", "check owner and mode, or choose another directory"),
    errno.EROFS: ("the file system is read-only", "choose another directory"),
    errno.ENOSPC: ("the disk is full", "free space, or capture to another disk; what was written stays readable"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free space, or capture to another disk; what was written stays readable",
    ),
    errno.EFBIG: ("the file may not grow further (file size limit)", "raise `ulimit -f`, or rotate by --max-size"),
    errno.EEXIST: ("it exists already", "choose another name; nothing is overwritten without --force"),
    errno.ENOTDIR: ("a part of the path is not a directory", "choose a directory"),
    errno.EISDIR: ("it is a directory", "name a file"),
    errno.ENOENT: ("no such directory", "create it first"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter path"),
    errno.ELOOP: ("it is a symbolic link", "remove it, or name what it leads to: kcs writes through none"),
    errno.EMFILE: ("too many open files", "raise `ulimit -n`"),
    errno.EIO: ("the disk reports an input/output error", "check the disk (dmesg)"),
}


def write_error(exc: OSError, path: Path, doing: str) -> CaptureWriteError:
    """`exc` as the typed error: what was being done, why it failed, what to try."""
    reason, remedy = _REASONS.get(exc.errno or 0, (exc.strerror or str(exc), ""))
    error = CaptureWriteError(f"cannot {doing}: {reason}", where=str(path), remedy=remedy)
    error.__cause__ = exc
    return error


def exists(path: Path) -> bool:
    """Whether something has this name. Raises `CaptureWriteError` where that cannot be seen."""
    try:
        return path.exists()
    except OSError as exc:
        raise write_error(exc, path, "look at it") from exc


def make_directory(path: Path) -> None:
    """Make it, and what is missing above it, for owner and group only. Raises OSError."""
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_directory(path.parent)
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise


def create_locked(path: Path) -> int:
    """A new file under an exclusive lock; its descriptor.

    Raises `CaptureWriteError` when it exists already, `CaptureBusyError` when another process took it between its
    creation and the lock (`remove_stale` does): what has no name any more must not be written to.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except OSError as exc:
        raise write_error(exc, path, "create the capture file") from exc
    return _locked(fd, path)


def lock_existing(path: Path) -> int:
    """An existing file for reading and writing under an exclusive lock; its descriptor.

    Raises `CaptureBusyError` while its writer lives or another process seals it, `CaptureWriteError` where the system
    refuses, `CaptureError` when it is gone.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as exc:
        raise CaptureError("it is gone", where=str(path)) from exc
    except OSError as exc:
        raise write_error(exc, path, "open it for sealing") from exc
    return _locked(fd, path)


def _locked(fd: int, path: Path) -> int:
    """`fd` under an exclusive lock, still the file at `path`; else closes it and raises."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not _is_at(fd, path)
    except BlockingIOError:
        taken = True
    except OSError as exc:
        os.close(fd)
        raise write_error(exc, path, "lock the capture file") from exc
    if taken:
        os.close(fd)
        raise _busy(path)
    return fd


def remove_stale(path: Path) -> None:
    """Unlink what a dead process left at `path`, if anything, and never a file that somebody writes.

    The lock is held while the name goes away, and the name is looked at under the lock: of two processes that find the
    same dead file, the second must not remove what the first has begun meanwhile. Raises `CaptureBusyError`,
    `CaptureWriteError`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise write_error(exc, path, "remove what a dead run left") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(fd, path):
            raise _busy(path)
        path.unlink()
    except BlockingIOError as exc:
        raise _busy(path) from exc
    except OSError as exc:
        raise write_error(exc, path, "remove what a dead run left") from exc
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _busy(path: Path) -> CaptureBusyError:
    return CaptureBusyError(
        "another kcs is writing this file", where=str(path), remedy="wait for it, or choose another name"
    )


def assert_not_locked(path: Path) -> None:
    """Raises `CaptureBusyError` when a collector still writes `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise CaptureError(f"cannot open: {exc.strerror}", where=str(path)) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise CaptureBusyError(
            "a collector is still writing this capture",
            where=str(path),
            remedy="stop it first; it seals the file itself",
        ) from exc
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte at the descriptor's position. Raises OSError; then an unknown part of `data` is in the file."""
    written = os.write(fd, data)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(data):  # short: a signal, or the last bytes of a full disk
        written += os.write(fd, view[written:])


def write_small(path: Path, data: bytes, *, fsync: bool = False) -> None:
    """A new file with this content; what has its name, a link for instance, is removed first. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(fd, data)
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_small(path: Path, size_max: int) -> bytes | None:
    """All of a small file; None where there is none. A device or pipe is not read, a large file not to its end.

    Raises `CaptureError`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CaptureError(f"cannot read: {exc.strerror or exc}", where=str(path)) from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CaptureError("cannot read: it is no regular file", where=str(path))
        data = b""
        while len(data) <= size_max:
            more = os.read(fd, size_max + 1 - len(data))
            if not more:
                return data
            data += more
    except OSError as exc:
        raise CaptureError(f"cannot read: {exc.strerror or exc}", where=str(path)) from exc
    finally:
        os.close(fd)
    raise CaptureError(f"cannot read: it has more than {size_max:,} bytes", where=str(path))


def sync_directory(path: Path) -> None:
    """Make a rename or creation in `path` last. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class DirectoryLock:
    """The one collector of an exchange in a directory, and disk space kept for its index.

    The lock file `.{exchange}.lock` stays when released: unlinking it would let two processes hold two locks of one
    name. While held it contains the holder's pid and the reserve.
    """

    __slots__ = ("_fd", "path", "reserved_bytes")

    def __init__(self, directory: Path, exchange: str) -> None:
        """Take it, at once or not at all. Raises `CaptureBusyError`, `CaptureWriteError`."""
        self.path = directory / f".{exchange}.lock"
        self.reserved_bytes = 0
        try:
            make_directory(directory)
        except FileExistsError as exc:
            raise write_error(NotADirectoryError(errno.ENOTDIR, ""), directory, "capture here") from exc
        except OSError as exc:
            raise write_error(exc, directory, "create the directory") from exc
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, FILE_MODE)
        except OSError as exc:
            where = self.path if exc.errno == errno.ELOOP else directory
            raise write_error(exc, where, "capture here") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(self._fd, 32, 0).split(b"\n")[0].decode("ascii", "replace")
            os.close(self._fd)
            raise CaptureBusyError(
                f"another collector{f' (process {holder})' if holder.isdigit() else ''} captures {exchange} here",
                where=str(directory),
                remedy="stop it, or give this one another directory",
            ) from exc

    def reserve(self, size: int) -> None:
        """Have at least `size` bytes set aside. Raises OSError (disk full)."""
        if size <= self.reserved_bytes:
            return
        if self.reserved_bytes == 0:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        _allocate(self._fd, size)
        self.reserved_bytes = size

    def give_back(self) -> None:
        """Free the reserve: the index needs the space now."""
        os.ftruncate(self._fd, 0)
        self.reserved_bytes = 0

    def release(self) -> None:
        """Free reserve and lock; safe to call twice."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            finally:
                os.close(self._fd)
                self._fd = -1


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    end = os.fstat(fd).st_size  # macOS
    while end < size:
        end += os.pwrite(fd, bytes(min(size - end, 1 << 20)), end)
