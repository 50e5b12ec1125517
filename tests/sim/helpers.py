"""What several simulator tests need: requests, a connected client, decoded frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from kcs.clock import NS_PER_S
from kcs.model import CHANNELS
from kcs.sim.actions import Action, SendFrame, VenueConnection
from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings
from kcs.sim.upbit import UpbitExchange

START_NS = DEFAULT_EPOCH_NS


def request(
    codes: Sequence[str],
    channels: Sequence[str] = CHANNELS,
    *,
    wire_format: str | None = None,
    **options: Any,
) -> bytes:
    """A subscription of `channels` x `codes`; `options` go into each type object."""
    parts: list[dict[str, Any]] = [{"ticket": "t"}, *({"type": name, "codes": codes, **options} for name in channels)]
    if wire_format is not None:
        parts.append({"format": wire_format})
    return orjson.dumps(parts)


def connected(settings: SimSettings) -> tuple[UpbitExchange, VenueConnection]:
    """An exchange that opened at START_NS and a client that has said nothing yet."""
    exchange = UpbitExchange(settings, START_NS)
    return exchange, exchange.connect(START_NS)


def payloads(actions: Sequence[Action]) -> list[bytes]:
    """The messages among the actions."""
    return [action.payload for action in actions if isinstance(action, SendFrame)]


def decoded(actions: Sequence[Action]) -> list[Any]:
    """The messages among the actions, as parsed JSON."""
    return [orjson.loads(payload) for payload in payloads(actions)]


def seconds(amount: float) -> int:
    """START_NS plus `amount` seconds."""
    return START_NS + round(amount * NS_PER_S)


def everything(settings: SimSettings, wire_format: str, until_s: float) -> list[bytes]:
    """All frames that a client of everything gets in `until_s` seconds."""
    _, client = connected(settings)
    first = client.receive(START_NS, "text", request(settings.markets, settings.channels, wire_format=wire_format))
    return payloads(first) + payloads(client.poll(seconds(until_s)))
