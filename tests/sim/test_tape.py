"""Tapes: the same bytes each time, a readable capture, faults included."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import orjson
import pytest

from kcs.capture.reader import CaptureReader
from kcs.clock import NS_PER_S
from kcs.errors import CaptureWriteError, UsageError
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from kcs.sim.actions import SendFrame
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.fault_text import parse_faults
from kcs.sim.link import dial
from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings
from kcs.sim.tape import write_tape
from kcs.sim.upbit import UpbitExchange
from tests.sim.helpers import everything

SETTINGS = SimSettings(rate=200, seed=7)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    first = write_tape(tmp_path / "a.zst", SETTINGS, 5 * NS_PER_S)
    second = write_tape(tmp_path / "b.zst", SETTINGS, 5 * NS_PER_S)
    third = write_tape(tmp_path, SETTINGS, 5 * NS_PER_S)
    assert first.path.read_bytes() == second.path.read_bytes() == third.path.read_bytes()
    assert third.path.parent == tmp_path
    assert third.path.name == f"upbit-20260101T090000Z-{first.capture_id.hex()}.zst"
    assert {path.name for path in tmp_path.iterdir()} == {"a.zst", "b.zst", third.path.name, ".upbit.lock"}


@pytest.mark.parametrize(
    "other", [SimSettings(rate=201, seed=7), SimSettings(rate=200, seed=8), SimSettings(rate=200, markets=("KRW-BTC",))]
)
def test_another_content_has_another_id(tmp_path: Path, other: SimSettings) -> None:
    first = write_tape(tmp_path / "a.zst", SETTINGS, NS_PER_S)
    assert write_tape(tmp_path / "b.zst", other, NS_PER_S).capture_id != first.capture_id
    assert write_tape(tmp_path / "c.zst", SETTINGS, NS_PER_S, wire_format="SIMPLE").capture_id != first.capture_id
    assert write_tape(tmp_path / "d.zst", SETTINGS, 2 * NS_PER_S).capture_id != first.capture_id


def test_the_tape_holds_what_a_client_gets(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SETTINGS, 5 * NS_PER_S, wire_format="SIMPLE")
    with CaptureReader(report.path) as reader:
        records = list(reader.records())
        assert reader.sealed
        assert reader.header.seed == 7
        assert reader.header.options["channels"] == ["trade", "orderbook", "ticker"]
        assert reader.header.options["format"] == "SIMPLE"
        assert reader.header.capture_id == report.capture_id
    frames = [record.payload for record in records if record.kind == Kind.BINARY]
    assert frames == everything(SETTINGS, "SIMPLE", 5)
    assert (report.records, report.frames, report.reconnects) == (len(records), len(frames), 0)
    assert [record.kind for record in records[:2]] == [Kind.OPEN, Kind.SENT]
    sent = [record.payload for record in records if record.kind == Kind.SENT]
    assert orjson.loads(sent[0])[0] == {"ticket": "kcs-sim-7-1"}
    assert sent[1:] == [b"PING"]
    assert records[-1].kind == Kind.CLOSE
    assert records[-1].fields == CloseFields(code=1000, cause="stop", frames=len(frames))
    times = [record.recv_ns for record in records]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (DEFAULT_EPOCH_NS, DEFAULT_EPOCH_NS + 5 * NS_PER_S)
    assert [record.number for record in records] == list(range(len(records)))


def test_depth(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SETTINGS, NS_PER_S, depth=5)
    with CaptureReader(report.path) as reader:
        books = [
            orjson.loads(r.payload) for r in reader.records() if b'"orderbook"' in r.payload and r.kind != Kind.SENT
        ]
    assert len(books) > 20
    assert {len(book["orderbook_units"]) for book in books} == {5}


def test_a_reconnect_leaves_close_open_and_gap(tmp_path: Path) -> None:
    faults = parse_faults("close_code=1006@after:2s")
    report = write_tape(tmp_path / "a.zst", SimSettings(rate=100, faults=faults), 4 * NS_PER_S)
    with CaptureReader(report.path) as reader:
        records = list(reader.records())
    assert report.reconnects == 1
    at = next(n for n, record in enumerate(records) if record.kind == Kind.CLOSE)
    assert isinstance(records[at].fields, CloseFields)
    kinds = [record.kind for record in records[at : at + 5]]
    assert kinds == [Kind.CLOSE, Kind.OPEN, Kind.SENT, Kind.GAP, Kind.BINARY]
    assert records[at].fields == CloseFields(code=1006, cause="lost", frames=at - 3)
    opened = records[at + 1].fields
    assert isinstance(opened, OpenFields)
    assert (opened.cause, opened.frames) == ("lost", at - 3)
    gap = records[at + 3].fields
    assert isinstance(gap, GapFields)
    assert (gap.from_ns, gap.to_ns) == (records[at - 1].recv_ns, records[at + 4].recv_ns)
    assert gap.to_ns - gap.from_ns >= NS_PER_S


def test_ups_and_junk_are_on_the_tape(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SimSettings(rate=50, faults=parse_faults("junk@every:10")), 25 * NS_PER_S)
    with CaptureReader(report.path) as reader:
        payloads = [record.payload for record in reader.records() if record.kind == Kind.BINARY]
    assert payloads.count(b'{"status":"UP"}') == 2
    assert payloads.count(b"") > 20
    assert report.frames == len(payloads)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(b"precious")
    with pytest.raises(CaptureWriteError, match="exists"):
        write_tape(path, SETTINGS, NS_PER_S)
    assert path.read_bytes() == b"precious"
    write_tape(path, SETTINGS, NS_PER_S, force=True)
    assert path.read_bytes() != b"precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zst"]


def test_a_tape_needs_a_length_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="length"):
        write_tape(tmp_path / "a.zst", SETTINGS, 0)
    with pytest.raises(CaptureWriteError):
        write_tape(tmp_path / "nowhere" / "a.zst", SETTINGS, NS_PER_S)
    (tmp_path / ".b.zst.tape").mkdir()
    with pytest.raises(CaptureWriteError, match="exists"):
        write_tape(tmp_path / "b.zst", SETTINGS, NS_PER_S)
    assert [entry.name for entry in tmp_path.iterdir()] == [".b.zst.tape"]


def test_it_ends_with_the_market(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SimSettings(rate=100, frames_max=40), 60 * NS_PER_S)
    assert report.frames == 70
    assert report.last_ns is not None
    assert report.last_ns < DEFAULT_EPOCH_NS + NS_PER_S


def test_the_frames_of_a_tape_are_the_same_on_any_machine(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SETTINGS, 10 * NS_PER_S)
    digest = sha256()
    with CaptureReader(report.path) as reader:
        for record in reader.records():
            digest.update(b"%d %d %d " % (record.number, record.kind, record.recv_ns) + record.payload)
    assert digest.hexdigest() == GOLDEN


GOLDEN = "de1c8e80d65986b86ac65360c2a219204b93bb9c93619c57629d4f989f1af7f1"
"""Of the records of the first 10 s of seed 7 at 200/s; see tests/sim/test_upbit_frames.py for what a change means."""


# Faults.

ROUGH = (
    "drop=1%,duplicate=1%,bad_json=1%,silent_stall=500ms@every:2s,stall=300ms@every:3s,late_snapshot=200ms,"
    "latency=30ms,jitter=20ms,close_code=1012@every:7s,reset_peer@at:11s"
)


def test_faults_on_tape_are_the_same_each_time_and_as_in_memory(tmp_path: Path) -> None:
    settings = SimSettings(rate=100, faults=parse_faults(ROUGH))
    logs = [SimFaultLog(), SimFaultLog()]
    one, two = (write_tape(tmp_path / f"{n}.zst", settings, 16 * NS_PER_S, fault_log=log) for n, log in enumerate(logs))
    assert one.path.read_bytes() == two.path.read_bytes()
    assert logs[0].entries == logs[1].entries
    assert one.reconnects == 3
    with CaptureReader(one.path) as reader:
        records = list(reader.records())
    closes = [(record.fields.code, record.fields.cause) for record in records if isinstance(record.fields, CloseFields)]
    assert closes == [(1012, "remote"), (1006, "lost"), (1012, "remote"), (1000, "stop")]
    assert [record.recv_ns for record in records] == sorted(record.recv_ns for record in records)
    exchange = UpbitExchange(settings, DEFAULT_EPOCH_NS)
    client = dial(exchange, DEFAULT_EPOCH_NS)
    first = next(record.payload for record in records if record.kind == Kind.SENT)
    memory = client.receive(DEFAULT_EPOCH_NS, "text", first) + client.receive(DEFAULT_EPOCH_NS, "text", b"PING")
    memory += client.poll(DEFAULT_EPOCH_NS + 9 * NS_PER_S)
    end = next(at for at, record in enumerate(records) if record.kind == Kind.CLOSE)
    tape = [(record.recv_ns, record.payload) for record in records[:end] if record.kind == Kind.BINARY]
    assert tape == [(action.at_ns, action.payload) for action in memory if isinstance(action, SendFrame)]
    assert [entry for entry in logs[0].ordered() if entry.connection == 1] == exchange.fault_log.ordered()


def test_other_faults_make_another_capture(tmp_path: Path) -> None:
    ids = {
        write_tape(tmp_path / f"{at}.zst", SimSettings(rate=50, faults=parse_faults(text)), NS_PER_S).capture_id
        for at, text in enumerate(("", "drop=1%", "drop=2%"))
    }
    assert len(ids) == 3


def test_a_connection_that_is_reset_at_once_sends_nothing_more(tmp_path: Path) -> None:
    report = write_tape(tmp_path / "a.zst", SimSettings(rate=50, faults=parse_faults("reset_peer")), 4 * NS_PER_S)
    with CaptureReader(report.path) as reader:
        kinds = [record.kind for record in reader.records()]
    assert kinds[:4] == [Kind.OPEN, Kind.SENT, Kind.CLOSE, Kind.OPEN]
    assert report.reconnects >= 2
    assert report.frames == 0
