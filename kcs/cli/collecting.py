"""One live run behind `kcs live`, `kcs capture` and `kcs demo`: collectors, their sinks, signals, the report.

Each exchange has a collector and a sink of its own; they share the loop, the clock and the latency histogram.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from random import SystemRandom

from kcs.capture.writer import WriterSettings
from kcs.cli.report import RunReport
from kcs.cli.running import allow_many_files, measured
from kcs.cli.sinks import LIVE_TOPIC, open_sink, warned
from kcs.cli.terminal import Bar, progress, say
from kcs.clock import NS_PER_S, Clock, SystemClock
from kcs.config import Config
from kcs.errors import ConfigError, UnknownNameError, UsageError
from kcs.exchanges import Subscription, Venue, unverifiable, venue
from kcs.live.collector import Collector, CollectorResult, CollectorSettings, Log, Prepare
from kcs.live.receipt import DeliveryInfo
from kcs.live.shard import share
from kcs.live.url import refuse_credentials
from kcs.sink import NullSink, Sink
from kcs.stats import GcReport, LatencyHistogram, Ledger

SHOW_EVERY_S = 0.25
CONNECTIONS_MAX = 8
"""Of one subscription: a third one already brings little, and venues count them."""
LAG_SHOWN_S = 1.0
"""Acks that take longer are shown."""
TELL_AFTER_NS = 10 * NS_PER_S
TELL_EVERY_NS = 60 * NS_PER_S
"""A lag that lasts is told in the log too."""


async def collect(verb: str, sink_kind: str, config: Config, *, quiet: bool = False) -> RunReport:
    """Run until the duration, a signal or a failure. Raises KcsError for what stops it from beginning."""
    allow_many_files()
    clock, latency = SystemClock(), LatencyHistogram()
    jobs = _jobs(config)
    warnings = warned(sink_kind, config, urls=[settings.url or place.url for place, settings in jobs])
    async with AsyncExitStack() as stack:
        collectors, sinks = [], []
        for place, settings in jobs:
            sink = await stack.enter_async_context(
                open_sink(
                    sink_kind,
                    config,
                    exchanges=[place.name],
                    clock=clock,
                    template=LIVE_TOPIC,
                    latency=latency,
                    channels=config.channel,
                    patient=True,
                )
            )
            collectors.append(await _collector(place, settings, sink, clock, config))
            sinks.append(sink)
        total = config.duration_s
        with _stopping(collectors), measured(clock) as meters, progress(verb, total, quiet=quiet) as bar:
            async with _shown(bar, collectors, sinks, clock):
                results = await _run_all(collectors)
    named = [(place.name, result) for (place, _), result in zip(jobs, results, strict=True)]
    undone = sum(getattr(sink, "went_back", 0) for sink in sinks)
    return _report(verb, sink_kind, named, meters.gc.report(), meters.loop.report_ms(), latency, warnings, undone)


def _jobs(config: Config) -> list[tuple[Venue, CollectorSettings]]:
    """Each exchange of which this shard has markets. Raises UsageError where it has none at all."""
    jobs = [(place, _settings(place, config)) for place in (venue(name) for name in config.exchange)]
    idle = [place.name for place, settings in jobs if not settings.subscriptions[0].markets]
    if len(idle) == len(jobs):
        counted = sum(len(config.market or place.default_markets) for place, _ in jobs)
        raise UsageError(
            f"none of the {counted} markets falls into shard {config.shard}",
            where=", ".join(idle),
            remedy="fewer shards, or more markets: this process would have nothing to do",
        )
    for name in idle:
        say(f"kcs: {name}: no market falls into shard {config.shard}: the other shards have them all")
    return [(place, settings) for place, settings in jobs if place.name not in idle]


def _settings(place: Venue, config: Config) -> CollectorSettings:
    """Checks names first: a wrong one must not cost a connection. Raises UnknownNameError, ConfigError."""
    for channel in config.channel:
        if channel not in place.channels:
            raise UnknownNameError("channel", channel, place.channels, where=place.name)
    for market in config.market:
        if "*" in market or market == "all":
            raise UsageError(
                f"market pattern {market!r}: the venue's market list is not fetched",
                where=place.name,
                remedy="name the markets: --market KRW-BTC,KRW-ETH",
            )
        place.check_market(market)
    wire_format = config.format or place.formats[0]
    if wire_format not in place.formats:
        raise UnknownNameError("format", wire_format, place.formats, where=place.name)
    if config.depth is not None and config.depth not in place.depths:
        raise UnknownNameError("depth", str(config.depth), [str(depth) for depth in place.depths], where=place.name)
    for name, url in config.url.items():
        venue(name)
        refuse_credentials(url)
    if not 1 <= config.connections <= CONNECTIONS_MAX:
        raise ConfigError(f"{config.connections} is not 1 to {CONNECTIONS_MAX}", where="connections")
    markets, shard = config.market or place.default_markets, config.shard_of
    if shard is not None:
        markets = share(markets, *shard)
    subscription = Subscription(config.channel, markets, wire_format, config.depth)
    return CollectorSettings(
        directory=Path(config.capture),
        subscriptions=(subscription,),
        connections=config.connections,
        options={} if shard is None else {"shard": "{}/{}".format(*shard)},
        url=config.url.get(place.name),
        writer=WriterSettings(
            flush_ns=config.flush_ns,
            size_max=config.max_size_bytes,
            age_max_ns=config.max_age_ns,
            fsync=config.fsync,
        ),
        duration_s=config.duration_s,
        drain_s=config.drain_s,
    )


async def _collector(place: Venue, settings: CollectorSettings, sink: Sink, clock: Clock, config: Config) -> Collector:
    def log(level: str, text: str) -> None:
        say(f"kcs: {place.name}: {text}")

    delivery, prepare = await _delivery(place, settings, sink, clock, config, log)
    return Collector(
        place, settings, sink=sink, clock=clock, rng=SystemRandom(), log=log, delivery=delivery, prepare=prepare
    )


async def _delivery(
    place: Venue, settings: CollectorSettings, sink: Sink, clock: Clock, config: Config, log: Log
) -> tuple[DeliveryInfo | None, Prepare | None]:
    """Where the run delivers to, and what has to be done before it may.

    Only a real Kafka keeps what it acknowledges; for the embedded broker there is nothing to recover.
    """
    if isinstance(sink, NullSink):
        return None, None
    from kcs.cli.preparing import Preparation, delivery_info
    from kcs.kafka.sink import KafkaSink

    if not isinstance(sink, KafkaSink) or sink.embedded:
        return None, None
    preparation = Preparation(
        sink,
        lambda: sink.open([place.name], config.channel),
        settings.directory,
        place.name,
        config.settle_s,
        clock,
        log,
    )
    return delivery_info(sink), preparation.run if await preparation.needed() else None


async def _run_all(collectors: Sequence[Collector]) -> list[CollectorResult]:
    """All to their ends; when one breaks down, the others are stopped and sealed before its error is raised."""
    tasks = [asyncio.ensure_future(collector.run()) for collector in collectors]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for collector, task in zip(collectors, tasks, strict=True):
        if not task.done():
            collector.request_stop()
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]


@contextmanager
def _stopping(collectors: Sequence[Collector]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (a terminal that is gone, unless nohup ignores it) end the run cleanly, the second one
    no longer waits for acks; SIGUSR1 renews connections."""
    loop = asyncio.get_running_loop()
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)

    def renew() -> None:
        say("kcs: asked for new connections; the old ones retire when these deliver")
        for collector in collectors:
            collector.renew()

    def stop(number: int) -> None:
        for collector in collectors:
            collector.request_stop(number)

    for number in ends:
        loop.add_signal_handler(number, stop, int(number))
    loop.add_signal_handler(signal.SIGUSR1, renew)
    try:
        yield
    finally:
        for number in (*ends, signal.SIGUSR1):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _shown(bar: Bar, collectors: Sequence[Collector], sinks: Sequence[Sink], clock: Clock) -> AsyncIterator[None]:
    """The status line: what came, how fast, and how far Kafka is behind; a line of talk where that lasts."""

    async def show() -> None:
        started_ns, before, before_ns = clock.monotonic_ns(), 0, clock.monotonic_ns()
        tell_ns = started_ns + TELL_AFTER_NS
        while True:
            await asyncio.sleep(SHOW_EVERY_S)
            now_ns = clock.monotonic_ns()
            received = sum(collector.ledger.received for collector in collectors)
            rate = (received - before) * 1e9 / max(1, now_ns - before_ns)
            lag = _lag(collectors, sinks, clock.now_ns())
            bar.update((now_ns - started_ns) / 1e9, f"{received:,} frames, {rate:,.0f}/s{f', {lag}' if lag else ''}")
            before, before_ns = received, now_ns
            if not lag:
                tell_ns = now_ns + TELL_AFTER_NS
            elif now_ns >= tell_ns:
                tell_ns = now_ns + TELL_EVERY_NS
                say(f"kcs: {lag}")

    task = asyncio.ensure_future(show())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _lag(collectors: Sequence[Collector], sinks: Sequence[Sink], now_ns: int) -> str:
    """How far Kafka is behind, in frames, records and seconds; nothing while it keeps up."""
    lags = [lag for lag in (collector.lag for collector in collectors) if lag is not None]
    frames, seconds, waiting = sum(lag.frames for lag in lags), max((lag.seconds for lag in lags), default=0.0), 0
    for sink in sinks:
        oldest_ns = getattr(sink, "oldest_ns", None)  # only Kafka's keeps anything
        if oldest_ns is not None:
            waiting += sink.in_flight  # type: ignore[attr-defined]
            seconds = max(seconds, (now_ns - oldest_ns) / NS_PER_S)
    if not lags and seconds < LAG_SHOWN_S:
        return ""
    return f"Kafka is behind by {seconds:.1f} s: {frames:,} frames in the capture, {waiting:,} records un-acked"


def _report(
    verb: str,
    sink_kind: str,
    named: Sequence[tuple[str, CollectorResult]],
    gc: GcReport,
    loop_lag: dict[str, float | int | None],
    latency: LatencyHistogram,
    warnings: Sequence[str],
    acks_undone: int,
) -> RunReport:
    results = [result for _, result in named]
    ledger, notes = Ledger(), []
    for result in results:
        result.ledger.check()
        ledger.add(result.ledger)
        if result.silent_markets:
            notes.append(f"nothing came from {', '.join(result.silent_markets)}: do these markets exist?")
        if result.connect_failures:
            counts = ", ".join(f"{slug} {number}" for slug, number in sorted(result.connect_failures.items()))
            notes.append(f"connection attempts that failed: {counts}")
        if result.gaps > result.gaps_covered:
            open_gaps = result.gaps - result.gaps_covered
            notes.append(f"{open_gaps} gaps: data of these windows may be missing at the venue's side")
        if result.gaps_covered:
            notes.append(f"{result.gaps_covered} gaps of one connection were covered by another")
    captures = [
        {
            "path": str(capture.path),
            "id": capture.capture_id.hex(),
            "digest": capture.digest,
            "receipt": None if capture.receipt is None else str(capture.receipt),
        }
        for result in results
        for capture in result.captures
    ]
    return RunReport(
        verb=verb,
        seconds=max(result.seconds for result in results),
        ledger=ledger,
        captures=captures,
        digest=results[0].digest if len(results) == 1 and not ledger.lost else None,
        gaps_covered=sum(result.gaps_covered for result in results),
        unverifiable=unverifiable(name for name, _ in named),
        reconnects=sum(result.reconnects for result in results),
        streams=[{"exchange": name, **asdict(stream)} for name, result in named for stream in result.streams],
        catch_ups=sum(result.catch_ups for result in results) if sink_kind != "null" else None,
        ack_latency=latency,
        gc=gc,
        loop_lag=loop_lag,
        delivers=sink_kind != "null",
        behind=any(result.behind for result in results),
        acks_undone=acks_undone,
        interrupted=any(result.signal == signal.SIGINT for result in results),
        failed=_failure(results),
        notes=notes,
        warnings=warnings,
    )


def _failure(results: Sequence[CollectorResult]) -> str | None:
    for result in results:
        if result.failure is not None:
            return f"the capture failed: {result.failure}"
        if result.connect_failures and not result.ledger.received:
            return "no connection to the venue came about"
    return None
