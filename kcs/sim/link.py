"""A venue's connection at the far end of a bad network, without a socket: what the client would see, and when.

`dial` connects to a simulated exchange through its toxics. `ToxicLink` puts the messages of a connection through a
`ToxicPipe` as the bytes that a server would write (headers included, no compression), and hands each out when its last
byte has arrived; so tapes and simulations without sockets meet the same faults at the same bytes as a socket does.
Imports no socket and no loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.faults import Fault
from kcs.sim.moments import Stage
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.toxics import How, PipeEnd, ToxicPipe


class Exchange(Protocol):
    """What `dial` needs of a simulated exchange."""

    settings: SimSettings

    def connect(self, now_ns: int) -> VenueConnection: ...

    def stage(self, now_ns: int) -> Stage:
        """Where the faults of the connection that was made last (at `now_ns`) happen."""
        ...


def dial(exchange: Exchange, now_ns: int) -> VenueConnection:
    """A new connection as its client sees it. Without toxics it is the venue's own."""
    connection, toxics = exchange.connect(now_ns), exchange.settings.faults.toxics
    return ToxicLink(connection, toxics, exchange.stage(now_ns)) if toxics else connection


class ToxicLink:
    """See the module docstring; a `VenueConnection` itself. Too many bytes on their way end it, as in the server."""

    def __init__(self, inner: VenueConnection, toxics: Sequence[Fault], stage: Stage) -> None:
        self._inner = inner
        self._pipe = ToxicPipe(toxics, stage)
        self._bytes_max = stage.bytes_max
        self._sent = self._arrived = 0
        self._under_way: deque[tuple[int, Action]] = deque()
        """(the count of bytes with which it has arrived, message)"""
        self._goodbye: SendClose | DropConnection | None = None
        self._ended = False

    @property
    def closed(self) -> bool:
        return self._ended

    @property
    def next_due_ns(self) -> int:
        if self._ended:
            return FOREVER
        return min(self._inner.next_due_ns, self._pipe.next_due_ns)

    def receive(self, now_ns: int, kind: str, payload: bytes = b"") -> list[Action]:
        arrived = self.poll(now_ns)
        if self._ended:
            return arrived
        self._send(self._inner.receive(now_ns, kind, payload))
        return arrived + self._arrive(now_ns)

    def poll(self, now_ns: int) -> list[Action]:
        if self._ended:
            return []
        self._send(self._inner.poll(now_ns))
        return self._arrive(now_ns)

    def disconnect(self) -> None:
        self._ended = True
        self._under_way.clear()
        self._inner.disconnect()

    def _send(self, actions: list[Action]) -> None:
        pipe = self._pipe
        for action in actions:
            if isinstance(action, DropConnection):
                self._goodbye = action
                pipe.end(action.at_ns, How.ABORT, action.cause)
                return
            wire = on_the_wire(action)
            self._sent += len(wire)
            if isinstance(action, SendClose):
                self._goodbye = action
                pipe.feed(action.at_ns, wire)
                pipe.end(action.at_ns, How.EOF)
                return
            self._under_way.append((self._sent, action))
            pipe.feed(action.at_ns, wire)
            if pipe.waiting_bytes > self._bytes_max:
                pipe.overflow(action.at_ns)
                return

    def _arrive(self, now_ns: int) -> list[Action]:
        arrived: list[Action] = []
        for at_ns, item in self._pipe.poll(now_ns):
            if isinstance(item, PipeEnd):
                arrived.append(self._end(at_ns, item))
                break
            self._arrived += len(item)
            while self._under_way and self._under_way[0][0] <= self._arrived:
                _, action = self._under_way.popleft()
                arrived.append(msgspec.structs.replace(action, at_ns=at_ns))
        return arrived

    def _end(self, at_ns: int, end: PipeEnd) -> Action:
        """The venue's own goodbye where that is what arrived, else a connection that is lost."""
        goodbye, whole = self._goodbye, self._arrived == self._sent
        self.disconnect()
        if isinstance(goodbye, SendClose) and end.how is How.EOF and whole:
            return msgspec.structs.replace(goodbye, at_ns=at_ns)
        return DropConnection(at_ns, end.cause)


def on_the_wire(action: SendFrame | SendPong | SendClose) -> bytes:
    """As many bytes as a server writes for it (RFC 6455, unmasked, one fragment); the header is blank."""
    if isinstance(action, SendClose):
        return bytes(4 + len(action.reason.encode()))
    size = len(action.payload)
    return bytes(2 if size < 126 else 4 if size < 65_536 else 10) + action.payload
