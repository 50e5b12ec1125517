"""A stream at work: carries out what its session asks, and hands what its connection delivers to the recorder.

Implements the transport's `Handler`. The frame path is here: session (counts, ends a gap), recorder (capture, feed),
session again (which market spoke). Everything runs on the loop's thread; nothing is awaited between socket and sink.

While a market is silent its next frame must be known *before* it is captured, since its gap is written first. Then, and
only then, frames are parsed twice: here by an adapter of the slot's own, which knows nothing and is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from kcs.clock import Clock
from kcs.errors import FrameIgnored, FrameRejected
from kcs.exchanges.base import Adapter, Subscription
from kcs.live.actions import (
    Action,
    CloseConnection,
    Connect,
    ConnectFailure,
    ConnectionEnd,
    Log,
    SendPing,
    SendText,
    WriteRecord,
)
from kcs.live.recorder import Recorder
from kcs.live.session import Session
from kcs.live.transport import ConnectFailed, Connection, Handler
from kcs.model import Event, Gap
from kcs.pipeline import Pipeline

Dial = Callable[[Handler], Awaitable[Connection]]

CODES_SOUGHT_MAX = 8
"""Silent markets whose names are looked for in a frame before it is parsed; more cost as much as parsing."""


class Slot:
    """One session with its connection.

    `crash(error)` is told of a defect in kcs, which ends the run; `finished()` when nothing more comes after `stop`.
    `counting`: the subscription has twins, so `saved` counts the frames that brought what no other stream had brought.
    """

    def __init__(
        self,
        session: Session,
        recorder: Recorder,
        pipeline: Pipeline,
        dial: Dial,
        clock: Clock,
        log: Callable[[str, str], None],
        crash: Callable[[BaseException], None],
        finished: Callable[[], None],
        *,
        counting: bool = False,
    ) -> None:
        self.session = session
        self.stream = session.stream
        self._recorder = recorder
        self._record_frame = recorder.frame
        self._pipeline = pipeline
        self._ledger = pipeline.ledger
        self._on_market = session.on_market
        self._silent = session.silent
        self._listener: Adapter | None = None
        self.counting = counting
        self.saved = 0
        self._dial = dial
        self._clock = clock
        self._log = log
        self._crash = crash
        self._finished = finished
        self._connection: Connection | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._last_event: Event | None = None
        self._ignored = 0

    # What the collector asks for.

    def start(self, now_ns: int, *, trial: bool = False) -> None:
        """Begin connecting; see `Session.start`."""
        self._apply(self.session.start(now_ns, trial=trial), now_ns)

    def stop(self, now_ns: int, cause: str = "stop") -> None:
        """Close cleanly; see `Session.stop`."""
        self._apply(self.session.stop(now_ns, cause), now_ns)

    def tick(self, now_ns: int) -> None:
        """Do what the session has due."""
        if now_ns >= self.session.next_due_ns:
            self._apply(self.session.tick(now_ns), now_ns)

    def hold(self, held: bool) -> None:
        """Read nothing while `held`: the venue waits."""
        if self._connection is not None:
            self._connection.hold(held)

    def subscribe(self, subscription: Subscription, now_ns: int) -> None:
        """Deliver something else from now on."""
        self._apply(self.session.subscribe(subscription, now_ns), now_ns)

    def abort(self) -> None:
        """Cut whatever there is, without a handshake."""
        if self._connection is not None:
            self._connection.abort()
        elif self._dialing is not None:
            self._dialing.cancel()

    # Handler

    def opened(self, connection: Connection, now_ns: int) -> None:
        self._connection = connection
        self._apply(self.session.opened(now_ns), now_ns)

    def frame(self, kind: int, recv_ns: int, payload: bytes) -> None:
        session = self.session
        actions = session.frame(recv_ns)
        if actions:
            self._apply(actions, recv_ns)
        if self._silent:
            self._listen(recv_ns, payload)
        produced = self._ledger.produced
        self._record_frame(kind, self.stream, recv_ns, payload)
        event = self._pipeline.last_event
        if event is not self._last_event and event is not None and not isinstance(event, Gap):
            self._last_event = event
            self._on_market(event.market, recv_ns)
            if self.counting and self._ledger.produced != produced:
                self.saved += 1
        else:
            self._unspoken(recv_ns)

    def pong(self, recv_ns: int, payload: bytes) -> None:
        self.session.pong(recv_ns, payload)

    def closed(self, now_ns: int, end: ConnectionEnd) -> None:
        self._connection = None
        self._apply(self.session.closed(now_ns, end), now_ns)

    def crashed(self, error: BaseException) -> None:
        self._crash(error)

    # Leaves.

    def _listen(self, recv_ns: int, payload: bytes) -> None:
        """Is this a frame of a market that was silent? Then its gap ends before it."""
        session, silent = self.session, self._silent
        if (
            session.venue.codes_in_frames
            and len(silent) <= CODES_SOUGHT_MAX
            and not any(silence.code in payload for silence in silent.values())
        ):
            return
        listener = self._listener = self._listener or session.venue.adapter()
        try:
            events = listener.parse(self.stream, recv_ns, payload)
        except (FrameIgnored, FrameRejected):
            return
        for event in events:
            if not isinstance(event, Gap):
                self._apply(session.speaks(event.market, recv_ns), recv_ns)
        if not silent:
            self._listener = None

    def _unspoken(self, recv_ns: int) -> None:
        """A frame without an event. What was *ignored* (heartbeats, acks) says nothing about the subscription; a
        rejected frame, or one that is not parsed because the run is behind, is the venue talking all the same."""
        ignored = sum(self._pipeline.ledger.ignored.values())
        if ignored == self._ignored:
            self.session.on_data(recv_ns)
        self._ignored = ignored

    def _apply(self, actions: Sequence[Action], now_ns: int) -> None:
        for action in actions:
            if isinstance(action, WriteRecord):
                self._recorder.control(int(action.kind), self.stream, action.recv_ns, action.fields)
            elif isinstance(action, SendText):
                if self._connection is not None and self._connection.send_text(action.text):
                    self._recorder.sent(self.stream, now_ns, action.text)
            elif isinstance(action, SendPing):
                if self._connection is not None:
                    self._connection.ping(action.payload)
            elif isinstance(action, CloseConnection):
                self._close(action)
            elif isinstance(action, Connect):
                self._dialing = asyncio.get_running_loop().create_task(self._connect())
                self._dialing.add_done_callback(self._dialed)
            elif isinstance(action, Log):
                self._log(action.level, action.text)
        if self.session.finished:
            self._finished()

    def _close(self, action: CloseConnection) -> None:
        if self._connection is not None:
            self._connection.close(action.code, action.reason)
        elif self._dialing is not None:
            self._dialing.cancel()

    async def _connect(self) -> None:
        try:
            await self._dial(self)
        except ConnectFailed as failed:
            self._not_connected(failed.failure)
        except asyncio.CancelledError:
            # Cancelled by ourselves; when the handshake had just succeeded, `opened` was called and `closed` will be.
            if self._connection is None:
                self._not_connected(ConnectFailure("cancelled"))

    def _dialed(self, task: asyncio.Task[None]) -> None:
        self._dialing = None
        if task.cancelled():  # before it had begun: nothing in it could say so
            self._not_connected(ConnectFailure("cancelled"))
            return
        error = task.exception()
        if error is not None:
            self._not_connected(ConnectFailure("internal", str(error)))
            self._crash(error)

    def _not_connected(self, failure: ConnectFailure) -> None:
        now_ns = self._clock.now_ns()
        self._apply(self.session.connect_failed(now_ns, failure), now_ns)
