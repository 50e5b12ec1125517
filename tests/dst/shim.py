"""The functions of `os`, `fcntl` and `io` with a simulated disk before them. Used by `tests.dst.disk` only."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.dst.disk import Disk

REAL: Final = SimpleNamespace(
    open=os.open, close=os.close, write=os.write, pwrite=os.pwrite, ftruncate=os.ftruncate, fsync=os.fsync,
    fdatasync=os.fdatasync, lseek=os.lseek, posix_fallocate=os.posix_fallocate, rename=os.rename, replace=os.replace,
    unlink=os.unlink, remove=os.remove, flock=fcntl.flock, io_open=io.open,
)  # fmt: skip


class _File(io.RawIOBase):
    """A file that Python code opened for writing, over a descriptor of the shim."""

    def __init__(self, fd: int, disk: Disk) -> None:
        super().__init__()
        self._fd, self._disk, self._life = fd, disk, disk.life

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._disk.life == self._life:  # else the process is dead, and the number may be somebody else's now
                os.close(self._fd)


@contextmanager
def installed(disk: Disk) -> Iterator[None]:
    """Put the shim in its place; the real functions come back at the end."""
    mine = _functions(disk)
    try:
        for name, function in mine.items():
            setattr(_home(name), name.rpartition("_")[2] if name == "io_open" else name, function)
        yield
    finally:
        for name in mine:
            setattr(_home(name), name.rpartition("_")[2] if name == "io_open" else name, getattr(REAL, name))


def _home(name: str) -> Any:
    return {"flock": fcntl, "io_open": io}.get(name, os)


def _functions(disk: Disk) -> dict[str, Any]:
    def open_(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        if disk.owns(path):
            return disk.opened(os.fspath(path), flags, mode)
        return int(REAL.open(path, flags, mode, **kwargs))

    def close(fd: int) -> None:
        disk.closed(fd) if disk.known(fd) else REAL.close(fd)

    def write(fd: int, data: Any) -> int:
        return disk.written(fd, data) if disk.known(fd) else REAL.write(fd, data)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        return disk.written(fd, data, offset) if disk.known(fd) else REAL.pwrite(fd, data, offset)

    def ftruncate(fd: int, size: int) -> None:
        disk.truncated(fd, size) if disk.known(fd) else REAL.ftruncate(fd, size)

    def fsync(fd: int) -> None:
        disk.synced(fd) if disk.known(fd) else REAL.fsync(fd)

    def allocate(fd: int, offset: int, size: int) -> None:
        disk.allocated(fd, offset, size) if disk.known(fd) else REAL.posix_fallocate(fd, offset, size)

    def rename(source: Any, target: Any, **kwargs: Any) -> None:
        if disk.owns(source):
            disk.renamed(os.fspath(source), os.fspath(target))
        else:
            REAL.replace(source, target, **kwargs)

    def unlink(path: Any, **kwargs: Any) -> None:
        disk.removed(os.fspath(path)) if disk.owns(path) else REAL.unlink(path, **kwargs)

    def flock(fd: int, operation: int) -> None:
        if disk.known(fd):
            disk.alive()
        REAL.flock(fd, operation)

    def io_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not disk.owns(file) or not set(mode) & set("wxa+"):
            return REAL.io_open(file, mode, *args, **kwargs)
        assert mode in ("wb", "xb"), f"the shim does not know mode {mode!r}"
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if mode == "wb" else os.O_EXCL)
        return io.BufferedWriter(_File(disk.opened(os.fspath(file), flags, 0o666), disk))

    return {
        "open": open_, "close": close, "write": write, "pwrite": pwrite, "ftruncate": ftruncate, "fsync": fsync,
        "fdatasync": fsync, "posix_fallocate": allocate, "rename": rename, "replace": rename, "unlink": unlink,
        "remove": unlink, "flock": flock, "io_open": io_open,
    }  # fmt: skip
