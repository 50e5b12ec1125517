"""Connections side by side: several lanes for one subscription, and the renewal of each without a hole.

A **lane** is one connection's place. It has two stream numbers and uses one of them at a time: a planned renewal (the
venue's age limit, or an operator's request) opens the new connection on the other number, on trial. Once that one has
brought its first event, and the old one another after it, the old one is closed (1000, `planned`, no gap) and its
number is free for the next renewal. The frames of both are captured meanwhile; the pipeline drops what came twice. The
old one's event proves that it had delivered everything until then: it may have been dead for a while without a sign. If
it was, its own rules find that out (no pong, silence), and its gap is written as ever.

A trial that brings nothing within `TRIAL_NS` is given up (`abandoned`), and another, longer one is made later; the old
connection knows nothing of all this. Should the old one be lost during a trial, whichever delivers first goes on.

A subscription has `connections` lanes. Their streams are twins: each is captured whole, a gap of one says which other
delivered all the while, and `saved` counts what each brought first. Lanes are numbered through all subscriptions: lane
`i` of `n` has the streams `i` and `i + n`.

`Lanes` is what a collector has. Times in ns; randomness (how far a renewal is before the age limit, so that lanes are
not renewed together) from the generator passed in. One loop, not thread-safe. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

from kcs.clock import NS_PER_S
from kcs.exchanges.base import Limits, Subscription
from kcs.live.session import Session
from kcs.live.slot import Slot
from kcs.model import OpenFields

TRIAL_NS: Final = 30 * NS_PER_S
"""A new connection must have come and delivered by then."""

RETRY_NS: Final = 60 * NS_PER_S
"""How long after a trial that came to nothing the next one begins."""

LONGER_MAX: Final = 16
"""Both double with each trial that comes to nothing, up to so many times: a subscription may be quiet by nature."""

AGE_PARTS: Final = (0.75, 0.95)
"""A connection is renewed at an age between these parts of the venue's limit."""

MakeSlot = Callable[[int, Subscription, bool], Slot]
"""make(stream, subscription, first): a new slot; `first`: one that a run begins with."""

Log = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What one stream did: data frames, connections, and the frames that brought what no twin had (None: no twin)."""

    stream: int
    frames: int
    saved: int | None
    opens: int


class Lane:
    """See the module docstring. `new_slot(stream)` is called at most once for each of the two `streams`."""

    def __init__(
        self,
        streams: tuple[int, int],
        new_slot: Callable[[int], Slot],
        age_max_ns: int | None,
        rng: Random,
        log: Log,
    ) -> None:
        self.active = new_slot(streams[0])
        self._other_stream = streams[1]
        self._other: Slot | None = None
        self._new_slot = new_slot
        self._age_max_ns = age_max_ns
        self._rng = rng
        self._log = log
        self._opened_ns = 0
        self._renew_ns: int | None = None
        """When the open connection is to be renewed; None: never."""
        self._trial_until_ns: int | None = None
        self._not_before_ns = 0
        self._longer = 1
        self.renewals = 0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots that there are: one, or two once a renewal has begun."""
        return (self.active,) if self._other is None else (self.active, self._other)

    def renew(self, now_ns: int) -> None:
        """Ask for a new connection; nothing happens where there is none that works, as that one is made anyway."""
        if self.active.session.delivering:
            self._note_connection()
            self._renew_ns = now_ns
            self._not_before_ns = 0
        else:
            self._log("info", f"stream {self.active.stream} does not deliver: there is nothing to renew")

    def tick(self, now_ns: int) -> None:
        """Timers of the slots, then the next step of a renewal."""
        for slot in self.slots:
            slot.tick(now_ns)
        if self._trial_until_ns is None:
            self._note_connection()
            if self._renew_ns is not None and now_ns >= max(self._renew_ns, self._not_before_ns):
                self._begin_trial(now_ns)
        elif self._other is not None and self._other.session.delivering:
            if self.active.session.has_met(self._other.session):
                self._change_over(self._other, now_ns)
        elif now_ns >= self._trial_until_ns and self.active.session.delivering:
            self._give_up(now_ns)

    def _note_connection(self) -> None:
        """A connection that is new for whatever reason needs no renewal before its own age."""
        opened_ns = self.active.session.opened_ns
        if opened_ns != self._opened_ns:
            self._opened_ns = opened_ns
            self._renew_ns = None
            if self._age_max_ns is not None:
                self._renew_ns = opened_ns + int(self._age_max_ns * self._rng.uniform(*AGE_PARTS))

    def _begin_trial(self, now_ns: int) -> None:
        if not self.active.session.delivering:
            return
        if self._other is None:
            self._other = self._new_slot(self._other_stream)
        elif not self._other.session.finished:
            return  # the one before is still closing
        self._trial_until_ns = now_ns + self._longer * TRIAL_NS
        self._log(
            "info", f"stream {self.active.stream}: renewing the connection, the new one is stream {self._other.stream}"
        )
        self._other.start(now_ns, trial=True)

    def _change_over(self, new: Slot, now_ns: int) -> None:
        old, self.active, self._other = self.active, new, self.active
        new.session.take_over(old.session)
        self._trial_until_ns = None
        self._longer = 1
        self.renewals += 1
        self._log("info", f"stream {new.stream} delivers; stream {old.stream} retires")
        old.stop(now_ns, "planned")

    def _give_up(self, now_ns: int) -> None:
        assert self._other is not None
        self._trial_until_ns = None
        retry_ns, told_s = self._longer * RETRY_NS, self._longer * TRIAL_NS // NS_PER_S
        self._not_before_ns = now_ns + retry_ns
        self._longer = min(LONGER_MAX, 2 * self._longer)
        told = f"stream {self._other.stream} brought nothing within {told_s} s: stream {self.active.stream} goes on"
        self._log("warning", f"{told}, the next attempt follows in {retry_ns // NS_PER_S} s")
        self._other.stop(now_ns, "abandoned")


class Lanes:
    """All connections of a collector; see the module docstring. There are none before `begin`."""

    def __init__(self, make: MakeSlot, limits: Limits, rng: Random, log: Log) -> None:
        age_s = limits.connection_age_max_s
        self._age_max_ns = None if age_s is None else int(age_s * NS_PER_S)
        self._make = make
        self._rng = rng
        self._log = log
        self._subscriptions: list[Subscription] = []
        self._connections = 1
        self._lanes: list[Lane] = []
        self._slots: list[Slot] = []
        """All slots, in the order in which they were made."""

    def begin(self, subscriptions: Sequence[Subscription], connections: int) -> None:
        """Make the lanes: `connections` for each subscription."""
        self._subscriptions = list(subscriptions)
        self._connections = connections
        count = len(self._subscriptions) * connections
        for number in range(count):
            new_slot = partial(self._new_slot, number // connections)
            self._lanes.append(Lane((number, number + count), new_slot, self._age_max_ns, self._rng, self._log))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot, by stream number."""
        return tuple(sorted(self._slots, key=lambda slot: slot.stream))

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Their sessions, by stream number."""
        return tuple(slot.session for slot in self.slots)

    @property
    def finished(self) -> bool:
        """True once nothing more comes from any connection."""
        return all(slot.session.finished for slot in self._slots)

    def start(self, now_ns: int) -> None:
        """Begin connecting."""
        for lane in self._lanes:
            lane.active.start(now_ns)

    def tick(self, now_ns: int) -> None:
        """Do what is due."""
        for lane in self._lanes:
            lane.tick(now_ns)

    def renew(self, now_ns: int) -> None:
        """Replace every connection, the new ones first."""
        for lane in self._lanes:
            lane.renew(now_ns)

    def stop(self, now_ns: int) -> None:
        """Close all of them cleanly."""
        for slot in self._slots:
            slot.stop(now_ns)

    def abort(self) -> None:
        """Cut whatever there is."""
        for slot in self._slots:
            slot.abort()

    def hold(self, held: bool) -> None:
        """Read nothing while `held`."""
        for slot in self._slots:
            slot.hold(held)

    def subscribe(self, index: int, subscription: Subscription, now_ns: int) -> None:
        """Deliver something else in place of subscription `index`, on all its lanes."""
        self._subscriptions[index] = subscription
        for lane in self._lanes[index * self._connections : (index + 1) * self._connections]:
            for slot in lane.slots:
                slot.subscribe(subscription, now_ns)

    def continued(self) -> list[tuple[int, OpenFields]]:
        """(stream, open record) of every connection: what a rotated file begins with."""
        return [(slot.stream, slot.session.continued()) for slot in self.slots if slot.session.is_open]

    def results(self) -> tuple[StreamResult, ...]:
        """What each stream did."""
        return tuple(
            StreamResult(slot.stream, slot.session.frames, slot.saved if slot.counting else None, slot.session.opens)
            for slot in self.slots
        )

    def _new_slot(self, index: int, stream: int) -> Slot:
        """A slot for a stream of subscription `index`; from now on it and the others of that one are twins."""
        count = len(self._subscriptions) * self._connections
        slot = self._make(stream, self._subscriptions[index], stream < count)
        slot.counting = self._connections > 1
        self._slots.append(slot)
        group = [other.session for other in self._slots if other.stream % count // self._connections == index]
        for session in group:
            session.twins = tuple(other for other in group if other is not session)
        return slot
