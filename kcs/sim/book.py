"""One market's order book: integer price levels, best first, never crossed. Imports the catalogue and the generator.

Prices in 1e-8 quote, sizes in 1e-8 base, all > 0. Each side always holds at least one level; behind the visible depth
levels are added where trades have eaten some, so the touch changes only by a trade or by `refresh`.
"""

from __future__ import annotations

from typing import Final

from kcs.model import BUY
from kcs.sim.catalogue import MarketSpec, Ticks
from kcs.sim.prng import SplitMix64, log_uniform

_SPARE: Final = 6
"""A side is trimmed when it holds this many levels more than it should."""
_HOLES: Final = 8
"""How many places are looked at for a hole."""
_WIDE_TICKS: Final = 8
"""From this spread on, quotes jump to the middle instead of creeping a tick at a time."""


def order_size(rng: SplitMix64, lot_e8: int, low_bit: int, high_bit: int) -> int:
    """A random size around `lot_e8`, uniform in magnitude; one in eight is a round number, as people type them."""
    bits = rng.bits()
    size = max(1, lot_e8 * log_uniform(bits, low_bit, high_bit) >> 8)
    if bits >> 61 == 0:
        digits = len(str(size))
        if digits > 3:
            size -= size % 10 ** (digits - 2 - (bits >> 60 & 1))
    return size


class Book:
    """The resting orders of one market, aggregated by price."""

    __slots__ = ("_lot", "_rng", "_ticks", "ask_px", "ask_sz", "bid_px", "bid_sz", "levels")

    def __init__(self, spec: MarketSpec, rng: SplitMix64) -> None:
        self._rng = rng
        self._ticks = ticks = Ticks(spec.quote)
        self._lot = spec.lot_e8
        self.levels = spec.levels
        self.bid_px = [spec.start_e8]
        self.ask_px = [ticks.up(spec.start_e8)]
        self.bid_sz = [self._size()]
        self.ask_sz = [self._size()]
        self._refill()

    def take(self, side: int, qty: int) -> tuple[int, int]:
        """A taker order of `qty` (> 0) meets the touch: (price, size filled); a level eaten whole disappears."""
        px, sz = (self.ask_px, self.ask_sz) if side == BUY else (self.bid_px, self.bid_sz)
        price, size = px[0], sz[0]
        if len(px) == 1 and qty >= size:
            size = sz[0] = qty + self._lot
        if qty < size:
            sz[0] = size - qty
            return price, qty
        del px[0], sz[0]
        if len(px) < self.levels:
            self._refill()
        return price, size

    def refresh(self, lean: int) -> None:
        """Makers act once: the spread closes (towards `lean`, the last taker's side), orders come, change and go."""
        bits = self._rng.bits()
        self._close_spread(bits, lean)
        for shift in range(8, 8 + 12 * (1 + (bits >> 4 & 3)), 12):
            self._change_size(bits >> shift)
        if bits >> 56 & 3 == 0:
            self._cancel(bits >> 48)
        if bits >> 58 & 1:
            self._insert(bits >> 44)
        self._refill()

    def _close_spread(self, bits: int, lean: int) -> None:
        tick = self._ticks.tick
        for turn in range(3):
            bid, ask = self.bid_px[0], self.ask_px[0]
            step = tick(bid)
            gap = (ask - bid) // step
            if gap <= 1 or (gap == 2 and bits & 0xC):
                return
            jump = step * (gap // 2 if gap > _WIDE_TICKS and tick(ask) == step else 1)
            follow = bits >> turn & 3 != 0
            if (lean == BUY) == follow:
                self.bid_px.insert(0, bid + jump)
                self.bid_sz.insert(0, self._size())
            else:
                self.ask_px.insert(0, ask - jump if jump > step else self._ticks.down(ask))
                self.ask_sz.insert(0, self._size())

    def _change_size(self, bits: int) -> None:
        """A random level, more often near the touch, gets a new size. Uses 12 bits."""
        sizes = self.ask_sz if bits & 1 else self.bid_sz
        near, far = bits >> 1 & 31, bits >> 6 & 31
        sizes[near * far // 31 % len(sizes)] = self._size()

    def _cancel(self, bits: int) -> None:
        px, sz = (self.ask_px, self.ask_sz) if bits & 1 else (self.bid_px, self.bid_sz)
        at = (bits >> 1 & 63) % len(px)
        if len(px) > 2:
            del px[at], sz[at]

    def _insert(self, bits: int) -> None:
        """An order in a hole between two levels near the touch, where there is one."""
        asks = bits & 1
        px, sz = (self.ask_px, self.ask_sz) if asks else (self.bid_px, self.bid_sz)
        if len(px) < 2:
            return
        move = self._ticks.up if asks else self._ticks.down
        first = 1 + (bits >> 1 & 3)
        for at in range(first, min(len(px), first + _HOLES)):
            price = move(px[at - 1])
            if price != px[at]:
                px.insert(at, price)
                sz.insert(at, self._size())
                return

    def _refill(self) -> None:
        """Both sides get back to their length at the far end, where nobody sees it, or lose what is too much."""
        ticks, levels = self._ticks, self.levels
        while len(self.ask_px) < levels:
            price = ticks.up(self.ask_px[-1])
            self.ask_px.append(ticks.up(price) if self._rng.bits() & 7 == 0 else price)
            self.ask_sz.append(self._size())
        while len(self.bid_px) < levels:
            price = ticks.down(self.bid_px[-1])
            if price > 1 and self._rng.bits() & 7 == 0:
                price = ticks.down(price)
            if price <= 0:
                break
            self.bid_px.append(price)
            self.bid_sz.append(self._size())
        for px, sz in ((self.ask_px, self.ask_sz), (self.bid_px, self.bid_sz)):
            if len(px) > levels + _SPARE:
                del px[levels:], sz[levels:]

    def _size(self) -> int:
        return order_size(self._rng, self._lot, 8, 20)
