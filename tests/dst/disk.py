"""A disk that can be slow, full, short, broken, and cut from its power: real files below one directory, behind a shim.

`Disk.installed()` puts the shim before `os`, `fcntl` and `io.open`; what lies outside its directory passes through. All
descriptors opened inside belong to the process that lives; when it dies (`kill`) they are closed, which frees its
locks, and whatever its remains still call raises `Crash`.

Model of a power cut (`kill(power=True)`): of each file a random part of what was written since its last fsync stays,
the end of it torn; a name's creation lasts once its file or its directory is synced, renames and removals once their
directory is (or after `WRITEBACK_NS`, when the kernel has written everything by itself), before that only in order.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.dst import shim
from tests.dst.loop import Crash, SimLoop
from tests.dst.world import MS, NEVER, SECOND, World

WRITEBACK_NS: Final = 2 * SECOND
TORN_BYTES_MAX: Final = 512


@dataclass(slots=True)
class Inode:
    """A file as the disk knows it. `synced`: bytes that survive a power cut; `since_ns`: oldest unsynced write."""

    size: int = 0
    synced: int = 0
    since_ns: int = NEVER


@dataclass(slots=True)
class NameChange:
    """An entry of the directory that was made, moved or removed, and is not durable yet."""

    at_ns: int
    what: str
    path: str
    target: str = ""
    inode: Inode | None = None
    before: bytes | None = None
    """What stood at the place that was replaced or removed."""


@dataclass(slots=True)
class DiskFaults:
    """Chances per call, from the plan; all zero while healthy."""

    slow: float = 0.0
    slow_ns: int = 0
    short: float = 0.0
    fsync_fails: float = 0.0
    rename_fails: float = 0.0
    full_from_ns: int = NEVER
    full_until_ns: int = 0
    full_bytes: int = 0
    """What still fits when the disk is full."""


@dataclass(slots=True)
class _Open:
    path: str
    inode: Inode


@dataclass(slots=True)
class Disk:
    """See the module docstring. `crash_at_op`: the process dies in that writing call, counted from 1 in each life."""

    root: Path
    world: World
    faults: DiskFaults = field(default_factory=DiskFaults)
    loop: SimLoop | None = None
    crash_at_op: int = 0
    ops: int = 0
    life: int = 0
    """Counts the processes, so that what is left of a dead one can be told."""
    on_name: Callable[[str], None] = lambda path: None
    """Called with each path that a file is renamed to."""
    _open: dict[int, _Open] = field(default_factory=dict)
    _inodes: dict[str, Inode] = field(default_factory=dict)
    _names: list[NameChange] = field(default_factory=list)
    _room: int | None = None
    _rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self._rng = self.world.rng("disk")

    # ------------------------------------------------------------ life and death

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The shim is before the system while this lasts."""
        with shim.installed(self):
            yield

    def born(self, loop: SimLoop) -> None:
        """A process begins."""
        self.loop, self.ops = loop, 0
        self.life += 1

    def kill(self, *, power: bool = False) -> None:
        """The process is gone, and the power too if asked for."""
        self.loop = None
        for fd in list(self._open):
            shim.REAL.close(fd)
        self._open.clear()
        if power:
            self._cut()

    def ended(self) -> list[str]:
        """The process ended by itself; paths of the descriptors that it left open."""
        left = sorted(one.path for one in self._open.values())
        self.kill()
        return left

    def _cut(self) -> None:
        rng, now = self._rng, self.world.clock.now
        names = [change for change in self._names if now - change.at_ns < WRITEBACK_NS]
        kept = rng.randint(0, len(names))
        for change in reversed(names[kept:]):
            self.world.count("power cut undid a name")
            self._undo(change)
        self._names.clear()
        for path, inode in sorted(self._inodes.items()):
            if inode.size > inode.synced and now - inode.since_ns < WRITEBACK_NS and os.path.exists(path):
                self._tear(path, inode, rng.randint(inode.synced, inode.size), rng.randint(0, TORN_BYTES_MAX))
            inode.synced, inode.since_ns = inode.size, NEVER

    def _undo(self, change: NameChange) -> None:
        self.world.tell(f"power cut undoes {change.what} {os.path.basename(change.path)}")
        if change.what == "create":
            if os.path.exists(change.path):
                shim.REAL.unlink(change.path)
            self._inodes.pop(change.path, None)
        elif change.what == "rename":
            shim.REAL.replace(change.target, change.path)
            self._inodes[change.path] = self._inodes.pop(change.target)
            if change.before is not None:
                self._put_back(change.target, change.before)
        elif change.before is not None:
            self._put_back(change.path, change.before)

    def _put_back(self, path: str, content: bytes) -> None:
        with shim.REAL.io_open(path, "wb") as out:
            out.write(content)
        self._inodes[path] = Inode(len(content), len(content))

    def _tear(self, path: str, inode: Inode, end: int, torn: int) -> None:
        self.world.count("power cut tore a file")
        self.world.tell(
            f"power cut leaves {end} of {inode.size} bytes of {os.path.basename(path)} ({inode.synced} synced)"
        )
        os.truncate(path, end)
        first = max(inode.synced, end - torn)
        with shim.REAL.io_open(path, "r+b") as out:
            out.seek(first)
            out.write(bytes(end - first))
        inode.size = end

    def durable(self, path: Path) -> bool:
        """Whether the file, its content and its name, is there after a power cut at this moment."""
        inode = self._inodes.get(str(path))
        named = all(str(path) not in (change.path, change.target) for change in self._names)
        return inode is not None and inode.synced == inode.size and named

    # ------------------------------------------------------------ what the shim asks

    def owns(self, path: Any) -> bool:
        """Whether the path is inside."""
        try:
            return str(os.fspath(path)).startswith(str(self.root))
        except TypeError:
            return False

    def known(self, fd: int) -> bool:
        """Whether the descriptor was opened inside."""
        return fd in self._open

    def alive(self) -> None:
        """Raise Crash in what is left of a dead process."""
        if self.loop is None or self.loop.dead:
            raise Crash("a dead process touched the disk")

    def opened(self, path: str, flags: int, mode: int) -> int:
        self.alive()
        created = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        if created:
            self._op(f"create {os.path.basename(path)}")
        fd: int = shim.REAL.open(path, flags, mode)
        inode = self._inodes.get(path)
        if inode is None:
            size = os.fstat(fd).st_size
            inode = self._inodes[path] = Inode(size, size)
        if flags & os.O_TRUNC:
            inode.size = inode.synced = 0
        self._open[fd] = _Open(path, inode)
        if created:
            self._names.append(NameChange(self.world.clock.now, "create", path, inode=inode))
        return fd

    def closed(self, fd: int) -> None:
        self.alive()
        del self._open[fd]
        shim.REAL.close(fd)

    def written(self, fd: int, data: Any, offset: int | None = None) -> int:
        one = self._open[fd]
        view = memoryview(data).cast("B")
        kept = self._op(f"write {len(view)} to {os.path.basename(one.path)}", len(view))
        if kept is not None:  # the process dies in this call: a part of it may be on the disk
            self._put(fd, one, view[:kept], offset)
            raise Crash(f"in writing call {self.ops}")
        view = view[: self._fitting(len(view))]
        if self.faults.short and len(view) > 1 and self._rng.random() < self.faults.short:
            self.world.count("short write")
            view = view[: self._rng.randint(1, len(view) - 1)]
        self._put(fd, one, view, offset)
        return len(view)

    def _put(self, fd: int, one: _Open, view: memoryview, offset: int | None) -> None:
        if offset is None:
            shim.REAL.write(fd, view)
            end = shim.REAL.lseek(fd, 0, os.SEEK_CUR)
        else:
            shim.REAL.pwrite(fd, view, offset)
            end = offset + len(view)
        one.inode.size = max(one.inode.size, end)
        one.inode.since_ns = min(one.inode.since_ns, self.world.clock.now)

    def _fitting(self, size: int) -> int:
        """How much of it fits; raises ENOSPC when nothing does."""
        if not self.full:
            self._room = None
            return size
        if self._room is None:
            self._room = self.faults.full_bytes
        fits = min(size, self._room)
        self._room -= fits
        if not fits and size:
            self.world.count("disk full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fits

    @property
    def full(self) -> bool:
        return self.faults.full_from_ns <= self.world.clock.now < self.faults.full_until_ns

    def truncated(self, fd: int, size: int) -> None:
        self._op(f"truncate {os.path.basename(self._open[fd].path)} to {size}")
        inode = self._open[fd].inode
        before = os.fstat(fd).st_size
        shim.REAL.ftruncate(fd, size)
        if self._room is not None:
            self._room += max(0, before - size)
        inode.size, inode.synced = size, min(inode.synced, size)

    def allocated(self, fd: int, offset: int, size: int) -> None:
        self._op(f"allocate {size}")
        if self.full and self._fitting(size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shim.REAL.posix_fallocate(fd, offset, size)

    def synced(self, fd: int) -> None:
        one = self._open[fd]
        self._op(f"sync {os.path.basename(one.path)}")
        if self._fails(self.faults.fsync_fails, "fsync failed"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if os.path.isdir(one.path):
            self._names.clear()
            return
        one.inode.synced, one.inode.since_ns = one.inode.size, NEVER
        self._names = [c for c in self._names if not (c.what == "create" and c.inode is one.inode)]

    def renamed(self, source: str, target: str) -> None:
        self.alive()
        self._op(f"rename {os.path.basename(source)} to {os.path.basename(target)}")
        if self._fails(self.faults.rename_fails, "rename failed"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        before = Path(target).read_bytes() if os.path.exists(target) else None
        shim.REAL.replace(source, target)
        self._inodes[target] = self._inodes.pop(source) if source in self._inodes else Inode()
        self._names.append(NameChange(self.world.clock.now, "rename", source, target, before=before))
        self.on_name(target)

    def removed(self, path: str) -> None:
        self.alive()
        self._op(f"remove {os.path.basename(path)}")
        before = Path(path).read_bytes() if os.path.isfile(path) else None
        shim.REAL.unlink(path)
        self._inodes.pop(path, None)
        self._names.append(NameChange(self.world.clock.now, "remove", path, before=before))

    # ------------------------------------------------------------ leaves

    def _op(self, what: str, size: int = 0) -> int | None:
        """One writing call: it may take time, and the process may die in it. Then: how much of `size` was written."""
        self.alive()
        self.ops += 1
        loop = self.loop
        assert loop is not None
        if self.faults.slow and self._rng.random() < self.faults.slow:
            self.world.count("slow disk")
            loop.block(self._rng.randint(0, self.faults.slow_ns) + MS)
            self.alive()
        self.world.tell(f"disk {what}")
        if self.ops == self.crash_at_op:
            if size:
                return self._rng.randint(0, size)
            raise Crash(f"in writing call {self.ops}")
        return None

    def _fails(self, chance: float, name: str) -> bool:
        if not chance or self._rng.random() >= chance:
            return False
        self.world.count(name)
        return True
