"""Upbit (Korea), public WebSocket v1: trade, orderbook and ticker of the KRW, BTC and USDT markets.

Documentation: https://docs.upbit.com/kr/reference/general-info (WebSocket). One frame of each kind, SIMPLE spelling:

    {"ty":"trade","cd":"KRW-BTC","ttms":1790134742366,"tp":116538000.0,"tv":0.00142,"ab":"BID","sid":17901347423660000,..}
    {"ty":"orderbook","cd":"KRW-BTC","tms":1790134742106,"obu":[{"ap":116539000,"as":0.02,"bp":116538000,"bs":0.08},..],..}
    {"ty":"ticker","cd":"KRW-BTC","tms":1790134742401,"op":..,"hp":..,"lp":..,"tp":..,"atv":..,"atp":..}

Formats: DEFAULT (long keys), SIMPLE (short keys), JSON_LIST and SIMPLE_LIST (the same in an array). A frame's own bytes
say which it is, so one adapter reads them all, whatever was subscribed.

Meaning of the events
- Trade: `side` is the taker's, `BID` = BUY, `ASK` = SELL (checked on a real recording: BID prints at or above the ask).
  `ts_ns` from `trade_timestamp`, `id` from `sequential_id`, which is good for de-duplication only: trades arrive out of
  id order, and no hole in the ids proves a loss.
- OrderBook: the whole book in each frame, 1 to 30 levels; levels with price or size 0 are padding and dropped.
  `ts_ns` is the time of the last change of the book, not of sending. No sequence, no checksum: loss is not verifiable.
- Ticker: open, high, low, volume (base) and value (turnover in the quote currency) of the day since 00:00 UTC, not of
  24 hours; `ts_ns` from `timestamp`; the frame has no bid and ask, so both are None.

A frame with several objects is one unit: every object is an event, a heartbeat or the like, or the frame is rejected
whole. Keys that are not listed here may come and go; the ones listed are required. Upbit needs no adapter state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from kcs.errors import FrameIgnored, FrameRejected, UnknownNameError, UsageError
from kcs.exchanges.base import Heartbeat, Limits, Subscription, Venue
from kcs.exchanges.codes import near_pair
from kcs.exchanges.document import ANY_DEPTH_BYTES_MAX, check_depth, check_document, rejected
from kcs.model import BUY, SELL, Event, OrderBook, Ticker, Trade

CHANNELS: Final = ("trade", "orderbook", "ticker")
FORMATS: Final = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
DEPTHS: Final = (1, 5, 15, 30)
QUOTES: Final = ("KRW", "USDT", "BTC")
"""Quote currencies; where a code fits two of them the first one wins (BTCUSDT means USDT-BTC)."""

MARKETS_MAX: Final = 2000
"""Codes in one subscription. Upbit lists about 900 and served 855 of them on one connection."""

TICKET_LENGTH_MAX: Final = 128

_NS_PER_MS: Final = 1_000_000

# Bounds keep every later step safe: ts_ns and ids fit int64, a market is a sane key.
_Ms = Annotated[int, Meta(ge=0, le=(2**63 - 1) // _NS_PER_MS)]
_Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Market = Annotated[str, Meta(min_length=1, max_length=64)]
_Side = Literal["ASK", "BID"]


# The wire types: only the keys that are used; the decoder skips all others. (msgspec does not rename inherited
# fields, so the short spelling repeats them.)


class _Trade(Struct, frozen=True, gc=False, tag_field="type", tag="trade"):
    code: _Market
    trade_timestamp: _Ms
    trade_price: float
    trade_volume: float
    ask_bid: _Side
    sequential_id: _Id


class _Unit(Struct, frozen=True, gc=False):
    ask_price: float
    bid_price: float
    ask_size: float
    bid_size: float


class _Book(Struct, frozen=True, gc=False, tag_field="type", tag="orderbook"):
    code: _Market
    timestamp: _Ms
    orderbook_units: list[_Unit]


class _Ticker(Struct, frozen=True, gc=False, tag_field="type", tag="ticker"):
    code: _Market
    opening_price: float
    high_price: float
    low_price: float
    trade_price: float
    acc_trade_price: float
    acc_trade_volume: float
    timestamp: _Ms


_SHORT_KEYS: Final = {
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
}


class _ShortTrade(Struct, frozen=True, gc=False, tag_field="ty", tag="trade", rename=_SHORT_KEYS):
    code: _Market
    trade_timestamp: _Ms
    trade_price: float
    trade_volume: float
    ask_bid: _Side
    sequential_id: _Id


class _ShortUnit(Struct, frozen=True, gc=False, rename=_SHORT_KEYS):
    ask_price: float
    bid_price: float
    ask_size: float
    bid_size: float


class _ShortBook(Struct, frozen=True, gc=False, tag_field="ty", tag="orderbook", rename=_SHORT_KEYS):
    code: _Market
    timestamp: _Ms
    orderbook_units: list[_ShortUnit]


class _ShortTicker(Struct, frozen=True, gc=False, tag_field="ty", tag="ticker", rename=_SHORT_KEYS):
    code: _Market
    opening_price: float
    high_price: float
    low_price: float
    trade_price: float
    acc_trade_price: float
    acc_trade_volume: float
    timestamp: _Ms


_Long = _Trade | _Book | _Ticker
_Short = _ShortTrade | _ShortBook | _ShortTicker


class _Probe(Struct, frozen=True, gc=False):
    """What an object claims to be; decoded only when the fast way failed."""

    type: str | None = None
    ty: str | None = None
    status: str | None = None
    error: Raw = Raw(b"")
    method: str | None = None
    mthd: str | None = None


class _ErrorBody(Struct, frozen=True, gc=False):
    name: str


_decode_long: Final = msgspec.json.Decoder(_Long).decode
_decode_short: Final = msgspec.json.Decoder(_Short).decode
_decode_probe: Final = msgspec.json.Decoder(_Probe).decode
_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_error: Final = msgspec.json.Decoder(_ErrorBody).decode

_DECODE_BY_HEAD: Final[dict[bytes, Callable[[bytes], Any]]] = {
    b'{"type': _decode_long,
    b'{"ty":': _decode_short,
    b'[{"typ': msgspec.json.Decoder(list[_Long]).decode,
    b'[{"ty"': msgspec.json.Decoder(list[_Short]).decode,
}
"""Upbit writes the type first and no blanks, so six bytes choose the decoder. Anything else goes the thorough way."""

_ERRORS: Final = {
    name: f"error_{name.lower()}"
    for name in ("INVALID_AUTH", "WRONG_FORMAT", "NO_TICKET", "NO_TYPE", "NO_CODES", "INVALID_PARAM")
}


class UpbitAdapter:
    """Parses frames; see the module docstring for what the events mean and `base.Adapter` for the contract.

    Reasons for ignoring: heartbeat, subscriptions, candle, error_NAME, error_other. Reasons for rejecting: empty,
    not_json, not_utf8, too_deep, too_large, unknown_type, missing_key, bad_type, bad_value.
    """

    __slots__ = ()

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        """The events of one frame, in order. Raises FrameIgnored, FrameRejected; nothing else, whatever the bytes."""
        try:
            if not payload.isascii():
                payload.decode()  # the decoder does not look at the text it skips
            if len(payload) > ANY_DEPTH_BYTES_MAX:
                check_depth(payload)
            wire = _DECODE_BY_HEAD[payload[:6]](payload)
        except (KeyError, ValueError, RecursionError):
            return _parse_thoroughly(payload)
        if type(wire) is list:
            return [_EVENT_OF[type(item)](item) for item in wire]
        return (_EVENT_OF[type(wire)](wire),)

    def reset(self, stream: int, markets: Sequence[str] = ()) -> None:
        """Nothing is known of a stream: each frame stands alone."""

    def save(self) -> Iterable[tuple[int, str, bytes]]:
        """No state."""
        return ()

    def load(self, stream: int, market: str, state: bytes) -> None:
        """Raises ValueError: this adapter never saved anything."""
        raise ValueError("the Upbit adapter keeps no state, so this state is not its own")


def _trade(wire: _Trade | _ShortTrade) -> Trade:
    return Trade(
        wire.code,
        wire.trade_price,
        wire.trade_volume,
        BUY if wire.ask_bid == "BID" else SELL,
        wire.trade_timestamp * _NS_PER_MS,
        str(wire.sequential_id),
    )


def _book(wire: _Book | _ShortBook) -> OrderBook:
    units = wire.orderbook_units
    asks = [(unit.ask_price, unit.ask_size) for unit in units if unit.ask_price and unit.ask_size]
    bids = [(unit.bid_price, unit.bid_size) for unit in units if unit.bid_price and unit.bid_size]
    return OrderBook(wire.code, tuple(asks), tuple(bids), wire.timestamp * _NS_PER_MS)


def _ticker(wire: _Ticker | _ShortTicker) -> Ticker:
    return Ticker(
        wire.code,
        wire.trade_price,
        wire.opening_price,
        wire.high_price,
        wire.low_price,
        wire.acc_trade_volume,
        wire.acc_trade_price,
        None,
        None,
        wire.timestamp * _NS_PER_MS,
    )


_EVENT_OF: Final[dict[type, Callable[[Any], Event]]] = {
    _Trade: _trade,
    _ShortTrade: _trade,
    _Book: _book,
    _ShortBook: _book,
    _Ticker: _ticker,
    _ShortTicker: _ticker,
}


# The thorough way: frames that are not events, are spelt in another key order, or are broken.


def _parse_thoroughly(payload: bytes) -> Sequence[Event]:
    """As `UpbitAdapter.parse`, an object at a time; finds the reason where there is no event."""
    check_document(payload)
    if payload.lstrip()[:1] != b"[":
        return (_parse_object(payload),)
    events: list[Event] = []
    ignored: FrameIgnored | None = None
    for element in _decode_elements(payload):
        try:
            events.append(_parse_object(bytes(element)))
        except FrameIgnored as verdict:
            ignored = ignored or verdict
    if events:
        return events
    raise ignored or FrameRejected("empty", "an array without elements")


def _parse_object(payload: bytes) -> Event:
    """The event of one object that is well-formed JSON. Raises FrameIgnored or FrameRejected."""
    try:
        probe = _decode_probe(payload)
        if probe.type is None and probe.ty is None:
            raise _verdict_without_type(probe)
        if (probe.type or probe.ty or "").startswith("candle."):
            raise FrameIgnored("candle")
        wire = _decode_long(payload) if probe.type is not None else _decode_short(payload)
        return _EVENT_OF[type(wire)](wire)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise rejected(error) from None


def _verdict_without_type(probe: _Probe) -> FrameIgnored | FrameRejected:
    """What an object is that carries no market data."""
    if probe.status == "UP":
        return FrameIgnored("heartbeat")
    if bytes(probe.error):
        return FrameIgnored(_error_reason(probe.error))
    if "LIST_SUBSCRIPTIONS" in (probe.method, probe.mthd):
        return FrameIgnored("subscriptions")
    return FrameRejected("unknown_type", "an object without type, ty, status, error or method that we know")


def _error_reason(body: Raw) -> str:
    """`error_` and the name the venue gives in lower case; `error_other` for names it does not document."""
    try:
        return _ERRORS.get(_decode_error(body).name, "error_other")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "error_other"


# Talking to the venue.

_CODE: Final = re.compile(rf"({'|'.join(QUOTES)})-[A-Z0-9]{{1,20}}")


def check_market(code: str) -> None:
    """Raises UnknownNameError, with the near spelling, for a code that cannot be an Upbit market."""
    if not _possible(code):
        near = near_pair(code, QUOTES, _possible)
        raise UnknownNameError("market", code[:64], UPBIT.default_markets, where="upbit", suggestion=near)


def _possible(code: str) -> bool:
    """True for QUOTE-BASE with a quote of Upbit's; nothing is priced in itself and KRW is no base."""
    quote, _, base = code.partition("-")
    return _CODE.fullmatch(code) is not None and base not in (quote, "KRW")


def subscribe(subscription: Subscription, ticket: str) -> list[str]:
    """The one request that asks for everything: a later one would replace it, so it is always the full list.

    No snapshot flags are sent: the snapshot is the only sign that a subscription works, since Upbit confirms nothing.
    Raises UnknownNameError for a channel, format, depth or market that does not exist, UsageError for a list that is
    empty or too long.
    """
    wire_format = subscription.format or FORMATS[0]
    if wire_format not in FORMATS:
        raise UnknownNameError("format", wire_format, FORMATS, where="upbit")
    if subscription.depth is not None and subscription.depth not in DEPTHS:
        raise UnknownNameError("depth", str(subscription.depth), map(str, DEPTHS), where="upbit")
    if not ticket or len(ticket) > TICKET_LENGTH_MAX:
        raise UsageError(f"a ticket has 1 to {TICKET_LENGTH_MAX} characters, not {len(ticket)}", where="upbit")
    request: list[dict[str, Any]] = [{"ticket": ticket}]
    markets = _checked_markets(subscription.markets)
    for channel in _checked_channels(subscription.channels):
        codes = markets
        if channel == "orderbook" and subscription.depth is not None:
            codes = [f"{market}.{subscription.depth}" for market in markets]
        request.append({"type": channel, "codes": codes})
    request.append({"format": wire_format})
    return [msgspec.json.encode(request).decode()]


def _checked_markets(markets: Sequence[str]) -> list[str]:
    """The markets once each, in the order given."""
    unique = list(dict.fromkeys(markets))
    if not 1 <= len(unique) <= MARKETS_MAX:
        what = f"a subscription has 1 to {MARKETS_MAX} markets, not {len(unique)}"
        raise UsageError(what, where="upbit", remedy="--market KRW-BTC")
    for market in unique:
        check_market(market)
    return unique


def _checked_channels(channels: Sequence[str]) -> list[str]:
    """The channels once each, in the order given."""
    if not channels:
        raise UsageError("no channel to subscribe to", where="upbit", remedy=f"--channel {','.join(CHANNELS)}")
    for channel in channels:
        if channel not in CHANNELS:
            raise UnknownNameError("channel", channel, CHANNELS, where="upbit")
    return list(dict.fromkeys(channels))


UPBIT: Final = Venue(
    name="upbit",
    title="Upbit",
    url="wss://api.upbit.com/websocket/v1",
    rest_url="https://api.upbit.com",
    docs_url="https://docs.upbit.com/kr/reference/general-info",
    channels=CHANNELS,
    formats=FORMATS,
    depths=DEPTHS,
    default_markets=("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"),
    adapter=UpbitAdapter,
    subscribe=subscribe,
    check_market=check_market,
    # An idle connection dies after 60 s (documented: 120). The text makes Upbit say {"status":"UP"} every 10 s.
    heartbeat=Heartbeat(ping_every_s=20.0, texts_after_subscribe=("PING",)),
    limits=Limits(connects_per_s=5.0, messages_per_s=5.0),
    codes_in_frames=True,
    proves=("trade_ids",),
)
