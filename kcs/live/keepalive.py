"""Small clocks of a connection: pings that keep it alive, texts it may send only so fast, silence that is too long.

Sans-I/O; times are ns since the Unix epoch and come in as arguments. Owned by one `Session`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from kcs.clock import NS_PER_S
from kcs.exchanges.base import Heartbeat, Limits

NEVER_NS: Final = 1 << 63
PATIENCE_MAX: Final = 8


class Pinger:
    """At most one ping is under way; the next one follows `ping_every_s` after the one before."""

    __slots__ = ("_due_ns", "_every_ns", "_number", "_sent_ns", "_within_ns", "rtt_ns")

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._every_ns = int(heartbeat.ping_every_s * NS_PER_S)
        self._within_ns = int(heartbeat.pong_within_s * NS_PER_S)
        self._number = 0
        self._due_ns = NEVER_NS
        self._sent_ns: int | None = None
        self.rtt_ns: int | None = None
        """Round trip of the last ping that was answered."""

    def opened(self, now_ns: int) -> None:
        """A new connection: no ping is under way."""
        self._sent_ns = None
        self._due_ns = now_ns + self._every_ns

    def due(self, now_ns: int) -> bytes | None:
        """The payload of the ping to send now, or None."""
        if self._sent_ns is not None or now_ns < self._due_ns:
            return None
        self._number += 1
        self._sent_ns = now_ns
        self._due_ns = now_ns + self._every_ns
        return self._payload()

    def pong(self, now_ns: int, payload: bytes) -> None:
        """A pong came; one that answers no ping of ours is allowed and means nothing."""
        if self._sent_ns is not None and payload == self._payload():
            self.rtt_ns = now_ns - self._sent_ns
            self._sent_ns = None

    def overdue(self, now_ns: int) -> bool:
        """True when a ping was not answered in time."""
        return self._sent_ns is not None and now_ns >= self._sent_ns + self._within_ns

    @property
    def next_due_ns(self) -> int:
        """When to ask `due` or `overdue` again."""
        return self._due_ns if self._sent_ns is None else self._sent_ns + self._within_ns

    def _payload(self) -> bytes:
        return b"kcs %d" % self._number


class Outbox:
    """Texts waiting for the venue's message limit: the subscription first, then the heartbeat texts.

    A new subscription replaces what is unsent of the old one (each is the full list), so the box cannot grow.
    """

    __slots__ = ("_due_ns", "_interval_ns", "_subscription", "_subscription_due_ns", "_texts", "subscribed_ns")

    def __init__(self, limits: Limits) -> None:
        self._interval_ns = int(NS_PER_S / limits.messages_per_s)
        self._due_ns = 0
        self._subscription_due_ns = 0
        self._subscription: deque[str] = deque()
        self._texts: deque[str] = deque()
        self.subscribed_ns: int | None = None
        """When the last text of the subscription was sent on this connection."""

    def opened(self, now_ns: int, subscription: Iterable[str], texts: Iterable[str]) -> None:
        """A new connection, which has sent nothing yet."""
        self._due_ns = self._subscription_due_ns = now_ns
        self._subscription = deque(subscription)
        self._texts = deque(texts)
        self.subscribed_ns = None

    def replace(self, subscription: Iterable[str], after_ns: int = 0) -> None:
        """Another full list, sent no sooner than `after_ns` after the one before was."""
        self._subscription = deque(subscription)
        self._subscription_due_ns = 0 if self.subscribed_ns is None else self.subscribed_ns + after_ns

    def due(self, now_ns: int) -> str | None:
        """The text to send now, or None."""
        if now_ns < self.next_due_ns:
            return None
        self._due_ns = now_ns + self._interval_ns
        if not self._subscription or now_ns < self._subscription_due_ns:
            return self._texts.popleft()
        text = self._subscription.popleft()
        if not self._subscription:
            self.subscribed_ns = now_ns
        return text

    @property
    def next_due_ns(self) -> int:
        """When `due` has a text; `NEVER_NS` when nothing waits."""
        if self._texts:
            return self._due_ns
        return max(self._due_ns, self._subscription_due_ns) if self._subscription else NEVER_NS


class Quiet:
    """How long a whole stream may say nothing: `silence_max_s`, and more for one that is quiet by nature."""

    __slots__ = ("_max_ns", "_patience")

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._max_ns = int(heartbeat.silence_max_s * NS_PER_S)
        self._patience = 1

    @property
    def most_ns(self) -> int:
        """So long."""
        return self._max_ns * self._patience

    def spent(self, lived_ns: int) -> None:
        """It was silent for longer, `lived_ns` after its opening: one that brought no more than that gets twice."""
        self._patience = 1 if lived_ns > self.most_ns else min(PATIENCE_MAX, 2 * self._patience)

    def reset(self) -> None:
        """Its connection ended for another reason."""
        self._patience = 1
