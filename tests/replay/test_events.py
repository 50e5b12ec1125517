"""`kcs.read` and positioned events: what Kafka would get, in its order, with the way back to the frame."""

from __future__ import annotations

from pathlib import Path

import pytest

import kcs
from kcs.capture.format import DESCRIPTOR_BYTES
from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureError, DamagedCaptureError, UsageError
from kcs.model import BUY, Gap, GapFields, Kind, Trade
from kcs.replay.events import positioned
from kcs.stats import Ledger
from tests.replay.making import MS, SECOND, START_NS, ListSink, make, play, trade, trades


def test_read_gives_typed_events(tmp_path: Path) -> None:
    controls = [(START_NS, Kind.GAP, GapFields(START_NS - SECOND, START_NS, "silence", ("KRW-BTC",)))]
    path = make(tmp_path, 1, trades(2), controls=controls)
    assert list(kcs.read(path)) == [
        Gap(0, START_NS - SECOND, START_NS, "silence", ("KRW-BTC",)),
        Trade("KRW-BTC", 0.5, 0.25, BUY, 1_700_000_000_000 * MS, "0"),
        Trade("KRW-BTC", 1.5, 0.25, BUY, 1_700_000_000_001 * MS, "1"),
    ]
    assert list(kcs.read(str(path))) == list(kcs.read(path))


def test_positions_lead_back_to_the_frame_and_are_those_of_replay(tmp_path: Path) -> None:
    one = make(tmp_path, 1, trades(100))
    two = make(tmp_path, 2, [*trades(50, at_ns=START_NS + 5 * MS), (START_NS + SECOND, b"junk")], chunk=9)
    items = list(positioned([two, one]))
    sink = ListSink()
    play([one, two], sink)
    replayed = [number for number, record in zip(sink.numbers, sink.records, strict=True) if record[1] != "reject"]
    assert [(int.from_bytes(item.capture_id, "big"), item.frame) for item in items] == replayed
    raw = {record.number: record for record in kcs.records(one)}
    for item in items:
        if item.capture_id == (1).to_bytes(8, "big"):
            frame = raw[item.frame]
            assert frame.recv_ns == item.recv_ns
            assert b'"sid":%s,' % item.event.id.encode() in frame.payload  # type: ignore[union-attr]
    assert {item.index for item in items} == {0}
    assert {item.exchange for item in items} == {"upbit"}


def test_duplicates_are_not_events_and_the_ledger_balances(tmp_path: Path) -> None:
    path = make(tmp_path, 1, [*trades(10), *trades(10, at_ns=START_NS + SECOND)])
    ledger = Ledger()
    assert len(list(positioned([path], ledger=ledger))) == 10
    ledger.check()
    assert (ledger.received, ledger.suppressed, ledger.acked) == (20, {"trade_repeated": 10}, 10)


def test_a_range_is_half_open(tmp_path: Path) -> None:
    path = make(tmp_path, 1, [(START_NS + i * MS, trade(i % 30)) for i in range(60)])
    found = list(positioned([path], from_ns=START_NS + 10 * MS, to_ns=START_NS + 40 * MS))
    assert [item.frame for item in found] == list(range(10, 30)), "30 to 39 repeat what came before"
    assert [e.id for e in kcs.read(path, from_ns=START_NS + 10 * MS, to_ns=START_NS + 12 * MS)] == ["10", "11"]


def test_damage_raises_after_everything_that_is_intact_came(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(100), chunk=10)
    with CaptureReader(path) as reader:
        at = list(reader.chunks())[3].offset + DESCRIPTOR_BYTES + 20
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)
    seen: list[object] = []
    with pytest.raises(DamagedCaptureError, match=r"10 records cannot be read.*\n.*kcs recover"):
        seen.extend(kcs.read(path))
    assert len(seen) == 90
    ledger = Ledger()
    assert len(list(positioned([path], strict=False, ledger=ledger))) == 90
    assert ledger.unread == 10
    assert ledger.lost


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"nothing\.zst"):
        next(kcs.read(tmp_path / "nothing.zst"))
    path = make(tmp_path, 1, trades(1))
    with pytest.raises(UsageError, match="twice"):
        next(kcs.read(path, path))
