"""A sender that does not repeat blindly what the broker might not recognise as a repetition. Used by `kcs.kafka.link`.

A broker drops a repeated batch because it remembers the producer's last sequence numbers. It forgets a producer whose
newest *record timestamp* is older than `producer.id.expiration.ms` (one day), be it active or not: at a periodic check
and whenever it restarts. Records of an old capture have old timestamps, so after a connection that broke between
the write and its ack, aiokafka's retry was seen to write the batch twice (Kafka 4.2, broker killed and restarted).
Such a batch fails here instead of being repeated, and the sink looks whether it was written (`kcs.kafka.recovery`).

Two more things end here that aiokafka goes on with for ever, so that the sink hears of them: a leader that refuses our
credentials or certificate, and a partition that the cluster does not know any more (`give_back`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka import errors
from aiokafka.producer.sender import Sender, SendProduceReqHandler

from kcs.clock import NS_PER_S, Clock
from kcs.kafka.refusals import incurable
from kcs.sink import POSITION

OLD_NS: Final = 3600 * NS_PER_S
"""Well below the day after which a broker forgets, as the cluster may be set to less."""

MAYBE_WRITTEN: Final = (
    errors.KafkaConnectionError,
    errors.RequestTimedOutError,
    errors.NotEnoughReplicasAfterAppendError,
    errors.Cancelled,
    errors.CorrelationIdError,
)
"""Errors that may come after the batch was written."""


UNKNOWN_MAX_S: Final = 3.0
"""So long may a partition be missing in the metadata: a broker that has just started may not know it yet."""


class CarefulSender(Sender):  # type: ignore[misc]  # aiokafka is not typed
    """aiokafka's sender with another handler for produce requests."""

    clock: Clock
    look: bool
    """Whether somebody can look if a batch was written; without headers nobody can."""
    unknown_since_s: dict[Any, float]

    async def _send_produce_req(self, node_id: Any, batches: dict[Any, Any]) -> None:
        handler = _Handler(self, batches)
        await handler.do(node_id)
        self._in_flight.remove(node_id)
        for place in batches:
            self._muted_partitions.remove(place)

    def give_back(self) -> None:
        """Fail what is queued for partitions that the cluster's metadata have not named for some seconds."""
        now_s = asyncio.get_running_loop().time()
        accumulator = self._message_accumulator
        queued = [place for place in accumulator._batches if place not in self._muted_partitions]
        unknown = [place for place in queued if self.client.cluster.leader_for_partition(place) is None]
        self.unknown_since_s = {place: self.unknown_since_s.get(place, now_s) for place in unknown}
        for place in unknown:
            if now_s - self.unknown_since_s[place] >= UNKNOWN_MAX_S:
                del self.unknown_since_s[place]
                what = f"the cluster has no topic {place.topic} with a partition {place.partition}"
                accumulator._pop_batch(place).failure(errors.UnknownTopicOrPartitionError(what))


class _Handler(SendProduceReqHandler):  # type: ignore[misc]
    def _can_retry(self, error: Any, batch: Any) -> bool:
        if isinstance(error, errors.NodeNotReadyError) and any(map(incurable, self._client.refusals.values())):
            return False
        if self._sender.look and isinstance(error, MAYBE_WRITTEN):
            _, _, newest_ns = POSITION.unpack(batch._builder.positions[-1])
            if self._sender.clock.now_ns() - newest_ns > OLD_NS:
                return False
        return bool(super()._can_retry(error, batch))


def make_careful(
    producer: Any, retry_backoff_ms: int, request_timeout_ms: int, clock: Clock, *, look: bool
) -> CarefulSender:
    """Give a producer that is not started yet this sender in the place of its own, made the same way."""
    sender = CarefulSender(
        producer.client,
        acks=-1,
        txn_manager=producer._txn_manager,
        message_accumulator=producer._message_accumulator,
        retry_backoff_ms=retry_backoff_ms,
        request_timeout_ms=request_timeout_ms,
    )
    sender.clock = clock
    sender.look = look
    sender.unknown_since_s = {}
    producer._sender = sender
    return sender
