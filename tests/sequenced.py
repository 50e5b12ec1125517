"""A venue that proves what it sends: trades numbered one by one, books as deltas with numbers and checksums.

For tests of what kcs says about losses; `SEQUENCED` is entered in the registry by the fixture `sequenced` of a test.

    {"k":"trade","m":"A-B","n":7,"p":100.0,"q":1.0,"t":1700000000000}       n: +1 a trade of the market
    {"k":"snap","m":"A-B","n":3,"a":[[p,q],..],"b":[..],"c":crc,"t":..}     the whole book as of change n
    {"k":"delta","m":"A-B","n":4,"a":[[p,q],..],"b":[..],"c":crc,"t":..}    changed levels; q 0 removes; n: +1 a change

The checksum is CRC-32 of the book as text after the change. What the adapter says of a broken sequence:

- trade k+n after k-1: Gap `sequence`, frames = n, then the trade. One of the missing that comes late: Gap `reordered`,
  frames = 1, then the trade. A number seen before: the trade again, which the pipeline drops as a duplicate.
- delta k+n after k-1: Gap `sequence`, frames = n; a checksum that differs: Gap `checksum`, frames unknown. Either way
  the book is not known until the next snapshot: deltas until then are ignored (`no_book`), and no book is emitted.
- a delta or snapshot older than the book: ignored (`old`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import msgspec

from kcs.errors import FrameIgnored, FrameRejected
from kcs.exchanges.base import Heartbeat, Limits, Subscription, Venue
from kcs.model import Event, Gap, Level, OrderBook, Trade

NAME = "sequenced"
MARKETS = ("A-X", "B-X", "C-X")
MS = 1_000_000
MISSING_MAX = 1000
START_MS = 1_700_000_000_000


class _TradeFrame(msgspec.Struct, frozen=True, tag_field="k", tag="trade"):
    m: str
    n: int
    p: float
    q: float
    t: int


class _Snap(msgspec.Struct, frozen=True, tag_field="k", tag="snap"):
    m: str
    n: int
    a: list[Level]
    b: list[Level]
    c: int
    t: int


class _Delta(msgspec.Struct, frozen=True, tag_field="k", tag="delta"):
    m: str
    n: int
    a: list[Level]
    b: list[Level]
    c: int
    t: int


_decode = msgspec.json.Decoder(_TradeFrame | _Snap | _Delta).decode


class Book(msgspec.Struct):
    """Price -> quantity of each side as of change `number`; `known` False until a snapshot, and after a loss."""

    asks: dict[float, float] = {}
    bids: dict[float, float] = {}
    number: int = 0
    known: bool = False

    def change(self, asks: Iterable[Level], bids: Iterable[Level]) -> None:
        for side, levels in ((self.asks, asks), (self.bids, bids)):
            for price, qty in levels:
                if qty:
                    side[price] = qty
                else:
                    side.pop(price, None)

    def levels(self) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """(asks, bids), best first."""
        return tuple(sorted(self.asks.items())), tuple(sorted(self.bids.items(), reverse=True))

    def checksum(self) -> int:
        return crc32(repr(self.levels()).encode())


class _Market(msgspec.Struct):
    """What the adapter knows of one market of one stream: all of its saved state."""

    trade: int = 0
    missing: list[int] = []
    book: Book = msgspec.field(default_factory=Book)
    last_ns: int = 0


class SequencedAdapter:
    """See the module docstring."""

    def __init__(self) -> None:
        self._markets: dict[tuple[int, str], _Market] = {}

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        try:
            frame = _decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise FrameRejected("not_json") from None
        known = self._markets.get((stream, frame.m))
        if known is None:
            known = self._markets[stream, frame.m] = _Market(last_ns=recv_ns)
        try:
            if isinstance(frame, _TradeFrame):
                return self._trade(known, stream, recv_ns, frame)
            return self._change(known, stream, recv_ns, frame)
        finally:
            known.last_ns = recv_ns

    def _trade(self, known: _Market, stream: int, recv_ns: int, frame: _TradeFrame) -> list[Event]:
        trade = Trade(frame.m, frame.p, frame.q, 1, frame.t * MS, str(frame.n))
        due, known.trade = known.trade + 1, max(known.trade, frame.n)
        if due == 1 or frame.n == due:  # the first one: where a connection begins, nothing is expected
            return [trade]
        if frame.n in known.missing:
            known.missing.remove(frame.n)
            return [Gap(stream, known.last_ns, recv_ns, "reordered", (frame.m,), 1), trade]
        if frame.n < due:
            return [trade]
        known.missing = [*known.missing, *range(due, frame.n)][-MISSING_MAX:]
        return [Gap(stream, known.last_ns, recv_ns, "sequence", (frame.m,), frame.n - due), trade]

    def _change(self, known: _Market, stream: int, recv_ns: int, frame: _Snap | _Delta) -> list[Event]:
        book = known.book
        if book.known and frame.n <= book.number:
            raise FrameIgnored("old")
        if isinstance(frame, _Snap):
            known.book = book = Book(dict(frame.a), dict(frame.b), frame.n, True)
        else:
            if not book.known:
                raise FrameIgnored("no_book")
            if frame.n != book.number + 1:
                book.known = False
                return [Gap(stream, known.last_ns, recv_ns, "sequence", (frame.m,), frame.n - book.number - 1)]
            book.change(frame.a, frame.b)
            book.number = frame.n
        if book.checksum() != frame.c:
            book.known = False
            return [Gap(stream, known.last_ns, recv_ns, "checksum", (frame.m,))]
        asks, bids = book.levels()
        return [OrderBook(frame.m, asks, bids, frame.t * MS)]

    def reset(self, stream: int, markets: Sequence[str] = ()) -> None:
        for key in [key for key in self._markets if key[0] == stream and (not markets or key[1] in markets)]:
            del self._markets[key]

    def save(self) -> list[tuple[int, str, bytes]]:
        return [(stream, m, msgspec.json.encode(known)) for (stream, m), known in sorted(self._markets.items())]

    def load(self, stream: int, market: str, state: bytes) -> None:
        self._markets[stream, market] = msgspec.json.decode(state, type=_Market)


def _subscribe(subscription: Subscription, ticket: str) -> list[str]:
    return [f"SUB {ticket} {','.join(subscription.markets)}"]


SEQUENCED = Venue(
    name=NAME,
    title="Sequenced test exchange",
    url="ws://sequenced.test/",
    rest_url="http://sequenced.test",
    docs_url="http://sequenced.test/docs",
    channels=("trade", "orderbook"),
    formats=("DEFAULT",),
    depths=(),
    default_markets=MARKETS,
    adapter=SequencedAdapter,
    subscribe=_subscribe,
    check_market=lambda code: None,
    heartbeat=Heartbeat(),
    limits=Limits(connects_per_s=1000.0),
    proves=("sequence", "checksum"),
)


@dataclass(slots=True)
class Feed:
    """What the venue sends, and the books as they truly are. A function of the generator."""

    rng: random.Random
    markets: Sequence[str] = MARKETS
    kind: Literal["both", "trade", "book"] = "both"
    trades: dict[str, int] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    _sent: int = 0

    def opening(self) -> list[bytes]:
        """A snapshot of every market, as after subscribing."""
        return [] if self.kind == "trade" else [self.snapshot(market) for market in self.markets]

    def snapshot(self, market: str) -> bytes:
        book = self.books.setdefault(market, Book({101.0: 1.0, 102.0: 2.0}, {99.0: 1.0, 98.0: 2.0}))
        asks, bids = book.levels()
        return msgspec.json.encode(_Snap(market, book.number, list(asks), list(bids), book.checksum(), self._time()))

    def next(self, market: str | None = None) -> bytes:
        """A trade or a change of a book."""
        rng = self.rng
        market = market or rng.choice(self.markets)
        if self.kind == "trade" or (self.kind == "both" and rng.random() < 0.5):
            number = self.trades[market] = self.trades.get(market, 0) + 1
            price, qty = 99.0 + rng.randrange(20) / 10, float(rng.randrange(1, 50))
            return msgspec.json.encode(_TradeFrame(market, number, price, qty, self._time()))
        book = self.books[market]
        asks = [(101.0 + rng.randrange(8), float(rng.randrange(4))) for _ in range(rng.randrange(1, 3))]
        bids = [(99.0 - rng.randrange(8), float(rng.randrange(4)))]
        book.change(asks, bids)
        book.number += 1
        return msgspec.json.encode(_Delta(market, book.number, asks, bids, book.checksum(), self._time()))

    def _time(self) -> int:
        self._sent += 1
        return START_MS + self._sent
