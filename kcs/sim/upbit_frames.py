"""Upbit's frames as bytes: trade, orderbook, ticker in the four formats. Imports market, spelling, model.

Keys, their order and the spelling of each number follow what Upbit sends in 2026: DEFAULT (and JSON_LIST) has long
keys, big prices with exponent (`1.16539E8`) and sizes with all zeros; SIMPLE (and SIMPLE_LIST) has short keys, plain
prices and small sizes with exponent. The lists hold exactly one object. Frames are UTF-8 JSON without spaces.

A frame shows the market as it is now, so it must be made before the market's next step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kcs.model import BUY
from kcs.sim import spelling
from kcs.sim.market import MarketState

FORMATS: Final = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
DEPTHS: Final = (1, 5, 15, 30)
LONG: Final = frozenset(("DEFAULT", "JSON_LIST"))
LISTS: Final = frozenset(("JSON_LIST", "SIMPLE_LIST"))

_CACHE_MAX: Final = 1 << 16


class _Spelled(dict[int, str]):
    """Remembered spellings of integers; forgets everything when full, so that memory stays bounded."""

    def __init__(self, spell: Callable[[int], str]) -> None:
        super().__init__()
        self._spell = spell

    def __missing__(self, value: int) -> str:
        if len(self) >= _CACHE_MAX:
            self.clear()
        text = self[value] = self._spell(value)
        return text


def _unit_parts(depth: int, *, long: bool) -> list[str]:
    keys = ("ask_price", "bid_price", "ask_size", "bid_size") if long else ("ap", "bp", "as", "bs")
    parts: list[str] = []
    for level in range(depth):
        for at, key in enumerate(keys):
            opening = ("{" if level == 0 else "},{") if at == 0 else ","
            parts += (f'{opening}"{key}":', "")
    return [*parts, "}"]


class UpbitFrames:
    """Makes the frames. One instance serves any number of connections; not thread-safe."""

    __slots__ = ("_date", "_double", "_parts", "_plain", "_second", "_sized", "_small", "_time")

    def __init__(self) -> None:
        self._double = _Spelled(spelling.double)
        self._plain = _Spelled(spelling.plain)
        self._sized = _Spelled(spelling.sized)
        self._small = _Spelled(spelling.small)
        self._parts = {(depth, long): _unit_parts(depth, long=long) for depth in DEPTHS for long in (True, False)}
        self._second = -1
        self._date = self._time = ""

    def trade(self, state: MarketState, wire_format: str, *, snapshot: bool = False) -> bytes:
        """The market's last trade. The best prices are those that the taker found."""
        long = wire_format in LONG
        text = self._trade_long(state, snapshot) if long else self._trade_short(state, snapshot)
        return _wrapped(text, wire_format)

    def book(self, state: MarketState, wire_format: str, depth: int, *, snapshot: bool = False) -> bytes:
        """The market's book with `depth` levels (1, 5, 15 or 30); a thin side is padded with zeros."""
        long = wire_format in LONG
        book = state.book
        ask_px, ask_sz = _cut(book.ask_px, book.ask_sz, depth)
        bid_px, bid_sz = _cut(book.bid_px, book.bid_sz, depth)
        price, size = (self._double, self._sized) if long else (self._plain, self._small)
        parts = self._parts[depth, long]
        parts[1::8] = map(price.__getitem__, ask_px)
        parts[3::8] = map(price.__getitem__, bid_px)
        parts[5::8] = map(size.__getitem__, ask_sz)
        parts[7::8] = map(size.__getitem__, bid_sz)
        asks, bids = spelling.pointed(sum(ask_sz)), spelling.pointed(sum(bid_sz))
        stream = "SNAPSHOT" if snapshot else "REALTIME"
        if long:
            text = (
                f'{{"type":"orderbook","code":"{state.code}","timestamp":{state.book_ms},"total_ask_size":{asks},'
                f'"total_bid_size":{bids},"orderbook_units":[{"".join(parts)}],"stream_type":"{stream}","level":0}}'
            )
        else:
            text = (
                f'{{"ty":"orderbook","cd":"{state.code}","tms":{state.book_ms},"tas":{asks},"tbs":{bids},'
                f'"obu":[{"".join(parts)}],"st":"{stream}","lv":0}}'
            )
        return _wrapped(text, wire_format)

    def ticker(self, state: MarketState, wire_format: str, *, snapshot: bool = False) -> bytes:
        """The market's day so far."""
        long = wire_format in LONG
        text = self._ticker_long(state, snapshot) if long else self._ticker_short(state, snapshot)
        return _wrapped(text, wire_format)

    def _trade_long(self, state: MarketState, snapshot: bool) -> str:
        self._see(state.match_ms)
        price, size, change = self._double, self._sized, state.price - state.prev_close
        return (
            f'{{"type":"trade","code":"{state.code}","timestamp":{state.publish_ms},"trade_date":"{self._date}",'
            f'"trade_time":"{self._time}","trade_timestamp":{state.match_ms},"trade_price":{price[state.price]},'
            f'"trade_volume":{size[state.qty]},"ask_bid":"{_side(state)}",'
            f'"prev_closing_price":{spelling.fixed8(state.prev_close)},"change":"{_change(change)}",'
            f'"change_price":{spelling.fixed8(abs(change))},"sequential_id":{state.sid},'
            f'"best_ask_price":{price[state.ask_px]},"best_ask_size":{size[state.ask_sz]},'
            f'"best_bid_price":{price[state.bid_px]},"best_bid_size":{size[state.bid_sz]},'
            f'"stream_type":"{"SNAPSHOT" if snapshot else "REALTIME"}"}}'
        )

    def _trade_short(self, state: MarketState, snapshot: bool) -> str:
        self._see(state.match_ms)
        price, size, change = self._plain, self._small, state.price - state.prev_close
        return (
            f'{{"ty":"trade","cd":"{state.code}","tms":{state.publish_ms},"td":"{self._date}","ttm":"{self._time}",'
            f'"ttms":{state.match_ms},"tp":{price[state.price]},"tv":{size[state.qty]},"ab":"{_side(state)}",'
            f'"pcp":{spelling.fixed8(state.prev_close)},"c":"{_change(change)}","cp":{spelling.fixed8(abs(change))},'
            f'"sid":{state.sid},"bap":{price[state.ask_px]},"bas":{size[state.ask_sz]},"bbp":{price[state.bid_px]},'
            f'"bbs":{size[state.bid_sz]},"st":"{"SNAPSHOT" if snapshot else "REALTIME"}"}}'
        )

    def _ticker_long(self, state: MarketState, snapshot: bool) -> str:
        self._see(state.match_ms)
        plain, change = self._plain, state.price - state.prev_close
        rate, signed_rate = _rates(change, state.prev_close)
        high_date, low_date = _extreme_dates(state)
        return (
            f'{{"type":"ticker","code":"{state.code}","opening_price":{plain[state.open]},'
            f'"high_price":{plain[state.high]},"low_price":{plain[state.low]},"trade_price":{plain[state.price]},'
            f'"prev_closing_price":{spelling.fixed8(state.prev_close)},'
            f'"acc_trade_price":{_value(state.day_value)},"change":"{_change(change)}",'
            f'"change_price":{spelling.fixed8(abs(change))},"signed_change_price":{spelling.fixed8(change)},'
            f'"change_rate":{rate},"signed_change_rate":{signed_rate},"ask_bid":"{_side(state)}",'
            f'"trade_volume":{self._small[state.qty]},"acc_trade_volume":{spelling.plain(state.day_qty)},'
            f'"trade_date":"{self._date.replace("-", "")}","trade_time":"{self._time.replace(":", "")}",'
            f'"trade_timestamp":{state.match_ms},"acc_ask_volume":{spelling.plain(state.ask_qty)},'
            f'"acc_bid_volume":{spelling.plain(state.bid_qty)},'
            f'"highest_52_week_price":{spelling.fixed8(state.high_52w)},"highest_52_week_date":"{high_date}",'
            f'"lowest_52_week_price":{spelling.fixed8(state.low_52w)},"lowest_52_week_date":"{low_date}",'
            f'"market_state":"ACTIVE","is_trading_suspended":false,"delisting_date":null,"market_warning":"NONE",'
            f'"timestamp":{max(state.ticker_ms, state.publish_ms)},"acc_trade_price_24h":{_value(state.value_24h)},'
            f'"acc_trade_volume_24h":{spelling.plain(state.qty_24h)},'
            f'"stream_type":"{"SNAPSHOT" if snapshot else "REALTIME"}"}}'
        )

    def _ticker_short(self, state: MarketState, snapshot: bool) -> str:
        self._see(state.match_ms)
        plain, change = self._plain, state.price - state.prev_close
        rate, signed_rate = _rates(change, state.prev_close)
        high_date, low_date = _extreme_dates(state)
        return (
            f'{{"ty":"ticker","cd":"{state.code}","op":{plain[state.open]},"hp":{plain[state.high]},'
            f'"lp":{plain[state.low]},"tp":{plain[state.price]},"pcp":{spelling.fixed8(state.prev_close)},'
            f'"atp":{_value(state.day_value)},"c":"{_change(change)}","cp":{spelling.fixed8(abs(change))},'
            f'"scp":{spelling.fixed8(change)},"cr":{rate},"scr":{signed_rate},"ab":"{_side(state)}",'
            f'"tv":{self._small[state.qty]},"atv":{spelling.plain(state.day_qty)},'
            f'"tdt":"{self._date.replace("-", "")}","ttm":"{self._time.replace(":", "")}","ttms":{state.match_ms},'
            f'"aav":{spelling.plain(state.ask_qty)},"abv":{spelling.plain(state.bid_qty)},'
            f'"h52wp":{spelling.fixed8(state.high_52w)},"h52wdt":"{high_date}",'
            f'"l52wp":{spelling.fixed8(state.low_52w)},"l52wdt":"{low_date}","ms":"ACTIVE","its":false,"dd":null,'
            f'"mw":"NONE","tms":{max(state.ticker_ms, state.publish_ms)},"atp24h":{_value(state.value_24h)},'
            f'"atv24h":{spelling.plain(state.qty_24h)},"st":"{"SNAPSHOT" if snapshot else "REALTIME"}"}}'
        )

    def _see(self, match_ms: int) -> None:
        """Date and time of `match_ms` as text; most frames of a moment share their second."""
        second = match_ms // 1000
        if second != self._second:
            self._second = second
            self._date, self._time = spelling.date_dashed(match_ms), spelling.time_coloned(match_ms)


def _wrapped(text: str, wire_format: str) -> bytes:
    return f"[{text}]".encode() if wire_format in LISTS else text.encode()


def _cut(prices: list[int], sizes: list[int], depth: int) -> tuple[list[int], list[int]]:
    missing = depth - len(prices)
    if missing > 0:
        padding = [0] * missing
        return prices + padding, sizes + padding
    return prices[:depth], sizes[:depth]


def _side(state: MarketState) -> str:
    return "BID" if state.side == BUY else "ASK"


def _change(change: int) -> str:
    return "RISE" if change > 0 else "FALL" if change < 0 else "EVEN"


def _rates(change: int, prev_close: int) -> tuple[str, str]:
    rate = spelling.rate10(abs(change), prev_close)
    return rate, f"-{rate}" if change < 0 else rate


def _value(value_e16: int) -> str:
    return spelling.fixed8(value_e16 // spelling.E8)


def _extreme_dates(state: MarketState) -> tuple[str, str]:
    """Days of the 52-week extremes: fixed distances before today, so that they move with the epoch."""
    noon_ms = state.day * 86_400_000
    return spelling.date_dashed(noon_ms - 97 * 86_400_000), spelling.date_dashed(noon_ms - 231 * 86_400_000)
