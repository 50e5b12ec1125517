"""Collects figures, judges gates, prints one table at the end and writes it as JSON.

The gate policy is README.md's: the median counts, one repetition is allowed and always shown, absolute limits are the
floor targets in it and nothing else.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import gmtime, strftime
from typing import Any

import orjson
import pytest

from bench.pace import PACE_MIN, pace

RESULTS = Path(__file__).with_name(".results")
SECTIONS = ("start", "parse", "capture", "pipeline", "replay", "latency", "cost")
"""In the order of the table."""
LIBRARIES = ("aiokafka", "confluent-kafka", "msgspec", "orjson", "pydantic", "uvloop", "websockets", "zstandard")


@dataclass(slots=True)
class Row:
    """One figure. `values` are the rounds; the median is what counts. `ratio` is measured / reference."""

    section: str
    name: str
    unit: str
    values: list[float]
    reference: str = ""
    reference_values: list[float] = field(default_factory=list)
    ratio: float | None = None
    target: str = ""
    verdict: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(slots=True, frozen=True)
class Gate:
    """A limit in the row's unit: below it, or above it with `at_least`. `profile`: how to see where the time goes."""

    limit: float
    profile: str
    at_least: bool = False

    @property
    def text(self) -> str:
        return f"{'>' if self.at_least else '<'} {shown(self.limit)}"

    def holds(self, value: float, at_pace: float = 1.0) -> bool:
        """`at_pace` below 1: the limit as a machine of that pace is held to it."""
        return value > self.limit * at_pace if self.at_least else value < self.limit / at_pace


class Report:
    """All rows of this run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.started = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        self.load_before = os.getloadavg()[0]

    def add(self, row: Row) -> None:
        """A figure without a limit."""
        self.rows.append(row)

    def gated(self, measure: Callable[[int], list[tuple[Row, Gate | None]]]) -> None:
        """Measure (attempt 0); where a limit is missed once more (attempt 1), and fail if it is missed again.

        The second time the machine's pace before and after counts: the slower of both, no less than `PACE_MIN`.
        """
        first = measure(0)
        missed = _missed(first)
        if not missed:
            self._take(first, {})
            return
        before = pace()
        again = measure(1)
        at_pace = max(PACE_MIN, min(1.0, before, pace()))
        why = {row.name: f"2nd attempt, the 1st was {shown(row.median)}" for row, _ in missed}
        notes = {
            name: f"{text} (load {os.getloadavg()[0]:.1f}, pace of the machine {at_pace:.2f})"
            for name, text in why.items()
        }
        self._take(again, notes, at_pace)
        still = _missed(again, at_pace)
        if still:
            told = "\n".join(_explained(row, gate, self.load_before, at_pace) for row, gate in still)
            pytest.fail(told, pytrace=False)

    def _take(self, rows: list[tuple[Row, Gate | None]], notes: dict[str, str], at_pace: float = 1.0) -> None:
        for row, gate in rows:
            if gate is not None:
                row.target = gate.text
                slow = f"ok at pace {at_pace:.2f}" if gate.holds(row.median, at_pace) else "MISSED"
                row.verdict = "ok" if gate.holds(row.median) else slow
            if row.name in notes:
                row.note = "; ".join(filter(None, (row.note, notes[row.name])))
            self.rows.append(row)

    def machine(self) -> dict[str, Any]:
        """Where and on what this was measured."""
        return {
            "started": self.started,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "pace": round(pace(), 3),
            "commit": _commit(),
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    def write(self) -> Path:
        """The figures as JSON: one file a run, and `latest.json`."""
        rows = [{**asdict(row), "median": row.median, "best": _best(row), "worst": _worst(row)} for row in self.rows]
        content = orjson.dumps(
            {"machine": self.machine(), "rows": rows, "tables": dict(self.tables)}, option=orjson.OPT_INDENT_2
        )
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.started.replace(':', '')}.json"
        path.write_bytes(content + b"\n")
        (RESULTS / "latest.json").write_bytes(content + b"\n")
        return path

    def lines(self) -> list[str]:
        """The table."""
        machine = self.machine()
        lines = [
            f"kcs {machine['commit']}, Python {machine['python']}, {machine['cpus']} cores, "
            f"load {machine['load_before']} before, {machine['load_after']} after, pace {machine['pace']} (README.md)",
            "",
        ]
        head = ["what", "median", "best", "worst", "unit", "x", "reference", "its median", "target", "verdict"]
        rows = sorted(self.rows, key=lambda row: SECTIONS.index(row.section))
        lines += columns([head, *(_cells(row) for row in rows)])
        for row in rows:
            if row.note:
                lines.append(f"  {row.name.strip()}: {row.note}")
        for title, table in self.tables:
            lines += ["", title, *columns(table)]
        return lines


def _missed(rows: list[tuple[Row, Gate | None]], at_pace: float = 1.0) -> list[tuple[Row, Gate]]:
    return [(row, gate) for row, gate in rows if gate is not None and not gate.holds(row.median, at_pace)]


def _explained(row: Row, gate: Gate, load_before: float, at_pace: float) -> str:
    rounds = ", ".join(shown(value) for value in row.values)
    return (
        f"{row.name}: median {shown(row.median)} {row.unit}, target {gate.text}, twice, at pace {at_pace:.2f}.\n"
        f"  rounds: {rounds} (load before the run {load_before:.1f}, now {os.getloadavg()[0]:.1f})\n"
        f"  reference in the same rounds: {row.reference} {', '.join(map(shown, row.reference_values))}\n"
        f"  a reference that is slow as well means the machine, not the code; where the time goes: {gate.profile}"
    )


def _rate(row: Row) -> bool:
    return row.unit.endswith("/s")


def _best(row: Row) -> float:
    return max(row.values) if _rate(row) else min(row.values)


def _worst(row: Row) -> float:
    return min(row.values) if _rate(row) else max(row.values)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        shown(row.median),
        shown(_best(row)),
        shown(_worst(row)),
        row.unit,
        "" if row.ratio is None else f"{row.ratio:.2f}",
        row.reference,
        shown(median(row.reference_values)) if row.reference_values else "",
        row.target,
        row.verdict,
    ]


def shown(value: float) -> str:
    """Three figures that count, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def columns(table: list[list[str]]) -> list[str]:
    """Text in aligned columns; those with numbers to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    numeric = [all(row[i][:1].isdigit() or not row[i] for row in table[1:]) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"
