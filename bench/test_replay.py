"""Replay to acks in one process: read, parse, encode, digest, produce, wait for every ack. Reference: ready batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import Gate, Report, Row
from bench.rig import flattened, outcome

REPLAY_FRAMES_PER_S_MIN = 100_000.0
GC_PERCENT_MAX = 1.0
ROUNDS = 5
GATED = ("short", "real")
PROFILE = "README.md, 'Where does the time go'"


def rows_of(tape: tuple[str, Path], broker: str, *arguments: str) -> tuple[Row, Row]:
    """(speed, GC share) of a replay in a child process."""
    source, path = tape
    found = outcome("replay", str(path), "--rounds", str(ROUNDS), *arguments, timeout_s=200)
    rounds = found["rounds"]
    rates, ready = flattened(rounds, "frames_per_s"), flattened(rounds, "ready_records_per_s")
    ratios = sorted(rate / other for rate, other in zip(rates, ready, strict=True))
    cpu = sorted(flattened(rounds, "cpu_us"))[len(rounds) // 2]
    speed = Row(
        "replay",
        f"replay to acks, {broker}, {source}",
        "frames/s",
        rates,
        "aiokafka, ready batches",
        ready,
        ratios[len(ratios) // 2],
        note=f"{rounds[0]['frames']:,} frames a round, {cpu:.1f} us CPU a frame, digest {found['digest'][:12]}",
    )
    share = [value * 100 for value in flattened(rounds, "gc_share")]
    return speed, Row("replay", "  its garbage collection", "% of time", share)


@pytest.mark.timeout(240)
def test_replay_to_embedded_broker(report: Report, short_tape: Path) -> None:
    for row in rows_of(("short", short_tape), "embedded"):
        report.add(row)


@pytest.mark.kafka
@pytest.mark.timeout(480)
def test_replay_to_real_kafka(report: Report, tape: tuple[str, Path], warm_kafka: str) -> None:
    """The floor target on frames of the real recording's shape; books of 30 levels (fixture) are for orientation."""
    if tape[0] not in GATED:
        for row in rows_of(tape, "Kafka", "--bootstrap", warm_kafka):
            report.add(row)
        return

    def measure(attempt: int) -> list[tuple[Row, Gate | None]]:
        speed, collected = rows_of(tape, "Kafka", "--bootstrap", warm_kafka)
        return [
            (speed, Gate(REPLAY_FRAMES_PER_S_MIN, PROFILE, at_least=True)),
            (collected, Gate(GC_PERCENT_MAX, PROFILE)),
        ]

    report.gated(measure)
