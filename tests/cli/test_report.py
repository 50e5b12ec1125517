"""The report's own rules: what counts as loss, what is said of it, and what does not apply is null."""

from __future__ import annotations

from kcs.cli.report import RunReport
from kcs.stats import Ledger


def test_what_a_failed_disk_never_took_is_in_the_json_and_in_the_loss_line() -> None:
    ledger = Ledger(received=10, captured=10, parsed=10, unwritten=1_234)
    ledger.check()
    report = RunReport("live", 1.0, ledger, failed="the capture failed: the disk is full")
    assert report.as_json()["frames"]["unwritten"] == 1_234
    rows = dict(report.lines())
    assert rows["FAILED"] == "the capture failed: the disk is full"
    assert rows["LOSS"] == "1,234 records never reached the disk"
    assert report.exit_code() == 1, "a run that failed is 1, whatever else it lost"


def test_gaps_that_another_connection_covered_fail_nothing() -> None:
    ledger = Ledger(gaps=2, produced=2, acked=2)
    ledger.check()
    streams = [
        {"exchange": "upbit", "stream": 0, "frames": 1_200, "saved": 3, "opens": 2},
        {"exchange": "upbit", "stream": 1, "frames": 1_500, "saved": 1_400, "opens": 1},
    ]
    codes = []
    for covered in (0, 1, 2):
        report = RunReport("live", 1.0, ledger, gaps_covered=covered, reconnects=1, streams=streams)
        codes.append(report.exit_code(fail_on_gaps=True))
        assert report.exit_code() == 0
        assert report.as_json()["gaps_covered"] == covered
    assert codes == [3, 3, 0]
    assert report.as_json()["streams"] == streams
    rows = report.lines()
    assert ("connections", "1 reconnects, 2 gaps, 2 of them covered by another connection") in rows
    assert ("  stream", "1: 1,500 frames, 1,400 of them first here") in rows


def test_what_a_replay_does_not_know_is_null() -> None:
    report = RunReport("replay", 1.0, Ledger(gaps=1, produced=1, acked=1))
    assert report.as_json()["gaps_covered"] is report.as_json()["streams"] is None
    assert report.exit_code(fail_on_gaps=True) == 3


def test_what_a_venue_cannot_prove_is_said_of_every_run() -> None:
    report = RunReport("live", 1.0, Ledger(), reconnects=0, unverifiable=["upbit"])
    assert report.as_json()["unverifiable"] == ["upbit"]
    assert dict(report.lines())["not verifiable"] == "losses inside a connection of upbit: no sequence"
    proven = RunReport("live", 1.0, Ledger(), reconnects=0)
    assert proven.as_json()["unverifiable"] == []
    assert "not verifiable" not in dict(proven.lines())


def test_one_connection_saves_nothing_to_speak_of() -> None:
    streams = [{"exchange": "upbit", "stream": 0, "frames": 10, "saved": None, "opens": 1}]
    report = RunReport("live", 1.0, Ledger(), reconnects=0, streams=streams)
    assert "  stream" not in dict(report.lines())


def test_what_goes_nowhere_is_not_acknowledged() -> None:
    ledger = Ledger(received=3, captured=3, parsed=3, trades=3, produced=3, acked=3)
    ledger.check()
    report = RunReport("capture", 1.0, ledger, delivers=False)
    assert report.as_json()["records"] == {"produced": 3, "acked": None, "failed": None, "in_flight": None}
    assert dict(report.lines())["records"] == "3 made, not delivered anywhere"
    assert report.exit_code() == 0
    told = RunReport("live", 1.0, ledger)
    assert told.as_json()["records"] == {"produced": 3, "acked": 3, "failed": 0, "in_flight": 0}


def test_a_run_that_is_behind_with_no_frame_is_a_loss_all_the_same() -> None:
    """Its gap record waits; so does what earlier runs left before it."""
    report = RunReport("live", 1.0, Ledger(), behind=True, interrupted=True)
    assert report.exit_code() == 3
    assert "next `kcs live`" in dict(report.lines())["LOSS"]


def test_a_cluster_that_forgets_what_it_acknowledged_is_a_loss() -> None:
    report = RunReport("live", 1.0, Ledger(), acks_undone=2)
    assert report.exit_code() == 3
    assert "2 times" in dict(report.lines())["LOSS"]
    assert report.as_json()["acks_undone"] == 2
    assert RunReport("capture", 1.0, Ledger(), delivers=False).as_json()["acks_undone"] is None
