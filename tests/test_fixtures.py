"""The committed fixture: made by its documented command, whole, and with the digest that live had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import kcs
from kcs.errors import DamagedCaptureError
from kcs.model import OrderBook, Ticker, Trade
from kcs.verify import verify

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CAPTURE = FIXTURES / "upbit.zst"
FACTS = orjson.loads((FIXTURES / "upbit.json").read_bytes())


def test_the_documented_command_makes_the_committed_bytes() -> None:
    result = subprocess.run(
        [sys.executable, str(FIXTURES / "make.py"), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "as committed" in result.stdout


def test_the_check_notices_a_fixture_that_was_tampered_with(tmp_path: Path) -> None:
    script = (FIXTURES / "make.py").read_bytes()
    (tmp_path / "make.py").write_bytes(script)
    (tmp_path / "upbit.json").write_bytes(
        (FIXTURES / "upbit.json").read_bytes().replace(FACTS["digest"].encode(), b"0" * 64)
    )
    (tmp_path / "upbit.zst").write_bytes(CAPTURE.read_bytes())
    result = subprocess.run(
        [sys.executable, str(tmp_path / "make.py"), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "digest: committed" in result.stdout


def test_a_replay_has_the_digest_that_live_had() -> None:
    verdict = verify(CAPTURE, expected=FACTS["digest"])
    assert verdict.ok
    assert verdict.ledger.report()["frames"] == FACTS["frames"]
    assert verdict.ledger.report()["events"] == FACTS["events"]


def test_the_fixture_holds_what_tests_need() -> None:
    assert CAPTURE.stat().st_size <= 2_000_000
    assert FACTS["frames"]["ignored"].get("heartbeat", 0) > 0
    assert sum(FACTS["frames"]["rejected"].values()) > 0
    assert FACTS["suppressed"].get("trade_repeated", 0) > 0
    assert FACTS["events"]["gap"] == 1


@pytest.mark.parametrize("kind", [Trade, OrderBook, Ticker])
def test_reading_it_yields_typed_events_of_several_markets(kind: type) -> None:
    events = [event for event in kcs.read(CAPTURE) if isinstance(event, kind)]
    assert len({event.market for event in events}) == 8


def test_raw_records_are_there_too() -> None:
    kinds = {record.kind.name for record in kcs.records(CAPTURE)}
    assert {"OPEN", "SENT", "BINARY", "CLOSE", "GAP", "CLOCK"} <= kinds


def test_damage_behind_the_end_that_was_asked_for_is_nobodys_loss(tmp_path: Path) -> None:
    path = tmp_path / "damaged.zst"
    content = bytearray(CAPTURE.read_bytes())
    content[440_000] ^= 1  # in the last chunk
    path.write_bytes(content)
    first_ns = next(iter(kcs.records(CAPTURE))).recv_ns
    assert len(list(kcs.read(path, to_ns=first_ns + 5_000_000_000))) > 100
    with pytest.raises(DamagedCaptureError):
        list(kcs.read(path))
