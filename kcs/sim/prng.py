"""The simulator's only source of randomness: SplitMix64, integers only. Imports nothing of kcs.

The same seed gives the same numbers on any machine and any Python, because there is no float and no word size in it.
Draws are 64 bits wide; callers cut several small numbers out of one draw (`bits & 0xFF`, `bits >> 8 & 0x1F`, ...),
which is cheaper than drawing each. Not for secrets.
"""

from __future__ import annotations

from typing import Final

MASK64: Final = 0xFFFFFFFFFFFFFFFF
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX1: Final = 0xBF58476D1CE4E5B9
_MIX2: Final = 0x94D049BB133111EB
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3


class SplitMix64:
    """A 64-bit generator (Steele, Lea, Flood 2014). `seed` is taken modulo 2**64."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK64

    def bits(self) -> int:
        """The next 64 random bits as an int in [0, 2**64)."""
        self._state = z = (self._state + _GOLDEN) & MASK64
        z = ((z ^ (z >> 30)) * _MIX1) & MASK64
        z = ((z ^ (z >> 27)) * _MIX2) & MASK64
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        """A number in [0, bound), bound >= 1; the bias is at most bound / 2**64."""
        return (self.bits() * bound) >> 64


def derive(seed: int, name: str) -> SplitMix64:
    """A generator of its own for `name`: what one part draws never shifts what another part sees."""
    mixed = _FNV_OFFSET
    for byte in name.encode():
        mixed = ((mixed ^ byte) * _FNV_PRIME) & MASK64
    parent = SplitMix64(seed)
    return SplitMix64(parent.bits() ^ mixed)


def log_uniform(bits: int, low_bit: int, high_bit: int) -> int:
    """A number in [2**low_bit, 2**(high_bit + 1)) whose magnitude is uniform; uses 48 of the given bits.

    Sizes of orders spread over magnitudes like this, many small ones and few large. `high_bit` <= 40.
    """
    magnitude = low_bit + (bits & 0xFF) % (high_bit - low_bit + 1)
    return (1 << magnitude) | ((bits >> 8) & ((1 << magnitude) - 1))
