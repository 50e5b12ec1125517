"""info, cat, verify, recover, repack, import, export: on whole files, broken ones, and things that are no captures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcs.capture.format import DESCRIPTOR_BYTES
from kcs.capture.reader import CaptureReader
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from kcs.verify import verify
from tests.cli.processes import Done, environment, run, running
from tests.replay.making import MS, SECOND, START_NS, make, trades, writer

Call = Callable[..., Done]
READERS = ["info", "cat", "verify", "replay", "recover", "export", "repack"]

WITHOUT_RIGHTS = (
    "import ctypes, os, sys; drop = 24; override, search = 1, 2; libc = ctypes.CDLL(None);"
    "[libc.prctl(drop, right, 0, 0, 0) for right in (override, search)]; os.execv(sys.argv[1], sys.argv[1:])"
)
"""A program that runs its arguments after giving up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A capture with all that NDJSON must carry: every sort of payload, an open, a gap, a close."""
    target = writer(tmp_path / "whole", 1)
    target.append_fields(Kind.OPEN, 0, START_NS, OpenFields("ws://venue.test/"))
    target.append(Kind.SENT, 0, START_NS, b"PING")
    for recv_ns, payload in trades(100):
        target.append(Kind.BINARY, 0, recv_ns, payload)
    target.append(Kind.TEXT, 0, START_NS + SECOND, b"\xff\xfe not utf-8")
    target.append(Kind.TEXT, 0, START_NS + SECOND, "원 \u2028 {".encode())
    target.append_fields(Kind.CLOSE, 0, START_NS + SECOND, CloseFields(1006, "", "lost", 102))
    target.append_fields(Kind.GAP, 0, START_NS + SECOND, GapFields(START_NS, START_NS + SECOND, "lost"))
    (sealed,) = target.close(START_NS)
    return sealed.path


def lines(done: Done) -> list[Any]:
    return [json.loads(line) for line in done.out.splitlines()]


def arguments(verb: str, path: Path, out: Path) -> list[object]:
    extra: dict[str, list[object]] = {"recover": [out], "export": ["--out", out], "replay": ["--sink", "null"]}
    return [verb, path, *extra.get(verb, [])]


# --- info, cat ------------------------------------------------------------------------------------------------------


def test_info(path: Path, kcs: Call) -> None:
    done = kcs("info", path)
    assert (done.code, done.err) == (0, "")
    for text in ("0000000000000001", "sealed", "upbit", "ws://venue.test/", "gaps      1", "2026-01-01T09:00:00"):
        assert text in done.out.decode()
    found = kcs("info", path, "--json").json
    assert (found["frames"], found["sealed"], found["exchange"], found["gap_count"]) == (102, True, "upbit", 1)
    assert found["urls"] == ["ws://venue.test/"]


def test_cat_text(path: Path, kcs: Call) -> None:
    done = kcs("cat", path)
    assert (done.code, done.err) == (0, "")
    shown = done.out.decode().splitlines()
    assert len(shown) == 106
    assert "open" in shown[0]
    assert "binary" in shown[2]
    assert "\\xff" in shown[102]
    assert "원" in shown[103]


def test_what_a_venue_sends_cannot_steer_the_terminal(tmp_path: Path, kcs: Call) -> None:
    hostile = b'{"a":"\x1b[2J\x1b]0;owned\x07 \x9b\r\n\xc2\x9b"}'
    path = make(tmp_path, 1, [(START_NS, hostile)])
    shown = kcs("cat", path).out
    assert not set(range(32)) - {10} & set(shown)
    assert shown.count(b"\n") == 1
    assert b"\\x1b[2J" in shown
    assert "\x9b" not in shown.decode()


def test_cat_json_has_every_record_and_cat_events_every_event(path: Path, kcs: Call) -> None:
    records = lines(kcs("cat", path, "--json"))
    assert [record["number"] for record in records] == list(range(106))
    assert [record["kind"] for record in records[-4:]] == ["text", "text", "close", "gap"]
    events = lines(kcs("cat", path, "--events", "--json"))
    assert [event["channel"] for event in events] == ["trade"] * 100 + ["gap"]
    assert events[0] == {
        "exchange": "upbit",
        "capture": "0000000000000001",
        "frame": 2,
        "event": 0,
        "recv_ns": START_NS,
        "channel": "trade",
        "market": "KRW-BTC",
        "price": 0.5,
        "qty": 0.25,
        "side": 1,
        "ts_ns": 1_700_000_000_000 * MS,
        "id": "0",
    }
    assert len(kcs("cat", path, "--events").out.splitlines()) == 101


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--from", "+100ms", "--to", "+150ms"), range(12, 17)),
        (("--from", "2026-01-01T09:00:00.98Z", "--to", "2026-01-01T09:00:01Z"), [100, 101]),
        (("--from", "2026-01-01 18:00:00.98+09:00", "--to", "2026-01-01T09:00:01"), [100, 101]),
        (("--to", "2026-01-01"), []),
        (("--from", "+1h"), []),
    ],
)
def test_cat_from_to(path: Path, kcs: Call, args: tuple[str, ...], expected: Any) -> None:
    for extra in ((), ("--events",)):
        done = kcs("cat", path, "--json", *args, *extra)
        assert done.code == 0
        assert [line.get("number", line.get("frame")) for line in lines(done)] == list(expected)


@pytest.mark.parametrize("args", [("cat",), ("cat", "--json"), ("cat", "--events")])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, args: tuple[str, ...]) -> None:
    path = make(tmp_path, 1, trades(20_000))
    command = [sys.executable, "-m", "kcs", args[0], str(path), *args[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0
    assert said == b""


def test_a_replay_whose_reader_goes_away_has_not_delivered(tmp_path: Path) -> None:
    """A consumer that crashes must not look like one that got everything."""
    path = make(tmp_path, 1, trades(20_000))
    command = [sys.executable, "-m", "kcs", "replay", str(path), "--sink", "stdout"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 1
    assert "did not arrive" in said


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_exit_3_for_everyone(path: Path, kcs: Call, tmp_path: Path) -> None:
    with CaptureReader(path) as reader:
        at = next(iter(reader.chunks())).offset + DESCRIPTOR_BYTES + 20
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    for verb in ("cat", "verify", "replay", "recover", "export"):
        done = kcs(*arguments(verb, path, tmp_path / f"out-{verb}.zst"))
        assert done.code == 3, (verb, done.err)
    report = kcs("replay", path, "--sink", "null", "--json").json
    assert report["frames"]["unread"] > 0
    assert report["digest"] is None
    done = kcs("repack", path)
    assert done.code == 1
    assert "damaged" in done.err


# --- recover, repack, import ----------------------------------------------------------------------------------------


def test_recover_a_truncated_file(tmp_path: Path, kcs: Call) -> None:
    whole = make(tmp_path, 1, trades(100), chunk=10)
    content = whole.read_bytes()
    cut, saved = tmp_path / "cut.zst", tmp_path / "saved.zst"
    cut.write_bytes(content[: len(content) * 2 // 3])
    done = kcs("recover", cut, saved, "--json")
    assert done.code == 3
    found = done.json
    assert 0 < found["records"] < 100
    assert found["damage"]
    assert found["capture_id"] == "0000000000000001"
    numbers = [record["number"] for record in lines(kcs("cat", saved, "--json"))]
    assert numbers == list(range(found["records"]))
    assert kcs("replay", saved, "--sink", "null").code == 0
    assert kcs("verify", saved).code == 3, "it is not what the collector saw"


def test_recover_a_whole_file_gives_an_equal_one(path: Path, kcs: Call, tmp_path: Path) -> None:
    done = kcs("recover", path, tmp_path / "saved.zst")
    assert done.code == 0
    assert "106 records" in done.err
    assert verify(tmp_path / "saved.zst").digest == verify(path).digest


def test_repack_keeps_records_and_digest(tmp_path: Path, kcs: Call) -> None:
    path = make(tmp_path, 1, trades(2_000), chunk=3)
    digest, size, listing = verify(path).digest, path.stat().st_size, kcs("cat", path, "--json").out
    assert kcs("repack", path).code == 0
    assert path.stat().st_size < size
    assert kcs("cat", path, "--json").out == listing
    assert verify(path).digest == digest


def test_import_of_cat_has_the_same_digest_also_from_stdin(
    path: Path, kcs: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = kcs("cat", path, "--json").out
    (tmp_path / "in.jsonl").write_bytes(listing)
    done = kcs("import", "--exchange", "upbit", "in.jsonl", "a.zst", "--json")
    assert done.code == 0
    assert (done.json["records"], done.json["kinds"]["binary"]) == (106, 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listing)))
    done = kcs("import", "--exchange", "upbit", "-", "b.zst")
    assert done.code == 0
    assert "b.zst: 106 records" in done.err
    assert verify(tmp_path / "a.zst").digest == verify(tmp_path / "b.zst").digest == verify(path).digest
    assert (tmp_path / "a.zst").read_bytes() == (tmp_path / "b.zst").read_bytes()


@pytest.mark.parametrize("name", ["out.zst.tmp", "out.zst"])
@pytest.mark.parametrize("stdin", [False, True])
def test_import_never_removes_what_it_reads(path: Path, kcs: Call, tmp_path: Path, name: str, stdin: bool) -> None:
    """A dead tool's OUT.tmp is replaced, and OUT itself with --force: neither may be the input."""
    source = tmp_path / name
    source.write_bytes(kcs("cat", "--json", path).out)
    before = source.read_bytes()
    arguments = ["import", "--exchange", "upbit", "--force", "-" if stdin else name, "out.zst"]
    if stdin:
        with source.open("rb") as opened:
            command = [sys.executable, "-m", "kcs", *arguments]
            done = subprocess.run(
                command, check=False, cwd=tmp_path, stdin=opened, stderr=subprocess.PIPE, env=environment()
            )
        code, err = done.returncode, done.stderr.decode()
    else:
        called = kcs(*arguments)
        code, err = called.code, called.err
    assert code == 1
    assert "same file" in err
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"recv_ns":1,"kind":"text","payload":"a"}\nnot json\n', "line 2"),
        (b'{"recv_ns":1,"kind":"rest","payload":"a"}\n', "url"),
        (b'{"recv_ns":1,"kind":"telegram","payload":"a"}\n', "telegram"),
        (b"", "no record"),
    ],
)
def test_import_of_what_is_wrong_names_the_line_and_leaves_nothing(
    kcs: Call, tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    done = kcs("import", "--exchange", "upbit", "in.jsonl", "out.zst")
    assert (done.code, done.out) == (1, b"")
    assert "in.jsonl" in done.err
    assert said in done.err
    assert os.listdir(tmp_path) == ["in.jsonl"]
    assert kcs("import", "--exchange", "upbitt", "in.jsonl", "out.zst").code == 2


# --- export ---------------------------------------------------------------------------------------------------------


def test_export_then_count_with_duckdb(path: Path, kcs: Call, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    done = kcs("export", path, "--out", "parquet", "--json")
    assert done.code == 0
    assert done.json["rows"] == {"trade": 100, "gap": 1}
    trades_there = f"read_parquet('{tmp_path}/parquet/channel=trade/**/*.parquet', hive_partitioning=true)"
    query = f"SELECT count(*), sum(price), min(frame), max(frame), any_value(exchange) FROM {trades_there}"
    with duckdb.connect() as database:
        (found,) = database.execute(query).fetchall()
    assert found == (100, sum(n + 0.5 for n in range(100)), 2, 101, "upbit")
    again = kcs("export", path, "--out", "parquet")
    assert again.code == 1
    assert "--force" in again.err
    assert kcs("export", path, "--out", "parquet", "--force", "--from", "+500ms").code == 0
    with duckdb.connect() as database:
        ((count,),) = database.execute(f"SELECT count(*) FROM {trades_there}").fetchall()
    assert count == 50


# --- what is no capture, output that exists ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", READERS)
def test_what_is_no_capture(verb: str, kcs: Call, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("price went up\n")
    (tmp_path / "empty.zst").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("notes.txt", ""),
        ("empty.zst", ""),
        ("folder", "directory"),
        ("pipe", ""),
        ("missing.zst", ""),
    ):
        done = kcs(*arguments(verb, tmp_path / name, tmp_path / "out"))
        assert (done.code, done.out) == (1, b""), (name, done.err)
        assert name in done.err
        assert said in done.err
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("verb", READERS)
def test_no_permission_to_read(verb: str, path: Path, kcs: Call, tmp_path: Path) -> None:
    path.chmod(0)
    done = kcs(*arguments(verb, path, tmp_path / "out"))
    assert done.code == 1
    assert "ermission" in done.err


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="root of Linux gives its rights up here")
def test_no_permission_for_a_root_without_its_rights(path: Path, tmp_path: Path) -> None:
    """The same where the tests run as root, which may read and write everything unless it is forbidden."""
    path.chmod(0)
    (tmp_path / "locked").mkdir(0o555)
    for args in (["info", path], ["capture", "--capture", tmp_path / "locked" / "captures", "--duration", "1s"]):
        with running(*args, cwd=tmp_path, prefix=[sys.executable, "-c", WITHOUT_RIGHTS]) as kcs:
            done = kcs.wait()
        assert (done.code, done.out) == (1, b"")
        assert "ermission" in done.err


@pytest.mark.parametrize("verb", ["recover", "import", "sim"])
def test_output_that_exists_is_kept_unless_forced(verb: str, path: Path, kcs: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(kcs("cat", path, "--json").out)
    args = {
        "recover": ("recover", path, "out.zst"),
        "import": ("import", "--exchange", "upbit", "in.jsonl", "out.zst"),
        "sim": ("sim", "--out", "out.zst", "--duration", "1s", "--rate", "50"),
    }[verb]
    (tmp_path / "out.zst").write_bytes(b"precious")
    done = kcs(*args)
    assert done.code == 1
    assert "out.zst" in done.err
    assert "--force" in done.err
    assert (tmp_path / "out.zst").read_bytes() == b"precious"
    assert kcs(*args, "--force").code == 0
    assert verify(tmp_path / "out.zst").ok
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.partial"))


def test_several_files_at_once(tmp_path: Path, kcs: Call) -> None:
    one, two = make(tmp_path, 1, trades(10)), make(tmp_path, 2, trades(10, at_ns=START_NS + 5 * MS))
    assert len(kcs("cat", one, two, "--json").out.splitlines()) == 20
    assert [json.loads(line)["records"] for line in kcs("info", one, two, "--json").out.splitlines()] == [10, 10]
    assert kcs("verify", one, two).code == 0
    assert kcs("replay", one, one, "--sink", "null").code == 2


def test_the_process_itself_ends_with_the_code(tmp_path: Path) -> None:
    """The calls above run inside this process; this one is the program as a shell sees it."""
    path = make(tmp_path, 1, trades(10))
    done = run("verify", path, "--digest", "0" * 64, "--json", cwd=tmp_path)
    assert (done.code, done.json["ok"], done.err) == (3, False, "")
    done = run("info", "missing.zst", cwd=tmp_path)
    assert (done.code, done.out) == (1, b"")
    assert done.err.startswith("kcs: missing.zst: ")
