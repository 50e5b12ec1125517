"""The recorder where the disk fails late: what it says of files that were finished before."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.clock import VirtualClock
from kcs.exchanges import venue
from kcs.live.receipt import DeliveryInfo
from kcs.live.recorder import Recorder
from kcs.model import Kind
from kcs.pipeline import Pipeline
from kcs.sink import NullSink, Sink
from kcs.stats import Ledger
from kcs.verify import verify


def fork(pipeline: Pipeline) -> Pipeline:
    return pipeline.fork(venue("upbit").adapter())


def fresh(sink: Sink) -> Pipeline:
    return Pipeline("upbit", venue("upbit").adapter(), sink, Ledger())


@dataclass(frozen=True, slots=True)
class State:
    """All is acknowledged of a file that became no record."""

    produced: int = 0
    acked: int = 0
    failed: int = 0
    offsets: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)


def test_a_rotated_file_whose_end_the_disk_refused_has_neither_digest_nor_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, sink, ids = VirtualClock(10**18), NullSink(), count(1)
    pipeline = Pipeline("upbit", venue("upbit").adapter(), sink, Ledger())
    writer = CaptureWriter(
        tmp_path,
        CaptureHeader(bytes(8), bytes(8), "upbit", "ws://x", clock.now_ns(), "0"),
        settings=WriterSettings(flush_ns=0),
        new_id=lambda: next(ids).to_bytes(8, "big"),
    )
    recorder = Recorder(
        writer,
        pipeline,
        sink,
        clock,
        lambda level, text: None,
        fork=fork,
        fresh=fresh,
        delivery=DeliveryInfo("cluster", "{channel}.{exchange}", True, {}, lambda capture_id: State()),
        anchor_every_ns=10**12,
    )
    gate, real = threading.Event(), os.write
    outcomes: list[OSError | None] = [OSError(errno.ENOSPC, "No space left on device"), None]

    def fails_at_the_second(fd: int, data: bytes) -> int:
        if threading.current_thread() is threading.main_thread():
            return real(fd, data)
        assert gate.wait(10)
        outcome = outcomes.pop() if outcomes else None
        if outcome is not None:
            raise outcome
        return real(fd, data)

    monkeypatch.setattr(os, "write", fails_at_the_second)
    recorder.begin(clock.now_ns())
    for _ in range(6):
        clock.advance(1_000)
        recorder.frame(int(Kind.TEXT), 0, clock.now_ns(), b'{"status":"UP"}')
    recorder.rotate(clock.now_ns(), [])  # the digest of the first file is known, its chunks are still in the queue
    recorder.tick(clock.now_ns())
    assert not list(tmp_path.glob("*.receipt.json")), "all is acknowledged, and not on disk"
    gate.set()
    recorder.finish()
    first, second = recorder.results(recorder.close_writer(clock.now_ns()))
    assert recorder.failure is not None
    assert (first.sealed, first.digest, second.sealed, second.digest) == (True, None, False, None)
    assert first.records < 7
    recorder.write_receipts()
    assert not list(tmp_path.glob("*.receipt.json"))
    recorder.close()
    verdict = verify(first.path)
    assert (verdict.whole, verdict.records + verdict.holes) == (False, 7)


def test_a_tick_looks_only_at_files_that_still_wait_for_their_receipt(tmp_path: Path) -> None:
    clock, ids, asked = VirtualClock(10**18), count(1), list[bytes]()
    acked = True

    def state(capture_id: bytes) -> State | None:
        asked.append(capture_id)
        return State() if acked else None

    writer = CaptureWriter(
        tmp_path,
        CaptureHeader(bytes(8), bytes(8), "upbit", "ws://x", clock.now_ns(), "0"),
        settings=WriterSettings(flush_ns=0, threaded=False),
        new_id=lambda: next(ids).to_bytes(8, "big"),
    )
    recorder = Recorder(
        writer,
        Pipeline("upbit", venue("upbit").adapter(), NullSink(), Ledger()),
        NullSink(),
        clock,
        lambda level, text: None,
        fork=fork,
        fresh=fresh,
        delivery=DeliveryInfo("cluster", "{channel}.{exchange}", True, {}, state),
        anchor_every_ns=10**12,
    )
    recorder.begin(clock.now_ns())
    for _ in range(20):
        clock.advance(1_000_000_000)
        recorder.rotate(clock.now_ns(), [])
        recorder.tick(clock.now_ns())
    assert len(asked) == len(set(asked)) == 20, "each file was looked at once"
    acked = False
    recorder.rotate(clock.now_ns(), [])
    asked.clear()
    held = recorder._files

    class Unwalked(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("a tick walks every file of the run")

    recorder._files = Unwalked(held)
    for _ in range(2):
        recorder.tick(clock.now_ns())
    recorder._files = held
    assert len(asked) == 2, "the one that waits, each time"
    acked = True
    recorder.finish()
    sealed = recorder.close_writer(clock.now_ns())
    recorder.write_receipts()
    results = recorder.results(sealed)
    assert len(results) == 22
    assert all(result.receipt is not None and result.digest is not None for result in results)
