"""Upbit's candle stream, as far as a collector of trades needs it: frames that must be recognised and ignored.

A `CandleFeed` belongs to one connection and one (type, market). It is fed with the market's trades and gives a frame at
whole seconds when something changed. Known difference from the venue: a candle begins with the subscription, so its
volume lacks what was traded before.
"""

from __future__ import annotations

from kcs.sim import spelling
from kcs.sim.market import MarketState
from kcs.sim.upbit_frames import LISTS, LONG
from kcs.sim.upbit_request import CANDLE_PERIODS_MS

_KST_MS = 9 * 3_600_000


class CandleFeed:
    """One running candle. Times are venue time in ms."""

    __slots__ = (
        "_close", "_high", "_low", "_open", "_period_ms", "_qty", "_seen_ms", "_start_ms", "_type", "_value",
        "_wire_format", "dirty", "state",
    )  # fmt: skip

    def __init__(self, candle_type: str, state: MarketState, wire_format: str) -> None:
        self._type = candle_type
        self._period_ms = CANDLE_PERIODS_MS[candle_type]
        self._wire_format = wire_format
        self.state = state
        self._open = self._high = self._low = self._close = state.price
        self._qty, self._value = state.qty, state.price * state.qty
        self._start_ms = state.publish_ms - state.publish_ms % self._period_ms
        # Kept here because a frame may be asked for when the market has already moved on.
        self._seen_ms = state.publish_ms
        self.dirty = False

    def add_trade(self) -> bytes | None:
        """Take in the market's last trade; the frame of the candle before, where this trade begins a new one."""
        state, finished = self.state, None
        start_ms = state.publish_ms - state.publish_ms % self._period_ms
        if start_ms != self._start_ms:
            finished = self.frame() if self.dirty else None
            self._start_ms = start_ms
            self._open = self._high = self._low = state.price
            self._qty = self._value = 0
        self._high, self._low = max(self._high, state.price), min(self._low, state.price)
        self._close, self._seen_ms = state.price, state.publish_ms
        self._qty += state.qty
        self._value += state.price * state.qty
        self.dirty = True
        return finished

    def frame(self, *, snapshot: bool = False) -> bytes:
        """The candle as it stands."""
        self.dirty = False
        number = spelling.fixed8
        start_ms, kst_ms = self._start_ms, self._start_ms + _KST_MS
        utc = f"{spelling.date_dashed(start_ms)}T{spelling.time_coloned(start_ms)}"
        kst = f"{spelling.date_dashed(kst_ms)}T{spelling.time_coloned(kst_ms)}"
        names = _LONG_KEYS if self._wire_format in LONG else _SHORT_KEYS
        values = (
            f'"{self._type}"', f'"{self.state.code}"', f'"{utc}"', f'"{kst}"', number(self._open), number(self._high),
            number(self._low), number(self._close), number(self._qty), number(self._value // spelling.E8),
            str(self._seen_ms), '"SNAPSHOT"' if snapshot else '"REALTIME"',
        )  # fmt: skip
        text = ",".join(f'"{name}":{value}' for name, value in zip(names, values, strict=True))
        return f"[{{{text}}}]".encode() if self._wire_format in LISTS else f"{{{text}}}".encode()


_LONG_KEYS = (
    "type", "code", "candle_date_time_utc", "candle_date_time_kst", "opening_price", "high_price", "low_price",
    "trade_price", "candle_acc_trade_volume", "candle_acc_trade_price", "timestamp", "stream_type",
)  # fmt: skip
_SHORT_KEYS = ("ty", "cd", "cdttmu", "cdttmk", "op", "hp", "lp", "tp", "catv", "catp", "tms", "st")
