"""The candle stream: each second's frame adds up the trades that were sent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from kcs.sim.settings import SimSettings
from tests.sim.helpers import START_NS, connected, decoded, payloads, request, seconds
from tests.sim.test_upbit_frames import spelled

BUSY = SimSettings(rate=300, markets=("KRW-BTC", "KRW-ETH"))
SHORT = ["ty", "cd", "cdttmu", "cdttmk", "op", "hp", "lp", "tp", "catv", "catp", "tms", "st"]


def test_each_second_has_one_candle_that_agrees_with_the_trades() -> None:
    _, client = connected(BUSY)
    ask = request(["KRW-BTC"], ["trade", "candle.1s"], is_only_realtime=True)
    client.receive(START_NS, "text", ask)
    trades: dict[int, list[dict[str, Any]]] = {}
    candles: dict[int, dict[str, Any]] = {}
    for frame in map(spelled, payloads(client.poll(seconds(10.5)))):
        if frame["type"] == "trade":
            trades.setdefault(int(frame["timestamp"]) // 1000, []).append(frame)
        else:
            second = int(frame["timestamp"]) // 1000
            assert second not in candles
            candles[second] = frame
    assert len(candles) == 10
    for second, candle in candles.items():
        prices = [trade["trade_price"] for trade in trades[second]]
        if second != START_NS // 10**9:
            assert candle["opening_price"] == prices[0]
            assert candle["candle_acc_trade_volume"] == sum(trade["trade_volume"] for trade in trades[second])
        assert candle["trade_price"] == prices[-1]
        assert candle["high_price"] >= max(prices)
        assert candle["low_price"] <= min(prices)
        assert isinstance(candle["candle_acc_trade_price"], Decimal)


def test_keys_and_times() -> None:
    _, client = connected(BUSY)
    (frame,) = decoded(client.receive(START_NS, "text", request(["KRW-ETH"], ["candle.60m"], wire_format="SIMPLE")))
    assert list(frame) == SHORT
    assert frame["ty"] == "candle.60m"
    assert frame["cdttmu"] == "2026-01-01T08:00:00"
    assert frame["cdttmk"] == "2026-01-01T17:00:00"
    assert frame["st"] == "SNAPSHOT"


def test_a_longer_candle_grows_through_its_period() -> None:
    _, client = connected(BUSY)
    client.receive(START_NS, "text", request(["KRW-BTC"], ["candle.1m"], wire_format="SIMPLE_LIST"))
    frames = [frame[0] for frame in decoded(client.poll(seconds(59)))]
    assert len(frames) >= 55
    volumes = [frame["catv"] for frame in frames if frame["cdttmu"] == "2026-01-01T09:00:00"]
    assert volumes == sorted(volumes)
    assert len(volumes) >= 55


@pytest.mark.parametrize("flag", ["is_only_snapshot", "is_only_realtime"])
def test_flags(flag: str) -> None:
    _, client = connected(BUSY)
    first = client.receive(START_NS, "text", request(["KRW-BTC"], ["candle.1s"], wire_format=None, **{flag: True}))
    later = client.poll(seconds(3.5))
    assert (len(first), len(later)) == ((1, 0) if flag == "is_only_snapshot" else (0, 3))


def test_the_adapter_ignores_candles() -> None:
    from kcs.errors import FrameIgnored
    from kcs.exchanges.upbit import UPBIT

    _, client = connected(BUSY)
    for payload in payloads(client.receive(START_NS, "text", request(["KRW-BTC"], ["candle.1s"]))):
        assert orjson.loads(payload)
        with pytest.raises(FrameIgnored, match="candle"):
            UPBIT.adapter().parse(0, 0, payload)
