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


def test_what_goes_nowhere_is_not_acknowledged() -> None:
    ledger = Ledger(received=3, captured=3, parsed=3, trades=3, produced=3, acked=3)
    ledger.check()
    report = RunReport("capture", 1.0, ledger, delivers=False)
    assert report.as_json()["records"] == {"produced": 3, "acked": None, "failed": None, "in_flight": None}
    assert dict(report.lines())["records"] == "3 made, not delivered anywhere"
    assert report.exit_code() == 0
    told = RunReport("live", 1.0, ledger)
    assert told.as_json()["records"] == {"produced": 3, "acked": 3, "failed": 0, "in_flight": 0}
