"""How the simulated venue spells numbers and times: text from integers, never through a float. Imports nothing of kcs.

Prices and sizes are integers in units of 1e-8 (`E8`). The venue's own spellings, seen on the wire, differ by field:

    fixed8      115304000.00000000, 0.00142000     a decimal of scale 8, zeros kept (previous close, accumulated sums)
    sized       0.00142000, but 7.7E-7 and 6E-8    the same, exponent below 1e-6 as Java's BigDecimal prints it
    double      1.16538E8, 127.0, 1.657E-5         as Java prints a double: exponent from 1e7 and below 1e-3
    plain       116538000, 0.00001657              no exponent, zeros dropped
    small       30.0, 0.02054761, 7.9276E-4        plain, but exponent below 1e-3

All functions are pure; negative input only where said.
"""

from __future__ import annotations

from typing import Final

E8: Final = 100_000_000
_MS_PER_DAY: Final = 86_400_000


def fixed8(value: int) -> str:
    """`value` with exactly eight decimals; may be negative."""
    if value < 0:
        return f"-{fixed8(-value)}"
    return f"{value // E8}.{value % E8:08d}"


def plain(value: int) -> str:
    """`value` without exponent and without trailing zeros; whole numbers without a point; may be negative."""
    whole, rest = divmod(abs(value), E8)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{rest:08d}".rstrip("0") if rest else f"{sign}{whole}"


def pointed(value: int) -> str:
    """Like `plain`, but whole numbers end in `.0`."""
    return plain(value) if value % E8 else f"{value // E8}.0"


def _exponent(value: int, *, pad: bool) -> str:
    digits = str(value)
    power = len(digits) - 9
    mantissa = digits.rstrip("0")
    tail = mantissa[1:] or ("0" if pad else "")
    return f"{mantissa[0]}.{tail}E{power}" if tail else f"{mantissa[0]}E{power}"


def double(value: int) -> str:
    """As Java's Double.toString: plain from 1e-3 up to 1e7, else with exponent."""
    if 100_000 <= value < 1_000_000_000_000_000 or value == 0:
        return pointed(value)
    return _exponent(value, pad=True)


def sized(value: int) -> str:
    """As Java's BigDecimal.toString at scale 8: zeros kept, exponent below 1e-6 (`6E-8`, `7.7E-7`, `6.0E-7`)."""
    if value >= 100:
        return f"{value // E8}.{value % E8:08d}"
    if value == 0:
        return "0.0"
    return f"{value}E-8" if value < 10 else f"{value // 10}.{value % 10}E-7"


def small(value: int) -> str:
    """Plain with at least one decimal, exponent below 1e-3."""
    if value >= 100_000 or value == 0:
        return pointed(value)
    return _exponent(value, pad=False)


def rate10(numerator: int, denominator: int) -> str:
    """numerator / denominator rounded half up to ten decimals; the numerator may be negative."""
    sign = "-" if numerator < 0 else ""
    scaled = (abs(numerator) * 20_000_000_000 + denominator) // (2 * denominator)
    return f"{sign}{scaled // 10_000_000_000}.{scaled % 10_000_000_000:010d}"


def civil(ms: int) -> tuple[int, int, int]:
    """(year, month, day) in UTC of Unix milliseconds, by integer arithmetic (proleptic Gregorian)."""
    shifted = ms // _MS_PER_DAY + 719_468
    era, day_of_era = divmod(shifted, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_index = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_index + 2) // 5 + 1
    month = month_index + 3 if month_index < 10 else month_index - 9
    return year_of_era + era * 400 + (1 if month <= 2 else 0), month, day


def date_dashed(ms: int) -> str:
    """`2026-01-31`, UTC."""
    year, month, day = civil(ms)
    return f"{year:04d}-{month:02d}-{day:02d}"


def time_coloned(ms: int) -> str:
    """`23:59:59`, UTC."""
    second = ms // 1000 % 86_400
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
