"""What a venue's URL may not contain, and what is said of one without TLS. Called before a URL reaches a capture's
header, an open record or a log.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from kcs.errors import ConfigError
from kcs.live.scrub import scrub_url

_OPEN_SCHEMES: Final = ("ws", "http")


def refuse_credentials(url: str) -> None:
    """Raise ConfigError, which does not repeat them, for a URL with `user:password@`.

    Loose on purpose: whatever stands before an `@` in the authority is refused, be the rest a URL or not.
    """
    authority = re.split(r"[/?#]", url.partition("//")[2] or url, maxsplit=1)[0]
    if "@" in authority:
        raise ConfigError(
            "the URL has a user or password in it, which would stand in every capture and log",
            where=f"the URL of {authority.rpartition('@')[2]}",
            remedy="leave out what is before the @: public market data needs no credentials",
        )


def is_loopback(host: str) -> bool:
    """Whether this host is this machine, by what is written, without asking a name server."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def unprotected(url: str) -> str | None:
    """What a person must be told of a URL without TLS that leads to another machine; None where there is nothing."""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname or ""
    except ValueError:  # no URL: whoever dials it says so
        return None
    if scheme not in _OPEN_SCHEMES or is_loopback(host):
        return None
    return (
        f"NOTHING PROTECTS WHAT COMES FROM {scrub_url(url)}: whoever is on the way can change it unseen;"
        f" use {scheme}s:// to any machine but this one"
    )
