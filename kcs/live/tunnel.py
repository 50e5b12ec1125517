"""An HTTP CONNECT tunnel through a proxy: an `asyncio.Protocol` that ends with a raw transport to the target.

The websocket library has this too, but not in its public interface. Headers are bounded. The proxy may not send
anything beyond its answer, because a websocket client speaks first: bytes after it are an error, never passed on.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Final, cast

ANSWER_BYTES_MAX: Final = 64 * 1024


class TunnelRefused(Exception):
    """The proxy did not open the tunnel. `status` is its HTTP status where it gave one."""

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


def connect_request(host: str, port: int, user_info: tuple[str, str] | None, user_agent: str) -> bytes:
    """The CONNECT request for `host:port`; an IPv6 address gets its brackets."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", f"User-Agent: {user_agent}"]
    if user_info is not None:
        token = base64.b64encode(":".join(user_info).encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Tunnel(asyncio.Protocol):
    """`ready` resolves with the transport once the proxy agreed, or fails with TunnelRefused."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._answer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.ready.done():
            return
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._answer) > ANSWER_BYTES_MAX:
                self._refuse(f"the proxy's answer has more than {ANSWER_BYTES_MAX} bytes of headers")
            return
        status = _status(bytes(self._answer[:end]))
        if status is None:
            self._refuse("the proxy's answer is not HTTP")
        elif not 200 <= status < 300:
            self._refuse(f"the proxy answered HTTP {status}", status)
        elif len(self._answer) > end + 4:
            self._refuse("the proxy sent bytes beyond its answer")
        else:
            assert self._transport is not None
            self.ready.set_result(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse("the proxy closed the connection")

    def abort(self) -> None:
        """Cut the connection to the proxy."""
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, detail: str, status: int | None = None) -> None:
        if not self.ready.done():
            self.ready.set_exception(TunnelRefused(detail, status))


def _status(head: bytes) -> int | None:
    """The status of an HTTP/1.x answer, None when it is something else."""
    parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or len(parts[1]) != 3 or not parts[1].isdigit():
        return None
    return int(parts[1])
