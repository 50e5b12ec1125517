"""Frames that Upbit really sent (recorded in 2021), against a plain and independent reading of their JSON.

The recordings lie beside the repository and are no part of it; without them these tests skip.
"""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kcs.exchanges.upbit import UpbitAdapter
from kcs.model import BUY, SELL, Event, OrderBook, Trade

RECORDING = Path(__file__).resolve().parents[3] / "shared" / "captures" / "upbit.jsonl"

pytestmark = pytest.mark.skipif(not RECORDING.is_file(), reason=f"no recording at {RECORDING}")


@cache
def frames() -> list[tuple[int, bytes]]:
    """(recv_ns, payload) of every frame that arrived."""
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    return [(line["recv_ns"], line["payload"].encode()) for line in lines if line["kind"] in ("text", "binary")]


@cache
def pairs() -> list[tuple[dict[str, Any], Event]]:
    """Each frame as plain JSON with exact numbers, beside the one event that the adapter made of it."""
    adapter = UpbitAdapter()
    result = []
    for recv_ns, payload in frames():
        (event,) = adapter.parse(0, recv_ns, payload)
        result.append((json.loads(payload, parse_float=Decimal), event))
    return result


def same(ours: float, theirs: Decimal | int) -> bool:
    """The float is the one nearest to the venue's digits."""
    return ours == float(theirs) and abs(Decimal(ours) - Decimal(theirs)) <= abs(Decimal(theirs)) * Decimal("1.2e-16")


def test_every_frame_is_one_event_of_its_kind() -> None:
    assert len(frames()) == 269
    kinds = [{"trade": Trade, "orderbook": OrderBook}[plain["ty"]] for plain, _ in pairs()]
    assert [type(event) for _, event in pairs()] == kinds


def test_every_trade_value() -> None:
    trades = [(plain, event) for plain, event in pairs() if plain["ty"] == "trade"]
    assert len(trades) == sum(b'"ty":"trade"' in payload for _, payload in frames()) > 100
    for plain, event in trades:
        assert isinstance(event, Trade)
        assert event.market == plain["cd"]
        assert same(event.price, plain["tp"])
        assert same(event.qty, plain["tv"])
        assert event.side == {"BID": 1, "ASK": -1}[plain["ab"]]
        assert event.ts_ns == int(f"{plain['ttms']}000000")
        assert event.id == str(plain["sid"])


def test_every_level_of_every_book() -> None:
    books = [(plain, event) for plain, event in pairs() if plain["ty"] == "orderbook"]
    assert len(books) == sum(b'"ty":"orderbook"' in payload for _, payload in frames()) > 50
    levels = 0
    for plain, event in books:
        assert isinstance(event, OrderBook)
        assert event.market == plain["cd"]
        assert event.ts_ns == int(f"{plain['tms']}000000")
        for ours, price_key, size_key in ((event.asks, "ap", "as"), (event.bids, "bp", "bs")):
            theirs = [(unit[price_key], unit[size_key]) for unit in plain["obu"]]
            theirs = [(price, size) for price, size in theirs if price != 0 and size != 0]
            assert len(ours) == len(theirs)
            for (price, size), (their_price, their_size) in zip(ours, theirs, strict=True):
                assert same(price, their_price)
                assert same(size, their_size)
            levels += len(ours)
    assert levels > 1000


def test_books_are_best_first_and_not_crossed() -> None:
    for _, event in pairs():
        if isinstance(event, OrderBook):
            assert list(event.asks) == sorted(event.asks)
            assert list(event.bids) == sorted(event.bids, reverse=True)
            assert event.bids[0][0] < event.asks[0][0]


def test_the_side_is_the_takers() -> None:
    """A buyer who takes pays the best ask or more of the book before, a seller gets the best bid or less."""
    touch: dict[str, tuple[float, float]] = {}
    seen = {BUY: 0, SELL: 0}
    for _, event in pairs():
        if isinstance(event, OrderBook):
            touch[event.market] = (event.asks[0][0], event.bids[0][0])
        elif isinstance(event, Trade) and event.market in touch:
            best_ask, best_bid = touch[event.market]
            assert event.price >= best_ask if event.side == BUY else event.price <= best_bid
            seen[event.side] += 1
    assert min(seen.values()) >= 20, seen
