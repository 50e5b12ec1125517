"""The pipeline against a scripted adapter: what is emitted, dropped, counted, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from struct import pack
from typing import Any

import msgspec
import orjson
import pytest

import kcs.pipeline
from kcs.errors import DamagedCaptureError, FrameIgnored, FrameRejected, LedgerError
from kcs.exchanges.upbit import UpbitAdapter
from kcs.model import (
    BUY,
    SELL,
    CloseFields,
    Event,
    Gap,
    GapFields,
    Kind,
    OpenFields,
    OrderBook,
    StateFields,
    Ticker,
    Trade,
)
from kcs.pipeline import Pipeline
from kcs.routes import BOOK_WINDOW, TRADE_WINDOW, TRADE_WINDOW_NS, TRADES_MAX
from kcs.sink import POSITION, RECORD_BYTES_MAX
from kcs.stats import Ledger

CAPTURE = bytes(range(8))


class ScriptedAdapter:
    """A frame's payload is the index of a script entry: events, or a verdict to raise."""

    def __init__(self, *script: Sequence[Event] | Exception) -> None:
        self.script = script
        self.resets: list[tuple[int, tuple[str, ...]]] = []
        self.loaded: list[tuple[int, str, bytes]] = []

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        step = self.script[int(payload)]
        if isinstance(step, Exception):
            raise step
        return step

    def reset(self, stream: int, markets: Sequence[str] = ()) -> None:
        self.resets.append((stream, tuple(markets)))

    def save(self) -> Iterable[tuple[int, str, bytes]]:
        return [(3, "M", b"\x00adapter")]

    def load(self, stream: int, market: str, state: bytes) -> None:
        self.loaded.append((stream, market, state))


class ListSink:
    """Keeps every record."""

    def __init__(self) -> None:
        self.acked = self.failed = 0
        self.full = False
        self.captures: list[bytes] = []
        self.records: list[tuple[str, str, bytes, int, tuple[int, int, int], bytes, Any]] = []

    def start(self, capture_id: bytes) -> None:
        self.captures.append(capture_id)

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, str]:
        return f"{channel}.{exchange}", key

    def emit(self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Any = ()) -> None:
        self.records.append((*route, value, recv_ns, POSITION.unpack(position), trade_id, headers))
        self.acked += 1

    async def room(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...


def trade(id: str = "", market: str = "KRW-BTC", side: int = BUY, price: float = 100.0) -> Trade:
    return Trade(market, price, 0.5, side, 1_700_000_000_123_000_000, id)


def book(ts_ns: int = 10, price: float = 1.0, market: str = "KRW-BTC") -> OrderBook:
    return OrderBook(market, ((price + 1, 2.0),), ((price, 3.0),), ts_ns)


def build(*script: Sequence[Event] | Exception) -> tuple[Pipeline, ListSink, ScriptedAdapter]:
    adapter, sink = ScriptedAdapter(*script), ListSink()
    pipeline = Pipeline("upbit", adapter, sink, Ledger())
    pipeline.start(CAPTURE)
    return pipeline, sink, adapter


def feed_all(pipeline: Pipeline, adapter: ScriptedAdapter, stream: int = 0, *, since: int = 0) -> None:
    for i in range(len(adapter.script)):
        pipeline.feed(stream, 1_000 + since + i, b"%d" % i)


def settled(pipeline: Pipeline, sink: ListSink) -> Ledger:
    ledger = pipeline.ledger
    ledger.received = ledger.captured = ledger.parsed + sum(ledger.ignored.values()) + sum(ledger.rejected.values())
    ledger.settle(sink.acked, sink.failed)
    ledger.check()
    return ledger


def test_values_are_what_the_documentation_says() -> None:
    ticker = Ticker("KRW-BTC", 5.0, 4.0, None, 3.0, 10.0, 20.0, None, None, 2_500_000_000)
    pipeline, sink, adapter = build([trade("7", side=SELL)], [book(1_500_000_000)], [ticker])
    feed_all(pipeline, adapter)
    topics = [(r[0], r[1]) for r in sink.records]
    assert topics == [("trade.upbit", "KRW-BTC"), ("orderbook.upbit", "KRW-BTC"), ("ticker.upbit", "KRW-BTC")]
    assert [orjson.loads(r[2]) for r in sink.records] == [
        [100.0, 0.5, -1, 1_700_000_000.123],
        {"asks": [[2.0, 2.0]], "bids": [[1.0, 3.0]], "ts": 1.5},
        {
            "last": 5.0,
            "open": 4.0,
            "high": None,
            "low": 3.0,
            "volume": 10.0,
            "value": 20.0,
            "bid": None,
            "ask": None,
            "ts": 2.5,
        },
    ]
    assert [r[4] for r in sink.records] == [(0, 0, 1000), (1, 0, 1001), (2, 0, 1002)]
    assert [r[5] for r in sink.records] == [b"7", b"", b""]
    assert settled(pipeline, sink).produced == 3


def test_every_event_of_a_frame_is_emitted_in_order() -> None:
    pipeline, sink, adapter = build([trade("1"), trade("2"), book(), trade("3")])
    feed_all(pipeline, adapter)
    assert [(r[4][1], r[5]) for r in sink.records] == [(0, b"1"), (1, b"2"), (2, b""), (3, b"3")]
    assert pipeline.last_event == trade("3")


def test_ignored_and_rejected_frames_are_counted_and_only_the_rejected_is_produced() -> None:
    pipeline, sink, adapter = build(FrameIgnored("heartbeat"), FrameRejected("not_json"), FrameIgnored("heartbeat"))
    feed_all(pipeline, adapter, stream=4)
    ledger = settled(pipeline, sink)
    assert ledger.ignored == {"heartbeat": 2}
    assert ledger.rejected == {"not_json": 1}
    assert sink.records == [("reject.upbit", "4", b"1", 1001, (1, 0, 1001), b"", (("reason", b"not_json"),))]


def test_a_huge_rejected_frame_is_cut_and_says_how_long_it_was() -> None:
    class Refuses(ScriptedAdapter):
        def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
            raise FrameRejected("not_json")

    sink = ListSink()
    pipeline = Pipeline("upbit", Refuses(), sink, Ledger())
    pipeline.start(CAPTURE)
    pipeline.feed(0, 1, b"x" * (RECORD_BYTES_MAX + 5))
    (record,) = sink.records
    assert len(record[2]) == RECORD_BYTES_MAX
    assert dict(record[6])["truncated"] == b"%d" % (RECORD_BYTES_MAX + 5)


def test_a_repeated_trade_id_is_dropped_within_the_window_and_across_reconnects() -> None:
    pipeline, sink, adapter = build([trade("1")], [trade("1")])
    pipeline.feed(0, 1, b"0")
    pipeline.control(Kind.CLOSE, 0, 2, CloseFields(1006))
    pipeline.control(Kind.OPEN, 0, 3, OpenFields("ws://x"))
    pipeline.feed(0, 4, b"1")
    assert len(sink.records) == 1
    assert settled(pipeline, sink).suppressed == {"trade_repeated": 1}
    assert adapter.resets == [(0, ()), (0, ())]


def test_the_same_id_in_another_market_and_trades_without_id_are_kept() -> None:
    pipeline, sink, adapter = build([trade("1")], [trade("1", market="KRW-ETH")], [trade("")], [trade("")])
    feed_all(pipeline, adapter)
    assert len(sink.records) == 4


def test_the_last_128_trades_are_remembered_however_old_and_the_oldest_are_forgotten_first() -> None:
    count = TRADE_WINDOW + 1
    pipeline, sink, _ = build(*[[trade(str(i))] for i in range(count)], [trade("1")], [trade("0")])
    for number in range(count):
        pipeline.feed(0, number, b"%d" % number)
        if number == count - 2:
            assert len(pipeline._trades["KRW-BTC"].order) == TRADE_WINDOW
    late_ns = 10 * TRADE_WINDOW_NS
    pipeline.feed(0, late_ns, b"%d" % count)
    assert pipeline.ledger.suppressed == {"trade_repeated": 1}, "1 is still there: nothing came that pushed it out"
    pipeline.feed(0, late_ns, b"%d" % (count + 1))
    assert pipeline.ledger.suppressed == {"trade_repeated": 2}, "0 too: it left only with a newer one"
    more, sink, _ = build(*[[trade(str(i))] for i in range(count)], [trade("1")], [trade("0")])
    for number in range(count):
        more.feed(0, number * TRADE_WINDOW_NS, b"%d" % number)
    more.feed(0, late_ns, b"%d" % count)
    assert more.ledger.suppressed == {"trade_repeated": 1}
    more.feed(0, late_ns, b"%d" % (count + 1))
    assert sink.records[-1][5] == b"0"


def test_a_second_connection_may_lag_by_a_minute_whatever_the_rate() -> None:
    count = 3000
    pipeline, sink, _ = build(*[[trade(str(i))] for i in range(count)])
    step_ns = TRADE_WINDOW_NS // count
    for number in range(count):
        pipeline.feed(0, number * step_ns, b"%d" % number)
    for number in range(count):
        pipeline.feed(1, TRADE_WINDOW_NS + number * step_ns, b"%d" % number)
    assert len(sink.records) == count
    assert pipeline.ledger.suppressed == {"trade_repeated": count}


def test_what_is_remembered_of_trades_is_bounded_a_market_and_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[trade(str(i))] for i in range(TRADES_MAX + 50)]
    pipeline, _, adapter = build(*script)
    feed_all(pipeline, adapter)
    assert len(pipeline._trades["KRW-BTC"].order) == len(pipeline._trades["KRW-BTC"].seen) == TRADES_MAX
    monkeypatch.setattr(kcs.pipeline, "TRADES_OVERALL_MAX", 600)
    both, _, adapter = build(*[[trade(str(i), market)] for i in range(400) for market in ("KRW-BTC", "KRW-ETH")])
    feed_all(both, adapter)
    assert [len(route.order) for route in both._trades.values()] == [300, 300]


def test_an_equal_book_is_dropped_and_a_different_one_with_the_same_time_is_kept() -> None:
    pipeline, sink, adapter = build([book(10, 1.0)], [book(10, 1.0)], [book(10, 2.0)], [book(10, 1.0)], [book(11, 1.0)])
    feed_all(pipeline, adapter)
    assert [r[4][0] for r in sink.records] == [0, 2, 4]
    assert settled(pipeline, sink).suppressed == {"book_repeated": 2}


def test_an_older_book_is_dropped_only_when_another_stream_emitted_the_newer_one() -> None:
    pipeline, sink, _ = build([book(10)], [book(9)], [book(8)])
    pipeline.feed(0, 1, b"0")
    pipeline.feed(1, 2, b"1")
    pipeline.feed(0, 3, b"2")
    assert [r[4][0] for r in sink.records] == [0, 2]
    assert settled(pipeline, sink).suppressed == {"book_older": 1}


def test_the_book_window_is_bounded() -> None:
    books = [[book(10, float(i))] for i in range(BOOK_WINDOW + 1)]
    pipeline, sink, adapter = build(*books, [book(10, 0.0)])
    feed_all(pipeline, adapter)
    assert len(sink.records) == BOOK_WINDOW + 2, "the first book has left the window"


def ticker(ts_ns: int, last: float = 1.0) -> Ticker:
    return Ticker("KRW-BTC", last, None, None, None, None, None, None, None, ts_ns)


def test_a_ticker_is_dropped_as_a_book_is() -> None:
    """Equal with the same time: dropped. Older than another stream's: dropped. Older on the same stream: kept."""
    pipeline, sink, _ = build([ticker(5)], [ticker(5)], [ticker(5, 2.0)], [ticker(4)], [ticker(6)])
    for number in range(3):
        pipeline.feed(0, number, b"%d" % number)
    pipeline.feed(1, 3, b"3")
    pipeline.feed(1, 4, b"4")
    pipeline.feed(1, 5, b"3")
    assert [orjson.loads(record[2])["ts"] for record in sink.records] == [5e-9, 5e-9, 6e-9, 4e-9]
    assert pipeline.ledger.suppressed == {"ticker_repeated": 1, "ticker_older": 1}


def test_the_ticker_window_is_in_the_saved_state() -> None:
    first, _, _ = build([ticker(5)], [ticker(5, 2.0)])
    first.feed(0, 0, b"0")
    first.feed(0, 1, b"1")
    second, sink, _ = build([ticker(5)], [ticker(5, 2.0)], [ticker(4)])
    for stream, fields, payload in first.save():
        if not stream:
            second.control(Kind.STATE, stream, 2, fields, payload)
    for number in range(3):
        second.feed(1, number, b"%d" % number)
    assert sink.records == []
    assert second.ledger.suppressed == {"ticker_repeated": 2, "ticker_older": 1}


def test_a_gap_record_resets_the_named_markets_and_is_produced() -> None:
    pipeline, sink, adapter = build([Gap(2, 1_000_000_000, 2_000_000_000, "sequence", ("KRW-BTC",), 4)])
    pipeline.control(Kind.GAP, 2, 7, GapFields(1_000_000_000, 3_000_000_000, "disconnect", ("KRW-ETH",)))
    pipeline.feed(2, 8, b"0")
    assert adapter.resets == [(2, ("KRW-ETH",))]
    assert [(r[0], r[1], orjson.loads(r[2])) for r in sink.records] == [
        (
            "gap.upbit",
            "2",
            {"from": 1.0, "to": 3.0, "cause": "disconnect", "stream": 2, "markets": ["KRW-ETH"], "frames": None},
        ),
        (
            "gap.upbit",
            "2",
            {"from": 1.0, "to": 2.0, "cause": "sequence", "stream": 2, "markets": ["KRW-BTC"], "frames": 4},
        ),
    ]
    assert settled(pipeline, sink).gaps == 2


def test_a_gap_that_a_twin_covered_says_by_whom() -> None:
    pipeline, sink, _ = build()
    pipeline.control(Kind.GAP, 1, 7, GapFields(1, 3, "disconnect", ("KRW-ETH",), covered_by=0))
    ((_, _, value, *_),) = sink.records
    assert orjson.loads(value)["covered_by"] == 0


def test_a_continued_open_does_not_reset() -> None:
    pipeline, _, adapter = build()
    pipeline.control(Kind.OPEN, 0, 1, OpenFields("ws://x", continued=True))
    assert adapter.resets == []


def test_every_record_of_any_kind_has_a_number() -> None:
    pipeline, sink, _ = build([trade("1")])
    pipeline.control(Kind.OPEN, 0, 1, OpenFields("ws://x"))
    pipeline.control(Kind.SENT, 0, 2, None, b"subscribe")
    pipeline.feed(0, 3, b"0")
    assert sink.records[0][4] == (2, 0, 3)
    assert pipeline.number == 3
    pipeline.start(b"another.")
    assert pipeline.number == 0
    assert sink.captures == [CAPTURE, b"another."]


def test_the_digest_is_the_documented_one() -> None:
    pipeline, sink, adapter = build([trade("77")], [book()])
    feed_all(pipeline, adapter)
    sha = hashlib.sha256()
    for topic, key, value, recv_ns, position, trade_id, _ in sink.records:
        for text in (topic.encode(), key.encode()):
            sha.update(pack(">I", len(text)) + text)
        sha.update(pack(">IQI", len(value), recv_ns // 1_000_000, len(trade_id)))
        sha.update(pack(">QIQ", *position) + trade_id + value)
    assert pipeline.digest() == sha.hexdigest()


def test_the_digest_restarts_with_a_file_and_ignores_the_capture_id() -> None:
    pipeline, _, adapter = build([trade("")])
    feed_all(pipeline, adapter)
    first = pipeline.digest()
    pipeline.start(b"zzzzzzzz")
    feed_all(pipeline, adapter)
    assert pipeline.digest() == first


def test_a_pipeline_without_digest_says_so() -> None:
    pipeline = Pipeline("upbit", ScriptedAdapter(), ListSink(), Ledger(), digest=False)
    with pytest.raises(LedgerError):
        pipeline.digest()


def test_saved_state_makes_a_second_pipeline_behave_as_the_first() -> None:
    history = [[trade(str(i))] for i in range(TRADE_WINDOW + 9)] + [
        [book(10, 1.0)],
        [book(10, 2.0)],
        [book(5, 1.0, "KRW-X")],
    ]
    later: list[Sequence[Event]] = [
        [trade("8")], [trade("9")], [trade(str(TRADE_WINDOW + 8))], [book(10, 2.0)], [book(10, 3.0)], [book(9, 1.0)],
        [book(5, 1.0, "KRW-X")], [book(6, 1.0, "KRW-X")], [trade("new")],
    ]  # fmt: skip
    whole, whole_sink, adapter = build(*history, *later)
    feed_all(whole, adapter)

    first, _, first_adapter = build(*history)
    feed_all(first, first_adapter)
    second, second_sink, second_adapter = build(*later)
    for stream, fields, payload in first.save():
        second.control(Kind.STATE, stream, 1, fields, payload)
    assert second_adapter.loaded == [(3, "M", b"\x00adapter")]
    feed_all(second, second_adapter, since=len(history))
    kept = [(r[0], r[1], r[2]) for r in second_sink.records]
    assert kept == [(r[0], r[1], r[2]) for r in whole_sink.records][-len(kept) :]
    assert second.ledger.suppressed == whole.ledger.suppressed
    assert second.save() == whole.save()


def test_loading_its_own_state_changes_nothing() -> None:
    pipeline, _, adapter = build([trade("1")], [book()])
    feed_all(pipeline, adapter)
    before = pipeline.save()
    for stream, fields, payload in before:
        assert isinstance(fields, StateFields)
        pipeline.control(Kind.STATE, stream, 1, fields, payload)
    assert pipeline.save() == before


MARKETS = [f"KRW-{number}" for number in range(5)]


@pytest.fixture
def three_markets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcs.pipeline, "MARKETS_MAX", 3)


@pytest.mark.usefixtures("three_markets")
def test_a_market_over_the_bound_is_rejected_and_known_ones_go_on_in_every_channel() -> None:
    ticker = Ticker(MARKETS[1], 5.0, None, None, None, None, None, None, None, 10)
    script: list[Sequence[Event]] = [
        [trade("1", MARKETS[0])], [ticker], [book(10, market=MARKETS[2])],
        [trade("1", MARKETS[3])], [book(10, market=MARKETS[4])], [msgspec.structs.replace(ticker, market=MARKETS[3])],
        [trade("1", MARKETS[1])], [book(10, market=MARKETS[0])], [trade("2", MARKETS[0])], [Gap(0, 1, 2, "sequence")],
    ]  # fmt: skip
    pipeline, sink, adapter = build(*script)
    feed_all(pipeline, adapter)
    ledger = settled(pipeline, sink)
    assert ledger.rejected == {"too_many_markets": 3}
    assert (ledger.parsed, ledger.trades, ledger.orderbooks, ledger.tickers, ledger.gaps) == (7, 3, 2, 1, 1)
    rejects = [(r[2], r[4][0], r[6]) for r in sink.records if r[0] == "reject.upbit"]
    assert rejects == [(b"%d" % number, number, (("reason", b"too_many_markets"),)) for number in (3, 4, 5)]


@pytest.mark.usefixtures("three_markets")
def test_a_frame_that_would_cross_the_bound_is_rejected_before_any_of_its_events() -> None:
    one, two, three, four, _ = (trade("1", market) for market in MARKETS)
    pipeline, sink, adapter = build([one, two], [one, three, four], [trade("2", MARKETS[0]), three, two, three])
    feed_all(pipeline, adapter)
    ledger = settled(pipeline, sink)
    assert (ledger.parsed, ledger.rejected, ledger.trades) == (2, {"too_many_markets": 1}, 6)
    assert [(r[0], r[4][:2]) for r in sink.records] == [
        ("trade.upbit", (0, 0)),
        ("trade.upbit", (0, 1)),
        ("reject.upbit", (1, 0)),
        ("trade.upbit", (2, 0)),
        ("trade.upbit", (2, 1)),
    ]
    assert ledger.suppressed == {"trade_repeated": 2}, "the rejected frame was not remembered"


@pytest.mark.usefixtures("three_markets")
def test_the_saved_state_keeps_the_bound_whatever_made_the_markets_known() -> None:
    ticker = Ticker(MARKETS[0], 5.0, None, None, None, None, None, None, None, 10)
    history: list[Sequence[Event]] = [[ticker], [trade("", MARKETS[1])], [book(5, market=MARKETS[2])]]
    later: list[Sequence[Event]] = [[trade("1", MARKETS[3])], [trade("1", MARKETS[0])]]
    first, _, adapter = build(*history)
    feed_all(first, adapter)
    second, sink, adapter = build(*later)
    for stream, fields, payload in first.save():
        second.control(Kind.STATE, stream, 1, fields, payload)
    assert second.save() == first.save()
    feed_all(second, adapter)
    assert [r[0] for r in sink.records] == ["reject.upbit", "trade.upbit"]


@pytest.mark.usefixtures("three_markets")
def test_a_foreign_state_cannot_pass_the_bound() -> None:
    pipeline, _, _ = build()
    for market in [*MARKETS[:3], *MARKETS[:3]]:
        pipeline.control(Kind.STATE, 0, 1, StateFields(market=market), b"{}")
    with pytest.raises(DamagedCaptureError, match="more than 3 markets"):
        pipeline.control(Kind.STATE, 0, 1, StateFields(market=MARKETS[3]), b"{}")


def test_the_tap_sees_exactly_what_is_emitted() -> None:
    pipeline, sink, adapter = build([trade("1"), trade("1"), book()])
    seen: list[tuple[Event, int, int, int]] = []
    pipeline.tap = lambda event, recv_ns, number, index: seen.append((event, recv_ns, number, index))
    feed_all(pipeline, adapter)
    assert seen == [(trade("1"), 1000, 0, 0), (book(), 1000, 0, 2)]
    assert len(sink.records) == 2


@pytest.mark.parametrize("state", [b"garbage", b"", b"\xff", b'{"trades":[1]}', b"[" * 5000, b" " * 8_400_000 + b"{}"])
def test_a_state_that_is_none_is_an_error_that_names_the_record(state: bytes) -> None:
    pipeline, _, _ = build()
    pipeline.number = 7
    with pytest.raises(DamagedCaptureError, match="'KRW-BTC' in record 7"):
        pipeline.control(Kind.STATE, 0, 1, StateFields(market="KRW-BTC"), state)


def test_a_state_that_the_adapter_refuses_is_an_error_too() -> None:
    pipeline = Pipeline("upbit", UpbitAdapter(), ListSink(), Ledger())
    with pytest.raises(DamagedCaptureError, match="keeps no state"):
        pipeline.control(Kind.STATE, 0, 1, StateFields(market="KRW-BTC"), b'{"adapter":"AAAA"}')


def test_a_foreign_state_cannot_make_the_windows_larger() -> None:
    pipeline, _, _ = build()
    ids = [str(n) for n in range(TRADES_MAX + 1000)]
    state = orjson.dumps({"trades": ids, "book_ts_ns": 5, "books": ["AAAA"] * 1000})
    pipeline.control(Kind.STATE, 0, 1, StateFields(market="KRW-BTC"), state)
    _, _, saved = pipeline.save()[0]
    assert orjson.loads(saved)["trades"] == ids[-TRADES_MAX:]
    pipeline.control(Kind.STATE, 0, 1, StateFields(market="KRW-BTC"), b'{"trades":["a","a","b"],"trade_ns":[1]}')
    _, _, saved = pipeline.save()[0]
    assert (orjson.loads(saved)["trades"], orjson.loads(saved)["trade_ns"]) == (["a", "b"], [0, 0])
    assert len(orjson.loads(saved)["books"]) == BOOK_WINDOW
