"""Number and time texts: the spellings seen on the wire, and exactness for any value."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.sim import spelling

E8 = spelling.E8


@pytest.mark.parametrize(
    ("spell", "value", "text"),
    [
        (spelling.fixed8, 115_304_000 * E8, "115304000.00000000"),
        (spelling.fixed8, 142_000, "0.00142000"),
        (spelling.fixed8, -3 * E8 - 1, "-3.00000001"),
        (spelling.fixed8, 0, "0.00000000"),
        (spelling.plain, 116_538_000 * E8, "116538000"),
        (spelling.plain, 1_657, "0.00001657"),
        (spelling.plain, 1_700, "0.000017"),
        (spelling.plain, -150_000_000, "-1.5"),
        (spelling.plain, 0, "0"),
        (spelling.pointed, 30 * E8, "30.0"),
        (spelling.double, 116_539_000 * E8, "1.16539E8"),
        (spelling.double, 100_000_000 * E8, "1.0E8"),
        (spelling.double, 10_000_000 * E8, "1.0E7"),
        (spelling.double, 9_999_999 * E8, "9999999.0"),
        (spelling.double, 127 * E8, "127.0"),
        (spelling.double, 100_000, "0.001"),
        (spelling.double, 99_999, "9.9999E-4"),
        (spelling.double, 1_657, "1.657E-5"),
        (spelling.double, 0, "0.0"),
        (spelling.sized, 142_000, "0.00142000"),
        (spelling.sized, 100, "0.00000100"),
        (spelling.sized, 77, "7.7E-7"),
        (spelling.sized, 60, "6.0E-7"),
        (spelling.sized, 6, "6E-8"),
        (spelling.small, 79_276, "7.9276E-4"),
        (spelling.small, 6, "6E-8"),
        (spelling.small, 99, "9.9E-7"),
        (spelling.small, 2_054_761, "0.02054761"),
        (spelling.small, 30 * E8, "30.0"),
        (spelling.small, 25_752_275 * E8 + 55_420_627, "25752275.55420627"),
    ],
)
def test_spellings_of_the_wire(spell: Callable[[int], str], value: int, text: str) -> None:
    assert spell(value) == text


@given(st.integers(0, 10**18))
@settings(max_examples=300)
def test_every_spelling_is_exact_and_valid_json(value: int) -> None:
    for spell in (
        spelling.fixed8, spelling.plain, spelling.pointed, spelling.double, spelling.sized, spelling.small,
    ):  # fmt: skip
        text = spell(value)
        assert Decimal(text) * E8 == value
        assert re.fullmatch(r"(0|[1-9]\d*)(\.\d+)?(E-?\d+)?", text)


@given(st.integers(1, 10**12))
@settings(max_examples=200)
def test_double_keeps_the_digits_of_the_shortest_float(value: int) -> None:
    # Java prints the shortest digits that give the same double, as repr does; only the layout differs.
    assert float(spelling.double(value)) == value / E8
    digits = spelling.double(value).split("E")[0].replace(".", "").strip("0")
    assert digits == repr(value / E8).split("e")[0].replace(".", "").strip("0")


def test_rates_are_rounded_half_up_at_ten_decimals() -> None:
    assert spelling.rate10(1_234_000, 115_304_000) == "0.0107021439"
    assert spelling.rate10(-1, 3) == "-0.3333333333"
    assert spelling.rate10(2, 3) == "0.6666666667"
    assert spelling.rate10(1, 20_000_000_000) == "0.0000000001"
    assert spelling.rate10(0, 5) == "0.0000000000"


@given(st.integers(0, 4_102_444_800_000))
@settings(max_examples=200)
def test_dates_and_times_are_those_of_the_calendar(ms: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert spelling.date_dashed(ms) == f"{moment:%Y-%m-%d}"
    assert spelling.time_coloned(ms) == f"{moment:%H:%M:%S}"


def test_leap_days() -> None:
    assert spelling.civil(1_709_164_800_000) == (2024, 2, 29)
    assert spelling.civil(951_782_400_000) == (2000, 2, 29)
    assert spelling.civil(1_709_251_199_999) == (2024, 2, 29)
