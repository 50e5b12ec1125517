"""Whoever may write a topic may write anything: records of others never end a recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from kcs.kafka import marks
from kcs.kafka.settings import KafkaSettings
from kcs.sink import POSITION

CAPTURE = b"capture1"
FOREIGN: list[list[tuple[str, bytes | None]]] = [
    [],
    [("kcs", None)],
    [("kcs", b"")],
    [("kcs", b"short")],
    [("kcs", CAPTURE + bytes(21))],
    [("kcs", b"capture2" + bytes(20))],
    [("KCS", CAPTURE + bytes(20))],
    [("x", None), ("kcs", None)],
]


def test_headers_of_others_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_ranges(*_: object) -> AsyncGenerator[Any, None]:
        for offset, headers in enumerate([*FOREIGN, [("kcs", CAPTURE + POSITION.pack(7, 1, 5))]]):
            yield SimpleNamespace(offset=offset, headers=headers)

    async def found() -> list[Any]:
        return [one async for one in marks._ours(KafkaSettings("h:1"), None, ("t", 0), 0, 9, CAPTURE)]

    monkeypatch.setattr(marks, "read_ranges", read_ranges)
    (mark,) = asyncio.run(found())
    assert (mark.number, mark.offset) == (7, len(FOREIGN))
