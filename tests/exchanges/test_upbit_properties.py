"""Random frames: the four formats say the same, and no mutation gets anything but a verdict out of the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.errors import FrameIgnored, FrameRejected
from kcs.exchanges.upbit import UpbitAdapter
from kcs.model import BUY, SELL, Event, OrderBook, Ticker, Trade

PARSE = UpbitAdapter().parse

SHORT = {
    "type": "ty",
    "code": "cd",
    "timestamp": "tms",
    "trade_timestamp": "ttms",
    "trade_price": "tp",
    "trade_volume": "tv",
    "ask_bid": "ab",
    "sequential_id": "sid",
    "orderbook_units": "obu",
    "ask_price": "ap",
    "bid_price": "bp",
    "ask_size": "as",
    "bid_size": "bs",
    "opening_price": "op",
    "high_price": "hp",
    "low_price": "lp",
    "acc_trade_price": "atp",
    "acc_trade_volume": "atv",
    "stream_type": "st",
}

# A number is drawn as its text, so that the test decides how it is spelt: 123, 123.00000000, 1.23E8, 7.9E-4, 0E-8.
plain = st.decimals(min_value=0, max_value=10**12, places=8, allow_nan=False, allow_infinity=False)
numbers = plain.flatmap(
    lambda d: st.sampled_from([f"{d:f}", f"{d:E}", f"{d.normalize():E}", format(d.quantize(Decimal(1)), "f")])
)
milliseconds = st.integers(0, 9_223_372_036_854)
markets = st.from_regex(r"(KRW|BTC|USDT)-[A-Z0-9]{1,10}", fullmatch=True)


class Number(msgspec.Struct, frozen=True):
    text: str


def spell(value: Any, keys: dict[str, str]) -> str:
    """JSON of the value, object keys replaced as `keys` says."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f'"{keys.get(key, key)}":{spell(item, keys)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(spell(item, keys) for item in value) + "]"
    return msgspec.json.encode(value).decode()


number = numbers.map(Number)
extra = st.dictionaries(
    st.from_regex(r"x_[a-z]{1,5}", fullmatch=True),
    st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)),
    max_size=3,
)
units = st.fixed_dictionaries(dict.fromkeys(("ask_price", "bid_price", "ask_size", "bid_size"), number))
trades = st.fixed_dictionaries(
    {
        "type": st.just("trade"),
        "code": markets,
        "trade_timestamp": milliseconds,
        "trade_price": number,
        "trade_volume": number,
        "ask_bid": st.sampled_from(["ASK", "BID"]),
        "sequential_id": st.integers(0, 2**63 - 1),
        "stream_type": st.just("REALTIME"),
    }
)
books = st.fixed_dictionaries(
    {
        "type": st.just("orderbook"),
        "code": markets,
        "timestamp": milliseconds,
        "orderbook_units": st.lists(units, max_size=30),
    }
)
tickers = st.fixed_dictionaries(
    {
        "type": st.just("ticker"),
        "code": markets,
        "opening_price": number,
        "high_price": number,
        "low_price": number,
        "trade_price": number,
        "acc_trade_price": number,
        "acc_trade_volume": number,
        "timestamp": milliseconds,
    }
)
objects = st.tuples(trades | books | tickers, extra).map(lambda pair: {**pair[0], **pair[1]})
shuffled = objects.flatmap(lambda obj: st.permutations(list(obj.items())).map(dict))


def expected(obj: dict[str, Any]) -> Event:
    """The event by the reference's words, from the drawn values and not from JSON."""
    number_of = {key: float(value.text) for key, value in obj.items() if isinstance(value, Number)}
    code = obj["code"]
    if obj["type"] == "trade":
        side = BUY if obj["ask_bid"] == "BID" else SELL
        ts_ns = obj["trade_timestamp"] * 1_000_000
        return Trade(code, number_of["trade_price"], number_of["trade_volume"], side, ts_ns, str(obj["sequential_id"]))
    ts_ns = obj["timestamp"] * 1_000_000
    if obj["type"] == "orderbook":
        sides = []
        for side_name in ("ask", "bid"):
            levels = [
                (float(unit[f"{side_name}_price"].text), float(unit[f"{side_name}_size"].text))
                for unit in obj["orderbook_units"]
            ]
            sides.append(tuple(level for level in levels if level[0] != 0 and level[1] != 0))
        return OrderBook(code, sides[0], sides[1], ts_ns)
    return Ticker(
        code,
        last=number_of["trade_price"],
        open=number_of["opening_price"],
        high=number_of["high_price"],
        low=number_of["low_price"],
        volume=number_of["acc_trade_volume"],
        value=number_of["acc_trade_price"],
        bid=None,
        ask=None,
        ts_ns=ts_ns,
    )


def frames_of(objs: Sequence[dict[str, Any]], *, short: bool) -> bytes:
    keys = SHORT if short else {}
    text = spell(objs[0], keys) if len(objs) == 1 else spell(list(objs), keys)
    return text.encode()


@settings(max_examples=150, deadline=None)
@given(objects | shuffled)
def test_all_formats_and_key_orders_give_the_same_event(obj: dict[str, Any]) -> None:
    event = expected(obj)
    for keys in ({}, SHORT):
        text = spell(obj, keys).encode()
        assert list(PARSE(0, 1, text)) == [event]
        assert list(PARSE(0, 1, b"[" + text + b"]")) == [event]


@settings(max_examples=50, deadline=None)
@given(st.lists(objects | shuffled, min_size=2, max_size=5), st.booleans())
def test_a_list_gives_every_event_in_order(objs: list[dict[str, Any]], short: bool) -> None:
    assert list(PARSE(0, 1, frames_of(objs, short=short))) == [expected(obj) for obj in objs]


def verdict_of(payload: bytes) -> Sequence[Event] | None:
    """The events, or None for a verdict; anything else raised fails the test."""
    try:
        return PARSE(0, 1, payload)
    except (FrameIgnored, FrameRejected):
        return None


@settings(max_examples=300, deadline=None)
@given(objects, st.booleans(), st.lists(st.tuples(st.integers(0), st.binary(max_size=3)), min_size=1, max_size=4))
def test_mutated_bytes_end_in_events_or_a_verdict(
    obj: dict[str, Any], short: bool, patches: list[tuple[int, bytes]]
) -> None:
    payload = bytearray(frames_of([obj], short=short))
    for where, patch in patches:
        at = where % (len(payload) + 1)
        payload[at : at + max(1, len(patch))] = patch
    for event in verdict_of(bytes(payload)) or ():
        assert 0 <= event.ts_ns < 2**63  # type: ignore[union-attr]
        msgspec.json.encode(event)


@settings(max_examples=100, deadline=None)
@given(objects, st.booleans(), st.data())
def test_a_frame_cut_anywhere_is_rejected(obj: dict[str, Any], short: bool, data: st.DataObject) -> None:
    whole = frames_of([obj], short=short)
    assert verdict_of(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@settings(max_examples=100, deadline=None)
@given(objects, st.booleans(), st.data())
def test_a_deleted_key_rejects_exactly_when_it_is_required(
    obj: dict[str, Any], short: bool, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(obj)))
    events = verdict_of(frames_of([{key: value for key, value in obj.items() if key != gone}], short=short))
    optional = gone.startswith("x_") or gone == "stream_type"
    assert (list(events) if events else None) == ([expected(obj)] if optional else None)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(payload: bytes) -> None:
    assert verdict_of(payload) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*SHORT, *SHORT.values(), "error", "status", "method"]), inner, max_size=6)
    ),
)


@settings(max_examples=200, deadline=None)
@given(anything, st.sampled_from(["trade", "orderbook", "ticker", "candle.1s", "", None]))
def test_arbitrary_json(value: Any, claim: str | None) -> None:
    verdict_of(spell(value, {}).encode())
    if isinstance(value, dict):
        for key in ("type", "ty"):
            verdict_of(spell({key: claim, **value}, {}).encode())
