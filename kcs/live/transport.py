"""The websocket connection: an `asyncio.Protocol` around the library's public sans-I/O `ClientProtocol`.

The only module of the package (besides the simulator's server) that knows the websocket library. `Dialer` opens
connections; a `Connection` calls its `Handler` synchronously, from within `data_received`:

    opened(connection, now_ns)         the handshake succeeded; always before the first frame
    frame(kind, recv_ns, payload)      one data message; `kind` is Kind.TEXT or Kind.BINARY, `payload` its exact bytes
    pong(recv_ns, payload)
    closed(now_ns, end)                once, after which nothing more comes
    crashed(error)                     one of the above raised: a defect; `closed` follows

`recv_ns` is read in the first statement of `data_received`; all messages of one read share it, and a fragmented
message has the time of its last fragment. No queue and no await: what the socket delivers is handed on at once, so
memory is bounded by one read plus one message of at most `frame_bytes_max` (a larger one closes the connection with
1009). Text is not checked for UTF-8: the capture wants the bytes, and the parser's verdict comes later.

Reading pauses in two cases; then the buffers of the socket and TCP make the venue wait: nothing is lost or reordered.
After a read of `LARGE_READ_BYTES` or more it pauses for one turn of the loop: with so much waiting, a loop that reads
until the socket is empty lets timers, pings and other connections wait as long. And while `hold` says that who takes
the frames can take no more.

Offered extensions: none. `Origin`: none. TLS: the default context, verified, with the host's name. A proxy is taken
from the environment as the library finds it (HTTP and HTTPS proxies; a SOCKS proxy is a ConfigError).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidProxy, InvalidStatus, InvalidURI, PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import SEND_EOF, State
from websockets.proxy import Proxy, get_proxy, parse_proxy
from websockets.uri import WebSocketURI, parse_uri

from kcs.clock import Clock
from kcs.errors import ConfigError
from kcs.live.actions import CLOSE_ABNORMAL, ConnectFailure, ConnectionEnd
from kcs.live.failures import failure_of, retry_after_s
from kcs.live.scrub import scrub_url
from kcs.live.tunnel import Tunnel, TunnelRefused, connect_request
from kcs.live.url import refuse_credentials
from kcs.model import Kind

UNSENT_BYTES_MAX: Final = 1024 * 1024
"""A peer that makes us answer pings but does not read is cut off beyond this."""

LARGE_READ_BYTES: Final = 64 * 1024
"""A read of so much says that more is waiting: half a millisecond of frames."""

USER_AGENT: Final = "kcs"

_TEXT: Final = Opcode.TEXT
_BINARY: Final = Opcode.BINARY
_CONT: Final = Opcode.CONT
_PONG: Final = Opcode.PONG
# Plain ints: the writer packs them, and an IntEnum costs more there.
_KIND_TEXT: Final = int(Kind.TEXT)
_KIND_BINARY: Final = int(Kind.BINARY)


class Handler(Protocol):
    """Who listens to a connection. Its methods must not raise: an exception ends the connection as `internal`."""

    def opened(self, connection: Connection, now_ns: int) -> None: ...
    def frame(self, kind: int, recv_ns: int, payload: bytes) -> None: ...
    def pong(self, recv_ns: int, payload: bytes) -> None: ...
    def closed(self, now_ns: int, end: ConnectionEnd) -> None: ...
    def crashed(self, error: BaseException) -> None: ...


class ConnectFailed(Exception):
    """The dialer could not connect; `failure` says why."""

    def __init__(self, failure: ConnectFailure) -> None:
        super().__init__(failure.slug)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Seconds and bytes. `handshake_within_s` covers name look-up, TCP, proxy, TLS and the upgrade together."""

    frame_bytes_max: int = 8 * 1024 * 1024
    handshake_within_s: float = 10.0
    close_within_s: float = 2.0


class Connection(asyncio.Protocol):
    """One connection. Made by `Dialer`; tests feed it bytes through the asyncio protocol methods."""

    def __init__(self, uri: WebSocketURI, clock: Clock, handler: Handler, settings: TransportSettings) -> None:
        self._websocket = ClientProtocol(uri, max_size=settings.frame_bytes_max)
        self._now_ns = clock.now_ns
        self._handler = handler
        self._on_frame: Callable[[int, int, bytes], None] = handler.frame
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_open = False
        self._handling = False
        self._write_paused = False
        self._reading = True
        self._held = False
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._partial: bytearray | None = None
        self._partial_kind = _KIND_BINARY
        self._end_cause: str | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self.handshaken: asyncio.Future[None] = self._loop.create_future()
        """Done when the handshake succeeded; fails with ConnectFailed."""

    # What the owner asks for.

    def send_text(self, text: str) -> bool:
        """Send a text message; False when the connection is no longer open."""
        if self._websocket.state is not State.OPEN:
            return False
        self._websocket.send_text(text.encode())
        self._flush()
        return True

    def ping(self, payload: bytes) -> None:
        """Send a ping; nothing happens when the connection is no longer open."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_ping(payload)
            self._flush()

    def close(self, code: int, reason: str = "") -> None:
        """Start the closing handshake; without an answer within `close_within_s` the connection is cut."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(code, reason)
            self._flush()
        self._expect_close()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def hold(self, held: bool) -> None:
        """Read no more until it is called with False. Pings go out all the while, but no pong is heard."""
        if held is not self._held:
            self._held = held
            if held:
                self._pause()
            else:
                self._resume()

    @property
    def is_handshaken(self) -> bool:
        """True once the handshake has succeeded: `opened` was called, and `closed` was or will be."""
        done = self.handshaken
        return done.done() and not done.cancelled() and done.exception() is None

    def abandon_unless_open(self) -> None:
        """Leave nothing behind of an attempt that failed, was cancelled or took too long."""
        self.handshaken.cancel()
        if not self.is_handshaken:
            self.abort()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        recv_ns = self._now_ns()
        websocket = self._websocket
        websocket.receive_data(data)
        events = websocket.events_received()
        self._flush()
        self._handling = True  # stays so when the handler raises
        if not self._is_open:
            if not self._handshake(events, recv_ns):
                self._handling = False
                return
            del events[0]
        on_frame = self._on_frame
        for frame in cast("list[Frame]", events):
            opcode = frame.opcode
            if opcode is _BINARY and frame.fin:
                on_frame(_KIND_BINARY, recv_ns, bytes(frame.data))
            elif opcode is _TEXT and frame.fin:
                on_frame(_KIND_TEXT, recv_ns, bytes(frame.data))
            else:
                self._other_frame(frame, recv_ns)
        self._handling = False
        if websocket.state is not State.OPEN:
            self._expect_close()
        if len(data) >= LARGE_READ_BYTES and self._reading:
            self._pause()
            self._loop.call_soon(self._resume)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            try:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                pass  # not TCP (a test's socket pair)
        request = self._websocket.connect()
        request.headers["User-Agent"] = USER_AGENT
        self._websocket.send_request(request)
        self._flush()

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._websocket.receive_eof()
        self._websocket.data_to_send()
        self._transport = None
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._handling and exc is not None:
            self._end_cause = "internal"
            self._handler.crashed(exc)
        if self._is_open:
            self._is_open = False
            self._handler.closed(self._now_ns(), self._end())
        elif not self.handshaken.done():
            self._fail(self._handshake_failure(exc))

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._unsent_bytes = 0

    # Leaves.

    def _pause(self) -> None:
        if self._transport is not None and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        transport = self._transport
        if transport is not None and not self._reading and not self._held:
            self._reading = True
            if not transport.is_closing():
                transport.resume_reading()

    def _handshake(self, events: Sequence[object], recv_ns: int) -> bool:
        """Handle the answer to the upgrade. True when the connection is open: `events[0]` is the answer."""
        if self._websocket.handshake_exc is not None:
            self._fail(self._handshake_failure(None))
            self.abort()
            return False
        if not events:
            return False
        self._is_open = True
        if not self.handshaken.done():
            self.handshaken.set_result(None)
        self._handler.opened(self, recv_ns)
        return True

    def _other_frame(self, frame: Frame, recv_ns: int) -> None:
        """Fragments are put together (the library bounds their sum); pongs are passed on; the rest it has handled."""
        opcode = frame.opcode
        if opcode is _CONT:
            assert self._partial is not None  # the library refuses a continuation of nothing
            self._partial += frame.data
            if frame.fin:
                payload = bytes(self._partial)
                self._partial = None
                self._on_frame(self._partial_kind, recv_ns, payload)
        elif opcode is _TEXT or opcode is _BINARY:
            self._partial = bytearray(frame.data)
            self._partial_kind = _KIND_TEXT if opcode is _TEXT else _KIND_BINARY
        elif opcode is _PONG:
            self._handler.pong(recv_ns, bytes(frame.data))

    def _flush(self) -> None:
        transport = self._transport
        for data in self._websocket.data_to_send():
            if transport is None or transport.is_closing():
                continue
            if data == SEND_EOF:
                if transport.can_write_eof():
                    transport.write_eof()
            elif self._write_paused:
                self._keep_unsent(data)
            else:
                transport.write(data)

    def _keep_unsent(self, data: bytes) -> None:
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._unsent.clear()
            self._end_cause = "write_stalled"
            self.abort()

    def _expect_close(self) -> None:
        if self._close_timer is None and self._transport is not None:
            self._close_timer = self._loop.call_later(self._settings.close_within_s, self.abort)

    def _end(self) -> ConnectionEnd:
        """Why an open connection ended, from what the library saw."""
        websocket = self._websocket
        error, received, sent = websocket.parser_exc, websocket.close_rcvd, websocket.close_sent
        if isinstance(error, PayloadTooBig):
            cause = "oversize"
        elif error is not None and not isinstance(error, EOFError):
            cause = "protocol_error"
        else:
            cause = "lost" if received is None else "remote"
        if cause in ("oversize", "protocol_error") and sent is not None:
            return ConnectionEnd(sent.code, sent.reason, self._end_cause or cause)
        if received is None:
            return ConnectionEnd(CLOSE_ABNORMAL, "", self._end_cause or cause)
        return ConnectionEnd(received.code, received.reason, self._end_cause or cause)

    def _handshake_failure(self, exc: Exception | None) -> ConnectFailure:
        error = self._websocket.handshake_exc
        if isinstance(error, InvalidStatus):
            return _refusal(error.response, self._now_ns())
        if isinstance(exc, OSError):
            return failure_of(exc)
        return ConnectFailure("handshake", str(error) if error else "the connection closed during the handshake")

    def _fail(self, failure: ConnectFailure) -> None:
        if not self.handshaken.done():
            self.handshaken.set_exception(ConnectFailed(failure))


class Dialer:
    """Opens connections to one URL. Raises ConfigError at once for a URL or proxy that cannot be used."""

    def __init__(
        self, url: str, clock: Clock, settings: TransportSettings, *, tls: ssl.SSLContext | None = None
    ) -> None:
        """`tls` is for tests with their own authority; it replaces the default context of a `wss` URL."""
        self._clock = clock
        self._settings = settings
        refuse_credentials(url)
        try:
            self._uri = parse_uri(url)
        except (InvalidURI, ValueError) as error:  # ValueError: a port out of range, half an IPv6 address, a bad name
            why = error.msg if isinstance(error, InvalidURI) else error  # the library's own text has the URL in it
            what = f"not a websocket URL: {why}"
            raise ConfigError(what, where=scrub_url(url), remedy="ws://host:port/path") from None
        self._proxy = _proxy_of(self._uri)
        self._tls = (tls or ssl.create_default_context()) if self._uri.secure else None

    async def dial(self, handler: Handler) -> Connection:
        """Connect and shake hands. Raises ConnectFailed; when cancelled, nothing stays open."""
        connection = Connection(self._uri, self._clock, handler, self._settings)
        try:
            async with asyncio.timeout(self._settings.handshake_within_s):
                if self._proxy is None:
                    await self._direct(connection)
                else:
                    await self._through(self._proxy, connection)
                await connection.handshaken
        except ConnectFailed:
            raise
        except TunnelRefused as error:
            raise ConnectFailed(ConnectFailure("proxy", str(error), error.status)) from error
        except (OSError, UnicodeError) as error:
            if not connection.is_handshaken:  # time may run out in the turn in which it succeeds
                raise ConnectFailed(failure_of(error)) from error
        finally:
            connection.abandon_unless_open()
        return connection

    async def _direct(self, connection: Connection) -> None:
        uri = self._uri
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            uri.host,
            uri.port,
            ssl=self._tls,
            server_hostname=uri.host if self._tls is not None else None,
        )

    async def _through(self, proxy: Proxy, connection: Connection) -> None:
        """TCP (or TLS) to the proxy, CONNECT, then the TLS of the target inside the tunnel."""
        loop, uri = asyncio.get_running_loop(), self._uri
        request = connect_request(uri.host, uri.port, proxy.user_info, USER_AGENT)
        secure = proxy.scheme == "https"
        _, tunnel = await loop.create_connection(
            lambda: Tunnel(request),
            proxy.host,
            proxy.port,
            ssl=ssl.create_default_context() if secure else None,
            server_hostname=proxy.host if secure else None,
        )
        try:
            transport = await tunnel.ready
        except (TunnelRefused, asyncio.CancelledError):
            tunnel.abort()
            raise
        transport.set_protocol(connection)
        if self._tls is not None:
            upgraded = await loop.start_tls(transport, connection, self._tls, server_hostname=uri.host)
            assert upgraded is not None
            transport = upgraded
        connection.connection_made(transport)


def _proxy_of(uri: WebSocketURI) -> Proxy | None:
    address = get_proxy(uri)
    if address is None:
        return None
    try:
        proxy = parse_proxy(address)
    except (InvalidProxy, ValueError) as error:
        why = error.msg if isinstance(error, InvalidProxy) else error  # the library's own text has the password in it
        raise ConfigError(f"the proxy of the environment cannot be used: {why}", where=scrub_url(address)) from None
    if proxy.scheme not in ("http", "https"):
        remedy = "set HTTPS_PROXY to an http:// proxy, or NO_PROXY for this host"
        raise ConfigError("SOCKS proxies are not supported", where=f"{proxy.scheme}://{proxy.host}", remedy=remedy)
    return proxy


def _refusal(response: Response, now_ns: int) -> ConnectFailure:
    """What an HTTP answer other than 101 says."""
    status = response.status_code
    retry_after = response.headers.get("Retry-After", "")
    return ConnectFailure("http", response.reason_phrase, status, retry_after_s(retry_after, now_ns))
