"""The Upbit dialect, sans I/O: bytes and times in, actions out. No socket, no loop, no clock.

`UpbitExchange` runs the market and hands what happens to the connections that asked for it; an `UpbitConnection` is one
client's websocket. Both take the time as an argument (any clock's ns, never running back) and return actions that
carry the time at which they were due (`at_ns`), in order. What a connection is sent depends on what it received and
when, never on how often or by whom `poll` was called: `poll(1 s)` gives what ten polls of 100 ms give.

The venue's rules that are kept: no ack, the snapshot is the first frame; a request replaces the one before; unknown
codes, lower-case codes and order book groupings are answered with silence; an error is sent, then the connection is
closed with 1000 after 150 ms; 5 requests a second and 100 a minute; after a text PING an UP every 10 s on the
connection's own tick; 60 s without traffic in either direction end in a drop without close frame. Frames are binary.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import orjson

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.candles import CandleFeed
from kcs.sim.catalogue import CATALOGUE
from kcs.sim.clock_steps import ClockSteps
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.market import BOOK, TICKER, TRADE, MarketState, SimMarket
from kcs.sim.mischief import Mischief
from kcs.sim.moments import Stage
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.upbit_frames import UpbitFrames
from kcs.sim.upbit_request import (
    MESSAGES,
    Refused,
    Request,
    TypeRequest,
    parse_request,
    split_depth,
    subscriptions_reply,
)

IDLE_NS: Final = 60 * NS_PER_S
UP_EVERY_NS: Final = 10 * NS_PER_S
CLOSE_AFTER_ERROR_NS: Final = 150 * NS_PER_MS
MESSAGES_PER_S: Final = 5
MESSAGES_PER_MIN: Final = 100

_STATUS_UP: Final = b'{"status":"UP"}'
_KIND_OF_TYPE: Final = {"trade": TRADE, "orderbook": BOOK, "ticker": TICKER}


class UpbitExchange:
    """The venue: one market, any number of connections.

    `start_ns` is the moment, in the caller's time, at which the market opens (virtual time 0); None: with the first
    accepted subscription. The venue's clock shows `settings.epoch_ns` at that moment, or the moment itself where that
    is None. The faults of `settings` are done here, but for those of the network (`link`, `server`), and told to
    `fault_log`.
    """

    def __init__(self, settings: SimSettings, start_ns: int | None, fault_log: SimFaultLog | None = None) -> None:
        self.settings = settings
        self.fault_log = SimFaultLog() if fault_log is None else fault_log
        self.connections = 0
        self.frames = UpbitFrames()
        self.market: SimMarket | None = None
        self.start_ns = 0
        self._epoch_ns = 0
        self._steps: ClockSteps | None = None
        count = len(settings.markets)
        self._interest: tuple[list[list[tuple[UpbitConnection, int]]], ...] = tuple(
            [[] for _ in range(count)] for _ in range(3)
        )
        self._candles: list[list[tuple[UpbitConnection, CandleFeed]]] = [[] for _ in range(count)]
        if start_ns is not None:
            self.open(start_ns)

    def open(self, now_ns: int) -> SimMarket:
        """Open the market at `now_ns` unless it is open; the market."""
        if self.market is None:
            epoch_ns = self.settings.epoch_ns
            self.start_ns = now_ns
            self._epoch_ns = now_ns if epoch_ns is None else epoch_ns
            self.market = SimMarket(self.settings, self._epoch_ns)
            if self.settings.faults.clock_steps:
                self._steps = ClockSteps(self.settings.faults.clock_steps, self.stage(now_ns, connection=0))
        return self.market

    def connect(self, now_ns: int) -> VenueConnection:
        """A client has connected: an UpbitConnection, behind its mischief where there are such faults."""
        self.advance(now_ns)
        self.connections += 1
        connection, mischief = UpbitConnection(self, now_ns), self.settings.faults.mischief
        return Mischief(connection, mischief, self.stage(now_ns)) if mischief else connection

    def stage(self, now_ns: int, *, connection: int | None = None) -> Stage:
        """Where the faults of a connection that was made at `now_ns` happen; by default of the newest one."""
        settings, number = self.settings, self.connections if connection is None else connection
        return Stage(settings.seed, number, now_ns, self._opened_ns, self.fault_log, settings.queue_bytes_max)

    def _opened_ns(self) -> int | None:
        return None if self.market is None else self.start_ns

    @property
    def next_due_ns(self) -> int:
        """When the market publishes next, in the caller's time; FOREVER when it has ended or not begun."""
        if self.market is None or self.market.next_due_ns == FOREVER:
            return FOREVER
        return self.start_ns + self.market.next_due_ns

    @property
    def ended(self) -> bool:
        """The market has published all it will (duration or frames_max)."""
        return self.market is not None and self.market.next_due_ns == FOREVER

    def venue_ns(self, now_ns: int) -> int:
        """What the venue's clock shows at `now_ns`."""
        return now_ns - self.start_ns + self._epoch_ns

    def advance(self, now_ns: int, frames_max: int = FOREVER) -> int:
        """Publish what is due up to and including `now_ns`, at most `frames_max` market frames; how many it was."""
        market, steps, count = self.market, self._steps, 0
        if market is None:
            return 0
        while steps is not None and steps.due_ns <= now_ns:
            count += self._publish_until(market, steps.due_ns - 1, frames_max - count)
            if self.next_due_ns < steps.due_ns:
                return count
            by_ns = steps.take()
            self._epoch_ns += by_ns
            market.shift_clock(by_ns)
        return count + self._publish_until(market, now_ns, frames_max - count)

    def _publish_until(self, market: SimMarket, now_ns: int, frames_max: int) -> int:
        count = 0
        until_ns, interest = now_ns - self.start_ns, self._interest
        while market.next_due_ns <= until_ns and count < frames_max:
            at_ns = self.start_ns + market.next_due_ns
            kind, state = market.step()
            count += 1
            listeners = interest[kind][state.index]
            if listeners:
                self._publish(kind, state, at_ns, listeners)
            if kind == TRADE and self._candles[state.index]:
                for connection, feed in self._candles[state.index]:
                    connection._candle_trade(at_ns, feed)
        return count

    def _publish(self, kind: int, state: MarketState, at_ns: int, listeners: list[tuple[UpbitConnection, int]]) -> None:
        made: dict[tuple[str, int], bytes] = {}
        for connection, depth in listeners:
            key = (connection.wire_format, depth)
            payload = made.get(key)
            if payload is None:
                payload = made[key] = self.render(kind, state, connection.wire_format, depth)
            connection._data(at_ns, payload, state.code)

    def render(self, kind: int, state: MarketState, wire_format: str, depth: int, *, snapshot: bool = False) -> bytes:
        """The frame of one kind (TRADE, BOOK, TICKER) as the market stands."""
        if kind == TRADE:
            return self.frames.trade(state, wire_format, snapshot=snapshot)
        if kind == BOOK:
            return self.frames.book(state, wire_format, depth, snapshot=snapshot)
        return self.frames.ticker(state, wire_format, snapshot=snapshot)

    def market_list(self) -> bytes:
        """What `GET /v1/market/all` answers: the simulated markets."""
        return orjson.dumps(
            [
                {
                    "market": code,
                    "korean_name": CATALOGUE[code].korean_name,
                    "english_name": CATALOGUE[code].english_name,
                }
                for code in self.settings.markets
            ]
        )

    def _listen(self, connection: UpbitConnection, kind: int, index: int, depth: int) -> None:
        listeners = self._interest[kind][index]
        if (connection, depth) not in listeners:
            listeners.append((connection, depth))

    def _listen_candle(self, connection: UpbitConnection, feed: CandleFeed) -> None:
        self._candles[feed.state.index].append((connection, feed))

    def _forget(self, connection: UpbitConnection) -> None:
        # New lists: this may happen while `_publish` walks the old ones, and nobody else may miss the frame at hand.
        for per_market in self._interest:
            per_market[:] = [[entry for entry in listeners if entry[0] is not connection] for listeners in per_market]
        self._candles = [[entry for entry in feeds if entry[0] is not connection] for feeds in self._candles]


class UpbitConnection:
    """One client's websocket as the venue sees it. Made by `UpbitExchange.connect`.

    Every method may be called until the connection is `closed`; later calls do nothing.
    """

    def __init__(self, exchange: UpbitExchange, now_ns: int) -> None:
        self._exchange = exchange
        self._opened_ns = now_ns
        self._traffic_ns = now_ns
        self._out: list[Action] = []
        self._messages: deque[int] = deque(maxlen=MESSAGES_PER_MIN)
        self._close_at_ns = FOREVER
        self._up_at_ns = FOREVER
        self._candle_at_ns = FOREVER
        self._timer_ns = 0
        self._feeds: list[CandleFeed] = []
        self.types: tuple[TypeRequest, ...] = ()
        self.wire_format = "DEFAULT"
        self.closed = False
        self._set_timer()

    def receive(self, now_ns: int, kind: str, payload: bytes = b"") -> list[Action]:
        """A message of the client arrived: what is due up to now, answers included.

        `kind` is text, binary, ping or pong. Raises ValueError for another kind.
        """
        self._catch_up(now_ns)
        if not self.closed:
            self._traffic_ns = now_ns
            if kind in ("text", "binary"):
                self._message(now_ns, payload)
            elif kind == "ping":
                self._push(SendPong(now_ns, payload))
            elif kind != "pong":
                raise ValueError(f"kind is text, binary, ping or pong, not {kind!r}")
            self._set_timer()
        return self._take(now_ns)

    def poll(self, now_ns: int) -> list[Action]:
        """What is due up to and including `now_ns`."""
        self._catch_up(now_ns)
        return self._take(now_ns)

    def disconnect(self) -> None:
        """The client is gone."""
        self.closed = True
        self._out.clear()
        self._exchange._forget(self)

    @property
    def next_due_ns(self) -> int:
        """When `poll` may have something next; never later than it really has. FOREVER once closed."""
        if self._out:
            return self._out[0].at_ns
        if self.closed:
            return FOREVER
        market_ns = self._exchange.next_due_ns if self.types else FOREVER
        return min(market_ns, self._timer_ns)

    def _catch_up(self, now_ns: int) -> None:
        self._exchange.advance(now_ns)
        if self._timer_ns <= now_ns and not self.closed:
            self._fire(now_ns)

    def _take(self, now_ns: int) -> list[Action]:
        out = self._out
        if not out or out[-1].at_ns <= now_ns:
            self._out = []
            return out
        held = next(at for at, action in enumerate(out) if action.at_ns > now_ns)
        self._out = out[held:]
        return out[:held]

    # What goes out.

    def _data(self, at_ns: int, payload: bytes, market: str) -> None:
        """A market frame is due now. Timers that were due before it come first."""
        if self._timer_ns < at_ns:
            self._fire(at_ns - 1)
        if not self.closed:
            self._push(SendFrame(at_ns, payload, True, True, market))

    def _push(self, action: Action) -> None:
        if action.at_ns > self._traffic_ns:
            self._traffic_ns = action.at_ns
        self._out.append(action)

    def _end(self, action: SendClose | DropConnection) -> None:
        self._push(action)
        self.closed = True
        self._exchange._forget(self)

    # Timers.

    def _set_timer(self) -> None:
        self._timer_ns = min(self._close_at_ns, self._up_at_ns, self._candle_at_ns, self._traffic_ns + IDLE_NS)

    def _fire(self, now_ns: int) -> None:
        """Run the timers due up to `now_ns`, in order. Traffic since it was set has pushed the idle timer back."""
        self._set_timer()
        while self._timer_ns <= now_ns and not self.closed:
            at_ns = self._timer_ns
            if at_ns == self._close_at_ns:
                self._end(SendClose(at_ns, 1000))
            elif at_ns == self._up_at_ns:
                self._push(SendFrame(at_ns, _STATUS_UP, data=False))
                self._up_at_ns += UP_EVERY_NS
            elif at_ns == self._candle_at_ns:
                self._candle_at_ns += NS_PER_S
                self._candle_tick(at_ns)
            else:
                self._end(DropConnection(at_ns, "idle"))
            self._set_timer()

    def _candle_tick(self, at_ns: int) -> None:
        for feed in self._feeds:
            if feed.dirty:
                self._push(SendFrame(at_ns, feed.frame(), market=feed.state.code))

    def _candle_trade(self, at_ns: int, feed: CandleFeed) -> None:
        if self._timer_ns < at_ns:
            self._fire(at_ns - 1)
        finished = feed.add_trade()
        if finished is not None and not self.closed:
            self._push(SendFrame(at_ns, finished, market=feed.state.code))

    # Requests.

    def _message(self, now_ns: int, payload: bytes) -> None:
        if self._close_at_ns != FOREVER:
            return
        try:
            self._count_message(now_ns)
            if payload == b"PING":
                self._start_status(now_ns)
                return
            request = parse_request(payload)
        except Refused as refusal:
            error = {"error": {"name": refusal.name, "message": MESSAGES[refusal.name]}}
            self._push(SendFrame(now_ns, orjson.dumps(error), data=False))
            self._close_at_ns = now_ns + CLOSE_AFTER_ERROR_NS
            return
        self.wire_format = request.wire_format
        if request.list_subscriptions:
            self._push(SendFrame(now_ns, subscriptions_reply(request, self.types), data=False))
        else:
            self._subscribe(now_ns, request)

    def _count_message(self, now_ns: int) -> None:
        sent = self._messages
        if len(sent) >= MESSAGES_PER_S and now_ns - sent[-MESSAGES_PER_S] < NS_PER_S:
            raise Refused("TOO_MANY_REQUESTS")
        if len(sent) == MESSAGES_PER_MIN and now_ns - sent[0] < 60 * NS_PER_S:
            raise Refused("TOO_MANY_REQUESTS")
        sent.append(now_ns)

    def _start_status(self, now_ns: int) -> None:
        if self._up_at_ns == FOREVER:
            ticks = (now_ns - self._opened_ns) // UP_EVERY_NS + 1
            self._up_at_ns = self._opened_ns + ticks * UP_EVERY_NS

    def _subscribe(self, now_ns: int, request: Request) -> None:
        exchange = self._exchange
        exchange._forget(self)
        self._feeds.clear()
        self._candle_at_ns = FOREVER
        self.types = request.types
        market = exchange.open(now_ns)
        for wanted in request.types:
            kind = _KIND_OF_TYPE.get(wanted.type)
            for code in wanted.codes:
                base, depth = split_depth(code) if kind == BOOK else (code, 0)
                state = market.by_code.get(base)
                if state is None or (kind == BOOK and wanted.level):
                    continue
                if kind is None:
                    self._subscribe_candle(now_ns, wanted, state)
                    continue
                if not wanted.only_realtime:
                    payload = exchange.render(kind, state, self.wire_format, depth, snapshot=True)
                    self._push(SendFrame(now_ns, payload, market=state.code, snapshot=True))
                if not wanted.only_snapshot:
                    exchange._listen(self, kind, state.index, depth)

    def _subscribe_candle(self, now_ns: int, wanted: TypeRequest, state: MarketState) -> None:
        exchange = self._exchange
        feed = CandleFeed(wanted.type, state, self.wire_format)
        if not wanted.only_realtime:
            self._push(SendFrame(now_ns, feed.frame(snapshot=True), market=state.code, snapshot=True))
        if not wanted.only_snapshot:
            self._feeds.append(feed)
            exchange._listen_candle(self, feed)
            self._candle_at_ns = now_ns + NS_PER_S - exchange.venue_ns(now_ns) % NS_PER_S
