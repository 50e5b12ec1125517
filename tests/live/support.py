"""A small venue, a sender of actions and an in-memory websocket peer for the tests of kcs.live."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import orjson

from kcs.clock import NS_PER_S, VirtualClock
from kcs.errors import FrameIgnored, FrameRejected
from kcs.exchanges.base import Heartbeat, Limits, Subscription, Venue
from kcs.live.actions import Action, ConnectionEnd, Log, WriteRecord
from kcs.live.session import Session, SessionSettings
from kcs.model import Event, OrderBook, Trade

START_NS = 1_700_000_000 * NS_PER_S
URL = "ws://venue.test/stream"
MARKETS = ("KRW-BTC", "KRW-ETH")


class LineAdapter:
    """`{"m": market, "p": price, "i": id}` is a trade, with `"b"` a book; `{"up": 1}` is ignored; the rest rejected.

    It counts the trades of each market as its state and puts the count into the quantity, so that state which was
    not carried over shows in the records.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[int, str], int] = {}

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        try:
            message = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise FrameRejected("not_json") from None
        if "up" in message:
            raise FrameIgnored("heartbeat")
        if "m" not in message:
            raise FrameRejected("no_market")
        market, price = message["m"], float(message["p"])
        if "b" in message:
            return [OrderBook(market, ((price + 1, 1.0),), ((price, 1.0),), message["b"])]
        count = self.counts[stream, market] = self.counts.get((stream, market), 0) + 1
        return [Trade(market, price, float(count), 1, START_NS, str(message["i"]))]

    def reset(self, stream: int, markets: Sequence[str] = ()) -> None:
        for key in list(self.counts):
            if key[0] == stream and (not markets or key[1] in markets):
                del self.counts[key]

    def save(self) -> list[tuple[int, str, bytes]]:
        return [(stream, market, b"%d" % n) for (stream, market), n in sorted(self.counts.items())]

    def load(self, stream: int, market: str, state: bytes) -> None:
        self.counts[stream, market] = int(state)


def subscribe(subscription: Subscription, ticket: str) -> list[str]:
    return [f"SUB {ticket} {channel} {','.join(subscription.markets)}" for channel in subscription.channels]


def make_venue(**changes: Any) -> Venue:
    given: dict[str, Any] = {
        "name": "testex",
        "title": "Test Exchange",
        "url": URL,
        "rest_url": "http://venue.test",
        "docs_url": "http://venue.test/docs",
        "channels": ("trade", "orderbook"),
        "formats": ("DEFAULT",),
        "depths": (1,),
        "default_markets": MARKETS,
        "adapter": LineAdapter,
        "subscribe": subscribe,
        "check_market": lambda code: None,
        "heartbeat": Heartbeat(texts_after_subscribe=("PING",)),
        "limits": Limits(),
    }
    return Venue(**{**given, **changes})


def make_subscription(*markets: str, channels: tuple[str, ...] = ("trade",)) -> Subscription:
    return Subscription(channels, markets or MARKETS)


class Driver:
    """A session under a virtual clock; keeps every action it returned."""

    def __init__(self, seed: int = 1, **options: Any) -> None:
        self.clock = VirtualClock(START_NS)
        venue = options.pop("venue", None) or make_venue()
        subscription = options.pop("subscription", None) or make_subscription()
        settings: SessionSettings | None = options.pop("settings", None)
        self.session = Session(venue, subscription, random.Random(seed), settings=settings, **options)
        self.log: list[Action] = []

    @property
    def now_ns(self) -> int:
        return self.clock.now_ns()

    def take(self, actions: Sequence[Action]) -> list[Action]:
        """Keep the actions; the logs apart."""
        self.log += actions
        return [action for action in actions if not isinstance(action, Log)]

    def logs(self) -> list[str]:
        return [action.text for action in self.log if isinstance(action, Log)]

    def records(self) -> list[WriteRecord]:
        return [action for action in self.log if isinstance(action, WriteRecord)]

    def start(self) -> list[Action]:
        return self.take(self.session.start(self.now_ns))

    def after(self, seconds: float) -> None:
        self.clock.advance(round(seconds * NS_PER_S))

    def tick(self, seconds: float = 0.0) -> list[Action]:
        self.after(seconds)
        return self.take(self.session.tick(self.now_ns))

    def tick_when_due(self) -> list[Action]:
        """Move to the next due time, check that a tick before it does nothing, and tick."""
        due_ns = self.session.next_due_ns
        if due_ns - 1 > self.now_ns:
            self.clock.set(due_ns - 1)
            assert self.take(self.session.tick(self.now_ns)) == []
        self.clock.set(due_ns)
        return self.take(self.session.tick(self.now_ns))

    def opened(self) -> list[Action]:
        return self.take(self.session.opened(self.now_ns))

    def open(self) -> list[Action]:
        self.start()
        return self.opened()

    def frame(self, seconds: float = 0.0, market: str | None = "KRW-BTC") -> list[Action]:
        self.after(seconds)
        actions = self.take(self.session.frame(self.now_ns))
        if market is not None:
            self.session.on_market(market, self.now_ns)
        return actions

    def lost(self, end: ConnectionEnd | None = None) -> list[Action]:
        return self.take(self.session.closed(self.now_ns, end or ConnectionEnd(1006, "", "lost")))


async def settle(turns: int = 20) -> None:
    """Let the loop run what is ready."""
    for _ in range(turns):
        await asyncio.sleep(0)
