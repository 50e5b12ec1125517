"""What a start says of captures that it does not deliver."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kcs.cli.preparing import Preparation
from kcs.clock import VirtualClock
from tests.live.test_backlog import Log, left


def test_captures_of_another_cluster_are_told_once_even_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    """A broker's address with a typo leaves such a capture behind: the start with the right one must not be silent."""
    left(tmp_path, 1, cluster="another")
    sink: Any = SimpleNamespace(link=object(), cluster_id="this", settings=SimpleNamespace(bootstrap="b1"))
    log = Log()

    async def open_() -> None:
        raise AssertionError("it is open")

    async def run() -> None:
        preparation = Preparation(sink, open_, tmp_path, "upbit", 0.0, VirtualClock(), log)
        assert not await preparation.needed()
        assert len(log.warnings) == 1
        assert "cluster another" in log.warnings[0]
        assert not await preparation.needed()
        assert len(log.warnings) == 1, "once, however often it looks"

    asyncio.run(run())
