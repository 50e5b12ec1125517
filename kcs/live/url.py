"""What a venue's URL may not contain. Called before a URL reaches a capture's header, an open record or a log."""

from __future__ import annotations

import re

from kcs.errors import ConfigError


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
