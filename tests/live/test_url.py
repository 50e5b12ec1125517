"""Credentials in a URL are refused, and the refusal does not spread them."""

from __future__ import annotations

import pytest

from kcs.clock import VirtualClock
from kcs.errors import ConfigError
from kcs.live.transport import Dialer, TransportSettings


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
