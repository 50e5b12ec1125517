"""Upbit's frames: keys and spellings of the reference, agreement of the formats, and a hash that notices any drift."""

from __future__ import annotations

import re
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from kcs.sim.catalogue import CATALOGUE
from kcs.sim.settings import SimSettings
from tests.sim.helpers import everything

TRADE_KEYS = {
    "type": "ty", "code": "cd", "timestamp": "tms", "trade_date": "td", "trade_time": "ttm", "trade_timestamp": "ttms",
    "trade_price": "tp", "trade_volume": "tv", "ask_bid": "ab", "prev_closing_price": "pcp", "change": "c",
    "change_price": "cp", "sequential_id": "sid", "best_ask_price": "bap", "best_ask_size": "bas",
    "best_bid_price": "bbp", "best_bid_size": "bbs", "stream_type": "st",
}  # fmt: skip
BOOK_KEYS = {
    "type": "ty", "code": "cd", "timestamp": "tms", "total_ask_size": "tas", "total_bid_size": "tbs",
    "orderbook_units": "obu", "stream_type": "st", "level": "lv",
}  # fmt: skip
UNIT_KEYS = {"ask_price": "ap", "bid_price": "bp", "ask_size": "as", "bid_size": "bs"}
TICKER_KEYS = {
    "type": "ty", "code": "cd", "opening_price": "op", "high_price": "hp", "low_price": "lp", "trade_price": "tp",
    "prev_closing_price": "pcp", "acc_trade_price": "atp", "change": "c", "change_price": "cp",
    "signed_change_price": "scp", "change_rate": "cr", "signed_change_rate": "scr", "ask_bid": "ab",
    "trade_volume": "tv", "acc_trade_volume": "atv", "trade_date": "tdt", "trade_time": "ttm",
    "trade_timestamp": "ttms", "acc_ask_volume": "aav", "acc_bid_volume": "abv", "highest_52_week_price": "h52wp",
    "highest_52_week_date": "h52wdt", "lowest_52_week_price": "l52wp", "lowest_52_week_date": "l52wdt",
    "market_state": "ms", "is_trading_suspended": "its", "delisting_date": "dd", "market_warning": "mw",
    "timestamp": "tms", "acc_trade_price_24h": "atp24h", "acc_trade_volume_24h": "atv24h", "stream_type": "st",
}  # fmt: skip
KEYS = {"trade": TRADE_KEYS, "orderbook": BOOK_KEYS, "ticker": TICKER_KEYS}
SETTINGS = SimSettings(seed=7, rate=200)
NUMBER = r"(-?\d+(?:\.\d+)?(?:E-?\d+)?)"
CAPTURE = Path(__file__).resolve().parents[3] / "shared" / "captures" / "upbit.jsonl"

GOLDEN = {
    "DEFAULT": "5560e938a899de84f3d08788ffab9fa45efa08671ce7bd6caa5832d43efecc96",
    "SIMPLE": "7e7e736dcbc85431a3a02604e672c81815853d5086dd9ba1ef52f3eeac118fac",
    "JSON_LIST": "ad7c245ad7f579647f9e828e7fd1b322a133c658559c45ba1322826c25127add",
    "SIMPLE_LIST": "e42325fb5c2ff06e93502608dd3c4c082d130a23778d7abc5050b59954bc100b",
}
"""SHA-256 over the length-prefixed frames of the first 10 s of seed 7 at 200/s. A change here changes every recording
that was made from a seed: say so in the commit."""


GOLDEN_BUSY = "0c88e6053484ea622481c66a753537948ca8ba4d7f679b391d37e7f0a985f51d"
"""The same of the first second of seed 8 at 20,000/s with every market of the catalogue."""


@pytest.mark.parametrize("wire_format", GOLDEN)
def test_the_bytes_of_seed_7_are_what_they_always_were(wire_format: str) -> None:
    assert digest_of(everything(SETTINGS, wire_format, 10)) == GOLDEN[wire_format]


def test_the_bytes_of_a_busy_second_are_what_they_always_were() -> None:
    settings = SimSettings(seed=8, rate=20_000, markets=tuple(CATALOGUE))
    assert digest_of(everything(settings, "SIMPLE", 1)) == GOLDEN_BUSY


def digest_of(frames: list[bytes]) -> str:
    digest = sha256()
    for payload in frames:
        digest.update(len(payload).to_bytes(4, "big") + payload)
    return digest.hexdigest()


def spelled(payload: bytes) -> Any:
    """The frame with its numbers as Decimal, exactly as spelled."""
    text = re.sub(rf"(?<=[:\[,]){NUMBER}(?=[,}}\]])", r'"#\1"', payload.decode())
    return revived(orjson.loads(text))


def revived(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("#"):
        return Decimal(value[1:])
    if isinstance(value, list):
        return [revived(entry) for entry in value]
    if isinstance(value, dict):
        return {key: revived(entry) for key, entry in value.items()}
    return value


def test_all_formats_say_the_same() -> None:
    default, simple, json_list, simple_list = (everything(SETTINGS, name, 2) for name in GOLDEN)
    assert len(default) > 400
    assert json_list == [b"[" + payload + b"]" for payload in default]
    assert simple_list == [b"[" + payload + b"]" for payload in simple]
    for long_payload, short_payload in zip(default, simple, strict=True):
        long, short = spelled(long_payload), spelled(short_payload)
        keys = KEYS[long["type"]]
        assert list(long) == list(keys), "keys and their order"
        assert list(short) == list(keys.values())
        if long["type"] == "orderbook":
            assert [list(unit) for unit in long["orderbook_units"]] == [list(UNIT_KEYS)] * 30
            long["orderbook_units"] = [{UNIT_KEYS[key]: unit[key] for key in unit} for unit in long["orderbook_units"]]
        assert {keys[key]: long[key] for key in long} == short


def first_of(wire_format: str, channel: str, code: str = "KRW-BTC") -> str:
    key, name = (b'"type":"', b'"code":"') if wire_format == "DEFAULT" else (b'"ty":"', b'"cd":"')
    frames = everything(SETTINGS, wire_format, 0)
    return next(p for p in frames if key + channel.encode() in p and name + code.encode() in p).decode()


def test_default_spells_big_prices_with_exponent_and_sizes_with_zeros() -> None:
    trade = first_of("DEFAULT", "trade")
    assert re.search(r'"trade_price":1\.1\d+E8,"trade_volume":\d+\.\d{8},', trade)
    assert re.search(r'"prev_closing_price":\d{9}\.0{8},.*"change_price":\d+\.0{8},', trade)
    assert re.search(r'"best_ask_price":1\.1\d+E8,"best_ask_size":\d+\.\d{8},', trade)
    assert re.search(r'"trade_date":"2026-01-01","trade_time":"08:59:5\d",', trade)
    book = first_of("DEFAULT", "orderbook")
    assert re.search(
        r'\[\{"ask_price":1\.1\d+E8,"bid_price":1\.1\d+E8,"ask_size":\d\.\d{8},"bid_size":\d\.\d{8}\}', book
    )
    assert re.search(r'"ask_price":\d{3}\.0,', first_of("DEFAULT", "orderbook", "KRW-DOGE"))


def test_simple_spells_prices_plainly_and_small_sizes_with_exponent() -> None:
    trade, book = first_of("SIMPLE", "trade"), first_of("SIMPLE", "orderbook")
    assert re.search(r'"tp":11\d{7},', trade)
    assert re.search(r'"pcp":\d{9}\.0{8},"c":"(RISE|FALL|EVEN)","cp":\d+\.0{8},"sid":\d{17},', trade)
    assert re.search(r'"ap":11\d{7},"bp":11\d{7},', book)
    assert re.search(r'"[ab]s":\d\.\d+E-4', book)
    assert not re.search(r"[0-9]0+[,}]", "".join(re.findall(r'"[ab]s":0\.\d+[,}]', book))), "no trailing zeros"


def test_ticker_dates_have_no_dashes_and_its_prices_no_exponent() -> None:
    ticker = first_of("DEFAULT", "ticker")
    assert re.search(r'"trade_date":"20260101","trade_time":"08595\d",', ticker)
    assert re.search(r'"opening_price":11\d{7},"high_price":11\d{7},"low_price":11\d{7},"trade_price":11\d{7},', ticker)
    assert '"delisting_date":null' in ticker
    assert '"is_trading_suspended":false' in ticker


def test_figures_of_the_frame_agree_with_each_other() -> None:
    for frame in map(spelled, everything(SETTINGS, "DEFAULT", 3)):
        if frame["type"] == "orderbook":
            units = frame["orderbook_units"]
            assert frame["total_ask_size"] == sum(unit["ask_size"] for unit in units)
            assert frame["total_bid_size"] == sum(unit["bid_size"] for unit in units)
            continue
        change = frame["trade_price"] - frame["prev_closing_price"]
        assert frame["change_price"] == abs(change)
        assert frame["change"] == ("RISE" if change > 0 else "FALL" if change < 0 else "EVEN")
        if frame["type"] == "ticker":
            assert frame["signed_change_price"] == change
            assert abs(frame["signed_change_rate"] - change / frame["prev_closing_price"]) <= Decimal("5.1E-11")
            assert frame["acc_trade_volume"] == frame["acc_ask_volume"] + frame["acc_bid_volume"]
            assert frame["timestamp"] >= frame["trade_timestamp"]
        else:
            touch = frame["best_ask_price"] if frame["ask_bid"] == "BID" else frame["best_bid_price"]
            assert frame["trade_price"] == touch
            assert frame["sequential_id"] // 10_000 == frame["trade_timestamp"]


def test_a_thin_book_is_padded_with_zeros() -> None:
    units = spelled(first_of("DEFAULT", "orderbook", "BTC-ETH").encode())["orderbook_units"]
    assert len(units) == 30
    assert all(value > 0 for unit in units[:24] for value in unit.values())
    assert all(value == 0 for value in units[29].values())


@pytest.mark.skipif(not CAPTURE.exists(), reason=f"no real recording at {CAPTURE}")
def test_keys_of_real_frames_are_ours_in_our_order() -> None:
    seen = set()
    for line in CAPTURE.read_bytes().splitlines():
        record = orjson.loads(line)
        if record["kind"] != "binary":
            continue
        frame = orjson.loads(record["payload"])
        ours = list(KEYS[frame["ty"]].values())
        assert [key for key in ours if key in frame] == list(frame), "a subset of ours, in our order"
        seen.add(frame["ty"])
    assert seen == {"trade", "orderbook"}
