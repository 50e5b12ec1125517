"""The log of what was done wrong: counted, bounded, on disk as it happens."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import orjson
import pytest

from kcs.errors import CaptureWriteError
from kcs.sim.fault_log import FaultEntry, FaultLogFile, SimFaultLog, checksum

DROP = FaultEntry(5, 1, "drop", frame=3, market="KRW-BTC", crc=checksum(b"x"), frames_lost=1)


def test_it_counts_strikes_and_lost_frames() -> None:
    log = SimFaultLog()
    log.add(DROP)
    log.add(FaultEntry(6, 1, "silent_stall", "for 2s"))
    for frame in (4, 5):
        log.add(FaultEntry(7, 1, "silent_stall", "lost", frame, frames_lost=1), counts=False)
    assert log.report() == {
        "faults": {"drop": 1, "silent_stall": 1}, "frames_lost": {"drop": 1, "silent_stall": 2},
    }  # fmt: skip
    assert log.of("drop") == [DROP]
    assert len(log.of("silent_stall")) == 3


def test_it_keeps_no_more_than_it_may_but_tells_and_counts_all() -> None:
    told: list[FaultEntry] = []
    log = SimFaultLog(entries_max=2, sink=told.append)
    for _ in range(5):
        log.add(DROP)
    assert (len(log.entries), log.unkept, log.counts["drop"], len(told)) == (2, 3, 5, 5)


def test_the_order_does_not_depend_on_who_was_asked_first() -> None:
    entries = [FaultEntry(at, connection, "drop", frame=at) for connection in (1, 2) for at in range(3)]
    one, other = SimFaultLog(), SimFaultLog()
    for entry in entries:
        one.add(entry)
    for entry in sorted(entries, key=lambda entry: entry.at_ns):
        other.add(entry)
    assert one.entries != other.entries
    assert one.ordered() == other.ordered() == entries


def test_the_file_is_ndjson_and_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "faults.ndjson"
    file = FaultLogFile(path)
    log = SimFaultLog(sink=file.write)
    log.add(DROP)
    log.add(FaultEntry(9, 2, "close_code", "1012"))
    lines = path.read_bytes().splitlines()
    file.close()
    assert [orjson.loads(line) for line in lines] == [
        {"at_ns": 5, "connection": 1, "fault": "drop", "frame": 3, "market": "KRW-BTC", "crc": checksum(b"x"),
         "frames_lost": 1},
        {"at_ns": 9, "connection": 2, "fault": "close_code", "detail": "1012"},
    ]  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(CaptureWriteError, match="exists"):
        FaultLogFile(path)
    FaultLogFile(path, force=True).close()
    assert path.read_bytes() == b""


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(CaptureWriteError):
        FaultLogFile(tmp_path / "link", force=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_full_disk_is_kept_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FaultLogFile(tmp_path / "faults.ndjson")
    written: list[bytes] = []
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "full")
        written.append(bytes(data)[:10])
        return real(descriptor, bytes(data)[:10])

    monkeypatch.setattr("kcs.capture.osfile.os.write", short)
    file.write(DROP)
    assert file.failed is not None
    assert "disk is full" in str(file.failed)
    file.write(DROP)
    assert len(written) == 2, "after a failure nothing more is written"
    file.close()
