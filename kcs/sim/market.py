"""The simulated market: what happens when, in integers. Imports the book, the timetable and settings.

`SimMarket.step()` makes the next thing happen and says what it was. The whole course is a function of the settings
(seed, rate, markets, channels) and the epoch; how the caller slices time makes no difference, because a step is never
split. Book and trades agree: a taker's order meets the touch, prints at its price and takes its size away; between two
books on the wire a market's touch moves by its trades alone. Where a channel is not simulated its part happens unseen.

Units: prices 1e-8 quote, sizes 1e-8 base, turnover 1e-16 quote; `due_ns` since the market opened; `*_ms` venue time
(Unix ms).
"""

from __future__ import annotations

from typing import Final

from kcs.clock import NS_PER_MS
from kcs.model import BUY, SELL
from kcs.sim.book import Book, order_size
from kcs.sim.catalogue import MarketSpec, Ticks, spec_of
from kcs.sim.prng import derive
from kcs.sim.schedule import FOREVER, BookGrid, RestSlots
from kcs.sim.settings import SimSettings

TRADE: Final = 0
BOOK: Final = 1
TICKER: Final = 2

_MS_PER_DAY: Final = 86_400_000
_MS_PER_HOUR: Final = 3_600_000
_SWEEP_MAX: Final = 5
"""A taker's order eats at most this many levels; the rest of it is cancelled."""


class MarketState:
    """One market: its book, its last trade and the day's figures. Read by the dialect, changed by `SimMarket` alone."""

    __slots__ = (
        "_hour", "_hourly_qty", "_hourly_value", "_lag_ms", "_lot", "_rng", "_sweep_left", "_sweep_qty", "_trades",
        "ask_px", "ask_qty", "ask_sz", "bid_px", "bid_qty", "bid_sz", "book", "book_ms", "code", "day", "day_qty",
        "day_value", "high", "high_52w", "index", "low", "low_52w", "match_ms", "open", "prev_close", "price",
        "publish_ms", "qty", "qty_24h", "sid", "side", "spec", "ticker_due", "ticker_ms", "value_24h",
    )  # fmt: skip

    def __init__(self, spec: MarketSpec, index: int, seed: int, epoch_ms: int) -> None:
        self.spec = spec
        self.code = spec.code
        self.index = index
        self._rng = rng = derive(seed, f"market.{spec.code}")
        self._lot = spec.lot_e8
        self._lag_ms = 15 + rng.below(30)
        self._sweep_left = self._sweep_qty = self._trades = 0
        self.book = Book(spec, rng)
        self._yesterday(epoch_ms)
        self.sid = self.match_ms = self.publish_ms = 0
        self.price = self.qty = self.side = 0
        self.ask_px = self.ask_sz = self.bid_px = self.bid_sz = 0
        self.book_ms = epoch_ms - 1 - rng.below(400)
        self.trade(self.book_ms - 1000)
        self.ticker_ms = self.publish_ms
        self.ticker_due = False

    def _yesterday(self, epoch_ms: int) -> None:
        """The figures that a market has when somebody first looks at it."""
        rng, start, tick = self._rng, self.spec.start_e8, Ticks(self.spec.quote).tick(self.spec.start_e8)
        steps_max = max(2, start // (100 * tick))
        self.prev_close = self.open = start + tick * (rng.below(2 * steps_max + 1) - steps_max)
        self.high = max(start, self.open) + tick * rng.below(steps_max)
        self.low = min(start, self.open) - tick * rng.below(steps_max)
        self.high_52w = start + tick * (start * 55 // (100 * tick))
        self.low_52w = start - tick * (start * 31 // (100 * tick))
        self._hour = epoch_ms // _MS_PER_HOUR
        self.day = epoch_ms // _MS_PER_DAY
        self._hourly_qty = [self._lot * (2_000 + rng.below(8_000)) * self.spec.weight for _ in range(24)]
        self._hourly_value = [qty * start for qty in self._hourly_qty]
        hours_today = self._hour % 24
        self.qty_24h, self.value_24h = sum(self._hourly_qty), sum(self._hourly_value)
        self.day_qty, self.day_value = sum(self._hourly_qty[:hours_today]), sum(self._hourly_value[:hours_today])
        self.bid_qty = self.day_qty * (40 + rng.below(20)) // 100
        self.ask_qty = self.day_qty - self.bid_qty

    @property
    def sweeping(self) -> bool:
        """A taker's order has not found all its size yet; the market's next trade continues it."""
        return self._sweep_qty > 0

    def refresh(self, now_ms: int) -> None:
        """The makers act; the book's time becomes `now_ms`."""
        self.book.refresh(self.side)
        self.book_ms = now_ms

    def trade(self, now_ms: int) -> None:
        """One execution at the touch, published at `now_ms`, matched a little earlier (constant for a market)."""
        match_ms = now_ms - self._lag_ms
        if match_ms // _MS_PER_HOUR > self._hour:
            self._roll(match_ms)
        book = self.book
        self.ask_px, self.ask_sz = book.ask_px[0], book.ask_sz[0]
        self.bid_px, self.bid_sz = book.bid_px[0], book.bid_sz[0]
        if self._sweep_qty:
            wanted = self._sweep_qty
        else:
            self.side, wanted = self._taker()
        self.price, self.qty = book.take(self.side, wanted)
        self._sweep_left -= 1
        rest = wanted - self.qty
        self._sweep_qty = rest if self._sweep_left > 0 and rest > self._lot >> 3 else 0
        self._trades += 1
        first_id = match_ms * 10_000
        self.sid = first_id if first_id > self.sid else self.sid + 1
        self.match_ms = match_ms
        self.publish_ms = self.book_ms = now_ms
        self.ticker_due = True
        self._account()

    @property
    def trades(self) -> int:
        """Executions so far, the unseen ones included."""
        return self._trades

    def _taker(self) -> tuple[int, int]:
        """(side, size) of a new taker's order; the further the price has run from its start, the likelier it turns."""
        bits = self._rng.bits()
        start = self.spec.start_e8
        pull = max(-112, min(112, (self.book.bid_px[0] - start) * 16_000 // start))
        side = BUY if (bits & 0xFF) < 128 - pull else SELL
        self._sweep_left = _SWEEP_MAX
        if bits >> 8 & 63 == 0:
            return side, order_size(self._rng, self._lot, 13, 20)
        return side, order_size(self._rng, self._lot, 3, 14)

    def _account(self) -> None:
        """Day and 24-hour figures of the trade that was just made."""
        price, qty = self.price, self.qty
        value = price * qty
        if not self.day_qty:
            self.open = self.high = self.low = price
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        hour = self._hour % 24
        self._hourly_qty[hour] += qty
        self._hourly_value[hour] += value
        self.qty_24h += qty
        self.value_24h += value
        self.day_qty += qty
        self.day_value += value
        if self.side == BUY:
            self.bid_qty += qty
        else:
            self.ask_qty += qty

    def _roll(self, match_ms: int) -> None:
        """The clock strikes: hours up to `match_ms` begin empty (the 24 hours roll in steps of one).

        At midnight UTC the last price becomes the close, and the day's figures begin with the next trade.
        """
        hour_now = match_ms // _MS_PER_HOUR
        for hour in range(max(self._hour + 1, hour_now - 23), hour_now + 1):
            self.qty_24h -= self._hourly_qty[hour % 24]
            self.value_24h -= self._hourly_value[hour % 24]
            self._hourly_qty[hour % 24] = self._hourly_value[hour % 24] = 0
        self._hour = hour_now
        if match_ms // _MS_PER_DAY > self.day:
            self.day = match_ms // _MS_PER_DAY
            self.prev_close = self.price
            self.day_qty = self.day_value = self.bid_qty = self.ask_qty = 0


class SimMarket:
    """All markets of the simulated exchange on one timetable.

    `next_due_ns` is when the next thing happens (ns since opening; FOREVER when duration or frames_max is reached).
    """

    __slots__ = (
        "_books", "_books_seen", "_duration_ns", "_epoch_ns", "_frames_max", "_rest", "_share", "_sweeping",
        "_ticker_share", "_tickers", "_trades_seen", "by_code", "frames", "next_due_ns", "states",
    )  # fmt: skip

    def __init__(self, settings: SimSettings, epoch_ns: int) -> None:
        self._epoch_ns = epoch_ns
        epoch_ms = epoch_ns // NS_PER_MS
        self.states = tuple(
            MarketState(spec_of(code), index, settings.seed, epoch_ms) for index, code in enumerate(settings.markets)
        )
        self.by_code = {state.code: state for state in self.states}
        self._books = BookGrid(settings)
        self._rest = RestSlots(settings)
        self._trades_seen = "trade" in settings.channels
        self._books_seen = "orderbook" in settings.channels
        # Of seven frames of the rest two are tickers; all or none where only one of the two channels is simulated.
        self._ticker_share = (2 if self._trades_seen else 7) if "ticker" in settings.channels else 0
        self._share = 0
        self._tickers: list[MarketState] = []
        self._sweeping: MarketState | None = None
        self._duration_ns = FOREVER - 1 if settings.duration_ns is None else settings.duration_ns
        self._frames_max = FOREVER if settings.frames_max is None else settings.frames_max
        self.frames = 0
        self._find_next()

    def shift_clock(self, by_ns: int) -> None:
        """From now on the venue's clock shows `by_ns` more; the course of the market stays the same."""
        self._epoch_ns += by_ns

    def step(self) -> tuple[int, MarketState]:
        """Make the next thing happen: (TRADE, BOOK or TICKER, the market it happened on). Only while one is due."""
        due_ns = self.next_due_ns
        now_ms = (self._epoch_ns + due_ns) // NS_PER_MS
        self.frames += 1
        if self._rest.due_ns <= self._books.due_ns:
            kind, state = self._rest_step(self.states[self._rest.market], now_ms)
            self._rest.advance()
        else:
            kind, state = BOOK, self.states[self._books.market]
            if not self._trades_seen and not self._ticker_share and state.book.ask_sz[0] % 3 == 0:
                state.trade(now_ms)
            state.refresh(now_ms)
            self._books.advance()
        self._find_next()
        return kind, state

    def _rest_step(self, state: MarketState, now_ms: int) -> tuple[int, MarketState]:
        self._share += self._ticker_share
        if self._share >= 7:
            if not self._trades_seen:
                self._share -= 7
                self._execute(state, now_ms)
                return TICKER, self._published(state, now_ms)
            if self._tickers:
                self._share -= 7
                return TICKER, self._published(self._tickers.pop(0), now_ms)
        if self._sweeping is not None:
            state = self._sweeping
        self._execute(state, now_ms)
        self._sweeping = state if state.sweeping else None
        return TRADE, state

    def _execute(self, state: MarketState, now_ms: int) -> None:
        if not self._books_seen and state.trades & 1:
            state.refresh(now_ms)
        if not state.ticker_due and self._ticker_share and self._trades_seen:
            self._tickers.append(state)
        state.trade(now_ms)

    def _published(self, state: MarketState, now_ms: int) -> MarketState:
        state.ticker_due = False
        state.ticker_ms = now_ms
        return state

    def _find_next(self) -> None:
        due_ns = min(self._rest.due_ns, self._books.due_ns)
        ended = due_ns >= self._duration_ns or self.frames >= self._frames_max
        self.next_due_ns = FOREVER if ended else due_ns
