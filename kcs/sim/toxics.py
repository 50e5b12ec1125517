"""A bad network, sans I/O: bytes and times in, bytes and times out. Acts from the venue to the client only.

The toxics are those of toxiproxy and mean the same: `latency` and `jitter` delay each chunk (order is kept), `slicer`
cuts chunks up, `bandwidth` lets so many bytes a second through, `timeout` lets nothing through any more and then
closes, `limit_data` closes after so many bytes, `reset_peer` resets, `slow_close` puts off the end. A chunk is one
websocket frame; what delays it is decided when it is fed, so due times depend on what was fed and when, not on when the
pipe is asked. A property of the connection without timetable (`latency=50ms@10%`) is drawn once, when the connection is
made.

The pipe is not bounded by itself: whoever feeds it looks at `waiting_bytes` and calls `overflow` when it is too much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from kcs.clock import NS_PER_S
from kcs.sim.faults import Fault, When, numbered
from kcs.sim.moments import Chance, Stage, Timetable, Windows
from kcs.sim.schedule import FOREVER

_SHARES_A_SECOND: Final = 10
"""A chunk longer than this part of a second's bytes is let through in pieces, as toxiproxy does."""


class How(Enum):
    """How a connection ends on the wire."""

    EOF = auto()
    """No more bytes of ours; the client's still arrive."""
    CLOSE = auto()
    """Closed once all bytes are out."""
    ABORT = auto()
    """Closed at once."""
    RESET = auto()
    """Closed at once, and the client is told so by a TCP reset."""


@dataclass(frozen=True, slots=True)
class PipeEnd:
    """Nothing follows. `cause`: the toxic that did it, or what the venue said."""

    how: How
    cause: str = ""


class _State:
    """A property of the connection: at work or not."""

    __slots__ = ("count", "fault", "how", "windows")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.fault = fault
        self.windows = Windows(fault, name, stage, standing=True)
        self.how = stage.stream(f"{name}.how")
        self.count = 0


class _Event:
    """Something that happens by the clock: a timeout or a reset."""

    __slots__ = ("chance", "fault", "table")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.fault = fault
        self.chance = Chance(fault.chance, stage.stream(name))
        when = When("after") if fault.when.kind == "always" else fault.when
        self.table = Timetable(when, 0, stage)


Item = tuple[int, bytes | PipeEnd]
"""When it reaches the client, and what."""

_NOTED_BY_EFFECT: Final = ("limit_data", "slow_close")
"""States that say something when they act; the others when they begin."""


class ToxicPipe:
    """One connection's way to the client. Times never run back."""

    def __init__(self, toxics: Sequence[Fault], stage: Stage) -> None:
        self._stage = stage
        self._queue: deque[tuple[int, bytes | PipeEnd, bool]] = deque()
        """(due, what, whether limit_data counts it)"""
        self._fed_ns = self._due_ns = self._free_ns = stage.opened_ns
        self._close_ns = FOREVER
        self._muted = False
        self._swallowed = 0
        self._closing = False
        self.waiting_bytes = 0
        self.ended = False
        """The end was handed out; nothing goes in or out any more."""
        self._states: dict[str, list[_State]] = {}
        self._events: list[_Event] = []
        for name, fault in numbered(toxics):
            if fault.name in ("timeout", "reset_peer"):
                self._events.append(_Event(fault, name, stage))
            else:
                self._states.setdefault(fault.name, []).append(_State(fault, name, stage))

    # In.

    def feed(self, now_ns: int, data: bytes, *, draws: bool = True) -> None:
        """A chunk for the client. Not `draws`: not of the websocket (its handshake), so it must not shift the draws."""
        if self._closing or not data:
            return
        now_ns = self._fed_ns = max(self._fed_ns, now_ns)
        due_ns = max(self._due_ns, now_ns + self._delay_ns(now_ns, draws=draws))
        rate = min((state.fault.value for state in self._active("bandwidth", now_ns)), default=0) if draws else 0
        for wait_ns, piece in self._sliced(now_ns, data) if draws else [(0, data)]:
            due_ns += wait_ns
            if rate:
                due_ns = self._throttled(due_ns, piece, rate)
            else:
                self._queue.append((due_ns, piece, draws))
        self._due_ns = due_ns
        self.waiting_bytes += len(data)

    def end(self, now_ns: int, how: How, cause: str = "") -> None:
        """The venue ends the connection, after all that was fed. Later calls do nothing."""
        if self._closing:
            return
        self._closing = True
        now_ns = self._fed_ns = max(self._fed_ns, now_ns)
        due_ns = max(self._due_ns, now_ns)
        for state in self._active("slow_close", now_ns):
            self._stage.note("slow_close", due_ns, state.fault.value_text)
            due_ns += state.fault.value
        self._due_ns = due_ns
        self._queue.append((due_ns, PipeEnd(how, cause), False))

    def overflow(self, now_ns: int) -> None:
        """The venue gives up a client for whom too much waits: what waits is lost, the end comes at once."""
        if self._closing:
            return
        self._closing = True
        self._stage.note("overflow", now_ns, f"{self.waiting_bytes} bytes lost")
        self._queue.clear()
        self.waiting_bytes = 0
        self._queue.append((max(self._fed_ns, now_ns), PipeEnd(How.ABORT, "overflow"), False))

    def _active(self, name: str, at_ns: int) -> list[_State]:
        """The toxics of this name that are at work."""
        states = [state for state in self._states.get(name, ()) if state.windows.inside(at_ns)]
        for state in states:
            if state.windows.entered():
                state.count = 0
                if name not in _NOTED_BY_EFFECT:
                    self._stage.note(name, state.windows.start_ns, state.fault.value_text)
        return states

    def _delay_ns(self, now_ns: int, *, draws: bool) -> int:
        delay_ns = sum(state.fault.value for state in self._active("latency", now_ns))
        if draws:
            for state in self._active("jitter", now_ns):
                delay_ns += state.how.below(2 * state.fault.value + 1) - state.fault.value
        return max(0, delay_ns)

    def _sliced(self, now_ns: int, data: bytes) -> list[tuple[int, bytes]]:
        """(delay after the one before, slice)"""
        active = self._active("slicer", now_ns)
        if not active:
            return [(0, data)]
        state = active[0]
        variation, delay_ns = state.fault.extra
        low, at, slices = state.fault.value - variation, 0, []
        while at < len(data):
            size = low + state.how.below(2 * variation + 1)
            slices.append((delay_ns if at else 0, data[at : at + size]))
            at += size
        return slices

    def _throttled(self, due_ns: int, data: bytes, rate: int) -> int:
        """Queue the data in pieces, each once its last byte is through; when that is."""
        due_ns, share = max(due_ns, self._free_ns), max(1, rate // _SHARES_A_SECOND)
        for at in range(0, len(data), share):
            piece = data[at : at + share]
            due_ns += len(piece) * NS_PER_S // rate
            self._queue.append((due_ns, piece, True))
        self._free_ns = due_ns
        return due_ns

    # Out.

    @property
    def next_due_ns(self) -> int:
        """When `poll` has something next; FOREVER once ended."""
        if self.ended:
            return FOREVER
        return min(self._queue[0][0] if self._queue else FOREVER, self._event_ns())

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        return self.ended or not self._queue

    def poll(self, now_ns: int) -> list[Item]:
        """What has reached the client up to and including `now_ns`; a PipeEnd is the last there ever is."""
        out: list[Item] = []
        while not self.ended:
            event_ns = self._event_ns()
            item_ns = self._queue[0][0] if self._queue else FOREVER
            if min(event_ns, item_ns) > now_ns:
                break
            if event_ns <= item_ns:
                self._happen(event_ns, out)
            else:
                self._let_out(out)
        return out

    def drain(self) -> list[bytes]:
        """All that waits, at once, whatever the network is like: the simulation is over. Nothing goes in any more."""
        waiting = [] if self._muted else [item for _, item, _ in self._queue if isinstance(item, bytes)]
        self._queue.clear()
        self.waiting_bytes = 0
        self.ended = self._closing = True
        return waiting

    def _event_ns(self) -> int:
        due_ns = self._close_ns
        for event in self._events:
            due_ns = min(due_ns, event.table.due_ns)
        return due_ns

    def _happen(self, at_ns: int, out: list[Item]) -> None:
        if at_ns == self._close_ns:
            lost = self._swallowed + self.waiting_bytes
            self._stage.note("timeout", at_ns, f"closed, {lost} bytes lost", counts=False)
            self._finish(out, at_ns, PipeEnd(How.CLOSE, "timeout"))
            return
        for event in self._events:
            if event.table.due_ns != at_ns:
                continue
            event.table.advance()
            if self.ended or not event.chance.draw():
                continue
            if event.fault.name == "reset_peer":
                self._stage.note("reset_peer", at_ns, f"{self.waiting_bytes} bytes lost")
                self._finish(out, at_ns, PipeEnd(How.RESET, "reset_peer"))
            elif not self._muted:
                self._stage.note("timeout", at_ns, event.fault.value_text)
                self._muted = True
                self._close_ns = at_ns + event.fault.value if event.fault.value else FOREVER

    def _let_out(self, out: list[Item]) -> None:
        due_ns, item, counted = self._queue.popleft()
        if isinstance(item, PipeEnd):
            self._finish(out, due_ns, item)
            return
        self.waiting_bytes -= len(item)
        if self._muted:
            self._swallowed += len(item)
            return
        for state in self._active("limit_data", due_ns) if counted else ():
            left = state.fault.value - state.count
            state.count += len(item)
            if len(item) >= left:
                lost = len(item) - left + self.waiting_bytes
                self._stage.note("limit_data", due_ns, f"closed, {lost} bytes lost")
                out.append((due_ns, item[:left]))
                self._finish(out, due_ns, PipeEnd(How.CLOSE, "limit_data"))
                return
        out.append((due_ns, item))

    def _finish(self, out: list[Item], at_ns: int, end: PipeEnd) -> None:
        out.append((at_ns, end))
        self.ended = self._closing = True
        self._queue.clear()
        self.waiting_bytes = 0
