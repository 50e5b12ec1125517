"""When to try again: decorrelated jitter, floors for servers that said no, and the venue's connect limit.

Sans-I/O and deterministic: time comes in as an argument, randomness from the seeded generator passed in. Times in ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from kcs.clock import NS_PER_S
from kcs.live.actions import ConnectFailure

RETRY_AFTER_MAX_S: Final = 86_400.0
"""A server may ask for at most a day; what it asks beyond that is not believed."""

_STATUS_FLOOR_S: Final = {418: 60.0, 429: 10.0, 403: 30.0}
_CLIENT_ERROR_FLOOR_S: Final = 10.0
"""Other 4xx answers come from a wrong URL or a refusal: asking again soon changes nothing and costs reputation."""


@dataclass(frozen=True, slots=True)
class BackoffSettings:
    """Seconds. After `healthy_s` of open connection with data the next delay starts from `base_s` again."""

    base_s: float = 0.25
    cap_s: float = 30.0
    healthy_s: float = 30.0


class Backoff:
    """delay = min(cap, uniform(base, 3 * previous delay)): spreads clients, and grows while a venue stays away."""

    __slots__ = ("_base_ns", "_cap_ns", "_previous_ns", "_rng")

    def __init__(self, settings: BackoffSettings, rng: Random) -> None:
        self._rng = rng
        self._base_ns = int(settings.base_s * NS_PER_S)
        self._cap_ns = int(settings.cap_s * NS_PER_S)
        self._previous_ns = self._base_ns

    def next_ns(self) -> int:
        """How long to wait before the next attempt."""
        delay_ns = self._rng.randint(self._base_ns, max(self._base_ns, 3 * self._previous_ns))
        self._previous_ns = min(self._cap_ns, delay_ns)
        return self._previous_ns

    def reset(self) -> None:
        """The last connection was a healthy one."""
        self._previous_ns = self._base_ns


def floor_ns(failure: ConnectFailure) -> int:
    """The least wait after this failure: what the server asked for, or what its status deserves; 0 for none."""
    floor_s = 0.0
    if failure.status is not None and 400 <= failure.status < 500:
        floor_s = _STATUS_FLOOR_S.get(failure.status, _CLIENT_ERROR_FLOOR_S)
    if failure.retry_after_s is not None:
        floor_s = max(floor_s, min(failure.retry_after_s, RETRY_AFTER_MAX_S))
    return int(floor_s * NS_PER_S)


class ConnectPace:
    """Connections of one venue are at least 1 / `per_s` apart, over all sessions that share this object."""

    __slots__ = ("_interval_ns", "_next_ns")

    def __init__(self, per_s: float) -> None:
        self._interval_ns = int(NS_PER_S / per_s)
        self._next_ns = 0

    def reserve(self, now_ns: int) -> int:
        """The time at which the caller may connect, now or later; the slot is taken."""
        slot_ns = max(now_ns, self._next_ns)
        self._next_ns = slot_ns + self._interval_ns
        return slot_ns


class Attempts:
    """When one session may try to connect: its back-off, and its turn among all that share the venue's pace."""

    __slots__ = ("_backoff", "_healthy_ns", "_pace", "_reserved", "due_ns")

    def __init__(self, settings: BackoffSettings, rng: Random, pace: ConnectPace) -> None:
        self._backoff = Backoff(settings, rng)
        self._healthy_ns = int(settings.healthy_s * NS_PER_S)
        self._pace = pace
        self._reserved = False
        self.due_ns = 0
        """When to ask `may_begin` again."""

    def begin_at(self, now_ns: int) -> None:
        """The first attempt of a series, at once."""
        self._backoff.reset()
        self._reserved = False
        self.due_ns = now_ns

    def may_begin(self, now_ns: int) -> bool:
        """True when the attempt begins now; it has taken its turn then."""
        if now_ns < self.due_ns:
            return False
        if not self._reserved:
            self._reserved = True
            self.due_ns = self._pace.reserve(now_ns)
            if self.due_ns > now_ns:
                return False
        self._reserved = False
        return True

    def ended(self, lived_ns: int) -> None:
        """A connection that brought frames ended after so long."""
        if lived_ns >= self._healthy_ns:
            self._backoff.reset()

    def retry(self, now_ns: int, least_ns: int = 0) -> float:
        """Plan the next attempt; in how many seconds."""
        delay_ns = max(self._backoff.next_ns(), least_ns)
        self.due_ns = now_ns + delay_ns
        return delay_ns / NS_PER_S
