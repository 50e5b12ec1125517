"""What a simulated venue tells its transport to do. Used by every dialect; imports nothing of kcs.

Times are ns of the caller's clock: the moment at which the action was due, not when it was asked for.
"""

from __future__ import annotations

import msgspec


class SendFrame(msgspec.Struct, frozen=True, gc=False):
    """A websocket message to the client. `data`: a market frame or snapshot (not status, errors, replies, junk)."""

    at_ns: int
    payload: bytes
    data: bool = True
    binary: bool = True


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
