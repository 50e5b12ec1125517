"""Market names, patterns and price grids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.errors import UnknownNameError
from kcs.sim.catalogue import CATALOGUE, DEFAULT_MARKETS, E8, Ticks, resolve_markets, spec_of


def test_the_default_markets_span_all_quote_currencies() -> None:
    assert len(DEFAULT_MARKETS) == 10
    assert {code.partition("-")[0] for code in DEFAULT_MARKETS} == {"KRW", "BTC", "USDT"}


@pytest.mark.parametrize("spec", CATALOGUE.values(), ids=lambda spec: spec.code)
def test_start_prices_are_legal_and_far_from_the_edge_of_a_band(spec) -> None:  # type: ignore[no-untyped-def]
    tick = Ticks(spec.quote).tick(spec.start_e8)
    assert spec.start_e8 % tick == 0
    assert Ticks(spec.quote).tick(spec.start_e8 * 105 // 100) == tick
    assert Ticks(spec.quote).tick(spec.start_e8 * 95 // 100) == tick
    assert spec.lot_e8 >= 1


@pytest.mark.parametrize(
    ("quote", "price", "tick"),
    [
        ("KRW", 116_538_000 * E8, 1_000 * E8),
        ("KRW", 1_000_000 * E8, 1_000 * E8),
        ("KRW", 999_500 * E8, 500 * E8),
        ("KRW", 100_000 * E8, 100 * E8),
        ("KRW", 99_950 * E8, 50 * E8),
        ("KRW", 10_000 * E8, 10 * E8),
        ("KRW", 9_995 * E8, 5 * E8),
        ("KRW", 4_999 * E8, E8),
        ("KRW", 100 * E8, E8),
        ("KRW", 99 * E8, E8 // 10),
        ("KRW", E8, E8 // 100),
        ("KRW", E8 - 1, E8 // 1_000),
        ("BTC", 3_296_000, 1),
        ("USDT", 82_011 * E8, E8 // 100),
        ("USDT", 2 * E8, E8 // 1_000),
    ],
)
def test_tick_sizes(quote: str, price: int, tick: int) -> None:
    assert Ticks(quote).tick(price) == tick


@given(st.sampled_from(["KRW", "BTC", "USDT"]), st.integers(1, 200_000_000 * E8))
@settings(max_examples=200)
def test_down_undoes_up_on_the_grid(quote: str, price: int) -> None:
    ticks = Ticks(quote)
    price -= price % ticks.tick(price)
    if price:
        assert ticks.down(ticks.up(price)) == price
        assert Ticks(quote).up(price) == ticks.up(price), "the remembered band changes nothing"


def test_the_way_down_ends_at_zero() -> None:
    ticks = Ticks("BTC")
    assert ticks.down(2) == 1
    assert ticks.down(1) == 0
    with pytest.raises(ValueError, match="positive"):
        Ticks("KRW").tick(-1)


def test_an_unknown_market_names_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="KRW-BTCC") as caught:
        spec_of("KRW-BTCC")
    assert caught.value.suggestion == "KRW-BTC"


def test_patterns() -> None:
    assert resolve_markets(["all"]) == tuple(CATALOGUE)
    assert resolve_markets(["BTC-*", "KRW-BTC", "BTC-ETH"])[-1] == "KRW-BTC"
    assert set(resolve_markets(["USDT-*"])) == {code for code in CATALOGUE if code.startswith("USDT-")}
    with pytest.raises(UnknownNameError):
        resolve_markets(["EUR-*"])
    with pytest.raises(UnknownNameError):
        resolve_markets(["krw-btc"])
