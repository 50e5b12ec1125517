"""What was seen of an overload from outside, and the table of what it says. Used by overload.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.faults.blaster import STATUS
from bench.faults.content import captured, expected, produced
from bench.faults.verdict import Verdict, say

PING_EVERY_S = 0.5
CHANNELS = ("trade", "orderbook")
TEMPLATE = "overload.{channel}.{exchange}"
DRAIN_TIMES_MAX = 10
"""The lag of a blast may take so many times the blast's length to drain."""

# Generous: a machine that is doing nothing else keeps well below them.
BLOCKED_SHARE_MIN = 0.5
PING_LATE_MAX_S = 1.0
PONG_P99_MAX_S = 2.0
PONG_MAX_S = 5.0
FROZEN_LONG_S = 10.0
"""A shorter freeze may fit into the sink's buffer."""
RSS_MAX_MIB = 512
RSS_GROWTH_MAX_MIB = 64 + 64
"""The sink's buffer of 64 MiB is empty in the first third and full in the last; beyond it nothing may grow much."""


@dataclass(slots=True)
class Samples:
    """What was seen of the collector from outside. Times in seconds of `time.perf_counter`."""

    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: list[tuple[float, float]] = field(default_factory=list)
    acked: list[tuple[float, int]] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)
    quiet_at: float | None = None
    result: dict[str, Any] | None = None
    venue_waited: bool = False
    """It said that reading waits for the disk."""
    frozen_s: float = 0.0
    """How long the broker was frozen while it blasted."""

    def rss_between(self, begin: float, end: float) -> list[float]:
        return [mib for at, mib in self.rss_mib if begin <= at < end] or [0.0]


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("inf")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def judge(
    verdict: Verdict,
    samples: Samples,
    seen: dict[str, Any],
    report: dict[str, Any],
    code: int,
) -> None:
    """Everything but the contents: `seen` is the blaster's report, `report` the collector's, `code` its exit code."""
    judge_line(verdict, seen, report)
    judge_memory(verdict, samples)
    if samples.acked:
        judge_lag(verdict, samples, report)
    judge_ledger(verdict, report, code)


def judge_line(verdict: Verdict, seen: dict[str, Any], report: dict[str, Any]) -> None:
    """The connection: overloaded, alive, in time."""
    seconds, frames = seen["seconds"], seen["frames"]
    verdict.tell("frames sent", f"{frames:,} in {seconds:.1f} s, {seen['bytes'] / seconds / 1e6:,.0f} MB/s")
    verdict.tell("frames taken a second", f"{frames / seconds:,.0f}")
    share = seen["blocked_s"] / seconds
    limit = f"> {BLOCKED_SHARE_MIN:.0%}"
    verdict.judge("time the socket took no more", f"{share:.0%}", limit, share > BLOCKED_SHARE_MIN)
    alive = seen["closed_by_client"] and not seen["error"] and report["reconnects"] == 0
    verdict.judge("the socket survives", f"{report['reconnects']} reconnects {seen['error']}", "closed by us", alive)
    blast = [at for at in seen["pings"] if at <= seconds]
    late = [b - a - PING_EVERY_S for a, b in itertools.pairwise(blast)]
    due = int(seconds / PING_EVERY_S * 0.8)
    verdict.judge("our pings while it blasts", len(blast), f"> {due}", len(blast) > due)
    name = "our pings leave late by p50 / p99 / max"
    shown = " / ".join(map(ms, (median(late or [9.9]), quantile(late, 0.99), max(late, default=9.9))))
    verdict.judge(name, shown, f"max < {ms(PING_LATE_MAX_S)}", max(late, default=9.9) < PING_LATE_MAX_S)
    pongs = seen["pong_s"][: seen["blasted_pongs"]]
    p99, most = quantile(pongs, 0.99), max(pongs, default=9.9)
    shown = " / ".join(map(ms, (quantile(pongs, 0.5), p99, most)))
    gate = f"p99 < {ms(PONG_P99_MAX_S)}, max < {ms(PONG_MAX_S)}"
    ok = p99 < PONG_P99_MAX_S and most < PONG_MAX_S
    verdict.judge(f"answers to {len(pongs)} pings of the venue p50 / p99 / max", shown, gate, ok)
    verdict.judge("pings not answered", seen["unanswered"], "< 2", seen["unanswered"] < 2)


def judge_memory(verdict: Verdict, samples: Samples) -> None:
    """Bounded, and not growing with the lag."""
    begin, end = samples.sent[0][0], samples.quiet_at or samples.sent[-1][0]
    third = (end - begin) / 3
    first, last = samples.rss_between(begin, begin + third), samples.rss_between(end - third, end)
    cpu = [used for at, used in samples.cpu_s if begin <= at < end]
    if len(cpu) > 1:
        used = cpu[-1] - cpu[0]
        share = f"{used / (end - begin):.0%} of a core"
        verdict.tell("processor time of the collector", f"{share}, {used / samples.sent[-1][1] * 1e6:.1f} us a frame")
    most = max(mib for _, mib in samples.rss_mib)
    verdict.judge("resident memory, most", f"{most:.0f} MiB", f"< {RSS_MAX_MIB} MiB", most < RSS_MAX_MIB)
    growth = median(last) - median(first)
    name, limit = "from the first third of the blast to the last", f"< {RSS_GROWTH_MAX_MIB} MiB"
    verdict.judge(name, f"{growth:+.0f} MiB", limit, growth < RSS_GROWTH_MAX_MIB)


def judge_lag(verdict: Verdict, samples: Samples, report: dict[str, Any]) -> None:
    """Fell behind, and caught up."""
    assert samples.quiet_at is not None
    sent = samples.sent[-1][1]
    lag = max((total - acked for total, acked in _together(samples)), default=0)
    verdict.tell("most frames behind", f"{lag:,}")
    drained = next((at for at, acked in samples.acked if acked >= sent), None)
    seconds = samples.quiet_at - samples.sent[0][0]
    shown = "never" if drained is None else f"{max(0.0, drained - samples.quiet_at):.1f} s"
    ok = drained is not None and drained - samples.quiet_at < DRAIN_TIMES_MAX * seconds
    verdict.judge("the lag drains after the blast", shown, f"< {DRAIN_TIMES_MAX * seconds:.0f} s", ok)
    times = report["catch_ups"]
    waited = "waited" if samples.venue_waited else "did not have to wait"
    if samples.frozen_s >= FROZEN_LONG_S:
        name = f"delivery falls behind (broker frozen for {samples.frozen_s:.0f} s) and meets the present again"
        verdict.judge(name, f"{times} times; the venue {waited}", "> 0", bool(times))
    else:
        verdict.tell("delivery fell behind and met the present again", f"{times} times; the venue {waited}")


def _together(samples: Samples) -> Iterator[tuple[int, int]]:
    """(sent, acked) at about the same times."""
    for at, acked in samples.acked:
        sent = [frames for when, frames in samples.sent if when <= at]
        if sent:
            yield sent[-1], acked


def judge_content(verdict: Verdict, block: list[bytes], sent: int, directory: Path, bootstrap: str | None) -> None:
    """Every frame sent is in the capture, in order, and in Kafka once."""
    files = sorted(directory.glob("*.zst"), key=lambda path: path.stat().st_mtime_ns)
    held = captured(files, block, STATUS)
    for text in held.wrong:
        say(text)
    verdict.judge(
        "frames captured, byte for byte in order",
        f"{held.frames:,}",
        f"{sent:,}",
        held.frames == sent and not held.wrong,
    )
    if bootstrap is None:
        return
    found = produced(bootstrap, TEMPLATE, CHANNELS, held, expected(block))
    for text in found.wrong:
        say(text)
    verdict.judge("their records in Kafka, once each", f"{found.records:,}", f"{sent:,}", found.records == sent)
    bad = (found.repeated, found.foreign, found.unordered, len(found.wrong))
    verdict.judge("records twice / foreign / out of order / wrong", " / ".join(map(str, bad)), "none", not any(bad))


def judge_ledger(verdict: Verdict, report: dict[str, Any], code: int) -> None:
    """What kcs says of itself."""
    frames, records = report["frames"], report["records"]
    balanced = frames["received"] == frames["captured"] + frames["uncaptured"] and not frames["uncaptured"]
    parsed = frames["parsed"] + sum(frames["ignored"].values()) + sum(frames["rejected"].values()) + frames["behind"]
    balanced = balanced and frames["captured"] == parsed and not frames["behind"]
    balanced = balanced and records["acked"] == records["produced"]
    verdict.judge("its own ledger", f"{records['acked']:,} of {records['produced']:,} acked", "balances", balanced)
    receipts = [capture["receipt"] for capture in report["captures"]]
    verdict.judge("exit code", code, "130: ended by a signal", code == 130)
    verdict.tell("captures / receipts", f"{len(receipts)} / {sum(r is not None for r in receipts)}")
    verdict.tell("loop lag p99 / max", f"{report['loop_lag_ms']['p99']:.0f} / {report['loop_lag_ms']['max']:.0f} ms")
