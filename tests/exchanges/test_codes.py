"""Guesses at the market that was meant."""

from __future__ import annotations

from kcs.exchanges.codes import near_pair


def test_the_first_quote_that_fits_wins() -> None:
    assert near_pair("btcusdt", ("USDT", "BTC"), lambda code: True) == "USDT-BTC"
    assert near_pair("btcusdt", ("BTC", "USDT"), lambda code: True) == "BTC-USDT"


def test_the_venue_has_the_last_word() -> None:
    assert near_pair("BTC-KRW", ("KRW",), lambda code: code == "KRW-BTC") == "KRW-BTC"
    assert near_pair("BTC-KRW", ("KRW",), lambda code: False) is None


def test_the_joiner_is_the_venue_s() -> None:
    assert near_pair("krw/btc", ("KRW",), lambda code: True, joiner="_") == "KRW_BTC"


def test_no_guess_where_there_is_none() -> None:
    for text in ("", "...", "a-b-c", "ETH"):
        assert near_pair(text, ("KRW",), lambda code: True) is None
