"""The markets that the simulator knows: names, start prices, activity, tick rules. Imports only `errors`.

All prices are integers in 1e-8 of the quote currency, sizes in 1e-8 of the base currency. Start prices stand well
inside a tick band. Tick sizes are Upbit's of 2026 (KRW bands since 2025-07-31, one tick for BTC markets, USDT bands).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from kcs.errors import UnknownNameError

E8: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """One market. `weight`: share of the activity; `levels`: how many levels a book side holds (below 30: padded)."""

    code: str
    korean_name: str
    english_name: str
    start_e8: int
    weight: int
    levels: int

    @property
    def quote(self) -> str:
        return self.code.partition("-")[0]

    @property
    def lot_e8(self) -> int:
        """The smallest usual order, in 1e-8 base: about 5,000 won's worth."""
        value_e8 = {"KRW": 5_000 * E8, "BTC": 5_000, "USDT": 4 * E8}[self.quote]
        return max(1, value_e8 * E8 // self.start_e8)


def _spec(code: str, korean: str, english: str, price: str, weight: int, levels: int = 36) -> MarketSpec:
    whole, _, rest = price.partition(".")
    return MarketSpec(code, korean, english, int(whole) * E8 + int(rest.ljust(8, "0")), weight, levels)


CATALOGUE: Final[dict[str, MarketSpec]] = {
    spec.code: spec
    for spec in (
        _spec("KRW-BTC", "비트코인", "Bitcoin", "116538000", 8),
        _spec("KRW-ETH", "이더리움", "Ethereum", "3842000", 6),
        _spec("KRW-XRP", "리플", "XRP", "2874", 7),
        _spec("KRW-SOL", "솔라나", "Solana", "187400", 4),
        _spec("KRW-DOGE", "도지코인", "Dogecoin", "231", 4),
        _spec("KRW-ADA", "에이다", "Cardano", "642", 2),
        _spec("KRW-TRX", "트론", "TRON", "437", 1),
        _spec("KRW-USDT", "테더", "Tether", "1421", 3),
        _spec("BTC-ETH", "이더리움", "Ethereum", "0.03296", 1, 24),
        _spec("USDT-BTC", "비트코인", "Bitcoin", "82011.5", 1, 33),
        _spec("KRW-LINK", "체인링크", "Chainlink", "18260", 2),
        _spec("KRW-AVAX", "아발란체", "Avalanche", "27150", 2),
        _spec("KRW-DOT", "폴카닷", "Polkadot", "3120", 1),
        _spec("KRW-BCH", "비트코인캐시", "Bitcoin Cash", "812500", 1),
        _spec("KRW-ETC", "이더리움클래식", "Ethereum Classic", "24310", 1),
        _spec("KRW-SUI", "수이", "Sui", "2415", 2),
        _spec("KRW-APT", "앱토스", "Aptos", "4132", 1),
        _spec("KRW-NEAR", "니어프로토콜", "NEAR Protocol", "2655", 1),
        _spec("KRW-SHIB", "시바이누", "Shiba Inu", "0.0134", 1),
        _spec("KRW-PEPE", "페페", "Pepe", "0.00742", 1),
        _spec("KRW-SAND", "샌드박스", "The Sandbox", "284", 1),
        _spec("KRW-STMX", "스톰엑스", "StormX", "6.28", 1),
        _spec("KRW-HUNT", "헌트", "Hunt Town", "317", 1),
        _spec("KRW-XEC", "이캐시", "eCash", "0.0274", 1),
        _spec("BTC-XRP", "리플", "XRP", "0.00002466", 1, 18),
        _spec("BTC-SOL", "솔라나", "Solana", "0.00160821", 1, 22),
        _spec("BTC-DOGE", "도지코인", "Dogecoin", "0.00000198", 1, 12),
        _spec("USDT-ETH", "이더리움", "Ethereum", "2703.61", 1, 33),
        _spec("USDT-XRP", "리플", "XRP", "2.022", 1, 20),
        _spec("USDT-DOGE", "도지코인", "Dogecoin", "0.1624", 1, 16),
    )
}
"""Every market, in the order in which the market list shows them; the first ten are the default."""

DEFAULT_MARKETS: Final = tuple(CATALOGUE)[:10]

_KRW_BANDS: Final = (
    (1_000_000 * E8, 1_000 * E8),
    (500_000 * E8, 500 * E8),
    (100_000 * E8, 100 * E8),
    (50_000 * E8, 50 * E8),
    (10_000 * E8, 10 * E8),
    (5_000 * E8, 5 * E8),
    (100 * E8, E8),
    (10 * E8, E8 // 10),
    (E8, E8 // 100),
    (E8 // 10, E8 // 1_000),
    (E8 // 100, E8 // 10_000),
    (E8 // 1_000, E8 // 100_000),
    (E8 // 10_000, E8 // 1_000_000),
    (E8 // 100_000, E8 // 10_000_000),
    (0, 1),
)
_USDT_BANDS: Final = (
    (10 * E8, E8 // 100),
    (E8, E8 // 1_000),
    (E8 // 10, E8 // 10_000),
    (E8 // 100, E8 // 100_000),
    (E8 // 1_000, E8 // 1_000_000),
    (E8 // 10_000, E8 // 10_000_000),
    (0, 1),
)
_BANDS: Final[dict[str, tuple[tuple[int, int], ...]]] = {"KRW": _KRW_BANDS, "USDT": _USDT_BANDS, "BTC": ((0, 1),)}


class Ticks:
    """The price grid of one quote currency: the next legal price above or below. Remembers the band it is in."""

    __slots__ = ("_bands", "_high", "_low", "_tick")

    def __init__(self, quote: str) -> None:
        self._bands = _BANDS[quote]
        self._low = self._high = self._tick = 0

    def tick(self, price_e8: int) -> int:
        """The tick size at `price_e8` (> 0)."""
        if self._low <= price_e8 < self._high:
            return self._tick
        high = 1 << 80
        for low, tick in self._bands:
            if price_e8 >= low:
                self._low, self._high, self._tick = low, high, tick
                return tick
            high = low
        raise ValueError(f"a price is positive, not {price_e8}")

    def up(self, price_e8: int) -> int:
        """The next legal price above."""
        return price_e8 + self.tick(price_e8)

    def down(self, price_e8: int) -> int:
        """The next legal price below; 0 where there is none."""
        return price_e8 - self.tick(price_e8 - 1) if price_e8 > 1 else 0


def spec_of(code: str, *, where: str = "") -> MarketSpec:
    """The market called `code`. Raises UnknownNameError with the near spelling."""
    spec = CATALOGUE.get(code)
    if spec is None:
        raise UnknownNameError("market", code, CATALOGUE, where=where)
    return spec


def resolve_markets(patterns: Sequence[str]) -> tuple[str, ...]:
    """Market codes for exact codes, `all` and patterns such as `KRW-*`, without repeats, in the order asked.

    Raises UnknownNameError for a code that is not in the catalogue and for a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        for code in _matching(pattern):
            found[code] = None
    return tuple(found)


def _matching(pattern: str) -> Iterable[str]:
    if pattern == "all":
        return CATALOGUE
    if not any(mark in pattern for mark in "*?["):
        return (spec_of(pattern).code,)
    codes = [code for code in CATALOGUE if fnmatchcase(code, pattern)]
    if not codes:
        raise UnknownNameError("market", pattern, CATALOGUE)
    return codes
