"""The record with which a run falls behind: it is delivered like every other, wherever the writer has got to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.clock import VirtualClock
from kcs.live.receipt import DeliveryInfo
from kcs.live.recorder import Recorder
from kcs.model import Kind
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
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


def test_a_run_that_waited_for_days_has_many_files_to_say_where_they_go_and_the_loop_turns_meanwhile(
    tmp_path: Path,
) -> None:
    clock, ids = VirtualClock(10**18), count(1)
    delivery = DeliveryInfo(None, "{channel}.{exchange}", True, {}, lambda capture_id: None, "b1")
    recorder = Recorder(
        CaptureWriter(
            tmp_path,
            CaptureHeader(bytes(8), bytes(8), VENUE.name, "ws://x", clock.now_ns(), "0"),
            settings=WriterSettings(threaded=False),
            new_id=lambda: next(ids).to_bytes(8, "big"),
        ),
        Pipeline(VENUE.name, VENUE.adapter(), NullSink(), Ledger()),
        TestSink(),
        clock,
        lambda level, text: None,
        fork=lambda pipeline: pipeline.fork(VENUE.adapter()),
        fresh=lambda sink: Pipeline(VENUE.name, VENUE.adapter(), sink, Ledger()),
        delivery=delivery,
        anchor_every_ns=10**12,
    )
    recorder.hold("no broker")
    recorder.begin(clock.now_ns())
    for _ in range(19):
        recorder.rotate(clock.now_ns(), [])

    def told() -> int:
        return sum(b'"cluster": "c"' in path.read_bytes() for path in tmp_path.glob("*.delivery.json"))

    async def run() -> None:
        release = asyncio.create_task(recorder.release(replace(delivery, cluster_id="c")))
        before, most = 0, 0
        while not release.done():
            await asyncio.sleep(0)
            before, most = told(), max(most, told() - before)
        assert (told(), most) == (20, 1)

    asyncio.run(run())
    recorder.finish()
    recorder.close_writer(clock.now_ns())
    recorder.close()
