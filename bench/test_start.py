"""What a person at a terminal waits for: `kcs --help`, and `kcs info` on a capture of a gigabyte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import kcs
from bench.report import Gate, Report, Row
from bench.tapes import FIXTURE
from kcs.capture.format import MIB, CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.model import Kind

HELP_MS_MAX = 300.0
INFO_MS_MAX = 100.0
ROUNDS = 9
GIGABYTE = 1_000_000_000
FIRST_NS = 1_700_000_000_000_000_000
PROFILE = "python -X importtime -m kcs --help"


def run_ms(*arguments: str) -> float:
    """Wall time of a Python process. Without a timeout, which would make subprocess look only every 50 ms."""
    started = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (perf_counter() - started) * 1e3


def capture_of_a_gigabyte(directory: Path) -> Path:
    """Frames of noise, which does not compress, so that the file is as large as its content."""
    header = CaptureHeader(b"kcsbench", b"kcsbench", "upbit", "ws://127.0.0.1", FIRST_NS, kcs.__version__)
    settings = WriterSettings(threaded=False, level=1)
    writer = CaptureWriter(directory, header, settings=settings, new_id=lambda: b"kcsbench")
    noise, rng, size, now_ns = os.urandom(4 * MIB), Random(7), 0, FIRST_NS
    while size < GIGABYTE * 105 // 100:  # a little of the noise repeats within a chunk
        start = rng.randrange(3 * MIB)
        payload = noise[start : start + 40_000]
        writer.append(Kind.BINARY, 0, now_ns, payload)
        size, now_ns = size + len(payload), now_ns + 1_000_000
    (sealed,) = writer.close(now_ns)
    assert sealed.bytes >= GIGABYTE
    return sealed.path


def test_help(report: Report) -> None:
    """`kcs --help`, beside a Python that does nothing."""

    def measure(attempt: int) -> list[tuple[Row, Gate | None]]:
        pairs = [(run_ms("-c", "pass"), run_ms("-m", "kcs", "--help")) for _ in range(ROUNDS)]
        bare, took = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        row = Row("start", "kcs --help", "ms", took, "python -c pass", bare, median(took) / median(bare))
        return [(row, Gate(HELP_MS_MAX, PROFILE))]

    report.gated(measure)


def test_info_of_a_gigabyte(report: Report, tmp_path: Path) -> None:
    """`kcs info` on a sealed capture of 1 GB, less what the same command takes on the small fixture: its start-up."""
    path = str(capture_of_a_gigabyte(tmp_path))

    def measure(attempt: int) -> list[tuple[Row, Gate | None]]:
        small = str(FIXTURE)
        pairs = [(run_ms("-m", "kcs", "info", small), run_ms("-m", "kcs", "info", path)) for _ in range(ROUNDS)]
        start = [pair[0] for pair in pairs]
        own = [max(0.0, whole - start_ms) for start_ms, whole in pairs]
        row = Row("start", "kcs info, 1 GB, beyond start-up", "ms", own, "kcs info, 0.5 MB", start)
        return [(row, Gate(INFO_MS_MAX, PROFILE))]

    try:
        report.gated(measure)
    finally:
        Path(path).unlink()
