"""Captures for replay tests, written by the real writer, and sinks and clocks that do what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kcs.capture.format import CaptureHeader
from kcs.capture.output import CaptureFile
from kcs.capture.records import encode_records
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.clock import Clock, VirtualClock
from kcs.model import Fields, Kind
from kcs.replay.engine import Plan, ReplayResult, replay
from kcs.replay.source import plan
from kcs.sink import POSITION, Headers
from kcs.stats import Ledger

START_NS = 1_767_258_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000


async def until(true: Callable[[], bool]) -> None:
    """Wait until it is true, turn by turn."""
    while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


def trade(number: int, market: str = "KRW-BTC", side: str = "BID") -> bytes:
    """An Upbit trade whose price and id are functions of its number."""
    return b'{"ty":"trade","cd":"%s","tms":%d,"ttms":%d,"tp":%d.5,"tv":0.25,"ab":"%s","sid":%d,"st":"REALTIME"}' % (
        market.encode(),
        1_700_000_000_000 + number,
        1_700_000_000_000 + number,
        number,
        side.encode(),
        number,
    )


def capture_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def capture_header(number: int, exchange: str = "upbit") -> CaptureHeader:
    """The header of capture `number`."""
    return CaptureHeader(
        capture_id=capture_id(number),
        run_id=capture_id(number),
        exchange=exchange,
        url="ws://venue.test/",
        created_ns=START_NS + number,
        kcs_version="0.1.0",
        options={"channels": ["trade"], "markets": ["KRW-BTC"]},
    )


def writer(directory: Path, number: int, exchange: str = "upbit", **settings: Any) -> CaptureWriter:
    """A writer of capture `number`; files of a rotation get the numbers that follow."""
    ids = iter(range(number + 1, number + 1_000))
    chosen = WriterSettings(threaded=False, **settings)
    return CaptureWriter(
        directory, capture_header(number, exchange), settings=chosen, new_id=lambda: capture_id(next(ids))
    )


def make(
    directory: Path,
    number: int,
    frames: Iterable[tuple[int, bytes]],
    *,
    chunk: int = 50,
    controls: Sequence[tuple[int, Kind, Fields]] = (),
) -> Path:
    """A sealed capture of text frames (recv_ns, payload), at most `chunk` of them a chunk, after the `controls`."""
    target = writer(directory / f"{number}", number)
    for recv_ns, kind, fields in controls:
        target.append_fields(kind, 0, recv_ns, fields)
    for count, (recv_ns, payload) in enumerate(frames, 1):
        target.append(Kind.TEXT, 0, recv_ns, payload)
        if count % chunk == 0:
            target.flush()
    (sealed,) = target.close(START_NS)
    assert target.failed is None
    return sealed.path


def make_with_ancillary(directory: Path, count: int, at: int, chunk: int, *, sealed: bool = True) -> Path:
    """`count` trades at one time, but the one with number `at` is of kind 200: a later kcs may write such records."""
    name = directory / f"ancillary-{at}.zst"
    file = CaptureFile(name.with_name(f"{name.name}.partial"), name, capture_header(1))
    for first in range(0, count, chunk):
        numbers = range(first, min(first + chunk, count))
        raw = encode_records([(200 if n == at else int(Kind.TEXT), 0, START_NS, trade(n)) for n in numbers])
        file.write_content(first, len(numbers), raw, START_NS, START_NS)
    if sealed:
        return file.seal().path
    file.abandon()
    return file.path


def trades(count: int, *, first: int = 0, at_ns: int = START_NS, step_ns: int = 10 * MS) -> list[tuple[int, bytes]]:
    """Trades `first`... at regular times."""
    return [(at_ns + i * step_ns, trade(first + i)) for i in range(count)]


class ListSink:
    """Keeps (capture, channel, key, frame number, recv_ns, value) in order; acks at once."""

    def __init__(self) -> None:
        self.acked = 0
        self.failed = 0
        self.full = False
        self.records: list[tuple[int, str, str, int, int, bytes]] = []
        self.starts: list[int] = []
        self.drained = 0
        self._capture = 0

    def start(self, capture_id: bytes) -> None:
        self._capture = int.from_bytes(capture_id, "big")
        self.starts.append(self._capture)

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, str]:
        return channel, key

    def emit(
        self,
        route: tuple[str, str],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        number, _, _ = POSITION.unpack(position)
        self.records.append((self._capture, *route, number, recv_ns, value))
        self.take()

    def take(self) -> None:
        self.acked += 1

    async def room(self) -> None:
        raise AssertionError("never full")

    async def drain(self) -> None:
        self.drained += 1

    async def close(self) -> None:
        raise AssertionError("the sink is the caller's to close")

    @property
    def times(self) -> list[int]:
        return [record[4] for record in self.records]

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """(capture, frame number) of each record."""
        return [(record[0], record[3]) for record in self.records]


class SlowSink(ListSink):
    """A Kafka-like sink: holds at most `room_for` unacknowledged records and acks `each` of them a loop turn."""

    def __init__(self, room_for: int, each: int, fail_every: int = 0) -> None:
        super().__init__()
        self.full = False
        self.over = 0
        """Records taken while full: what one that drops would have dropped."""
        self.waits = 0
        self._room_for = room_for
        self._each = each
        self._fail_every = fail_every
        self._ticking = False

    @property
    def owed(self) -> int:
        return len(self.records) - self.acked - self.failed

    def take(self) -> None:
        if self.full:
            self.over += 1
        self.full = self.owed >= self._room_for
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        for _ in range(min(self._each, self.owed)):
            done = self.acked + self.failed + 1
            if self._fail_every and done % self._fail_every == 0:
                self.failed += 1
            else:
                self.acked += 1
        self.full = self.owed >= self._room_for
        if self.owed:
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self._ticking = False

    async def room(self) -> None:
        self.waits += 1
        await until(lambda: not self.full)

    async def drain(self) -> None:
        await until(lambda: not self.owed)


class StuckSink(ListSink):
    """Takes `room_for` records and acknowledges none, ever."""

    def __init__(self, room_for: int) -> None:
        super().__init__()
        self._room_for = room_for
        self.stuck = asyncio.Event()

    def take(self) -> None:
        self.full = len(self.records) >= self._room_for

    async def room(self) -> None:
        self.stuck.set()
        await asyncio.Event().wait()

    async def drain(self) -> None:
        self.stuck.set()
        await asyncio.Event().wait()


class VirtualSleeper:
    """asyncio.sleep in virtual time. A sleep of 0 is one spin of the loop and lasts 20 us."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    async def __call__(self, seconds: float) -> None:
        self._clock.advance(round(seconds * 1e9) if seconds > 0 else 20_000)


def play(
    paths: Sequence[Path],
    sink: Any,
    *,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    **how: Any,
) -> tuple[ReplayResult, Ledger]:
    """Replay to the end; the ledger must balance whatever happened."""
    ledger = Ledger()

    async def run() -> ReplayResult:
        return await replay(Plan(plan(paths), **how), sink, ledger, clock or VirtualClock(START_NS), sleep=sleep)

    result = asyncio.run(run())
    ledger.check()
    return result, ledger
