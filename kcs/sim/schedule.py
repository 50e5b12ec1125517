"""When the simulated venue publishes what: the open-loop timetable. Integers only; imports the generator and settings.

How the asked rate is reached. Of `rate` frames a second the order books take 3 parts in 10 (trades 5, tickers 2; the
parts of channels that are not simulated fall to the others). Each market publishes its book on a grid with a phase of
its own: every 100 ms at most, as the venue does, and less often on quiet markets; when the books' part needs more than
ten books a second from every market, the grid step shrinks for all of them. Trades and tickers make up the exact rest.
They come in slots of at most 100 ms, each with a whole number of frames spread over it; the remainder is carried on, so
the long-run rate is the asked one. Every 3.2 s there is one burst of 0.3 s, in which the rest runs at `burst_percent`
of its mean and one market gets half of it; the other slots are thinned so that the mean holds.

The timetable depends on settings and seed alone: times are ns since the market opened, strictly in order.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Final

from kcs.clock import NS_PER_S
from kcs.sim.catalogue import CATALOGUE
from kcs.sim.prng import derive
from kcs.sim.settings import SimSettings

FOREVER: Final = 1 << 62
"""A due time that never comes."""

_PARTS: Final = {"trade": 5, "orderbook": 3, "ticker": 2}
_GRID_NS: Final = 100_000_000
_MICRO: Final = 1_000_000
_BURST_CYCLE: Final = 32
_BURST_SLOTS: Final = 3
_SLOT_FRAMES_MAX: Final = 64


class BookGrid:
    """The books' timetable: `due_ns` and `market` of the next one."""

    __slots__ = (
        "_credit", "_cycle_ns", "_earn", "_order", "_phase", "_position", "_price", "due_ns", "market",
        "step_ns",
    )  # fmt: skip

    def __init__(self, settings: SimSettings) -> None:
        rng = derive(settings.seed, "schedule.books")
        count = len(settings.markets)
        self._price = _MICRO * NS_PER_S
        wanted = book_rate_micro(settings)
        grid_full = wanted > 10 * _MICRO * count
        self.step_ns = count * self._price // wanted if grid_full else _GRID_NS
        rates = book_rates_micro(settings)
        self._earn = [self._price] * count if grid_full else [rate * self.step_ns for rate in rates]
        self._credit = [rng.below(self._price) for _ in rates]
        self._phase = [rng.below(self.step_ns) for _ in rates]
        self._order = sorted(range(count), key=lambda index: (self._phase[index], index))
        self._cycle_ns = 0
        self._position = -1
        self.due_ns = FOREVER
        self.market = 0
        if wanted:
            self.advance()

    def advance(self) -> None:
        """Go on to the next book that is published."""
        order, credit = self._order, self._credit
        while True:
            self._position += 1
            if self._position == len(order):
                self._position = 0
                self._cycle_ns += self.step_ns
            market = order[self._position]
            credit[market] += self._earn[market]
            if credit[market] >= self._price:
                credit[market] -= self._price
                self.market = market
                self.due_ns = self._cycle_ns + self._phase[market]
                return


class RestSlots:
    """The timetable of trades and tickers: `due_ns` and `market` (chosen by activity) of the next one."""

    __slots__ = (
        "_burst_at", "_count", "_credit", "_cumulative", "_earn_burst", "_earn_calm", "_index", "_price", "_pumped",
        "_rng", "_slot", "_slot_ns", "_slots_per_grid", "due_ns", "in_burst", "market",
    )  # fmt: skip

    def __init__(self, settings: SimSettings) -> None:
        self._rng = derive(settings.seed, "schedule.rest")
        rate_micro = rest_rate_micro(settings)
        self._slot_ns = _GRID_NS
        while rate_micro * self._slot_ns > _SLOT_FRAMES_MAX * _MICRO * NS_PER_S and self._slot_ns % 2 == 0:
            self._slot_ns //= 2
        self._slots_per_grid = _GRID_NS // self._slot_ns
        calm_slots = _BURST_CYCLE - _BURST_SLOTS
        earn = rate_micro * self._slot_ns
        self._price = _MICRO * NS_PER_S * calm_slots * 100
        self._earn_burst = earn * calm_slots * settings.burst_percent
        self._earn_calm = earn * (_BURST_CYCLE * 100 - _BURST_SLOTS * settings.burst_percent)
        self._cumulative = list(accumulate(CATALOGUE[code].weight for code in settings.markets))
        self._credit = 0
        self._slot = -1
        self._count = self._index = 0
        self._burst_at = self._pumped = self.market = 0
        self.in_burst = False
        self.due_ns = FOREVER
        if rate_micro:
            self.advance()

    def advance(self) -> None:
        """Go on to the next frame."""
        while self._index == self._count:
            self._next_slot()
        bits = self._rng.bits()
        self.due_ns = self._slot * self._slot_ns + ((self._index << 16 | bits & 0xFFFF) * self._slot_ns) // (
            self._count << 16
        )
        self._index += 1
        if self.in_burst and bits & 0x10000:
            self.market = self._pumped
        else:
            self.market = self._pick(bits >> 17)

    def _next_slot(self) -> None:
        self._slot += 1
        grid_slot = self._slot // self._slots_per_grid % _BURST_CYCLE
        if self._slot % (self._slots_per_grid * _BURST_CYCLE) == 0:
            self._burst_at = self._rng.below(_BURST_CYCLE - _BURST_SLOTS + 1)
            self._pumped = self._pick(self._rng.bits() >> 17)
        self.in_burst = self._burst_at <= grid_slot < self._burst_at + _BURST_SLOTS
        self._credit += self._earn_burst if self.in_burst else self._earn_calm
        self._count, self._credit = divmod(self._credit, self._price)
        self._index = 0

    def _pick(self, bits47: int) -> int:
        return bisect_right(self._cumulative, bits47 * self._cumulative[-1] >> 47)


def book_rate_micro(settings: SimSettings) -> int:
    """The books' part of the rate, in millionths of a frame per second."""
    if "orderbook" not in settings.channels:
        return 0
    return settings.rate * _MICRO * _PARTS["orderbook"] // sum(_PARTS[channel] for channel in settings.channels)


def book_rates_micro(settings: SimSettings) -> list[int]:
    """What each market really publishes, in millionths of a book per second: never more often than the grid allows."""
    wanted, count = book_rate_micro(settings), len(settings.markets)
    if wanted > 10 * _MICRO * count or settings.channels == ("orderbook",):
        return [wanted // count] * count
    weights = [CATALOGUE[code].weight for code in settings.markets]
    return [min(10 * _MICRO, wanted * weight // sum(weights)) for weight in weights]


def rest_rate_micro(settings: SimSettings) -> int:
    """What trades and tickers make up together, in millionths of a frame per second."""
    if settings.channels == ("orderbook",):
        return 0
    return settings.rate * _MICRO - sum(book_rates_micro(settings))
