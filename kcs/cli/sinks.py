"""Opens the sink a run asks for and closes it whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

from kcs.cli.terminal import say
from kcs.clock import Clock
from kcs.config import Config
from kcs.errors import UnknownNameError
from kcs.model import CHANNELS
from kcs.sink import NullSink, Sink, StdoutSink
from kcs.stats import LatencyHistogram

LIVE_TOPIC = "{channel}.{exchange}"
REPLAY_TOPIC = "replay.{channel}.{exchange}"
SINKS = ("kafka", "stdout", "null")


@asynccontextmanager
async def open_sink(
    kind: str,
    config: Config,
    *,
    exchanges: Iterable[str],
    clock: Clock,
    template: str,
    latency: LatencyHistogram | None = None,
    retain: bool = False,
    oldest_ns: int | None = None,
    channels: Iterable[str] = CHANNELS,
) -> AsyncIterator[Sink]:
    """A ready sink of that kind. `retain`: topics that are created keep records for ever (replay).

    Raises KafkaError when the broker is away or refuses, ConfigError for settings that cannot be.
    """
    if kind == "null":
        yield NullSink()
        return
    if kind == "stdout":
        yield StdoutSink(config.topic or template, soon=asyncio.get_running_loop().call_soon)
        return
    if kind != "kafka":
        raise UnknownNameError("sink", kind, SINKS, where="--sink")
    from kcs.kafka.settings import (  # lazily: the client library takes 100 ms to import
        REPLAY_BUFFER_BYTES,
        KafkaSettings,
    )
    from kcs.kafka.sink import KafkaSink

    with ExitStack() as stack:
        bootstrap = config.bootstrap
        if bootstrap is None:
            from kcs.kafka.embedded import EmbeddedBroker

            bootstrap = stack.enter_context(EmbeddedBroker()).bootstrap
            say("kcs: no --bootstrap given: records go to the embedded broker, in memory, newest 5 MB a partition")
        settings = KafkaSettings(
            bootstrap=bootstrap,
            template=config.topic or template,
            headers=config.headers,
            partitions=config.partitions,
            replication=config.replication,
            properties=config.kafka,
            retention_forever=retain,
        )
        if retain:
            settings = replace(settings, buffer_bytes_max=REPLAY_BUFFER_BYTES)
        sink = KafkaSink(settings, clock, latency=latency)
        await sink.open(exchanges, channels, oldest_ns=oldest_ns)
        try:
            yield sink
        finally:
            await sink.close(0)  # whoever used it has drained it, for as long as it was worth waiting
