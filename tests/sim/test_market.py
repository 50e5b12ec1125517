"""The market's course: the same however it is looked at, and free of contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.model import BUY, SELL
from kcs.sim.catalogue import Ticks
from kcs.sim.market import BOOK, TICKER, TRADE, MarketState, SimMarket
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings

DAY_NS = 86_400 * NS_PER_S


def opened(**options: Any) -> SimMarket:
    settings = SimSettings(**options)
    assert settings.epoch_ns is not None
    return SimMarket(settings, settings.epoch_ns)


def course(market: SimMarket, steps: int) -> list[tuple[Any, ...]]:
    """What each step did, enough of it to notice any difference."""
    seen: list[tuple[Any, ...]] = []
    for _ in range(steps):
        due_ns = market.next_due_ns
        kind, state = market.step()
        seen.append(
            (
                due_ns,
                kind,
                state.code,
                state.price,
                state.qty,
                state.side,
                state.sid,
                state.book.ask_px[:3],
                state.day_qty,
            )
        )
    return seen


def test_same_seed_same_course() -> None:
    assert course(opened(seed=3, rate=900), 3_000) == course(opened(seed=3, rate=900), 3_000)


@pytest.mark.parametrize("other", [{"seed": 4}, {"rate": 901}, {"markets": ("KRW-BTC", "KRW-ETH")}])
def test_another_setting_another_course(other: dict[str, Any]) -> None:
    base: dict[str, Any] = {"seed": 3, "rate": 900}
    assert course(opened(**base), 100) != course(opened(**{**base, **other}), 100)


def test_the_epoch_moves_the_times_and_nothing_else() -> None:
    later = course(opened(seed=3, epoch_ns=DEFAULT_EPOCH_NS + DAY_NS), 500)
    assert [entry[:6] for entry in later] == [entry[:6] for entry in course(opened(seed=3), 500)]


@pytest.mark.parametrize("rate", [20, 10_000])
def test_each_trade_is_at_the_touch_of_the_book_before_it(rate: int) -> None:
    market = opened(rate=rate, seed=11)
    sides = {BUY: 0, SELL: 0}
    touch = {state.code: look(state) for state in market.states}
    for _ in range(8_000):
        kind, state = market.step()
        if kind == TRADE:
            ask, ask_size, bid, bid_size = touch[state.code]
            assert (state.ask_px, state.ask_sz, state.bid_px, state.bid_sz) == (ask, ask_size, bid, bid_size)
            price, size = (ask, ask_size) if state.side == BUY else (bid, bid_size)
            assert state.price == price
            assert 0 < state.qty <= size
            left = look(state)[:2] if state.side == BUY else look(state)[2:]
            assert left == (price, size - state.qty) if state.qty < size else left[0] != price
            sides[state.side] += 1
        assert state.book.bid_px[0] < state.book.ask_px[0]
        touch[state.code] = look(state)
    assert min(sides.values()) > 1_000


def look(state: MarketState) -> tuple[int, int, int, int]:
    book = state.book
    return book.ask_px[0], book.ask_sz[0], book.bid_px[0], book.bid_sz[0]


def test_between_two_books_only_the_eaten_side_changes_at_the_touch() -> None:
    market = opened(rate=2_000, markets=("KRW-XRP", "KRW-BTC"))
    asks: dict[str, int] = {}
    for _ in range(5_000):
        kind, state = market.step()
        if kind == BOOK:
            asks[state.code] = state.book.ask_px[0]
        elif kind == TRADE and state.code in asks and state.side == BUY:
            assert state.price >= asks[state.code]


def test_ids_are_unique_and_ordered_and_made_of_the_match_time() -> None:
    market = opened(rate=50_000, seed=2, markets=("KRW-BTC",), channels=("trade",))
    sids, counted = [], 0
    for _ in range(20_000):
        _, state = market.step()
        sids.append(state.sid)
        assert state.sid // 10_000 == state.match_ms
        counted += state.sid % 10_000 > 0
    assert sids == sorted(set(sids))
    assert len(str(sids[0])) == 17
    assert counted > 1_000, "several trades in one millisecond"


def test_match_time_is_before_publication_and_publication_is_due_time() -> None:
    market = opened(rate=1_000)
    for _ in range(500):
        due_ms = (DEFAULT_EPOCH_NS + market.next_due_ns) // NS_PER_MS
        kind, state = market.step()
        if kind == TRADE:
            assert state.publish_ms == due_ms
            assert 15 <= due_ms - state.match_ms < 45
        elif kind == BOOK:
            assert state.book_ms == due_ms
        else:
            assert state.ticker_ms == due_ms


def test_day_figures_add_up() -> None:
    market = opened(rate=3_000, seed=5)
    before = {state.code: (state.day_qty, state.day_value, state.bid_qty, state.ask_qty) for state in market.states}
    traded = {state.code: [0, 0, 0, 0] for state in market.states}
    for _ in range(10_000):
        kind, state = market.step()
        if kind == TRADE:
            sums = traded[state.code]
            sums[0] += state.qty
            sums[1] += state.qty * state.price
            sums[2 if state.side == BUY else 3] += state.qty
        assert state.low <= state.price <= state.high
        assert state.low <= state.open <= state.high
        assert state.day_qty <= state.qty_24h
    for state in market.states:
        figures = (state.day_qty, state.day_value, state.bid_qty, state.ask_qty)
        assert figures == tuple(a + b for a, b in zip(before[state.code], traded[state.code], strict=True))


def test_a_new_day_begins_at_midnight_utc() -> None:
    midnight_ns = DEFAULT_EPOCH_NS // DAY_NS * DAY_NS + DAY_NS
    market = opened(rate=1_000, epoch_ns=midnight_ns - NS_PER_S)
    bitcoin, last = market.by_code["KRW-BTC"], 0
    day, first = bitcoin.day, bitcoin.open
    while bitcoin.day == day:
        last = bitcoin.price
        market.step()
    assert bitcoin.match_ms >= midnight_ns // NS_PER_MS
    assert bitcoin.prev_close == last
    assert bitcoin.open == bitcoin.high == bitcoin.low == bitcoin.price
    assert bitcoin.day_qty == bitcoin.qty == bitcoin.bid_qty + bitcoin.ask_qty
    assert bitcoin.day_value == bitcoin.qty * bitcoin.price
    assert bitcoin.qty_24h > bitcoin.day_qty
    assert first != 0


def test_after_a_day_the_24_hours_hold_what_was_traded_in_them() -> None:
    market = opened(rate=1, channels=("trade",), markets=("KRW-BTC",), burst_percent=100)
    bitcoin = market.states[0]
    trades: list[tuple[int, int]] = []
    while market.next_due_ns < 26 * 3_600 * NS_PER_S:
        market.step()
        trades.append((bitcoin.match_ms, bitcoin.qty))
    first_hour = bitcoin.match_ms // 3_600_000 - 23
    assert bitcoin.qty_24h == sum(qty for match_ms, qty in trades if match_ms // 3_600_000 >= first_hour)


def test_prices_stay_near_their_start_and_on_the_grid() -> None:
    market = opened(rate=100_000, seed=1)
    for _ in range(60_000):
        market.step()
    for state in market.states:
        start = state.spec.start_e8
        assert start * 90 // 100 < state.low_52w * 100 // 60
        assert start * 92 // 100 < state.price < start * 108 // 100
        ticks = Ticks(state.spec.quote)
        for price in (state.open, state.high, state.low, state.prev_close, state.high_52w, state.low_52w):
            assert price % ticks.tick(price) == 0
        assert state.low_52w < state.low <= state.high < state.high_52w


@pytest.mark.parametrize(
    ("channels", "kinds"),
    [
        (("trade",), {TRADE}),
        (("orderbook",), {BOOK}),
        (("ticker",), {TICKER}),
        (("ticker", "orderbook"), {BOOK, TICKER}),
        (("trade", "orderbook", "ticker"), {TRADE, BOOK, TICKER}),
    ],
)
def test_only_what_is_simulated_is_published_but_the_market_moves(channels: tuple[str, ...], kinds: set[int]) -> None:
    market = opened(rate=2_000, channels=channels)
    start = {state.code: look(state) for state in market.states}
    assert {market.step()[0] for _ in range(3_000)} == kinds
    assert all(look(state) != start[state.code] for state in market.states)
    spreads = [(state.book.ask_px[0] - state.book.bid_px[0]) * 1_000 // state.book.bid_px[0] for state in market.states]
    assert max(spreads) < 30, "the makers act although their books are not published"


def test_the_parts_of_the_channels() -> None:
    kinds = [kind for kind, *_ in ((market.step()[0],) for market in [opened(rate=1_000)] for _ in range(10_000))]
    assert abs(kinds.count(TRADE) - 5_000) < 150
    assert abs(kinds.count(BOOK) - 3_000) < 150
    assert abs(kinds.count(TICKER) - 2_000) < 150


def test_the_market_ends_after_duration_or_frames() -> None:
    market = opened(rate=100, duration_ns=2 * NS_PER_S, burst_percent=100)
    while market.next_due_ns != FOREVER:
        assert market.next_due_ns < 2 * NS_PER_S
        market.step()
    assert 180 <= market.frames <= 220
    market = opened(rate=100, frames_max=17)
    while market.next_due_ns != FOREVER:
        market.step()
    assert market.frames == 17
    assert opened(frames_max=0).next_due_ns == FOREVER
