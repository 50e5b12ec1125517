"""The other end of a `Connection` without a socket: websockets' sans-I/O server, and a transport that keeps bytes."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from kcs.clock import VirtualClock
from kcs.live.actions import ConnectionEnd
from kcs.live.transport import Connection, TransportSettings
from tests.live.support import START_NS


class MemoryTransport(asyncio.Transport):
    """Keeps what is written; ends when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.eof = False
        self.aborted = False
        self.reading = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def take(self) -> bytes:
        data, self.written = bytes(self.written), bytearray()
        return data

    def write(self, data: Any) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Listener:
    """A `Handler` that writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def opened(self, connection: Connection, now_ns: int) -> None:
        self.heard.append(("opened", now_ns))

    def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
        assert type(payload) is bytes
        self.heard.append(("frame", kind, recv_ns, payload))

    def pong(self, recv_ns: int, payload: bytes) -> None:
        self.heard.append(("pong", recv_ns, payload))

    def closed(self, now_ns: int, end: ConnectionEnd) -> None:
        self.heard.append(("closed", now_ns, end))

    def crashed(self, error: BaseException) -> None:
        self.heard.append(("crashed", error))

    def payloads(self) -> list[bytes]:
        return [item[3] for item in self.heard if item[0] == "frame"]

    def end(self) -> ConnectionEnd:
        (end,) = [item[2] for item in self.heard if item[0] == "closed"]
        assert isinstance(end, ConnectionEnd)
        return end


class Pair:
    """A connection and its peer, in memory. Needs a running loop."""

    def __init__(self, *, listener: Listener | None = None, **settings: Any) -> None:
        self.clock = VirtualClock(START_NS)
        self.listener = listener or Listener()
        self.connection = Connection(
            parse_uri("ws://venue.test/stream"), self.clock, self.listener, TransportSettings(**settings)
        )
        self.transport = MemoryTransport()
        self.server = ServerProtocol(max_size=None)
        self.request: Request | None = None
        self.connection.connection_made(self.transport)

    def accept(self) -> bytes:
        """The bytes of the server's answer to the upgrade."""
        self.server.receive_data(self.transport.take())
        (request,) = self.server.events_received()
        assert isinstance(request, Request)
        self.request = request
        self.server.send_response(self.server.accept(request))
        assert not isinstance(self.server.handshake_exc, InvalidHandshake)
        return b"".join(self.server.data_to_send())

    def open(self) -> Pair:
        self.connection.data_received(self.accept())
        return self

    def from_server(self) -> None:
        """Deliver what the server has to send."""
        data = b"".join(self.server.data_to_send())
        if data:
            self.connection.data_received(data)

    def at_server(self) -> list[Frame]:
        """What the server understands of what we wrote."""
        self.server.receive_data(self.transport.take())
        return [event for event in self.server.events_received() if isinstance(event, Frame)]

    def lose(self, error: Exception | None = None) -> None:
        """The socket is gone, as asyncio says it."""
        if error is None and not self.transport.aborted:
            self.connection.eof_received()
        self.connection.connection_lost(error)
