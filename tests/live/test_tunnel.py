"""Through a proxy and through TLS, on localhost: the CONNECT request, the tunnel, the certificate's check."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from kcs.clock import SystemClock
from kcs.live import tunnel
from kcs.live.transport import ConnectFailed, Dialer, TransportSettings
from kcs.live.tunnel import ANSWER_BYTES_MAX, connect_request
from tests.live.peer import Listener
from tests.live.rig import LOOPS, until
from tests.live.test_transport import _no_proxy  # noqa: F401 - the environment's proxies stay out of all of these

SETTINGS = TransportSettings(handshake_within_s=5.0)


async def hello(websocket: ServerConnection) -> None:
    await websocket.send(b"hello")
    async for _ in websocket:
        pass


class Proxy:
    """An HTTP proxy: answers CONNECT with `answer`, and forwards when that is a 200."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nVia: test\r\n\r\n") -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        for byte in self.answer[:200]:  # in pieces: the tunnel must not count on one read
            writer.write(bytes([byte]))
            await writer.drain()
        writer.write(self.answer[200:])
        if b" 200 " in self.answer:
            _, _, port = request.split(b" ")[1].rpartition(b":")
            there = await asyncio.open_connection("127.0.0.1", int(port))
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def run_on(coroutine: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run_on


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, made for this run: a private key does not belong into a repository."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    home = tmp_path_factory.mktemp("tls")
    key, chain = home / "key.pem", home / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*made, *subject, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    return chain, key


def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def client_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


async def greeted(dialer: Dialer) -> list[bytes]:
    """Dial, hear the greeting, close."""
    listener = Listener()
    connection = await dialer.dial(listener)
    await until(lambda: bool(listener.payloads()))
    connection.close(1000)
    await until(lambda: listener.heard[-1][0] == "closed")
    assert listener.end().code == 1000
    return listener.payloads()


async def refused(dialer: Dialer) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as failed:
        await dialer.dial(Listener())
    return failed.value


def port_of(server: Any) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])


def test_plain(run: Callable[[Any], Any]) -> None:
    async def check() -> None:
        async with serve(hello, "127.0.0.1", 0) as server:
            assert await greeted(Dialer(f"ws://127.0.0.1:{port_of(server)}/", SystemClock(), SETTINGS)) == [b"hello"]

    run(check())


def test_tls_with_a_known_authority(run: Callable[[Any], Any], certificate: tuple[Path, Path]) -> None:
    async def check() -> None:
        async with serve(hello, "localhost", 0, ssl=server_tls(certificate)) as server:
            url = f"wss://localhost:{port_of(server)}/"
            dialer = Dialer(url, SystemClock(), SETTINGS, tls=client_tls(certificate))
            assert await greeted(dialer) == [b"hello"]

    run(check())


def test_tls_refuses_a_stranger(run: Callable[[Any], Any], certificate: tuple[Path, Path]) -> None:
    async def check() -> None:
        async with serve(hello, "localhost", 0, ssl=server_tls(certificate)) as server:
            port = port_of(server)
            unknown = await refused(Dialer(f"wss://localhost:{port}/", SystemClock(), SETTINGS))
            assert unknown.failure.cause == "tls"
            assert "certificate verify failed" in unknown.failure.detail
            context = client_tls(certificate)
            wrong = await refused(Dialer(f"wss://127.0.0.1:{port}/", SystemClock(), SETTINGS, tls=context))
            assert wrong.failure.cause == "tls"

    run(check())


def test_through_a_proxy(run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with Proxy().serving() as proxy, serve(hello, "127.0.0.1", 0) as server:
            monkeypatch.setenv("http_proxy", f"http://user:pa%20ss@127.0.0.1:{proxy.port}")
            port = port_of(server)
            assert await greeted(Dialer(f"ws://venue.test:{port}/", SystemClock(), SETTINGS)) == [b"hello"]
            assert proxy.requests == [
                b"CONNECT venue.test:%d HTTP/1.1\r\nHost: venue.test:%d\r\nUser-Agent: kcs\r\n"
                b"Proxy-Authorization: Basic dXNlcjpwYSBzcw==\r\n\r\n" % (port, port)
            ]

    run(check())


def test_tls_inside_the_tunnel_is_checked_against_the_venue(
    run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]
) -> None:
    async def check() -> None:
        async with Proxy().serving() as proxy, serve(hello, "localhost", 0, ssl=server_tls(certificate)) as server:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            port, context = port_of(server), client_tls(certificate)
            dialer = Dialer(f"wss://localhost:{port}/", SystemClock(), SETTINGS, tls=context)
            assert await greeted(dialer) == [b"hello"]
            wrong = await refused(Dialer(f"wss://venue.test:{port}/", SystemClock(), SETTINGS, tls=context))
            assert wrong.failure.cause == "tls"
            assert len(proxy.requests) == 2

    run(check())


def test_no_proxy_is_honoured(run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with Proxy().serving() as proxy, serve(hello, "127.0.0.1", 0) as server:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert await greeted(Dialer(f"ws://127.0.0.1:{port_of(server)}/", SystemClock(), SETTINGS)) == [b"hello"]
            assert proxy.requests == []

    run(check())


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 407, "HTTP 407"),
        (b"HTTP/1.0 502 Bad Gateway\r\nX: y\r\n\r\n", 502, "HTTP 502"),
        (b"SOCKS?\r\n\r\n", None, "not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", None, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n", None, "closed"),
        (b"", None, "closed"),
        (b"HTTP/1.1 204 OK\r\nX: " + b"y" * ANSWER_BYTES_MAX, None, "bytes of headers"),
    ],
)
def test_a_proxy_that_refuses(
    answer: bytes, status: int | None, detail: str, run: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        proxy = Proxy(answer.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 201 OK\r\n"))
        async with proxy.serving():
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            failure = (await refused(Dialer("ws://venue.test/", SystemClock(), SETTINGS))).failure
        assert (failure.cause, failure.status) == ("proxy", status)
        assert detail in failure.detail

    run(check())


def test_bytes_beyond_the_proxys_answer_are_refused() -> None:
    async def check() -> None:
        through = tunnel.Tunnel(b"CONNECT")
        through.data_received(b"HTTP/1.1 200 OK\r\n\r\nsurprise")
        with pytest.raises(tunnel.TunnelRefused, match="beyond its answer"):
            await through.ready

    asyncio.run(check())


def test_ipv6_targets_have_brackets() -> None:
    assert connect_request("::1", 443, None, "kcs").startswith(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")
