"""The life of one connection slot, without I/O: connect, subscribe, stay alive, notice trouble, come back, stop.

One `Session` stands for one stream of a capture and outlives its connections. Its owner tells it what happened
(`opened`, `frame`, `pong`, `closed`, `connect_failed`, `tick`) with the time in ns since the Unix epoch, and carries
out the actions it returns (actions.py), in order. It reads no clock, opens no socket and draws randomness only from
the generator passed in, so the same calls give the same actions. Not thread-safe. It raises nothing of its own.

What it writes to the capture: `open` when a connection was made (`cause`: `start`, or why the one before ended),
`close` when it ended (`cause`: `remote`, `lost`, `oversize`, `protocol_error`, `ping_timeout`, `silence`, `stop`, ...),
and one `gap` for each time without data: from the last frame's receive time (where there never was one, from the
opening) to the first frame after the next opening, written *before* that frame, because a gap resets what the parser
knows and that frame may be the snapshot that proves the state whole again. `cause` is `disconnect`, `silence` or, at
the start of a run that follows an earlier capture, `collector_down`. A gap that is still open at the stop ends there.

Silence is judged by frames that carry events (`on_market`, `on_data`), because a venue's heartbeat goes on while a
subscription is dead. A stream that is quiet by nature (its snapshot, then nothing) would be reopened for ever, so each
reconnection that brought no more than that doubles the patience, up to `PATIENCE_MAX` times.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    gap_record,
    open_record,
)
from kcs.live.backoff import Backoff, BackoffSettings, ConnectPace, floor_ns
from kcs.live.keepalive import NEVER_NS, Outbox, Pinger
from kcs.model import CloseFields, GapFields, OpenFields

CLOSE_GOING_AWAY: Final = 1001
PATIENCE_MAX: Final = 8
MARKETS_NAMED_MAX: Final = 20
MARKETS_MAX: Final = 65_536
"""Markets whose last event is remembered: names come from outside, no venue has a tenth of this."""


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
    """What the venue does not say. `silent_after_s`: a market that has delivered nothing by then is reported."""

    backoff: BackoffSettings = field(default_factory=BackoffSettings)
    silent_after_s: float = 15.0


class Session:
    """See the module docstring. `url` may point away from the venue's own (a simulator)."""

    __slots__ = (
        "_backoff",
        "_close_cause",
        "_due_ns",
        "_fresh",
        "_gap_cause",
        "_gap_from_ns",
        "_healthy_ns",
        "_opened_ns",
        "_outbox",
        "_pace",
        "_patience",
        "_pinger",
        "_reserved",
        "_settings",
        "_stopping",
        "_ticket",
        "_told_silent",
        "connect_failures",
        "frames",
        "gaps",
        "last_data_ns",
        "last_frame_ns",
        "markets",
        "opens",
        "phase",
        "stream",
        "subscription",
        "url",
        "venue",
    )

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
        self.gaps = 0
        self.connect_failures: dict[str, int] = {}
        self.last_frame_ns: int | None = None
        self.last_data_ns = 0
        self.markets: dict[str, int] = {}
        """Market -> time of its last event; at most `MARKETS_MAX`."""
        self._settings = settings or SessionSettings()
        self._backoff = Backoff(self._settings.backoff, rng)
        self._pace = pace or ConnectPace(venue.limits.connects_per_s)
        self._healthy_ns = int(self._settings.backoff.healthy_s * NS_PER_S)
        self._ticket = f"kcs-{rng.getrandbits(48):012x}"
        self._due_ns = NEVER_NS
        self._reserved = False
        self._stopping = False
        self._fresh = False
        self._opened_ns = 0
        self._close_cause: str | None = None
        self._gap_from_ns = down_since_ns
        self._gap_cause = "collector_down"
        self._patience = 1
        self._pinger = Pinger(venue.heartbeat)
        self._outbox = Outbox(venue.limits)
        self._told_silent = False

    # What the owner asks for.

    def start(self, now_ns: int) -> Sequence[Action]:
        """Begin connecting."""
        self.phase = Phase.WAITING
        self._due_ns = now_ns
        return self.tick(now_ns)

    def stop(self, now_ns: int) -> Sequence[Action]:
        """End for good: close cleanly (1000) when open. `finished` becomes True now or with the next event."""
        self._stopping = True
        if self.phase is Phase.OPEN:
            return self._close("stop", CLOSE_NORMAL, "")
        if self.phase is Phase.CONNECTING:
            return [CloseConnection(CLOSE_NORMAL)]
        if self.phase in (Phase.IDLE, Phase.WAITING):
            return self._finish(now_ns)
        return NO_ACTIONS

    def subscribe(self, subscription: Subscription, now_ns: int) -> Sequence[Action]:
        """Change what the stream delivers: the full new list goes out now or when the venue's limit allows."""
        self.subscription = subscription
        self._told_silent = False
        if self.phase is not Phase.OPEN:
            return NO_ACTIONS
        self._outbox.replace(self._requests())
        return self.tick(now_ns)

    @property
    def rtt_ns(self) -> int | None:
        """Round trip of the last ping that was answered."""
        return self._pinger.rtt_ns

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
        self.phase = Phase.OPEN
        self._fresh = True
        self._opened_ns = self.last_data_ns = now_ns
        self._close_cause = None
        self._pinger.opened(now_ns)
        self._outbox.opened(now_ns, self._requests(), self.venue.heartbeat.texts_after_subscribe)
        actions: list[Action] = [
            open_record(now_ns, OpenFields(self.url, cause, self.frames)),
            Log("info", f"stream {self.stream}: connected to {self.url}"),
        ]
        if self._stopping:
            return [*actions, *self._close("stop", CLOSE_NORMAL, "")]
        return [*actions, *self.tick(now_ns)]

    def frame(self, recv_ns: int) -> Sequence[Action]:
        """A data frame arrived; call *before* it is captured. HOT."""
        self.frames += 1
        self.last_frame_ns = recv_ns
        if self._fresh:
            self._fresh = False
            if self._gap_from_ns is not None:
                return self._end_gap(recv_ns)
        return NO_ACTIONS

    def on_market(self, market: str, recv_ns: int) -> None:
        """The frame carried an event of this market. HOT."""
        self.last_data_ns = recv_ns
        markets = self.markets
        if market in markets or len(markets) < MARKETS_MAX:
            markets[market] = recv_ns

    def on_data(self, recv_ns: int) -> None:
        """The frame was data of the venue, though it cannot be said of which market."""
        self.last_data_ns = recv_ns

    def pong(self, now_ns: int, payload: bytes) -> None:
        """A pong arrived."""
        self._pinger.pong(now_ns, payload)

    def closed(self, now_ns: int, end: ConnectionEnd) -> Sequence[Action]:
        """The connection is gone: record it, begin a gap, plan the next one."""
        cause = self._close_cause or end.cause
        self._close_cause = cause
        actions: list[Action] = [close_record(now_ns, CloseFields(end.code, end.reason, cause, self.frames))]
        if cause != "silence":
            self._patience = 1
        if self._gap_from_ns is None and cause != "stop":
            self._begin_gap(cause)
        if self._stopping:
            return [*actions, *self._finish(now_ns)]
        if not self._fresh and now_ns - self._opened_ns >= self._healthy_ns:
            self._backoff.reset()
        delay_ns = self._retry(now_ns, 0)
        reason = f" ({end.reason})" if end.reason else ""
        told = f"connection ended: {cause}, code {end.code}{reason}; next attempt in {delay_ns / NS_PER_S:.1f} s"
        actions.append(Log("warning", f"stream {self.stream}: {told}"))
        return actions

    def connect_failed(self, now_ns: int, failure: ConnectFailure) -> Sequence[Action]:
        """No connection came about: try again later, much later when the server said so."""
        if self._stopping:
            return self._finish(now_ns)
        slug = failure.slug
        self.connect_failures[slug] = self.connect_failures.get(slug, 0) + 1
        delay_ns = self._retry(now_ns, floor_ns(failure))
        detail = f" ({failure.detail})" if failure.detail else ""
        told = f"cannot connect to {self.url}: {slug}{detail}; next attempt in {delay_ns / NS_PER_S:.1f} s"
        return [Log("warning", f"stream {self.stream}: {told}")]

    # Time.

    @property
    def next_due_ns(self) -> int:
        """When `tick` has something to do; `NEVER_NS` when only events can change anything."""
        if self.phase is Phase.WAITING:
            return self._due_ns
        if self.phase is not Phase.OPEN:
            return NEVER_NS
        silence_ns = self.last_data_ns + self._silence_max_ns()
        return min(self._pinger.next_due_ns, self._outbox.next_due_ns, silence_ns, self._silent_due_ns())

    def tick(self, now_ns: int) -> Sequence[Action]:
        """Do what is due. Calling it early or often does no harm."""
        if self.phase is Phase.WAITING:
            return self._try_connect(now_ns)
        if self.phase is not Phase.OPEN:
            return NO_ACTIONS
        if self._pinger.overdue(now_ns):
            return self._close("ping_timeout", CLOSE_GOING_AWAY, "no pong")
        if now_ns >= self.last_data_ns + self._silence_max_ns():
            return self._close_silent()
        actions: list[Action] = []
        text = self._outbox.due(now_ns)
        if text is not None:
            actions.append(SendText(text))
        ping = self._pinger.due(now_ns)
        if ping is not None:
            actions.append(SendPing(ping))
        if now_ns >= self._silent_due_ns():
            self._told_silent = True
            actions += self._tell_silent(now_ns)
        return actions

    def silent_markets(self, now_ns: int) -> tuple[str, ...]:
        """Markets subscribed at least `silent_after_s` ago that never delivered anything.

        Venues ignore codes that they do not know without a word; this is how a wrong one shows.
        """
        since_ns = self._outbox.subscribed_ns
        if since_ns is None or now_ns < since_ns + int(self._settings.silent_after_s * NS_PER_S):
            return ()
        return tuple(market for market in self.subscription.markets if market not in self.markets)

    # Leaves.

    def _requests(self) -> list[str]:
        return self.venue.subscribe(self.subscription, self._ticket)

    def _try_connect(self, now_ns: int) -> Sequence[Action]:
        if now_ns < self._due_ns:
            return NO_ACTIONS
        if not self._reserved:
            self._reserved = True
            self._due_ns = self._pace.reserve(now_ns)
            if self._due_ns > now_ns:
                return NO_ACTIONS
        self._reserved = False
        self.phase = Phase.CONNECTING
        return [Connect(self.url)]

    def _retry(self, now_ns: int, least_ns: int) -> int:
        delay_ns = max(self._backoff.next_ns(), least_ns)
        self._due_ns = now_ns + delay_ns
        self.phase = Phase.WAITING
        return delay_ns

    def _close(self, cause: str, code: int, reason: str) -> list[Action]:
        self._close_cause = cause
        self.phase = Phase.CLOSING
        actions: list[Action] = [CloseConnection(code, reason)]
        if cause != "stop":
            actions.insert(0, Log("warning", f"stream {self.stream}: closing the connection: {cause}"))
        return actions

    def _close_silent(self) -> list[Action]:
        lived_ns = self.last_data_ns - self._opened_ns
        lively = lived_ns > self._silence_max_ns()
        self._patience = 1 if lively else min(PATIENCE_MAX, 2 * self._patience)
        return self._close("silence", CLOSE_GOING_AWAY, "no data")

    def _finish(self, now_ns: int) -> Sequence[Action]:
        self.phase = Phase.STOPPED
        return NO_ACTIONS if self._gap_from_ns is None else self._end_gap(now_ns)

    def _begin_gap(self, cause: str) -> None:
        if cause == "silence":
            self._gap_from_ns, self._gap_cause = self.last_data_ns, "silence"
        else:
            self._gap_from_ns = self._opened_ns if self.last_frame_ns is None else self.last_frame_ns
            self._gap_cause = "disconnect"

    def _end_gap(self, to_ns: int) -> Sequence[Action]:
        assert self._gap_from_ns is not None
        # The wall clock of an earlier run may have been ahead of this one's.
        from_ns = min(self._gap_from_ns, to_ns)
        self._gap_from_ns = None
        self.gaps += 1
        lost_s = (to_ns - from_ns) / NS_PER_S
        return [
            gap_record(to_ns, GapFields(from_ns, to_ns, self._gap_cause)),
            Log("warning", f"stream {self.stream}: gap of {lost_s:.3f} s ({self._gap_cause})"),
        ]

    def _tell_silent(self, now_ns: int) -> list[Action]:
        silent = self.silent_markets(now_ns)
        if not silent:
            return []
        more = f" and {len(silent) - MARKETS_NAMED_MAX} more" if len(silent) > MARKETS_NAMED_MAX else ""
        names = ", ".join(silent[:MARKETS_NAMED_MAX]) + more
        return [Log("warning", f"stream {self.stream}: nothing yet from {names}: do these markets exist?")]

    def _silence_max_ns(self) -> int:
        return int(self.venue.heartbeat.silence_max_s * NS_PER_S) * self._patience

    def _silent_due_ns(self) -> int:
        since_ns = self._outbox.subscribed_ns
        if self._told_silent or since_ns is None:
            return NEVER_NS
        return since_ns + int(self._settings.silent_after_s * NS_PER_S)
