"""The Upbit adapter on golden frames, hostile bytes, and what it says to the venue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from kcs.errors import FrameIgnored, FrameRejected, UnknownNameError, UsageError
from kcs.exchanges import Subscription, document, upbit, venue
from kcs.exchanges.upbit import MARKETS_MAX, UPBIT, UpbitAdapter
from kcs.model import Event, OrderBook, Ticker, Trade
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
from kcs.stats import Ledger

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "upbit").glob("*.frame"))
CHANNEL_OF = {Trade: "trade", OrderBook: "orderbook", Ticker: "ticker"}

IGNORED = {"heartbeat", "subscriptions", "candle", "error_other"} | {
    f"error_{name}" for name in ("invalid_auth", "wrong_format", "no_ticket", "no_type", "no_codes", "invalid_param")
}
REJECTED = {"empty", "not_json", "not_utf8", "too_deep", "too_large"} | {
    "unknown_type", "missing_key", "bad_type", "bad_value"
}  # fmt: skip


def expected_of(frame: Path) -> dict[str, Any]:
    expected: dict[str, Any] = orjson.loads(frame.with_suffix(".expected.json").read_bytes())
    return expected


def shown(event: Event) -> dict[str, Any]:
    """An event as the golden files spell it; lists for tuples."""
    fields: dict[str, Any] = orjson.loads(orjson.dumps(msgspec.structs.asdict(event)))
    return {"channel": CHANNEL_OF[type(event)], **fields}


def checked_verdict(verdict: FrameIgnored | FrameRejected) -> dict[str, Any]:
    """Reasons come from a bounded set, details are bounded."""
    kind, known = ("ignored", IGNORED) if isinstance(verdict, FrameIgnored) else ("rejected", REJECTED)
    assert verdict.reason in known
    assert len(str(verdict.args[1:])) < 300
    return {kind: verdict.reason}


def outcome(payload: bytes) -> dict[str, Any]:
    """What the adapter makes of the payload, as the golden files spell it."""
    try:
        events = UpbitAdapter().parse(0, 1, payload)
    except (FrameIgnored, FrameRejected) as verdict:
        return checked_verdict(verdict)
    assert events, "a frame without events must say why"
    return {"events": [shown(event) for event in events]}


def test_there_are_golden_frames_of_each_outcome() -> None:
    kinds = {kind for frame in GOLDEN for kind in expected_of(frame)}
    assert kinds == {"events", "ignored", "rejected"}
    reasons = {reason for frame in GOLDEN for kind, reason in expected_of(frame).items() if kind != "events"}
    assert reasons == IGNORED | REJECTED - {"too_large"}, "16 MiB are no fixture"


@pytest.mark.parametrize("frame", GOLDEN, ids=lambda path: path.stem)
def test_golden(frame: Path) -> None:
    assert outcome(frame.read_bytes()) == expected_of(frame)


def test_frames_name_their_markets_as_the_venue_declares() -> None:
    """`codes_in_frames`: what looks for a silent market's frame may look for its code."""
    assert UPBIT.codes_in_frames
    frames = [(frame.read_bytes(), event) for frame in GOLDEN for event in expected_of(frame).get("events", ())]
    assert len(frames) > 30
    for payload, event in frames:
        assert event["market"].encode() in payload


@pytest.mark.parametrize("frame", GOLDEN, ids=lambda path: path.stem)
def test_golden_the_thorough_way(frame: Path) -> None:
    """A blank before the document takes the fast way out of play; the outcome must be the same."""
    assert outcome(b" " + frame.read_bytes()) == expected_of(frame)


@pytest.mark.parametrize("frame", GOLDEN, ids=lambda path: path.stem)
def test_golden_through_the_pipeline(frame: Path) -> None:
    """The ledger counts what the golden file says and nothing is raised."""
    ledger = Ledger()
    taken: list[Event] = []
    pipeline = Pipeline("upbit", UpbitAdapter(), NullSink(), ledger)
    pipeline.tap = lambda event, recv_ns, number, index: taken.append(event)
    pipeline.feed(0, 1_790_200_000_500_000_000, frame.read_bytes())
    expected = expected_of(frame)
    assert [shown(event) for event in taken] == expected.get("events", [])
    assert ledger.ignored == ({expected["ignored"]: 1} if "ignored" in expected else {})
    assert ledger.rejected == ({expected["rejected"]: 1} if "rejected" in expected else {})


def required_keys() -> list[tuple[str, str]]:
    cases = []
    for stem, keys in {
        "trade-default": "code trade_timestamp trade_price trade_volume ask_bid sequential_id",
        "trade-simple": "cd ttms tp tv ab sid",
        "orderbook-default": "code timestamp orderbook_units ask_price ask_size bid_price bid_size",
        "orderbook-simple": "cd tms obu ap as bp bs",
        "ticker-default": "code timestamp opening_price high_price low_price trade_price acc_trade_price "
        "acc_trade_volume",
        "ticker-simple": "cd tms op hp lp tp atp atv",
    }.items():
        cases += [(stem, key) for key in keys.split()]
    return cases


def golden(stem: str) -> bytes:
    return next(frame for frame in GOLDEN if frame.stem == stem).read_bytes()


@pytest.mark.parametrize(("stem", "key"), required_keys())
def test_a_vanished_required_key_rejects(stem: str, key: str) -> None:
    whole = golden(stem)
    without = whole.replace(f'"{key}":'.encode(), f'"{key}_gone":'.encode(), 1)
    assert without != whole
    assert outcome(without) == {"rejected": "missing_key"}


@pytest.mark.parametrize("stem", ["trade-default", "trade-simple", "orderbook-default", "ticker-simple"])
def test_only_the_required_keys_are_needed(stem: str) -> None:
    """All other keys may vanish: frames of 2021 had fewer, those of tomorrow may too."""
    whole = orjson.loads(golden(stem))
    needed = {key for _, key in required_keys()} | {"type", "ty"}
    bare = {key: value for key, value in whole.items() if key in needed}
    assert len(bare) < len(whole)
    assert outcome(orjson.dumps(bare)) == outcome(golden(stem))


def test_the_common_spelling_goes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(payload: bytes) -> Any:
        raise AssertionError(f"took the thorough way: {payload[:60]!r}")

    monkeypatch.setattr(upbit, "_parse_thoroughly", slow)
    for kind in ("trade", "orderbook", "ticker"):
        for wire_format in ("default", "simple"):
            assert outcome(golden(f"{kind}-{wire_format}"))["events"]
            assert outcome(b"[" + golden(f"{kind}-{wire_format}") + b"]")["events"]


MIB15 = 15 * 1024 * 1024


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"[" * MIB15, "too_deep"),
        (b'{"type":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b"[]," * (MIB15 // 3), "not_json"),
        (b'"' + b'\\"' * (MIB15 // 2) + b"[" * 1000, "not_json"),
        (b'{"type":"' + b"a" * MIB15 + b'"}', "unknown_type"),
        (b" " * MIB15, "empty"),
        (b"\xff" * MIB15, "not_utf8"),
        (b"\x00", "not_json"),
        (b'{"type":"trade","x":[' + b"0," * (9 * 1024 * 1024), "too_large"),
    ],
    ids=["open", "objects", "siblings", "escapes", "long-type", "blank", "not-utf8", "nul", "large"],
)
def test_hostile_bytes_are_rejected_in_linear_time(payload: bytes, reason: str) -> None:
    assert outcome(payload) == {"rejected": reason}


def test_a_long_frame_is_no_reason_to_reject() -> None:
    big = b'{"type":"trade","note":"' + b"[" * MIB15 + b'",' + golden("trade-default").removeprefix(b'{"type":"trade",')
    assert outcome(big) == outcome(golden("trade-default"))


def test_a_decoder_out_of_stack_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own bound keeps this away unless the caller already stands deep in the stack."""

    def exhausted(payload: bytes) -> Any:
        raise RecursionError("maximum recursion depth exceeded while deserializing an object")

    monkeypatch.setitem(upbit._DECODE_BY_HEAD, b'{"type', exhausted)
    monkeypatch.setattr(document, "_check_syntax", exhausted)
    assert outcome(golden("trade-default")) == {"rejected": "too_deep"}


def test_the_adapter_keeps_no_state() -> None:
    adapter = UpbitAdapter()
    adapter.parse(0, 1, golden("orderbook-default"))
    adapter.reset(0)
    adapter.reset(0, ("KRW-ADA",))
    assert list(adapter.save()) == []
    with pytest.raises(ValueError, match="no state"):
        adapter.load(0, "KRW-ADA", b"{}")


# What is said to the venue.


def request(**options: Any) -> list[dict[str, Any]]:
    asked = {"channels": ("trade",), "markets": ("KRW-BTC",), **options}
    (text,) = UPBIT.subscribe(Subscription(**asked), "kcs-7")
    parsed: list[dict[str, Any]] = orjson.loads(text)
    return parsed


def test_one_request_asks_for_everything() -> None:
    assert request(channels=("trade", "orderbook", "ticker"), markets=("KRW-BTC", "BTC-ETH"), format="SIMPLE") == [
        {"ticket": "kcs-7"},
        {"type": "trade", "codes": ["KRW-BTC", "BTC-ETH"]},
        {"type": "orderbook", "codes": ["KRW-BTC", "BTC-ETH"]},
        {"type": "ticker", "codes": ["KRW-BTC", "BTC-ETH"]},
        {"format": "SIMPLE"},
    ]


def test_the_format_defaults_to_long_keys() -> None:
    assert request()[-1] == {"format": "DEFAULT"}


@pytest.mark.parametrize("depth", [1, 5, 15, 30])
def test_depth_is_a_suffix_of_book_codes_only(depth: int) -> None:
    _, trade, book, _ = request(channels=("trade", "orderbook"), depth=depth)
    assert trade["codes"] == ["KRW-BTC"]
    assert book["codes"] == [f"KRW-BTC.{depth}"]


def test_nothing_is_asked_for_twice() -> None:
    _, trade, _ = request(channels=("trade", "trade"), markets=("KRW-ETH", "KRW-BTC", "KRW-ETH"))
    assert trade["codes"] == ["KRW-ETH", "KRW-BTC"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"channels": ()}, UsageError),
        ({"channels": ("trades",)}, UnknownNameError),
        ({"markets": ()}, UsageError),
        ({"markets": ("krw-btc",)}, UnknownNameError),
        ({"markets": tuple(f"KRW-A{n}" for n in range(MARKETS_MAX + 1))}, UsageError),
        ({"format": "simple"}, UnknownNameError),
        ({"depth": 10}, UnknownNameError),
        ({"depth": 0}, UnknownNameError),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], error: type[UsageError]) -> None:
    with pytest.raises(error):
        request(**options)


@pytest.mark.parametrize("ticket", ["", "x" * 129])
def test_a_ticket_is_bounded(ticket: str) -> None:
    with pytest.raises(UsageError):
        UPBIT.subscribe(Subscription(("trade",), ("KRW-BTC",)), ticket)


def test_the_largest_subscription_fits_one_frame() -> None:
    markets = tuple(f"KRW-A{n}" for n in range(MARKETS_MAX))
    assert len(request(markets=markets)[1]["codes"]) == MARKETS_MAX


@pytest.mark.parametrize("code", ["KRW-BTC", "BTC-ETH", "USDT-BTC", "KRW-1INCH", "BTC-FCT2", "KRW-T", "KRW-USDT"])
def test_possible_markets(code: str) -> None:
    UPBIT.check_market(code)


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("krw-btc", "KRW-BTC"),
        ("BTC-KRW", "KRW-BTC"),
        ("ETH-BTC", "BTC-ETH"),
        ("KRWBTC", "KRW-BTC"),
        ("BTCKRW", "KRW-BTC"),
        ("BTCUSDT", "USDT-BTC"),
        ("BTC/KRW", "KRW-BTC"),
        ("krw_btc", "KRW-BTC"),
        ("KRW-BTC.15", "KRW-BTC"),
        ("KRW-BTC\n", "KRW-BTC"),
    ],
)
def test_the_near_spelling_is_suggested(code: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        UPBIT.check_market(code)
    assert caught.value.suggestion == meant


@pytest.mark.parametrize("code", ["", "BTC-BTC", "KRW-", "-BTC", "EUR-BTC", "KRW-BTC-ETH", "KRW-비트", "x" * 1_000_000])
def test_impossible_markets(code: str) -> None:
    with pytest.raises(UnknownNameError):
        UPBIT.check_market(code)


def test_the_venue_is_registered_and_its_defaults_are_possible() -> None:
    assert venue("upbit") is UPBIT
    assert UPBIT.url == "wss://api.upbit.com/websocket/v1"
    for market in UPBIT.default_markets:
        UPBIT.check_market(market)
    assert UPBIT.heartbeat.texts_after_subscribe == ("PING",)
    assert UPBIT.heartbeat.ping_every_s <= 20, "Upbit drops an idle connection after 60 s, whatever it documents"
    assert request(channels=UPBIT.channels)[1:-1], "every channel can be asked for"
