"""A connection that says what it was told to say, for tests of what stands around connections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kcs.clock import NS_PER_MS
from kcs.sim.actions import Action, SendFrame, SendPong, VenueConnection
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.fault_text import parse_faults
from kcs.sim.mischief import Mischief
from kcs.sim.moments import Stage
from kcs.sim.schedule import FOREVER


def ms(amount: float) -> int:
    return round(amount * NS_PER_MS)


def frame(at_ms: float, text: str, market: str = "A", *, snapshot: bool = False) -> SendFrame:
    return SendFrame(ms(at_ms), f'{{"n":"{text}"}}'.encode(), True, True, market, snapshot)


def frames(count: int, every_ms: float = 1, markets: str = "A") -> list[SendFrame]:
    """Frame n comes at (n + 1) times `every_ms`; the markets take turns."""
    return [frame((n + 1) * every_ms, str(n), markets[n % len(markets)]) for n in range(count)]


def texts(actions: Iterable[Action]) -> list[str]:
    """What the frames say, and the names of other actions."""
    return [
        action.payload.decode(errors="replace").removeprefix('{"n":"').removesuffix('"}')
        if isinstance(action, SendFrame)
        else type(action).__name__
        for action in actions
    ]


class Script:
    """A `VenueConnection`. `answers` come at once, at the time of each text message; pings are answered."""

    def __init__(self, actions: Sequence[Action], answers: Sequence[Action] = ()) -> None:
        self.actions = list(actions)
        self.answers = list(answers)
        self.received: list[tuple[int, str]] = []
        self.closed = False

    @property
    def next_due_ns(self) -> int:
        return self.actions[0].at_ns if self.actions and not self.closed else FOREVER

    def receive(self, now_ns: int, kind: str, payload: bytes = b"") -> list[Action]:
        due = self.poll(now_ns)
        self.received.append((now_ns, kind))
        if kind == "ping":
            return [*due, SendPong(now_ns, payload)]
        return [*due, *self.answers]

    def poll(self, now_ns: int) -> list[Action]:
        if self.closed:
            return []
        due = [action for action in self.actions if action.at_ns <= now_ns]
        self.actions = self.actions[len(due) :]
        return due

    def disconnect(self) -> None:
        self.closed = True


def stage(log: SimFaultLog | None = None, *, seed: int = 7, connection: int = 1, bytes_max: int = 1 << 20) -> Stage:
    """A connection made at time 0, when the market opened."""
    return Stage(seed, connection, 0, lambda: 0, log or SimFaultLog(), bytes_max)


def behind(
    faults: str, script: Script, *, seed: int = 7, connection: int = 1, bytes_max: int = 1 << 20
) -> tuple[Mischief, SimFaultLog]:
    """The script with these faults before it, and the log."""
    log = SimFaultLog()
    where = stage(log, seed=seed, connection=connection, bytes_max=bytes_max)
    return Mischief(script, parse_faults(faults).mischief, where), log


def polled(connection: VenueConnection, until_ms: float, step_ms: float | None = None) -> list[Action]:
    """All actions up to a time, asked for in steps."""
    if step_ms is None:
        return connection.poll(ms(until_ms))
    got: list[Action] = []
    now_ms = 0.0
    while now_ms < until_ms:
        now_ms = min(until_ms, now_ms + step_ms)
        got += connection.poll(ms(now_ms))
    return got
