"""The replay engine: captures through the pipeline of live into any sink, at 1x, Nx or full speed.

Contract: every file gets a pipeline of its own (a rotated file begins with the state it needs), all share one sink and
one ledger. Records are fed in recorded order, files merged by receive time. Back-pressure is the sink's `room`, awaited
before a frame; a frame once fed is taken whole. Nothing is ever dropped to keep up with the clock: a slow consumer
makes the replay late, and the lateness is reported. Knows no Kafka and no live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from kcs.capture.reader import RawRecord
from kcs.clock import NS_PER_S, Clock
from kcs.exchanges import venue
from kcs.model import FRAME_KINDS
from kcs.pipeline import Pipeline
from kcs.replay.pacing import Pacer, Sleep
from kcs.replay.source import Source, Tape, merged
from kcs.sink import Sink
from kcs.stats import LatencyHistogram, Ledger

SLICE_FRAMES: Final = 256
"""Frames fed at full speed before the event loop gets its turn: well under a millisecond of work."""

STOP_GRACE_S: Final = 10.0
"""How long an interrupted replay waits for the sink."""


@dataclass(slots=True, frozen=True)
class Plan:
    """What to replay and how. `speed` None: as fast as the sink takes it. Times are Unix ns, `to_ns` exclusive."""

    sources: Sequence[Source]
    speed: Fraction | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    loops: int = 1


@dataclass(slots=True, frozen=True)
class Played:
    """One file that was replayed: `digest` None when it was not fed whole (range, loop, damage)."""

    path: Path
    capture_id: bytes
    digest: str | None
    damage: int
    lost: int


@dataclass(slots=True, frozen=True)
class ReplayResult:
    """What a replay did. `speed_reached`: recorded time per elapsed time, None under one frame.

    `seconds` is all of it; the time that `speed_reached` is about begins with the first record that is played: what
    `--from` reads before it only brings the state up to date.
    """

    played: Sequence[Played]
    seconds: float
    recorded_s: float
    speed_reached: float | None
    lateness: LatencyHistogram | None
    interrupted: bool


@dataclass(slots=True, frozen=True)
class Progress:
    """How far a replay is; `position_ns` is the receive time reached."""

    frames: int
    position_ns: int


class _Player:
    """One pass over the sources. Split into methods so that the innermost loop stays flat."""

    def __init__(
        self, plan: Plan, sink: Sink, ledger: Ledger, clock: Clock, pacer: Pacer | None, stop: asyncio.Event | None
    ) -> None:
        self.clock = clock
        self.plan = plan
        self.sink = sink
        self.ledger = ledger
        self.pacer = pacer
        self.stop = stop
        self.frames = 0
        self.first_ns: int | None = None
        self.last_ns = 0
        self.began_ns = 0
        """The monotonic clock at the first record played; valid once `first_ns` is set."""
        self.idle = False
        """True while it only waits for the moment of the next frame."""
        self.left = SLICE_FRAMES
        """Records to feed before the loop's turn; chunks of a quiet feed are smaller than that."""
        self.whole = plan.from_ns is None and plan.to_ns is None and plan.loops == 1
        self.lines: dict[bytes, _Line] = {}

    @property
    def stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    async def turn(self) -> None:
        """Let the loop do what else there is: acks, signals."""
        self.left = SLICE_FRAMES
        await asyncio.sleep(0)

    async def play(self, on_progress: Callable[[Progress], None] | None) -> None:
        current: _Line | None = None
        for tape, run in merged(self.plan.sources, self.plan.to_ns):
            line = self.lines.get(tape.source.capture_id)
            if line is None:
                line = self.lines[tape.source.capture_id] = _Line(tape, self)
            if line is not current:
                self.sink.start(tape.source.capture_id)
                current = line
            await line.feed(run)
            if on_progress is not None:
                on_progress(Progress(self.frames, self.last_ns))
            if self.stopped:
                break

    def played(self) -> list[Played]:
        """What became of each file; closes them."""
        return [line.played() for line in self.lines.values()]


class _Line:
    """One file on its way through its own pipeline."""

    __slots__ = ("muted", "pipeline", "player", "tape")

    def __init__(self, tape: Tape, player: _Player) -> None:
        self.tape = tape
        self.player = player
        self.muted = player.plan.from_ns is not None
        self.pipeline = Pipeline(
            tape.source.exchange,
            venue(tape.source.exchange).adapter(),
            player.sink,
            Ledger() if self.muted else player.ledger,
            digest=player.whole,
        )
        if self.muted:
            self.pipeline.mute()
        self.pipeline.start(tape.source.capture_id)

    async def feed(self, run: list[RawRecord]) -> None:
        plan = self.player.plan
        if self.muted:
            run = await self._feed_muted(run)
        if plan.to_ns is not None:
            run = [record for record in run if record[3] < plan.to_ns]
        if not run:
            return
        if self.player.first_ns is None:
            self.player.first_ns = run[0][3]
            self.player.began_ns = self.player.clock.monotonic_ns()
        if self.player.pacer is None:
            await self._feed_fast(run)
        else:
            await self._feed_paced(run, self.player.pacer)

    async def _feed_muted(self, run: list[RawRecord]) -> list[RawRecord]:
        """Feed what lies before `from_ns` for its effect on the state alone; return the rest."""
        from_ns = self.player.plan.from_ns
        assert from_ns is not None
        for i, record in enumerate(run):
            if record[3] >= from_ns:
                self.muted = False
                self.pipeline.unmute(self.player.sink)
                self.pipeline.ledger = self.player.ledger
                return run[i:]
            self.pipeline.record(record)
        await asyncio.sleep(0)
        return []

    async def _feed_fast(self, run: list[RawRecord]) -> None:
        player, start = self.player, 0
        while start < len(run):
            if player.left <= 0:
                await player.turn()
                if player.stopped:
                    return
            records = run[start : start + player.left]
            await self._slice(records)
            start += len(records)
            player.left -= len(records)

    async def _slice(self, records: list[RawRecord]) -> None:
        """Feed a slice, waiting wherever the sink is full. What was fed is counted, even when the wait is cut.

        `Pipeline.record` written out, with the counting done once a slice.
        """
        pipeline, player = self.pipeline, self.player
        feed, sink, frames = pipeline.feed, player.sink, 0
        record = None
        try:
            for record in records:
                if sink.full:
                    await sink.room()
                number, kind, stream, recv_ns, payload, fields = record
                pipeline.number = number
                if kind in FRAME_KINDS:
                    frames += 1
                    feed(stream, recv_ns, payload)
                else:
                    pipeline.control(kind, stream, recv_ns, fields, payload)
        finally:
            player.ledger.received += frames
            player.ledger.captured += frames
            player.frames += frames
            if record is not None:
                player.last_ns = max(player.last_ns, record[3])

    async def _feed_paced(self, run: list[RawRecord], pacer: Pacer) -> None:
        player, sink = self.player, self.player.sink
        for record in run:
            if player.left <= 0:
                await player.turn()  # late frames do not wait, so nobody else would get one
            if player.stopped:
                return
            if sink.full:
                await sink.room()  # before the moment is measured: this wait is lateness too
            player.idle = True
            await pacer.wait(record[3])
            player.idle = False
            self.pipeline.record(record)
            player.frames += record[1] in FRAME_KINDS
            player.last_ns = max(player.last_ns, record[3])
            player.left -= 1

    def played(self) -> Played:
        tape, player = self.tape, self.player
        tape.close()
        player.ledger.unread += tape.lost
        source = tape.source
        intact = source.sealed and not source.lost_before and not tape.lost and not tape.damaged
        whole = player.whole and intact and not player.stopped
        return Played(
            path=source.path,
            capture_id=source.capture_id,
            digest=self.pipeline.digest() if whole else None,
            damage=tape.damaged,
            lost=tape.lost,
        )


class _Grace:
    """Awaits work; from the moment `stop` is set, all of it together has `STOP_GRACE_S` left, then it is cancelled.

    `force` ends the grace at once. A frame is fed between two awaits, so cancelling never splits one.
    """

    __slots__ = ("_ends_s", "_force", "_loop", "_stop")

    def __init__(self, stop: asyncio.Event | None, force: asyncio.Event | None = None) -> None:
        self._stop = stop
        self._force = force or asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ends_s: float | None = None

    async def run(self, work: Coroutine[Any, Any, None], idle: Callable[[], bool] = lambda: False) -> None:
        """`idle` tells whether the work waits for nothing but the clock: then it is cancelled at once."""
        if self._stop is None:
            await work
            return
        task = asyncio.ensure_future(work)
        stopping, forced = asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._force.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not idle():
                if self._ends_s is None:
                    self._ends_s = self._loop.time() + STOP_GRACE_S
                left_s = max(0.0, self._ends_s - self._loop.time())
                await asyncio.wait({task, forced}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        finally:
            stopping.cancel()
            forced.cancel()
            task.cancel()


async def replay(
    plan: Plan,
    sink: Sink,
    ledger: Ledger,
    clock: Clock,
    *,
    sleep: Sleep = asyncio.sleep,
    stop: asyncio.Event | None = None,
    force: asyncio.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ReplayResult:
    """Push the captures through; returns when the sink has acknowledged everything or given up on it.

    Raises CaptureError for files that cannot be opened and KafkaError from the sink. Damage inside a file does not
    raise: it is counted in `ledger.unread`. Setting `stop` ends the replay after the frame at hand;
    what the sink has not acknowledged `STOP_GRACE_S` later, or when `force` is set, is reported as in flight.
    """
    lateness = LatencyHistogram() if plan.speed is not None else None
    started_ns = clock.monotonic_ns()
    grace = _Grace(stop, force)
    played: list[Played] = []
    recorded_ns = playing_ns = 0
    interrupted = False
    for _ in range(plan.loops):
        pacer = None if plan.speed is None else Pacer(plan.speed, clock, sleep, lateness)
        player = _Player(plan, sink, ledger, clock, pacer, stop)
        await grace.run(player.play(on_progress), lambda player=player: player.idle)  # type: ignore[misc]
        played = player.played()
        if player.first_ns is not None:
            recorded_ns += max(0, player.last_ns - player.first_ns)
            playing_ns += clock.monotonic_ns() - player.began_ns
        interrupted = player.stopped
        if interrupted:
            break
    await grace.run(sink.drain())
    seconds = (clock.monotonic_ns() - started_ns) / NS_PER_S
    ledger.settle(sink.acked, sink.failed)
    return ReplayResult(
        played=played,
        seconds=seconds,
        recorded_s=recorded_ns / NS_PER_S,
        speed_reached=recorded_ns / playing_ns if recorded_ns and playing_ns > 0 else None,
        lateness=lateness,
        interrupted=interrupted,
    )
