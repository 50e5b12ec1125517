"""Credentials in a URL are refused, and the refusal does not spread them; a URL without TLS is spoken about."""

from __future__ import annotations

import pytest

from kcs.clock import VirtualClock
from kcs.errors import ConfigError
from kcs.live.transport import Dialer, TransportSettings
from kcs.live.url import is_loopback, unprotected


@pytest.mark.parametrize(
    "url",
    [
        "ws://me:hunter2@host:1/path",
        "wss://hunter2@host",
        "ws://me:hunter2@[half:an:address",
        "http://me:hunter2@host",
        "me:hunter2@host",
        "ws://a@b:hunter2@host?x=1",
    ],
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="user or password") as refusal:
        Dialer(url, VirtualClock(), TransportSettings())
    assert "hunter2" not in str(refusal.value)


def test_an_at_sign_elsewhere_is_none() -> None:
    Dialer("ws://127.0.0.1:1/stream@depth?tag=a@b", VirtualClock(), TransportSettings())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "::1", "::1%lo"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "::", "0.0.0.0"])
def test_another_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "url",
    [
        "wss://api.upbit.com/websocket/v1",
        "https://api.upbit.com",
        "ws://127.0.0.1:9801",
        "ws://[::1]:9801/x",
        "WS://localhost",
        "no URL",
        "ws://[half",
    ],
)
def test_nothing_is_said_of_tls_and_of_this_machine(url: str) -> None:
    assert unprotected(url) is None


@pytest.mark.parametrize(
    "url", ["ws://10.0.0.1:9801", "WS://api.upbit.com/websocket/v1?token=hunter2", "http://api.upbit.com", "ws://"]
)
def test_a_url_without_tls_to_another_machine_is_named_loudly(url: str) -> None:
    said = unprotected(url)
    assert said is not None
    assert "NOTHING PROTECTS" in said
    assert url.partition("?")[0] in said
    assert "hunter2" not in said


@pytest.mark.parametrize("url", ["ws://h:99999/?token=hunter2", "http://h/?token=hunter2"])
def test_a_url_that_cannot_be_used_is_named_without_its_token(url: str) -> None:
    with pytest.raises(ConfigError, match="not a websocket URL") as error:
        Dialer(url, VirtualClock(), TransportSettings())
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("proxy", ["ftp://me:hunter2@proxy:1", "http://me:hunter2@", "socks5://me:hunter2@proxy:1"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "WSS_PROXY", "wss_proxy"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigError, match=r"proxy|SOCKS") as error:
        Dialer("wss://api.upbit.com", VirtualClock(), TransportSettings())
    assert "hunter2" not in str(error.value)
    assert "hunter2" not in repr(error.value.__cause__)
