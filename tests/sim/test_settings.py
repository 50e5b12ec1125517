"""What can be simulated, and how the impossible is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kcs.errors import ConfigError, UnknownNameError
from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings


def test_the_default_epoch_is_the_documented_moment() -> None:
    assert DEFAULT_EPOCH_NS == (20_454 * 86_400 + 9 * 3_600) * 10**9  # 2026-01-01T09:00:00Z


@pytest.mark.parametrize(
    ("options", "suggestion"),
    [
        ({"markets": ("KRW-BTC", "KRW-ETHH")}, "KRW-ETH"),
        ({"exchange": "upbti"}, "upbit"),
        ({"channels": ("trades",)}, "trade"),
    ],
)
def test_unknown_names_suggest_the_near_one(options: dict[str, Any], suggestion: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        SimSettings(**options)
    assert caught.value.suggestion == suggestion
    assert suggestion in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0}, {"rate": 1_000_001}, {"burst_percent": 99}, {"burst_percent": 1001}, {"port": -1}, {"port": 65536},
        {"seed": -1}, {"markets": ()}, {"markets": ("KRW-BTC", "KRW-BTC")}, {"channels": ()}, {"duration_ns": -1},
        {"frames_max": -1}, {"queue_bytes_max": 0},
    ],
)  # fmt: skip
def test_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SimSettings(**options)
