"""What researchers read: DuckDB and polars see every value that was exported, times to the nanosecond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kcs.model import Gap, OrderBook, Ticker, Trade
from tests.export.events import CAPTURE, DAY_NS, NOON_NS, OTHER_CAPTURE, Row, book, export, gap, ticker, trade

TRADES = [trade(number, market) for number in range(60) for market in ("KRW-BTC", "BTC-ETH", "USDT-XRP")]
BOOKS = [book(number, levels) for number, levels in enumerate((15, 0, 1, 30, 2))]
TICKERS = [ticker(number) for number in range(3)]
GAPS = [gap(0), gap(1, ("KRW-BTC",), 7), gap(2, ("KRW-BTC", "KRW-ETH"), 0, covered_by=1)]
TIMES = ("ts", "recv", "from", "to")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    export(out, [*TRADES, *BOOKS, *TICKERS, *GAPS], row_group_rows=50)
    export(out, [trade(7, recv_ns=NOON_NS + DAY_NS)], capture=OTHER_CAPTURE)
    return out


def common(row: Row, market: str | None, ts_ns: int) -> dict[str, Any]:
    _, recv_ns, frame, index = row
    return {"market": market, "ts": ts_ns, "recv": recv_ns, "capture": CAPTURE, "frame": frame, "event": index}


def expected(row: Row) -> dict[str, Any]:
    """A row as it must be read, times in ns since the epoch."""
    event = row[0]
    if isinstance(event, Trade):
        own: dict[str, Any] = {"price": event.price, "qty": event.qty, "side": event.side, "id": event.id}
        return {**common(row, event.market, event.ts_ns), **own}
    if isinstance(event, OrderBook):
        own = {}
        for side, levels in (("ask", event.asks), ("bid", event.bids)):
            own[f"{side}_price"] = [price for price, _ in levels]
            own[f"{side}_qty"] = [qty for _, qty in levels]
        return {**common(row, event.market, event.ts_ns), **own}
    if isinstance(event, Ticker):
        numbers = ("last", "open", "high", "low", "volume", "value", "bid", "ask")
        own = {name: getattr(event, name) for name in numbers}
        return {**common(row, event.market, event.ts_ns), **own}
    assert isinstance(event, Gap)
    only = event.markets[0] if len(event.markets) == 1 else None
    own = {"from": event.from_ns, "to": event.to_ns, "cause": event.cause, "stream": event.stream}
    own |= {"markets": list(event.markets), "frames": event.frames, "covered_by": event.covered_by}
    return {**common(row, only, event.to_ns), **own}


def arrival(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["recv"], row["frame"], row["event"], row["market"] or ""


CHANNELS = [("trade", TRADES), ("orderbook", BOOKS), ("ticker", TICKERS), ("gap", GAPS)]


@pytest.mark.parametrize(("channel", "rows"), CHANNELS)
def test_duckdb_reads_every_value(dataset: Path, channel: str, rows: list[Row]) -> None:
    duckdb = pytest.importorskip("duckdb")
    source = f"read_parquet('{dataset}/channel={channel}/**/*.parquet', hive_partitioning=true)"
    columns = [
        c for c in duckdb.sql(f"SELECT * FROM {source} LIMIT 0").columns if c not in ("channel", "exchange", "date")
    ]
    chosen = [f'epoch_ns("{c}") AS "{c}"' if c in TIMES else f'"{c}"' for c in columns]
    found = duckdb.sql(f"SELECT {', '.join(chosen)} FROM {source} WHERE capture = '{CAPTURE}'").fetchall()
    read = [dict(zip(columns, row, strict=True)) for row in found]
    assert sorted(read, key=arrival) == sorted(map(expected, rows), key=arrival)


def test_duckdb_finds_the_partitions(dataset: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    everything = f"read_parquet('{dataset}/**/*.parquet', hive_partitioning=true, union_by_name=true)"
    counts = duckdb.sql(f"SELECT channel, exchange, date::text, count(*) FROM {everything} GROUP BY ALL").fetchall()
    assert sorted(counts) == [
        ("gap", "upbit", "2026-09-24", len(GAPS)),
        ("orderbook", "upbit", "2026-09-24", len(BOOKS)),
        ("ticker", "upbit", "2026-09-24", len(TICKERS)),
        ("trade", "upbit", "2026-09-24", len(TRADES)),
        ("trade", "upbit", "2026-09-25", 1),
    ]


def test_duckdb_sees_the_types_of_the_documentation(dataset: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    source = f"read_parquet('{dataset}/channel=trade/**/*.parquet')"
    kinds = dict(duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall())
    assert (kinds["side"], kinds["price"], kinds["qty"], kinds["id"]) == ("TINYINT", "DOUBLE", "DOUBLE", "VARCHAR")
    assert (kinds["frame"], kinds["event"], kinds["market"]) == ("BIGINT", "INTEGER", "VARCHAR")


@pytest.mark.parametrize(("channel", "rows"), CHANNELS)
def test_polars_reads_every_value(dataset: Path, channel: str, rows: list[Row]) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.scan_parquet(dataset / f"channel={channel}" / "**" / "*.parquet", hive_partitioning=True)
    frame = frame.filter(pl.col("capture").cast(pl.String) == CAPTURE)
    frame = frame.with_columns(pl.col(name).dt.epoch("ns") for name in frame.collect_schema().names() if name in TIMES)
    read = frame.drop("channel", "exchange", "date", strict=False).collect().to_dicts()
    assert sorted(read, key=arrival) == sorted(map(expected, rows), key=arrival)


def test_polars_finds_the_partitions(dataset: Path) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.scan_parquet(dataset / "channel=trade", hive_partitioning=True)
    schema = frame.collect_schema()
    assert schema["ts"] == schema["recv"] == pl.Datetime("ns", "UTC")
    assert (schema["side"], schema["price"]) == (pl.Int8, pl.Float64)
    counts = frame.group_by(pl.col("exchange"), pl.col("date").cast(pl.String)).len().collect().rows()
    assert sorted(counts) == [("upbit", "2026-09-24", len(TRADES)), ("upbit", "2026-09-25", 1)]


def test_the_order_of_arrival_comes_back(dataset: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    source = f"read_parquet('{dataset}/channel=trade/**/*.parquet')"
    found = duckdb.sql(f"SELECT frame FROM {source} WHERE capture = '{CAPTURE}' ORDER BY recv, frame, event").fetchall()
    assert [frame for (frame,) in found] == [row[2] for row in TRADES]
