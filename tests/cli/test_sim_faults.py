"""`kcs sim --faults`: the log file, the report, and that what was asked for is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from tests.cli.processes import Done

TAPE = ("sim", "--duration", "5s", "--rate", "200", "--market", "KRW-BTC,KRW-ETH")
FAULTS = ("--faults", "drop=2%,duplicate@every:100", "--faults", "silent_stall=500ms@at:2s")


def test_a_tape_with_faults_its_log_and_its_report(kcs: Callable[..., Done], tmp_path: Path) -> None:
    done = kcs(*TAPE, *FAULTS, "--out", "a.zst", "--faults-log", "a.ndjson", "--json")
    assert done.code == 0, done.err
    report = orjson.loads(done.out)
    entries = [orjson.loads(line) for line in (tmp_path / "a.ndjson").read_bytes().splitlines()]
    lost = [entry for entry in entries if entry.get("frames_lost")]
    assert report["faults"].keys() == {"drop", "duplicate", "silent_stall"}
    assert report["faults"]["drop"] == sum(entry["fault"] == "drop" for entry in entries) > 5
    assert report["faults"]["silent_stall"] == 1
    assert sum(report["frames_lost"].values()) == len(lost)
    undisturbed = orjson.loads(kcs(*TAPE, "--out", "b.zst", "--json").out)
    assert undisturbed["faults"] == undisturbed["frames_lost"] == {}
    assert undisturbed["frames"] - len(lost) + report["faults"]["duplicate"] == report["frames"]


def test_the_table_names_what_was_done(kcs: Callable[..., Done]) -> None:
    done = kcs(*TAPE, *FAULTS, "--out", "a.zst")
    assert "fault silent_stall" in done.err
    assert "frames lost" in done.err


def test_a_log_is_not_overwritten_without_force(kcs: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b"precious")
    done = kcs(*TAPE, "--out", "a.zst", "--faults-log", "a.ndjson")
    assert done.code == 1
    assert "fault log" in done.err
    assert (tmp_path / "a.ndjson").read_bytes() == b"precious"
    assert not (tmp_path / "a.zst").exists()
    assert kcs(*TAPE, "--out", "a.zst", "--faults-log", "a.ndjson", "--force").code == 0
    assert (tmp_path / "a.ndjson").read_bytes() == b""
