"""What capture and follower cost: CPU microseconds a frame, step by step, against a writer that does nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

from bench.cost import TOO_BUSY
from bench.report import Report, Row
from bench.tapes import ROOT

SHOWN = {
    "null": "receive into nothing (null writer)",
    "capture": "  + capture",
    "pipeline": "  + session, parse, de-duplicate, encode, digest (kcs capture)",
    "kafka": "  + Kafka to acks (kcs live)",
    "behind": "  kcs live, every frame delivered from the capture (catching up)",
}
"""The steps of bench/cost.py, in order."""


def measured(*arguments: str, timeout_s: float) -> dict[str, Any]:
    """`python -m bench.cost`. Raises RuntimeError."""
    command = [sys.executable, "-m", "bench.cost", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=timeout_s, check=False)
    if done.returncode == TOO_BUSY:
        pytest.skip(done.stderr.decode().splitlines()[-1])
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def rows_of(found: dict[str, Any]) -> dict[str, Row]:
    """A row a step; `x` is the median of the rounds' ratios to the null writer."""
    us: dict[str, list[float]] = found["us"]
    null = us["null"]
    rows = {}
    for step, values in us.items():
        ratios = sorted(mine / nothing for mine, nothing in zip(values, null, strict=True))
        row = Row("cost", SHOWN[step], "us CPU a frame", values)
        if step != "null":
            row.reference, row.reference_values, row.ratio = "null writer", null, ratios[len(ratios) // 2]
        rows[step] = row
    return rows


def reported(report: Report, *arguments: str, told: tuple[str, ...]) -> None:
    """No target: a machine's microseconds. But each step costs more than receiving alone, or it was not measured."""
    rows = rows_of(measured(*arguments, timeout_s=160))
    for step, row in rows.items():
        if step in told:
            report.add(row)
    null = rows.pop("null").median
    assert all(row.median > null for row in rows.values())


@pytest.mark.timeout(180)
def test_capture_and_pipeline(report: Report) -> None:
    """Receive, capture, and everything but Kafka."""
    reported(report, told=("null", "capture", "pipeline"))


@pytest.mark.kafka
@pytest.mark.timeout(180)
def test_kafka_and_catching_up(report: Report, warm_kafka: str) -> None:
    """With records to acks, at the present and from the capture."""
    arguments = ("--bootstrap", warm_kafka, "--steps", "null,kafka,behind")
    reported(report, *arguments, told=("kafka", "behind"))
