"""Many seeds: one after the other or in several processes, what they covered, and how to repeat one that failed."""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.dst.run import Outcome, run_seed

MUST_HAPPEN: Final = (
    "ack lost", "ack without offset", "batch lost", "batch surfaced after its error", "batch too large",
    "batch waited for the broker", "broker away", "broker away at start", "broker failed oddly",
    "broker refused for rights", "broker slow", "capture failed", "catch-up", "close not answered", "close: lost",
    "close: ping_timeout", "close: planned", "close: remote", "close: silence", "close: stop",
    "connection answered by an error", "connection attempt hung", "connection cut", "connection refused",
    "connection silent", "connection stalled", "content refused", "dead batch lost", "dead batch surfaced",
    "dead batch surfaced late", "delivered after a crash", "died in a write", "disk full",
    "fell behind: Kafka does not keep up", "fell behind: late", "fell behind: the sink is not ready yet",
    "fsync failed", "high watermark lagged", "killed", "leader changed", "loop stalled", "partition added", "power cut",
    "power cut tore a file", "power cut undid a name", "producer fatal", "receipt", "rename failed",
    "replicas out of sync when asked", "rotation", "rotation while behind", "sealed after a crash", "short write",
    "slow disk", "stopped", "stopped while behind", "venue closed the connection", "venue: rejected frames",
    "venue: repeated trades",
)  # fmt: skip
"""Over 200 seeds each of these happens; a plan under which one no longer does tests less than it says."""

_EACH: Final = 8
"""Seeds a worker is given at a time."""


def main(arguments: Sequence[str]) -> int:
    """0: every seed passed (and, from 200 on, everything that must happen did)."""
    options = _options(arguments)
    if options.seed is not None:
        return _one(options.seed, trace=options.trace, keep=options.keep)
    seeds = range(options.first, options.first + options.seeds)
    started = time.perf_counter()
    failed, counts, frames = _all(seeds, options.jobs, options.stop_after)
    seconds = time.perf_counter() - started
    print(_coverage(counts))
    print(
        f"{len(seeds):,} seeds from {seeds.start}, {frames:,} frames, {seconds:.1f} s"
        f" ({seconds / max(1, len(seeds)) * 1000 * options.jobs:.0f} ms a seed and core): {len(failed)} failed"
    )
    for outcome in failed[:20]:
        print(f"  seed {outcome.seed}: {outcome.failures[0]}\n    {command(outcome.seed)}")
    never = [name for name in MUST_HAPPEN if not counts[name]] if len(seeds) >= 200 and not failed else []
    if never:
        print(f"never happened: {', '.join(never)}")
    return 1 if failed or never else 0


def command(seed: int) -> str:
    """What replays a seed."""
    return f"python -m tests.dst --seed {seed} --trace"


def quiet() -> None:
    """The product's own log lines are part of the trace where they matter; nothing is printed."""
    logging.disable(logging.CRITICAL)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.dst", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--keep", type=Path, help="with --seed: leave the captures in this directory")
    parser.add_argument("--seeds", type=int, default=100, help="run so many [100]")
    parser.add_argument("--from", dest="first", type=int, default=0, help="beginning with this one [0]")
    parser.add_argument("--jobs", type=int, default=2, help="processes [2]")
    parser.add_argument("--stop-after", type=int, default=20, help="stop after so many failed seeds [20]")
    return parser.parse_args(arguments)


def _one(seed: int, *, trace: bool, keep: Path | None) -> int:
    quiet()
    outcome = run_seed(seed, verbose=trace, keep=keep)
    again = run_seed(seed)
    if again.trace_hash != outcome.trace_hash:
        outcome.failures.append(f"deterministic: {outcome.trace_hash[:16]} and then {again.trace_hash[:16]}")
    print(
        f"seed {seed}: {outcome.frames} frames, trace {outcome.trace_hash[:16]}, {dict(sorted(outcome.counts.items()))}"
    )
    for text in outcome.failures:
        print(f"FAILED {text}")
    return 1 if outcome.failures else 0


def _all(seeds: range, jobs: int, stop_after: int) -> tuple[list[Outcome], Counter[str], int]:
    failed: list[Outcome] = []
    counts: Counter[str] = Counter()
    frames = 0
    for outcome in outcomes(seeds, jobs):
        frames += outcome.frames
        counts.update(outcome.counts)
        if outcome.failures:
            failed.append(outcome)
            if len(failed) >= stop_after:
                break
    return sorted(failed, key=lambda outcome: outcome.seed), counts, frames


def outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """Each seed's outcome as it comes."""
    if jobs <= 1:
        _begin()
        yield from map(_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs, _begin) as pool:
        yield from pool.imap_unordered(_seed, seeds, chunksize=_EACH)


def _begin() -> None:
    quiet()
    gc.collect()
    gc.freeze()


def _seed(seed: int) -> Outcome:
    return run_seed(seed)


def _coverage(counts: Counter[str]) -> str:
    names = sorted({*counts, *MUST_HAPPEN})
    width = max(map(len, names))
    return "\n".join(f"  {name:{width}} {counts[name]:>9,}" for name in names)
