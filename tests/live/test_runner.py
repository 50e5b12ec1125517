"""Signals, and the loop of the process."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection

from kcs.live.runner import loop_factory, run_collector, run_until_signalled
from kcs.model import Kind
from tests.live.rig import Rig, TestSink, read, trade, until


async def chatty(websocket: ServerConnection, number: int) -> None:
    await websocket.send(trade(number))
    async for _ in websocket:
        pass


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly(number: signal.Signals, use_uvloop: bool, tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        async with rig.serving(chatty):
            collector = rig.start()
            rig.running.cancel()  # the runner runs it
            running = asyncio.create_task(run_until_signalled(collector))
            await until(lambda: collector.ledger.received == 1)
            os.kill(os.getpid(), number)
            result = await running
        assert (result.stopped_by, result.signal) == ("signal", int(number))
        assert read(result.captures[0].path)[-1].kind is Kind.CLOSE
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)

    with asyncio.Runner(loop_factory=loop_factory(use_uvloop)) as runner:
        runner.run(run())


def test_a_second_signal_does_not_wait_for_acks(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.sink = TestSink(hold=True)
        async with rig.serving(chatty):
            collector = rig.start(drain_s=1000.0)
            rig.running.cancel()
            running = asyncio.create_task(run_until_signalled(collector))
            await until(lambda: collector.ledger.received == 1)
            os.kill(os.getpid(), signal.SIGINT)
            await until(lambda: collector.sessions[0].finished)
            os.kill(os.getpid(), signal.SIGINT)
            result = await running
        assert not result.drained
        assert result.captures[0].sealed

    asyncio.run(run())


def test_run_collector_runs_on_uvloop_when_asked(tmp_path: Path) -> None:
    loops: list[type] = []

    async def make() -> object:
        loops.append(type(asyncio.get_running_loop()))
        rig = Rig(tmp_path / str(len(loops)))
        collector = rig.start(url="ws://127.0.0.1:1/", duration_s=0.01)
        rig.running.cancel()
        return collector

    for use_uvloop in (True, False):
        assert run_collector(make, use_uvloop=use_uvloop).stopped_by == "duration"  # type: ignore[arg-type]
    assert loops[0] is uvloop.Loop
    assert loops[1] is not uvloop.Loop
