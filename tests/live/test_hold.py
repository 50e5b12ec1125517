"""A venue that is faster than the disk: it waits, the capture does not end, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from kcs.capture.worker import PendingChunk, Worker
from kcs.capture.writer import WriterSettings
from kcs.model import Kind
from tests.live.rig import LOOPS, Rig, read, trade, until
from tests.live.support import settle

QUEUE_BYTES = 4 * 1024 * 1024
SENT = [trade(number)[:-1] + b',"x":"%s"}' % (b"-" * 2000) for number in range(20_000)]
"""40 MB: ten times what may wait for the disk."""


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_while_the_disk_is_behind_the_venue_waits(tmp_path: Path, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    original = Worker.write

    def stuck(self: Worker, chunk: PendingChunk) -> None:
        slow.wait(20)
        original(self, chunk)

    monkeypatch.setattr(Worker, "write", stuck)

    async def script(websocket: ServerConnection, number: int) -> None:
        await websocket.recv()
        for payload in SENT:
            await websocket.send(payload.decode())
        async for _ in websocket:
            pass

    async def run() -> None:
        rig = Rig(tmp_path, writer=WriterSettings(queue_bytes_max=QUEUE_BYTES, chunk_bytes_max=64 * 1024))
        async with rig.serving(script):
            collector = rig.start()
            told = ("warning", "the capture is slower than the venue: reading waits for the disk")
            await until(lambda: told in rig.logs)
            received = collector.ledger.received
            await settle(1000)
            assert collector.ledger.received == received < len(SENT) / 2
            assert rig.connections == 1
            slow.set()
            await rig.received(len(SENT))
            result = await rig.stop()
        result.ledger.check()
        assert (result.failure, result.records_lost, result.reconnects) == (None, 0, 0)
        assert rig.logs.count(told) == 1
        (capture,) = result.captures
        assert [r.payload for r in read(capture.path) if r.kind is Kind.TEXT] == SENT

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())
