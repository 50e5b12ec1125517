"""The life of one connection slot, without I/O: connect, subscribe, stay alive, notice trouble, come back, stop.

One `Session` stands for one stream of a capture and outlives its connections. Its owner tells it what happened
(`opened`, `frame`, `pong`, `closed`, `connect_failed`, `tick`) with the time in ns since the Unix epoch, and carries
out the actions it returns (actions.py), in order. It reads no clock, opens no socket and draws randomness only from
the generator passed in, so the same calls give the same actions. Not thread-safe. It raises nothing of its own.

What it writes to the capture: `open` when a connection was made (`cause`: `start`, or why the one before ended),
`close` when it ended (`cause`: `remote`, `lost`, `oversize`, `protocol_error`, `ping_timeout`, `silence`, `stop`, ...),
and one `gap` for each time without data (gaps.py): from the last frame's receive time (where there never was one, from
the opening) to the first frame after the next opening, written *before* that frame. `cause` is `disconnect`, `silence`
or, at the start of a run that follows an earlier capture, `collector_down`. A gap that is still open at the stop ends
there.

Silence is judged by frames that carry events (`on_market`, `on_data`), because a venue's heartbeat goes on while a
subscription is dead. A stream that is quiet by nature (its snapshot, then nothing) would be reopened for ever, so each
reconnection that brought no more than that doubles the patience (keepalive.py). One market that falls
silent while the others go on (hearing.py) is named, the full subscription is sent again, and the frame with which it
speaks again ends a gap `market_silence` of that market: while `silent` names any, the owner says by `speaks` whose
frame it has.

A stream may have `twins`: other streams of the same subscription. A gap says which of them delivered all the while.
The same subscription may be handed from one stream to another (lane.py): the new one starts on `trial`, which never
has gaps, until `take_over`; the old one stops with cause `planned`. A session that has stopped may start again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import Final

from kcs.clock import NS_PER_S
from kcs.exchanges.base import Subscription, Venue
from kcs.live.actions import (
    CLOSE_NORMAL,
    NO_ACTIONS,
    Action,
    CloseConnection,
    Connect,
    ConnectFailure,
    ConnectionEnd,
    Log,
    SendPing,
    SendText,
    close_record,
    open_record,
)
from kcs.live.backoff import Attempts, BackoffSettings, ConnectPace, floor_ns
from kcs.live.gaps import GapBook
from kcs.live.hearing import Hearing, Silence, told
from kcs.live.keepalive import NEVER_NS, Outbox, Pinger, Quiet
from kcs.live.rhythm import RhythmSettings
from kcs.model import CloseFields, OpenFields

CLOSE_GOING_AWAY: Final = 1001
HABIT_LEAST_NS: Final = NS_PER_S
"""A twin that has said nothing for less than this is delivering, whatever its habit."""

CLEAN: Final = frozenset(("stop", "planned", "abandoned"))
"""Causes of closing with which no data is missed."""


class Phase(Enum):
    """Where a session stands."""

    IDLE = auto()
    WAITING = auto()
    CONNECTING = auto()
    OPEN = auto()
    CLOSING = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What the venue does not say. `silent_after_s`: a market that has delivered nothing by then is reported.

    `ask_again_every_s`: silent markets make the subscription be sent again at most so often.
    """

    backoff: BackoffSettings = field(default_factory=BackoffSettings)
    rhythm: RhythmSettings = field(default_factory=RhythmSettings)
    silent_after_s: float = 15.0
    ask_again_every_s: float = 10.0


class Session:
    """See the module docstring. `url` may point away from the venue's own (a simulator)."""

    __slots__ = (
        "_attempts", "_close_cause", "_first_ns", "_fresh", "_gap", "_hearing", "_opened_ns", "_outbox", "_pinger",
        "_quiet", "_settings", "_stop_cause", "_ticket", "_told_silent", "_trial", "connect_failures", "frames",
        "last_frame_ns", "markets", "on_data", "on_market", "opens", "phase", "reconnects", "silent", "stream",
        "subscription", "twins", "url", "venue",
    )  # fmt: skip

    def __init__(
        self,
        venue: Venue,
        subscription: Subscription,
        rng: Random,
        *,
        stream: int = 0,
        url: str | None = None,
        settings: SessionSettings | None = None,
        pace: ConnectPace | None = None,
        down_since_ns: int | None = None,
    ) -> None:
        """`pace` is shared by all sessions of a venue; `down_since_ns` is the last record of an earlier capture."""
        self.venue = venue
        self.subscription = subscription
        self.stream = stream
        self.url = url or venue.url
        self.phase = Phase.IDLE
        self.frames = 0
        """Data frames so far, over all connections."""
        self.opens = 0
        self.reconnects = 0
        """Openings after a connection that was lost."""
        self.connect_failures: dict[str, int] = {}
        self.last_frame_ns: int | None = None
        self.twins: tuple[Session, ...] = ()
        """Other streams of the same subscription."""
        self._settings = settings or SessionSettings()
        self._hearing = Hearing(self._settings.rhythm, subscription.markets)
        self.markets: Mapping[str, int] = self._hearing.markets
        """Market -> time of its last event."""
        self.on_market = self._hearing.on_market
        """on_market(market, recv_ns): the frame carried an event of this market. HOT."""
        self.on_data = self._hearing.on_data
        """on_data(recv_ns): the frame was data of the venue, though it cannot be said of which market."""
        self.silent: Mapping[str, Silence] = self._hearing.silent
        """Markets that have fallen silent: while there are any, `speaks` must be told before their frames."""
        self._attempts = Attempts(self._settings.backoff, rng, pace or ConnectPace(venue.limits.connects_per_s))
        self._ticket = f"kcs-{rng.getrandbits(48):012x}"
        self._stop_cause = ""
        self._trial = False
        self._fresh = False
        self._opened_ns = self._first_ns = 0
        self._close_cause: str | None = None
        self._gap = GapBook(stream, self._twin_of)
        if down_since_ns is not None:
            self._gap.begin(down_since_ns, "collector_down", subscription.markets)
        self._quiet = Quiet(venue.heartbeat)
        self._pinger = Pinger(venue.heartbeat)
        self._outbox = Outbox(venue.limits)
        self._told_silent = False

    # What the owner asks for.

    def start(self, now_ns: int, *, trial: bool = False) -> Sequence[Action]:
        """Begin connecting, for the first time or after a stop. `trial`: another stream delivers until `take_over`."""
        self.phase = Phase.WAITING
        self._attempts.begin_at(now_ns)
        self._stop_cause = ""
        self._trial = trial
        self._close_cause = "planned" if trial else None
        return self.tick(now_ns)

    def stop(self, now_ns: int, cause: str = "stop") -> Sequence[Action]:
        """End: close cleanly (1000) when open. `finished` becomes True now or with the next event.

        `cause` is of `CLEAN`: `planned` when a twin has taken over, `abandoned` for a trial that came to nothing.
        """
        self._stop_cause = cause
        if self.phase is Phase.OPEN:
            return self._close(cause, CLOSE_NORMAL, "")
        if self.phase is Phase.CONNECTING:
            return [CloseConnection(CLOSE_NORMAL)]
        if self.phase in (Phase.IDLE, Phase.WAITING):
            return self._finish(now_ns)
        return NO_ACTIONS

    def subscribe(self, subscription: Subscription, now_ns: int) -> Sequence[Action]:
        """Change what the stream delivers: the full new list goes out now or when the venue's limit allows."""
        self.subscription = subscription
        self._told_silent = False
        self._gap.widen(subscription.markets)
        actions: list[Action] = []
        for market, silence in self._hearing.watch(subscription.markets, now_ns, self.frames):
            actions += self._gap.of_market(market, silence.from_ns, now_ns)
        if self.phase is Phase.OPEN:
            self._outbox.replace(self._requests())
            actions += self.tick(now_ns)
        return actions

    def take_over(self, other: Session) -> None:
        """The trial is over: this stream delivers what `other` did, and knows what that one learned."""
        self._trial = False
        self._told_silent = self._told_silent or other._told_silent
        self._hearing.adopt(other._hearing, self.frames)

    @property
    def rtt_ns(self) -> int | None:
        """Round trip of the last ping that was answered."""
        return self._pinger.rtt_ns

    @property
    def gaps(self) -> int:
        """Gaps written so far, those of single markets included."""
        return self._gap.count

    @property
    def gaps_covered(self) -> int:
        """Those among them that a twin covered."""
        return self._gap.covered

    @property
    def last_data_ns(self) -> int:
        """When the venue last said something that is no heartbeat; the opening when it has not yet."""
        return self._hearing.last_data_ns

    @property
    def delivering(self) -> bool:
        """True once this connection has brought an event, while it is open."""
        return self.phase is Phase.OPEN and self._hearing.market_ns >= 0

    def has_met(self, new: Session) -> bool:
        """May `new`, which is delivering, take over? Once this one has brought data after it, or is no longer open."""
        return self.phase is not Phase.OPEN or self.last_data_ns >= new._first_ns

    @property
    def opened_ns(self) -> int:
        """When the last connection was made; 0 when there was none."""
        return self._opened_ns

    @property
    def finished(self) -> bool:
        """True after `stop`, once nothing more will come."""
        return self.phase is Phase.STOPPED

    @property
    def is_open(self) -> bool:
        """True while a connection exists, its closing handshake included: its `open` has no `close` yet."""
        return self.phase is Phase.OPEN or self.phase is Phase.CLOSING

    def continued(self) -> OpenFields:
        """The open record that a rotated file begins with while this stream `is_open`."""
        return OpenFields(self.url, "continued", self.frames, True)

    # What the owner reports.

    def opened(self, now_ns: int) -> Sequence[Action]:
        """The handshake succeeded: subscribe."""
        cause = "start" if self._close_cause is None else self._close_cause
        self.opens += 1
        self.reconnects += cause not in ("start", "planned")
        self.phase = Phase.OPEN
        self._fresh = True
        self._opened_ns = now_ns
        self._close_cause = None
        self._hearing.opened(now_ns, self.frames)
        self._pinger.opened(now_ns)
        self._outbox.opened(now_ns, self._requests(), self.venue.heartbeat.texts_after_subscribe)
        actions: list[Action] = [
            open_record(now_ns, OpenFields(self.url, cause, self.frames)),
            Log("info", f"stream {self.stream}: connected to {self.url}"),
        ]
        if self._stop_cause:
            return [*actions, *self._close(self._stop_cause, CLOSE_NORMAL, "")]
        return [*actions, *self.tick(now_ns)]

    def frame(self, recv_ns: int) -> Sequence[Action]:
        """A data frame arrived; call *before* it is captured. HOT."""
        self.frames += 1
        self.last_frame_ns = recv_ns
        if self._fresh:
            self._fresh = False
            self._first_ns = recv_ns
            if self._gap.is_open:
                return self._end_gap(recv_ns)
        return NO_ACTIONS

    def speaks(self, market: str, recv_ns: int) -> Sequence[Action]:
        """The frame at hand carries an event of this market; after `frame`, before it is captured, while `silent`."""
        silence = self._hearing.speaks(market, recv_ns, self.frames)
        return NO_ACTIONS if silence is None else self._gap.of_market(market, silence.from_ns, recv_ns)

    def pong(self, now_ns: int, payload: bytes) -> None:
        """A pong arrived."""
        self._pinger.pong(now_ns, payload)

    def closed(self, now_ns: int, end: ConnectionEnd) -> Sequence[Action]:
        """The connection is gone: record it, begin a gap, plan the next one."""
        cause = self._close_cause or end.cause
        self._close_cause = cause
        actions: list[Action] = [close_record(now_ns, CloseFields(end.code, end.reason, cause, self.frames))]
        if cause != "silence":
            self._quiet.reset()
        if cause not in CLEAN and not self._trial:
            self._begin_gap(cause)
        if self._stop_cause:
            return [*actions, *self._finish(now_ns)]
        if not self._fresh:
            self._attempts.ended(now_ns - self._opened_ns)
        reason = f" ({end.reason})" if end.reason else ""
        return [*actions, self._retry(now_ns, 0, f"connection ended: {cause}, code {end.code}{reason}")]

    def connect_failed(self, now_ns: int, failure: ConnectFailure) -> Sequence[Action]:
        """No connection came about: try again later, much later when the server said so."""
        if self._stop_cause:
            return self._finish(now_ns)
        slug = failure.slug
        self.connect_failures[slug] = self.connect_failures.get(slug, 0) + 1
        detail = f" ({failure.detail})" if failure.detail else ""
        return [self._retry(now_ns, floor_ns(failure), f"cannot connect to {self.url}: {slug}{detail}")]

    # Time.

    @property
    def next_due_ns(self) -> int:
        """When `tick` has something to do; `NEVER_NS` when only events can change anything."""
        if self.phase is Phase.WAITING:
            return self._attempts.due_ns
        if self.phase is not Phase.OPEN:
            return NEVER_NS
        silence_ns = self.last_data_ns + self._quiet.most_ns
        alive_ns = min(self._pinger.next_due_ns, self._outbox.next_due_ns)
        return min(alive_ns, silence_ns, self._look_due_ns(), self._silent_due_ns())

    def tick(self, now_ns: int) -> Sequence[Action]:
        """Do what is due. Calling it early or often does no harm."""
        if self.phase is Phase.WAITING:
            if self._attempts.may_begin(now_ns):
                self.phase = Phase.CONNECTING
                return [Connect(self.url)]
            return NO_ACTIONS
        if self.phase is not Phase.OPEN:
            return NO_ACTIONS
        if self._pinger.overdue(now_ns):
            return self._close("ping_timeout", CLOSE_GOING_AWAY, "no pong")
        if now_ns >= self.last_data_ns + self._quiet.most_ns:
            self._quiet.spent(self.last_data_ns - self._opened_ns)
            return self._close("silence", CLOSE_GOING_AWAY, "no data")
        actions: list[Action] = []
        if now_ns >= self._look_due_ns():
            actions += self._look(now_ns)
        text = self._outbox.due(now_ns)
        if text is not None:
            actions.append(SendText(text))
        ping = self._pinger.due(now_ns)
        if ping is not None:
            actions.append(SendPing(ping))
        if now_ns >= self._silent_due_ns():
            self._told_silent = True
            if silent := self.silent_markets(now_ns):
                actions.append(self._warn(f"nothing yet from {told(silent)}: do these markets exist?"))
        return actions

    def silent_markets(self, now_ns: int) -> tuple[str, ...]:
        """Markets subscribed at least `silent_after_s` ago that never delivered anything.

        Venues ignore codes that they do not know without a word; this is how a wrong one shows.
        """
        since_ns = self._outbox.subscribed_ns
        if since_ns is None or now_ns < since_ns + int(self._settings.silent_after_s * NS_PER_S):
            return ()
        return self._hearing.unheard()

    def delivers(self, from_ns: int, to_ns: int, market: str | None) -> bool:
        """Was this stream open and delivering (this market, or all) from `from_ns` until `to_ns`, which is now?

        What a connection delivers, it delivers without a hole: so it must be one connection, which had begun to
        deliver by then and is not silent. If it turns out that it was dead already, its own gap will say so.
        """
        if self.phase is not Phase.OPEN or self._fresh or self._first_ns > from_ns:
            return False
        if self._hearing.has_been_silent(from_ns, market):
            return False
        if market is not None:
            return self.markets.get(market, 0) > from_ns
        habit_ns = min(max(HABIT_LEAST_NS, 2 * self._hearing.habit_ns), self._quiet.most_ns // 2)
        return to_ns - self.last_data_ns <= habit_ns

    # Leaves.

    def _twin_of(self, from_ns: int, to_ns: int, market: str | None) -> int | None:
        return next((twin.stream for twin in self.twins if twin.delivers(from_ns, to_ns, market)), None)

    def _look(self, now_ns: int) -> list[Action]:
        """Which markets have fallen silent?"""
        found = self._hearing.scan(now_ns, self.frames)
        actions: list[Action] = []
        for market, silence in found.ended:
            actions += self._gap.of_market(market, silence.from_ns, now_ns)
        if found.begun:
            self._outbox.replace(self._requests(), int(self._settings.ask_again_every_s * NS_PER_S))
            first = self.silent[found.begun[0]]
            pause_s, before_s = (now_ns - first.from_ns) / NS_PER_S, first.longest_ns / NS_PER_S
            text = f"silent while others go on: {told(found.begun)} (the first for {pause_s:.0f} s, {before_s:.0f} s"
            actions.append(self._warn(f"{text} at most before); asking for all again"))
        return actions

    def _requests(self) -> list[str]:
        return self.venue.subscribe(self.subscription, self._ticket)

    def _retry(self, now_ns: int, least_ns: int, why: str) -> Log:
        self.phase = Phase.WAITING
        return self._warn(f"{why}; next attempt in {self._attempts.retry(now_ns, least_ns):.1f} s")

    def _warn(self, text: str) -> Log:
        return Log("warning", f"stream {self.stream}: {text}")

    def _close(self, cause: str, code: int, reason: str) -> list[Action]:
        self._close_cause = cause
        self.phase = Phase.CLOSING
        actions: list[Action] = [CloseConnection(code, reason)]
        if cause != "stop":
            level = "info" if cause in CLEAN else "warning"
            actions.insert(0, Log(level, f"stream {self.stream}: closing the connection: {cause}"))
        return actions

    def _finish(self, now_ns: int) -> Sequence[Action]:
        self.phase = Phase.STOPPED
        actions = self._end_gap(now_ns) if self._gap.is_open else []
        for market in tuple(self.silent):
            actions += self.speaks(market, now_ns)
        return actions

    def _begin_gap(self, cause: str) -> None:
        if cause == "silence":
            self._gap.begin(self.last_data_ns, "silence", self.subscription.markets)
        else:
            from_ns = self._opened_ns if self.last_frame_ns is None else self.last_frame_ns
            self._gap.begin(from_ns, "disconnect", self.subscription.markets)

    def _end_gap(self, to_ns: int) -> list[Action]:
        cause, actions = self._gap.end(to_ns)
        if cause == "collector_down":  # it was not this stream that was down
            for twin in self.twins:
                twin._gap.forget(cause)
        return actions

    def _look_due_ns(self) -> int:
        return NEVER_NS if self._trial else self._hearing.next_due_ns

    def _silent_due_ns(self) -> int:
        since_ns = self._outbox.subscribed_ns
        if self._told_silent or since_ns is None:
            return NEVER_NS
        return since_ns + int(self._settings.silent_after_s * NS_PER_S)
