"""What becomes of a configuration before a run begins: which exchange gets which markets, and what the header says."""

from __future__ import annotations

import pytest

from kcs.cli.collecting import _jobs
from kcs.config import Config
from kcs.errors import UsageError
from kcs.exchanges import VENUES
from kcs.live.shard import shard_of
from tests.live.support import make_venue


@pytest.fixture(autouse=True)
def _two_venues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VENUES, "testex", make_venue(formats=("DEFAULT",)))


def jobs(**settings: object) -> dict[str, tuple[str, ...]]:
    config = Config(exchange=("upbit", "testex"), channel=("trade",), **settings)  # type: ignore[arg-type]
    return {place.name: chosen.subscriptions[0].markets for place, chosen in _jobs(config)}


def test_each_exchange_gets_its_share() -> None:
    shares = [jobs(shard=f"{number}/2") for number in (1, 2)]
    for name in ("upbit", "testex"):
        taken = [market for one in shares for market in one[name]]
        assert sorted(taken) == sorted(VENUES[name].default_markets)
    assert shares[0]["upbit"] == ("KRW-BTC", "KRW-XRP", "KRW-DOGE")


def test_an_exchange_without_a_market_in_this_shard_is_left_to_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs(shard="3/4") == {"upbit": ("KRW-XRP", "KRW-DOGE")}
    assert "testex: no market falls into shard 3/4" in capsys.readouterr().err


def test_a_shard_without_any_market_is_an_error() -> None:
    with pytest.raises(UsageError, match="none of the 7 markets falls into shard 2/4"):
        jobs(shard="2/4")


def test_named_markets_are_shared_and_stand_in_the_settings_with_the_shard() -> None:
    markets = tuple(f"KRW-A{letter}" for letter in "BCDEFGHIJK")
    ((_, chosen),) = _jobs(Config(market=markets, shard="2/3", connections=2))
    assert chosen.subscriptions[0].markets == tuple(market for market in markets if shard_of(market, 3) == 2)
    assert chosen.options == {"shard": "2/3"}
    assert chosen.connections == 2


def test_without_a_shard_all_is_ours_and_nothing_is_said() -> None:
    ((_, chosen),) = _jobs(Config())
    assert chosen.subscriptions[0].markets == VENUES["upbit"].default_markets
    assert (chosen.options, chosen.connections) == ({}, 1)
