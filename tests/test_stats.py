"""Ledger equations, histogram accuracy, meters under a virtual clock."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcs.clock import VirtualClock
from kcs.errors import LedgerError
from kcs.stats import GcMeter, LatencyHistogram, Ledger


def balanced() -> Ledger:
    ledger = Ledger(received=10, captured=9, uncaptured=1, parsed=5, behind=1, trades=4, orderbooks=2, gaps=1)
    ledger.ignored, ledger.rejected, ledger.suppressed = {"a": 1}, {"b": 2}, {"c": 1}
    ledger.produced = 8
    ledger.settle(acked=6, failed=1)
    return ledger


def test_a_balanced_ledger_passes_and_says_what_is_in_flight() -> None:
    ledger = balanced()
    ledger.check()
    assert ledger.in_flight == 1
    assert ledger.lost


@pytest.mark.parametrize(
    "field", ["received", "captured", "uncaptured", "parsed", "behind", "trades", "produced", "acked"]
)
def test_any_single_wrong_count_is_found(field: str) -> None:
    ledger = balanced()
    setattr(ledger, field, getattr(ledger, field) + 1)
    with pytest.raises(LedgerError, match="does not balance"):
        ledger.check()


def test_more_acks_than_records_is_an_error() -> None:
    ledger = Ledger()
    ledger.settle(acked=1, failed=0)
    with pytest.raises(LedgerError):
        ledger.check()


@pytest.mark.parametrize("field", ["uncaptured", "behind", "failed", "in_flight", "unread", "unwritten"])
def test_each_kind_of_loss_counts_as_loss(field: str) -> None:
    assert not Ledger().lost
    assert Ledger(**{field: 1}).lost


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_within_the_promised_resolution(values: list[int], quantile: float) -> None:
    histogram = LatencyHistogram()
    histogram.record_many(values)
    exact = sorted(values)[max(0, -(-int(quantile * len(values) * 10**6) // 10**6) - 1)]
    reported = histogram.quantile_ns(quantile)
    assert reported is not None
    assert exact <= reported <= max(exact + 4096, int(exact * 1.016) + 1)
    assert histogram.max_ns == max(values)
    assert sum(n for _, n in histogram.buckets()) == histogram.count == len(values)


def test_an_empty_histogram_reports_nothing_instead_of_zero() -> None:
    assert LatencyHistogram().report_ms() == {
        "count": 0,
        "p50": None,
        "p90": None,
        "p99": None,
        "p999": None,
        "max": None,
    }


def test_a_negative_latency_is_counted_and_named() -> None:
    histogram = LatencyHistogram()
    histogram.record_many([-5, 10])
    assert (histogram.negative, histogram.count) == (1, 2)


def test_the_gc_meter_counts_collections() -> None:
    clock = VirtualClock()
    meter = GcMeter(clock)
    meter.start()
    gc.collect()
    clock.advance(1_000)
    meter.stop()
    gc.collect()
    report = meter.report()
    assert report.collections == 1
    assert report.share == 0.0


def test_the_gc_meter_measures_pauses_with_its_clock() -> None:
    clock = VirtualClock()
    meter = GcMeter(clock)
    meter.start()
    meter._on_gc("start", {})
    clock.advance(2_000_000)
    meter._on_gc("stop", {})
    clock.advance(2_000_000)
    meter.stop()
    assert meter.report().share == 0.5
    assert meter.report().pause_max_ms == 2.0
