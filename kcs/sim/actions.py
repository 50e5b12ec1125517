"""What a simulated venue tells its transport to do, and how it is asked. Used by every dialect; imports nothing of kcs.

Times are ns of the caller's clock: the moment at which the action was due, not when it was asked for.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class SendFrame(msgspec.Struct, frozen=True, gc=False):
    """A websocket message to the client.

    `data`: a market frame or snapshot (not status, errors, replies, junk); then `market` says of which market, and
    `snapshot` that it answers a subscription.
    """

    at_ns: int
    payload: bytes
    data: bool = True
    binary: bool = True
    market: str = ""
    snapshot: bool = False


class SendPong(msgspec.Struct, frozen=True, gc=False):
    """The answer to a protocol ping (a websocket library usually sends it by itself)."""

    at_ns: int
    payload: bytes


class SendClose(msgspec.Struct, frozen=True, gc=False):
    """Close with a close frame; nothing follows."""

    at_ns: int
    code: int
    reason: str = ""


class DropConnection(msgspec.Struct, frozen=True, gc=False):
    """End the TCP connection without a close frame (the client sees 1006); nothing follows."""

    at_ns: int
    cause: str = ""


Action = SendFrame | SendPong | SendClose | DropConnection


class VenueConnection(Protocol):
    """One client's websocket as the venue sees it, sans I/O: what a dialect makes and every wrapper around it is.

    Times are never smaller than before. Actions come in order of their times, and what they are does not depend on how
    often or when `poll` is called. Calls after the end do nothing.
    """

    @property
    def closed(self) -> bool:
        """The connection has ended and nothing is left to hand out."""
        ...

    @property
    def next_due_ns(self) -> int:
        """When `poll` may have something next; never later than it really has. FOREVER once closed."""
        ...

    def receive(self, now_ns: int, kind: str, payload: bytes = b"") -> list[Action]:
        """A message of the client (text, binary, ping, pong) arrived: what is due up to now, answers included."""
        ...

    def poll(self, now_ns: int) -> list[Action]:
        """What is due up to and including `now_ns`."""
        ...

    def disconnect(self) -> None:
        """The client is gone."""
        ...
