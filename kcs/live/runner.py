"""Running a collector as a process does: uvloop where available, SIGINT and SIGTERM as a request to stop.

    result = run_collector(make)          # `make` is async: it opens the sink and returns a Collector

The first signal ends the run cleanly, the second no longer waits for handshakes and acks. What a signal means for the
exit code is the command line's to say; `CollectorResult.signal` names it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kcs.live.collector import Collector, CollectorResult

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def run_until_signalled(collector: Collector) -> CollectorResult:
    """`collector.run()` on the running loop with the signal handlers in place, which are removed afterwards."""
    loop = asyncio.get_running_loop()
    for number in STOPPING_SIGNALS:
        loop.add_signal_handler(number, collector.request_stop, int(number))
    try:
        return await collector.run()
    finally:
        for number in STOPPING_SIGNALS:
            loop.remove_signal_handler(number)


def run_collector(make: Callable[[], Awaitable[Collector]], *, use_uvloop: bool = True) -> CollectorResult:
    """Run a collector to its end on a fresh loop. Raises what `make` and `Collector.run` raise."""

    async def main() -> CollectorResult:
        return await run_until_signalled(await make())

    with asyncio.Runner(loop_factory=loop_factory(use_uvloop)) as runner:
        return runner.run(main())


def loop_factory(use_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop when asked for and installed; None for asyncio's own."""
    if use_uvloop:
        with suppress(ImportError):
            import uvloop

            factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return factory
    return None
