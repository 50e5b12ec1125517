"""The capture writer with its thread played by the loop: the same jobs, in order, later.

A job runs as a piece of a thread (`SimLoop.in_thread`): where it waits for the disk the loop goes on, so chunks are
seen half written, and a written chunk may still be among the pending ones for a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kcs.capture.output import SealedCapture
from kcs.capture.worker import Job
from kcs.capture.writer import CaptureHeader, CaptureWriter, WriterSettings
from kcs.errors import CaptureWriteError
from tests.dst.loop import Crash, SimLoop
from tests.dst.world import MS

DELAYS_NS: Final = (0, 0, 20_000, 200_000, 2 * MS, 15 * MS)
"""Until the thread gets the processor."""
AT_ONCE: Final = 0.3
"""How often it has it before the caller's next step."""


class _Pending(deque[Any]):
    """The pending chunks; taking one off happens a little later than the write, as between two threads."""

    def __init__(self, content: Any = (), soon: Callable[[Callable[[], None]], None] | None = None) -> None:
        super().__init__(content)
        self._soon = soon

    def popleft(self) -> Any:
        if self._soon is None:
            return super().popleft()
        return self._soon(super().popleft)


class SimWriter(CaptureWriter):
    """See the module docstring."""

    def __init__(
        self,
        directory: Path,
        header: CaptureHeader,
        *,
        settings: WriterSettings,
        new_id: Callable[[], bytes],
        on_error: Callable[[CaptureWriteError], None] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self._loop = loop
        self._rng = loop.world.rng(f"writer/{header.capture_id.hex()}")
        self._jobs: deque[Job] = deque()
        self._busy = False
        self._ended = False
        super().__init__(
            directory, header, settings=replace(settings, threaded=False), new_id=new_id, on_error=on_error
        )
        self._pending = _Pending((), self._taken_off)
        self.ids = [self.capture_id]
        """Of the files that it was told to make."""
        self.on_rotation: Callable[[], None] = lambda: None
        loop.on_writer(self)

    @property
    def queued_bytes(self) -> int:
        """Bytes on their way to the disk."""
        return self._handed_bytes - self._taken_bytes

    def oldest_queued_ns(self) -> int | None:
        """Receive time of the oldest record that the thread was given and has not written."""
        return min((record[2] for chunk in self._pending for record in chunk.records), default=None)

    def rotate(self, now_ns: int) -> None:
        super().rotate(now_ns)
        if self.capture_id != self.ids[-1]:
            self.ids.append(self.capture_id)
            self.on_rotation()

    def close(self, now_ns: int) -> list[SealedCapture]:
        first = not self._closed
        super().close(now_ns)
        if first:  # the caller waits for the thread
            assert not self._busy, "closed from within its own thread"
            while not self._ended:
                self._work()
        return list(self._worker.sealed)

    def _give(self, job: Job) -> None:
        self._jobs.append(job)
        alone = len(self._jobs) == 1 and not self._closed
        if alone and self._rng.random() < AT_ONCE and self._loop.at_once(self._work):
            return
        self._loop.in_thread(self._next, self._rng.choice(DELAYS_NS))

    def _next(self) -> None:
        if self._jobs:  # else `close` has done it
            self._work()

    def _work(self) -> None:
        self._busy = True
        try:
            self._ended = self._do(self._jobs.popleft()) or self._ended
        except Crash:
            raise
        except Exception as error:  # noqa: BLE001 - a defect; the real thread says the same and dies
            self._loop.world.defect(f"the capture's thread died: {type(error).__name__}: {error}")
            self._fail(CaptureWriteError("the capture thread died", where=str(self.path)))
            self._worker.file.abandon()
            self._ended = True
        finally:
            self._busy = False

    def _taken_off(self, take: Callable[[], None]) -> None:
        if self._rng.random() < 0.3:
            self._loop.block(self._rng.randint(0, 3 * MS))
        take()
