"""One connection to a cluster for producing: an aiokafka producer with a sequence of its own. Used by the sink only.

A batch refused for good breaks its partition's sequence in that producer, so a sink goes through several links in its
life. `Link` is also the seam where tests put a fake. `connect` raises kcs.errors.KafkaError (KafkaUnreachableError
where trying again may help), `send` and the futures it returns the client library's errors: see `kcs.kafka.failures`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as ClientError

from kcs.clock import Clock
from kcs.errors import KafkaError, KafkaUnreachableError
from kcs.kafka import client
from kcs.kafka.batch import Batch
from kcs.kafka.careful import make_careful
from kcs.kafka.quiet import calm
from kcs.kafka.refusals import refusal
from kcs.kafka.settings import KafkaSettings, client_options, parse_bootstrap, producer_options

_ABANDON_ROUNDS: Final = 20
_ABANDON_ROUND_S: Final = 0.05


class Link(Protocol):
    """What a sink needs of a producer."""

    def send(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        """Ship one batch; the result's `offset` is that of its first record (-1: the broker no longer knows)."""
        ...

    async def partition_count(self, topic: str) -> int:
        """Partitions of a topic that exists. Raises kcs.errors.KafkaError."""
        ...

    async def close(self) -> None:
        """Let go of it whatever is in flight; waits for no broker."""
        ...


Connect = Callable[[KafkaSettings, Clock], Awaitable[Link]]


class ProducerLink:
    """The real link: idempotent, acks=all, one produce request a broker, repeated by aiokafka without limit."""

    __slots__ = ("_producer",)

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def send(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        # With the topic's metadata at hand and nothing queued for the partition, send_batch never waits: no task.
        sending = self._producer.send_batch(batch.builder, topic, partition=partition)
        try:
            waiting_for = sending.send(None)
        except StopIteration as done:
            acknowledged: asyncio.Future[Any] = done.value
            return acknowledged
        return asyncio.get_running_loop().create_task(_finished(sending, waiting_for))

    async def partition_count(self, topic: str) -> int:
        client = self._producer.client
        try:
            return len(await self._producer.partitions_for(topic))
        except ClientError as error:
            kind = KafkaUnreachableError if client.refusals else KafkaError
            heard = next(iter(client.refusals.values()), error)
            raise kind(
                f"its partitions cannot be learned: {str(heard) or type(heard).__name__}",
                where=f"topic {topic}",
                remedy="create the topic, or give this user the right to describe and write it",
            ) from None

    async def close(self) -> None:
        await _abandon(self._producer)


async def _finished(sending: Coroutine[Any, Any, Any], waiting_for: Any) -> Any:
    return await (await _resumed(sending, waiting_for))


@types.coroutine
def _resumed(started: Coroutine[Any, Any, Any], waiting_for: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that was started by hand and is waiting for `waiting_for`."""
    try:
        while True:
            try:
                sent = yield waiting_for
            except BaseException as error:  # noqa: BLE001 - handed on, cancellation included
                waiting_for = started.throw(error)
            else:
                waiting_for = started.send(sent)
    except StopIteration as done:
        return done.value


async def connect(settings: KafkaSettings, clock: Clock) -> Link:
    """A started producer within `settings.connect_timeout_s`. Raises KafkaError naming the brokers and what to do."""
    calm()
    options = client_options(settings)
    producer = AIOKafkaProducer(
        **options,
        **producer_options(settings),
        enable_idempotence=True,
        acks="all",
        linger_ms=0,
        max_batch_size=settings.batch_bytes_max,
    )
    adopted = client.adopt(producer.client, settings.connect_timeout_s, settings.cluster_id)
    adopted.on_update = make_careful(
        producer,
        options["retry_backoff_ms"],
        options["request_timeout_ms"],
        clock,
        look=settings.headers,  # without positions in the topic nobody could look
    ).give_back
    try:
        async with asyncio.timeout(settings.connect_timeout_s * (len(parse_bootstrap(settings.bootstrap)) + 1)):
            await producer.start()
    except (*client.CONNECT_ERRORS, ClientError) as error:
        brokers = [f"{broker.host}:{broker.port}" for broker in adopted.cluster.brokers()]
        await _abandon(producer)
        raise refusal(settings, error, adopted.refusals, brokers) from None
    except BaseException:
        await _abandon(producer)
        raise
    return ProducerLink(producer)


async def _abandon(producer: Any) -> None:
    """Stop a producer that may never get its acks: aiokafka's own `stop` waits for them.

    Its connections are closed, which fails the requests in flight, and its sender is cancelled until it gives in (each
    cancellation ends the request it is waiting for).
    """
    producer._closed = True
    sender = producer._sender.sender_task
    for _ in range(_ABANDON_ROUNDS):
        await producer.client.close()
        if sender is None or sender.done():
            break
        sender.cancel()
        await asyncio.wait([sender], timeout=_ABANDON_ROUND_S)
    if sender is not None and sender.done() and not sender.cancelled():
        sender.exception()  # looked at, so that asyncio does not report it
