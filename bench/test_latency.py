"""Receive-to-ack latency at 10,000 frames/s: simulator, broker and collector each in a process, recording on."""

from __future__ import annotations

from typing import Any

import pytest

from bench.report import Gate, Report, Row
from bench.rig import flattened, outcome

RATE = 10_000
P50_MS_MAX = 1.0
P99_MS_MAX = 5.0
GC_PERCENT_MAX = 1.0
RATE_SHARE_MIN = 0.97
PROFILE = "README.md, 'Where does the time go'"

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def rows_of(layout: str, found: dict[str, Any]) -> dict[str, Row]:
    """p50, p99, p99.9, GC share, lag, rate of a live run, by name."""
    rounds = found["rounds"]
    floor = {
        name: [values[name] for values in found["floor_ms"]] if found["floor_ms"] else [] for name in ("p50", "p99")
    }

    def latency(name: str, shown: str) -> Row:
        values, under = flattened(rounds, "ack_latency_ms", name), floor.get(name, [])
        ratio = sorted(values)[len(values) // 2] / (sum(under) / len(under)) if under else None
        reference = "idle send_and_wait" if under else ""
        return Row("latency", f"receive to ack, {layout}, {shown}", "ms", values, reference, under, ratio)

    cpu = [value * 100 for value in flattened(rounds, "cpu_share")]
    rates = flattened(rounds, "frames_per_s")
    lag = flattened(rounds, "loop_lag_ms", "p99")
    worst = max(flattened(rounds, "loop_lag_ms", "max"))
    pause = max(flattened(rounds, "gc_pause_max_ms"))
    return {
        "p50": latency("p50", "p50"),
        "p99": latency("p99", "p99"),
        "p999": latency("p999", "p99.9"),
        "rate": Row("latency", f"  {layout}: rate reached", "frames/s", rates),
        "lag": Row("latency", f"  {layout}: loop lag p99", "ms", lag, note=f"worst {worst:.2f} ms; timer included"),
        "cpu": Row("latency", f"  {layout}: CPU of the collector", "% of a core", cpu),
        "gc": Row(
            "latency",
            f"  {layout}: garbage collection",
            "% of time",
            [value * 100 for value in flattened(rounds, "gc_share")],
            note=f"longest pause {pause:.2f} ms",
        ),
    }


def test_one_topic_one_partition(report: Report, warm_kafka: str) -> None:
    """The floor targets: p50 < 1 ms, p99 < 5 ms, GC < 1 %; median of five rounds after a warm-up."""

    def measure(attempt: int) -> list[tuple[Row, Gate | None]]:
        found = outcome("live", "--bootstrap", warm_kafka, "--channel", "trade", timeout_s=140)
        rows = rows_of("1 x 1", found)
        gates = {
            "p50": Gate(P50_MS_MAX, PROFILE),
            "p99": Gate(P99_MS_MAX, PROFILE),
            "gc": Gate(GC_PERCENT_MAX, PROFILE),
            "rate": Gate(RATE * RATE_SHARE_MIN, "the simulator did not reach its rate", at_least=True),
        }
        return [(row, gates.get(name)) for name, row in rows.items()]

    report.gated(measure)


@pytest.mark.parametrize("partitions", [1, 6])
def test_three_topics(report: Report, warm_kafka: str, partitions: int) -> None:
    """No target: many small batches, one request in flight a broker."""
    channels = ("--channel", "trade", "--channel", "orderbook", "--channel", "ticker")
    brief = ("--rounds", "3", "--seconds", "3", "--warmup", "3", "--floor", "0")
    layout = ("--partitions", str(partitions), *channels)
    found = outcome("live", "--bootstrap", warm_kafka, *layout, *brief, timeout_s=100)
    rows = rows_of(f"3 x {partitions}", found)
    for name in ("p50", "p99", "p999", "rate", "cpu"):
        report.add(rows[name])
