"""The one frozen, typed configuration: flags > `KCS_*` environment > kcs.toml > defaults. Unknown keys are errors.

    bootstrap = "kafka-1:9092,kafka-2:9092"     # kcs.toml; the same as KCS_BOOTSTRAP=... and --bootstrap ...
    market = ["KRW-BTC", "KRW-ETH"]             # lists: comma separated in the environment
    [kafka]                                     # one variable a property: KCS_KAFKA_SASL_USERNAME=... is the same
    "sasl.username" = "kcs"

Of tables (`kafka`, `url`) each entry is a setting of its own: a password in the environment goes with a user name in
the file. No error text repeats a value that may be a password.

Also the home of the units: durations (`250ms`), sizes (`64MiB`) and times (RFC 3339 or `+30s`). Raises ConfigError for
anything that does not fit. Read by the command line only.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_origin

import msgspec

from kcs.errors import ConfigError, UnknownNameError

ENV_PREFIX: Final = "KCS_"
CONFIG_FILE: Final = "kcs.toml"
CONFIG_BYTES_MAX: Final = 1 << 20

_DURATION_NS: Final = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_SIZE_BYTES: Final = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
    "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "": 1,
}  # fmt: skip
_QUANTITY: Final = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)")
"""Twenty digits hold every size and time; Python refuses to read numbers of thousands of digits."""

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?(Z|[+-]\d\d:\d\d)?"
)

_SHARD: Final = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=lambda name: name.replace("_", "-")):
    """Every setting of a run. Durations and sizes are kept as the user wrote them and read by the properties below."""

    exchange: tuple[str, ...] = ("upbit",)
    channel: tuple[str, ...] = ("trade", "orderbook", "ticker")
    market: tuple[str, ...] = ()
    connections: int = 1
    shard: str | None = None
    url: dict[str, str] = {}
    format: str = ""
    depth: int | None = None
    bootstrap: str | None = None
    topic: str | None = None
    partitions: int = 1
    replication: int | None = None
    headers: bool = True
    kafka: dict[str, str] = {}
    capture: str = "captures"
    flush: str = "250ms"
    max_size: str = "1GiB"
    max_age: str = "1h"
    fsync: bool = False
    drain: str = "10s"
    settle: str = "5s"
    duration: str | None = None

    def __repr__(self) -> str:
        """Without the values of `kafka` and `url`, where a password may stand."""
        shown = [f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in ("kafka", "url")]
        return f"Config({', '.join(shown)}, kafka: {sorted(self.kafka)}, url: {sorted(self.url)})"

    @property
    def shard_of(self) -> tuple[int, int] | None:
        """(number from 1, how many), or None where all is this process's. Raises ConfigError."""
        if self.shard is None:
            return None
        match = _SHARD.fullmatch(self.shard)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"{self.shard!r} is no shard", where="shard", remedy="1/3, 2/3 and 3/3 are three of them")
        return int(match[1]), int(match[2])

    @property
    def flush_ns(self) -> int:
        return parse_duration_ns(self.flush, "flush")

    @property
    def max_size_bytes(self) -> int:
        return parse_size_bytes(self.max_size, "max-size")

    @property
    def max_age_ns(self) -> int:
        return parse_duration_ns(self.max_age, "max-age")

    @property
    def settle_s(self) -> float:
        return parse_duration_ns(self.settle, "settle") / 1e9

    @property
    def drain_s(self) -> float:
        return parse_duration_ns(self.drain, "drain") / 1e9

    @property
    def duration_s(self) -> float | None:
        return None if self.duration is None else parse_duration_ns(self.duration, "duration") / 1e9


def _wire_name(field: str) -> str:
    return field.replace("_", "-")


_FIELDS: Final[dict[str, Any]] = {field.encode_name: field.type for field in msgspec.structs.fields(Config)}


def load(flags: Mapping[str, Any], environ: Mapping[str, str], path: Path | None = None) -> Config:
    """Merge the layers; a flag that is None or empty was not given.

    `path` None reads ./kcs.toml where it exists; a path that was asked for must exist. Raises ConfigError.
    """
    merged: dict[str, Any] = {}
    for origin, layer in (
        (str(path or CONFIG_FILE), _from_file(path)),
        ("environment", _from_environ(environ)),
        ("command line", {_wire_name(k): v for k, v in flags.items() if v is not None and v != [] and v != ()}),
    ):
        for key in layer:
            if key not in _FIELDS:
                raise UnknownNameError("configuration key", key, _FIELDS, where=origin)
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
        try:
            config = msgspec.convert(merged, Config)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"bad value: {error}", where=origin, remedy="kcs live --help lists the settings"
            ) from None
    return config


def _from_file(path: Path | None) -> dict[str, Any]:
    source = path or Path(CONFIG_FILE)
    if path is None and not source.is_file():
        return {}
    try:
        with source.open("rb") as stream:
            text = stream.read(CONFIG_BYTES_MAX + 1)  # a device has no size to look at
        if len(text) > CONFIG_BYTES_MAX:
            raise ConfigError(f"larger than {CONFIG_BYTES_MAX} bytes", where=str(source))
        data = msgspec.toml.decode(text, type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(source), remedy="check --config") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(source)) from None
    return {_wire_name(key): value for key, value in data.items()}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name == "KCS_CONFIG":
            continue
        key = name[len(ENV_PREFIX) :].lower().replace("_", "-")
        if key.startswith("kafka-"):
            layer.setdefault("kafka", {})[key.removeprefix("kafka-").replace("-", ".")] = text
            continue
        kind = _FIELDS.get(key, str)
        if get_origin(kind) is tuple:
            layer[key] = split_names([text])
        elif get_origin(kind) is dict:
            layer.setdefault(key, {}).update(parse_pairs([text], name))
        else:
            try:
                layer[key] = msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError as error:
                raise ConfigError(f"bad value: {error}", where=name) from None
            except UnicodeEncodeError:
                raise ConfigError("bad value: it is not UTF-8", where=name) from None
    return layer


def split_names(values: list[str]) -> list[str]:
    """`["a,b", "c"]` -> `["a", "b", "c"]`, order kept, repeats dropped."""
    names = (name.strip() for value in values for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def parse_pairs(values: list[str], where: str) -> dict[str, str]:
    """`["key=value", ...]` -> dict. Raises ConfigError, which does not repeat a value: it may be a password."""
    pairs: dict[str, str] = {}
    for at, value in enumerate(values, 1):
        key, mark, content = value.partition("=")
        if not mark or not key.strip():
            which = f"number {at} of the {len(values)} given" if len(values) > 1 else "what is given"
            raise ConfigError(f"{which} is not key=value", where=where)
        pairs[key.strip()] = content
    return pairs


def parse_duration_ns(text: str, where: str) -> int:
    """`250ms`, `30s`, `1.5h` -> ns. Raises ConfigError."""
    return _quantity(text, _DURATION_NS, where, "a duration such as 250ms, 30s, 10m, 1h")


def parse_size_bytes(text: str, where: str) -> int:
    """`64MiB`, `1GB`, `4096` -> bytes. Raises ConfigError."""
    return _quantity(text, _SIZE_BYTES, where, "a size such as 64MiB, 1GB")


def _quantity(text: str, units: Mapping[str, int], where: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        raise ConfigError(f"{text!r} is not {example}", where=where)
    whole, _, fraction = match[1].partition(".")
    unit = units[match[2]]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def parse_time_ns(text: str, where: str, origin_ns: int | None) -> int:
    """RFC 3339 (UTC unless it says otherwise) or `+30s` after `origin_ns` -> Unix ns. Raises ConfigError."""
    if text.startswith("+"):
        if origin_ns is None:
            raise ConfigError("a relative time needs a capture with records", where=where)
        return origin_ns + parse_duration_ns(text[1:], where)
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is not a time", where=where, remedy="2026-11-24T01:02:03.5Z, or +30s from the start"
        )
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    if not (
        1 <= month <= 12
        and 1 <= day <= calendar.monthrange(max(year, 1), month)[1]
        and hour < 24
        and minute < 60
        and second < 61
        and year >= 1970
    ):
        raise ConfigError(f"{text!r} is not a time", where=where)
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    zone = match[8]
    if zone and zone != "Z":
        offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 10**9 + int((match[7] or "").ljust(9, "0"))


def format_time(ns: int | None) -> str:
    """RFC 3339 UTC with milliseconds, for people."""
    if ns is None:
        return "-"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns // 10**6 % 1000:03d}Z"
