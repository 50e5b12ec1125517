"""Opens the sink a run asks for and closes it whatever happens; says aloud which protection its settings give up."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final

from kcs.cli.terminal import say
from kcs.clock import Clock
from kcs.config import Config
from kcs.errors import KafkaUnreachableError, UnknownNameError
from kcs.model import CHANNELS
from kcs.sink import NullSink, Sink, StdoutSink
from kcs.stats import LatencyHistogram

LIVE_TOPIC = "{channel}.{exchange}"
REPLAY_TOPIC = "replay.{channel}.{exchange}"
SINKS = ("kafka", "stdout", "null")
_PASSWORDS = ("sasl.password", "ssl.key.password")


def warned(kind: str, config: Config, *, urls: Iterable[str] = (), argv: Sequence[str] | None = None) -> list[str]:
    """Say on stderr what these settings give up; the texts once more, for the report. To be called at each start.

    `urls`: those of the venues. `argv` None: this process's own. Raises ConfigError for settings that cannot be.
    """
    from kcs.live.url import unprotected

    found = [text for text in map(unprotected, urls) if text is not None]
    if kind == "kafka":
        from kcs.kafka.settings import KafkaSettings, warnings

        found += warnings(KafkaSettings(config.bootstrap or "localhost", properties=config.kafka))
    given = sys.argv if argv is None else argv
    found += [
        f"A PASSWORD IS ON THE COMMAND LINE ({name}), where every user of this machine can read it: write"
        f" {name}=@FILE (chmod 600), or set KCS_KAFKA_{name.upper().replace('.', '_')}"
        for name in _PASSWORDS
        if any(re.search(rf"{re.escape(name)}=(?!@[^@])", argument.replace(" ", "")) for argument in given)
    ]
    for text in found:
        say(f"kcs: WARNING: {text}")
    return found


PATIENT_S: Final = 1.0
"""How long capturing waits for a broker that may be away."""


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
    patient: bool = False,
) -> AsyncIterator[Sink]:
    """A ready sink of that kind. `retain`: topics that are created keep records for ever (replay). `patient`: where no
    broker answers the sink comes unopened, for the caller to try again.

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
        try:
            async with asyncio.timeout(PATIENT_S if patient else None):
                await sink.open(exchanges, channels, oldest_ns=oldest_ns)
        except (KafkaUnreachableError, TimeoutError) as error:
            if not patient:
                raise
            late = isinstance(error, TimeoutError)
            say(f"kcs: WARNING: {f'Kafka at {bootstrap}: not ready within {PATIENT_S:g} s' if late else error}")
            say("kcs: capturing begins without it; what is captured is delivered when it is there")
        try:
            yield sink
        finally:
            await sink.close(0)  # whoever used it has drained it, for as long as it was worth waiting
