"""Faults of the websocket level: a wrapper around any venue's connection that transforms its actions. Sans I/O.

The venue's dialect knows nothing of it, so every venue has every fault. The wrapper sees what the dialect would send,
in order of time, and drops, doubles, delays, spoils or ends it. All draws come from streams of their own (seed,
connection, fault), one draw for each market frame, so neither how time is sliced nor another fault changes what a
fault hits.

Of the faults that spoil a frame (drop, truncated_json, bad_json, duplicate, reorder) at most one strikes a frame; a
frame inside a silent window is only lost. `junk` adds a frame after a live one and harms none. A frame that others
overtake (`reorder`) still goes out before the connection ends. What waits (`stall`, `late_snapshot`) is bounded by
`Stage.bytes_max`; beyond it the connection is dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.fault_log import FaultEntry, checksum
from kcs.sim.faults import Fault, Style, duration_text, numbered
from kcs.sim.moments import Chance, Stage, Strikes, Timetable, Windows
from kcs.sim.schedule import FOREVER
from kcs.sim.spoil import cut_frame, junk_frame, spoilt_frame

NO_CLOSE_FRAME: Final = 1006
SPOILERS: Final = ("drop", "truncated_json", "bad_json", "duplicate", "reorder")


class _Strike:
    """A fault that hits frames, pings or subscriptions: whom, and a stream of its own for how."""

    __slots__ = ("fault", "how", "name", "strikes", "turn")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.fault = fault
        self.name = fault.name
        self.strikes = Strikes(fault, name, stage)
        self.how = stage.stream(f"{name}.how")
        self.turn = 0


class _Lasting:
    """A fault that lasts. `market`: whom the window at hand silences."""

    __slots__ = ("fault", "market", "windows")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.fault = fault
        self.windows = Windows(fault, name, stage)
        self.market = ""


class _Ending:
    """A fault that ends the connection: with a frame that is hit, or by a timetable."""

    __slots__ = ("chance", "code", "strikes", "table")

    def __init__(self, fault: Fault, name: str, stage: Stage) -> None:
        self.code = fault.value
        self.strikes: Strikes | None = None
        if fault.when.kind in ("always", "frames"):
            self.strikes = Strikes(fault, name, stage)
        self.table = Timetable(fault.when, 0, stage)
        self.chance = Chance(fault.chance, stage.stream(name))


class _Overtaken:
    """A frame that waits until `left` more have gone out."""

    __slots__ = ("frame", "left")

    def __init__(self, frame: SendFrame, left: int) -> None:
        self.frame = frame
        self.left = left


class Mischief:
    """A connection that misbehaves; a `VenueConnection` itself. `inner` was made at `stage.opened_ns`."""

    def __init__(self, inner: VenueConnection, faults: tuple[Fault, ...], stage: Stage) -> None:
        self._inner = inner
        self._stage = stage
        self._out: list[Action] = []
        self._late: deque[tuple[SendFrame, int]] = deque()
        self._overtaken: list[_Overtaken] = []
        self._late_bytes = self._stalled_bytes = 0
        self._ended = False
        self._frames = 0
        named = numbered(faults)

        def strikes(*names: str) -> list[_Strike]:
            return [_Strike(fault, key, stage) for name in names for key, fault in named if fault.name == name]

        def lasting(name: str) -> list[_Lasting]:
            return [_Lasting(fault, key, stage) for key, fault in named if fault.name == name]

        self._spoilers = strikes(*SPOILERS)
        self._junk = strikes("junk")
        self._pings = strikes("ping_ignored")
        self._late_snapshots = strikes("late_snapshot")
        self._silences = lasting("silent_stall")
        self._market_silences = lasting("market_silent")
        self._stalls = lasting("stall")
        endings = [_Ending(fault, key, stage) for key, fault in named if fault.kind.style is Style.END]
        self._endings_by_frame = [ending for ending in endings if ending.strikes is not None]
        self._endings_by_time = [ending for ending in endings if ending.strikes is None]

    # The connection as others see it.

    @property
    def closed(self) -> bool:
        return self._ended and not self._out

    @property
    def next_due_ns(self) -> int:
        if self._out:
            return self._out[0].at_ns
        if self._ended:
            return FOREVER
        return min(self._inner.next_due_ns, self._late_ns(), self._ending_ns())

    def receive(self, now_ns: int, kind: str, payload: bytes = b"") -> list[Action]:
        self._catch_up(now_ns)
        if not self._ended:
            answers = self._inner.receive(now_ns, kind, payload)
            if self._late_snapshots and any(isinstance(one, SendFrame) and one.snapshot for one in answers):
                answers = self._delay_snapshots(now_ns, answers)
            self._pass(answers)
        return self._take(now_ns)

    def poll(self, now_ns: int) -> list[Action]:
        self._catch_up(now_ns)
        return self._take(now_ns)

    def disconnect(self) -> None:
        self._out.clear()
        self._forget()

    def _take(self, now_ns: int) -> list[Action]:
        out = self._out
        if not out or out[0].at_ns > now_ns:
            return []
        if out[-1].at_ns <= now_ns:
            self._out, self._stalled_bytes = [], 0
            return out
        held = next(at for at, action in enumerate(out) if action.at_ns > now_ns)
        self._out = out[held:]
        self._stalled_bytes = sum(map(_size, self._out))
        return out[:held]

    def _forget(self) -> None:
        self._ended = True
        self._late.clear()
        self._overtaken.clear()
        self._inner.disconnect()

    # Time.

    def _catch_up(self, now_ns: int) -> None:
        if not self._ended:
            self._pass(self._inner.poll(now_ns))
            self._until(now_ns)

    def _pass(self, actions: list[Action]) -> None:
        for action in actions:
            self._until(action.at_ns)
            if self._ended:
                return
            if isinstance(action, SendFrame):
                if action.data:
                    self._frames += 1
                    self._data(action, self._frames - 1)
                else:
                    self._put(action)
            elif isinstance(action, SendPong):
                self._pong(action)
            else:
                self._finish(action)

    def _until(self, now_ns: int) -> None:
        """Do what is due by itself: snapshots that were late, ends by timetable."""
        while not self._ended:
            late_ns, ending_ns = self._late_ns(), self._ending_ns()
            if min(late_ns, ending_ns) > now_ns:
                return
            if late_ns <= ending_ns:
                frame, number = self._late.popleft()
                self._late_bytes -= len(frame.payload)
                self._data(frame, number)
            else:
                self._end_by_time(ending_ns)

    def _late_ns(self) -> int:
        return self._late[0][0].at_ns if self._late else FOREVER

    def _ending_ns(self) -> int:
        return min((ending.table.due_ns for ending in self._endings_by_time), default=FOREVER)

    def _end_by_time(self, due_ns: int) -> None:
        for ending in self._endings_by_time:
            if ending.table.due_ns == due_ns:
                ending.table.advance()
                if ending.chance.draw() and not self._ended:
                    self._end(due_ns, ending.code)

    # Frames.

    def _data(self, frame: SendFrame, number: int) -> None:
        at_ns = frame.at_ns
        for stall in self._stalls:
            stall.windows.inside(at_ns)
        struck = [strike for strike in self._spoilers if strike.strikes.hit(at_ns)]
        junk = [strike for strike in self._junk if not frame.snapshot and strike.strikes.hit(at_ns)]
        ends = [ending for ending in self._endings_by_frame if ending.strikes and ending.strikes.hit(at_ns)]
        overtaken = len(self._overtaken)
        if not self._silenced(frame, number):
            if struck:
                self._spoil(struck[0], frame, number)
            else:
                self._put(frame)
            for strike in junk:
                strike.turn += 1
                extra = junk_frame(frame.payload, strike.turn)
                self._note("junk", at_ns, f"{len(extra)} bytes after it", frame, number)
                self._put(SendFrame(at_ns, extra, False, frame.binary))
        if overtaken:
            self._overtake(at_ns, overtaken)
        if ends:
            self._end(at_ns, ends[0].code)

    def _spoil(self, strike: _Strike, frame: SendFrame, number: int) -> None:
        name, at_ns, payload = strike.name, frame.at_ns, frame.payload
        if name == "drop":
            self._note(name, at_ns, "", frame, number, lost=1)
        elif name == "duplicate":
            self._note(name, at_ns, "", frame, number)
            self._put(frame)
            self._put(frame)
        elif name == "reorder":
            self._note(name, at_ns, f"{strike.fault.value} later", frame, number)
            self._overtaken.append(_Overtaken(frame, strike.fault.value))
        elif name == "truncated_json":
            part = cut_frame(payload, strike.how.bits())
            self._note(name, at_ns, f"{len(part)} of {len(payload)} bytes", frame, number)
            self._put(msgspec.structs.replace(frame, payload=part))
        else:
            spoilt, where = spoilt_frame(payload, strike.how.bits())
            self._note(name, at_ns, f"byte {where} is 0x{spoilt[where]:02x}", frame, number)
            self._put(msgspec.structs.replace(frame, payload=spoilt))

    def _overtake(self, at_ns: int, count: int) -> None:
        """One more market frame has passed the first `count` overtaken ones."""
        for one in self._overtaken[:count]:
            one.left -= 1
            if not one.left:
                self._put(msgspec.structs.replace(one.frame, at_ns=at_ns))
        self._overtaken = [one for one in self._overtaken if one.left]

    def _delay_snapshots(self, now_ns: int, answers: list[Action]) -> list[Action]:
        """One subscription: all its snapshots are late or none is. They keep the numbers that they had in time."""
        late = [strike for strike in self._late_snapshots if strike.strikes.hit(now_ns)]
        if not late:
            return answers
        by_ns = late[0].fault.value
        self._stage.note("late_snapshot", now_ns, f"by {duration_text(by_ns)}")
        kept: list[Action] = []
        for action in answers:
            if isinstance(action, SendFrame) and action.snapshot:
                self._late.append((msgspec.structs.replace(action, at_ns=action.at_ns + by_ns), self._frames))
                self._late_bytes += len(action.payload)
                self._frames += 1
            else:
                kept.append(action)
        self._late = deque(sorted(self._late, key=lambda entry: entry[0].at_ns))
        self._check_waiting(now_ns)
        return kept

    # Windows.

    def _silenced(self, frame: SendFrame, number: int) -> bool:
        silent = ""
        for one in self._market_silences:
            if one.fault.market and one.fault.market != frame.market:
                continue
            if one.windows.inside(frame.at_ns):
                if one.windows.entered():
                    one.market = frame.market
                    self._begins(one, frame, number)
                if one.market == frame.market:
                    silent = "market_silent"
        for one in self._silences:
            if one.windows.inside(frame.at_ns):
                if one.windows.entered():
                    self._begins(one, frame, number)
                silent = "silent_stall"
        if silent:
            self._note(silent, frame.at_ns, "lost", frame, number, lost=1, counts=False)
        return bool(silent)

    def _begins(self, one: _Lasting, frame: SendFrame | None, number: int | None) -> None:
        entry = FaultEntry(
            self._stage.virtual_ns(one.windows.start_ns),
            self._stage.connection,
            one.fault.name,
            f"for {duration_text(one.fault.value)}",
            number,
            one.market,
        )
        self._stage.log.add(entry)

    # Pongs, ends, what goes out.

    def _pong(self, pong: SendPong) -> None:
        hits = [strike.strikes.hit(pong.at_ns) for strike in self._pings]
        if any(hits):
            self._stage.note("ping_ignored", pong.at_ns, pong.payload[:16].hex())
        else:
            self._put(pong)

    def _end(self, at_ns: int, code: int) -> None:
        self._stage.note("close_code", at_ns, str(code))
        self._finish(DropConnection(at_ns, "fault") if code == NO_CLOSE_FRAME else SendClose(at_ns, code, "fault"))

    def _finish(self, action: SendClose | DropConnection) -> None:
        for one in self._overtaken:
            self._put(msgspec.structs.replace(one.frame, at_ns=action.at_ns))
        self._put(action)
        self._forget()

    def _put(self, action: Action) -> None:
        at_ns = action.at_ns
        for stall in self._stalls:
            if stall.windows.lasts(action.at_ns):
                if stall.windows.entered():
                    self._begins(stall, None, None)
                at_ns = max(at_ns, stall.windows.end_ns)
        if at_ns == action.at_ns:
            self._out.append(action)
            return
        self._stalled_bytes += _size(action)
        self._out.append(msgspec.structs.replace(action, at_ns=at_ns))
        self._check_waiting(action.at_ns)

    def _check_waiting(self, at_ns: int) -> None:
        """Too much waits: the venue gives the connection up."""
        if self._ended or self._late_bytes + self._stalled_bytes <= self._stage.bytes_max:
            return
        self._stage.note("overflow", at_ns, f"more than {self._stage.bytes_max} bytes wait")
        self._out = [action for action in self._out if action.at_ns <= at_ns]
        self._out.append(DropConnection(at_ns, "overflow"))
        self._forget()

    def _note(
        self,
        fault: str,
        at_ns: int,
        detail: str,
        frame: SendFrame,
        number: int,
        *,
        lost: int = 0,
        counts: bool = True,
    ) -> None:
        stage, crc = self._stage, checksum(frame.payload)
        entry = FaultEntry(stage.virtual_ns(at_ns), stage.connection, fault, detail, number, frame.market, crc, lost)
        stage.log.add(entry, counts=counts)


def _size(action: Action) -> int:
    return len(action.payload) if isinstance(action, SendFrame) else 0
