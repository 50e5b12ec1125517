"""What earlier runs left in a directory: what is sealed, what is to be delivered here and in which order, what not."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kcs.capture import output
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.kafka.tally import Delivery
from kcs.live import backlog
from kcs.live.backlog import begun_ns, left_captures, seal_left
from kcs.live.receipt import Claim, DeliveryInfo, delivery_path, receipt_path, write_delivery, write_receipt
from kcs.model import Kind
from tests.replay.making import START_NS, capture_header, capture_id, trade

SECOND = 1_000_000_000


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, level: str, text: str) -> None:
        self.lines.append((level, text))

    @property
    def warnings(self) -> list[str]:
        return [text for level, text in self.lines if level != "info"]


def begin(
    directory: Path, number: int, *, exchange: str = "upbit", created_ns: int = START_NS, sequence: int = 0
) -> CaptureWriter:
    header = replace(capture_header(number, exchange), created_ns=created_ns, sequence=sequence)
    target = CaptureWriter(
        directory, header, settings=WriterSettings(threaded=False), new_id=lambda: capture_id(number + 100)
    )
    for n in range(5):
        target.append(Kind.TEXT, 0, created_ns + n, trade(n))
        target.flush()
    return target


def die(target: CaptureWriter) -> Path:
    """The process is gone: its locks are free, its file is as it is."""
    target._worker.file.abandon()
    target._worker._lock.release()
    return target.path


def left(directory: Path, number: int, *, sealed: bool = True, cluster: str | None = "C", **header: object) -> Path:
    """A capture whose delivery began and did not end."""
    target = begin(directory, number, **header)  # type: ignore[arg-type]
    path = target.close(START_NS)[0].path if sealed else die(target)
    delivery(path, number, cluster)
    return path


def delivery(path: Path, number: int, cluster: str | None = "C", bootstrap: str = "b1:9092") -> None:
    info = DeliveryInfo(cluster, "{channel}.{exchange}", True, {"trade.upbit": 1}, lambda capture_id: None, bootstrap)
    write_delivery(path, capture_id(number), info)


def give_receipt(path: Path, number: int) -> None:
    info = DeliveryInfo("C", "{channel}.{exchange}", True, {"trade.upbit": 1}, lambda capture_id: None)
    write_receipt(path, capture_id(number), "00", info, Delivery(capture_id(number), 5, 5, 0, {}))


def found(directory: Path, log: Log | None = None, cluster: str = "C", bootstrap: str = "b1") -> list[Path]:
    return left_captures(directory, "upbit", cluster, bootstrap, log or Log())


# --- sealing ----------------------------------------------------------------------------------------------------------


def test_what_dead_runs_left_is_sealed_and_what_lives_is_not(tmp_path: Path) -> None:
    dead = [die(begin(tmp_path, number, created_ns=START_NS + number * SECOND)) for number in (1, 2)]
    other = die(begin(tmp_path, 3, exchange="upbit-x"))
    alive = begin(tmp_path, 4)
    log = Log()
    done = seal_left(tmp_path, "upbit", log)
    assert [one.capture.path for one in done] == [path.with_suffix("") for path in dead]
    assert [one.capture.records for one in done] == [5, 5]
    assert other.exists()
    assert alive.path.exists()
    assert [level for level, _ in log.lines] == ["info", "info"]
    assert "5 records" in log.lines[0][1]
    assert seal_left(tmp_path, "upbit", log) == []
    alive.close(START_NS)


def test_sealing_says_what_was_cut_and_damaged(tmp_path: Path) -> None:
    path = die(begin(tmp_path, 1))
    with CaptureReader(path) as reader:
        chunks = list(reader.chunks())
    data = bytearray(path.read_bytes()[:-5])
    data[chunks[1].offset + 90] ^= 4
    path.write_bytes(data)
    log = Log()
    (done,) = seal_left(tmp_path, "upbit", log)
    assert done.cut > 0
    assert f"unfinished chunk of {done.cut} bytes" in log.lines[0][1]
    assert "damaged in 1 places" in log.lines[0][1]


def test_what_cannot_be_sealed_stays_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [die(begin(tmp_path, number, created_ns=START_NS + number * SECOND)) for number in (1, 2)]
    nothing = tmp_path / "upbit-20200101T000000Z-00000000000000aa.zst.partial"
    nothing.write_bytes(b"nothing")
    os.mkfifo(tmp_path / "upbit-20200101T000000Z-00000000000000ab.zst.partial")
    real = output.write_all
    refusals = iter([True])

    def full_once(fd: int, data: bytes) -> None:
        if next(refusals, False):
            raise OSError(errno.ENOSPC, "full")
        real(fd, data)

    monkeypatch.setattr(output, "write_all", full_once)
    log = Log()
    done = seal_left(tmp_path, "upbit", log)
    assert [one.capture.path for one in done] == [paths[1].with_suffix("")], "the next one may be smaller"
    assert paths[0].exists()
    assert nothing.exists()
    assert [any(word in text for text in log.warnings) for word in ("disk is full", "not a capture", "regular file")]
    assert len(log.warnings) == 3


def test_an_empty_file_is_removed_once_it_is_old(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f"upbit-20200101T000000Z-00000000000000a{n}.zst.partial" for n in range(2))
    for path in (fresh, old):
        path.touch()
    os.utime(old, ns=(START_NS, START_NS))
    log = Log()
    assert seal_left(tmp_path, "upbit", log) == []
    assert fresh.exists(), "its writer may have made it just now"
    assert not old.exists()
    assert log.lines == [("info", f"removed an empty file of a dead run: {old}")]
    with fresh.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        os.utime(fresh, ns=(START_NS, START_NS))
        assert seal_left(tmp_path, "upbit", log) == []
    assert fresh.exists(), "its writer lives"


# --- delivering -------------------------------------------------------------------------------------------------------


def test_oldest_first_by_time_then_by_sequence_sealed_or_not(tmp_path: Path) -> None:
    third = left(tmp_path, 1, created_ns=START_NS + SECOND, sequence=2)
    second = left(tmp_path, 9, created_ns=START_NS + SECOND, sequence=1, sealed=False)
    first = left(tmp_path, 5, created_ns=START_NS, sequence=7)
    log = Log()
    assert found(tmp_path, log) == [first, second, third]
    assert log.lines == []


def test_what_has_a_receipt_or_was_never_to_go_to_kafka_is_none_of_them(tmp_path: Path) -> None:
    delivered, never = left(tmp_path, 1), left(tmp_path, 2)
    give_receipt(delivered, 1)
    delivery_path(never).unlink()
    log = Log()
    assert found(tmp_path, log) == []
    assert log.lines == []
    assert found(tmp_path / "nowhere", log) == []


def test_a_receipt_that_a_power_cut_tore_is_none_and_a_newer_one_is(tmp_path: Path) -> None:
    path = left(tmp_path, 1)
    give_receipt(path, 1)
    whole = receipt_path(path).read_bytes()
    for torn in (b"", whole[:50]):
        receipt_path(path).write_bytes(torn)
        assert found(tmp_path) == [path]
    receipt_path(path).write_bytes(b'{"version": 2}')
    assert found(tmp_path) == []


def test_of_another_cluster_is_told_and_passed_over(tmp_path: Path) -> None:
    path = left(tmp_path, 1, cluster="another")
    log = Log()
    assert found(tmp_path, log) == []
    (text,) = log.warnings
    assert path.name in text
    assert "cluster another" in text
    assert found(tmp_path, log, cluster="another") == [path]


def test_of_many_that_go_elsewhere_one_line_is_told_for_each_place(tmp_path: Path) -> None:
    for number in range(1, 6):
        left(tmp_path, number, cluster="another" if number > 2 else "a third")
    log = Log()
    assert found(tmp_path, log) == []
    assert len(log.warnings) == 2
    assert any("2 more like it" in text and "cluster another" in text for text in log.warnings)
    assert all("kcs recover --produce" in text for text in log.warnings)


@pytest.mark.parametrize(
    ("named", "here", "same"),
    [
        ("b1:9092", "b1", True),
        ("b1", "b2:9092, b1:9092", True),
        ("b1:9093", "b1", False),
        ("b1,b2", "b3", False),
        ("[::1]:9092", "[::1]", True),
        ("", "b1", False),
    ],
)
def test_a_delivery_that_names_no_cluster_belongs_to_its_brokers(
    tmp_path: Path, named: str, here: str, same: bool
) -> None:
    path = left(tmp_path, 1)
    delivery(path, 1, None, named)
    log = Log()
    assert found(tmp_path, log, bootstrap=here) == ([path] if same else [])
    assert bool(log.warnings) is not same
    assert all(f"the brokers at {named}" in text for text in log.warnings)


def test_what_is_written_or_delivered_now_is_left_alone(tmp_path: Path) -> None:
    path = left(tmp_path, 1)
    alive = begin(tmp_path, 2)
    delivery(alive.path, 2)
    claim = Claim(path)
    log = Log()
    assert found(tmp_path, log) == []
    claim.release()
    assert found(tmp_path, log) == [path]
    assert log.lines == []
    alive.close(START_NS)


def test_damaged_files_are_named_and_passed_over(tmp_path: Path) -> None:
    good = left(tmp_path, 1)
    torn = left(tmp_path, 2)
    delivery_path(torn).write_text('{"version": 1, "cap')
    unreadable = left(tmp_path, 3)
    unreadable.write_bytes(b"nothing")
    log = Log()
    assert found(tmp_path, log) == [good]
    assert len(log.warnings) == 2
    for name in (torn.stem, unreadable.name):
        assert any(name in text for text in log.warnings)


def test_a_delivery_file_without_a_capture_is_left_too_until_it_is_settled(tmp_path: Path) -> None:
    gone = left(tmp_path, 4, created_ns=START_NS + 5 * SECOND)
    content = gone.read_bytes()
    gone.unlink()
    other = left(tmp_path, 5, exchange="upbit-x")
    other.unlink()
    earlier = left(tmp_path, 1)
    log = Log()
    assert found(tmp_path, log) == [earlier, gone]
    assert log.lines == []
    assert begun_ns(gone) == START_NS + 5 * SECOND
    gone.with_name(gone.name + ".partial").touch()
    assert found(tmp_path, log) == [earlier, gone], "an empty file is none"
    gone.with_name(gone.name + ".partial").unlink()
    info = DeliveryInfo("C", "{channel}.{exchange}", True, {"trade.upbit": 1}, lambda capture_id: None)
    write_receipt(gone, capture_id(4), None, info, Delivery(capture_id(4), 0, 0, 0, {}), absent=True)
    assert found(tmp_path, log) == [earlier]
    gone.write_bytes(content)
    assert found(tmp_path, log) == [earlier, gone], "it was only moved away"


@pytest.mark.parametrize("name", ["upbit-20260230T000000Z-0000000000000001", "upbit", "upbit-2026-0000000000000001"])
def test_a_name_that_says_no_time(name: str, tmp_path: Path) -> None:
    assert begun_ns(tmp_path / f"{name}.zst") == 0


def test_another_exchange_of_a_similar_name(tmp_path: Path) -> None:
    left(tmp_path, 1, exchange="upbit-x")
    log = Log()
    assert found(tmp_path, log) == []
    assert log.lines == []


def test_a_file_that_just_begins_is_not_even_claimed_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer claims it right after writing the delivery file, and would take our claim for another process's."""
    alive = begin(tmp_path, 1)
    delivery(alive.path, 1)
    monkeypatch.setattr(backlog, "Claim", None)
    assert found(tmp_path) == []
    alive.close(START_NS)
