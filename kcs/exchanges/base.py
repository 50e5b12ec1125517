"""What a venue must declare, and what its adapter must do. Knows only `model` and `errors`.

A venue is one frozen `Venue` in one file, entered in the registry (`kcs/exchanges/__init__.py`). Its adapter turns
bytes into events in one typed step; nothing outside the file knows the venue's spelling. How to add one: `README.md`
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from kcs.model import Event

PROOFS: Final = ("sequence", "checksum", "trade_ids")
"""What a venue's protocol may prove of its frames: `sequence` every hole and every exchange of places, `checksum` that
a book is complete, `trade_ids` duplicates and nothing else (ids that are unique but no sequence)."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one connection shall deliver. `markets` as the venue spells them; `format` a wire format of the venue."""

    channels: tuple[str, ...]
    markets: tuple[str, ...]
    format: str = ""
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How a connection is kept alive: protocol pings, and texts sent once after subscribing. Seconds."""

    ping_every_s: float = 20.0
    pong_within_s: float = 20.0
    texts_after_subscribe: tuple[str, ...] = ()
    silence_max_s: float = 60.0
    """No data frame of any market for this long: the stream is suspect (gap `silence`, reconnect)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The venue's published limits; the session and collector keep them."""

    connects_per_s: float = 5.0
    messages_per_s: float = 5.0
    connection_age_max_s: float | None = None
    """The venue ends a connection that is older: it is renewed before, the new one first."""
    frame_bytes_max: int = 8 * 1024 * 1024


class Adapter(Protocol):
    """Parses the frames of one venue. Synchronous, no clock, no I/O; state belongs to a stream."""

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        """The events of one frame, in order.

        Raises FrameIgnored (recognised, no event) or FrameRejected (not what the venue documents); nothing else.
        """
        ...

    def reset(self, stream: int, markets: Sequence[str] = ()) -> None:
        """Forget what was known of the stream (all markets when none are named)."""
        ...

    def save(self) -> Iterable[tuple[int, str, bytes]]:
        """(stream, market, state) of all that can change a later parse; empty for a stateless venue."""
        ...

    def load(self, stream: int, market: str, state: bytes) -> None:
        """The inverse of `save`; raises ValueError for a state that is not ours."""
        ...


@dataclass(frozen=True, slots=True)
class Venue:
    """One exchange: where it is, what it offers, how to talk to it.

    `subscribe(subscription, ticket)` gives the text frames to send after connecting, the full list each time;
    `check_market(code)` raises UnknownNameError with the near spelling for a code that cannot exist.
    """

    name: str
    title: str
    url: str
    rest_url: str
    docs_url: str
    channels: tuple[str, ...]
    formats: tuple[str, ...]
    depths: tuple[int, ...]
    default_markets: tuple[str, ...]
    adapter: Callable[[], Adapter]
    subscribe: Callable[[Subscription, str], list[str]]
    check_market: Callable[[str], None]
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    limits: Limits = field(default_factory=Limits)
    codes_in_frames: bool = False
    """A frame with an event of a market contains its code byte for byte, neither compressed nor as a number."""
    proves: tuple[str, ...] = ()
    """Of `PROOFS`, what this venue's protocol has."""

    @property
    def verifiable(self) -> bool:
        """True when a frame that is lost inside a connection shows. Else nobody can say that nothing was lost there."""
        return "sequence" in self.proves or "checksum" in self.proves
