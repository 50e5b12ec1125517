"""How a verb runs an event loop: uvloop where available, signals that stop cleanly, meters beside it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kcs.clock import Clock
from kcs.stats import GcMeter, LoopMeter, freeze_heap

T = TypeVar("T")

SWITCH_INTERVAL_S = 0.0005
"""How long the capture's thread may keep the interpreter from the loop; Python's own 5 ms would show in the p99."""


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` to its end on a fresh loop. A third signal cancels it: KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class Stop(asyncio.Event):
    """Set by the first signal: end cleanly. `force` is set by the second: wait for nothing, but still report."""

    def __init__(self) -> None:
        super().__init__()
        self.force = asyncio.Event()


@contextmanager
def interruptible() -> Iterator[Stop]:
    """What SIGINT and SIGTERM set: first the event, then its `force`; the third signal cancels the task."""
    loop, stop = asyncio.get_running_loop(), Stop()
    task = asyncio.current_task()

    def on_signal() -> None:
        if stop.force.is_set() and task is not None:
            task.cancel()
        elif stop.is_set():
            stop.force.set()
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def allow_many_files() -> None:
    """Raise the limit of open files as far as this process may: each capture file that Kafka still waits for is held
    open, and a broker that stays away over a weekend must not end the capturing of a run that rotates every minute."""
    with contextlib.suppress(OSError, ValueError):  # what the system does not allow stays as it is
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(slots=True, frozen=True)
class Meters:
    """What runs beside the work."""

    gc: GcMeter
    loop: LoopMeter


@contextmanager
def measured(clock: Clock) -> Iterator[Meters]:
    """GC and event-loop lag of the block, run as long runs are: heap frozen, interpreter handed over quickly."""
    freeze_heap()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    meters = Meters(GcMeter(clock), LoopMeter(clock))
    meters.gc.start()
    meters.loop.start(asyncio.get_running_loop())
    try:
        yield meters
    finally:
        meters.loop.stop()
        meters.gc.stop()
        sys.setswitchinterval(interval_s)
