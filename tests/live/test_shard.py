"""Shares of the markets: each market in exactly one, by the hash that Kafka's partitioner uses."""

from __future__ import annotations

from collections import Counter

import pytest
from aiokafka.partitioner import murmur2 as kafkas_murmur2
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.live.shard import murmur2, shard_of, share


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_the_hash_is_that_of_kafkas_partitioner(data: bytes) -> None:
    assert murmur2(data) == kafkas_murmur2(data) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("market", "value"), [("KRW-BTC", 1967213776), ("KRW-ETH", 396231755), ("BTC-ETH", 1664063686), ("", 275646681)]
)
def test_the_hash_stays_what_it_is(market: str, value: int) -> None:
    """Written down: machines of different versions share one load."""
    assert murmur2(market.encode()) & 0x7FFFFFFF == value


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=40), st.integers(1, 50))
def test_every_market_is_in_exactly_one_shard(markets: list[str], count: int) -> None:
    shares = [share(markets, number, count) for number in range(1, count + 1)]
    assert Counter(market for one in shares for market in one) == Counter(markets)
    for one in shares:
        assert [market for market in markets if market in one] == list(one), "the order is kept"


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 12))
def test_a_partition_is_written_by_one_shard_where_their_number_divides(market: str, shards: int, factor: int) -> None:
    partition = (kafkas_murmur2(market.encode()) & 0x7FFFFFFF) % (shards * factor)
    assert shard_of(market, shards) == partition % shards + 1


def test_one_shard_is_everything() -> None:
    markets = ("KRW-BTC", "KRW-ETH")
    assert share(markets, 1, 1) == markets


def test_shares_are_even_enough() -> None:
    markets = [f"KRW-{number}" for number in range(900)]
    sizes = [len(share(markets, number, 3)) for number in (1, 2, 3)]
    assert min(sizes) > 240
