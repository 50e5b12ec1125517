"""Two pipelines of one run: the muted one at the present, its fork behind it, and the moment at which they meet."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.model import GapFields, Kind, OpenFields, StateFields
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
from kcs.stats import Ledger
from tests.live.support import LineAdapter
from tests.test_pipeline import CAPTURE, ListSink

Step = tuple[int, int, Any, bytes]
"""kind, stream, fields, payload"""


def line(**message: Any) -> bytes:
    return orjson.dumps(message)


MARKETS = ("KRW-BTC", "KRW-ETH")
frames = st.one_of(
    st.builds(lambda m, p, i: line(m=m, p=p, i=i), st.sampled_from(MARKETS), st.integers(1, 3), st.integers(0, 9)),
    st.builds(lambda m, p, b: line(m=m, p=p, b=b), st.sampled_from(MARKETS), st.integers(1, 3), st.integers(0, 3)),
    st.sampled_from([line(up=1), b"junk", line(x=1)]),
)
steps = st.one_of(
    st.builds(lambda stream, payload: (int(Kind.TEXT), stream, None, payload), st.integers(0, 1), frames),
    st.builds(
        lambda stream, markets: (int(Kind.GAP), stream, GapFields(1, 2, "silence", markets), b""),
        st.integers(0, 1),
        st.sampled_from([(), ("KRW-BTC",)]),
    ),
    st.builds(lambda stream: (int(Kind.OPEN), stream, OpenFields("ws://x"), b""), st.integers(0, 1)),
)


def take(pipeline: Pipeline, step: Step) -> None:
    kind, stream, fields, payload = step
    if kind == Kind.TEXT:
        pipeline.feed(stream, pipeline.number, payload)
    else:
        pipeline.control(kind, stream, pipeline.number, fields, payload)


def begin(sink: Any) -> Pipeline:
    pipeline = Pipeline("testex", LineAdapter(), sink, Ledger())
    pipeline.start(CAPTURE)
    return pipeline


@given(st.lists(steps, max_size=30), st.lists(steps, max_size=30), st.lists(steps, max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_run_that_falls_behind_and_catches_up_emits_what_a_run_does_that_never_did(
    before: list[Step], meanwhile: list[Step], after: list[Step]
) -> None:
    whole, sink = ListSink(), ListSink()
    straight, watch = begin(whole), begin(sink)
    for step in before:
        take(watch, step)
    fork = watch.fork(LineAdapter())
    watch.mute()
    for step in meanwhile:
        take(watch, step)
    for step in meanwhile:
        take(fork, step)
    assert watch.difference(fork) is None
    watch.unmute(sink)
    for step in after:
        take(watch, step)
    for step in before + meanwhile + after:
        take(straight, step)
    assert sink.records == whole.records
    assert watch.digest() == straight.digest()
    assert watch.ledger == straight.ledger
    assert watch.records == len(whole.records)


def test_a_muted_pipeline_counts_and_digests_and_tells_the_sink_nothing() -> None:
    sink = ListSink()
    watch = begin(sink)
    watch.mute()
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=1))
    watch.start(b"87654321")
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=2))
    assert sink.records == []
    assert sink.captures == [CAPTURE]
    assert watch.ledger.produced == 2
    assert watch.records == 1
    watch.unmute(sink)
    assert sink.captures == [CAPTURE, b"87654321"]
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=3))
    assert len(sink.records) == 1


def test_unmuting_into_another_sink_takes_every_route_there() -> None:
    watch = begin(NullSink())
    watch.mute()
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=1))
    watch.feed(0, 1, line(m="KRW-BTC", p=1, b=1))
    watch.feed(0, 1, b"junk")
    watch.control(Kind.GAP, 0, 1, GapFields(1, 2, "silence"))
    sink = ListSink()
    watch.unmute(sink)
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=2))
    watch.feed(0, 1, line(m="KRW-BTC", p=1, b=2))
    watch.feed(0, 1, b"junk")
    watch.control(Kind.GAP, 0, 1, GapFields(1, 2, "silence"))
    assert [record[:2] for record in sink.records] == [
        ("trade.testex", "KRW-BTC"), ("orderbook.testex", "KRW-BTC"), ("reject.testex", "0"), ("gap.testex", "0"),
    ]  # fmt: skip


BEFORE = [line(m="KRW-BTC", p=1, i=1), line(m="KRW-BTC", p=1, b=5)]


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (line(m="KRW-BTC", p=1, i=2), "what is known of the trades of KRW-BTC"),
        (line(m="KRW-BTC", p=2, b=6), "what is known of the books of KRW-BTC"),
        (line(m="KRW-ETH", p=2, b=6), "other markets have books: ['KRW-ETH']"),
        (line(m="KRW-BTC", p=2, i=1), "what the adapter knows"),
        (b"junk", "the digest"),
        (line(up=1), "ignored: {'heartbeat': 1} and {}"),
    ],
)
def test_a_difference_is_named(extra: bytes, told: str) -> None:
    watch = begin(NullSink())
    for payload in BEFORE:
        watch.feed(0, 1, payload)
    fork = watch.fork(LineAdapter())
    assert watch.difference(fork) is None
    watch.feed(0, 1, extra)
    assert watch.difference(fork) == "record 3 of 0001020304050607 and 2 of 0001020304050607"
    fork.number = 3
    assert watch.difference(fork) == told


def test_the_fork_has_a_state_of_its_own() -> None:
    watch = begin(NullSink())
    for payload in BEFORE:
        watch.feed(0, 1, payload)
    saved, digest, counted = watch.save(), watch.digest(), watch.ledger.copy()
    fork = watch.fork(LineAdapter())
    for payload in (line(m="KRW-BTC", p=1, i=2), line(m="KRW-BTC", p=3, b=5), line(up=1)):
        fork.feed(0, 1, payload)
    assert (watch.save(), watch.digest(), watch.ledger) == (saved, digest, counted)


def test_state_of_tickers_and_trades_survives_a_file_of_its_own() -> None:
    """A STATE record holds what the de-duplication of each channel needs."""
    watch = begin(NullSink())
    watch.feed(0, 1, line(m="KRW-BTC", p=1, i=1))
    other = begin(NullSink())
    for stream, fields, payload in watch.save():
        assert isinstance(fields, StateFields)
        other.control(Kind.STATE, stream, 1, fields, payload)
    other.feed(1, 1, line(m="KRW-BTC", p=1, i=1))
    assert other.ledger.suppressed == {"trade_repeated": 1}
