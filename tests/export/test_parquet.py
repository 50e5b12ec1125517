"""What the exporter writes: layout, row groups, bounds, and that nothing half-made or overwritten is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kcs.errors import ExportError
from kcs.export.parquet import ParquetExporter
from kcs.export.rows import rows_of
from kcs.model import Trade
from tests.export.events import CAPTURE, DAY_NS, NOON_NS, OTHER_CAPTURE, Row, book, export, gap, ticker, trade

pq = pytest.importorskip("pyarrow.parquet")


def failing(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, and then a failure of whoever reads them."""
    yield from rows
    raise RuntimeError("midway")


def names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def test_layout_and_report(tmp_path: Path) -> None:
    report = export(tmp_path / "out", [trade(0), trade(1), book(2, 3), ticker(3), gap(4)])
    assert names(tmp_path / "out") == [
        f"channel={channel}/exchange=upbit/date=2026-09-24/part-{CAPTURE}-0.parquet"
        for channel in ("gap", "orderbook", "ticker", "trade")
    ]
    assert report.rows == {"trade": 2, "orderbook": 1, "ticker": 1, "gap": 1}
    assert sorted(report.files) == [tmp_path / "out" / name for name in names(tmp_path / "out")]
    assert report.bytes == sum(path.stat().st_size for path in report.files) > 0


def test_nothing_exported_is_no_file(tmp_path: Path) -> None:
    report = export(tmp_path / "out", [])
    assert (report.files, report.rows, report.bytes) == ((), {}, 0)
    assert names(tmp_path / "out") == []


def test_the_date_is_the_day_of_receipt(tmp_path: Path) -> None:
    midnight = NOON_NS + DAY_NS // 2
    export(tmp_path, [trade(0, recv_ns=midnight - 1), trade(1, recv_ns=midnight)])
    assert [name.split("/")[2] for name in names(tmp_path)] == ["date=2026-09-24", "date=2026-09-25"]


@pytest.mark.parametrize(("mask", "file", "directory"), [(0o022, 0o640, 0o750), (0o077, 0o600, 0o700)])
def test_what_is_made_is_for_owner_and_group(tmp_path: Path, mask: int, file: int, directory: int) -> None:
    before = os.umask(mask)
    try:
        export(tmp_path / "out", [trade(0), book(1, 3)])
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o7777 == (directory if path.is_dir() else file), path


def test_nothing_is_written_through_a_link_in_the_place_of_a_temporary_file(tmp_path: Path) -> None:
    (path,) = export(tmp_path / "out", [trade(0)]).files
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.unlink()
    path.with_name(path.name + ".tmp").symlink_to(victim)
    assert export(tmp_path / "out", [trade(0)]).files == (path,)
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()


def groups(path: Path) -> list[Any]:
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number) for number in range(metadata.num_row_groups)]


def test_row_groups_are_bounded_sorted_and_prune_by_market(tmp_path: Path) -> None:
    markets = ["KRW-XRP", "BTC-ETH", "KRW-BTC", "USDT-BTC"]
    rows = [trade(number, markets[number % 4]) for number in range(1000)]
    (path,) = export(tmp_path, rows, row_group_rows=256).files
    assert [group.num_rows for group in groups(path)] == [256, 256, 256, 232]
    file = pq.ParquetFile(path)
    for number, group in enumerate(groups(path)):
        table = file.read_row_group(number, columns=["market", "recv", "frame"])
        columns = [table["market"], table["recv"].cast("int64"), table["frame"]]
        keys = list(zip(*(column.to_pylist() for column in columns), strict=True))
        assert keys == sorted(keys)
        assert len({market for market, _, _ in keys}) == 4
        statistics = group.column(file.schema_arrow.get_field_index("market")).statistics
        assert (statistics.min, statistics.max) == ("BTC-ETH", "USDT-BTC")
        assert group.column(0).has_offset_index, "a reader of one market can skip pages"


def test_statistics_name_only_markets_that_are_there(tmp_path: Path) -> None:
    """A dictionary carried over from the row group before would make every group look as if it held every market."""
    rows = [trade(0, "KRW-AAA"), trade(1, "KRW-AAA"), trade(2, "KRW-ZZZ"), trade(3, "KRW-ZZZ")]
    (path,) = export(tmp_path, rows, row_group_rows=2).files
    spans = [(s.min, s.max) for s in (group.column(0).statistics for group in groups(path))]
    assert spans == [("KRW-AAA", "KRW-AAA"), ("KRW-ZZZ", "KRW-ZZZ")]


def test_gaps_are_sorted_by_time(tmp_path: Path) -> None:
    (path,) = export(tmp_path, [gap(5), gap(3, ("KRW-BTC",)), gap(4)]).files
    assert pq.read_table(path, partitioning=None)["frame"].to_pylist() == [3, 4, 5]


def test_columns_are_compressed_and_dictionary_encoded(tmp_path: Path) -> None:
    (path,) = export(tmp_path, [trade(number) for number in range(100)]).files
    (group,) = groups(path)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("market", "capture"):
        assert "RLE_DICTIONARY" in columns[name].encodings
    assert "RLE_DICTIONARY" not in columns["id"].encodings
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert kinds == {
        "market": "dictionary<values=string, indices=int32, ordered=0>",
        "ts": "timestamp[ns, tz=UTC]",
        "recv": "timestamp[ns, tz=UTC]",
        "capture": "dictionary<values=string, indices=int32, ordered=0>",
        "frame": "int64",
        "event": "int32",
        "price": "double",
        "qty": "double",
        "side": "int8",
        "id": "string",
    }


def test_memory_is_bounded_by_bytes_over_all_files(tmp_path: Path) -> None:
    """Trades and wide books on two days, 20 kB in all: what is buffered never passes the bound by more than a row."""
    bound = 20_000
    with ParquetExporter(tmp_path, buffer_bytes=bound) as exporter:
        exporter.start("upbit", CAPTURE)
        for number in range(400):
            row = book(number, 30) if number % 2 else trade(number)
            exporter.add(row[0], row[1] + (number % 4 // 2) * DAY_NS, row[2], row[3])
            held = sum(part.buffered_bytes for part in exporter._open.values())
            assert held == exporter._buffered
            assert held < bound
        report = exporter.close()
    assert report.rows == {"trade": 200, "orderbook": 200}
    books = [path for path in report.files if "orderbook" in str(path)]
    assert len(books) == 2
    assert all(len(groups(path)) >= 5 for path in books)


def test_what_a_row_is_said_to_take_is_about_true() -> None:
    """The bound is one on memory, not on an invented number: books of 30 levels, nothing but packed arrays."""
    buffer = rows_of("orderbook")
    said = sum(buffer.add(*book(number, 30)) for number in range(1000))
    assert 0.9 < said / buffer.table(CAPTURE).nbytes < 1.5


def test_open_files_are_bounded_and_days_may_return(tmp_path: Path) -> None:
    days = [0, 1, 2, 3, 0, 3, 1, 3]  # 3 is used again before 1 comes, so 0 is completed and not 3
    with ParquetExporter(tmp_path, files_open_max=2) as exporter:
        exporter.start("upbit", CAPTURE)
        for number, day in enumerate(days):
            exporter.add(*trade(number, recv_ns=NOON_NS + day * DAY_NS + number))
            assert len(exporter._open) <= 2
        exporter.close()
    found = [name.removeprefix("channel=trade/exchange=upbit/") for name in names(tmp_path)]
    assert found == [
        f"date=2026-09-24/part-{CAPTURE}-0.parquet",
        f"date=2026-09-24/part-{CAPTURE}-1.parquet",
        f"date=2026-09-25/part-{CAPTURE}-0.parquet",
        f"date=2026-09-25/part-{CAPTURE}-1.parquet",
        f"date=2026-09-26/part-{CAPTURE}-0.parquet",
        f"date=2026-09-27/part-{CAPTURE}-0.parquet",
    ]
    frames = [f for path in tmp_path.rglob("*.parquet") for f in pq.ParquetFile(path).read()["frame"].to_pylist()]
    assert sorted(frames) == list(range(len(days)))


def test_captures_may_take_turns(tmp_path: Path) -> None:
    with ParquetExporter(tmp_path) as exporter:
        for number in range(10):
            exporter.start("upbit", OTHER_CAPTURE if number % 2 else CAPTURE)
            exporter.add(*trade(number))
    assert {path.name for path in tmp_path.rglob("*.parquet")} == {
        f"part-{CAPTURE}-0.parquet",
        f"part-{OTHER_CAPTURE}-0.parquet",
    }
    for path in tmp_path.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        assert set(table["capture"].to_pylist()) == {path.name.split("-")[1]}
        assert {frame % 2 for frame in table["frame"].to_pylist()} == {0 if CAPTURE in path.name else 1}


def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [trade(number, f"KRW-{number % 7}") for number in range(500)] + [book(500, 15), gap(501)]
    first, second = (export(tmp_path / name, rows, row_group_rows=100) for name in ("a", "b"))
    assert [path.read_bytes() for path in first.files] == [path.read_bytes() for path in second.files]


# Nothing is overwritten, nothing half-made is left.


def test_a_capture_is_not_exported_twice(tmp_path: Path) -> None:
    (path,) = export(tmp_path, [trade(0)]).files
    before = path.read_bytes()
    with pytest.raises(ExportError, match="exported here before") as caught:
        export(tmp_path, [trade(1)])
    assert "--force" in caught.value.remedy
    assert path.read_bytes() == before
    assert names(tmp_path) == [str(path.relative_to(tmp_path))]


def test_another_capture_joins_the_dataset(tmp_path: Path) -> None:
    export(tmp_path, [trade(0)])
    export(tmp_path, [trade(1)], capture=OTHER_CAPTURE)
    assert len(names(tmp_path)) == 2


def test_force_replaces_all_parts_of_the_capture_and_no_other(tmp_path: Path) -> None:
    export(tmp_path, [trade(0, recv_ns=NOON_NS), trade(1, recv_ns=NOON_NS + DAY_NS)])
    (other,) = export(tmp_path, [trade(5, recv_ns=NOON_NS)], capture=OTHER_CAPTURE).files
    (path,) = export(tmp_path, [trade(2, recv_ns=NOON_NS)], force=True).files
    assert sorted(tmp_path.rglob("*.parquet")) == sorted([path, other])
    assert pq.ParquetFile(path).read()["frame"].to_pylist() == [2]


def test_a_forced_export_that_fails_leaves_the_old_files(tmp_path: Path) -> None:
    (path,) = export(tmp_path, [trade(0)]).files
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="midway"):
        export(tmp_path, failing([trade(1)]), force=True)
    assert names(tmp_path) == [str(path.relative_to(tmp_path))]
    assert path.read_bytes() == before


def test_failing_midway_leaves_nothing(tmp_path: Path) -> None:
    """Row groups are on disk and one file is complete already; none of them has a name that a reader would find."""
    out = tmp_path / "out"
    on_disk: list[str] = []

    def rows() -> Iterator[Row]:
        yield from (trade(number) for number in range(10))
        yield book(10, 5)
        on_disk.extend(names(out))
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        export(out, rows(), row_group_rows=2, files_open_max=1)
    assert on_disk
    assert all(name.endswith(".parquet.tmp") for name in on_disk)
    assert list(out.iterdir()) == []


def test_an_abandoned_export_is_over(tmp_path: Path) -> None:
    exporter = ParquetExporter(tmp_path)
    exporter.start("upbit", CAPTURE)
    exporter.abandon()
    exporter.abandon()
    with pytest.raises(ExportError, match="abandoned"):
        exporter.close()
    with pytest.raises(ExportError, match="over"):
        exporter.add(*trade(0))


def test_a_full_disk_is_an_error_with_a_place_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, table: Any, row_group_size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ExportError, match="No space left") as caught:
        export(tmp_path, [trade(0)])
    assert caught.value.where.endswith(f"part-{CAPTURE}-0.parquet.tmp")
    assert names(tmp_path) == []


def test_what_a_killed_export_left_is_in_nobodys_way(tmp_path: Path) -> None:
    directory = tmp_path / "channel=trade" / "exchange=upbit" / "date=2026-09-24"
    directory.mkdir(parents=True)
    (directory / f"part-{CAPTURE}-0.parquet.tmp").write_bytes(b"PAR1 half a row group")
    (path,) = export(tmp_path, [trade(0)]).files
    assert names(tmp_path) == [str(path.relative_to(tmp_path))]
    assert pq.ParquetFile(path).metadata.num_rows == 1


def test_two_exports_into_one_directory_are_refused(tmp_path: Path) -> None:
    with ParquetExporter(tmp_path), pytest.raises(ExportError, match="another export"):
        ParquetExporter(tmp_path)
    ParquetExporter(tmp_path).abandon()


def test_out_must_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError) as caught:
        ParquetExporter(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize(
    ("recv_ns", "frame", "ts_ns"), [(-1, 0, 0), (2**63, 0, 0), (NOON_NS, 2**63, 0), (NOON_NS, 0, 2**63)]
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, recv_ns: int, frame: int, ts_ns: int) -> None:
    event = Trade("KRW-BTC", 1.0, 1.0, 1, ts_ns, "1")
    with pytest.raises(ExportError, match=f"capture {CAPTURE}, frame {frame}: "):
        export(tmp_path, [(event, recv_ns, frame, 0)])
    assert names(tmp_path) == []


def test_the_exporter_needs_to_know_the_capture(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="before any capture"), ParquetExporter(tmp_path) as exporter:
        exporter.add(*trade(0))


def test_bounds_must_be_bounds(tmp_path: Path) -> None:
    for name in ("row_group_rows", "buffer_bytes", "files_open_max"):
        with pytest.raises(ValueError, match=name):
            export(tmp_path, [], CAPTURE, **{name: 0})


def test_importing_the_exporter_does_not_import_pyarrow() -> None:
    code = "import sys, kcs, kcs.export.parquet; sys.exit('pyarrow' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
