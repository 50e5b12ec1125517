"""The venue's adapter alone: bytes to events. The reference is a plain `orjson.loads` of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from bench.report import Gate, Report, Row
from bench.tapes import Frames, book_of_1024_bytes
from bench.timing import timed
from kcs.exchanges import venue

PARSE_US_MAX = 10.0
PROFILE = "py-spy record -n -o parse.svg -- python -m pytest bench/test_parse.py"


def parsing(frames: Sequence[bytes]) -> tuple[Callable[[], None], Callable[[], None]]:
    """(parse all, orjson.loads all)."""
    parse = venue("upbit").adapter().parse
    loads = orjson.loads

    def subject() -> None:
        for frame in frames:
            parse(0, 1, frame)

    def reference() -> None:
        for frame in frames:
            loads(frame)

    return subject, reference


def test_parse_of_a_1_kb_frame(report: Report, benchmark: Any, frames: Frames) -> None:
    """An order book, the dearest kind of frame per byte, of 1,024 bytes."""
    frame = book_of_1024_bytes(frames.orderbook[0])
    assert len(frame) == 1024
    (event,) = venue("upbit").adapter().parse(0, 1, frame)
    assert len(event.asks) == len(event.bids) == frame.count(b'"ask_price"') > 5
    subject, reference = parsing([frame] * 1000)

    def measure(attempt: int) -> list[tuple[Row, Gate | None]]:
        timing = timed(None if attempt else benchmark, subject, units=1000, reference=reference)
        if timing is None:
            pytest.skip("--benchmark-disable: nothing was measured")
        row = Row("parse", "parse 1 KB (order book)", "us", timing.us, "orjson.loads", timing.reference, timing.ratio)
        return [(row, Gate(PARSE_US_MAX, PROFILE))]

    report.gated(measure)


@pytest.mark.parametrize("channel", ["trade", "orderbook", "ticker"])
@pytest.mark.parametrize("source", ["fixture", "real"])
def test_parse_by_channel(
    report: Report, benchmark: Any, request: pytest.FixtureRequest, source: str, channel: str
) -> None:
    whole: Frames = request.getfixturevalue("frames" if source == "fixture" else "real_frames")
    frames: list[bytes] = getattr(whole, channel)[:500]
    if not frames:
        pytest.skip(f"no {channel} among the {source} frames")
    size = sum(map(len, frames)) // len(frames)
    subject, reference = parsing(frames)
    timing = timed(benchmark, subject, units=len(frames), reference=reference)
    if timing is not None:
        name = f"parse {channel}, {source}, {size} B"
        report.add(Row("parse", name, "us", timing.us, "orjson.loads", timing.reference, timing.ratio))
