"""A live run of one exchange: connections, capture, pipeline and sink, from the first record to the seal.

`Collector(...).run()` opens the capture, connects every stream, and goes on until `request_stop` (a signal, or the
duration), a capture that cannot be written, or a defect. Then: close the websockets cleanly, seal in a thread while
delivery catches up and the sink drains, both for at most `drain_s`, write receipts, settle the ledger. A second
`request_stop` skips what is still waited for. What happened is in the `CollectorResult`; the exit code is the caller's
to decide. The sink is the caller's to open before and to close after.

With `prepare` the run captures from the first frame on while `prepare` makes the sink ready (opens it when the broker
comes back, delivers what earlier runs left); then delivery follows from the first frame.

Raises CaptureBusyError and CaptureWriteError when the capture cannot be begun, ConfigError for a URL or proxy that
cannot be used, and, after sealing, whatever defect ended the run. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import kcs
from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, SealedCapture, WriterSettings
from kcs.clock import NS_PER_S, Clock
from kcs.errors import CaptureWriteError, KcsError, LedgerError
from kcs.exchanges.base import Subscription, Venue
from kcs.live.backoff import ConnectPace
from kcs.live.lane import Lanes, StreamResult
from kcs.live.previous import last_record_ns
from kcs.live.receipt import DeliveryInfo
from kcs.live.recorder import CaptureResult, Lag, Recorder
from kcs.live.scrub import scrub_url
from kcs.live.session import Session, SessionSettings
from kcs.live.slot import Dial, Slot
from kcs.live.transport import Dialer, TransportSettings
from kcs.pipeline import Pipeline
from kcs.sink import NullSink, Sink
from kcs.stats import Ledger

Log = Callable[[str, str], None]
"""log(level, text); level is `info`, `warning` or `error`."""

Prepare = Callable[[], Awaitable[DeliveryInfo | None]]
"""Makes the sink ready while the run captures already; what is known of the delivery then (None: as given before)."""


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """What a run needs besides venue, sink and clock. `connections`: how many for each subscription (lane.py)."""

    directory: Path
    subscriptions: tuple[Subscription, ...]
    connections: int = 1
    url: str | None = None
    writer: WriterSettings = field(default_factory=WriterSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    transport: TransportSettings = field(default_factory=TransportSettings)
    options: Mapping[str, Any] = field(default_factory=dict)
    """More options for the capture's header, beside channels, markets, format, depth and connections."""
    duration_s: float | None = None
    drain_s: float = 10.0
    tick_s: float = 0.05
    anchor_every_s: float = 60.0


@dataclass(frozen=True, slots=True)
class CollectorResult:
    """What a run did. `stopped_by`: `duration`, `signal`, `request` or `capture`."""

    ledger: Ledger
    captures: tuple[CaptureResult, ...]
    stopped_by: str
    signal: int | None
    failure: CaptureWriteError | None
    """Why the capture failed, when it did: exit 1."""
    records_lost: int
    """Records of any kind that were taken and never reached the disk; 0 unless the capture failed."""
    seconds: float
    behind: bool
    """Delivery did not come to the capture's end."""
    catch_ups: int
    drained: bool
    """False when delivery is behind, records were still in flight after `drain_s`, or the sink broke down."""
    gaps: int
    gaps_covered: int
    """Those among them in which another connection of the subscription delivered all the while."""
    reconnects: int
    """Connections made after one was lost; planned renewals are none."""
    streams: tuple[StreamResult, ...]
    connect_failures: Mapping[str, int]
    silent_markets: tuple[str, ...]
    rtt_ns: int | None

    @property
    def digest(self) -> str | None:
        """The run's digest: of its one whole capture; None when rotated, behind or failed."""
        return self.captures[0].digest if len(self.captures) == 1 and not self.behind else None


class Collector:
    """See the module docstring. `dial` replaces the network in tests."""

    def __init__(
        self,
        venue: Venue,
        settings: CollectorSettings,
        *,
        sink: Sink,
        clock: Clock,
        rng: Random,
        log: Log,
        delivery: DeliveryInfo | None = None,
        prepare: Prepare | None = None,
        dial: Dial | None = None,
    ) -> None:
        self.venue = venue
        self.settings = settings
        self._sink = sink
        self._clock = clock
        self._rng = rng
        self._log = log
        self._delivery = delivery
        self._url = settings.url or venue.url
        self._shown_url = scrub_url(self._url)
        """What captures and logs are told: a token in the URL is nobody's business."""
        limited = replace(settings.transport, frame_bytes_max=venue.limits.frame_bytes_max)
        self._dial: Dial = dial or Dialer(self._url, clock, limited).dial
        self._prepare = prepare
        self._pipeline = Pipeline(venue.name, venue.adapter(), NullSink() if prepare else sink, Ledger())
        self._recorder: Recorder | None = None
        self._pace = ConnectPace(venue.limits.connects_per_s)
        self._down_since_ns: int | None = None
        self._lanes = Lanes(self._new_slot, venue.limits, rng, log)
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._all_finished = asyncio.Event()
        self._stopped_by = "request"
        self._signal: int | None = None
        self._defect: BaseException | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._final = Ledger()
        self._drained = False
        self._told_held = False

    # What the caller may do while it runs.

    def request_stop(self, signal_number: int | None = None) -> None:
        """End the run; a second call no longer waits for handshakes and acks. Call on the loop's thread."""
        if self._stop.is_set():
            self._force.set()
            return
        self._signal = signal_number
        self._end("signal" if signal_number is not None else "request")

    @property
    def ledger(self) -> Ledger:
        """The counts so far."""
        return Ledger() if self._recorder is None else self._recorder.ledger()

    @property
    def lag(self) -> Lag | None:
        """How far delivery is behind the capture; None while it is not."""
        return None if self._recorder is None else self._recorder.lag(self._clock.now_ns())

    @property
    def sessions(self) -> tuple[Session, ...]:
        """For progress displays and tests."""
        return self._lanes.sessions

    def subscribe(self, index: int, subscription: Subscription) -> None:
        """Replace a subscription, by its place in the settings: the full new list goes out as the limits allow."""
        self._lanes.subscribe(index, subscription, self._clock.now_ns())

    def renew(self) -> None:
        """Replace every connection, the new ones first. Call on the loop's thread."""
        self._lanes.renew(self._clock.now_ns())

    async def run(self) -> CollectorResult:
        """The whole run."""
        started_ns = self._clock.now_ns()
        recorder = self._begin(started_ns)
        ticking = asyncio.create_task(self._tick_forever(recorder))
        ticking.add_done_callback(self._task_ended)
        if self._prepare is not None:
            self._delivering = asyncio.create_task(self._make_ready(recorder, self._prepare))
            self._delivering.add_done_callback(self._task_ended)
        timer = self._arm_duration()
        try:
            self._lanes.start(self._clock.now_ns())
            await self._stop.wait()
        finally:
            if timer is not None:
                timer.cancel()
            sealed = await asyncio.shield(self._wind_down(recorder, ticking))
        if self._defect is not None:
            raise self._defect
        return self._result(recorder, sealed, started_ns)

    def tick(self, recorder: Recorder, now_ns: int) -> None:
        """One beat: timers of the sessions, rotation, then the recorder's own, and delivery where it is behind."""
        self._lanes.tick(now_ns)
        if recorder.rotation_due(now_ns):
            recorder.rotate(now_ns, self._lanes.continued())
        recorder.tick(now_ns)
        self._hold(recorder)
        if recorder.failure is not None:
            self._end("capture")
        self._follow(recorder)

    # Beginning.

    def _begin(self, now_ns: int) -> Recorder:
        settings, venue = self.settings, self.venue
        self._down_since_ns = last_record_ns(settings.directory, venue.name)
        loop = asyncio.get_running_loop()

        def on_error(error: CaptureWriteError) -> None:
            # From the writer's thread. The loop may be gone when the last flush of a stopped run fails; `close` tells.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._capture_failed, error)

        writer = CaptureWriter(
            settings.directory,
            self._header(now_ns),
            settings=settings.writer,
            new_id=lambda: self._rng.randbytes(8),
            on_error=on_error,
        )
        recorder = self._recorder = Recorder(
            writer,
            self._pipeline,
            self._sink,
            self._clock,
            self._log,
            fork=lambda pipeline: pipeline.fork(venue.adapter()),
            fresh=lambda sink: Pipeline(venue.name, venue.adapter(), sink, Ledger()),
            delivery=self._delivery,
            anchor_every_ns=int(settings.anchor_every_s * NS_PER_S),
            fsync=settings.writer.fsync,
        )
        if self._prepare is not None:
            recorder.hold("the sink is not ready yet")
        recorder.begin(now_ns)
        self._lanes.begin(settings.subscriptions, settings.connections)
        return recorder

    def _new_slot(self, stream: int, subscription: Subscription, first: bool) -> Slot:
        assert self._recorder is not None, "slots are made once there is a recorder"
        session = Session(
            self.venue,
            subscription,
            self._rng,
            stream=stream,
            url=self._shown_url,
            settings=self.settings.session,
            pace=self._pace,
            down_since_ns=self._down_since_ns if first else None,
        )
        return Slot(
            session,
            self._recorder,
            self._pipeline,
            self._dial,
            self._clock,
            self._log,
            self._crashed,
            self._slot_finished,
        )

    def _header(self, now_ns: int) -> CaptureHeader:
        subscriptions = self.settings.subscriptions
        first = subscriptions[0]
        capture_id = self._rng.randbytes(8)
        return CaptureHeader(
            capture_id=capture_id,
            run_id=capture_id,
            exchange=self.venue.name,
            url=self._shown_url,
            created_ns=now_ns,
            kcs_version=kcs.__version__,
            options={
                "channels": list(dict.fromkeys(name for s in subscriptions for name in s.channels)),
                "markets": list(dict.fromkeys(name for s in subscriptions for name in s.markets)),
                "format": first.format,
                "depth": first.depth,
                **({"connections": self.settings.connections} if self.settings.connections > 1 else {}),
                **self.settings.options,
            },
        )

    def _arm_duration(self) -> asyncio.TimerHandle | None:
        duration_s = self.settings.duration_s
        if duration_s is None:
            return None
        return asyncio.get_running_loop().call_later(duration_s, self._end, "duration")

    # While it runs.

    async def _tick_forever(self, recorder: Recorder) -> None:
        every_ns = int(self.settings.tick_s * NS_PER_S)
        due_ns = self._clock.monotonic_ns()
        while True:
            recorder.late(self._clock.monotonic_ns() - due_ns)
            self.tick(recorder, self._clock.now_ns())
            due_ns = self._clock.monotonic_ns() + every_ns
            await asyncio.sleep(self.settings.tick_s)

    async def _make_ready(self, recorder: Recorder, prepare: Prepare) -> None:
        delivery = await prepare()
        await recorder.release(delivery or self._delivery)
        await recorder.follow()

    def _follow(self, recorder: Recorder) -> None:
        """Deliver from the capture while the run is behind, unless a defect has ended it."""
        if self._defect is None and recorder.followable and (self._delivering is None or self._delivering.done()):
            self._delivering = asyncio.create_task(recorder.follow())
            self._delivering.add_done_callback(self._task_ended)

    def _hold(self, recorder: Recorder) -> None:
        """While the disk is far behind, the sockets are not read and TCP makes the venue wait; nothing is given up."""
        held = recorder.congested
        self._lanes.hold(held)
        if held and not self._told_held:
            self._told_held = True
            self._log("warning", "the capture is slower than the venue: reading waits for the disk")

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._crashed(error)

    def _capture_failed(self, error: CaptureWriteError) -> None:
        assert self._recorder is not None, "no writer fails before there is one"
        self._recorder.fail(error)
        self._end("capture")

    def _crashed(self, error: BaseException) -> None:
        self._defect = self._defect or error
        self._log("error", f"a defect in kcs ends the run: {type(error).__name__}: {error}")
        self._end("defect")

    def _slot_finished(self) -> None:
        if self._lanes.finished:
            self._all_finished.set()

    def _end(self, stopped_by: str) -> None:
        if not self._stop.is_set():
            self._stopped_by = stopped_by
            self._stop.set()

    # The end.

    async def _wind_down(self, recorder: Recorder, ticking: asyncio.Task[None]) -> list[SealedCapture]:
        """Close, seal, drain. Never raises for a broken capture or sink: both are in the result."""
        await self._close_connections()
        ticking.cancel()
        now_ns = self._clock.now_ns()
        if recorder.failure is None:
            try:
                recorder.tick(now_ns)
            except LedgerError as error:  # a defect: what is captured is sealed all the same, then it is raised
                self._crashed(error)
        recorder.finish()
        sealed, self._drained = await asyncio.gather(self._seal(recorder, now_ns), self._deliver_rest(recorder))
        self._final = recorder.ledger()
        self._final.settle(self._sink.acked, self._sink.failed)
        self._final.unwritten = recorder.records_lost
        if self._defect is None:  # a frame may have been captured and not fed: no file of this run is vouched for
            recorder.write_receipts()
        recorder.close()
        return sealed

    async def _close_connections(self) -> None:
        self._lanes.stop(self._clock.now_ns())
        # The transport cuts a peer that does not answer after `close_within_s`; this bound is for a peer's flood.
        await self._unless_forced(self._all_finished.wait(), self.settings.transport.close_within_s + 1.0)
        self._lanes.abort()
        await self._unless_forced(self._all_finished.wait(), 1.0, force=False)

    async def _seal(self, recorder: Recorder, now_ns: int) -> list[SealedCapture]:
        return await asyncio.to_thread(recorder.close_writer, now_ns)

    async def _deliver_rest(self, recorder: Recorder) -> bool:
        """Catch up and drain within `drain_s`. False when something is left to deliver."""
        work = asyncio.ensure_future(self._catch_up_and_drain(recorder))
        done = await self._unless_forced(work, self.settings.drain_s)
        if not done:
            await asyncio.wait([work])
            waited = "asked not to wait" if self._force.is_set() else f"waited {self.settings.drain_s:g} s"
            left = "delivery is still behind" if recorder.behind else "records are still in flight"
            self._log("warning", f"{left}: {waited}; what is missing is delivered by the next start")
            return False
        error = work.exception()
        if error is not None and error is self._defect:
            return False  # told already
        if isinstance(error, KcsError):
            self._log("error", f"the sink broke down: {error}")
        elif error is not None:
            self._crashed(error)
        return error is None and not recorder.behind

    async def _catch_up_and_drain(self, recorder: Recorder) -> None:
        self._follow(recorder)
        if self._delivering is not None:
            await self._delivering
        await self._sink.drain()

    async def _unless_forced(self, work: Any, within_s: float, *, force: bool = True) -> bool:
        """Run `work` until it is done, time is up, or (with `force`) a second stop comes. True when it is done."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self._force.wait())
        waiting = {task, forced} if force else {task}
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if task.done():
            return True
        task.cancel()
        return False

    def _result(self, recorder: Recorder, sealed: Sequence[SealedCapture], started_ns: int) -> CollectorResult:
        now_ns = self._clock.now_ns()
        sessions = self.sessions
        failures: dict[str, int] = {}
        for session in sessions:
            for slug, count in session.connect_failures.items():
                failures[slug] = failures.get(slug, 0) + count
        spoken = {market for session in sessions for market in session.markets}
        silent = dict.fromkeys(name for session in sessions for name in session.silent_markets(now_ns))
        return CollectorResult(
            ledger=self._final,
            captures=tuple(recorder.results(sealed)),
            stopped_by=self._stopped_by,
            signal=self._signal,
            failure=recorder.failure,
            records_lost=recorder.records_lost,
            seconds=(now_ns - started_ns) / NS_PER_S,
            behind=recorder.behind,
            catch_ups=recorder.catch_ups,
            drained=self._drained,
            gaps=sum(session.gaps for session in sessions),
            gaps_covered=sum(session.gaps_covered for session in sessions),
            reconnects=sum(session.reconnects for session in sessions),
            streams=self._lanes.results(),
            connect_failures=failures,
            silent_markets=tuple(name for name in silent if name not in spoken),
            rtt_ns=max((s.rtt_ns for s in sessions if s.rtt_ns is not None), default=None),
        )
