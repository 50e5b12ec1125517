"""The venue and the way to it: the simulated exchange behind connections that are refused, stall, burst and break.

`Network.dial` stands for `Dialer.dial`; a `SimConnection` for the transport's `Connection`. What a connection hands to
its handler is written down (`Network.received`): the truth that captures are compared with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final, cast

from kcs.live.actions import CLOSE_ABNORMAL, ConnectFailure, ConnectionEnd
from kcs.live.transport import ConnectFailed, Connection, Handler
from kcs.model import Kind
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong
from kcs.sim.upbit import UpbitExchange
from tests.dst.loop import Crash, SimLoop
from tests.dst.world import MS, NEVER, SECOND, ProcessClock, World

READ_BYTES_MAX: Final = 16 * 1024
READ_AGAIN_NS: Final = 4 * MS
"""A read takes so much, and the next one follows so much later: the bandwidth."""


@dataclass(slots=True)
class NetworkFaults:
    """Chances per attempt or connection; `cuts` and `stalls` per second of a connection. Times in ns."""

    refused: float = 0.0
    hangs: float = 0.0
    http: float = 0.0
    cuts: float = 0.0
    stalls: float = 0.0
    stall_ns: int = 0
    silent: float = 0.0
    """Nothing comes any more, pongs neither, and nobody says so."""
    no_close: float = 0.0
    """The peer does not answer our close."""


@dataclass(frozen=True, slots=True)
class Received:
    """A frame as it was handed over."""

    stream: int
    connection: int
    recv_ns: int
    kind: int
    payload: bytes


@dataclass(slots=True)
class Network:
    """See the module docstring. `received` is of the process that lives."""

    world: World
    exchange: UpbitExchange
    faults: NetworkFaults
    latency_ns: int
    coalesce_ns: int
    """A read takes what arrives within so long."""
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    open: list[SimConnection] = field(default_factory=list)
    clock: ProcessClock = field(init=False)
    """Of the process that lives."""

    def born(self, clock: ProcessClock) -> None:
        """A process begins: nothing has been received yet."""
        self.received = []
        self.clock = clock

    def gone(self) -> None:
        """The process is dead: the venue sees its connections break."""
        for connection in self.open:
            connection.drop()
        self.open.clear()

    async def dial(self, handler: Handler) -> Connection:
        """Connect, or fail, or hang."""
        world, rng = self.world, self.world.rng(f"dial/{self.connections}/{self.world.clock.now}")
        await asyncio.sleep((self.latency_ns + rng.randint(0, 5 * MS)) / SECOND)
        draw, faults = rng.random(), self.faults
        if (draw := draw - faults.refused) < 0:
            world.count("connection refused")
            raise ConnectFailed(ConnectFailure("refused"))
        if (draw := draw - faults.http) < 0:
            world.count("connection answered by an error")
            raise ConnectFailed(ConnectFailure("http", "Bad Gateway", 502))
        if draw - faults.hangs < 0:
            world.count("connection attempt hung")
            await asyncio.sleep(1.0)
            raise ConnectFailed(ConnectFailure("timeout"))
        await asyncio.sleep(self.latency_ns / SECOND)
        self.connections += 1
        connection = SimConnection(self, handler, self.connections)
        self.open.append(connection)
        connection.begin()
        return cast(Connection, connection)


class SimConnection:
    """One websocket. Its methods are those of `Connection` that a slot calls."""

    def __init__(self, network: Network, handler: Handler, number: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self._network, self._handler, self._loop = network, handler, loop
        self._clock = network.world.clock
        self._now_ns = network.clock.now_ns
        self._rng = network.world.rng(f"connection/{number}")
        self.number = number
        self._venue = network.exchange.connect(self._clock.now)
        self._arriving: deque[tuple[int, Action]] = deque()
        self._held_until = 0
        self._silent = self._held = False
        self._closing = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._stream = getattr(handler, "stream", 0)

    def begin(self) -> None:
        """The handshake succeeded."""
        self._network.world.tell(f"connection {self.number} of stream {self._stream} opened")
        self._handler.opened(cast(Connection, self), self._now_ns())
        self._loop.call_later(self._rng.uniform(0.05, 0.3), self._weather)
        self._arm()

    # What the owner asks for.

    def send_text(self, text: str) -> bool:
        self._alive()
        if self._closing or self._closed:
            return False
        self._ask("text", text.encode())
        return True

    def ping(self, payload: bytes) -> None:
        self._alive()
        if not (self._closing or self._closed):
            self._ask("ping", payload)

    def close(self, code: int, reason: str = "") -> None:
        self._alive()
        if self._closing or self._closed:
            return
        self._closing = True
        if self._silent or self._rng.random() < self._network.faults.no_close:
            self._network.world.count("close not answered")
            self._loop.call_later(0.3, self._lost)
        else:
            self._loop.call_later(2 * self._network.latency_ns / SECOND, self._end, ConnectionEnd(code, reason))

    def hold(self, held: bool) -> None:
        """Read no more until told to: what comes waits on the way."""
        self._alive()
        if held and not self._held:
            self._network.world.count("connection held for the disk")
        self._held = held
        self._arm()

    def abort(self) -> None:
        self._alive()
        self._loop.call_soon(self._lost)

    def drop(self) -> None:
        """The client is gone, without a word."""
        self._closed = True
        self._venue.disconnect()

    # What happens by itself.

    def _ask(self, kind: str, payload: bytes) -> None:
        if not self._silent:
            self._take(self._venue.receive(self._clock.now, kind, payload))
            self._arm()

    def _take(self, actions: list[Action]) -> None:
        latency = self._network.latency_ns
        self._arriving.extend((max(action.at_ns + latency, self._held_until), action) for action in actions)

    def _weather(self) -> None:
        """Every 100 ms the network may do something."""
        if self._closed:
            return
        faults, world = self._network.faults, self._network.world
        if self._rng.random() < faults.cuts / 10:
            world.count("connection cut")
            self._arriving.clear()
            self._lost()
            return
        if self._rng.random() < faults.stalls / 10:
            world.count("connection stalled")
            self._held_until = self._clock.now + self._rng.randint(10 * MS, max(10 * MS, faults.stall_ns))
        if not self._silent and self._rng.random() < faults.silent / 10:
            world.count("connection silent")
            self._silent = True
            self._arriving.clear()
        self._loop.call_later(0.1, self._weather)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed or self._silent or self._held:
            return
        due = min(self._venue.next_due_ns + self._network.latency_ns, self._arriving[0][0] if self._arriving else NEVER)
        if due >= NEVER:
            return
        due = max(due, self._held_until)
        wait = max(0, due - self._clock.now) + self._rng.randint(0, self._network.coalesce_ns)
        self._timer = self._loop.call_later(wait / SECOND, self._read)

    def _read(self) -> None:
        """The transport's `data_received`: one look at the clock, then every frame of this read."""
        self._timer = None
        if self._closed or self._silent or self._held:
            return
        self._take(self._venue.poll(self._clock.now))
        recv_ns = self._now_ns()
        now_ns = self._clock.now
        left = READ_BYTES_MAX
        try:
            while left > 0 and self._arriving and self._arriving[0][0] <= now_ns and not self._gone():
                action = self._arriving.popleft()[1]
                left -= len(action.payload) if isinstance(action, SendFrame) else 0
                self._hand_over(action, recv_ns)
        except Crash:
            raise
        except Exception as error:  # noqa: BLE001 - as the transport: a defect is told, and ends the connection
            self._handler.crashed(error)
            self._end(ConnectionEnd(CLOSE_ABNORMAL, "", "internal"))
        if left <= 0:
            self._held_until = max(self._held_until, now_ns + READ_AGAIN_NS)
        self._arm()

    def _gone(self) -> bool:
        return self._closed

    def _hand_over(self, action: Action, recv_ns: int) -> None:
        network = self._network
        if isinstance(action, SendFrame):
            kind = int(Kind.BINARY if action.binary else Kind.TEXT)
            network.received.append(Received(self._stream, self.number, recv_ns, kind, action.payload))
            self._handler.frame(kind, recv_ns, action.payload)
        elif isinstance(action, SendPong):
            self._handler.pong(recv_ns, action.payload)
        elif isinstance(action, SendClose):
            network.world.count("venue closed the connection")
            self._end(ConnectionEnd(action.code, action.reason))
        elif isinstance(action, DropConnection):
            self._lost()

    def _lost(self) -> None:
        self._end(ConnectionEnd(CLOSE_ABNORMAL, "", "lost"))

    def _end(self, end: ConnectionEnd) -> None:
        if self._closed:
            return
        self._closed = True
        self._venue.disconnect()
        if self in self._network.open:
            self._network.open.remove(self)
        self._network.world.tell(f"connection {self.number} ended: {end.code} {end.cause}")
        self._handler.closed(self._now_ns(), end)

    def _alive(self) -> None:
        if self._loop.dead:
            raise Crash("a dead process used the network")
