"""`verify`: whole or not, the same as live or not, comparable or not; every byte is looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kcs.capture.format import DESCRIPTOR_BYTES
from kcs.capture.framecount import Miscount
from kcs.capture.reader import CaptureReader
from kcs.capture.recover import recover, repack
from kcs.errors import CaptureError, NotACaptureError
from kcs.live.receipt import receipt_path
from kcs.model import CloseFields, Kind, OpenFields
from kcs.sink import RECORD_SCHEMA_VERSION
from kcs.verify import Runs, Verdict, in_run_order, verify
from tests.delivering import rotated
from tests.replay.making import MS, START_NS, ListSink, make, make_with_ancillary, trade, trades, writer


def write_receipt(capture: Path, **fields: object) -> Path:
    path = receipt_path(capture)
    path.write_text(json.dumps({"record_schema": RECORD_SCHEMA_VERSION, "version": 1, "cluster": "x", **fields}))
    return path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_whole_capture(tmp_path: Path) -> None:
    path = make(tmp_path, 7, [*trades(100), (START_NS, b"junk"), (START_NS, b'{"status":"UP"}')])
    verdict = verify(path)
    assert (verdict.ok, verdict.whole, verdict.sealed, verdict.holes, verdict.damage) == (True, True, True, 0, ())
    assert (verdict.capture_id, verdict.exchange, verdict.records) == ("0000000000000007", "upbit", 102)
    assert (verdict.ledger.parsed, verdict.ledger.ignored) == (100, {"heartbeat": 1})
    assert (verdict.ledger.rejected, verdict.ledger.acked) == ({"not_json": 1}, 101)
    assert verdict.comparisons == ()


def test_the_digest_is_of_what_it_becomes_not_of_the_file(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(200), chunk=5)
    before = verify(path).digest
    repack(path)
    assert verify(path).digest == before
    other = make(tmp_path, 2, [*trades(199), (START_NS + 199 * 10 * MS, trade(199, side="ASK"))])
    assert verify(other).digest != before


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_compared_with_a_digest_that_is_given(tmp_path: Path, spelling: object) -> None:
    path = make(tmp_path, 1, trades(10))
    digest = verify(path).digest
    good = verify(path, expected=spelling(digest))  # type: ignore[operator]
    assert good.ok
    assert good.comparisons[0].matches is True
    bad = verify(path, expected="0" * 64)
    assert bad.whole
    assert not bad.ok
    assert bad.comparisons[0].matches is False


def test_compared_with_the_receipt(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(10))
    receipt = write_receipt(path, digest=verify(path).digest)
    verdict = verify(path)
    assert verdict.ok
    assert [(c.source, c.matches) for c in verdict.comparisons] == [(str(receipt), True)]
    write_receipt(path, digest="f" * 64)
    assert not verify(path).ok


def test_another_record_schema_is_not_comparable_and_no_fault(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(10))
    write_receipt(path, digest="f" * 64, record_schema=RECORD_SCHEMA_VERSION + 1)
    verdict = verify(path)
    assert verdict.ok
    assert verdict.comparisons[0].matches is None
    assert f"schema {RECORD_SCHEMA_VERSION + 1}" in verdict.comparisons[0].why


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"digest":1,"record_schema":1}'])
def test_a_receipt_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = make(tmp_path, 1, trades(10))
    receipt_path(path).write_bytes(content)
    with pytest.raises(CaptureError, match=r"receipt\.json.*cannot be read"):
        verify(path)


def test_a_flipped_bit_in_any_region_is_found(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(60), chunk=20)
    whole = path.read_bytes()
    with CaptureReader(path) as reader:
        chunks = list(reader.chunks())
    places = [8, 40, len(whole) - 1, len(whole) - 30]
    places += [at for chunk in chunks for at in (chunk.offset + 3, chunk.offset + DESCRIPTOR_BYTES + 9)]
    digest = verify(path).digest
    for at in places:
        flip(path, at)
        try:
            verdict = verify(path)
        except CaptureError:
            pass
        else:
            assert not verdict.ok, f"byte {at}"
            assert verdict.damage
            assert verdict.digest == digest or verdict.records < 60, f"byte {at}: silently different"
        path.write_bytes(whole)
    assert verify(path).ok


def test_damage_says_where_and_how_much(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(60), chunk=20)
    with CaptureReader(path) as reader:
        chunk = list(reader.chunks())[1]
    flip(path, chunk.offset + DESCRIPTOR_BYTES + 9)
    verdict = verify(path)
    lost = chunk.meta.records
    assert verdict.records == 60 - lost
    assert verdict.holes == lost
    assert verdict.damage[0]["records_lost"] == lost
    assert chunk.offset <= verdict.damage[0]["offset"] <= chunk.offset + DESCRIPTOR_BYTES + 9
    verdict.ledger.check()


def test_what_was_never_sealed_is_not_whole(tmp_path: Path) -> None:
    target = writer(tmp_path, 1)
    for recv_ns, payload in trades(100):
        target.append(Kind.TEXT, 0, recv_ns, payload)
    target.flush()
    copy = tmp_path / "copy.zst.partial"
    copy.write_bytes(target.path.read_bytes())
    (sealed,) = target.close(START_NS)
    verdict = verify(copy)
    assert not verdict.ok
    assert not verdict.sealed
    assert verdict.digest == verify(sealed.path).digest


def test_a_file_saved_from_a_damaged_one_is_not_whole_and_says_what_was_lost(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(60), chunk=20)
    with CaptureReader(path) as reader:
        last = list(reader.chunks())[-1]
    path.write_bytes(path.read_bytes()[: last.offset + 30])
    saved = tmp_path / "saved.zst"
    recover(path, saved)
    verdict = verify(saved)
    assert verdict.sealed
    assert (verdict.damage, verdict.holes) == ((), 0)
    assert not verdict.ok
    assert verdict.recovered
    assert verdict.records == 60 - last.meta.records
    whole = tmp_path / "whole.zst"
    recover(make(tmp_path, 2, trades(60)), whole)
    assert verify(whole).ok


@pytest.mark.parametrize("hit", [0, 1, 2])
def test_a_hole_is_counted_wherever_it_is(tmp_path: Path, hit: int) -> None:
    path = make(tmp_path, 1, trades(60), chunk=20)
    with CaptureReader(path) as reader:
        chunk = list(reader.chunks())[hit]
    flip(path, chunk.offset + DESCRIPTOR_BYTES + 9)
    saved = tmp_path / "saved.zst"
    recover(path, saved)
    assert verify(saved).holes == chunk.meta.records
    assert not verify(saved).whole


@pytest.mark.parametrize("at", [0, 50, 99])
def test_a_record_that_may_be_ignored_is_no_hole(tmp_path: Path, at: int) -> None:
    verdict = verify(make_with_ancillary(tmp_path, 100, at, 51))
    assert (verdict.records, verdict.holes, verdict.whole) == (99, 0, True)


@pytest.mark.parametrize("said", [99, 100, 103, 0])
def test_a_close_that_counted_other_frames_is_not_whole(tmp_path: Path, said: int) -> None:
    """Frames that are missing at the end of a connection leave no hole between numbers."""
    target = writer(tmp_path, 1)
    target.append_fields(Kind.OPEN, 0, START_NS, OpenFields("ws://venue.test/"))
    for recv_ns, payload in trades(100):
        target.append(Kind.TEXT, 0, recv_ns, payload)
    target.append_fields(Kind.CLOSE, 0, START_NS, CloseFields(1006, frames=said))
    verdict = verify(target.close(START_NS)[0].path)
    assert verdict.holes == 0
    assert verdict.whole == (said in {100, 0})
    assert verdict.miscounted == (() if verdict.whole else (Miscount(101, 0, said, 100),))


# --- files of one run -------------------------------------------------------------------------------------------------


def run_of(paths: Sequence[Path]) -> list[Verdict]:
    runs = Runs()
    return [verify(path, runs=runs) for path in in_run_order(paths)]


def test_files_of_a_run_continue_each_other(tmp_path: Path) -> None:
    paths = rotated(tmp_path)
    verdicts = run_of([paths[1], paths[2], paths[0]])
    assert [verdict.path for verdict in verdicts] == paths
    assert all(verdict.ok for verdict in verdicts)


@pytest.mark.parametrize(("drop", "found"), [((0, 1), 1), ((1, 7), 2), ((1, 40), 2)])
def test_frames_missing_between_two_files_of_a_run_show(tmp_path: Path, drop: tuple[int, int], found: int) -> None:
    paths = rotated(tmp_path, drop=drop)
    verdicts = run_of(paths)
    assert [len(verdict.miscounted) for verdict in verdicts] == [int(n == found) for n in range(3)]
    (miscount,) = verdicts[found].miscounted
    assert (miscount.number, miscount.said, miscount.said - miscount.counted) == (0, 40 * found, drop[1])
    assert [verify(path).whole for path in paths] == [True] * 3, "no file alone can tell"
    assert [verify(path).whole for path in paths[::-1]] == [True] * 3


def test_a_file_left_out_is_said_and_is_no_whole_log(tmp_path: Path) -> None:
    paths = rotated(tmp_path, files=5)
    verdicts = run_of([paths[0], paths[1], paths[4]])
    assert [verdict.absent for verdict in verdicts] == [None, None, (2, 3)]
    assert [verdict.ok for verdict in verdicts] == [True, True, False]
    assert verdicts[2].whole, "the file itself is"
    assert all(verdict.ok for verdict in run_of(paths[2:])), "nobody asked for the beginning"


def test_what_damage_explains_is_not_told_again_in_the_next_file(tmp_path: Path) -> None:
    paths = rotated(tmp_path)
    with CaptureReader(paths[0]) as reader:
        last = list(reader.chunks())[-1]
    flip(paths[0], last.offset + DESCRIPTOR_BYTES + 9)
    first, second, _ = run_of(paths)
    assert first.holes == 20
    assert second.miscounted == ()


def test_runs_do_not_mix(tmp_path: Path) -> None:
    one, other = rotated(tmp_path / "one"), make(tmp_path, 50, trades(10))
    assert [verdict.ok for verdict in run_of([one[0], other, one[1]])] == [True] * 3
    assert in_run_order([one[1], other, one[0]]) == [one[0], one[1], other]
    missing = tmp_path / "missing.zst"
    assert in_run_order([one[1], missing, one[0]]) == [one[0], one[1], missing]


def test_a_sink_gets_what_the_capture_makes(tmp_path: Path) -> None:
    path, sink = make(tmp_path, 1, trades(10)), ListSink()
    verdict = verify(path, sink_of=lambda header: sink)
    assert sink.starts == [1]
    assert len(sink.records) == verdict.ledger.produced == 10
    assert (verdict.end, verdict.first_ns) == (10, START_NS)


def test_what_is_no_capture(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("nothing")
    with pytest.raises(NotACaptureError):
        verify(text)
    with pytest.raises(CaptureError):
        verify(tmp_path / "missing.zst")
