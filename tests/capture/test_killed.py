"""kill -9 while capturing, at random moments, quiet and busy; then cut at random bytes, and bits flipped."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover
from kcs.errors import CaptureError
from kcs.model import Record
from tests.capture.killed import ENTRY, TURN
from tests.capture.making import chunks_of, payload_of, records_of
from tests.capture.test_reader import spans

ROOT = Path(__file__).resolve().parents[2]
QUIET, BUSY = 5, 5000
FLUSH_NS = 250_000_000
SCHEDULING_NS = 250_000_000
"""What a loaded test machine may add. The promise is made for a loop that gets its ticks."""


@dataclass(frozen=True)
class Victim:
    """A killed collector: its file, what it had appended (number to time), and when it last turned its loop."""

    rate: int
    path: Path
    appended: dict[int, int]
    last_turn_ns: int


def killed(victims: list[tuple[int, Path, float]]) -> list[Victim]:
    """Start collectors of (rate, directory), all at once, and kill each after its seconds of capturing."""
    running = []
    for rate, directory, seconds in victims:
        directory.mkdir()
        log = directory / "log"
        log.touch()
        command = [sys.executable, "-m", "tests.capture.killed", str(directory), str(rate), str(log)]
        running.append((rate, directory, seconds, subprocess.Popen(command, cwd=ROOT)))
    for _, directory, seconds, process in running:
        while (directory / "log").stat().st_size < 10 * ENTRY.size:  # it has begun to capture
            assert process.poll() is None
            os.sched_yield()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        process.wait()
    return [autopsy(rate, directory) for rate, directory, _, _ in running]


def autopsy(rate: int, directory: Path) -> Victim:
    data = (directory / "log").read_bytes()
    entries = list(ENTRY.iter_unpack(data[: len(data) // ENTRY.size * ENTRY.size]))
    (path,) = directory.glob("*.partial")
    appended = {number: ns for number, ns in entries if number != TURN}
    return Victim(rate, path, appended, max(ns for _, ns in entries))


def is_true(record: Record, victim: Victim) -> bool:
    """The record is the one that was appended under its number. (Its log entry may have died with the process.)"""
    known = victim.appended.get(record.number, record.recv_ns)
    return record.payload == payload_of(record.number) and record.recv_ns == known


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> list[Victim]:
    base = tmp_path_factory.mktemp("killed")
    chance = random.Random(11)
    plan = [(rate, base / f"{rate}-{n}", chance.uniform(0.2, 0.9)) for n in range(3) for rate in (QUIET, BUSY)]
    return killed(plan)


@pytest.mark.slow
def test_at_most_the_flush_interval_is_lost(victims: list[Victim]) -> None:
    for victim in victims:
        with CaptureReader(victim.path, strict=False) as reader:
            records = list(reader.records())
        assert all(is_true(record, victim) for record in records)
        assert [r.number for r in records] == list(range(len(records)))
        assert len(records) > victim.rate / 10
        lost = [ns for number, ns in victim.appended.items() if number >= len(records)]
        if lost:
            assert victim.last_turn_ns - min(lost) <= FLUSH_NS + SCHEDULING_NS, victim.rate


@pytest.mark.slow
def test_killed_then_cut_then_flipped(victims: list[Victim], tmp_path: Path) -> None:
    chance = random.Random(12)
    for victim in victims:
        data = victim.path.read_bytes()
        chunks = list(spans(chunks_of(victim.path)))
        everything = {r.number for r in records_of(victim.path, strict=False)}
        path = tmp_path / victim.path.name
        for _ in range(25):
            end = chance.randrange(len(data))
            path.write_bytes(data[:end])
            check(path, victim, set().union(*(ids for _, stop, ids in chunks if stop <= end)))
            at = chance.randrange(len(data))
            changed = bytearray(data)
            changed[at] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            hit = next((ids for start, stop, ids in chunks if start <= at < stop), set())
            check(path, victim, everything - hit)


def check(path: Path, victim: Victim, intact: set[int]) -> None:
    """Every intact record is read, and nothing that was not appended."""
    try:
        records = records_of(path, strict=False)
    except CaptureError:
        assert intact == set()
        return
    assert all(is_true(record, victim) for record in records)
    assert intact <= {r.number for r in records}


@pytest.mark.slow
def test_killed_capture_is_recovered_and_the_directory_is_free_again(victims: list[Victim], tmp_path: Path) -> None:
    from tests.capture.making import START_NS, writer

    for number, victim in enumerate(victims):
        report = recover(victim.path, tmp_path / f"{number}.zst")
        records = records_of(tmp_path / f"{number}.zst")
        assert records == records_of(victim.path, strict=False)
        assert report.records == len(records) > 0
        writer(victim.path.parent, number=99).close(START_NS)
