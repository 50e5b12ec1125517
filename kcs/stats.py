"""What a run counts and measures: the loss ledger, latency histograms, GC and event-loop meters.

These are the only mutable value types of kcs. Times are ns inside and ms in reports. A figure that does not apply is
None, never 0. Single-threaded: owned by the loop that runs the pipeline.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kcs.clock import NS_PER_MS, NS_PER_S, Clock
from kcs.errors import LedgerError

if TYPE_CHECKING:
    import asyncio

_FINE_SHIFT: Final = 12
"""Latencies below `_FINE_MAX` are counted in steps of 2**12 ns = 4.1 us."""
_FINE_BUCKETS: Final = 32_768
_FINE_MAX: Final = _FINE_BUCKETS << _FINE_SHIFT
_COARSE_BITS: Final = 6
"""Above that, 64 steps per power of two: 1.6 % resolution."""


_PARSED: Final = (
    "parsed", "ignored", "rejected", "trades", "orderbooks", "tickers", "gaps", "suppressed", "produced",
)  # fmt: skip
"""What frames became, and the records made of them."""


@dataclass(slots=True)
class Ledger:
    """The loss ledger. Frames are data frames (text and binary); control records are not frames.

    received = captured + uncaptured
    captured = parsed + ignored + rejected + behind
    events   = emitted + suppressed
    produced = emitted + rejected = acked + failed + in flight
    """

    received: int = 0
    captured: int = 0
    uncaptured: int = 0
    parsed: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    trades: int = 0
    orderbooks: int = 0
    tickers: int = 0
    gaps: int = 0
    suppressed: dict[str, int] = field(default_factory=dict)
    produced: int = 0
    acked: int = 0
    failed: int = 0
    in_flight: int = 0
    unread: int = 0
    """Records that a damaged capture holds no more."""
    unwritten: int = 0
    """Records of any kind, mostly frames counted as captured, that a failing disk never took; in no equation."""

    @property
    def events(self) -> int:
        return self.trades + self.orderbooks + self.tickers + self.gaps

    @property
    def lost(self) -> bool:
        """This run failed to capture, deliver or read something: exit code 3."""
        return bool(self.uncaptured or self.behind or self.failed or self.in_flight or self.unread or self.unwritten)

    def settle(self, acked: int, failed: int) -> None:
        """Take the sink's counts; what is neither acked nor failed is in flight."""
        self.acked = acked
        self.failed = failed
        self.in_flight = self.produced - acked - failed

    def copy(self) -> Ledger:
        """The same counts, for somebody else to go on with."""
        other = Ledger()
        other.add(self)
        return other

    def difference(self, other: Ledger) -> str | None:
        """Which count of what frames became is not the same, or None; what came and what was captured is left out."""
        for name in _PARSED:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name}: {mine} and {theirs}"
        return None

    def add(self, other: Ledger) -> None:
        """Add another run's counts: several exchanges in one process."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                for reason, number in theirs.items():
                    mine[reason] = mine.get(reason, 0) + number
            else:
                setattr(self, name, mine + theirs)

    def imbalances(self) -> list[str]:
        """The equations that do not hold; empty when the ledger balances."""
        ignored, rejected = sum(self.ignored.values()), sum(self.rejected.values())
        suppressed = sum(self.suppressed.values())
        equations = (
            ("received = captured + uncaptured", self.received, self.captured + self.uncaptured),
            (
                "captured = parsed + ignored + rejected + behind",
                self.captured,
                self.parsed + ignored + rejected + self.behind,
            ),
            ("produced = events - suppressed + rejected", self.produced, self.events - suppressed + rejected),
            ("produced = acked + failed + in flight", self.produced, self.acked + self.failed + self.in_flight),
        )
        return [f"{name}: {left:,} is not {right:,}" for name, left, right in equations if left != right]

    def check(self) -> None:
        """Raise LedgerError where the books do not balance."""
        wrong = self.imbalances()
        if wrong or self.in_flight < 0:
            raise LedgerError("the ledger does not balance: " + ("; ".join(wrong) or "more acks than records"))

    def report(self) -> dict[str, Any]:
        """`frames`, `events`, `suppressed` and `records` of the run report."""
        return {
            "frames": {
                "received": self.received,
                "captured": self.captured,
                "uncaptured": self.uncaptured,
                "parsed": self.parsed,
                "ignored": dict(sorted(self.ignored.items())),
                "rejected": dict(sorted(self.rejected.items())),
                "behind": self.behind,
                "unread": self.unread,
                "unwritten": self.unwritten,
            },
            "events": {
                "trade": self.trades,
                "orderbook": self.orderbooks,
                "ticker": self.tickers,
                "gap": self.gaps,
            },
            "suppressed": dict(sorted(self.suppressed.items())),
            "records": {
                "produced": self.produced,
                "acked": self.acked,
                "failed": self.failed,
                "in_flight": self.in_flight,
            },
        }


class LatencyHistogram:
    """Counts latencies in ns: 4 us steps up to 134 ms, 1.6 % above; the maximum is exact. Memory is fixed."""

    __slots__ = ("_coarse", "_fine", "count", "max_ns", "negative")

    def __init__(self) -> None:
        self._fine = [0] * _FINE_BUCKETS
        self._coarse: dict[int, int] = {}
        self.count = 0
        self.max_ns = 0
        self.negative = 0
        """Latencies below zero (a clock that disagrees); counted as 0."""

    def record_many(self, latencies_ns: list[int]) -> None:
        """Add a batch of latencies."""
        if not latencies_ns:
            return
        fine = self._fine
        for value in latencies_ns:
            if 0 <= value < _FINE_MAX:
                fine[value >> _FINE_SHIFT] += 1
            else:
                self._record_coarse(value)
        self.count += len(latencies_ns)
        self.max_ns = max(self.max_ns, *latencies_ns)

    def _record_coarse(self, value: int) -> None:
        if value < 0:
            self.negative += 1
            self._fine[0] += 1
            return
        shift = value.bit_length() - _COARSE_BITS - 1
        bucket = (shift << (_COARSE_BITS + 1)) | (value >> shift)
        self._coarse[bucket] = self._coarse.get(bucket, 0) + 1

    def buckets(self) -> list[tuple[int, int]]:
        """(upper edge in ns, count) of every bucket in use, ascending."""
        fine = [((i + 1) << _FINE_SHIFT, n) for i, n in enumerate(self._fine) if n]
        mask = (1 << (_COARSE_BITS + 1)) - 1
        coarse = sorted((((b & mask) + 1) << (b >> (_COARSE_BITS + 1)), n) for b, n in self._coarse.items())
        return fine + coarse

    def quantile_ns(self, quantile: float) -> int | None:
        """The upper edge of the bucket that holds the quantile, at most the maximum; None when empty."""
        if not self.count:
            return None
        rank = max(1, -(-int(quantile * self.count * 1_000_000) // 1_000_000))
        seen = 0
        for edge, number in self.buckets():
            seen += number
            if seen >= rank:
                return min(edge, self.max_ns)
        return self.max_ns

    def report_ms(self) -> dict[str, float | int | None]:
        """count, p50, p90, p99, p999, max in ms."""

        def at(quantile: float) -> float | None:
            value = self.quantile_ns(quantile)
            return None if value is None else round(value / NS_PER_MS, 4)

        return {
            "count": self.count,
            "p50": at(0.50),
            "p90": at(0.90),
            "p99": at(0.99),
            "p999": at(0.999),
            "max": round(self.max_ns / NS_PER_MS, 4) if self.count else None,
        }


class GcReport(msgspec.Struct, frozen=True):
    """`share` of the run's time spent in collections (0.01 = 1 %), how many, and the longest pause."""

    share: float | None
    collections: int
    pause_max_ms: float


class GcMeter:
    """Times every garbage collection between `start` and `stop`."""

    __slots__ = ("_began_ns", "_clock", "_end_ns", "_start_ns", "collections", "pause_max_ns", "paused_ns")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ns = 0
        self._start_ns = 0
        self._end_ns: int | None = None
        self.collections = 0
        self.paused_ns = 0
        self.pause_max_ns = 0

    def start(self) -> None:
        self._start_ns = self._clock.monotonic_ns()
        gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        self._end_ns = self._clock.monotonic_ns()
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_ns = self._clock.monotonic_ns()
            return
        pause = self._clock.monotonic_ns() - self._began_ns
        self.collections += 1
        self.paused_ns += pause
        self.pause_max_ns = max(self.pause_max_ns, pause)

    def report(self) -> GcReport:
        elapsed = (self._clock.monotonic_ns() if self._end_ns is None else self._end_ns) - self._start_ns
        return GcReport(
            share=round(self.paused_ns / elapsed, 6) if elapsed > 0 else None,
            collections=self.collections,
            pause_max_ms=round(self.pause_max_ns / NS_PER_MS, 4),
        )


def freeze_heap() -> None:
    """Collect once, then move all that exists out of the collector's sight.

    The long-lived objects (modules, routes, decoders) are never scanned again, and the hot path's own objects are
    untracked (`gc=False`), so what remains for the collector is small. The threshold of the young generation is raised
    because asyncio's short-lived cycles come one a batch, not one a frame.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


class LoopMeter:
    """Event-loop lag: how late a timer of `period_s` fires."""

    __slots__ = ("_clock", "_due_ns", "_handle", "_loop", "_period_s", "lag")

    def __init__(self, clock: Clock, period_s: float = 0.02) -> None:
        self._clock = clock
        self._period_s = period_s
        self._due_ns = 0
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lag = LatencyHistogram()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arm()

    def _arm(self) -> None:
        assert self._loop is not None
        self._due_ns = self._clock.monotonic_ns() + int(self._period_s * NS_PER_S)
        self._handle = self._loop.call_later(self._period_s, self._fire)

    def _fire(self) -> None:
        self.lag.record_many([max(0, self._clock.monotonic_ns() - self._due_ns)])
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def report_ms(self) -> dict[str, float | int | None]:
        """p99 and max in ms; None when nothing was measured."""
        whole = self.lag.report_ms()
        return {"p99": whole["p99"], "max": whole["max"]}
