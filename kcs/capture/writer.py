"""Records every frame to disk without the event loop noticing.

Contract: `append` puts a record into a list and returns; full or old chunks go to a worker thread that encodes,
compresses and writes them. Every record appended is on disk, or counted in `uncaptured` and announced by `on_error`.
After kill -9 at most the last `flush_ns` of records are missing, given a `tick` every 50 ms. Chunk boundaries depend on
appends and ticks only, so with `threaded=False` the same calls give the same bytes; with a thread they do too.
Times in ns since the Unix epoch, sizes in bytes.

Threads: one caller (the loop) for all methods; the worker is the only one that touches the files. `on_error` is called
once, from the worker or from the caller, whichever met the failure; hand over to the loop with call_soon_threadsafe.
Raises: `CaptureBusyError`, `CaptureWriteError` from the constructor. `append` and `tick` never raise.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from kcs.capture.format import MIB, PAYLOAD_BYTES_MAX, CaptureHeader
from kcs.capture.osfile import DirectoryLock
from kcs.capture.output import SealedCapture
from kcs.capture.records import (
    Appended,
    RawRecord,
    as_read,
    encode_fields,
)
from kcs.capture.worker import Job, NextFile, PendingChunk, Worker, WriterSettings, capture_name, partial_path
from kcs.errors import CaptureWriteError, UsageError
from kcs.model import Fields

__all__ = ["CaptureHeader", "CaptureWriter", "SealedCapture", "WriterSettings", "capture_name"]

WORKER_NICE: Final = 10
"""Of the worker thread. It needs a few percent of a core, so even a crowded machine leaves it enough."""

CHUNK_BYTES_LIMIT: Final = 4 * MIB
"""Upper bound of `chunk_bytes_max`: as many empty records as fit in it stay below the format's records a chunk."""


class CaptureWriter:
    """One exchange's capture in a directory. See the module docstring; `append` is the hot path."""

    __slots__ = (
        "_append",
        "_bytes",
        "_closed",
        "_due_ns",
        "_failing",
        "_first",
        "_full_bytes",
        "_hand_over_ns",
        "_handed",
        "_handed_bytes",
        "_header",
        "_new_id",
        "_on_error",
        "_pending",
        "_queue",
        "_records",
        "_settings",
        "_taken_bytes",
        "_thread",
        "_uncaptured",
        "_worker",
        "failed",
        "path",
    )

    def __init__(
        self,
        directory: Path,
        header: CaptureHeader,
        *,
        settings: WriterSettings,
        new_id: Callable[[], bytes],
        on_error: Callable[[CaptureWriteError], None] | None = None,
    ) -> None:
        """Lock the directory for this exchange and create the first file; `new_id` gives the ids of later ones.

        Raises `CaptureBusyError`, `CaptureWriteError`, `UsageError`.
        """
        if not 0 < settings.chunk_bytes_max <= CHUNK_BYTES_LIMIT:
            raise UsageError(f"chunk_bytes_max is {settings.chunk_bytes_max}; 1 to {CHUNK_BYTES_LIMIT}")
        self.path = partial_path(directory, header)
        lock = DirectoryLock(directory, header.exchange)
        try:
            self._worker = Worker(directory, lock, header, settings)
        except BaseException:
            lock.release()
            raise
        self.failed: CaptureWriteError | None = None
        self._failing = threading.Lock()
        self._settings = settings
        self._header = header
        self._new_id = new_id
        self._on_error = on_error
        self._hand_over_ns = settings.flush_ns * 3 // 5
        self._first = 0
        self._records: list[Appended] = []
        self._append = self._records.append
        self._bytes = 0
        self._full_bytes = settings.chunk_bytes_max
        self._due_ns = 0
        self._handed = 0
        self._uncaptured = 0
        self._handed_bytes = 0
        self._taken_bytes = 0
        self._pending: deque[PendingChunk] = deque()
        self._closed = False
        self._queue: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if settings.threaded:
            self._thread = threading.Thread(target=self._run, name=f"capture-{header.exchange}", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------ the caller's side

    @property
    def header(self) -> CaptureHeader:
        """The header of the current file."""
        return self._header

    @property
    def capture_id(self) -> bytes:
        """The id of the current file."""
        return self._header.capture_id

    def is_sealed(self, capture_id: bytes) -> bool:
        """True once this file of the run is whole on disk, under its final name."""
        return any(capture.capture_id == capture_id for capture in reversed(self._worker.sealed))

    @property
    def number(self) -> int:
        """Number of the next record of the current file."""
        return self._first + len(self._records)

    @property
    def captured(self) -> int:
        """Records on disk, over all files of this run."""
        return self._worker.written

    @property
    def uncaptured(self) -> int:
        """Records that were appended and will never be on disk; 0 while nothing failed. Final after `close`."""
        if self.failed is None:
            return self._uncaptured  # those appended after close
        return self._uncaptured + self._handed + len(self._records) - self._worker.written

    @property
    def congested(self) -> bool:
        """True while a quarter of what may wait for the disk waits: hold the source back, or capturing ends.

        Compressing and writing share the cores with whoever appends: a flood makes more than they can take away.
        """
        return 4 * (self._handed_bytes - self._taken_bytes) >= self._settings.queue_bytes_max

    def append(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        """Record a frame (SENT, TEXT, BINARY). Never raises, never waits."""
        self._append((kind, stream, recv_ns, payload))
        self._bytes += len(payload) + 17  # RECORD_HEAD_BYTES
        if recv_ns >= self._due_ns or self._bytes >= self._full_bytes:
            self._turn(recv_ns)

    def append_fields(self, kind: int, stream: int, recv_ns: int, fields: Fields, payload: bytes = b"") -> None:
        """Record anything that is not a frame (OPEN, REST, CLOSE, GAP, CLOCK, STATE). Never raises, never waits."""
        self.append(kind, stream, recv_ns, encode_fields(fields, payload))

    def tick(self, now_ns: int) -> None:
        """Hand the open chunk over when it is old enough. Call it every 50 ms or so."""
        if self._records and not self._due_ns - self._hand_over_ns <= now_ns < self._due_ns:
            self.flush()  # also a chunk that seems to begin in the future: its age cannot be told

    def flush(self) -> None:
        """Hand the open chunk over now; returns before it is on disk."""
        records = self._records
        if not records:
            return
        size = self._bytes
        queued = self._handed_bytes - self._taken_bytes
        if queued and queued + size > self._settings.queue_bytes_max:
            self._fail(
                CaptureWriteError(
                    f"the disk cannot keep up: {queued} bytes wait to be written",
                    where=str(self.path),
                    remedy="capture to a faster disk, or fewer markets a process",
                )
            )
        if self.failed is not None:
            self._discard()
            return
        chunk = PendingChunk(self._header.capture_id, self._first, records, size)
        self._first += len(records)
        self._handed += len(records)
        self._handed_bytes += size
        self._open_chunk()
        self._pending.append(chunk)
        self._give(chunk)

    def rotation_due(self, now_ns: int) -> bool:
        """True when the current file is large or old enough (`size_max`, `age_max_ns`)."""
        settings = self._settings
        if self.failed is not None:
            return False
        file = self._worker.file
        if file.header.capture_id != self._header.capture_id:
            return False  # the worker has not begun the current file
        if settings.size_max is not None and file.end >= settings.size_max:
            return True
        if settings.age_max_ns is not None and now_ns - self._header.created_ns >= settings.age_max_ns:
            return True
        return file.chunks_full

    def rotate(self, now_ns: int) -> None:
        """End the current file and begin the next: `number` is 0, `capture_id` new. The worker seals meanwhile."""
        self.flush()
        if self.failed is not None:
            return
        header = replace(self._header, capture_id=self._new_id(), created_ns=now_ns, sequence=self._header.sequence + 1)
        self._header = header
        self.path = partial_path(self.path.parent, header)
        ended, self._first = self._first, 0
        self._give(NextFile(header, ended))

    def written_bytes(self) -> int:
        """Where in the current file the next chunk will begin; 0 while the file is not there. For `CaptureTail`."""
        file = self._worker.file
        return file.end if file.header.capture_id == self._header.capture_id else 0

    def unwritten(self, from_number: int = 0) -> list[RawRecord]:
        """Records of the current file that may not be on disk yet, in order; for whoever follows the capture.

        A chunk just being written may already be in the file too: go by the numbers.
        """
        chunks = [c for c in self._pending.copy() if c.capture_id == self._header.capture_id]
        chunks.append(PendingChunk(self._header.capture_id, self._first, self._records, self._bytes))
        found: list[RawRecord] = []
        for chunk in chunks:
            skip = max(0, from_number - chunk.first_number)
            for number, record in enumerate(chunk.records[skip:], chunk.first_number + skip):
                found.append(as_read(number, record))
        return found

    def close(self, now_ns: int) -> list[SealedCapture]:
        """Write what is left, seal, end the thread; all sealed files of this run. Look at `failed` afterwards."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._full_bytes = -1
            self._give(None)
            if self._thread is not None:
                self._thread.join()
        return list(self._worker.sealed)

    def _turn(self, recv_ns: int) -> None:
        """The rare side of `append`: a chunk begins, is old, is full, or nothing can be recorded any more."""
        if self.failed is not None or self._closed:
            self._discard()
            return
        if self._bytes >= PAYLOAD_BYTES_MAX:
            self._check_size()
        if len(self._records) == 1:
            self._due_ns = recv_ns + self._hand_over_ns
            if self._bytes < self._full_bytes:
                return
        self.flush()

    def _check_size(self) -> None:
        size = len(self._records[-1][3])
        if size > PAYLOAD_BYTES_MAX:
            self._fail(
                CaptureWriteError(
                    f"record {self.number - 1} has {size} bytes; a record holds at most {PAYLOAD_BYTES_MAX}",
                    where=str(self.path),
                    remedy="bound the websocket's message size",
                )
            )

    def _open_chunk(self) -> None:
        self._records = []
        self._append = self._records.append
        self._bytes = 0
        self._due_ns = 0

    def _discard(self) -> None:
        """Nothing is recorded any more; count and let go. Numbers go on, for nobody."""
        self._uncaptured += len(self._records)
        self._first += len(self._records)
        self._open_chunk()

    def _fail(self, error: CaptureWriteError) -> None:
        """Remember the first failure and announce it. From the worker or from the caller."""
        with self._failing:
            if self.failed is not None:
                return
            self.failed = error
            self._full_bytes = -1  # sends every further append to `_turn`
        if self._on_error is not None:
            self._on_error(error)

    # ------------------------------------------------------------ the worker's side

    def _give(self, job: Job) -> None:
        if self._thread is None:
            self._do(job)
        else:
            self._queue.put(job)

    def _run(self) -> None:
        _step_back()
        finished = False
        try:
            while not finished:
                finished = self._do(self._queue.get())
        finally:
            if not finished:  # a defect: say so at once instead of gathering frames for nobody
                self._fail(CaptureWriteError("the capture thread died", where=str(self.path)))
                self._worker.file.abandon()

    def _do(self, job: Job) -> bool:
        """One job; True after the last one. A broken file takes no further chunk: its numbers must not jump."""
        worker = self._worker
        try:
            if job is None:
                if self.failed is not None and worker.ended is None:
                    worker.ended = self._first
                worker.close(disk_failed=self.failed is not None)
            elif not worker.broken:
                if isinstance(job, NextFile):
                    worker.rotate(job.header)
                else:
                    worker.write(job)
        except CaptureWriteError as exc:
            worker.broken = True
            self._fail(exc)
        if worker.broken and worker.ended is None and isinstance(job, NextFile):
            worker.ended = job.ended  # the file that broke ends here, whatever the files after it should have held
        if isinstance(job, PendingChunk):
            self._pending.popleft()
            self._taken_bytes += job.bytes
        return job is None


def _step_back() -> None:
    """Let the event loop's thread go first where both want the same core; on Linux a thread has a nice of its own."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, max(WORKER_NICE, os.getpriority(os.PRIO_PROCESS, me)))
