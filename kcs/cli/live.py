"""`kcs live` and `kcs capture`: collect from exchanges, capture every raw frame, and (live) produce to Kafka."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.terminal import put_json, say, table
from kcs.config import Config, load, parse_pairs, split_names

Exchange = Annotated[list[str] | None, typer.Option("--exchange", help="Repeatable or comma separated. [upbit]")]
Channel = Annotated[list[str] | None, typer.Option("--channel", help="trade, orderbook, ticker. [all three]")]
Market = Annotated[list[str] | None, typer.Option("--market", help="As the venue spells it: KRW-BTC. [the busiest]")]
Connections = Annotated[
    int | None, typer.Option("--connections", help="Sockets for the same subscription, de-duplicated. [1]")
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Take the I-th of N shares of the markets. [all of them]")
]
Url = Annotated[list[str] | None, typer.Option("--url", metavar="EXCHANGE=URL", help="Point a venue elsewhere.")]
Directory = Annotated[Path | None, typer.Option("--capture", metavar="DIR", help="Directory of captures. [captures]")]
Format = Annotated[str | None, typer.Option("--format", help="Wire format of the venue. [the venue's default]")]
Depth = Annotated[int | None, typer.Option("--depth", help="Order book levels to ask for. [the venue's default]")]
Duration = Annotated[str | None, typer.Option("--duration", help="Stop after this time (30s, 10m). [never]")]
Flush = Annotated[str | None, typer.Option("--flush", help="A kill -9 costs at most this much of data. [250ms]")]
MaxSize = Annotated[str | None, typer.Option("--max-size", help="Begin a new file at this size. [1GiB]")]
MaxAge = Annotated[str | None, typer.Option("--max-age", help="Begin a new file at this age. [1h]")]
Fsync = Annotated[bool, typer.Option("--fsync", help="fsync each flush: a power cut costs no more than a kill.")]
Drain = Annotated[str | None, typer.Option("--drain", help="How long to wait for acks when stopping. [10s]")]
Settle = Annotated[
    str | None, typer.Option("--settle", help="After a crash: how long a dead run's records may take to surface. [5s]")
]
FailOnGaps = Annotated[bool, typer.Option("--fail-on-gaps", help="Gaps of the venue make exit code 3.")]


def live(
    exchange: Exchange = None,
    channel: Channel = None,
    market: Market = None,
    connections: Connections = None,
    shard: Shard = None,
    bootstrap: options.Bootstrap = None,
    capture: Directory = None,
    url: Url = None,
    format_: Format = None,
    depth: Depth = None,
    duration: Duration = None,
    topic: options.Topic = None,
    partitions: options.Partitions = None,
    replication: options.Replication = None,
    x: options.Property = None,
    no_headers: options.NoHeaders = False,
    flush: Flush = None,
    max_size: MaxSize = None,
    max_age: MaxAge = None,
    fsync: Fsync = False,
    drain: Drain = None,
    settle: Settle = None,
    fail_on_gaps: FailOnGaps = False,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Collect, capture, produce. Every raw frame goes to a capture file first, then through the parser into Kafka.

    Ctrl-C stops reading, flushes, seals the capture and prints the ledger. Bare `kcs live` takes the busiest markets of
    Upbit and the embedded broker.
    """
    settings = _settings(locals())
    return _run("live", "kafka", settings, fail_on_gaps=fail_on_gaps, json=json, quiet=quiet)


def capture(
    exchange: Exchange = None,
    channel: Channel = None,
    market: Market = None,
    connections: Connections = None,
    shard: Shard = None,
    capture: Directory = None,
    url: Url = None,
    format_: Format = None,
    depth: Depth = None,
    duration: Duration = None,
    flush: Flush = None,
    max_size: MaxSize = None,
    max_age: MaxAge = None,
    fsync: Fsync = False,
    fail_on_gaps: FailOnGaps = False,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Collect and capture only. The frames are parsed as well, so that the ledger and the digest are those of live."""
    settings = _settings(locals())
    return _run("capture", "null", settings, fail_on_gaps=fail_on_gaps, json=json, quiet=quiet)


def _settings(flags: Mapping[str, Any]) -> Config:
    """The configuration from a verb's parameters by name; None or empty means that the flag was not given."""
    plain = (
        "bootstrap",
        "connections",
        "shard",
        "depth",
        "duration",
        "topic",
        "partitions",
        "replication",
        "flush",
        "max_size",
        "max_age",
        "drain",
        "settle",
    )
    layer = {name: flags.get(name) for name in plain}
    layer |= {name: split_names(flags[name] or []) for name in ("exchange", "channel", "market")}
    layer |= {
        "capture": None if flags["capture"] is None else str(flags["capture"]),
        "url": parse_pairs(flags["url"], "--url") if flags["url"] else None,
        "kafka": parse_pairs(flags["x"], "-X") if flags.get("x") else None,
        "format": flags["format_"],
        "fsync": flags["fsync"] or None,
        "headers": False if flags.get("no_headers") else None,
    }
    return load(layer, os.environ, flags["config"])


def _run(verb: str, sink: str, settings: Config, *, fail_on_gaps: bool, json: bool, quiet: bool) -> int:
    from kcs.cli.collecting import collect
    from kcs.cli.running import run_async

    if not quiet:
        say(f"kcs {verb}: {_described(settings, sink)}")
    report: Any = run_async(lambda: collect(verb, sink, settings, quiet=quiet or json))
    if json:
        put_json(report.as_json())
    elif not quiet:
        table(report.lines(), title=f"kcs {verb}")
    return int(report.exit_code(fail_on_gaps=fail_on_gaps))


def _described(settings: Config, sink: str) -> str:
    markets = ", ".join(settings.market) or "the busiest markets"
    target = "" if sink == "null" else f" -> {settings.bootstrap or 'embedded broker'}"
    channels = ", ".join(settings.channel)
    part = "" if settings.shard is None else f", shard {settings.shard},"
    return f"{', '.join(settings.exchange)}: {channels} of {markets}{part} -> {settings.capture}/{target}"
