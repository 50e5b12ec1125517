"""Layers, units and errors of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcs.config import (
    Config,
    format_time,
    load,
    parse_duration_ns,
    parse_pairs,
    parse_size_bytes,
    parse_time_ns,
    split_names,
)
from kcs.errors import ConfigError, UnknownNameError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "kcs.toml").write_text('bootstrap = "file:1"\ncapture = "from-file"\nmax-size = "2MiB"\n')
    config = load(
        {"bootstrap": "flag:1", "capture": None}, {"KCS_BOOTSTRAP": "env:1", "KCS_CAPTURE": "from-env", "HOME": "/"}
    )
    assert (config.bootstrap, config.capture, config.max_size_bytes) == ("flag:1", "from-env", 2 << 20)


def test_defaults_without_any_layer() -> None:
    assert load({}, {}) == Config()
    assert Config().flush_ns == 250_000_000


def test_lists_tables_numbers_and_switches_from_the_environment() -> None:
    environ = {
        "KCS_MARKET": "KRW-BTC,KRW-ETH",
        "KCS_PARTITIONS": "3",
        "KCS_FSYNC": "true",
        "KCS_URL": "upbit=ws://x:1/",
    }
    config = load({}, environ)
    assert config.market == ("KRW-BTC", "KRW-ETH")
    assert (config.partitions, config.fsync, config.url) == (3, True, {"upbit": "ws://x:1/"})


@pytest.mark.parametrize(
    ("file", "environ"), [('bootstraps = "x"', {}), ("", {"KCS_BOOTSTRAPS": "x"})], ids=["file", "environment"]
)
def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path: Path, file: str, environ: dict[str, str]) -> None:
    (tmp_path / "kcs.toml").write_text(file)
    with pytest.raises(UnknownNameError, match="did you mean 'bootstrap'"):
        load({}, environ)


@pytest.mark.parametrize("name", ["KCS_PARTITIONS", "KCS_FSYNC", "KCS_DEPTH"])
@pytest.mark.parametrize("text", ["three", "3\udcff", ""])
def test_a_bad_value_in_the_environment_is_an_error_that_names_it(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load({}, {name: text})


@pytest.mark.parametrize("file", ['partitions = "three"', "market = 5", "[broken"])
def test_a_bad_value_is_an_error_that_names_the_file(tmp_path: Path, file: str) -> None:
    (tmp_path / "kcs.toml").write_text(file)
    with pytest.raises(ConfigError, match=r"kcs\.toml"):
        load({}, {})


def test_a_configuration_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, {}, tmp_path / "none.toml")


def test_a_configuration_that_does_not_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        load({}, {}, Path("/dev/zero"))


def test_toml_nested_too_deep_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kcs.toml").write_text("market = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load({}, {})


@pytest.mark.parametrize(
    ("text", "ns"), [("250ms", 250_000_000), ("1.5h", 5_400_000_000_000), ("0.000000001s", 1), ("10m", 600 * 10**9)]
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration_ns(text, "x") == ns


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("1.5GB", 1_500_000_000), ("4096", 4096), ("10 k", 10240)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text, "x") == size


@pytest.mark.parametrize("text", ["", "ms", "-1s", "5 parsecs", "1e3s", "5", "9" * 5000 + "s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="flush"):
        parse_duration_ns(text, "flush")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("2026-11-24T09:00:00+09:00", 1_795_478_400_000_000_000),
        ("2026-11-24T00:00:00.000000001Z", 1_795_478_400_000_000_001),
        ("2026-11-24", 1_795_478_400_000_000_000),
        ("+1.5s", 1_500_000_100),
    ],
)
def test_times(text: str, ns: int) -> None:
    assert parse_time_ns(text, "from", 100) == ns


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-11-24T25:00:00Z", "+5", "1700000000"])
def test_bad_times(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_time_ns(text, "--from", 0)


def test_a_relative_time_needs_an_origin() -> None:
    with pytest.raises(ConfigError, match="relative"):
        parse_time_ns("+1s", "--from", None)


def test_times_are_shown_in_utc_with_milliseconds() -> None:
    assert format_time(1_795_478_400_123_999_999) == "2026-11-24T00:00:00.123Z"
    assert format_time(None) == "-"


def test_each_kafka_property_is_a_setting_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "kcs.toml").write_text('[kafka]\n"sasl.username" = "file"\n"client.id" = "file"\nacks = "all"\n')
    environ = {"KCS_KAFKA_SASL_PASSWORD": "a,b=c", "KCS_KAFKA_CLIENT_ID": "env", "KCS_KAFKA": "linger.ms=0"}
    config = load({"kafka": {"client.id": "flag"}}, environ)
    assert config.kafka == {
        "sasl.username": "file",
        "sasl.password": "a,b=c",
        "client.id": "flag",
        "linger.ms": "0",
        "acks": "all",
    }


def test_a_password_is_in_no_repr_and_no_error() -> None:
    config = load({}, {"KCS_KAFKA_SASL_PASSWORD": "hunter2", "KCS_URL": "upbit=ws://h/?token=hunter2"})
    assert config.kafka == {"sasl.password": "hunter2"}
    assert "hunter2" not in repr(config)
    assert "sasl.password" in repr(config)
    for wrong in (["sasl.password:hunter2"], ["hunter2"], ["=hunter2"], ["a=b", " =hunter2"]):
        with pytest.raises(ConfigError, match="not key=value") as error:
            parse_pairs(wrong, "-X")
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("2/3", (2, 3)), ("12/9999", (12, 9999)), (None, None)])
def test_shards(text: str | None, shard: tuple[int, int] | None) -> None:
    assert Config(shard=text).shard_of == shard


@pytest.mark.parametrize(
    "text",
    ["0/3", "4/3", "1/0", "1/10000", "01/3", "1/3 ", "+1/3", "-1/3", "1", "1/", "/3", "1/2/3", "a/b", "\u0661/3", ""],
)
def test_bad_shards(text: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        _ = Config(shard=text).shard_of


def test_connections_and_shard_from_every_layer(tmp_path: Path) -> None:
    (tmp_path / "kcs.toml").write_text('connections = 2\nshard = "1/3"\n')
    assert (load({}, {}).connections, load({}, {}).shard_of) == (2, (1, 3))
    config = load({"shard": "3/3"}, {"KCS_CONNECTIONS": "4", "KCS_SHARD": "2/3"})
    assert (config.connections, config.shard_of) == (4, (3, 3))


def test_names_and_pairs() -> None:
    assert split_names(["a, b", "c", "a"]) == ["a", "b", "c"]
    assert parse_pairs(["k=v=w"], "-X") == {"k": "v=w"}
    with pytest.raises(ConfigError, match="-X"):
        parse_pairs(["novalue"], "-X")
