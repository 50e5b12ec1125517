"""Requests: what is understood and which error name each mistake gets."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.sim.upbit_request import (
    MESSAGES,
    Refused,
    Request,
    TypeRequest,
    parse_request,
    split_depth,
    subscriptions_reply,
)

TICKET = {"ticket": "t"}
TRADE = {"type": "trade", "codes": ["KRW-BTC"]}


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({}, "WRONG_FORMAT"),
        ("PONG", "WRONG_FORMAT"),
        ([TICKET, "trade"], "WRONG_FORMAT"),
        ([], "NO_TICKET"),
        ([TRADE], "NO_TICKET"),
        ([{"ticket": ""}, TRADE], "NO_TICKET"),
        ([{"ticket": 5}, TRADE], "NO_TICKET"),
        ([TICKET], "NO_TYPE"),
        ([TICKET, {"format": "SIMPLE"}], "NO_TYPE"),
        ([TICKET, {"codes": ["KRW-BTC"]}], "NO_TYPE"),
        ([TICKET, {"type": "trade"}], "NO_CODES"),
        ([TICKET, {"type": "trade", "codes": []}], "NO_CODES"),
        ([TICKET, {"type": "nope", "codes": ["KRW-BTC"]}], "INVALID_PARAM"),
        ([TICKET, {"type": "candle.2m", "codes": ["KRW-BTC"]}], "INVALID_PARAM"),
        ([TICKET, {"type": "trade", "codes": "KRW-BTC"}], "INVALID_PARAM"),
        ([TICKET, {"type": "trade", "codes": [1]}], "INVALID_PARAM"),
        ([TICKET, {"type": ["trade"], "codes": ["KRW-BTC"]}], "INVALID_PARAM"),
        ([TICKET, TRADE | {"is_only_snapshot": 1}], "INVALID_PARAM"),
        ([TICKET, TRADE | {"level": "0"}], "INVALID_PARAM"),
        ([TICKET, TRADE | {"level": True}], "INVALID_PARAM"),
        ([TICKET, TRADE, {"format": "XML"}], "INVALID_PARAM"),
        ([TICKET, TRADE, {"format": ["SIMPLE"]}], "INVALID_PARAM"),
        ([TICKET, {"method": "UNSUBSCRIBE"}], "INVALID_PARAM"),
    ],
)
def test_mistakes(document: Any, name: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_request(orjson.dumps(document))
    assert caught.value.name == name
    assert MESSAGES[name]


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr))
@settings(max_examples=200)
def test_nothing_but_a_verdict_comes_out_of_noise(noise: bytes | str) -> None:
    with pytest.raises(Refused):
        parse_request(noise if isinstance(noise, bytes) else noise.encode(errors="replace"))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Refused, match="WRONG_FORMAT"):
        parse_request(b"[" * 10_000)


def test_order_of_the_objects_does_not_matter() -> None:
    parts = [TICKET, {"format": "SIMPLE"}, TRADE | {"is_only_realtime": True}, {"type": "ticker", "codes": ["KRW-ETH"]}]
    wanted = Request(
        "t",
        "SIMPLE",
        (TypeRequest("trade", ("KRW-BTC",), only_realtime=True), TypeRequest("ticker", ("KRW-ETH",))),
    )
    assert parse_request(orjson.dumps(parts)) == wanted
    assert parse_request(orjson.dumps([parts[2], parts[3], parts[1], parts[0]])) == wanted


def test_no_format_is_default() -> None:
    assert parse_request(orjson.dumps([TICKET, TRADE])).wire_format == "DEFAULT"


@pytest.mark.parametrize(
    ("code", "split"),
    [
        ("KRW-BTC", ("KRW-BTC", 30)),
        ("KRW-BTC.1", ("KRW-BTC", 1)),
        ("KRW-BTC.5", ("KRW-BTC", 5)),
        ("KRW-BTC.15", ("KRW-BTC", 15)),
        ("KRW-BTC.30", ("KRW-BTC", 30)),
        ("KRW-BTC.7", ("KRW-BTC", 30)),
        ("KRW-BTC.x", ("KRW-BTC", 30)),
        ("KRW-BTC.", ("KRW-BTC", 30)),
        ("KRW-BTC.٥", ("KRW-BTC", 30)),
    ],
)
def test_depths(code: str, split: tuple[str, int]) -> None:
    assert split_depth(code) == split


def test_the_list_of_subscriptions_in_each_spelling() -> None:
    types = (TypeRequest("ticker", ("KRW-BTC", "KRW-ETH")), TypeRequest("orderbook", ("KRW-BTC.5",)))
    long = (
        b'{"method":"LIST_SUBSCRIPTIONS","result":[{"type":"ticker","codes":["KRW-BTC","KRW-ETH"]},'
        b'{"type":"orderbook","codes":["KRW-BTC.5"],"level":0}],"ticket":"t"}'
    )
    short = (
        b'{"mthd":"LIST_SUBSCRIPTIONS","rslt":[{"ty":"ticker","cds":["KRW-BTC","KRW-ETH"]},'
        b'{"ty":"orderbook","cds":["KRW-BTC.5"],"lv":0}],"tckt":"t"}'
    )
    replies = {
        name: subscriptions_reply(Request("t", name, (), list_subscriptions=True), types)
        for name in ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
    }
    assert replies == {
        "DEFAULT": long,
        "SIMPLE": short,
        "JSON_LIST": b"[" + long + b"]",
        "SIMPLE_LIST": b"[" + short + b"]",
    }
