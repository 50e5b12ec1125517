"""Row buffers of an export, a class a channel: events in, one sorted Arrow table out.

Contract: `add` keeps a row in packed arrays and returns about how many bytes that took, `table` gives all rows as one
`pyarrow.Table` sorted by (market, recv, frame, event), a gap table by (recv, frame, event); then the buffer is used up.
Times are integer nanoseconds throughout, never a float. Used by `parquet.py` only. For a value that does not fit its
column `add` raises OverflowError and `table` what pyarrow raises (ArrowException, OverflowError).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable
from typing import Any, Final, Protocol

from kcs.model import Event, Gap, Level, OrderBook, Ticker, Trade

ROW_BYTES: Final = 64
"""What the columns that every channel has take, with some room for Python's own."""

_TICKER_NUMBERS: Final = ("last", "open", "high", "low", "volume", "value", "bid", "ask")
_FLOAT_BYTES: Final = 8
_BOXED_FLOAT_BYTES: Final = 32
_TEXT_BYTES: Final = 64


def channel_of(event: Event) -> str:
    """The channel that an event belongs to."""
    return _CHANNELS[type(event)]


def schema(channel: str) -> Any:
    """The `pyarrow.Schema` of a channel: the columns of all channels first, then its own."""
    import pyarrow as pa

    time = pa.timestamp("ns", tz="UTC")
    name = pa.dictionary(pa.int32(), pa.string())
    levels = pa.list_(pa.float64())
    own: dict[str, list[tuple[str, Any]]] = {
        "trade": [("price", pa.float64()), ("qty", pa.float64()), ("side", pa.int8()), ("id", pa.string())],
        "orderbook": [(f"{side}_{what}", levels) for side in ("ask", "bid") for what in ("price", "qty")],
        "ticker": [(number, pa.float64()) for number in _TICKER_NUMBERS],
        "gap": [
            ("from", time),
            ("to", time),
            ("cause", name),
            ("stream", pa.int64()),
            ("markets", pa.list_(pa.string())),
            ("frames", pa.int64()),
            ("covered_by", pa.int64()),
        ],
    }
    common = [("market", name), ("ts", time), ("recv", time), ("capture", name), ("frame", pa.int64())]
    return pa.schema([*common, ("event", pa.int32()), *own[channel]])


class Rows(Protocol):
    """What `parquet.py` needs of a buffer."""

    def add(self, event: Any, recv_ns: int, frame: int, index: int) -> int:
        """Keep one row; returns the bytes it takes, about."""
        ...

    def table(self, capture: str) -> Any:
        """All rows as a sorted `pyarrow.Table`. It may share the buffer's memory: nothing can be added afterwards."""
        ...

    def __len__(self) -> int: ...


def rows_of(channel: str) -> Rows:
    """An empty buffer for that channel."""
    return _BUFFERS[channel]()


class _Common(ABC):
    """The columns of every channel. `market` holds codes into `names`, in order of appearance, until `table`."""

    channel: str
    order: tuple[str, ...] = ("market", "recv", "frame", "event")

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.market = array("i")
        self.ts = array("q")
        self.recv = array("q")
        self.frame = array("q")
        self.event = array("i")

    def __len__(self) -> int:
        return len(self.recv)

    def _add(self, market: str, ts_ns: int, recv_ns: int, frame: int, index: int) -> None:
        code = self.names.get(market)
        if code is None:
            code = self.names[market] = len(self.names)
        self.market.append(code)
        self.ts.append(ts_ns)
        self.recv.append(recv_ns)
        self.frame.append(frame)
        self.event.append(index)

    @abstractmethod
    def _own(self) -> list[Any]:
        """The arrays of the channel's own columns, in the schema's order."""

    def _markets(self) -> Any:
        """The market column: a dictionary of the names that occur, in their order, so that codes sort as names do."""
        import pyarrow as pa

        ordered = sorted(self.names)
        rank = {name: code for code, name in enumerate(ordered)}
        new_code = [rank[name] for name in self.names]
        codes = array("i", map(new_code.__getitem__, self.market))
        return pa.DictionaryArray.from_arrays(_packed(codes, pa.int32()), pa.array(ordered, pa.string()))

    def table(self, capture: str) -> Any:
        """See `Rows`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = schema(self.channel)
        market = self._markets()
        capture_codes = _packed(array("i", bytes(4 * len(self))), pa.int32())
        captures = pa.DictionaryArray.from_arrays(capture_codes, pa.array([capture], pa.string()))
        time = kind.field("ts").type
        columns = [
            market,
            _packed(self.ts, time),
            _packed(self.recv, time),
            captures,
            _packed(self.frame, pa.int64()),
            _packed(self.event, pa.int32()),
            *self._own(),
        ]
        keys = pa.table([market.indices, *columns[2:3], *columns[4:6]], names=["market", "recv", "frame", "event"])
        order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in self.order])
        return pa.Table.from_arrays(columns, schema=kind).take(order)


class TradeRows(_Common):
    """price, qty, side, id."""

    channel = "trade"

    def __init__(self) -> None:
        super().__init__()
        self.price = array("d")
        self.qty = array("d")
        self.side = array("b")
        self.id: list[str] = []

    def add(self, event: Trade, recv_ns: int, frame: int, index: int) -> int:
        """See `Rows`."""
        self._add(event.market, event.ts_ns, recv_ns, frame, index)
        self.price.append(event.price)
        self.qty.append(event.qty)
        self.side.append(event.side)
        self.id.append(event.id)
        return ROW_BYTES + 2 * _FLOAT_BYTES + _TEXT_BYTES

    def _own(self) -> list[Any]:
        import pyarrow as pa

        numbers = [_packed(self.price, pa.float64()), _packed(self.qty, pa.float64())]
        return [*numbers, _packed(self.side, pa.int8()), pa.array(self.id, pa.string())]


class _Lists:
    """A column of lists of floats: all values in one array, and where each list ends."""

    __slots__ = ("ends", "values")

    def __init__(self) -> None:
        self.values = array("d")
        self.ends = array("i", (0,))

    def arrow(self) -> Any:
        import pyarrow as pa

        return pa.ListArray.from_arrays(_packed(self.ends, pa.int32()), _packed(self.values, pa.float64()))


class BookRows(_Common):
    """ask_price, ask_qty, bid_price, bid_qty: lists, best level first, of one length a side."""

    channel = "orderbook"

    def __init__(self) -> None:
        super().__init__()
        self.asks = (_Lists(), _Lists())
        self.bids = (_Lists(), _Lists())

    def add(self, event: OrderBook, recv_ns: int, frame: int, index: int) -> int:
        """See `Rows`."""
        self._add(event.market, event.ts_ns, recv_ns, frame, index)
        _add_levels(self.asks, event.asks)
        _add_levels(self.bids, event.bids)
        return ROW_BYTES + 2 * _FLOAT_BYTES * (len(event.asks) + len(event.bids) + 1)

    def _own(self) -> list[Any]:
        return [column.arrow() for column in (*self.asks, *self.bids)]


def _add_levels(columns: tuple[_Lists, _Lists], levels: tuple[Level, ...]) -> None:
    prices, quantities = columns
    prices.values.extend([level[0] for level in levels])
    quantities.values.extend([level[1] for level in levels])
    prices.ends.append(len(prices.values))
    quantities.ends.append(len(quantities.values))


class TickerRows(_Common):
    """The numbers of a ticker; null where the venue has none."""

    channel = "ticker"

    def __init__(self) -> None:
        super().__init__()
        self.numbers: tuple[list[float | None], ...] = tuple([] for _ in _TICKER_NUMBERS)

    def add(self, event: Ticker, recv_ns: int, frame: int, index: int) -> int:
        """See `Rows`."""
        self._add(event.market, event.ts_ns, recv_ns, frame, index)
        for name, column in zip(_TICKER_NUMBERS, self.numbers, strict=True):
            column.append(getattr(event, name))
        return ROW_BYTES + len(_TICKER_NUMBERS) * _BOXED_FLOAT_BYTES

    def _own(self) -> list[Any]:
        import pyarrow as pa

        return [pa.array(column, pa.float64()) for column in self.numbers]


class GapRows(_Common):
    """from, to, cause, stream, markets, frames, covered_by. `market`: where a gap names exactly one; `ts`: its end."""

    channel = "gap"
    order = ("recv", "frame", "event")

    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[Gap] = []

    def add(self, event: Gap, recv_ns: int, frame: int, index: int) -> int:
        """See `Rows`."""
        self._add("", event.to_ns, recv_ns, frame, index)
        self.gaps.append(event)
        return ROW_BYTES + 4 * _TEXT_BYTES + _TEXT_BYTES * len(event.markets)

    def _markets(self) -> Any:
        import pyarrow as pa

        only = [gap.markets[0] if len(gap.markets) == 1 else None for gap in self.gaps]
        return pa.array(only, pa.string()).dictionary_encode()

    def _own(self) -> list[Any]:
        import pyarrow as pa

        kind = schema("gap")
        return [
            pa.array([gap.from_ns for gap in self.gaps], pa.int64()).cast(kind.field("from").type),
            pa.array([gap.to_ns for gap in self.gaps], pa.int64()).cast(kind.field("to").type),
            pa.array([gap.cause for gap in self.gaps], pa.string()).dictionary_encode(),
            pa.array([gap.stream for gap in self.gaps], pa.int64()),
            pa.array([gap.markets for gap in self.gaps], kind.field("markets").type),
            pa.array([gap.frames for gap in self.gaps], pa.int64()),
            pa.array([gap.covered_by for gap in self.gaps], pa.int64()),
        ]


def _packed(values: array[Any], kind: Any) -> Any:
    """An Arrow array over the same bytes, without a copy."""
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


_CHANNELS: Final[dict[type, str]] = {Trade: "trade", OrderBook: "orderbook", Ticker: "ticker", Gap: "gap"}
_BUFFERS: Final[dict[str, Callable[[], Rows]]] = {
    "trade": TradeRows,
    "orderbook": BookRows,
    "ticker": TickerRows,
    "gap": GapRows,
}
