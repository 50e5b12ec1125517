"""Errors name what, where and the remedy."""

from __future__ import annotations

from kcs.errors import CaptureError, KcsError, UnknownNameError, UsageError


def test_text_holds_what_where_and_remedy() -> None:
    assert (
        str(CaptureError("bad", where="x.zst: offset 12", remedy="kcs recover"))
        == "x.zst: offset 12: bad\n  try: kcs recover"
    )


def test_an_unknown_name_suggests_the_near_one() -> None:
    error = UnknownNameError("exchange", "upbitt", ["upbit", "bithumb"])
    assert error.suggestion == "upbit"
    assert "did you mean 'upbit'?" in str(error)
    assert UnknownNameError("market", "krw-btc", ["KRW-BTC"]).suggestion == "KRW-BTC"
    assert UnknownNameError("exchange", "zzz", ["upbit"]).suggestion is None


def test_usage_errors_exit_with_two_and_the_rest_with_one() -> None:
    assert (UsageError("x").exit_code, KcsError("x").exit_code) == (2, 1)
