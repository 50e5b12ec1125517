"""Read, parse, de-duplicate, encode, digest; into a sink that drops. The reference parses and prints with orjson."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from bench.report import Report, Row
from bench.tapes import frames_of
from bench.timing import timed
from kcs.capture.reader import CaptureReader
from kcs.exchanges import venue
from kcs.model import Kind
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
from kcs.stats import Ledger

FRAME_KINDS = (int(Kind.TEXT), int(Kind.BINARY))


def test_feed_to_null_sink(report: Report, benchmark: Any, tape: tuple[str, Path]) -> None:
    source, path = tape
    frames = frames_of(path)
    digests = set()

    def subject() -> None:
        ledger = Ledger()
        pipeline = Pipeline("upbit", venue("upbit").adapter(), NullSink(), ledger)
        with CaptureReader(path) as reader:
            pipeline.start(reader.header.capture_id)
            for batch in reader.batches():
                for _, kind, stream, recv_ns, payload, fields in batch:
                    if kind in FRAME_KINDS:
                        pipeline.feed(stream, recv_ns, payload)
                    else:
                        pipeline.control(kind, stream, recv_ns, fields, payload)
        assert ledger.trades + ledger.orderbooks + ledger.tickers == len(frames.all)
        digests.add(pipeline.digest())

    def reference() -> None:
        loads, dumps = orjson.loads, orjson.dumps
        for frame in frames.all:
            dumps(loads(frame))

    timing = timed(benchmark, subject, units=len(frames.all), reference=reference, rounds=5)
    assert len(digests) == 1
    if timing is None:
        return
    rates = [1e6 / us for us in timing.us]
    plain = [1e6 / us for us in timing.reference]
    ratio = None if timing.ratio is None else 1 / timing.ratio
    name = f"feed to null sink, {source}, {frames.mean_bytes} B"
    note = "reads, parses, encodes and hashes; the reference neither reads nor hashes"
    report.add(Row("pipeline", name, "frames/s", rates, "orjson there and back", plain, ratio, note=note))
