"""What it costs to seal in place what a killed collector left: every chunk is read, checked and counted.

    python -m bench.faults seal --mb 16 --mb 256

Writes a `.partial` of that size with simulated frames, in the chunks of live, and seals it. Beside it, in the same run,
the plain reading of the sealed file: what a seal does more than that is counting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.faults.verdict import Verdict, say
from bench.tapes import frames_of, simulated_short
from kcs.capture.leftover import seal_in_place
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.model import Kind
from tests.replay.making import START_NS, capture_header, capture_id

SMALL_MB = 16
SMALL_S = 1.0


def _left(directory: Path, mb: int, payloads: Sequence[bytes]) -> Path:
    """An unsealed capture of about that size, its writer gone."""
    target = CaptureWriter(
        directory, capture_header(1), settings=WriterSettings(threaded=False), new_id=lambda: capture_id(2)
    )
    recv_ns = START_NS
    while target._worker.file.end < mb * 1_000_000:
        for payload in payloads:
            recv_ns += 100_000
            target.append(Kind.BINARY, 0, recv_ns, payload)
    target.flush()
    target._worker.file.abandon()
    target._worker._lock.release()
    return target.path


def _measure(verdict: Verdict, mb: int, payloads: Sequence[bytes]) -> None:
    with tempfile.TemporaryDirectory(prefix="kcs-seal-") as scratch:
        say(f"writing {mb} MB")
        path = _left(Path(scratch), mb, payloads)
        size = path.stat().st_size
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        done = seal_in_place(path)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        reading_s = time.process_time()
        with CaptureReader(done.capture.path) as reader:
            records = sum(len(batch) for batch in reader.batches())
        reading_s = time.process_time() - reading_s
    name = f"{size / 1e6:,.0f} MB, {records:,} records"
    verdict.tell(f"{name}: elapsed", f"{wall_s:.2f} s")
    each = f"{cpu_s / records * 1e6:.2f} us a record, {cpu_s / size * 1e9:.1f} s a GB"
    verdict.tell(f"{name}: processor time", f"{cpu_s:.2f} s, {each}")
    verdict.tell(f"{name}: against reading it", f"{cpu_s / reading_s:.2f} times {reading_s:.2f} s")
    if mb <= SMALL_MB:
        verdict.judge(f"{name}: a small file", f"{cpu_s:.2f} s", f"under {SMALL_S:g} s", cpu_s < SMALL_S)


def main(argv: Sequence[str]) -> int:
    """The command; the result is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults seal", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mb", type=int, action="append", help="size of the file; repeatable")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kcs-seal-") as scratch:
        payloads = frames_of(simulated_short(Path(scratch) / "short.zst")).all
    verdict = Verdict("sealing in place")
    for mb in options.mb or [SMALL_MB, 256]:
        _measure(verdict, mb, payloads)
    return verdict.show()
