"""What a start says of captures that it does not deliver."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kcs.cli import preparing
from kcs.cli.preparing import Preparation
from kcs.clock import NS_PER_S, VirtualClock
from kcs.errors import ConfigError
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


def test_a_password_that_cannot_be_read_for_a_while_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "REFUSED_RETRY_S", 0.0)
    sink: Any = SimpleNamespace(link=None, cluster_id="this", embedded=True, settings=SimpleNamespace(bootstrap="b1"))
    log, clock = Log(), VirtualClock()
    attempts = 0

    async def open_() -> None:
        nonlocal attempts
        attempts += 1
        clock.advance(NS_PER_S)
        if attempts <= 100:
            raise ConfigError("the password cannot be read: No such file", where="/etc/kcs/password")
        sink.link = object()

    asyncio.run(Preparation(sink, open_, tmp_path, "upbit", 0.0, clock, log).run())
    assert attempts == 101
    assert len(log.warnings) == 2, "once a minute"
    assert all("cannot be read" in text and "trying again" in text for text in log.warnings)
