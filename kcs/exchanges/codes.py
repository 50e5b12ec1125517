"""Guessing the market that was meant, for error messages only. Pure; imports nothing of kcs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

_LENGTH_MAX: Final = 64


def near_pair(text: str, quotes: Sequence[str], possible: Callable[[str], bool], joiner: str = "-") -> str | None:
    """The QUOTE-BASE code that was probably meant by krw-btc, BTC-KRW, BTC/KRW, KRWBTC, BTCKRW or KRW-BTC.15; or None.

    `quotes`: the venue's quote currencies, the one that wins first (BTCUSDT reads two ways); `possible(code)` has the
    last word.
    """
    parts = re.findall(r"[A-Z0-9]+", text[:_LENGTH_MAX].upper().partition(".")[0])
    pairs: list[tuple[str, str]] = []
    if len(parts) == 2:
        pairs = [(parts[0], parts[1]), (parts[1], parts[0])]
    elif len(parts) == 1:
        whole = parts[0]
        for quote in quotes:
            if whole.startswith(quote):
                pairs.append((quote, whole.removeprefix(quote)))
            if whole.endswith(quote):
                pairs.append((quote, whole.removesuffix(quote)))
    return next((code for quote, base in pairs if possible(code := f"{quote}{joiner}{base}")), None)
