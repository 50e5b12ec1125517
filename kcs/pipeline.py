"""The one path from bytes to records, the same for live, replay and recovery.

Whoever has frames calls `feed` (data frames) and `control` (all other capture records), synchronously, in capture
order. Each call is one record of the capture and advances `number`. The pipeline parses with the venue's adapter, drops
duplicates, encodes, feeds the digest and hands records to the sink. It knows no file, no Kafka, no event loop and no
clock, so what it produces is a pure function of the records fed and of the code. It never raises for a bad frame: every
one ends in the ledger as parsed, ignored or rejected. Not thread-safe.

Duplicates (section "Duplicates" of docs/kafka.md): a trade whose (market, id) is in the window of its market (the last
`TRADE_WINDOW`, and all of the last `TRADE_WINDOW_NS`: a second connection may lag that far); an order book or a ticker
equal to one already emitted with the same time; one older than the last emitted *of another stream* (within one stream
the order of arrival rules, so a venue whose clock steps back loses nothing).

A run that has fallen behind has two pipelines. The first one stays at the present, `mute`d: it is fed every record and
emits none. Its `fork` goes on from the record at which that happened, later, from the capture. Where the fork meets the
present both must know the same (`difference`), and the first one is `unmute`d.

Markets are bounded: at most `MARKETS_MAX` an exchange, counted over all channels, in the order they first appear, and
kept by the saved state. A frame with an event of a market beyond them is rejected whole (`too_many_markets`), before
any of its events is emitted; its events change nothing and are not counted, known markets among them or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from kcs.errors import DamagedCaptureError, FrameIgnored, FrameRejected, LedgerError
from kcs.model import (
    FRAME_KINDS,
    CloseFields,
    Event,
    Fields,
    Gap,
    GapFields,
    Kind,
    OpenFields,
    OrderBook,
    StateFields,
    Ticker,
    Trade,
)
from kcs.routes import (
    TRADE_WINDOW,
    TRADES_MAX,
    TRADES_OVERALL_MAX,
    BookRoute,
    MarketState,
    Route,
    TradeRoute,
)
from kcs.sink import DIGEST_PARTS_MAX, META_POSITION, RECORD_BYTES_MAX, RECORD_META, Digest, Sink
from kcs.stats import Ledger

if TYPE_CHECKING:
    from kcs.exchanges.base import Adapter

MARKETS_MAX: Final = 16_384
"""Markets of one exchange that are remembered; the largest venues list a tenth. Invented ones must not fill memory."""

STATE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Payload of a state record: decoded, short texts take twenty times their bytes. A large book takes a tenth of it."""

_pack_meta: Final = RECORD_META.pack
_dumps: Final = orjson.dumps
_POSITION_PART: Final = slice(META_POSITION, None)
"""Made once: a slice written out is an object a record."""


class Pipeline:
    """Frames in, records out. See the module docstring for the contract.

    `number` is the position of the next record; replay sets it where a capture has holes.
    """

    __slots__ = (
        "_adapter",
        "_books",
        "_capture_id",
        "_digest",
        "_emit",
        "_exchange",
        "_gaps",
        "_markets",
        "_muted",
        "_parse",
        "_rejects",
        "_room",
        "_sink",
        "_tickers",
        "_trades",
        "_trades_max",
        "last_event",
        "ledger",
        "number",
        "tap",
    )

    def __init__(self, exchange: str, adapter: Adapter, sink: Sink, ledger: Ledger, *, digest: bool = True) -> None:
        self._exchange = exchange
        self._adapter = adapter
        self._parse = adapter.parse
        self._sink = sink
        self._emit: Callable[..., None] = sink.emit
        self._muted = False
        self._capture_id = b""
        self._digest = Digest() if digest else None
        self._trades: dict[str, TradeRoute] = {}
        self._books: dict[str, BookRoute] = {}
        self._tickers: dict[str, BookRoute] = {}
        self._markets: set[str] = set()
        self._trades_max = TRADES_MAX
        self._room = MARKETS_MAX
        """Markets that may still come: a frame of no more events than that needs no look at each."""
        self._gaps: dict[int, Route] = {}
        self._rejects: dict[int, Route] = {}
        self.ledger = ledger
        self.number = 0
        self.last_event: Event | None = None
        """The last event of the last parsed frame: the session learns from it which market spoke."""
        self.tap: Callable[[Event, int, int, int], None] | None = None
        """Called with (event, recv_ns, frame number, event index) for each emitted event: exports and `kcs.read`."""

    def start(self, capture_id: bytes) -> None:
        """A new capture file begins: numbers restart at 0, the digest afresh; what is known of the markets stays."""
        self.number = 0
        self._capture_id = capture_id
        if self._digest is not None:
            self._digest = Digest()
        if not self._muted:
            self._sink.start(capture_id)

    # A run that has fallen behind; see the module docstring.

    def mute(self) -> None:
        """Records are made, counted and digested, and go nowhere."""
        self._muted = True
        self._emit = _emit_nothing

    def unmute(self, sink: Sink) -> None:
        """Records go to `sink` from now on; it may be another one than before."""
        if sink is not self._sink:
            self._sink = sink
            for route in self._routes():
                route.target = sink.route(route.channel, self._exchange, route.key)
        self._muted = False
        self._emit = sink.emit
        sink.start(self._capture_id)

    def fork(self, adapter: Adapter) -> Pipeline:
        """A second pipeline into the same sink that knows, has counted and has digested what this one has.

        `adapter` is a new one of the same venue. Not a tap of its own: what is tapped is the present.
        """
        other = Pipeline(self._exchange, adapter, self._sink, self.ledger.copy(), digest=False)
        for stream, market, state in self._adapter.save():
            adapter.load(stream, market, state)
        other._trades = {key: route.copy() for key, route in self._trades.items()}
        other._books = {key: route.copy() for key, route in self._books.items()}
        other._tickers = {key: route.copy() for key, route in self._tickers.items()}
        other._gaps, other._rejects = dict(self._gaps), dict(self._rejects)
        other._markets, other._room, other._trades_max = set(self._markets), self._room, self._trades_max
        other._digest = None if self._digest is None else self._digest.copy()
        other._capture_id = self._capture_id
        other.number = self.number
        return other

    def difference(self, other: Pipeline) -> str | None:
        """What this one and `other` do not agree on, or None: position, digest, counts, everything that is known."""
        if (self._capture_id, self.number) != (other._capture_id, other.number):
            return f"record {self.number} of {self._capture_id.hex()} and {other.number} of {other._capture_id.hex()}"
        for name, mine, theirs in (
            ("trades", self._trades, other._trades),
            ("books", self._books, other._books),
            ("tickers", self._tickers, other._tickers),
        ):
            if mine.keys() != theirs.keys():
                return f"other markets have {name}: {sorted(mine.keys() ^ theirs.keys())[:5]}"
            for market, route in mine.items():
                if route.state() != theirs[market].state():
                    return f"what is known of the {name} of {market}"
        if sorted(self._adapter.save()) != sorted(other._adapter.save()):
            return "what the adapter knows"
        if self._digest is not None and other._digest is not None and self.digest() != other.digest():
            return "the digest"
        return self.ledger.difference(other.ledger)

    @property
    def records(self) -> int:
        """Records that the current capture file has become so far; needs the digest."""
        if self._digest is None:
            raise LedgerError("this pipeline was built without a digest")
        return self._digest.records + len(self._digest.parts) // 4

    def _routes(self) -> Iterator[Route]:
        for routes in (self._trades, self._books, self._tickers, self._gaps, self._rejects):
            yield from routes.values()

    def digest(self) -> str:
        """Hex SHA-256 over the current capture file's records so far."""
        if self._digest is None:
            raise LedgerError("this pipeline was built without a digest")
        return self._digest.hexdigest()

    def feed(self, stream: int, recv_ns: int, payload: bytes) -> None:
        """One data frame. Parses, de-duplicates, encodes and emits all of its events, in order."""
        number = self.number
        self.number = number + 1
        try:
            events = self._parse(stream, recv_ns, payload)
        except FrameIgnored as verdict:
            _count(self.ledger.ignored, verdict.reason)
            return
        except FrameRejected as verdict:
            self._reject(stream, recv_ns, number, payload, verdict.reason)
            return
        if len(events) > self._room and not self._fits(events):
            self._reject(stream, recv_ns, number, payload, "too_many_markets")
            return
        self.ledger.parsed += 1
        index = 0
        for event in events:
            kind = type(event)
            if kind is Trade:
                self._trade(event, recv_ns, number, index)  # type: ignore[arg-type]
            elif kind is OrderBook:
                self._book(event, stream, recv_ns, number, index)  # type: ignore[arg-type]
            elif kind is Ticker:
                self._ticker(event, stream, recv_ns, number, index)  # type: ignore[arg-type]
            else:
                self._gap(event, recv_ns, number, index)  # type: ignore[arg-type]
            index += 1  # noqa: SIM113 - half the cost of enumerate for the one event of most frames
            self.last_event = event

    def record(self, record: tuple[int, int, int, int, bytes, Fields | None]) -> None:
        """A record of a capture: (number, kind, stream, recv_ns, payload, fields). A frame counts as captured."""
        self.number, kind, stream, recv_ns, payload, fields = record
        if kind in FRAME_KINDS:
            self.ledger.received += 1
            self.ledger.captured += 1
            self.feed(stream, recv_ns, payload)
        else:
            self.control(kind, stream, recv_ns, fields, payload)

    def control(self, kind: int, stream: int, recv_ns: int, fields: Fields | None, payload: bytes = b"") -> None:
        """One record that is no data frame: open, sent, rest, close, gap, clock, state.

        Raises DamagedCaptureError for a state that is none: whatever followed would not be what live made of it.
        """
        number = self.number
        self.number = number + 1
        if kind == Kind.OPEN:
            if not (isinstance(fields, OpenFields) and fields.continued):
                self._adapter.reset(stream)
        elif kind == Kind.CLOSE:
            if isinstance(fields, CloseFields):
                self._adapter.reset(stream)
        elif kind == Kind.GAP:
            if isinstance(fields, GapFields):
                self._adapter.reset(stream, fields.markets)
                gap = Gap(stream, *msgspec.structs.astuple(fields))
                self._gap(gap, recv_ns, number, 0)
        elif kind == Kind.STATE and isinstance(fields, StateFields):
            try:
                self._load(stream, fields.market, payload)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                what = f"the parser state of {fields.market!r} in record {number} cannot be read: {error}"
                raise DamagedCaptureError(what, where=f"a {self._exchange} capture") from error

    def save(self) -> list[tuple[int, StateFields, bytes]]:
        """(stream, fields, payload) of the state records that make a file stand alone; fed back through `control`."""
        states = []
        for market in sorted(self._markets):
            trade, book, ticker = self._trades.get(market), self._books.get(market), self._tickers.get(market)
            state = MarketState(
                trades=list(trade.order) if trade else [],
                trade_ns=list(trade.seen.values()) if trade else [],
                book_ts_ns=book.ts_ns if book else 0,
                book_stream=book.stream if book else 0,
                books=book.known() if book else [],
                ticker_ts_ns=ticker.ts_ns if ticker else 0,
                ticker_stream=ticker.stream if ticker else 0,
                tickers=ticker.known() if ticker else [],
            )
            states.append((0, StateFields(market=market), msgspec.json.encode(state)))
        for stream, market, adapter_state in self._adapter.save():
            state = MarketState(adapter=adapter_state)
            states.append((stream, StateFields(market=market), msgspec.json.encode(state)))
        return states

    def _load(self, stream: int, market: str, payload: bytes) -> None:
        if len(payload) > STATE_BYTES_MAX:
            raise ValueError(f"{len(payload):,} bytes, at most {STATE_BYTES_MAX:,}")
        state = msgspec.json.decode(payload, type=MarketState)
        if state.adapter is not None:
            self._adapter.load(stream, market, state.adapter)
            return
        if market not in self._markets:
            if not self._room:
                raise ValueError(f"more than {MARKETS_MAX:,} markets, which no run keeps")
            self._enter(market)
        if state.trades:
            trade = self._trades.get(market) or self._new_trade_route(market)
            trade.restore(state.trades, state.trade_ns)
        if state.books:
            book = self._books.get(market) or self._new_book_route(market)
            book.restore(state.book_ts_ns, state.book_stream, state.books)
        if state.tickers:
            ticker = self._tickers.get(market) or self._new_ticker_route(market)
            ticker.restore(state.ticker_ts_ns, state.ticker_stream, state.tickers)

    # One event each. The digest gets the record before the sink: a sink that fails cannot change it. Trades and books
    # are nearly all there is: what others call is written out in them, because a call costs as much as the work does.

    def _trade(self, event: Trade, recv_ns: int, number: int, index: int) -> None:
        ledger = self.ledger
        ledger.trades += 1
        route = self._trades.get(event.market) or self._new_trade_route(event.market)
        trade_id = event.id
        if trade_id:
            seen = route.seen
            if trade_id in seen:
                _count(ledger.suppressed, "trade_repeated")
                return
            seen[trade_id] = recv_ns
            order = route.order
            order.append(trade_id)
            if len(order) > TRADE_WINDOW:
                route.forget(recv_ns, self._trades_max)
        value = _dumps((event.price, event.qty, event.side, event.ts_ns / 1_000_000_000))
        raw_id = trade_id.encode()
        meta = _pack_meta(len(value), recv_ns // 1_000_000, len(raw_id), number, index, recv_ns)
        digest = self._digest
        if digest is not None:
            parts = digest.parts
            parts += (route.prefix, meta, raw_id, value)
            if len(parts) > DIGEST_PARTS_MAX:
                digest.flush()
        ledger.produced += 1
        self._emit(route.target, value, recv_ns, meta[_POSITION_PART], raw_id)
        if self.tap is not None:
            self.tap(event, recv_ns, number, index)

    def _book(self, event: OrderBook, stream: int, recv_ns: int, number: int, index: int) -> None:
        ledger = self.ledger
        ledger.orderbooks += 1
        route = self._books.get(event.market) or self._new_book_route(event.market)
        ts_ns = event.ts_ns
        value = _dumps({"asks": event.asks, "bids": event.bids, "ts": ts_ns / 1_000_000_000})
        if ts_ns > route.ts_ns:
            route.ts_ns, route.stream, route.value = ts_ns, stream, value
            if route.hashes:
                route.hashes = []
        else:
            reason = route.verdict(stream, ts_ns, value)
            if reason is not None:
                _count(ledger.suppressed, f"book_{reason}")
                return
        meta = _pack_meta(len(value), recv_ns // 1_000_000, 0, number, index, recv_ns)
        digest = self._digest
        if digest is not None:
            parts = digest.parts
            parts += (route.prefix, meta, b"", value)
            if len(parts) > DIGEST_PARTS_MAX:
                digest.flush()
        ledger.produced += 1
        self._emit(route.target, value, recv_ns, meta[_POSITION_PART], b"")
        if self.tap is not None:
            self.tap(event, recv_ns, number, index)

    def _ticker(self, event: Ticker, stream: int, recv_ns: int, number: int, index: int) -> None:
        self.ledger.tickers += 1
        route = self._tickers.get(event.market) or self._new_ticker_route(event.market)
        ts_ns = event.ts_ns
        value = _dumps(
            {
                "last": event.last,
                "open": event.open,
                "high": event.high,
                "low": event.low,
                "volume": event.volume,
                "value": event.value,
                "bid": event.bid,
                "ask": event.ask,
                "ts": ts_ns / 1_000_000_000,
            }
        )
        if ts_ns > route.ts_ns:
            route.ts_ns, route.stream, route.value = ts_ns, stream, value
            if route.hashes:
                route.hashes = []
        else:
            reason = route.verdict(stream, ts_ns, value)
            if reason is not None:
                _count(self.ledger.suppressed, f"ticker_{reason}")
                return
        self._send(route, value, recv_ns, number, index)
        if self.tap is not None:
            self.tap(event, recv_ns, number, index)

    def _gap(self, event: Gap, recv_ns: int, number: int, index: int) -> None:
        self.ledger.gaps += 1
        route = self._gaps.get(event.stream)
        if route is None:
            route = self._gaps[event.stream] = self._new_route("gap", str(event.stream))
        value: dict[str, Any] = {
            "from": event.from_ns / 1_000_000_000,
            "to": event.to_ns / 1_000_000_000,
            "cause": event.cause,
            "stream": event.stream,
            "markets": event.markets,
            "frames": event.frames,
        }
        if event.covered_by is not None:
            value["covered_by"] = event.covered_by
        self._send(route, _dumps(value), recv_ns, number, index)
        if self.tap is not None:
            self.tap(event, recv_ns, number, index)

    def _reject(self, stream: int, recv_ns: int, number: int, payload: bytes, reason: str) -> None:
        _count(self.ledger.rejected, reason)
        route = self._rejects.get(stream)
        if route is None:
            route = self._rejects[stream] = self._new_route("reject", str(stream))
        headers: tuple[tuple[str, bytes], ...] = (("reason", reason.encode()),)
        value = payload
        if len(payload) > RECORD_BYTES_MAX:
            value = payload[:RECORD_BYTES_MAX]
            headers += (("truncated", b"%d" % len(payload)),)
        self._send(route, value, recv_ns, number, 0, headers)

    def _send(
        self,
        route: Route,
        value: bytes,
        recv_ns: int,
        number: int,
        index: int,
        headers: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        meta = _pack_meta(len(value), recv_ns // 1_000_000, 0, number, index, recv_ns)
        if self._digest is not None:
            self._digest.add(route.prefix, meta, b"", value)
        self.ledger.produced += 1
        self._emit(route.target, value, recv_ns, meta[_POSITION_PART], b"", headers)

    def _new_route(self, channel: str, key: str) -> Route:
        return Route(channel, self._exchange, key, self._sink)

    def _fits(self, events: Sequence[Event]) -> bool:
        """True when the bound on markets lets all of these in; called only when it may not."""
        new = {event.market for event in events if type(event) is not Gap} - self._markets  # type: ignore[union-attr]
        return len(new) <= self._room

    def _enter(self, market: str) -> None:
        """This market counts from now on; `_fits` or the caller has seen to it that there is room."""
        self._markets.add(market)
        self._room = MARKETS_MAX - len(self._markets)
        self._trades_max = min(TRADES_MAX, TRADES_OVERALL_MAX // len(self._markets))

    def _new_trade_route(self, market: str) -> TradeRoute:
        self._enter(market)
        route = self._trades[market] = TradeRoute("trade", self._exchange, market, self._sink)
        return route

    def _new_book_route(self, market: str) -> BookRoute:
        self._enter(market)
        route = self._books[market] = BookRoute("orderbook", self._exchange, market, self._sink)
        return route

    def _new_ticker_route(self, market: str) -> BookRoute:
        self._enter(market)
        route = self._tickers[market] = BookRoute("ticker", self._exchange, market, self._sink)
        return route


def _emit_nothing(*_: Any) -> None:
    """What a muted pipeline emits to."""


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
