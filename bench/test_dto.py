"""Which kind of object should an event be? Asserted is only the direction: nothing decodes faster than the Struct."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import orjson
import pytest

from bench.dto import FIELDS, Candidate, candidates
from bench.report import Report, shown
from bench.tapes import Frames

CALLS = 2_000
ROUNDS = 15
INSTANCES = 5_000


def ns_a_call(work: Callable[[Any], object], argument: Any) -> float:
    """One round, ns a call."""
    started = perf_counter()
    for _ in range(CALLS):
        work(argument)
    return (perf_counter() - started) / CALLS * 1e9


def instance_bytes(candidate: Candidate, values: dict[str, Any]) -> float:
    """What one more instance costs beside the values it holds, its collector's header included."""
    kept: list[Any] = [None] * INSTANCES
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(INSTANCES):
        kept[i] = candidate.construct(values)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / INSTANCES


def test_dto_table(report: Report, benchmark: Any, frames: Frames) -> None:
    """All kinds in turn in every round, so that no kind has the machine to itself."""
    frame = frames.trade[0]
    values = {name: orjson.loads(frame)[name] for name in FIELDS}
    kinds = candidates()
    shapes = [kind.construct(values) for kind in kinds]
    for kind, shape in zip(kinds, shapes, strict=True):
        decoded, encoded = kind.decode(frame), orjson.loads(kind.encode(shape))
        assert encoded == values, kind.name
        for name in FIELDS:
            assert (decoded[name] if isinstance(decoded, dict) else getattr(decoded, name)) == values[name], kind.name
    rounds: dict[str, list[tuple[float, float, float]]] = {kind.name: [] for kind in kinds}

    def one_round() -> None:
        for kind, shape in zip(kinds, shapes, strict=True):
            figures = (ns_a_call(kind.construct, values), ns_a_call(kind.decode, frame), ns_a_call(kind.encode, shape))
            rounds[kind.name].append(figures)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=1)
    if benchmark.stats is None:
        pytest.skip("--benchmark-disable: nothing was measured")
    table = [["kind", "construct ns", "x", f"decode {len(frame)} B ns", "x", "encode ns", "x", "bytes an instance"]]
    ours = _medians(rounds[kinds[0].name])
    for kind in kinds:
        theirs = _medians(rounds[kind.name])
        cells = [
            text for mine, other in zip(ours, theirs, strict=True) for text in (shown(other), f"{other / mine:.2f}")
        ]
        table.append([kind.name, *cells, shown(instance_bytes(kind, values))])
    report.tables.append(
        ("DTO table: one trade of the venue, six of its twenty keys; x is the cost beside Struct", table)
    )
    for kind in kinds[1:]:
        slower = median(a[1] / b[1] for a, b in zip(rounds[kind.name], rounds[kinds[0].name], strict=True))
        assert slower > 1, f"{kind.name} decodes in {slower:.2f} of the Struct's time"


def _medians(rounds: list[tuple[float, float, float]]) -> list[float]:
    return [median(column) for column in zip(*rounds, strict=True)]
