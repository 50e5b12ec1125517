"""The two files beside a capture: written whole, read with care, and held by who delivers."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError, NewerFormatError
from kcs.live import receipt as module
from kcs.live.receipt import (
    Claim,
    DeliveryInfo,
    Missing,
    base_name,
    begin_delivery,
    capture_of,
    delivery_path,
    has_receipt,
    read_delivery,
    read_receipt,
    receipt_path,
    write_delivery,
    write_receipt,
)
from kcs.sink import RECORD_SCHEMA_VERSION

ID = bytes(range(8))


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Its name; there need be no file."""
    return tmp_path / "upbit-20260102T030405Z-0001020304050607.zst"


def info(
    cluster: str | None = "cluster", bootstrap: str = "", partitions: dict[str, int] | None = None
) -> DeliveryInfo:
    counts = {"trade.upbit": 3, "gap.upbit": 1} if partitions is None else partitions
    return DeliveryInfo(cluster, "{channel}.{exchange}", True, counts, lambda capture_id: None, bootstrap)


def state(**counts: Any) -> Any:
    offsets = {"trade.upbit": {0: (5, 9), 2: (0, 3)}}
    return SimpleNamespace(**{"produced": 9, "acked": 9, "failed": 0, "offsets": offsets, **counts})


def test_names(capture: Path) -> None:
    partial = capture.with_name(capture.name + ".partial")
    assert base_name(partial) == base_name(capture) == "upbit-20260102T030405Z-0001020304050607"
    assert delivery_path(partial) == delivery_path(capture)
    assert receipt_path(partial).name == "upbit-20260102T030405Z-0001020304050607.receipt.json"


@pytest.mark.parametrize("fsync", [False, True])
def test_a_delivery_file_and_back(capture: Path, fsync: bool) -> None:
    assert read_delivery(capture) is None
    path = write_delivery(capture, ID, info(), fsync=fsync)
    found = read_delivery(capture)
    assert found is not None
    assert (found.capture, found.cluster, found.template) == (ID.hex(), "cluster", "{channel}.{exchange}")
    assert (found.headers, found.record_schema) == (True, RECORD_SCHEMA_VERSION)
    assert found.partitions == {"trade.upbit": 3, "gap.upbit": 1}
    assert "bootstrap" not in orjson.loads(path.read_bytes())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_delivery_that_begins_while_the_broker_is_away(capture: Path) -> None:
    write_delivery(capture, ID, info(None, "b1:9092,b2:9092", {}))
    found = read_delivery(capture)
    assert found is not None
    assert (found.cluster, found.bootstrap, found.partitions) == (None, "b1:9092,b2:9092", {})


def test_a_receipt_and_back(capture: Path) -> None:
    assert read_receipt(capture) is None
    write_receipt(capture, ID, "ab" * 32, info(), state())
    found = read_receipt(capture)
    assert found is not None
    assert (found.digest, found.records.produced, found.records.acked, found.records.failed) == ("ab" * 32, 9, 9, 0)
    assert {number: (of.first, of.last) for number, of in found.offsets["trade.upbit"].items()} == {
        0: (5, 9),
        2: (0, 3),
    }
    assert (found.whole, found.recovered, found.uncaptured, found.missing) == (True, False, 0, None)
    content = orjson.loads(receipt_path(capture).read_bytes())
    assert {"recovered", "uncaptured", "whole", "missing"} & content.keys() == set()
    assert content["file"] == capture.name


def test_a_receipt_of_a_capture_that_is_not_whole_has_no_digest(capture: Path) -> None:
    missing = Missing(None, ("offset 5: rotten",))
    write_receipt(capture, ID, "ab" * 32, info(), state(failed=1), recovered=True, uncaptured=7, missing=missing)
    found = read_receipt(capture)
    assert found is not None
    assert (found.digest, found.whole, found.missing, found.recovered, found.uncaptured) == (
        None,
        False,
        missing,
        True,
        7,
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": "1"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"version":1,"capture":"00","cluster":"c","template":"t","headers":true,"record_schema":1,"partitions":{"t":0}}',
    ],
)
def test_a_damaged_file_is_named(capture: Path, content: bytes) -> None:
    delivery_path(capture).write_bytes(content)
    with pytest.raises(CaptureError, match="cannot be read") as caught:
        read_delivery(capture)
    assert caught.value.where == str(delivery_path(capture))
    assert caught.value.remedy
    receipt_path(capture).write_bytes(content)
    with pytest.raises(CaptureError, match="cannot be read"):
        read_receipt(capture)


def test_a_newer_file_says_so_whatever_is_in_it(capture: Path) -> None:
    delivery_path(capture).write_bytes(b'{"version": 2, "capture": 5}')
    with pytest.raises(NewerFormatError, match="version 2"):
        read_delivery(capture)


def test_a_file_that_is_too_large_is_not_read(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES_MAX", 10)
    write_delivery(capture, ID, info())
    with pytest.raises(CaptureError, match="more than 10 bytes"):
        read_delivery(capture)


def test_a_disk_that_refuses(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureWriteError):
        write_delivery(capture.parent / "nowhere" / capture.name, ID, info())

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_small", lambda *_, **__: refuse())
    with pytest.raises(CaptureWriteError, match="disk is full"):
        write_receipt(capture, ID, "", info(), state())


def test_where_a_capture_is(capture: Path) -> None:
    partial = capture.with_name(capture.name + ".partial")
    assert capture_of(capture) is None
    partial.write_bytes(b"x")
    assert capture_of(capture) == capture_of(delivery_path(capture).with_suffix("").with_suffix("")) == partial
    capture.touch()
    assert capture_of(partial) == partial, "an empty file is none"
    capture.write_bytes(b"x")
    assert capture_of(partial) == capture


def test_a_receipt_without_a_capture_holds_as_long_as_there_is_none(capture: Path) -> None:
    assert not has_receipt(capture)
    write_receipt(capture, ID, None, info(), state(), missing=Missing(None, ("gone",)), absent=True)
    assert has_receipt(capture)
    capture.write_bytes(b"x")
    assert not has_receipt(capture)
    write_receipt(capture, ID, "00", info(), state())
    assert has_receipt(capture)


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_keeps_others_out_until_it_is_released(capture: Path) -> None:
    write_delivery(capture, ID, info())
    claim = Claim(capture)
    with pytest.raises(CaptureBusyError, match="another kcs is delivering"):
        Claim(capture.with_name(capture.name + ".partial"))
    claim.release()
    claim.release()
    Claim(capture).release()


def test_a_claim_goes_over_to_the_new_file(capture: Path) -> None:
    write_delivery(capture, ID, info(None, "b:9092", {}))
    claim = Claim(capture)
    inode = delivery_path(capture).stat().st_ino
    write_delivery(capture, ID, info(), claim=claim)
    assert delivery_path(capture).stat().st_ino != inode
    with pytest.raises(CaptureBusyError):
        Claim(capture)
    claim.release()
    Claim(capture).release()


def test_a_delivery_that_begins_is_claimed_before_anybody_sees_it(
    capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def look(self: Path, target: Path) -> Path:
        done = real(self, target)
        with pytest.raises(CaptureBusyError):
            Claim(capture)
        return done

    monkeypatch.setattr(Path, "replace", look)
    claim = begin_delivery(capture, ID, info())
    with pytest.raises(CaptureBusyError):
        Claim(capture)
    claim.release()
    Claim(capture).release()
    with pytest.raises(CaptureWriteError):
        begin_delivery(capture.parent / "nowhere" / capture.name, ID, info())


def test_without_a_delivery_file_there_is_nothing_to_claim(capture: Path) -> None:
    with pytest.raises(CaptureError, match="nothing of it was ever to go to Kafka"):
        Claim(capture)


def test_a_file_that_is_replaced_while_it_is_claimed_is_busy(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_delivery(capture, ID, info())
    real = module.fcntl.flock

    def replace_first(fd: int, operation: int) -> None:
        monkeypatch.undo()
        write_delivery(capture, ID, info())
        real(fd, operation)

    monkeypatch.setattr(module.fcntl, "flock", replace_first)
    with pytest.raises(CaptureBusyError):
        Claim(capture)
    Claim(capture).release()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_no_descriptor_stays_open(capture: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    write_delivery(capture, ID, info())
    claim = Claim(capture)
    for _ in range(5):
        write_delivery(capture, ID, info(), claim=claim)
        with pytest.raises(CaptureBusyError):
            Claim(capture)
    claim.release()
    assert len(os.listdir("/proc/self/fd")) == before
