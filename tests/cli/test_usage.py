"""Requests that cannot be: exit 2, what is wrong, what was meant; nothing is opened, created or connected to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import Done
from tests.replay.making import make, trades


@pytest.mark.parametrize("verb", ["live", "capture"])
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--exchange", "upbitt"), ["unknown exchange 'upbitt'", "did you mean 'upbit'?"]),
        (("--channel", "trades"), ["unknown channel 'trades'", "did you mean 'trade'?", "known: orderbook, ticker"]),
        (("--channel", "trade,orderbok"), ["unknown channel 'orderbok'", "did you mean 'orderbook'?"]),
        (("--market", "BTC-KRW"), ["unknown market 'BTC-KRW'", "did you mean 'KRW-BTC'?"]),
        (("--market", "krw-btc"), ["unknown market 'krw-btc'", "did you mean 'KRW-BTC'?"]),
        (("--market", "BTCKRW"), ["unknown market", "did you mean 'KRW-BTC'?"]),
        (("--market", "KRW-*"), ["KRW-*", "--market KRW-BTC"]),
        (("--format", "SIMPEL"), ["unknown format 'SIMPEL'", "did you mean 'SIMPLE'?"]),
        (("--depth", "7"), ["unknown depth '7'", "30"]),
        (("--url", "ws://127.0.0.1:1"), ["--url", "key=value"]),
        (("--url", "upbitt=ws://127.0.0.1:1"), ["unknown exchange 'upbitt'", "did you mean 'upbit'?"]),
        (("--url", "upbit=http://127.0.0.1:1"), ["http://127.0.0.1:1", "ws://"]),
        (("--url", "upbit=ws://me:hunter2@127.0.0.1:1/ws"), ["the URL of 127.0.0.1:1", "password", "before the @"]),
        (("--connections", "0"), ["connections", "1 to 8"]),
        (("--connections", "9"), ["connections", "1 to 8"]),
        (("--shard", "4/3"), ["shard", "'4/3'", "1/3"]),
        (("--shard", "1"), ["shard", "'1'", "1/3"]),
        (("--shard", "2/4"), ["none of the 5 markets falls into shard 2/4", "upbit"]),
        (("--market", "KRW-BTC", "--shard", "1/2000"), ["none of the 1 markets", "fewer shards"]),
        (("--duration", "soon"), ["duration", "'soon'", "30s"]),
        (("--flush", "4MiB"), ["flush", "'4MiB'", "250ms"]),
        (("--max-size", "big"), ["max-size", "'big'", "64MiB"]),
        (("--max-age", "1y"), ["max-age", "'1y'"]),
        (("--config", "missing.toml"), ["missing.toml", "cannot be read"]),
    ],
)
def test_wrong_names_and_values(
    verb: str, args: tuple[str, ...], said: list[str], kcs: Callable[..., Done], tmp_path: Path
) -> None:
    done = kcs(verb, *args)
    assert done.code == 2
    assert done.out == b""
    for text in said:
        assert text in done.err, done.err
    assert "hunter2" not in done.err
    assert os.listdir(tmp_path) == [], "nothing may be created for a request that is refused"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-b", "nowhere:99999"), ["'nowhere:99999' is not a broker address", "HOST:PORT"]),
        (("-b", "127.0.0.1:1", "-X", "acks=0"), ["acks"]),
        (("-b", "127.0.0.1:1", "-X", "lingerms=5"), ["unknown property 'lingerms'", "did you mean 'linger.ms'?"]),
        (("-b", "127.0.0.1:1", "-X", "nonsense"), ["-X", "key=value"]),
        (("-b", "127.0.0.1:1", "--topic", "all"), ["{channel}"]),
        (("-b", "127.0.0.1:1", "--topic", "{channel}.{market}"), ["{market}"]),
        (("-b", "127.0.0.1:1", "--partitions", "0"), ["at least 1 partition"]),
    ],
)
def test_wrong_kafka_settings(args: tuple[str, ...], said: list[str], kcs: Callable[..., Done], tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3))
    for verb in (("live",), ("replay", path)):
        done = kcs(*verb, *args)
        assert (done.code, done.out) == (2, b""), done.err
        for text in said:
            assert text in done.err, done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--sink", "kafak"), ["unknown sink 'kafak'", "did you mean 'kafka'?"]),
        (("--speed", "fast"), ["bad speed 'fast'", "--speed max"]),
        (("--speed", "0"), ["bad speed"]),
        (("--from", "yesterday"), ["--from", "'yesterday' is not a time"]),
        (("--to", "2026-02-31"), ["--to", "not a time"]),
        (("--to", "2026-13-01"), ["--to", "not a time"]),
        (("--from", "+soon"), ["--from", "'soon' is not a duration"]),
        (("--loop", "0"), ["--loop"]),
    ],
)
def test_wrong_replay_options(args: tuple[str, ...], said: list[str], kcs: Callable[..., Done], tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3))
    done = kcs("replay", path, "--sink", "null", *args)
    assert (done.code, done.out) == (2, b"")
    for text in said:
        assert text in done.err, done.err


def test_settings_from_file_and_environment_are_checked_too(
    kcs: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kcs.toml").write_text('exchnage = ["upbit"]\n')
    done = kcs("capture")
    assert done.code == 2
    assert "unknown configuration key 'exchnage'" in done.err
    assert "did you mean 'exchange'?" in done.err
    assert "kcs.toml" in done.err
    (tmp_path / "kcs.toml").write_text('channel = ["nothing"]\n')
    assert "unknown channel 'nothing'" in kcs("capture").err
    (tmp_path / "kcs.toml").unlink()
    monkeypatch.setenv("KCS_MARKTE", "KRW-BTC")
    assert "did you mean 'market'?" in kcs("capture").err
    monkeypatch.delenv("KCS_MARKTE")
    monkeypatch.setenv("KCS_CHANNEL", "trade,nothing")
    assert "unknown channel 'nothing'" in kcs("capture").err
    done = kcs("capture", "--channel", "ticcker")
    assert "unknown channel 'ticcker'" in done.err, "a flag wins over the environment"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--exchange", "upbitt"), "did you mean 'upbit'?"),
        (("--market", "KRW-BTCC"), "did you mean 'KRW-BTC'?"),
        (("--channel", "tickr"), "did you mean 'ticker'?"),
        (("--faults", "junc=1"), "did you mean 'junk'?"),
        (("--faults", "junk=often"), "junk"),
        (("--faults", "stall_s=2"), "stall=2s@every:30s"),
        (("--rate", "0"), "rate"),
        (("--epoch", "later"), "--epoch"),
        (("--out", "a.zst"), "--duration"),
        (("--port", "70000"), "port"),
    ],
)
def test_wrong_simulations(args: tuple[str, ...], said: str, kcs: Callable[..., Done]) -> None:
    done = kcs("sim", *args)
    assert (done.code, done.out) == (2, b"")
    assert said in done.err


def test_a_port_that_is_taken(kcs: Callable[..., Done], sim_url: str) -> None:
    port = sim_url.split(":")[2].split("/")[0]
    done = kcs("sim", "--port", port)
    assert done.code == 2
    assert f"127.0.0.1:{port}" in done.err
