"""The registry of venues: explicit, one line each. `venue(name)` raises UnknownNameError with a suggestion."""

from __future__ import annotations

from collections.abc import Iterable

from kcs.errors import UnknownNameError
from kcs.exchanges.base import Adapter, Heartbeat, Limits, Subscription, Venue
from kcs.exchanges.upbit import UPBIT

VENUES: dict[str, Venue] = {v.name: v for v in (UPBIT,)}

__all__ = ["VENUES", "Adapter", "Heartbeat", "Limits", "Subscription", "Venue", "unverifiable", "venue"]


def unverifiable(names: Iterable[str]) -> list[str]:
    """Those of the named venues whose protocol cannot prove that nothing was lost inside a connection; sorted."""
    return sorted(name for name in set(names) if not venue(name).verifiable)


def venue(name: str) -> Venue:
    """The venue of that name."""
    try:
        return VENUES[name]
    except KeyError:
        raise UnknownNameError("exchange", name, VENUES) from None
