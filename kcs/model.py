"""What flows through kcs: market events and capture records. Imports nothing of kcs.

Units: prices in the quote currency, quantities in the base currency, both float64; times as integer nanoseconds since
the Unix epoch (`*_ns`), made from the venue's own digits. In Kafka `ts` is `ts_ns / 1_000_000_000`, float Unix seconds:
an int by an int is rounded once, so it prints as the venue wrote it.
`side` is the *taker's*: BUY = 1, SELL = -1. Everything here is immutable and slotted; `gc=False` is safe because none
of these objects can be part of a reference cycle.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

import msgspec

BUY: Final = 1
SELL: Final = -1

CHANNELS: Final = ("trade", "orderbook", "ticker")
"""The channels a user subscribes to. Kafka has two more: `gap` and `reject`."""

Level = tuple[float, float]
"""(price, quantity)"""


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One execution. `ts_ns` is the venue's matching time, `id` the venue's trade id ("" where it has none)."""

    market: str
    price: float
    qty: float
    side: int
    ts_ns: int
    id: str = ""


class OrderBook(msgspec.Struct, frozen=True, gc=False):
    """The book as the venue sent it (or as kept from its deltas), best level first, padding levels dropped."""

    market: str
    asks: tuple[Level, ...]
    bids: tuple[Level, ...]
    ts_ns: int


class Ticker(msgspec.Struct, frozen=True, gc=False):
    """Rolling statistics of one market; the adapter's docstring says the window of open/high/low/volume/value."""

    market: str
    last: float
    open: float | None
    high: float | None
    low: float | None
    volume: float | None
    value: float | None
    bid: float | None
    ask: float | None
    ts_ns: int


class Gap(msgspec.Struct, frozen=True, gc=False):
    """A suspect window of one stream: data between `from_ns` and `to_ns` may be missing.

    `cause` is a slug (`disconnect`, `silence`, `collector_down`, `sequence`, ...), `markets` those concerned (empty:
    all of the stream), `frames` how many are missing where the venue can prove it, else None. `covered_by`: the stream
    of the same subscription that was open and delivering all the while, so that nothing need be missing; else None.
    """

    stream: int
    from_ns: int
    to_ns: int
    cause: str
    markets: tuple[str, ...] = ()
    frames: int | None = None
    covered_by: int | None = None


Event = Trade | OrderBook | Ticker | Gap


class Kind(IntEnum):
    """The kinds of capture records; the numbers are those of the file format."""

    OPEN = 1
    SENT = 2
    TEXT = 3
    BINARY = 4
    REST = 5
    CLOSE = 6
    GAP = 7
    CLOCK = 8
    STATE = 9


_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What a record's fields may hold: files come from anywhere, and a number beyond it fits no reader and no report."""


FRAME_KINDS: Final = frozenset((int(Kind.TEXT), int(Kind.BINARY)))
"""The kinds of data frames, as plain ints: what arrived, as against what we did or noted."""


class OpenFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A connection was made. `frames`: data frames of this stream so far; `continued`: open in the file before."""

    url: str
    cause: str = "start"
    frames: _Int64 = 0
    continued: bool = False


class RestFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A REST body fetched for this stream; the body is the record's payload."""

    url: str
    status: _Int64 = 200


class CloseFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A connection ended. `code` 1006: without a close frame. `frames`: data frames of this stream so far."""

    code: _Int64
    reason: str = ""
    cause: str = ""
    frames: _Int64 = 0


class GapFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A gap that the session saw; see `Gap`."""

    from_ns: _Int64
    to_ns: _Int64
    cause: str
    markets: tuple[str, ...] = ()
    frames: _Int64 | None = None
    covered_by: _Int64 | None = None


class ClockFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The wall clock and the monotonic clock, read at the same moment."""

    wall_ns: _Int64
    monotonic_ns: _Int64


class StateFields(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Saved parser state of one market, written where a rotated file begins; the state is the record's payload."""

    market: str = ""


Fields = OpenFields | RestFields | CloseFields | GapFields | ClockFields | StateFields

FIELDS_OF_KIND: Final[dict[Kind, type[Fields]]] = {
    Kind.OPEN: OpenFields,
    Kind.REST: RestFields,
    Kind.CLOSE: CloseFields,
    Kind.GAP: GapFields,
    Kind.CLOCK: ClockFields,
    Kind.STATE: StateFields,
}
"""Kinds not listed (SENT, TEXT, BINARY) carry a payload and no fields."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of a capture: its position, what it is, which connection, when, and its bytes."""

    number: int
    kind: Kind
    stream: int
    recv_ns: int
    payload: bytes
    fields: Fields | None = None
