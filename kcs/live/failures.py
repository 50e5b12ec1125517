"""Typed causes of failed connections from what the system and the server said. Pure functions."""

from __future__ import annotations

import socket
import ssl
from email.utils import mktime_tz, parsedate_tz

from kcs.clock import NS_PER_S
from kcs.live.actions import ConnectFailure


def failure_of(error: OSError | UnicodeError) -> ConnectFailure:
    """The cause of an error while connecting (TimeoutError and TLS errors are OSErrors).

    A host name that cannot be encoded raises UnicodeError from the resolver.
    """
    if isinstance(error, TimeoutError):
        cause = "timeout"
    elif isinstance(error, ssl.SSLError):
        cause = "tls"
    elif isinstance(error, socket.gaierror | UnicodeError):
        cause = "dns"
    elif isinstance(error, ConnectionRefusedError):
        cause = "refused"
    else:
        cause = "network"
    return ConnectFailure(cause, str(error) or type(error).__name__)


def retry_after_s(text: str, now_ns: int) -> float | None:
    """Seconds from a Retry-After value (a number or an HTTP date); None for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    when = parsedate_tz(text)
    if when is None:
        return None
    try:
        return max(0.0, mktime_tz(when) - now_ns / NS_PER_S)
    except (ValueError, OverflowError):
        return None
