"""A venue in virtual time for tests of lanes: numbered trades to every connection that works, and some that do not.

`Street` carries time: each step the venue trades, its connections deliver, and the lanes are ticked. Everything runs in
one loop without sockets; what a connection does is decided by `Street.plan`, one word a dial, "ok" when it is empty:

    ok      delivers a snapshot (the last trades again), then what is traded
    mute    opens, answers pings, and never delivers anything
    refuse  is refused
    hang    never gets an answer
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from kcs.clock import NS_PER_S, VirtualClock
from kcs.exchanges.base import Heartbeat, Limits, Subscription
from kcs.live.actions import ConnectFailure, ConnectionEnd
from kcs.live.backoff import BackoffSettings, ConnectPace
from kcs.live.lane import Lanes
from kcs.live.session import Session, SessionSettings
from kcs.live.slot import Slot
from kcs.live.transport import ConnectFailed, Handler
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from kcs.pipeline import Pipeline
from kcs.sink import Headers, NullSink
from kcs.stats import Ledger
from tests.live.rig import trade
from tests.live.support import MARKETS, START_NS, LineAdapter, make_subscription, make_venue, settle

S = NS_PER_S
BINARY = int(Kind.BINARY)
Note = tuple[str, int, int, Any]
"""(kind, stream, time, payload or fields) of a record."""


class Line:
    """One connection, both ends of it."""

    def __init__(self, street: Street, handler: Handler, word: str) -> None:
        self.street = street
        self.handler = handler
        self.mute = word == "mute"
        self.dead = False
        """Nothing comes through any more, and nobody has noticed."""
        self.deaf: set[str] = set()
        """Markets that do not come through."""
        self.forgetful = False
        """They come back when they are asked for again."""
        self.subscribed = False
        self.fresh = False
        self.pongs: list[bytes] = []
        self.closing: ConnectionEnd | None = None

    # What the slot asks for.

    def send_text(self, text: str) -> bool:
        if text.startswith("SUB"):
            self.subscribed = self.fresh = True
            if self.forgetful:
                self.deaf.clear()
        return True

    def ping(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def close(self, code: int, reason: str = "") -> None:
        self.closing = ConnectionEnd(code, reason)

    def abort(self) -> None:
        self.closing = ConnectionEnd(1006, "", "lost")

    def hold(self, held: bool) -> None:
        pass

    # What the venue does.

    def deliver(self, trades: Sequence[tuple[str, int]]) -> None:
        """The next step of this connection: pongs and frames, then its end, if it was asked for."""
        now_ns = self.street.clock.now_ns()
        if not self.dead:
            for payload in self.pongs:
                self.handler.pong(now_ns, payload)
            self.pongs.clear()
            if self.subscribed and not self.mute:
                frames = [*self.street.last.items(), *trades] if self.fresh else trades
                self.fresh = False
                for market, number in frames:
                    if market not in self.deaf and market not in self.street.mute_markets:
                        self.handler.frame(BINARY, now_ns, trade(number, market))
        if self.closing is not None:
            self.end(self.closing)

    def end(self, end: ConnectionEnd) -> None:
        if self in self.street.lines:
            self.street.lines.remove(self)
            self.handler.closed(self.street.clock.now_ns(), end)


class Street:
    """See the module docstring. `notes` are the records of the capture, `emitted` the trades that came out."""

    def __init__(
        self,
        *,
        connections: int = 1,
        subscriptions: Sequence[Subscription] = (),
        age_max_s: float | None = None,
        down_since_ns: int | None = None,
        seed: int = 1,
        step_s: float = 0.5,
        silence_max_s: float = 20.0,
        **settings: Any,
    ) -> None:
        self.clock = VirtualClock(START_NS)
        self.step_s = step_s
        self.venue = make_venue(
            heartbeat=Heartbeat(ping_every_s=5.0, pong_within_s=5.0, silence_max_s=silence_max_s),
            limits=Limits(connects_per_s=1000, messages_per_s=1000, connection_age_max_s=age_max_s),
            codes_in_frames=True,
        )
        self.rng = random.Random(seed)
        self.pipeline = Pipeline(self.venue.name, LineAdapter(), self._Sink(self), Ledger())
        self.settings = SessionSettings(BackoffSettings(base_s=0.5, cap_s=2.0), silent_after_s=1e6, **settings)
        self.pace = ConnectPace(1000)
        self.down_since_ns = down_since_ns
        self.lanes = Lanes(self._new_slot, self.venue.limits, self.rng, lambda level, text: self.logs.append(text))
        self.logs: list[str] = []
        self.lines: list[Line] = []
        self.plan: list[str] = []
        self.dials = 0
        self.number = 0
        self.last: dict[str, int] = {}
        self.mute_markets: set[str] = set()
        self.traded: dict[int, int] = {}
        """Trade -> when it happened."""
        self.notes: list[Note] = []
        self.emitted: list[int] = []
        self.finished = False
        self.lanes.begin(subscriptions or (make_subscription(),), connections)

    class _Sink(NullSink):
        def __init__(self, street: Street) -> None:
            super().__init__()
            self.street = street

        def route(self, channel: str, exchange: str, key: str) -> Any:
            return channel

        def emit(
            self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
        ) -> None:
            if route == "trade":
                self.street.emitted.append(int(trade_id))

    def _new_slot(self, stream: int, subscription: Subscription, first: bool) -> Slot:
        session = Session(
            self.venue,
            subscription,
            self.rng,
            stream=stream,
            settings=self.settings,
            pace=self.pace,
            down_since_ns=self.down_since_ns if first else None,
        )
        return Slot(
            session,
            self,  # type: ignore[arg-type]
            self.pipeline,
            self._dial,  # type: ignore[arg-type]
            self.clock,
            lambda level, text: self.logs.append(text),
            self._crash,
            self._slot_finished,
        )

    async def _dial(self, handler: Handler) -> Line:
        self.dials += 1
        word = self.plan.pop(0) if self.plan else "ok"
        if word == "hang":
            await asyncio.Event().wait()
        if word == "refuse":
            raise ConnectFailed(ConnectFailure("refused"))
        line = Line(self, handler, word)
        self.lines.append(line)
        handler.opened(line, self.clock.now_ns())  # type: ignore[arg-type]
        return line

    def _crash(self, error: BaseException) -> None:
        raise error

    def _slot_finished(self) -> None:
        self.finished = self.lanes.finished

    # The recorder.

    def frame(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        self.notes.append(("frame", stream, recv_ns, payload))
        self.pipeline.feed(stream, recv_ns, payload)

    def control(self, kind: int, stream: int, recv_ns: int, fields: Any, payload: bytes = b"") -> None:
        self.notes.append((Kind(kind).name, stream, recv_ns, fields))
        self.pipeline.control(kind, stream, recv_ns, fields, payload)

    def sent(self, stream: int, recv_ns: int, text: str) -> None:
        self.notes.append(("sent", stream, recv_ns, text))

    # Time.

    @property
    def now_s(self) -> float:
        return (self.clock.now_ns() - START_NS) / S

    async def start(self) -> Street:
        self.lanes.start(self.clock.now_ns())
        await self.run(2)
        return self

    async def run(self, seconds: float) -> None:
        """Let so much time pass, step by step."""
        for _ in range(round(seconds / self.step_s)):
            self.clock.advance(round(self.step_s * S))
            trades = []
            for market in MARKETS:
                self.number += 1
                self.last[market] = self.number
                self.traded[self.number] = self.clock.now_ns()
                trades.append((market, self.number))
            for line in list(self.lines):
                line.deliver(trades)
            self.lanes.tick(self.clock.now_ns())
            await settle(4)

    async def until(self, true: Callable[[], bool], within_s: float = 600.0) -> None:
        end_s = self.now_s + within_s
        while not true():
            assert self.now_s < end_s, "it never came about"
            await self.run(self.step_s)

    async def stop(self) -> None:
        self.lanes.stop(self.clock.now_ns())
        await settle(4)
        for line in list(self.lines):
            line.deliver(())
        await settle(4)
        assert self.finished

    def line_of(self, stream: int) -> Line:
        (line,) = [line for line in self.lines if line.handler.stream == stream]  # type: ignore[attr-defined]
        return line

    def lose(self, stream: int) -> None:
        self.line_of(stream).end(ConnectionEnd(1006, "", "lost"))

    # What came of it.

    def fields(self, kind: str) -> list[tuple[int, Any]]:
        return [(stream, fields) for noted, stream, _, fields in self.notes if noted == kind]

    @property
    def gaps(self) -> list[tuple[int, GapFields]]:
        return self.fields("GAP")

    @property
    def opens(self) -> list[tuple[int, OpenFields]]:
        return self.fields("OPEN")

    @property
    def closes(self) -> list[tuple[int, CloseFields]]:
        return self.fields("CLOSE")

    def captured(self, stream: int | None = None) -> set[int]:
        """Trades that some connection (or this one) brought."""
        return {
            orjson.loads(payload)["i"]
            for kind, of, _, payload in self.notes
            if kind == "frame" and stream in (None, of)
        }

    def missed(self) -> list[int]:
        """Trades between the first and the last captured that no connection brought."""
        captured = self.captured()
        return [number for number in range(min(captured), max(captured)) if number not in captured]
