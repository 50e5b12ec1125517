"""Is all that captures make in the topics, once, in order, to the last frame? `kcs verify --topic`.

The capture side is `kcs.verify` with a sink that keeps what must be there (`kcs.kafka.spool`); the topics are read by
`kcs.kafka.audit` from the captures' first moment to their end, once for all captures; `kcs.kafka.compare` puts both
together. Where a capture went is told by its delivery file or receipt, or by a topic template that is given.

Raises KafkaError when the broker cannot be read or is another one, CaptureError for a capture or a file beside it that
cannot be used, UsageError when nothing says where a capture went.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kcs.capture.format import CaptureHeader
from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureError, KafkaError, UsageError
from kcs.kafka.audit import Survey, reading, survey
from kcs.kafka.compare import Audit
from kcs.kafka.findings import Stated
from kcs.kafka.partition import partition_of
from kcs.kafka.settings import KafkaSettings, check_template, topic_names
from kcs.kafka.spool import Expectation, Place
from kcs.kafka.topics import is_embedded
from kcs.live.receipt import Receipt, delivery_path, read_delivery, read_receipt, receipt_path
from kcs.model import CHANNELS
from kcs.sink import RECORD_SCHEMA_VERSION
from kcs.verify import Runs, Verdict, in_run_order, verify

_MS_NS = 1_000_000
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""(offsets read, offsets to read)"""


class Run(Protocol):
    """Runs a coroutine to its end on a loop of its own."""

    def __call__(self, main: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...


@dataclass(slots=True, frozen=True)
class _Beside:
    """What stands beside a capture of where it went. `cluster` None: it was never begun to be delivered."""

    cluster: str | None
    template: str
    record_schema: int
    headers: bool
    partitions: Mapping[str, int]
    stated: Stated | None


@dataclass(slots=True, frozen=True)
class TopicVerdicts:
    """The verdicts, in the order of the runs, and what the reading met. `templates`: one a verdict."""

    verdicts: tuple[Verdict, ...]
    templates: tuple[str, ...]
    cluster_id: str
    read: int
    other_captures: int
    without_header: int


@dataclass(slots=True, frozen=True)
class _Target:
    """One capture and where its records are. `cluster` None: whichever it is."""

    path: Path
    header: CaptureHeader
    template: str
    cluster: str | None
    partitions: Mapping[str, int]
    stated: Stated | None

    @property
    def names(self) -> dict[tuple[str, str], str]:
        """(channel, exchange) to topic."""
        return topic_names(self.template, CHANNELS, [self.header.exchange])

    def expectation(self, audit: Audit, found: Survey) -> Expectation:
        names, counts = self.names, {**found.counts, **self.partitions}

        def place_of(channel: str, exchange: str, key: bytes) -> Place:
            topic = names[channel, exchange]
            return topic, partition_of(key, counts.get(topic, 1))

        return audit.expect(self.header.capture_id, place_of)


def verify_topics(
    paths: Sequence[Path],
    settings: KafkaSettings,
    *,
    run: Run,
    template: str | None = None,
    expected: str | None = None,
    on_progress: Progress | None = None,
) -> TopicVerdicts:
    """Verify captures and what the cluster at `settings.bootstrap` has of them.

    `template` None: where their delivery files or receipts say. `expected` is a digest, for one capture. `run` runs
    what talks to the broker; between, captures are read without a loop.
    """
    if template is not None:
        check_template(template)
    headers = _headers(in_run_order(paths))
    beside = [_beside(path, header.capture_id) for path, header in headers]
    wanted = {
        topic
        for (_, header), known in zip(headers, beside, strict=True)
        for topic in topic_names(_template(template, known), CHANNELS, [header.exchange]).values()
    }
    found = run(lambda: survey(settings, wanted))
    targets = [
        _target(path, header, template, known, found, settings)
        for (path, header), known in zip(headers, beside, strict=True)
    ]
    with contextlib.closing(Audit()) as audit:
        verdicts = _expect(audit, targets, found, expected)
        audit.begin()
        read, starts = run(lambda: _read(audit, settings, found, _since_ms(targets, verdicts), on_progress))
        verdicts = [
            replace(verdict, topics=audit.report(target.header.capture_id, starts, target.stated))
            for target, verdict in zip(targets, verdicts, strict=True)
        ]
        return TopicVerdicts(
            verdicts=tuple(verdicts),
            templates=tuple(target.template for target in targets),
            cluster_id=found.cluster_id,
            read=read,
            other_captures=audit.other_captures,
            without_header=audit.without_header,
        )


def _headers(paths: Iterable[Path]) -> list[tuple[Path, CaptureHeader]]:
    seen: dict[bytes, Path] = {}
    headers = []
    for path in paths:
        with CaptureReader(path, strict=False) as reader:
            headers.append((path, reader.header))
        other = seen.get(reader.header.capture_id)
        if other is not None:
            raise UsageError(f"the same capture twice: {other} and {path}", remedy="name each capture once")
        seen[reader.header.capture_id] = path
    return headers


def _beside(path: Path, capture_id: bytes) -> _Beside | None:
    """What is said beside a capture: the receipt's words, and the partition counts of the delivery file."""
    receipt, delivery = read_receipt(path), read_delivery(path)
    for one, its_path in ((receipt, receipt_path(path)), (delivery, delivery_path(path))):
        if one is not None and one.capture != capture_id.hex():
            raise CaptureError(f"it is about capture {one.capture}, not {capture_id.hex()}", where=str(its_path))
    partitions = {} if delivery is None else delivery.partitions
    if receipt is not None:
        stated = _stated(receipt)
        return _Beside(receipt.cluster, receipt.template, receipt.record_schema, receipt.headers, partitions, stated)
    if delivery is None:
        return None
    return _Beside(delivery.cluster, delivery.template, delivery.record_schema, delivery.headers, partitions, None)


def _stated(receipt: Receipt) -> Stated:
    return Stated(
        offsets={
            (topic, partition): (of.first, of.last)
            for topic, partitions in receipt.offsets.items()
            for partition, of in partitions.items()
        },
        whole=receipt.whole,
        recovered=receipt.recovered,
        failed=receipt.records.failed,
        uncaptured=receipt.uncaptured,
    )


def _template(given: str | None, known: _Beside | None) -> str:
    if given is not None:
        return given
    if known is None:
        raise UsageError(
            "nothing beside the capture says where it was delivered (no .delivery.json, no .receipt.json)",
            remedy="kcs verify FILE --template '{channel}.{exchange}' -b HOST:PORT names the topics",
        )
    return known.template


def _target(
    path: Path, header: CaptureHeader, given: str | None, known: _Beside | None, found: Survey, settings: KafkaSettings
) -> _Target:
    """Decide what is to be compared. What stands beside the capture counts where it is about these topics."""
    where = f"Kafka at {settings.bootstrap}"
    template = _template(given, known)
    if (
        known is None
        or given not in (None, known.template)
        or (given is not None and known.cluster != found.cluster_id)
    ):
        names = sorted(topic_names(template, CHANNELS, [header.exchange]).values())
        if not any(name in found.counts for name in names):
            raise KafkaError(
                f"none of the topics exists: {', '.join(names)}", where=where, remedy="--template with {channel} in it"
            )
        return _Target(path, header, template, None, {}, None)
    if known.cluster is None:
        raise CaptureError(
            "nothing of it was delivered: the broker was away when it was captured",
            where=str(path),
            remedy=f"kcs recover --produce {path}",
        )
    if known.cluster != found.cluster_id:
        raise KafkaError(
            f"{path.name} was delivered to cluster {known.cluster}, this is {found.cluster_id}",
            where=where,
            remedy="-b with that cluster, or --template to check a copy in this one",
        )
    if not known.headers:
        raise CaptureError("it was delivered without headers: no record says which frame it is of", where=str(path))
    if known.record_schema != RECORD_SCHEMA_VERSION:
        raise CaptureError(
            f"delivered under record schema {known.record_schema}, this kcs makes {RECORD_SCHEMA_VERSION}",
            where=str(path),
            remedy="verify it with the version of kcs that delivered it",
        )
    return _Target(path, header, template, known.cluster, known.partitions, known.stated)


def _expect(audit: Audit, targets: Sequence[_Target], found: Survey, expected: str | None) -> list[Verdict]:
    """Verify each capture, and keep what it makes."""
    runs, verdicts = Runs(), []
    for target in targets:
        verdict = verify(
            target.path,
            expected=expected,
            runs=runs,
            sink_of=lambda header, target=target: target.expectation(audit, found),  # type: ignore[misc]
        )
        audit.expected(target.header.capture_id, verdict.end, verdict.missing)
        verdicts.append(verdict)
    return verdicts


def _since_ms(targets: Sequence[_Target], verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Topic to the time before which no record of the captures can be."""
    since: dict[str, int] = {}
    for target, verdict in zip(targets, verdicts, strict=True):
        begun_ns = target.header.created_ns
        begun_ms = max(0, min(begun_ns, begun_ns if verdict.first_ns is None else verdict.first_ns)) // _MS_NS
        for topic in target.names.values():
            since[topic] = min(since.get(topic, begun_ms), begun_ms)
    return since


async def _read(
    audit: Audit, settings: KafkaSettings, found: Survey, since_ms: Mapping[str, int], on_progress: Progress | None
) -> tuple[int, Mapping[Place, int]]:
    """Give the audit all there is; returns how many records that was, and where the broker's logs begin."""
    read = 0
    async with reading(settings, found.counts, since_ms, embedded=is_embedded(found.cluster_id)) as source:
        async with contextlib.aclosing(source.batches()) as batches:
            async for place, messages in batches:
                audit.take(place, messages)
                read += len(messages)
                if on_progress is not None:
                    on_progress(read, source.offsets)
        return read, source.starts
