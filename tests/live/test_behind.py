"""The record with which a run falls behind: it is delivered like every other, wherever the writer has got to."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.clock import VirtualClock
from kcs.live.recorder import Recorder
from kcs.model import Kind
from kcs.pipeline import Pipeline
from kcs.stats import Ledger
from tests.live.rig import TestSink, trade
from tests.live.support import make_venue

VENUE = make_venue()


@pytest.mark.parametrize("chunk_bytes_max", [1, 1024 * 1024])
def test_the_record_that_fills_a_chunk_may_be_the_first_that_kafka_does_not_take(
    tmp_path: Path, chunk_bytes_max: int
) -> None:
    """Where it fills the chunk, the writer may have it on disk before the run knows that it is behind."""
    clock, sink, ids, logs = VirtualClock(10**18), TestSink(), count(1), list[str]()
    writer = CaptureWriter(
        tmp_path,
        CaptureHeader(bytes(8), bytes(8), VENUE.name, "ws://x", clock.now_ns(), "0"),
        settings=WriterSettings(chunk_bytes_max=chunk_bytes_max, threaded=False),
        new_id=lambda: next(ids).to_bytes(8, "big"),
    )
    recorder = Recorder(
        writer,
        Pipeline(VENUE.name, VENUE.adapter(), sink, Ledger()),
        sink,
        clock,
        lambda level, text: logs.append(text),
        fork=lambda pipeline: pipeline.fork(VENUE.adapter()),
        fresh=lambda sink: Pipeline(VENUE.name, VENUE.adapter(), sink, Ledger()),
        anchor_every_ns=10**12,
    )
    recorder.begin(clock.now_ns())
    for number in range(3):
        recorder.frame(int(Kind.TEXT), 0, clock.now_ns(), trade(number))
    sink.full = True
    for number in range(3, 6):
        recorder.frame(int(Kind.TEXT), 0, clock.now_ns(), trade(number))
    lag = recorder.lag(clock.now_ns())
    assert lag is not None
    assert lag.frames == 3
    sink.full = False

    async def catch_up() -> None:
        async with asyncio.timeout(5):
            await recorder.follow()

    asyncio.run(catch_up())
    assert recorder.lag(clock.now_ns()) is None, logs
    assert recorder.ledger().parsed == 6
    assert len(sink.all) == 6
    recorder.finish()
    recorder.close_writer(clock.now_ns())
    recorder.close()
