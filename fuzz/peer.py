"""A venue's end of a websocket, as hostile as the input says; used by the target `socket`."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

from websockets.uri import parse_uri
from websockets.utils import accept_key

from fuzz.forge import START_NS, instructions
from kcs.clock import VirtualClock
from kcs.live.actions import ConnectionEnd
from kcs.live.transport import UNSENT_BYTES_MAX, Connection, TransportSettings

FRAME_BYTES_MAX: Final = 4096
_URI: Final = parse_uri("ws://venue.test/stream")


class _Transport(asyncio.Transport):
    """Keeps what is written; says when it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nothing follows."""

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        """Asked for under load."""

    def resume_reading(self) -> None:
        """The opposite."""


class _Handler:
    """Checks what a connection promises its handler."""

    def __init__(self) -> None:
        self.opens = self.closes = 0
        self.crash: BaseException | None = None

    def opened(self, connection: Connection, now_ns: int) -> None:
        self.opens += 1

    def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
        assert self.opens == 1
        assert self.closes == 0
        assert kind in (3, 4)
        assert type(payload) is bytes
        assert len(payload) <= FRAME_BYTES_MAX

    def pong(self, recv_ns: int, payload: bytes) -> None:
        assert len(payload) <= 125

    def closed(self, now_ns: int, end: ConnectionEnd) -> None:
        self.closes += 1
        assert 1000 <= end.code < 5000
        assert len(end.reason) <= 125
        assert end.cause

    def crashed(self, error: BaseException) -> None:
        self.crash = error


def _frame(operation: int, payload: bytes) -> bytes:
    """A frame as a server sends it: unmasked, any opcode, final or not, reserved bits as they come."""
    head = bytes((operation & 0xFF,))
    if len(payload) < 126:
        return head + bytes((len(payload),)) + payload
    return head + b"\x7e" + len(payload).to_bytes(2, "big") + payload


async def converse(data: bytes) -> None:
    """The handshake (unless the first byte says otherwise), then one instruction after the other, then the end."""
    handler, transport = _Handler(), _Transport()
    settings = TransportSettings(frame_bytes_max=FRAME_BYTES_MAX)
    connection = Connection(_URI, VirtualClock(START_NS), handler, settings)
    connection.connection_made(transport)
    if not data.startswith(b"!"):
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", transport.written)
        assert key is not None
        accepted = "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        connection.data_received(f"{accepted}{accept_key(key[1].decode())}\r\n\r\n".encode())
    for operation, content in instructions(data):
        if transport.aborted:
            break
        if operation == 0:
            connection.data_received(content)
        elif operation == 1:
            connection.pause_writing()
        elif operation == 2:
            connection.resume_writing()
        elif operation == 3:
            connection.eof_received()
            break  # no data comes behind it
        elif operation == 4:
            connection.close(1000)
        elif operation == 5:
            connection.send_text("PING")
        else:
            connection.data_received(_frame(operation, content))
        assert connection._unsent_bytes <= UNSENT_BYTES_MAX
    connection.connection_lost(None)
    if connection.handshaken.done() and not connection.handshaken.cancelled():
        connection.handshaken.exception()
    assert handler.crash is None
    assert handler.opens == handler.closes <= 1
