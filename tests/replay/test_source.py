"""Several captures as one: merged by receive time, each file's own order kept, damage counted, two files open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kcs.capture.format import DESCRIPTOR_BYTES
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover, repack
from kcs.errors import NotACaptureError, UsageError
from kcs.model import Kind
from kcs.replay.source import Tape, merged, plan
from tests.replay.making import MS, START_NS, make, make_with_ancillary, trade, trades, writer


def order(paths: list[Path]) -> list[tuple[int, int, int]]:
    """(capture, number, recv_ns) of every record in merged order."""
    return [
        (int.from_bytes(tape.source.capture_id, "big"), record[0], record[3])
        for tape, run in merged(plan(paths))
        for record in run
    ]


def test_interleaved_files_come_out_in_time_order(tmp_path: Path) -> None:
    one = make(tmp_path, 1, trades(200, step_ns=10 * MS))
    two = make(tmp_path, 2, trades(200, at_ns=START_NS + 5 * MS, step_ns=10 * MS), chunk=7)
    found = order([two, one])
    assert len(found) == 400
    assert [at for _, _, at in found] == sorted(at for _, _, at in found)
    assert [capture for capture, _, _ in found] == [1, 2] * 200


def test_overlapping_files_of_different_pace(tmp_path: Path) -> None:
    slow = make(tmp_path, 1, trades(40, step_ns=100 * MS))
    fast = make(tmp_path, 2, trades(1_000, at_ns=START_NS + 1_000 * MS, step_ns=1 * MS))
    late = make(tmp_path, 3, trades(10, at_ns=START_NS + 60_000 * MS))
    found = order([late, fast, slow])
    assert [at for _, _, at in found] == sorted(at for _, _, at in found)
    for capture, count in ((1, 40), (2, 1_000), (3, 10)):
        assert [number for which, number, _ in found if which == capture] == list(range(count))


def test_a_tie_goes_to_the_file_that_began_earlier_wherever_chunks_end(tmp_path: Path) -> None:
    one = make(tmp_path, 1, [(START_NS + t * MS, trade(t)) for t in (0, 5, 7, 9)], chunk=1)
    two = make(tmp_path, 2, [(START_NS + t * MS, trade(t)) for t in (1, 5, 7, 7, 8)], chunk=1)
    small = order([one, two])
    repack(one)
    repack(two)
    expected = [(1, 0), (2, 1), (1, 5), (2, 5), (1, 7), (2, 7), (2, 7), (2, 8), (1, 9)]
    assert [(capture, (at - START_NS) // MS) for capture, _, at in small] == expected
    assert order([one, two]) == small


def test_inside_a_file_the_recorded_order_stays_though_its_times_run_back(tmp_path: Path) -> None:
    one = make(tmp_path, 1, [(START_NS + t * MS, trade(t)) for t in (10, 3, 12, 11)], chunk=2)
    two = make(tmp_path, 2, [(START_NS + t * MS, trade(t)) for t in (4, 30)])
    found = order([one, two])
    assert [number for capture, number, _ in found if capture == 1] == [0, 1, 2, 3]
    assert found[-1][0] == 2


def test_a_rotated_sequence_is_one_log_and_needs_two_files_open(tmp_path: Path) -> None:
    target = writer(tmp_path, 1)
    for count, (recv_ns, payload) in enumerate(trades(300)):
        if count and count % 10 == 0:
            target.rotate(recv_ns)
        target.append(Kind.TEXT, 0, recv_ns, payload)
    paths = [sealed.path for sealed in target.close(START_NS)]
    assert len(paths) == 30
    opened_before = len(os.listdir("/proc/self/fd"))
    most = 0
    found = []
    for tape, run in merged(plan(paths[::-1])):
        most = max(most, len(os.listdir("/proc/self/fd")) - opened_before)
        found += [(int.from_bytes(tape.source.capture_id, "big"), record[0]) for record in run]
    assert found == [(1 + i // 10, i % 10) for i in range(300)]
    assert most <= 2


def test_the_same_capture_twice_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(5))
    copy = tmp_path / "copy.zst"
    copy.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"same capture twice.*copy\.zst"):
        plan([path, copy])
    with pytest.raises(UsageError, match="no capture given"):
        plan([])


def test_the_plan_says_what_a_file_holds(tmp_path: Path) -> None:
    empty = writer(tmp_path / "empty", 9).close(START_NS)[0].path
    path = make(tmp_path, 1, trades(5))
    first, second = plan([empty, path])
    assert (first.path, first.records, first.sealed) == (path, 5, True)
    assert (first.first_ns, first.last_ns) == (START_NS, START_NS + 40 * MS)
    assert (second.path, second.first_ns, second.last_ns, second.records) == (empty, None, None, 0)
    assert len(order([empty, path])) == 5
    with pytest.raises(NotACaptureError, match="directory"):
        plan([tmp_path])


@pytest.mark.parametrize("hit", [0, 4, 9])
def test_what_is_missing_is_counted(tmp_path: Path, hit: int) -> None:
    path = make(tmp_path, 1, trades(100), chunk=10)
    with CaptureReader(path) as reader:
        at = list(reader.chunks())[hit].offset + DESCRIPTOR_BYTES + 20
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    (source,) = plan([path])
    tape = Tape(source, 0)
    numbers: list[int] = []
    while tape.fill():
        numbers += [record[0] for record in tape.take(None)]
    assert tape.lost == 100 - len(numbers) == 10
    assert tape.damaged >= 1
    assert numbers == [*range(10 * hit), *range(10 * hit + 10, 100)]
    saved = tmp_path / "saved.zst"
    recover(path, saved)
    (source,) = plan([saved])
    assert source.lost_before
    tape = Tape(source, 0)
    while tape.fill():
        tape.take(None)
    assert (tape.lost, tape.damaged) == (10, 0), "a hole is a loss although the file itself is whole"


@pytest.mark.parametrize("at", [0, 5, 99, 511, 512, 700, 1199])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_that_may_be_ignored_is_no_loss(tmp_path: Path, at: int, sealed: bool) -> None:
    """It keeps its number, wherever in its batch it stands, and a replay does not miss it."""
    path = make_with_ancillary(tmp_path, 1200, at, 700, sealed=sealed)
    for to_ns in (None, START_NS + 1):
        (source,) = plan([path])
        tape = Tape(source, 0, to_ns)
        numbers: list[int] = []
        while tape.fill():
            numbers += [record[0] for record in tape.take(None)]
            assert tape.lost == 0
        assert numbers == [number for number in range(1200) if number != at]
        assert (tape.lost, tape.damaged) == (0, 0)


def test_a_cut_file_counts_what_it_lost_as_at_least_one(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(100), chunk=10)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    (source,) = plan([path])
    assert not source.sealed
    tape = Tape(source, 0)
    count = 0
    while tape.fill():
        count += len(tape.take(None))
    assert 0 < count < 100
    assert tape.lost >= 1
