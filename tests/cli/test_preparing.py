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
from kcs.errors import ConfigError, KafkaError
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


def test_a_capture_that_is_refused_again_and_again_does_not_hold_up_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No right to write into an old template's topic: no waiting cures that, and the present must be delivered."""
    monkeypatch.setattr(preparing, "REFUSED_RETRY_S", 0.0)
    refused, fine = left(tmp_path, 1, cluster="this"), left(tmp_path, 2, cluster="this")
    sink: Any = SimpleNamespace(
        link=object(), cluster_id="this", embedded=False, settings=SimpleNamespace(bootstrap="b")
    )
    asked: list[Path] = []

    async def deliver_all(paths: list[Path], *_: Any, settle_s: float, **__: Any) -> list[Any]:
        asked.extend(paths)
        if paths == [refused]:
            raise KafkaError("no right to write", where="topic old.trade.upbit")
        return [SimpleNamespace(path=paths[0])]

    monkeypatch.setattr("kcs.deliver.deliver_all", deliver_all)
    monkeypatch.setattr("kcs.deliver.described", lambda done: f"done: {done.path}")
    monkeypatch.setattr(preparing, "delivery_info", lambda sink: "ready")
    log = Log()

    async def open_() -> None:
        raise AssertionError("it is open")

    assert asyncio.run(Preparation(sink, open_, tmp_path, "upbit", 5.0, VirtualClock(), log).run()) == "ready"
    assert asked == [refused] * 3 + [fine]
    assert len([text for text in log.warnings if str(refused) in text and "no right to write" in text]) == 1
