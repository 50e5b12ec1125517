"""Recording and reading captures: the cost of a record on the caller's thread, on all threads, and when read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import process_time, sleep
from typing import Any

import pytest
import zstandard

import kcs
from bench.report import Report, Row
from bench.tapes import Frames
from bench.timing import timed
from kcs.capture.format import CaptureHeader
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.model import Kind

RECORDS = 5_000
BINARY = int(Kind.BINARY)
FIRST_NS = 1_700_000_000_000_000_000


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CaptureWriter]:
    header = CaptureHeader(b"kcsbench", b"kcsbench", "upbit", "ws://127.0.0.1", FIRST_NS, kcs.__version__)
    writer = CaptureWriter(tmp_path, header, settings=WriterSettings(), new_id=lambda: b"kcsbench")
    yield writer
    writer.close(FIRST_NS)


def test_append(report: Report, benchmark: Any, frames: Frames, writer: CaptureWriter, tmp_path: Path) -> None:
    """Bursts of records; the worker thread compresses meanwhile. Between bursts it may finish, as it can live."""
    payloads = (frames.all * (RECORDS // len(frames.all) + 1))[:RECORDS]
    now_ns = FIRST_NS
    appended = 0
    cpu: list[float] = []

    def settle() -> None:
        nonlocal appended
        writer.flush()
        while writer.captured < appended:
            sleep(0.001)
        if appended:
            cpu.append((process_time() - started) / RECORDS * 1e6)
        begin()

    def begin() -> None:
        nonlocal started
        started = process_time()

    started = 0.0

    def subject() -> None:
        nonlocal appended, now_ns
        append = writer.append
        for payload in payloads:
            now_ns += 100_000
            append(BINARY, 0, now_ns, payload)
        appended += RECORDS

    with (tmp_path / "plain").open("wb", buffering=1 << 20) as plain:

        def reference() -> None:
            for payload in payloads:
                plain.write(payload)

        timing = timed(benchmark, subject, units=RECORDS, reference=reference, setup=settle)
    assert writer.failed is None
    if timing is None:
        return
    name = f"capture append, {frames.mean_bytes} B"
    what = "file.write, buffered"
    report.add(Row("capture", name, "us", timing.us, what, timing.reference, timing.ratio, note="calling thread"))
    report.add(Row("capture", "  the same with the worker", "us CPU", cpu, note="append, encode, zstd -3, write"))


def test_read(report: Report, benchmark: Any, tape: tuple[str, Path]) -> None:
    """A whole capture as batches of records, checksums verified, against a bare decompression of the same stream."""
    source, path = tape
    with CaptureReader(path) as reader:
        records = reader.info().records

    def subject() -> None:
        with CaptureReader(path) as reader:
            assert sum(len(batch) for batch in reader.batches()) == records

    def reference() -> None:
        stored = path.read_bytes()
        with zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as stream:
            while stream.read(1 << 20):
                pass

    timing = timed(benchmark, subject, units=records, reference=reference, rounds=5)
    if timing is not None:
        name = f"capture read, {source}"
        report.add(Row("capture", name, "us", timing.us, "zstd -dc in memory", timing.reference, timing.ratio))
