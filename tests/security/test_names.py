"""Names that come from outside stay names: no exchange, market, topic or capture id becomes a path of its own.

Where a name becomes a path: capture files and their lock (exchange), datasets (exchange, capture id), receipt and
delivery file (the capture's own name), topics (channel, exchange). Markets become keys and column values, never paths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kcs.capture.format import DESCRIPTOR_BYTES, CaptureHeader, decode_header, encode_header
from kcs.capture.ndjson import import_ndjson
from kcs.capture.output import making
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover
from kcs.capture.worker import capture_name
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.errors import ConfigError, ExportError, UnknownNameError, UsageError
from kcs.export.parquet import ParquetExporter
from kcs.kafka.settings import topic_name
from kcs.live.previous import last_record_ns
from kcs.live.receipt import delivery_path, receipt_path
from tests.capture import making as captures
from tests.cli.processes import Done
from tests.export.events import CAPTURE, trade
from tests.replay.making import trade as trade_frame

HOSTILE = [
    "../../escaped", "..", ".", "", "/tmp/escaped", "a/b", "a\\b", "a\0b", "up\nbit", "upbit\x1b]0;x\x07", "*", "?",
    "UPBIT", "-rf", "~root", "a" * 41, "ünïcode", " upbit", "upbit/", "upbit/../../x", "%2e%2e%2f", "{channel}",
]  # fmt: skip


def header(exchange: str) -> CaptureHeader:
    return replace(captures.header(), exchange=exchange)


def foreign(path: Path, exchange: str) -> Path:
    """A capture made elsewhere whose header names this exchange, with a frame that is a trade."""
    with making(path, header(exchange)) as file:
        file.write(0, [(3, 0, captures.START_NS, trade_frame(1))])
        file.seal()
    return path


def outside(home: Path, root: Path) -> list[Path]:
    """Files below `root` that are not below `home`."""
    return [path for path in root.rglob("*") if path.is_file() and home not in path.parents]


@pytest.mark.parametrize("exchange", HOSTILE)
def test_no_capture_is_made_under_a_hostile_exchange_name(tmp_path: Path, exchange: str) -> None:
    home = tmp_path / "a" / "b"
    with pytest.raises(UsageError, match="exchange name"):
        capture_name(header(exchange))
    with pytest.raises(UsageError, match="exchange name"):
        CaptureWriter(home, header(exchange), settings=WriterSettings(threaded=False), new_id=itertools.count)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*")), "not even a directory or a lock"


@pytest.mark.parametrize("exchange", HOSTILE)
def test_a_dataset_refuses_a_hostile_exchange_name(tmp_path: Path, exchange: str) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(ExportError, match="no names"), ParquetExporter(out) as exporter:
        exporter.start(exchange, CAPTURE)
    with pytest.raises(ExportError, match="no names"), ParquetExporter(out) as exporter:
        exporter.start("upbit", f"{exchange}-{exchange}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_market_is_a_value_of_a_column_and_no_path(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with ParquetExporter(out) as exporter:
        exporter.start("upbit", CAPTURE)
        for number, market in enumerate(("../../../escaped", "/etc/x", "a=b/c", "*", "\0")):
            event, recv_ns, _, index = trade(number, market)
            exporter.add(event, recv_ns, number, index)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert not outside(out, tmp_path)


@pytest.mark.parametrize("exchange", HOSTILE)
@pytest.mark.parametrize("verb", ["recover", "verify", "export", "replay", "cat", "info"])
def test_no_verb_follows_the_exchange_name_of_a_foreign_capture(
    tmp_path: Path, kcs: Callable[..., Done], exchange: str, verb: str
) -> None:
    home = Path.cwd()
    foreign(home / "in.zst", exchange)
    arguments = {
        "recover": ("recover", "in.zst", "out.zst"),
        "verify": ("verify", "in.zst"),
        "export": ("export", "in.zst", "--out", "data"),
        "replay": ("replay", "in.zst", "--sink", "stdout"),
        "cat": ("cat", "in.zst", "--json"),
        "info": ("info", "in.zst"),
    }[verb]
    done = kcs(*arguments)
    assert done.code in ((0, 3) if verb in ("recover", "cat", "info") else (2,)), done.err
    assert "Traceback" not in done.err
    assert not outside(home, tmp_path)
    made = {path.name for path in home.rglob("*") if path.is_file()} - {"in.zst", "out.zst"}
    assert not made
    if verb == "recover":
        with CaptureReader(home / "out.zst") as reader:
            assert reader.header.exchange == exchange, "recover keeps what it saves as it is"


@pytest.mark.parametrize("exchange", HOSTILE)
def test_import_takes_no_exchange_that_does_not_exist(tmp_path: Path, kcs: Callable[..., Done], exchange: str) -> None:
    home = Path.cwd()
    (home / "in.jsonl").write_text('{"recv_ns":1,"kind":"text","payload":"x"}\n')
    done = kcs("import", "--exchange", exchange, "in.jsonl", "out.zst")
    assert done.code == 2
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"in.jsonl"}


def test_what_an_imported_line_says_of_itself_names_no_file(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out.zst"
    target.parent.mkdir()
    lines = [
        b'{"recv_ns":1,"kind":"open","url":"../../../escaped","capture":"../../x","exchange":"../../y"}\n',
        b'{"recv_ns":1,"kind":"state","market":"../../z","payload":"{}","file":"../w"}\n',
    ]
    import_ndjson(lines, target, "upbit", kcs_version="0", source="../../v")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {target}


def test_a_damaged_header_lends_no_name_from_outside(tmp_path: Path) -> None:
    """The exchange is then taken from the file's own name, which is inside its directory already."""
    path = foreign(tmp_path / "..-20260102T030405Z-0011223344556677.zst", "upbit")
    data = bytearray(path.read_bytes())
    whole = bytes(data[: len(encode_header(decode_header(bytes(data))))])
    data[20] ^= 0xFF
    data[-1] ^= 0xFF  # the index with its copy of the header, too
    path.write_bytes(data)
    report = recover(path, tmp_path / "a.zst")
    assert report.records == 1
    assert len(whole) > DESCRIPTOR_BYTES
    with CaptureReader(tmp_path / "a.zst") as reader:
        assert reader.header.exchange == ".."
        with pytest.raises(UsageError):
            capture_name(reader.header)


@pytest.mark.parametrize("name", ["../x.zst", "/tmp/x.zst.partial", "a/../../x.zst", "..zst"])
def test_what_stands_beside_a_capture_stays_beside_it(tmp_path: Path, name: str) -> None:
    capture = tmp_path / "a" / name
    for path in (receipt_path(capture), delivery_path(capture)):
        assert path.parent == capture.parent


@pytest.mark.parametrize("exchange", ["../../escaped", "a/b", "*", "a b", "", "ü", "a\n", "x" * 250])
def test_a_topic_is_a_legal_name_or_none(exchange: str) -> None:
    with pytest.raises(ConfigError, match="legal topic name"):
        topic_name("{channel}.{exchange}" if exchange else "{exchange}", "trade", exchange)


@pytest.mark.parametrize("market", ["../../x", "KRW-BTC/../../x", "KRW-BTC\0", "KRW\n-BTC", "*/..", "krw-btc"])
def test_a_market_of_the_command_line_is_one_of_the_venue_or_refused(kcs: Callable[..., Done], market: str) -> None:
    done = kcs("capture", "--market", market, "--url", "upbit=ws://127.0.0.1:9/", "--duration", "1s")
    assert done.code == 2
    assert not list(Path.cwd().rglob("*"))


@pytest.mark.parametrize("name", ["../../x", "upbit/../x", "upbit\0"])
def test_an_exchange_of_the_configuration_is_a_known_one_or_refused(kcs: Callable[..., Done], name: str) -> None:
    Path("kcs.toml").write_text(f"exchange = [{name!r}]\n".replace("'", '"').replace("\\x00", "\\u0000"))
    done = kcs("capture", "--duration", "1s")
    assert done.code == 2
    assert {path.name for path in Path.cwd().rglob("*")} == {"kcs.toml"}


def test_only_captures_of_its_own_exchange_tell_a_run_when_the_last_one_ended(tmp_path: Path) -> None:
    foreign(tmp_path / "upbit-20260102T030405Z-0011223344556677.zst", "../../upbit")
    assert last_record_ns(tmp_path, "upbit") is None


def test_the_registry_is_asked_before_anything_is_made(tmp_path: Path) -> None:
    from kcs.exchanges import venue

    for name in HOSTILE:
        with pytest.raises(UnknownNameError):
            venue(name)
