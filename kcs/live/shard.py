"""Which markets are whose, when several machines share one load: a stable hash of the market's code.

A market belongs to shard `murmur2(code) & 0x7fffffff mod N`, counted from 0; users count from 1. The hash is that of
Kafka's default partitioner, so where the number of shards divides the number of partitions each partition is written
by one shard alone. Pure; the same on every machine and in every version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit MurmurHash2 that Kafka's clients use, as an unsigned number."""
    length = len(data)
    value = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        block = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        block = (block ^ block >> 24) * _M & _MASK
        value = (value * _M & _MASK) ^ block
    if length > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    value = (value ^ value >> 13) * _M & _MASK
    return value ^ value >> 15


def shard_of(market: str, count: int) -> int:
    """The shard of a market, 1 to `count`."""
    return (murmur2(market.encode()) & 0x7FFFFFFF) % count + 1


def share(markets: Iterable[str], number: int, count: int) -> tuple[str, ...]:
    """The markets of shard `number` of `count`, in their order."""
    return tuple(market for market in markets if shard_of(market, count) == number)
