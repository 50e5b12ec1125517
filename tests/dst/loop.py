"""An asyncio event loop in virtual time, without sockets or threads: the same calls in the same order, every time.

When nothing is ready, time jumps to what comes next, a timer of the loop or an event of the world. What code gives to a
thread (`run_in_executor`, the capture's worker through `in_thread`) runs on the loop, one piece at a time. While such a
piece waits for the disk (`block`), the loop goes on *inside* it, so a chunk that is half written is seen as such.

`crash_at`: before that callback (counted from 1) the process dies: `Crash` leaves `run_until_complete`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from tests.dst.world import NEVER, SECOND, START_NS, World


class Crash(SystemExit):
    """The simulated process is dead. A SystemExit, so that asyncio lets it through."""


class Stuck(AssertionError):
    """Nothing is ready and nothing will ever be, or the same goes round for ever."""


class Hang(SystemExit):
    """One callback does not end. Like `Crash`, it goes through asyncio."""


TURNS_MAX: Final = 1_000_000
_LAST_WORDS: Final = 10
"""Awaits in `finally` blocks that a dying coroutine may still begin."""


class SimLoop(asyncio.BaseEventLoop):
    """See the module docstring. `on_turn` is called after each callback."""

    # BaseEventLoop's own, which the type stubs leave out
    _ready: deque[Any]
    _scheduled: list[Any]
    _timer_cancelled_count: int
    _stopping: bool

    def __init__(self, world: World, on_turn: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.set_debug(False)  # its warnings about slow callbacks are about the machine, not about the run
        self.world = world
        self.turns = 0
        self.crash_at = 0
        self.stalls: deque[tuple[int, int]] = deque()
        """(turn, ns): before that turn something keeps the processor for so long."""
        self.dead = False
        self.on_writer: Callable[[Any], None] = lambda writer: None
        """Called with each simulated writer that is made on this loop."""
        self._clock = world.clock
        self._on_turn = on_turn
        self._rng = world.rng("loop")
        self._inside = False
        self._in_thread = False
        self._at_once = False
        self._waiting: deque[Callable[[], None]] = deque()
        self.set_exception_handler(self._told)

    def time(self) -> float:
        return (self._clock.now - START_NS) / SECOND

    # ------------------------------------------------------------ threads

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """The function runs after a while, on this loop, while nothing else of a thread does."""
        future = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except (Crash, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - what a thread raises goes to who waits for it
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.in_thread(run, self._rng.choice((0, 50_000, 400_000, 3_000_000)))
        return future

    def in_thread(self, run: Callable[[], None], delay_ns: int) -> None:
        """A piece of work of a thread, begun after `delay_ns`."""
        self.call_later(delay_ns / SECOND, self._enter, run)

    def _enter(self, run: Callable[[], None]) -> None:
        if self._inside:
            self._waiting.append(run)
            return
        self._inside = self._in_thread = True
        try:
            run()
        finally:
            self._inside = self._in_thread = False
        if self._waiting:
            self.call_soon(self._enter, self._waiting.popleft())

    def at_once(self, run: Callable[[], None]) -> bool:
        """A piece of work of a thread that got the processor before the caller's next step. False: it is busy."""
        if self._inside or self._at_once:
            return False
        self._at_once = True
        try:
            run()
        finally:
            self._at_once = False
        return True

    def block(self, ns: int) -> None:
        """Whoever calls waits: time passes, and in a thread the loop goes on meanwhile."""
        if self._at_once:
            return
        if not self._in_thread:
            self._clock.now += ns
            return
        self._in_thread = False
        until = self._clock.now + ns
        try:
            while self._clock.now < until:
                self._turn_once(until)
        finally:
            self._in_thread = True

    # ------------------------------------------------------------ the loop

    def _run_once(self) -> None:
        self._turn_once(NEVER)

    def _turn_once(self, until_ns: int) -> None:
        ready, scheduled, clock, world = self._ready, self._scheduled, self._clock, self.world
        while scheduled and scheduled[0]._cancelled:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)
        if not ready and not self._stopping:
            due = min(until_ns, world.next_ns)
            if scheduled:
                due = min(due, START_NS + -(-int(scheduled[0]._when * SECOND * 1000) // 1000))
            if due == NEVER:
                raise Stuck("every task waits for something that never comes")
            clock.now = max(clock.now, due)
        world.run_due()
        now_s = self.time() + 1e-9
        while scheduled and scheduled[0]._when <= now_s:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                ready.append(handle)
        for _ in range(len(ready)):
            if not ready:  # a turn inside one of them took it
                break
            handle = ready.popleft()
            if not handle._cancelled:
                self._run(handle)

    def _run(self, handle: asyncio.Handle) -> None:
        self.turns += 1
        if self.turns == self.crash_at:
            raise Crash(f"at callback {self.turns}")
        if self.turns > TURNS_MAX:
            raise Stuck(f"{TURNS_MAX:,} callbacks in one life")
        if self.stalls and self.stalls[0][0] <= self.turns:
            self.world.count("loop stalled")
            self._clock.now += self.stalls.popleft()[1]
        handle._run()
        if self._on_turn is not None:
            self._on_turn()

    def _told(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.dead:
            error = context.get("exception")
            self.world.defect(f"the loop: {context.get('message')}: {type(error).__name__}: {error}")

    # ------------------------------------------------------------ what BaseEventLoop asks of a real loop

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs waking."""

    def _process_events(self, event_list: Any) -> None:
        raise AssertionError("there are no sockets here")

    # ------------------------------------------------------------ the end

    def bury(self) -> None:
        """The process is dead: its coroutines are let go. Whatever they try now touches nothing (the shims refuse)."""
        self.dead = True
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        asyncio._set_running_loop(self)  # for `finally` blocks that begin something: it begins here, and never runs
        try:
            buried: set[asyncio.Task[Any]] = set()
            while dying := asyncio.all_tasks(self) - buried:
                for task in dying:
                    _let_go(task)
                buried |= dying
            self._ready.clear()
            self._scheduled.clear()
        finally:
            asyncio._set_running_loop(None)
            self.close()
            sys.unraisablehook = hook


def _let_go(task: asyncio.Task[Any]) -> None:
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    for _ in range(_LAST_WORDS):
        with contextlib.suppress(BaseException):  # the dead say nothing
            coroutine.close()
        if coroutine.cr_frame is None:
            break
