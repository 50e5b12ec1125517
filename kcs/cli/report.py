"""The report that ends every verb that runs frames: one JSON object (`--json`) or a short table on stderr.

The JSON's shape is a contract (docs/cli.md). A figure that does not apply is null, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kcs.stats import GcReport, LatencyHistogram, Ledger

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LOSS = 3
EXIT_INTERRUPTED = 130

_UNDONE = "kcs verify FILE --topic names it, kcs replay brings it back"
_LATER = "the next `kcs live` or `kcs recover --produce FILE` delivers the rest"


@dataclass(slots=True, frozen=True)
class RunReport:
    """What a run did. `captures` entries: {"path", "id", "digest", "receipt"}.

    `streams` entries: {"exchange", "stream", "frames", "saved", "opens"}; `saved` is None without a twin.
    """

    verb: str
    seconds: float
    ledger: Ledger
    captures: Sequence[dict[str, Any]] = ()
    digest: str | None = None
    gaps_covered: int | None = None
    """Gaps of one connection in which another of the same subscription delivered all the while."""
    unverifiable: Sequence[str] = ()
    """Exchanges whose protocol has no sequence and no checksum: what they lost inside a connection leaves no trace."""
    reconnects: int | None = None
    streams: Sequence[dict[str, Any]] | None = None
    catch_ups: int | None = None
    speed_asked: str | None = None
    speed_reached: float | None = None
    lateness: LatencyHistogram | None = None
    ack_latency: LatencyHistogram | None = None
    gc: GcReport | None = None
    loop_lag: dict[str, Any] | None = None
    delivers: bool = True
    """False for the null sink: nothing is acknowledged, failed or in flight, whatever the ledger counts for itself."""
    behind: bool = False
    """Delivery did not come to the captures' end. Records that are no frames may wait, too: gaps, of a silent venue."""
    acks_undone: int = 0
    """How often a partition's offsets went back: what the cluster had acknowledged is gone there."""
    interrupted: bool = False
    failed: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    warnings: Sequence[str] = field(default_factory=tuple)
    """Protection that the settings gave up, as `kcs.cli.sinks.warned` said it at the start."""

    def exit_code(self, *, fail_on_gaps: bool = False) -> int:
        """The ledger's verdict first, then the signal's."""
        if self.failed:
            return EXIT_FAILED
        if (
            self.ledger.lost
            or self.behind
            or self.acks_undone
            or (fail_on_gaps and self.ledger.gaps > (self.gaps_covered or 0))
        ):
            return EXIT_LOSS
        return EXIT_INTERRUPTED if self.interrupted else EXIT_OK

    def as_json(self) -> dict[str, Any]:
        frames = self.ledger.received
        lateness = self.lateness.report_ms() if self.lateness and self.lateness.count else None
        ack = self.ack_latency.report_ms() if self.ack_latency and self.ack_latency.count else None
        return {
            "verb": self.verb,
            "seconds": round(self.seconds, 6),
            **self.ledger.report(),
            "records": self._records(),
            "digest": self.digest,
            "captures": list(self.captures),
            "gaps": self.ledger.gaps,
            "gaps_covered": self.gaps_covered,
            "unverifiable": list(self.unverifiable),
            "reconnects": self.reconnects,
            "streams": None if self.streams is None else list(self.streams),
            "catch_ups": self.catch_ups,
            "acks_undone": self.acks_undone if self.delivers else None,
            "rate": {
                "frames_per_s": round(frames / self.seconds, 1) if self.seconds > 0 else None,
                "speed_asked": self.speed_asked,
                "speed_reached": None if self.speed_reached is None else round(self.speed_reached, 6),
            },
            "lateness_ms": {key: lateness[key] for key in ("p50", "p99", "max")} if lateness else None,
            "ack_latency_ms": ack,
            "gc": None
            if self.gc is None
            else {"share": self.gc.share, "collections": self.gc.collections, "pause_max_ms": self.gc.pause_max_ms},
            "loop_lag_ms": self.loop_lag,
            "failed": self.failed,
            "warnings": list(self.warnings),
        }

    def _records(self) -> dict[str, int | None]:
        ledger = self.ledger
        if not self.delivers:
            return {"produced": ledger.produced, "acked": None, "failed": None, "in_flight": None}
        return {
            "produced": ledger.produced,
            "acked": ledger.acked,
            "failed": ledger.failed,
            "in_flight": ledger.in_flight,
        }

    def lines(self) -> list[tuple[str, str]]:
        """(name, text) rows for people."""
        ledger = self.ledger
        rows = [
            ("frames", _frames_text(ledger)),
            ("events", _events_text(ledger)),
            (
                "records",
                _records_text(ledger) if self.delivers else f"{ledger.produced:,} made, not delivered anywhere",
            ),
        ]
        if self.seconds > 0:
            speed = f", {self.speed_reached:,.2f}x recorded time" if self.speed_reached else ""
            rows.append(("rate", f"{ledger.received / self.seconds:,.0f} frames/s over {self.seconds:.2f} s{speed}"))
        if self.lateness is not None and self.lateness.count:
            rows.append(("lateness", _latency_text(self.lateness, ("p50", "p99", "max"))))
        if self.ack_latency is not None and self.ack_latency.count:
            rows.append(("receive to ack", _latency_text(self.ack_latency, ("p50", "p99", "p999", "max"))))
        if self.gc is not None and self.gc.share is not None:
            rows.append(
                (
                    "garbage collection",
                    f"{self.gc.share:.3%} of the time, {self.gc.collections} runs,"
                    f" longest {self.gc.pause_max_ms:.2f} ms",
                )
            )
        if self.reconnects is not None:
            covered = f", {self.gaps_covered} of them covered by another connection" if self.gaps_covered else ""
            rows.append(("connections", f"{self.reconnects} reconnects, {ledger.gaps} gaps{covered}"))
        if self.unverifiable:
            names = ", ".join(self.unverifiable)
            rows.append(("not verifiable", f"losses inside a connection of {names}: no sequence"))
        rows.extend(
            ("  stream", f"{stream['stream']}: {stream['frames']:,} frames, {stream['saved']:,} of them first here")
            for stream in self.streams or ()
            if stream["saved"] is not None
        )
        if self.catch_ups:
            rows.append(("delivery", f"fell behind and caught up from the capture {self.catch_ups:,} times"))
        for capture in self.captures:
            rows.append(("capture", str(capture["path"])))
            if capture.get("digest"):
                rows.append(("  digest", str(capture["digest"])))
            if capture.get("receipt"):
                rows.append(("  receipt", str(capture["receipt"])))
        rows.extend(("note", note) for note in self.notes)
        rows.extend(("WARNING", text) for text in self.warnings)
        if self.failed:
            rows.append(("FAILED", self.failed))
        if ledger.lost:
            rows.append(("LOSS", _loss_text(ledger)))
        elif self.behind:
            rows.append(("LOSS", f"delivery did not come to the capture's end: {_LATER}"))
        if self.acks_undone:
            rows.append(("LOSS", f"Kafka lost what it had acknowledged, {self.acks_undone:,} times: {_UNDONE}"))
        return rows


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in sorted(counts.items()))


def _frames_text(ledger: Ledger) -> str:
    ignored, rejected = sum(ledger.ignored.values()), sum(ledger.rejected.values())
    text = f"{ledger.received:,} received, {ledger.captured:,} captured = {ledger.parsed:,} parsed"
    text += f" + {ignored:,} ignored" + (f" ({_reasons(ledger.ignored)})" if ignored else "")
    text += f" + {rejected:,} rejected" + (f" ({_reasons(ledger.rejected)})" if rejected else "")
    return text + f" + {ledger.behind:,} behind"


def _events_text(ledger: Ledger) -> str:
    text = (
        f"{ledger.trades:,} trades, {ledger.orderbooks:,} order books, {ledger.tickers:,} tickers, {ledger.gaps} gaps"
    )
    dropped = sum(ledger.suppressed.values())
    return text + (f"; {dropped:,} duplicates dropped ({_reasons(ledger.suppressed)})" if dropped else "")


def _records_text(ledger: Ledger) -> str:
    return (
        f"{ledger.produced:,} produced = {ledger.acked:,} acked + {ledger.failed:,} failed"
        f" + {ledger.in_flight:,} in flight"
    )


def _latency_text(histogram: LatencyHistogram, keys: tuple[str, ...]) -> str:
    values = histogram.report_ms()
    names = {"p999": "p99.9"}
    return ", ".join(f"{names.get(key, key)} {values[key]:.3f} ms" for key in keys)


def _loss_text(ledger: Ledger) -> str:
    parts = (
        ("frames not captured", ledger.uncaptured),
        (
            f"frames behind (captured, not produced: {_LATER})",
            ledger.behind,
        ),
        ("records failed", ledger.failed),
        ("records not acknowledged", ledger.in_flight),
        ("records unreadable in the capture", ledger.unread),
        ("records never reached the disk", ledger.unwritten),
    )
    return "; ".join(f"{number:,} {name}" for name, number in parts if number)
