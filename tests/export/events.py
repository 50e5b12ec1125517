"""Events for the export tests, and an export that takes a list of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kcs.export.parquet import ExportReport, ParquetExporter
from kcs.model import Event, Gap, OrderBook, Ticker, Trade

CAPTURE = "00112233445566aa"
OTHER_CAPTURE = "ffeeddccbbaa9988"

DAY_NS = 86_400_000_000_000
NOON_NS = 20_720 * DAY_NS + DAY_NS // 2
"""2026-09-24T12:00:00Z."""

Row = tuple[Event, int, int, int]
"""event, recv_ns, frame, event index: the arguments of `add`."""


def trade(number: int, market: str = "KRW-BTC", recv_ns: int | None = None) -> Row:
    """A trade whose ns would not survive a float: odd, and far above 2^53."""
    ts_ns = NOON_NS + number * 1_000_003 + 1
    event = Trade(market, 100.5 + number, 0.1 * (number + 1), 1 if number % 2 else -1, ts_ns, str(2**60 + number))
    return event, ts_ns + 7_000_001 if recv_ns is None else recv_ns, number, number % 3


def book(number: int, levels: int, market: str = "KRW-BTC") -> Row:
    asks = tuple((1000.25 + level, 0.5 + level) for level in range(levels))
    bids = tuple((999.75 - level, 1.5 + level) for level in range(max(0, levels - 1)))
    ts_ns = NOON_NS + number * 1_000_003
    return OrderBook(market, asks, bids, ts_ns), ts_ns + 9, number, 0


def ticker(number: int) -> Row:
    ts_ns = NOON_NS + number * 1_000_003 + 3
    return Ticker("KRW-ETH", 5.0, 4.0, None, 3.5, 1e9, None, None, 5.5, ts_ns), ts_ns + 11, number, 0


def gap(number: int, markets: tuple[str, ...] = (), frames: int | None = None, covered_by: int | None = None) -> Row:
    return Gap(3, NOON_NS - 5, NOON_NS + 1, "disconnect", markets, frames, covered_by), NOON_NS + number, number, 0


def export(out: Path, rows: Iterable[Row], capture: str = CAPTURE, **options: Any) -> ExportReport:
    with ParquetExporter(out, **options) as exporter:
        exporter.start("upbit", capture)
        for row in rows:
            exporter.add(*row)
        return exporter.close()
