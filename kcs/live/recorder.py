"""Capture and pipeline in lock step: every record goes first to the writer, then to the pipeline, under one number.

Contract: `frame`, `control` and `sent` are the only ways a record comes into being in a live run, so the numbers of
both sides agree (checked on each tick). A frame costs one append and one feed; nothing is awaited. The pipeline is
always at the present: what it knows is what a rotated file begins with, and what the sessions are told.

DIRECT: what the pipeline makes goes to the sink. CATCHING UP: the sink is full, the loop is late, or the sink is not
ready yet (`hold`, `release`): the pipeline is muted, and a fork of it follows the capture (kcs/live/follower.py),
driven by `follow`, until it meets the present. Frames that wait for that are `behind` in the ledger. When the capture
fails nothing more is fed: what is not captured is not produced. Owned by one loop, not thread-safe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kcs.capture.writer import CaptureWriter, SealedCapture
from kcs.clock import NS_PER_MS, NS_PER_S, Clock
from kcs.errors import CaptureError, CaptureWriteError, KafkaError, LedgerError
from kcs.live.follower import Follower, State
from kcs.live.receipt import Claim, DeliveryInfo, base_name, begin_delivery, write_delivery, write_receipt
from kcs.live.scrub import scrub
from kcs.model import ClockFields, Fields, Kind, OpenFields
from kcs.pipeline import Pipeline
from kcs.sink import Sink
from kcs.stats import Ledger

_OPEN = int(Kind.OPEN)
_SENT = int(Kind.SENT)
_CLOCK = int(Kind.CLOCK)
_STATE = int(Kind.STATE)

LATE_NS: Final = 100 * NS_PER_MS
"""A loop that is later than this has more to do than it can: capturing goes first."""
_DISK_S: Final = 0.005
_FAULT_S: Final = 1.0
_TOLD_AFTER_NS: Final = NS_PER_S
"""A run that is behind for less does not say so."""


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """One capture file of a run. `digest` is None when not every frame of it was fed; `receipt` when there is none."""

    path: Path
    capture_id: bytes
    digest: str | None
    receipt: Path | None
    records: int
    bytes: int
    first_ns: int | None
    last_ns: int | None
    sealed: bool = True
    """False when the disk refused: `path` is the `.partial`, which stays readable; the numbers are not known."""


@dataclass(slots=True)
class _File:
    """A capture file of this run: where it will be once sealed, and what a receipt needs."""

    path: Path
    capture_id: bytes
    digest: str | None = None
    ended: int | None = None
    """How many records it holds; None while it is written."""
    produced: int = 0
    """Records that it became."""
    receipt: Path | None = None
    claim: Claim | None = None
    """From the delivery file to the receipt: nobody else delivers this file meanwhile."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far delivery is behind the capture: frames, and the age of the last record that was delivered."""

    frames: int
    seconds: float


class Recorder:
    """See the module docstring. `log(level, text)` is told of falling behind, catching up and a failed capture.

    `fork` makes a second pipeline out of the first, with an adapter of its own; `fresh` one that knows nothing yet.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        pipeline: Pipeline,
        sink: Sink,
        clock: Clock,
        log: Callable[[str, str], None],
        *,
        fork: Callable[[Pipeline], Pipeline],
        fresh: Callable[[Sink], Pipeline],
        delivery: DeliveryInfo | None = None,
        anchor_every_ns: int,
        fsync: bool = False,
    ) -> None:
        self._writer = writer
        self._append = writer.append
        self._pipeline = pipeline
        self._feed = pipeline.feed
        self._ledger: Ledger = pipeline.ledger
        self._sink = sink
        self._clock = clock
        self._log = log
        self._fork = fork
        self._fresh = fresh
        self._delivery = delivery
        self._fsync = fsync
        self._anchor_every_ns = anchor_every_ns
        self._anchor_due_ns = 0
        self._files: list[_File] = []
        self._unreceipted: list[_File] = []
        """Finished files whose records are not all acknowledged yet: all that a tick looks at."""
        self._direct = True
        self._follower: Follower | None = None
        self._late = False
        self._unreadable = False
        self._behind_since_ns = 0
        self._told = False
        self._why = ""
        self.catch_ups = 0
        """How often the run met the present again."""
        self.failure: CaptureWriteError | None = None
        """Why the capture failed; nothing is recorded from then on."""

    # DIRECT and CATCHING UP.

    @property
    def behind(self) -> bool:
        """CATCHING UP: what arrives is captured, and delivered later."""
        return not self._direct

    @property
    def followable(self) -> bool:
        """`follow` has something to do: the run is behind, not held, and its capture can be read."""
        return self._follower is not None and not self._unreadable

    def lag(self, now_ns: int) -> Lag | None:
        """How far behind the run is; None while it is DIRECT."""
        if self._direct:
            return None
        at_ns = self._follower.at_ns if self._follower is not None else None
        since_ns = self._behind_since_ns if at_ns is None else at_ns
        return Lag(self.ledger().behind, max(0, now_ns - since_ns) / NS_PER_S)

    def ledger(self) -> Ledger:
        """The counts of the run: what was received and captured, and what of it was fed to the sink."""
        if self._direct:
            return self._ledger
        ledger = self._follower.pipeline.ledger.copy() if self._follower is not None else Ledger()
        present = self._ledger
        ledger.received, ledger.captured, ledger.uncaptured = present.received, present.captured, present.uncaptured
        fed = ledger.parsed + sum(ledger.ignored.values()) + sum(ledger.rejected.values())
        ledger.behind = ledger.captured - fed
        return ledger

    def hold(self, why: str) -> None:
        """Before `begin`: the sink is not ready. Capture from the first record on, deliver after `release`."""
        self._leave(why, self._clock.now_ns())
        self._pipeline.mute()

    async def release(self, delivery: DeliveryInfo | None) -> None:
        """The sink is ready: follow the run from its first record. `delivery` replaces what was said of it.

        Each delivery file is synced, and a run that waited for days has many: a turn of the loop for each.
        """
        self._delivery = delivery
        for file in self._files:  # those of a rotation meanwhile come last, and are as they should be
            self._write_delivery(file)
            await asyncio.sleep(0)
            waits = file.digest is not None and file.receipt is None
            if waits and delivery is not None and file not in self._unreceipted:
                self._unreceipted.append(file)
        if self.failure is not None:
            return  # a delivery file does not say where: nothing may go there, the next start delivers
        pipeline = self._fresh(self._sink)
        pipeline.start(self._files[0].capture_id)
        self._follower = Follower(pipeline, self._sink, self._writer, self._files, 0)

    def late(self, lag_ns: int) -> None:
        """How late the loop is; told on every tick."""
        self._late = lag_ns > LATE_NS
        if self._late and self._direct and self.failure is None and self._files:
            self._fall_behind(f"the event loop is {lag_ns / NS_PER_MS:.0f} ms late")
        if self._follower is not None:
            self._follower.late = self._late

    async def follow(self) -> None:
        """Feed the sink from the capture until the run is at the present. May be cancelled: what was fed stays fed.

        It also ends where a failed capture ends, or one that the disk does not give back. Raises LedgerError.
        """
        while (follower := self._follower) is not None:
            try:
                state = follower.step(from_memory=self.failure is None)
            except CaptureError as error:
                self._unreadable = True
                self._log("error", f"delivery stops, capturing goes on: {error}")
                return
            if state is State.FULL or (state is State.MET and self._sink.full):
                await self._room()
            elif state is State.DISK:
                if self.failure is not None and self._files[-1].ended is not None:
                    return
                await asyncio.sleep(_DISK_S)
            elif state is State.MET:
                if self.failure is not None:
                    return  # what was fed to the first pipeline and never reached the disk is not to be met
                self._meet(follower)
            else:
                await asyncio.sleep(0)

    async def _room(self) -> None:
        try:
            await self._sink.room()
        except KafkaError as error:  # a partition that cannot go on before somebody acts: capturing can
            self._tell(f"Kafka takes nothing: {error}")
            await asyncio.sleep(_FAULT_S)

    def _leave(self, why: str, now_ns: int) -> None:
        self._direct = False
        self._behind_since_ns = now_ns
        self._why = why
        self._told = False

    def _fall_behind(self, why: str) -> None:
        """From the next record to be fed on: mute the present, follow with a fork."""
        self._leave(why, self._clock.now_ns())
        pipeline = self._fork(self._pipeline)
        self._pipeline.mute()
        index, offset = len(self._files) - 1, self._writer.written_bytes()
        self._follower = Follower(pipeline, self._sink, self._writer, self._files, index, offset)

    def _meet(self, follower: Follower) -> None:
        """Everything was fed: one synchronous step back to DIRECT."""
        difference = self._pipeline.difference(follower.pipeline)
        if difference is not None:
            raise LedgerError(f"live and its own capture do not agree: {difference}", where=str(self._writer.path))
        follower.close()
        self._follower = None
        self._direct = True
        self._pipeline.unmute(self._sink)
        self.catch_ups += 1
        if self._told:
            took_s = (self._clock.now_ns() - self._behind_since_ns) / NS_PER_S
            self._log("info", f"caught up after {took_s:.1f} s: {follower.frames:,} frames from the capture")

    def _tell(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._log("warning", f"{text}; capturing goes on, delivery follows from the capture")

    # What is recorded.

    def begin(self, now_ns: int) -> None:
        """The first record of a file: tell the sink, write the delivery file, anchor the clock."""
        writer = self._writer
        sealed = writer.path.with_name(base_name(writer.path) + ".zst")
        self._files.append(_File(sealed, writer.capture_id))
        self._pipeline.start(writer.capture_id)
        self._write_delivery(self._files[-1])
        self.anchor(now_ns)

    def frame(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        """One data frame: capture it, then produce from it. HOT."""
        ledger = self._ledger
        ledger.received += 1
        if self.failure is not None:
            ledger.uncaptured += 1
            return
        if self._direct and self._sink.full:
            # Before the frame is captured: it may fill its chunk, and then the disk has it before anybody looks.
            self._fall_behind("Kafka does not keep up")
        self._append(kind, stream, recv_ns, payload)
        ledger.captured += 1
        self._feed(stream, recv_ns, payload)

    def control(self, kind: int, stream: int, recv_ns: int, fields: Fields, payload: bytes = b"") -> None:
        """One record of any other kind that has fields."""
        if self.failure is not None:
            return
        self._writer.append_fields(kind, stream, recv_ns, fields, payload)
        self._pipeline.control(kind, stream, recv_ns, fields, payload)

    def sent(self, stream: int, recv_ns: int, text: str) -> None:
        """A text message that we sent; credentials in it are not recorded."""
        if self.failure is not None:
            return
        payload = scrub(text).encode()
        self._writer.append(_SENT, stream, recv_ns, payload)
        self._pipeline.control(_SENT, stream, recv_ns, None, payload)

    def anchor(self, now_ns: int) -> None:
        """A clock record: how the capture's time relates to the wall clock now."""
        self._anchor_due_ns = now_ns + self._anchor_every_ns
        self.control(_CLOCK, 0, now_ns, ClockFields(self._clock.wall_ns(), self._clock.monotonic_ns()))

    def tick(self, now_ns: int) -> None:
        """Every 50 ms: hand the open chunk on, anchor the clock, write the receipts that have become true."""
        if self.failure is None and self._writer.number != self._pipeline.number:
            told = f"capture is at record {self._writer.number}, the pipeline at {self._pipeline.number}"
            raise LedgerError(told, where=str(self._writer.path))
        if now_ns >= self._anchor_due_ns:
            self.anchor(now_ns)
        self._writer.tick(now_ns)
        self.write_receipts()
        if not self._direct and not self._told and now_ns - self._behind_since_ns >= _TOLD_AFTER_NS:
            self._tell(self._why)

    @property
    def congested(self) -> bool:
        """The disk is far behind: whoever can make the venue wait should."""
        return self.failure is None and self._writer.congested

    def rotation_due(self, now_ns: int) -> bool:
        """Is it time for the next file?"""
        return self.failure is None and self._writer.rotation_due(now_ns)

    def rotate(self, now_ns: int, continued: Sequence[tuple[int, OpenFields]]) -> None:
        """Finish this file and begin the next, which stands alone: open streams and parser state come first."""
        self._finish_file()
        self._writer.rotate(now_ns)
        if self._writer.failed is not None:
            self.fail(self._writer.failed)
            return
        self.begin(now_ns)
        for stream, fields in continued:
            self.control(_OPEN, stream, now_ns, fields)
        for stream, state, payload in self._pipeline.save():
            self.control(_STATE, stream, now_ns, state, payload)

    def finish(self) -> None:
        """No record follows. `close_writer` and `results` come next."""
        self._finish_file()

    def close_writer(self, now_ns: int) -> list[SealedCapture]:
        """Seal. Blocks for the last chunk and the index: call it in a thread. A failure is in `failure` afterwards."""
        sealed = self._writer.close(now_ns)
        if self._writer.failed is not None:
            self.fail(self._writer.failed)
        held = {capture.capture_id: capture.records for capture in sealed}
        for file in self._files:
            if held.get(file.capture_id) != file.ended:
                file.digest = None  # the disk failed after it was finished: it holds less than was produced from it
        return sealed

    @property
    def records_lost(self) -> int:
        """Records of any kind that were taken and are not on disk; final after `close_writer`, 0 unless it failed."""
        return self._writer.uncaptured

    def results(self, sealed: Sequence[SealedCapture]) -> list[CaptureResult]:
        """What there is of this run, file by file."""
        by_id = {capture.capture_id: capture for capture in sealed}
        results = []
        for file in self._files:
            capture = by_id.get(file.capture_id)
            if capture is None:
                partial = file.path.with_name(file.path.name + ".partial")
                results.append(CaptureResult(partial, file.capture_id, None, None, 0, 0, None, None, sealed=False))
                continue
            results.append(
                CaptureResult(
                    capture.path,
                    capture.capture_id,
                    file.digest,
                    file.receipt,
                    capture.records,
                    capture.bytes,
                    capture.first_ns,
                    capture.last_ns,
                )
            )
        return results

    def write_receipts(self) -> None:
        """A finished file that is whole on disk and of which every record is acknowledged gets its receipt."""
        if self._delivery is None:
            return
        if self._unreceipted:
            self._unreceipted = [file for file in self._unreceipted if not self._receipted(file, self._delivery)]

    def _receipted(self, file: _File, delivery: DeliveryInfo) -> bool:
        """Write this file's receipt when it has become true. True when nothing more is to be done for it.

        Records that the broker refused for good are in its counts: nothing is left to deliver of them either.
        """
        if file.digest is None:
            return True
        state = None if delivery.cluster_id is None else delivery.state(file.capture_id)
        if state is None or not state.produced == file.produced == state.acked + state.failed:
            return False
        if not self._writer.is_sealed(file.capture_id):
            return False  # its end may never reach the disk: then the digest is not that of the file
        try:
            file.receipt = write_receipt(file.path, file.capture_id, file.digest, delivery, state, fsync=self._fsync)
        except CaptureWriteError as error:
            # Everything is delivered; without a receipt recovery looks again and finds nothing to do.
            self._log("warning", f"no receipt: {error}")
            file.digest = None
        self._disclaim(file)
        return True

    def fail(self, error: CaptureWriteError) -> None:
        """The capture cannot go on: the run stops, loudly."""
        if self.failure is None:
            self.failure = error
            self._log("error", f"the capture failed, stopping: {error}")

    def close(self) -> None:
        """Let go of what `follow` reads and of the claims; after the last of it."""
        if self._follower is not None:
            self._follower.close()
        for file in self._files:
            self._disclaim(file)

    def _write_delivery(self, file: _File) -> None:
        """Say where the file's records go, and claim their delivery. The first of them comes later."""
        if self._delivery is None or file.receipt is not None:
            return
        try:
            # Synced in any case: a power cut that tears it would leave a capture that nobody delivers.
            if file.claim is None:
                file.claim = begin_delivery(file.path, file.capture_id, self._delivery, fsync=True)
            else:
                write_delivery(file.path, file.capture_id, self._delivery, fsync=True, claim=file.claim)
        except CaptureWriteError as error:
            self.fail(error)

    def _disclaim(self, file: _File) -> None:
        if file.claim is not None:
            file.claim.release()
            file.claim = None

    def _finish_file(self) -> None:
        file = self._files[-1]
        file.ended = self._writer.number
        file.produced = self._pipeline.records
        if self.failure is None:
            file.digest = self._pipeline.digest()
            if self._delivery is not None:
                self._unreceipted.append(file)
