"""The simulated exchange on a real socket and in real time. The websocket library is used through its sans-I/O
`ServerProtocol` inside our own `asyncio.Protocol`, which costs a fraction of its connection objects.

The timetable is open-loop: it is anchored once, and a frame goes out when it is due, whether or not the frames before
it were late (then as soon as possible, and `late_max_ns` shows it). What is due is sent in slices of about 1 ms, all
frames of a slice in one write. Each client has a bounded queue of unsent bytes (`settings.queue_bytes_max`, beyond the
kernel's buffers); who exceeds it is cut off without a close frame, which could not reach him, and counted.

Any path is taken for a websocket; `GET /v1/market/all` answers the market list. Protocol pings are answered. Where the
settings ask for toxics, a ToxicPipe stands between the protocol and the transport of each websocket, handshake included
(not of plain HTTP). Runs in the caller's event loop, single-threaded. Raises UsageError when the port cannot be had.
"""

from __future__ import annotations

import asyncio
import http
from dataclasses import dataclass
from typing import Final, cast

from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING, OPEN, SEND_EOF
from websockets.server import ServerProtocol

from kcs.clock import NS_PER_S, Clock
from kcs.errors import UsageError
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.toxics import How, ToxicPipe
from kcs.sim.upbit import UpbitExchange
from kcs.sim.wire import ToxicWire

SLICE_S: Final = 0.001
"""The pause between two slices; shorter ones are below what the loop's timer resolves."""
_SLICE_FRAMES_MAX: Final = 256
"""After this many frames of backlog the loop gets a turn, so that pings and subscriptions are still answered."""
_REQUEST_BYTES_MAX: Final = 1 << 20
_LINGER_S: Final = 3.0
"""How long a client may take to answer a close frame."""
_MARKET_LIST_PATH: Final = "/v1/market/all"


@dataclass(frozen=True, slots=True)
class SimStats:
    """What the server has done so far. `market_frames`: frames of the market whether or not anybody asked for them."""

    clients: int
    clients_total: int
    market_frames: int
    frames_sent: int
    bytes_sent: int
    slow_consumers: int
    http_requests: int
    late_max_ns: int


class _Pingless(ServerProtocol):
    """Leaves the answer to a ping to the dialect, which may have a fault there."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PING:
            self.events.append(frame)
        else:
            super().recv_frame(frame)


class _Client(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self, server: SimServer) -> None:
        self._server = server
        extensions = [ServerPerMessageDeflateFactory()] if server.settings.compression else None
        self._own_pongs = bool(server.settings.faults)
        protocol = _Pingless if self._own_pongs else ServerProtocol
        self._protocol = protocol(extensions=extensions, max_size=_REQUEST_BYTES_MAX)
        self._transport: asyncio.Transport
        self._venue: VenueConnection | None = None
        self._wire: ToxicWire | None = None
        self._message: list[bytes] = []
        self._message_kind = "text"
        self.ended = asyncio.Event()

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server._joined(self)

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._write()
        if self._protocol.close_expected():
            self._linger()

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._venue is not None:
            self._venue.disconnect()
        self._server._left(self)
        self.ended.set()

    # What the client says.

    def _handshake(self, request: Request) -> None:
        if request.path.partition("?")[0] == _MARKET_LIST_PATH:
            self._server.http_requests += 1
            body = self._server.exchange.market_list()
            headers = Headers(
                {
                    "Content-Type": "application/json;charset=UTF-8",
                    "Content-Length": str(len(body)),
                    "Connection": "close",
                }
            )
            self._protocol.send_response(Response(http.HTTPStatus.OK, "OK", headers, body))
            return
        response = self._protocol.accept(request)
        if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
            response.headers["remaining-req"] = "group=websocket; min=300; sec=3"
            self._connect()
        self._protocol.send_response(response)
        self._feed(self._server._published_ns(), draws=False)

    def _connect(self) -> None:
        server = self._server
        now_ns, toxics = server.venue_now_ns(), server.settings.faults.toxics
        self._venue = server.exchange.connect(now_ns)
        if toxics:
            pipe = ToxicPipe(toxics, server.exchange.stage(now_ns))
            self._wire = ToxicWire(self._transport, pipe, server.settings.queue_bytes_max, server._slow)
        server._schedule()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PING or frame.opcode is Opcode.PONG:
            self._receive(frame.opcode.name.lower(), bytes(frame.data))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.opcode is not Opcode.CONT:
                self._message_kind = frame.opcode.name.lower()
            self._message.append(bytes(frame.data))
            if frame.fin:
                payload, self._message = b"".join(self._message), []
                self._receive(self._message_kind, payload)

    def _receive(self, kind: str, payload: bytes) -> None:
        if self._venue is not None:
            self._perform(self._venue.receive(self._server.venue_now_ns(), kind, payload))
            self._server._schedule()

    # What the client is told.

    @property
    def next_due_ns(self) -> int:
        if self._venue is None:
            return FOREVER
        if self._wire is not None:
            return min(self._venue.next_due_ns, self._wire.pipe.next_due_ns)
        return self._venue.next_due_ns

    def flush(self, now_ns: int) -> None:
        """Send what is due."""
        if self._venue is not None:
            actions = self._venue.poll(now_ns)
            if actions:
                self._perform(actions)
                self._write()
            if self._wire is not None:
                self._wire.deliver(now_ns)

    def close(self, code: int, reason: str) -> None:
        """Say goodbye and end the connection soon."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason)
            if self._wire is not None:
                self._feed(self._server._published_ns())
                self._wire.drain()
                self._wire = None
            self._write()
            self._linger()
        elif self._protocol.state is CONNECTING:
            self._transport.close()

    def _perform(self, actions: list[Action]) -> None:
        protocol, server, wire = self._protocol, self._server, self._wire
        for action in actions:
            if protocol.state is not OPEN:
                return
            if isinstance(action, SendFrame):
                payload = action.payload
                server.frames_sent += 1
                server.bytes_sent += len(payload)
                (protocol.send_binary if action.binary else protocol.send_text)(payload)
            elif isinstance(action, SendClose):
                protocol.send_close(action.code, action.reason)
                self._linger()
            elif isinstance(action, DropConnection):
                self._drop(action)
                return
            elif self._own_pongs and isinstance(action, SendPong):
                protocol.send_pong(action.payload)
            # Else the library has written the pong already.
            if wire is not None:
                self._feed(action.at_ns)

    def _drop(self, action: DropConnection) -> None:
        self._write()
        if self._wire is None:
            self._transport.abort()
        else:
            self._wire.pipe.end(action.at_ns, How.ABORT, action.cause)

    def _feed(self, at_ns: int, *, draws: bool = True) -> None:
        """What the protocol has to say is one chunk for the bad network, where there is one."""
        if self._wire is None:
            return
        chunks = self._protocol.data_to_send()
        if chunks:
            self._wire.feed(at_ns, b"".join(chunks), draws=draws)
            if chunks[-1] == SEND_EOF:
                self._wire.pipe.end(at_ns, How.EOF)

    def _write(self) -> None:
        if self._wire is not None:
            now_ns = self._server._published_ns()
            self._feed(now_ns)
            self._wire.deliver(now_ns)
            self._server._schedule()
            return
        transport = self._transport
        chunks = self._protocol.data_to_send()
        if not chunks or transport.is_closing():
            return
        at_end = chunks[-1] == SEND_EOF
        transport.write(b"".join(chunks))
        if transport.get_write_buffer_size() > self._server.settings.queue_bytes_max:
            self._server._slow()
            transport.abort()
        elif at_end and transport.can_write_eof():
            transport.write_eof()

    def _linger(self) -> None:
        self._server.loop.call_later(_LINGER_S, self._lingered)

    def _lingered(self) -> None:
        if self._wire is None or self._wire.pipe.empty:
            self._transport.abort()
        else:
            self._linger()


class SimServer:
    """A running simulated exchange; made by `serve`."""

    def __init__(self, settings: SimSettings, clock: Clock, fault_log: SimFaultLog | None = None) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self._clock = clock
        self.exchange = UpbitExchange(settings, None if settings.wait_for_client else clock.now_ns(), fault_log)
        self.fault_log = self.exchange.fault_log
        self._clients: dict[_Client, None] = {}
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ns = FOREVER
        self._ended = asyncio.Event()
        self.clients_total = self.frames_sent = self.bytes_sent = 0
        self.slow_consumers = self.http_requests = 0
        self._late_max_ns = 0

    async def _listen(self) -> None:
        settings = self.settings
        try:
            self._listener = await self.loop.create_server(lambda: _Client(self), settings.host, settings.port)
        except OSError as error:
            raise UsageError(
                f"cannot listen: {error.strerror or error}",
                where=f"{settings.host}:{settings.port}",
                remedy="another port, or port 0 for any free one",
            ) from error
        self._schedule()

    @property
    def port(self) -> int:
        """The port that clients connect to; 0 once closed."""
        sockets = self._listener.sockets if self._listener is not None else ()
        return int(sockets[0].getsockname()[1]) if sockets else 0

    @property
    def url(self) -> str:
        """Where clients find the websocket."""
        return f"ws://{self.settings.host}:{self.port}/websocket/v1"

    def stats(self) -> SimStats:
        """Counters as of now."""
        market = self.exchange.market
        return SimStats(
            clients=len(self._clients),
            clients_total=self.clients_total,
            market_frames=market.frames if market is not None else 0,
            frames_sent=self.frames_sent,
            bytes_sent=self.bytes_sent,
            slow_consumers=self.slow_consumers,
            http_requests=self.http_requests,
            late_max_ns=self._late_max_ns,
        )

    async def wait_ended(self) -> None:
        """Wait until the market has ended (duration, frames_max) and clients were told, or the server was closed."""
        await self._ended.wait()

    async def aclose(self) -> None:
        """Stop listening, close every client with 1001 and wait for them, at most 3 s. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.close()
        self._ended.set()
        clients = list(self._clients)
        for client in clients:
            client.close(1001, "going away")
        for client in clients:
            await client.ended.wait()

    def venue_now_ns(self) -> int:
        """The time up to which the market has been published: now, or earlier while there is a backlog."""
        now_ns = self._clock.now_ns()
        due_ns = self.exchange.next_due_ns
        if due_ns <= now_ns:
            self._late_max_ns = max(self._late_max_ns, now_ns - due_ns)
            self.exchange.advance(now_ns, _SLICE_FRAMES_MAX)
        return min(now_ns, self.exchange.next_due_ns - 1)

    def _published_ns(self) -> int:
        """The same without publishing anything: what a slice has not looked at yet must not appear in its middle."""
        return min(self._clock.now_ns(), self.exchange.next_due_ns - 1)

    def _joined(self, client: _Client) -> None:
        self._clients[client] = None
        self.clients_total += 1

    def _slow(self) -> None:
        self.slow_consumers += 1

    def _left(self, client: _Client) -> None:
        self._clients.pop(client, None)

    def _slice(self) -> None:
        self._timer = None
        now_ns = self.venue_now_ns()
        for client in list(self._clients):
            client.flush(now_ns)
        if self.exchange.ended and now_ns >= self._ends_ns():
            for client in list(self._clients):
                client.close(1000, "the simulation has ended")
            self._ended.set()
        else:
            self._schedule()

    def _ends_ns(self) -> int:
        settings, market = self.settings, self.exchange.market
        reached = market is not None and settings.frames_max is not None and market.frames >= settings.frames_max
        return 0 if reached or settings.duration_ns is None else self.exchange.start_ns + settings.duration_ns

    def _schedule(self) -> None:
        """Set the timer for the next slice, or make it earlier; never later, or one client could hold up all others."""
        if self._ended.is_set():
            return
        due_ns = min((client.next_due_ns for client in self._clients), default=FOREVER)
        due_ns = min(due_ns, self._ends_ns() if self.exchange.ended else self.exchange.next_due_ns)
        if due_ns == FOREVER or (self._timer is not None and self._timer_due_ns <= due_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        ahead_ns = due_ns - self._clock.now_ns()
        delay_s = max(SLICE_S, ahead_ns / NS_PER_S) if ahead_ns > -NS_PER_S // 1000 else 0.0
        self._timer_due_ns = due_ns
        self._timer = self.loop.call_later(delay_s, self._slice)


async def serve(settings: SimSettings, clock: Clock, *, fault_log: SimFaultLog | None = None) -> SimServer:
    """Start a simulated exchange on `settings.host`:`settings.port` (0: any free port) in the running loop.

    What goes wrong on purpose is told to `fault_log` (default: one of its own, `SimServer.fault_log`). Raises
    UsageError when the port cannot be had. End it with `aclose`.
    """
    server = SimServer(settings, clock, fault_log)
    await server._listen()
    return server
