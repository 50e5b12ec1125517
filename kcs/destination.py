"""Where the records of a capture went, and whether what is left of it can go there too. Used by `kcs.deliver`.

The delivery file beside a capture names cluster, topic template, partition counts and whether records carry positions.
A delivery can be continued only where all of that still holds; where it does not, UndeliverableError says what differs
and what to do. Raises KafkaError when the broker cannot be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kcs.capture.format import CaptureHeader
from kcs.errors import ConfigError, UndeliverableError
from kcs.exchanges import VENUES
from kcs.kafka import topics
from kcs.kafka.settings import REPLAY_BUFFER_BYTES, KafkaSettings, topic_name
from kcs.live.receipt import DeliveryFile, delivery_path
from kcs.model import CHANNELS
from kcs.sink import RECORD_SCHEMA_VERSION

_REPLAY: Final = "kcs replay FILE --topic ... delivers all of it into topics of its own"


def check_file(path: Path, header: CaptureHeader, delivery: DeliveryFile) -> None:
    """Raises UndeliverableError for a capture whose delivery cannot be continued anywhere."""
    where = str(delivery_path(path))
    if delivery.capture != header.capture_id.hex():
        what = f"it is about capture {delivery.capture}, not {header.capture_id.hex()}"
        raise UndeliverableError(what, where=where, remedy="put the right one beside the capture")
    if header.exchange not in VENUES:
        what = f"its exchange {header.exchange!r} is none that this kcs knows"
        raise UndeliverableError(what, where=str(path), remedy="kcs exchanges lists them")
    if not delivery.headers:
        what = "its records carry no positions (headers were off), so nobody can tell what is in Kafka already"
        raise UndeliverableError(what, where=str(path), remedy=_REPLAY)
    if delivery.record_schema != RECORD_SCHEMA_VERSION:
        what = (
            f"what is in Kafka of it was made under record schema {delivery.record_schema}, "
            f"this kcs makes {RECORD_SCHEMA_VERSION}: half of one and half of the other helps nobody"
        )
        raise UndeliverableError(what, where=str(path), remedy=f"use the kcs that began it; or {_REPLAY}")


def settings_of(path: Path, delivery: DeliveryFile, settings: KafkaSettings) -> KafkaSettings:
    """The connection of `settings`, and all else as the delivery began. Raises UndeliverableError."""
    try:
        return replace(
            settings,
            template=delivery.template,
            headers=True,
            retention_forever=False,
            buffer_bytes_max=min(settings.buffer_bytes_max, REPLAY_BUFFER_BYTES),
        )
    except ConfigError as error:
        raise UndeliverableError(error.what, where=str(delivery_path(path)), remedy=_REPLAY) from error


def channels_of(header: CaptureHeader, delivery: DeliveryFile, template: str) -> list[str]:
    """The channels that the run produced: those whose topics the delivery file has, else those subscribed to."""
    if delivery.partitions:
        named = {channel: topic_name(template, channel, header.exchange) for channel in CHANNELS}
        return [channel for channel, topic in named.items() if topic in delivery.partitions]
    asked = header.options.get("channels")
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return [channel for channel in CHANNELS if channel in asked]
    return list(CHANNELS)


async def check_cluster(path: Path, delivery: DeliveryFile, settings: KafkaSettings) -> None:
    """The cluster is the one that has the first part, with its topics as they were, or larger."""
    found = await topics.cluster_id(settings)
    if topics.is_embedded(found):
        what = "the embedded broker keeps nothing, so there is nothing to go on with"
        raise UndeliverableError(what, where=f"{path}", remedy="name the cluster: -b HOST:PORT")
    if delivery.cluster is not None and delivery.cluster != found:
        what = f"its records went to cluster {delivery.cluster}, and this is cluster {found}"
        where = f"{path}, Kafka at {settings.bootstrap}"
        raise UndeliverableError(what, where=where, remedy="name that cluster's brokers: -b HOST:PORT")
    present = await topics.partition_counts(settings, delivery.partitions)
    for topic, count in sorted(delivery.partitions.items()):
        where = f"topic {topic} at {settings.bootstrap}"
        if topic not in present:
            what = f"it is gone, and records of {path.name} went there"
            remedy = f"create it again with {count} partitions (then all of the capture is delivered); or {_REPLAY}"
            raise UndeliverableError(what, where=where, remedy=remedy)
        if present[topic] < count:
            what = f"it has {present[topic]} partitions, and records of {path.name} went to {count}"
            raise UndeliverableError(what, where=where, remedy=_REPLAY)
