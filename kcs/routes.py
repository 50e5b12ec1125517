"""What the pipeline keeps of each (channel, key): where its records go, and what it needs to drop duplicates.

`Route` is made once and looked up per event; `TradeRoute` and `BookRoute` (books, and tickers) carry the windows in
which duplicates are recognised, and `MarketState` is what a state record says of one market. No clock, no I/O; used by
kcs/pipeline.py alone, whose docstring states the rules.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any, Final, Self

import msgspec

from kcs.sink import Digest, Sink

TRADE_WINDOW: Final = 128
"""Trade ids remembered per market in any case: venues repeat the last trade after a reconnect."""

TRADE_WINDOW_NS: Final = 60 * 1_000_000_000
"""So long, by receive time, ids are remembered beyond these: two connections may differ by so much."""

TRADES_MAX: Final = 8_192
TRADES_OVERALL_MAX: Final = 1 << 21
"""Bounds of what is remembered so: a market, and over all markets, of which each has an equal share."""

BOOK_WINDOW: Final = 64
"""Different books of one market with one and the same time that are remembered."""


class MarketState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Payload of a state record. `trade_ns` are the receive times of `trades`, oldest first; `books` are digests of the
    books emitted with `book_ts_ns`, `tickers` likewise."""

    trades: list[str] = []
    trade_ns: list[int] = []
    book_ts_ns: int = 0
    book_stream: int = 0
    books: list[bytes] = []
    ticker_ts_ns: int = 0
    ticker_stream: int = 0
    tickers: list[bytes] = []
    adapter: bytes | None = None


class Route:
    """All that is known of one (channel, key): made once, looked up per event."""

    __slots__ = ("channel", "key", "prefix", "target")

    def __init__(self, channel: str, exchange: str, key: str, sink: Sink) -> None:
        self.channel = channel
        self.key = key
        self.prefix = Digest.prefix(channel, exchange, key)
        self.target = sink.route(channel, exchange, key)

    def copy(self) -> Self:
        """The same route with a state of its own; states are containers and values that never change."""
        other = object.__new__(type(self))
        for kind in type(self).__mro__[:-1]:
            for name in kind.__slots__:  # type: ignore[attr-defined]
                value = getattr(self, name)
                setattr(other, name, value.copy() if isinstance(value, list | dict | deque) else value)
        return other

    def state(self) -> Any:
        """What it knows that can change a later record; comparable."""
        return None


class TradeRoute(Route):
    """`order` holds the ids of the window, oldest first, `seen` the time at which each was received."""

    __slots__ = ("order", "seen")

    def __init__(self, channel: str, exchange: str, key: str, sink: Sink) -> None:
        super().__init__(channel, exchange, key, sink)
        self.order: deque[str] = deque()
        self.seen: dict[str, int] = {}

    def restore(self, ids: list[str], times_ns: list[int]) -> None:
        """Begin with these, oldest first; at most `TRADES_MAX` of the newest are kept."""
        known = times_ns if len(times_ns) == len(ids) else [0] * len(ids)
        self.seen = dict(zip(ids[-TRADES_MAX:], known[-TRADES_MAX:], strict=True))
        self.order = deque(self.seen)

    def forget(self, now_ns: int, ids_max: int) -> None:
        """Let go of what is no longer in the window; called when it holds more than `TRADE_WINDOW`."""
        order, seen = self.order, self.seen
        while len(order) > TRADE_WINDOW and (len(order) > ids_max or now_ns - seen[order[0]] > TRADE_WINDOW_NS):
            del seen[order.popleft()]

    def state(self) -> Any:
        return self.order, self.seen


class BookRoute(Route):
    """Books, and tickers. `value` is the last one emitted; `hashes` fills once a second comes with its time."""

    __slots__ = ("hashes", "stream", "ts_ns", "value")

    def __init__(self, channel: str, exchange: str, key: str, sink: Sink) -> None:
        super().__init__(channel, exchange, key, sink)
        self.ts_ns = -1
        self.stream = -1
        self.value = b""
        self.hashes: list[bytes] = []

    def restore(self, ts_ns: int, stream: int, hashes: list[bytes]) -> None:
        """Begin where another one was."""
        self.ts_ns, self.stream, self.hashes, self.value = ts_ns, stream, hashes[-BOOK_WINDOW:], b""

    def verdict(self, stream: int, ts_ns: int, value: bytes) -> str | None:
        """Why this book is dropped, or None and it is entered. Called only when `ts_ns` is not newer."""
        if ts_ns < self.ts_ns:
            if stream != self.stream:
                return "older"
            self.hashes.clear()
        else:
            hashes = self.known()
            digest = _book_hash(value)
            if digest in hashes:
                return "repeated"
            hashes.append(digest)
            del hashes[:-BOOK_WINDOW]
            self.hashes = hashes
        self.ts_ns, self.stream, self.value = ts_ns, stream, value
        return None

    def known(self) -> list[bytes]:
        """Digests of the books emitted with time `ts_ns`."""
        return self.hashes or ([_book_hash(self.value)] if self.value else [])

    def state(self) -> Any:
        return self.ts_ns, self.stream, self.known()


def _book_hash(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
