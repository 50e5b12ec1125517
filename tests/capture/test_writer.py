"""The writer: what is handed over when, failure, rotation, threads."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcs.capture.format import PAYLOAD_BYTES_MAX
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import WORKER_NICE, CaptureWriter, WriterSettings, capture_name
from kcs.errors import CaptureBusyError, CaptureWriteError, UsageError
from kcs.model import Kind, OpenFields
from tests.capture.making import SECOND, START_NS, all_kinds, append, frames, header, ids, records_of, writer
from tests.capture.test_output import FullDisk

MS = 1_000_000


def numbers_on_disk(target: CaptureWriter) -> list[int]:
    return [r.number for r in records_of(target.path)]


@pytest.mark.parametrize("threaded", [False, True])
def test_every_kind_comes_back(tmp_path: Path, threaded: bool) -> None:
    target = writer(tmp_path, threaded=threaded)
    for record in all_kinds():
        assert target.number == record.number
        append(target, record)
    (sealed,) = target.close(START_NS)
    assert records_of(sealed.path) == all_kinds()
    assert target.failed is None
    assert (target.captured, target.uncaptured) == (11, 0)
    assert sealed.path.name == "upbit-20231114T221320Z-0000000000000001.zst"
    assert (sealed.records, sealed.bytes) == (11, sealed.path.stat().st_size)
    assert (sealed.first_ns, sealed.last_ns) == (START_NS, START_NS + 9)
    assert target.close(START_NS) == [sealed]


def test_same_calls_same_bytes_with_and_without_thread(tmp_path: Path) -> None:
    made = []
    for name, threaded in (("a", False), ("b", False), ("c", True)):
        target = writer(tmp_path / name, threaded=threaded, chunk_bytes_max=2000)
        for record in frames(1000, step_ns=7 * MS):
            append(target, record)
            if record.number % 10 == 0:
                target.tick(record.recv_ns)
        made.append(target.close(START_NS)[0].path.read_bytes())
    assert made[0] == made[1] == made[2]


def test_full_chunk_is_handed_over_without_a_tick(tmp_path: Path) -> None:
    target = writer(tmp_path, chunk_bytes_max=3 * (17 + 100))
    for _ in range(7):
        target.append(Kind.TEXT, 1, START_NS, b"x" * 100)
    assert numbers_on_disk(target) == [0, 1, 2, 3, 4, 5]
    assert [r[0] for r in target.unwritten()] == [6]
    target.close(START_NS)


def test_quiet_feed_is_on_disk_before_the_flush_interval(tmp_path: Path) -> None:
    """A tick every 50 ms: a record is never 250 ms old and in memory only."""
    target = writer(tmp_path)
    target.append(Kind.TEXT, 1, START_NS, b"lonely")
    for ms in range(0, 150, 50):
        target.tick(START_NS + ms * MS)
        assert numbers_on_disk(target) == []
    target.tick(START_NS + 150 * MS)
    assert numbers_on_disk(target) == [0]
    target.close(START_NS)


def test_busy_feed_hands_over_by_age_without_a_tick(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for record in frames(152):
        append(target, record)
    assert numbers_on_disk(target) == list(range(151))
    target.close(START_NS)


def test_age_is_that_of_the_chunk_not_of_the_file(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for second in range(3):
        t = START_NS + second * SECOND
        target.append(Kind.TEXT, 1, t, b"x")
        target.tick(t + 149 * MS)
        assert len(numbers_on_disk(target)) == second
        target.tick(t + 150 * MS)
        assert len(numbers_on_disk(target)) == second + 1
    target.close(START_NS)


def test_time_from_the_future_does_not_keep_a_chunk_in_memory(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.append(Kind.TEXT, 1, START_NS + 3600 * SECOND, b"an hour ahead")
    target.tick(START_NS)
    assert numbers_on_disk(target) == [0]
    target.close(START_NS)


def test_times_that_run_back_stay_as_they_are(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for t in (START_NS + 9, START_NS + 5, START_NS + 7):
        target.append(Kind.TEXT, 1, t, b"")
    (sealed,) = target.close(START_NS)
    assert [r.recv_ns - START_NS for r in records_of(sealed.path)] == [9, 5, 7]
    assert (sealed.first_ns, sealed.last_ns) == (START_NS + 5, START_NS + 9)


def test_unwritten_and_disk_together_are_everything(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for record in all_kinds():
        append(target, record)
        if record.number == 5:
            target.flush()
    on_disk = records_of(target.path)
    rest = target.unwritten()
    assert target.unwritten(9) == rest[3:]
    assert len(on_disk) == 6
    assert [(r.number, r.kind, r.stream, r.recv_ns, r.payload, r.fields) for r in all_kinds()[6:]] == rest
    target.close(START_NS)


def test_rotation(tmp_path: Path) -> None:
    target = writer(tmp_path, size_max=5000, age_max_ns=10 * SECOND)
    assert not target.rotation_due(START_NS + 10 * SECOND - 1)
    assert target.rotation_due(START_NS + 10 * SECOND)
    target.append(Kind.TEXT, 1, START_NS, os.urandom(6000))
    assert not target.rotation_due(START_NS)
    target.flush()
    assert target.rotation_due(START_NS)
    first = target.path
    target.rotate(START_NS + SECOND)
    assert not first.exists()
    assert (target.number, target.capture_id, target.header.sequence) == (0, (2).to_bytes(8, "big"), 1)
    assert target.header.run_id == (1).to_bytes(8, "big")
    assert not target.rotation_due(START_NS + SECOND)
    target.append(Kind.TEXT, 1, START_NS + SECOND, b"second file")
    one, two = target.close(START_NS)
    assert [len(records_of(s.path)) for s in (one, two)] == [1, 1]
    with CaptureReader(two.path) as reader:
        assert (reader.header.sequence, reader.header.created_ns) == (1, START_NS + SECOND)
        assert reader.header.options == header().options
    assert sorted(p.name for p in tmp_path.iterdir()) == [".upbit.lock", one.path.name, two.path.name]


def test_rotation_under_a_thread_keeps_every_record(tmp_path: Path) -> None:
    target = writer(tmp_path, threaded=True, chunk_bytes_max=1000)
    for file in range(5):
        for record in frames(300):
            append(target, record)
        if file < 4:
            target.rotate(START_NS + file)
    sealed = target.close(START_NS)
    assert [records_of(s.path) for s in sealed] == [list(frames(300))] * 5
    assert (target.captured, target.uncaptured) == (1500, 0)


def test_second_collector_is_refused_at_once_and_harms_nothing(tmp_path: Path) -> None:
    first = writer(tmp_path)
    append(first, all_kinds()[0])
    with pytest.raises(CaptureBusyError, match="another collector"):
        writer(tmp_path, number=9)
    (sealed,) = first.close(START_NS)
    assert len(records_of(sealed.path)) == 1
    writer(tmp_path, number=9).close(START_NS)


def test_existing_partial_or_sealed_file_is_never_touched(tmp_path: Path) -> None:
    name = capture_name(header())
    for taken in (name, name + ".partial"):
        (tmp_path / taken).write_bytes(b"precious")
        with pytest.raises(CaptureWriteError, match="exists already"):
            writer(tmp_path)
        assert (tmp_path / taken).read_bytes() == b"precious"
        (tmp_path / taken).unlink()
    writer(tmp_path).close(START_NS)


def test_names_that_would_leave_the_directory_are_refused(tmp_path: Path) -> None:
    for bad in ("../x", "", "a/b", "A", "-x"):
        with pytest.raises(UsageError, match="exchange name"):
            CaptureWriter(tmp_path, header(exchange=bad), settings=WriterSettings(), new_id=ids())
    with pytest.raises(UsageError, match="chunk_bytes_max"):
        writer(tmp_path, chunk_bytes_max=5 << 20)


@pytest.mark.parametrize("threaded", [False, True])
def test_full_disk_stops_loudly_counts_and_seals_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    errors: list[tuple[CaptureWriteError, int]] = []
    failed = threading.Event()

    def on_error(error: CaptureWriteError) -> None:
        errors.append((error, threading.get_ident()))
        failed.set()

    target = writer(tmp_path, threaded=threaded, chunk_bytes_max=1000, on_error=on_error)
    target.append(Kind.TEXT, 1, START_NS, b"x" * 1000)
    with monkeypatch.context() as patch:
        disk = FullDisk(200)
        patch.setattr(os, "write", disk)
        for n in range(100):
            target.append(Kind.TEXT, 1, START_NS + n, os.urandom(900))
        assert failed.wait(5)
        for n in range(50):
            target.append(Kind.TEXT, 1, START_NS + n, b"nobody hears this")
        assert target._records == []  # counted, not kept
        target.tick(START_NS + SECOND)
        target.rotate(START_NS + SECOND)
        disk.room = 1 << 20  # what giving the reserve back does on a real disk
        sealed = target.close(START_NS)
    assert len(errors) == 1
    assert target.failed is errors[0][0]
    assert "disk is full" in str(target.failed)
    assert (errors[0][1] == threading.get_ident()) is not threaded
    assert target.captured + target.uncaptured == 151
    assert target.captured == sealed[0].records >= 1
    assert len(records_of(sealed[0].path)) == target.captured
    assert len(sealed) == 1


def test_after_a_failed_chunk_none_is_written_though_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that wait in the queue when one fails: their records would follow a hole that nobody made."""
    target = writer(tmp_path, threaded=True, chunk_bytes_max=100)
    gate = threading.Event()
    real = os.write
    failures = [OSError(errno.ENOSPC, "No space left on device")]

    def fails_once(fd: int, data: bytes) -> int:
        assert gate.wait(10)
        if failures:
            raise failures.pop()
        return real(fd, data)

    monkeypatch.setattr(os, "write", fails_once)
    for n in range(20):
        target.append(Kind.TEXT, 1, START_NS + n, b"x" * 100)
    gate.set()
    (sealed,) = target.close(START_NS)
    assert records_of(sealed.path) == []
    assert (target.captured, target.uncaptured) == (0, 20)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_file_that_lacks_its_end_says_so_although_it_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    """Its tail never reached the disk, then there was room for the seal: nobody may take it for whole."""
    target = writer(tmp_path, threaded=True, chunk_bytes_max=100)
    gate = threading.Event()
    real = os.write
    outcomes: list[OSError | None] = [OSError(errno.ENOSPC, "No space left on device"), None]

    def fails_at_the_second(fd: int, data: bytes) -> int:
        assert gate.wait(10)
        outcome = outcomes.pop() if outcomes else None
        if outcome is not None:
            raise outcome
        return real(fd, data)

    monkeypatch.setattr(os, "write", fails_at_the_second)
    target.append(Kind.TEXT, 1, START_NS, b"x" * 100)
    target.append(Kind.TEXT, 1, START_NS + 1, b"y" * 100)
    if rotated:  # asked for while the chunk that will fail is still in the queue
        target.rotate(START_NS + 2)
        for n in range(5):
            target.append(Kind.TEXT, 1, START_NS + 3 + n, b"z" * 100)
    gate.set()
    (sealed,) = target.close(START_NS)
    with CaptureReader(sealed.path) as reader:
        assert [record.number for record in reader.records()] == [0]
        assert reader.next_number == 2
        assert reader.info().holes == ((1, 1),)


def test_reserve_is_given_back_before_the_seal_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = writer(tmp_path, chunk_bytes_max=10)
    lock = tmp_path / ".upbit.lock"
    assert lock.stat().st_blocks * 512 >= 1 << 20
    target.append(Kind.TEXT, 1, START_NS, b"whole chunk")
    real = os.write

    def full_while_reserved(fd: int, data: bytes) -> int:
        if lock.stat().st_blocks:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full_while_reserved)
    target.append(Kind.TEXT, 1, START_NS, b"too much now")
    (sealed,) = target.close(START_NS)
    assert [r.payload for r in records_of(sealed.path)] == [b"whole chunk"]
    assert (target.captured, target.uncaptured) == (1, 1)


def test_reserve_grows_before_the_index_needs_it(tmp_path: Path) -> None:
    target = writer(tmp_path, chunk_bytes_max=10, reserve_bytes=4096)
    for n in range(500):
        target.append(Kind.TEXT, 1, START_NS + n, b"a chunk each")
        assert target._worker._lock.reserved_bytes >= target._worker.file.index_bytes + 2048
    assert target._worker.file.index_bytes == 500 * 48
    target.close(START_NS)
    assert (tmp_path / ".upbit.lock").stat().st_blocks == 0


def test_partial_stays_readable_where_even_the_seal_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = writer(tmp_path, chunk_bytes_max=10)
    target.append(Kind.TEXT, 1, START_NS, b"whole chunk")
    monkeypatch.setattr(os, "write", FullDisk(30))
    target.append(Kind.TEXT, 1, START_NS, b"too much now")
    assert target.close(START_NS) == []
    assert target.failed is not None
    assert [r.payload for r in records_of(target.path)] == [b"whole chunk"]
    monkeypatch.undo()
    writer(tmp_path, number=5).close(START_NS)  # the lock is free again


def test_disk_that_cannot_keep_up_is_an_error_not_memory(tmp_path: Path) -> None:
    errors: list[CaptureWriteError] = []
    target = writer(tmp_path, threaded=True, chunk_bytes_max=1000, queue_bytes_max=10_000, on_error=errors.append)
    gate = threading.Event()
    write = target._worker.write

    class Slow:
        """Stands in for a disk that hangs."""

        def __getattr__(self, name: str) -> object:
            return getattr(worker, name)

        def write(self, chunk: object) -> None:
            assert gate.wait(10)
            write(chunk)  # type: ignore[arg-type]

    worker = target._worker
    target._worker = Slow()  # type: ignore[assignment]
    for n in range(100):
        target.append(Kind.TEXT, 1, START_NS + n, b"x" * 1000)
    assert len(errors) == 1
    assert "cannot keep up" in str(errors[0])
    assert target._handed_bytes <= 11_000
    gate.set()
    target.append(Kind.TEXT, 1, START_NS, b"after the failure")
    (sealed,) = target.close(START_NS)
    assert sealed.records == 9
    assert (target.captured, target.uncaptured) == (9, 92)


def test_record_beyond_the_bound_is_an_error_not_a_broken_file(tmp_path: Path) -> None:
    errors: list[CaptureWriteError] = []
    target = writer(tmp_path, on_error=errors.append)
    target.append(Kind.TEXT, 1, START_NS, b"small")
    target.append(Kind.TEXT, 1, START_NS, bytes(PAYLOAD_BYTES_MAX + 1))
    assert "at most" in str(errors[0])
    assert (target.close(START_NS)[0].records, target.uncaptured) == (0, 2)


def test_largest_record_fits(tmp_path: Path) -> None:
    target = writer(tmp_path, level=1)
    target.append(Kind.BINARY, 1, START_NS, bytes(PAYLOAD_BYTES_MAX))
    (sealed,) = target.close(START_NS)
    assert len(records_of(sealed.path)[0].payload) == PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("bad", [(3, 1, -5, b""), (3, -1, 5, b""), (1, 1, 5, b"no fields"), (99, 1, 5, b"")])
def test_unwritable_record_fails_loudly_and_keeps_the_rest(tmp_path: Path, bad: tuple[int, int, int, bytes]) -> None:
    target = writer(tmp_path)
    target.append(Kind.TEXT, 1, START_NS, b"good")
    target.flush()
    target.append(*bad)
    target.flush()
    assert target.failed is not None
    assert "from number 1" in str(target.failed)
    assert target.close(START_NS)[0].records == 1
    assert target.uncaptured == 1


def test_appends_after_close_are_counted_not_kept(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.append(Kind.TEXT, 1, START_NS, b"in time")
    target.close(START_NS)
    for _ in range(3):
        target.append(Kind.TEXT, 1, START_NS, b"late")
    assert (target.captured, target.uncaptured) == (1, 3)


def test_worker_that_dies_of_a_defect_says_so(tmp_path: Path) -> None:
    failed = threading.Event()
    target = writer(tmp_path, threaded=True, on_error=lambda _: failed.set())
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        target._queue.put("no job")  # type: ignore[arg-type]
        assert failed.wait(5)
        assert target._thread is not None
        target._thread.join()
    finally:
        threading.excepthook = hook
    assert "thread died" in str(target.failed)
    target.append(Kind.TEXT, 1, START_NS, b"x")
    assert target.close(START_NS) == []
    assert target.uncaptured == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    mount = shutil.which("mount")
    where = tmp_path / "disk"
    where.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_real_full_disk(small_disk: Path) -> None:
    target = writer(small_disk, chunk_bytes_max=100_000)
    for n in range(5000):
        target.append(Kind.BINARY, 1, START_NS + n, os.urandom(1000))
    assert target.failed is not None
    assert "disk is full" in target.failed.what
    assert "free space" in target.failed.remedy
    (sealed,) = target.close(START_NS)
    records = records_of(sealed.path)
    assert len(records) == sealed.records == target.captured > 2000
    assert target.captured + target.uncaptured == 5000
    with pytest.raises(CaptureWriteError, match="disk is full"):
        fill_up(small_disk)


def fill_up(directory: Path) -> None:
    """Leave no byte free, then try to begin a capture."""
    with (directory / "filler").open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(4096))
    writer(directory, number=7)


_LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import os
from tests.capture.making import START_NS, writer
target = writer(Path(sys.argv[1]), chunk_bytes_max=10_000, reserve_bytes=0)
for n in range(100):
    target.append(3, 1, START_NS + n, os.urandom(1000))
sealed = target.close(START_NS)
print(target.captured, target.uncaptured, len(sealed), target.failed.what)
"""


def test_a_real_size_limit_leaves_the_partial_readable(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE  # the limit is set in a process of its own
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path], capture_output=True, text=True, check=True, cwd=root
    )
    captured, uncaptured, sealed, what = done.stdout.split(maxsplit=3)
    assert "file size limit" in what
    assert int(captured) + int(uncaptured) == 100
    (path,) = tmp_path.glob("*.zst" if sealed == "1" else "*.partial")
    assert len(records_of(path)) == int(captured) == 50


def test_open_record_has_its_fields_in_the_file(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.append_fields(Kind.OPEN, 7, START_NS, OpenFields(url="u", cause="silence"))
    assert records_of(target.close(START_NS)[0].path)[0].fields == OpenFields(url="u", cause="silence")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no nice of their own here")
def test_the_worker_lets_the_event_loop_go_first(tmp_path: Path) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    target = writer(tmp_path, threaded=True)
    append(target, next(iter(frames(1))))
    target.flush()
    while not target.captured:  # the worker has begun; bounded by the test's time limit
        os.sched_yield()
    (worker,) = (thread for thread in threading.enumerate() if thread.name == "capture-upbit")
    assert os.getpriority(os.PRIO_PROCESS, worker.native_id or 0) >= WORKER_NICE
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
    target.close(START_NS)
