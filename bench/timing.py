"""Rounds of a measurement and of its reference, one after the other, so that the machine's pace cancels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

ROUNDS = 21
WARMUP_ROUNDS = 3


@dataclass(slots=True, frozen=True)
class Timing:
    """us per unit of each round; `reference` has a figure a round, or none at all."""

    us: list[float]
    reference: list[float]

    @property
    def median(self) -> float:
        return median(self.us)

    @property
    def ratio(self) -> float | None:
        """Median over the rounds of measured / reference (two neighbours in time)."""
        if not self.reference:
            return None
        return median(mine / other for mine, other in zip(self.us, self.reference, strict=True))


def timed(
    benchmark: Any | None,
    subject: Callable[[], object],
    *,
    units: int,
    reference: Callable[[], object] | None = None,
    setup: Callable[[], object] | None = None,
    rounds: int = ROUNDS,
) -> Timing | None:
    """Time `subject`, which does `units` pieces of work, by pytest-benchmark (or by hand where `benchmark` is None).

    Before each round `setup` is called and `reference`, which does as many pieces, is timed. None when
    pytest-benchmark is switched off (`--benchmark-disable`): everything ran once, nothing was measured.
    """
    references: list[float] = []

    def before() -> None:
        if reference is not None:
            started = perf_counter()
            reference()
            references.append((perf_counter() - started) / units * 1e6)
        if setup is not None:
            setup()

    if benchmark is None:
        seconds = _by_hand(subject, before, rounds)
    else:
        benchmark.pedantic(subject, setup=before, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
        if benchmark.stats is None:
            return None
        seconds = list(benchmark.stats.stats.data)
        benchmark.extra_info["units_a_round"] = units
    return Timing([value / units * 1e6 for value in seconds], references[-rounds:] if references else [])


def _by_hand(subject: Callable[[], object], before: Callable[[], None], rounds: int) -> list[float]:
    seconds = []
    gc.collect()
    for round_number in range(WARMUP_ROUNDS + rounds):
        before()
        started = perf_counter()
        subject()
        if round_number >= WARMUP_ROUNDS:
            seconds.append(perf_counter() - started)
    return seconds
