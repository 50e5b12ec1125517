"""Session, slot, lanes and pipeline of live against the simulated Upbit and its faults, in memory and virtual time.

The simulator's fault log says which frames never came. Each must lie in a gap that names its market, and a gap must not
say more than it has to.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from kcs.clock import NS_PER_S, VirtualClock
from kcs.exchanges import Subscription, venue
from kcs.live.actions import ConnectionEnd
from kcs.live.backoff import ConnectPace
from kcs.live.lane import Lanes
from kcs.live.session import Session, SessionSettings
from kcs.live.slot import Slot
from kcs.live.transport import Handler
from kcs.model import GapFields, Kind
from kcs.pipeline import Pipeline
from kcs.sim.actions import DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.fault_text import parse_faults
from kcs.sim.settings import SimSettings
from kcs.sim.upbit import UpbitExchange
from kcs.sink import NullSink
from kcs.stats import Ledger
from tests.live.support import START_NS, settle

S = NS_PER_S
TICK_NS = S // 20
MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP")
CHANNELS = ("trade", "orderbook")


class Line:
    """One connection: kcs's handler at one end, the simulator's at the other."""

    def __init__(self, street: Street, handler: Handler, peer: VenueConnection) -> None:
        self.street = street
        self.handler = handler
        self.peer = peer
        self.waiting: list[Any] = []
        self.closing: ConnectionEnd | None = None

    def send_text(self, text: str) -> bool:
        self.waiting += self.peer.receive(self.street.clock.now_ns(), "text", text.encode())
        return True

    def ping(self, payload: bytes) -> None:
        self.waiting += self.peer.receive(self.street.clock.now_ns(), "ping", payload)

    def close(self, code: int, reason: str = "") -> None:
        self.closing = ConnectionEnd(code, reason)

    def abort(self) -> None:
        self.closing = ConnectionEnd(1006, "", "lost")

    def hold(self, held: bool) -> None:
        pass

    def deliver(self, now_ns: int) -> None:
        actions = [*self.waiting, *self.peer.poll(now_ns)]
        self.waiting = []
        for action in actions:
            if isinstance(action, SendFrame):
                self.handler.frame(int(Kind.BINARY if action.binary else Kind.TEXT), now_ns, action.payload)
            elif isinstance(action, SendPong):
                self.handler.pong(now_ns, action.payload)
            elif isinstance(action, SendClose):
                self.closing = ConnectionEnd(action.code, action.reason)
            elif isinstance(action, DropConnection):
                self.closing = ConnectionEnd(1006, "", "lost")
        if self.closing is not None:
            self.end(self.closing)

    def end(self, end: ConnectionEnd) -> None:
        self.peer.disconnect()
        self.street.lines.remove(self)
        self.handler.closed(self.street.clock.now_ns(), end)


class Street:
    """A run of kcs against one simulated exchange; `notes` are the records of its capture."""

    def __init__(self, faults: str = "", *, connections: int = 1, seconds: float) -> None:
        self.clock = VirtualClock(START_NS)
        self.log = SimFaultLog()
        settings = SimSettings(seed=7, rate=60, markets=MARKETS, channels=CHANNELS, faults=parse_faults(faults))
        self.exchange = UpbitExchange(settings, None, self.log)
        place = venue("upbit")
        self.pipeline = Pipeline(place.name, place.adapter(), NullSink(), Ledger())
        self.pipeline.start(b"12345678")
        self.notes: list[tuple[int, int, int, Any, bytes]] = []
        self.lines: list[Line] = []
        self.logs: list[str] = []
        rng, pace = random.Random(1), ConnectPace(5.0)

        def new_slot(stream: int, subscription: Subscription, first: bool) -> Slot:
            session = Session(place, subscription, rng, stream=stream, settings=SessionSettings(), pace=pace)
            return Slot(
                session,
                self,  # type: ignore[arg-type]
                self.pipeline,
                self.dial,  # type: ignore[arg-type]
                self.clock,
                lambda level, text: self.logs.append(text),
                self.crash,
                lambda: None,
            )

        self.lanes = Lanes(new_slot, place.limits, rng, lambda level, text: self.logs.append(text))
        self.lanes.begin((Subscription(CHANNELS, MARKETS, "DEFAULT"),), connections)
        asyncio.run(self.run(seconds))

    async def run(self, seconds: float) -> None:
        self.lanes.start(START_NS)
        await settle(4)
        for _ in range(round(seconds * S / TICK_NS)):
            self.clock.advance(TICK_NS)
            now_ns = self.clock.now_ns()
            for line in list(self.lines):
                line.deliver(now_ns)
            self.lanes.tick(now_ns)
            await settle(2)
        self.lanes.stop(self.clock.now_ns())
        for line in list(self.lines):
            line.deliver(self.clock.now_ns())
        await settle(4)
        assert self.lanes.finished

    async def dial(self, handler: Handler) -> Line:
        now_ns = self.clock.now_ns()
        line = Line(self, handler, self.exchange.connect(now_ns))
        self.lines.append(line)
        handler.opened(line, now_ns)  # type: ignore[arg-type]
        return line

    def crash(self, error: BaseException) -> None:
        raise error

    # The recorder.

    def frame(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        self.notes.append((kind, stream, recv_ns, None, payload))
        self.pipeline.feed(stream, recv_ns, payload)

    def control(self, kind: int, stream: int, recv_ns: int, fields: Any, payload: bytes = b"") -> None:
        self.notes.append((kind, stream, recv_ns, fields, payload))
        self.pipeline.control(kind, stream, recv_ns, fields, payload)

    def sent(self, stream: int, recv_ns: int, text: str) -> None:
        self.notes.append((int(Kind.SENT), stream, recv_ns, None, text.encode()))
        self.pipeline.control(Kind.SENT, stream, recv_ns, None, text.encode())

    # What came of it.

    @property
    def gaps(self) -> list[GapFields]:
        return [fields for _, _, _, fields, _ in self.notes if isinstance(fields, GapFields)]

    def lost(self, fault: str) -> list[tuple[int, str]]:
        """(when, market) of each frame that never came because of it."""
        entries = [entry for entry in self.log.of(fault) if entry.frames_lost]
        return [(self.exchange.start_ns + entry.at_ns, entry.market) for entry in entries]

    def replayed(self) -> str:
        """The digest of the records fed alone into a fresh pipeline, as replay does."""
        place = venue("upbit")
        pipeline = Pipeline(place.name, place.adapter(), NullSink(), Ledger())
        pipeline.start(b"12345678")
        for kind, stream, recv_ns, fields, payload in self.notes:
            if kind in (Kind.TEXT, Kind.BINARY):
                pipeline.feed(stream, recv_ns, payload)
            else:
                pipeline.control(kind, stream, recv_ns, fields, payload)
        return pipeline.digest()


def named(at_ns: int, market: str, gaps: list[GapFields]) -> bool:
    """Does a gap say that this frame may be missing? What is due between two ticks arrives at the second."""
    return any(gap.from_ns <= at_ns + TICK_NS and at_ns <= gap.to_ns and market in gap.markets for gap in gaps)


def test_one_silent_market_is_noticed_and_its_gap_is_what_was_lost() -> None:
    street = Street("market_silent=KRW-ETH:60s@at:450s", seconds=560)
    lost = street.lost("market_silent")
    assert len(lost) > 100
    assert {market for _, market in lost} == {"KRW-ETH"}
    (gap,) = gaps = street.gaps
    assert (gap.cause, gap.markets, gap.covered_by) == ("market_silence", ("KRW-ETH",), None)
    assert all(named(at_ns, market, gaps) for at_ns, market in lost)
    assert gap.from_ns <= lost[0][0], "from the last frame before"
    assert lost[0][0] - gap.from_ns < 3 * S
    assert 0 <= gap.to_ns - lost[-1][0] < 3 * S, "to the first frame after"
    sent = [recv_ns for kind, _, recv_ns, _, payload in street.notes if kind == Kind.SENT and payload != b"PING"]
    assert len(sent) == 2
    assert 20 * S < sent[1] - lost[0][0] < 26 * S, "asked for again once its rhythm was broken for 20 s"
    assert sum("KRW-ETH" in text and "asking for all again" in text for text in street.logs) == 1
    assert street.replayed() == street.pipeline.digest()


def test_a_subscription_that_died_is_brought_back_by_asking_again() -> None:
    """As a venue that forgot one market of a subscription: without another request it would never come back."""
    street = Street("market_silent=KRW-XRP:21s@at:450s", seconds=500)
    (gap,) = street.gaps
    asked_ns = [recv_ns for kind, _, recv_ns, _, payload in street.notes if kind == Kind.SENT and payload != b"PING"][1]
    assert gap.markets == ("KRW-XRP",)
    assert gap.to_ns - asked_ns <= 2 * S, "the snapshot that was asked for ends it"


def test_a_silent_socket_is_left_and_its_gap_names_all_markets() -> None:
    street = Street("silent_stall=70s@at:100s", seconds=200)
    lost = street.lost("silent_stall")
    assert len(lost) > 500
    gaps = street.gaps
    assert all(named(at_ns, market, gaps) for at_ns, market in lost)
    assert [(gap.cause, gap.markets) for gap in gaps] == [("silence", MARKETS)]
    closes = [fields.cause for kind, _, _, fields, _ in street.notes if kind == Kind.CLOSE]
    assert closes == ["silence", "stop"]
    assert street.replayed() == street.pipeline.digest()


@pytest.mark.parametrize("fault", ["close_code=1012@every:40s", "close_code=1006@every:40s"])
def test_connections_that_end_leave_gaps_that_name_all_markets(fault: str) -> None:
    street = Street(fault, seconds=150)
    assert [(gap.cause, gap.markets) for gap in street.gaps] == [("disconnect", MARKETS)] * 3
    assert all(0 < gap.to_ns - gap.from_ns < 3 * S for gap in street.gaps)
    assert street.replayed() == street.pipeline.digest()


def trades(street: Street) -> dict[bytes, int]:
    """Trade -> when it first came."""
    found: dict[bytes, int] = {}
    for kind, _, recv_ns, _, payload in street.notes:
        if kind in (Kind.TEXT, Kind.BINARY) and payload.startswith(b'{"type":"trade"'):
            trade_id = payload[payload.index(b'"sequential_id":') :].split(b",")[0]
            found.setdefault(trade_id, recv_ns)
    return found


def missed(street: Street, whole: Street) -> list[int]:
    """When the trades happened that no connection brought."""
    brought = trades(street)
    return [at_ns for trade_id, at_ns in trades(whole).items() if trade_id not in brought]


def test_what_two_breaking_connections_miss_lies_in_gaps_that_nobody_covers() -> None:
    fault = "close_code=1006@every:7s@40%"
    whole, alone = Street(seconds=150), Street(fault, seconds=150)
    both = Street(fault, connections=2, seconds=150)
    uncovered = [gap for gap in both.gaps if gap.covered_by is None]
    assert len(uncovered) < len(both.gaps)
    assert all(named(at_ns, "KRW-BTC", uncovered) for at_ns in missed(both, whole))
    assert len(missed(both, whole)) < len(missed(alone, whole))
    gaps = alone.gaps
    assert all(named(at_ns, "KRW-BTC", gaps) for at_ns in missed(alone, whole))
    assert both.pipeline.ledger.suppressed["trade_repeated"] > 100
    assert both.replayed() == both.pipeline.digest()


def test_drops_inside_a_connection_are_filled_by_the_other_without_a_word() -> None:
    """Upbit proves nothing, so a dropped frame leaves no trace; the second connection has it all the same."""
    whole = Street(seconds=60)
    assert len(trades(whole)) > 500
    alone = Street("drop=10%", seconds=60)
    both = Street("drop=10%", connections=2, seconds=60)
    missing_alone, missing_both = len(missed(alone, whole)), len(missed(both, whole))
    assert missing_alone > 30
    assert missing_both < missing_alone / 4
    results = both.lanes.results()
    assert all(result.saved is not None and result.saved > 30 for result in results)
    assert sum(result.saved or 0 for result in results) == both.pipeline.ledger.produced


def test_under_every_fault_at_once_the_capture_still_tells_what_live_made_of_it() -> None:
    street = Street("chaos", connections=2, seconds=120)
    assert {fault for fault, count in street.log.counts.items() if count} > {"drop", "silent_stall", "market_silent"}
    assert street.gaps
    assert street.replayed() == street.pipeline.digest()
