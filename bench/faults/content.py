"""Is what was captured and produced what was sent? For senders that repeat one block of frames.

`captured` walks the capture files in order and expects the next frame of the cycle each time, byte for byte. `produced`
reads the topics and expects, for every frame, its record once: key and value as a pipeline of its own makes them, in
the order of their positions. Neither uses what kcs counts itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from kcs.capture.reader import CaptureReader
from kcs.exchanges import venue
from kcs.model import FRAME_KINDS
from kcs.pipeline import Pipeline
from kcs.sink import POSITION, Headers
from kcs.stats import Ledger

Expected = tuple[str, bytes, bytes]
"""(channel, key, value) of the one record of a frame."""


@dataclass(slots=True)
class Captured:
    """`frames` of the cycle that are there in order; `other`: records that are none.

    `ordinals`: capture id -> record number -> place in the order, or -1. `wrong`: the first few differences, in words.
    """

    frames: int = 0
    other: int = 0
    ordinals: dict[bytes, array[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def captured(files: Sequence[Path], block: Sequence[bytes], status: bytes) -> Captured:
    """Compare the frames of the files, oldest first, with the cycle. `status` texts may stand anywhere."""
    found, size = Captured(), len(block)
    for path in files:
        with CaptureReader(path) as reader:
            ordinals = found.ordinals[reader.header.capture_id] = array("q")
            for batch in reader.batches():
                for number, kind, _, _, payload, _ in batch:
                    ordinals.extend([-1] * (number - len(ordinals)))
                    if kind not in FRAME_KINDS or payload == status:
                        ordinals.append(-1)
                        found.other += 1
                        continue
                    if payload != block[found.frames % size] and len(found.wrong) < 5:
                        found.wrong.append(f"{path.name} record {number}: not frame {found.frames} of the cycle")
                    ordinals.append(found.frames)
                    found.frames += 1
    return found


class _Kept:
    """A sink that keeps what one frame becomes."""

    acked = failed = 0
    full = False

    def __init__(self) -> None:
        self.taken: list[Expected] = []

    def start(self, capture_id: bytes) -> None: ...

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, bytes]:
        return channel, key.encode()

    def emit(
        self,
        route: tuple[str, bytes],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        self.taken.append((*route, value))

    async def room(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...


def expected(block: Sequence[bytes]) -> list[Expected]:
    """What each frame of the block must become."""
    sink = _Kept()
    pipeline = Pipeline("upbit", venue("upbit").adapter(), sink, Ledger(), digest=False)
    for payload in block:
        pipeline.feed(0, 1, payload)
    assert len(sink.taken) == len(block)
    return sink.taken


@dataclass(slots=True)
class Produced:
    """`records` of frames that are right and there once; `repeated`, `foreign`, `unordered` and `wrong` are not."""

    records: int = 0
    repeated: int = 0
    foreign: int = 0
    """Records of other captures, or without a position."""
    unordered: int = 0
    wrong: list[str] = field(default_factory=list)


def produced(
    bootstrap: str, template: str, channels: Sequence[str], held: Captured, due: Sequence[Expected]
) -> Produced:
    """Compare the topics with what the captured frames must become."""
    found, seen = Produced(), bytearray(held.frames)
    for channel in channels:
        last: dict[tuple[int, bytes], int] = {}
        for message in consumed(bootstrap, template.format(channel=channel, exchange="upbit")):
            capture, number = position(message)
            place = (message.partition() or 0, capture)
            if number <= last.get(place, -1):
                found.unordered += 1
            last[place] = number
            ordinals = held.ordinals.get(capture)
            ordinal = ordinals[number] if ordinals is not None and 0 <= number < len(ordinals) else -1
            if ordinal < 0:
                found.foreign += 1
            elif seen[ordinal]:
                found.repeated += 1
            else:
                seen[ordinal] = 1
                _take(found, message, channel, due[ordinal % len(due)])
    return found


def position(message: Message) -> tuple[bytes, int]:
    """(capture id, frame number) of a record; (b"", -1) where there is none."""
    for name, value in cast("list[tuple[str, bytes]]", message.headers() or []):
        if name == "kcs":
            return value[:8], POSITION.unpack(value[8:])[0]
    return b"", -1


def _take(found: Produced, message: Message, channel: str, due: Expected) -> None:
    key, value = message.key(), message.value()
    if (channel, key, value) == due:
        found.records += 1
    elif len(found.wrong) < 5:
        found.wrong.append(f"{message.topic()} offset {message.offset()}: {value!r:.80}, due was {due!r:.120}")


def consumed(bootstrap: str, topic: str) -> Iterator[Message]:
    """Every record of a topic up to its end as of now, partition by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "kcs-faults", "enable.auto.commit": False})
    try:
        for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            if low >= high:
                continue
            consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
            yield from _until(consumer, high)
    finally:
        consumer.close()


def _until(consumer: Any, high: int) -> Iterator[Message]:
    silent = 0
    while silent < 20:
        messages = consumer.consume(10_000, timeout=1.0)
        silent = 0 if messages else silent + 1
        for message in messages:
            if message.error():
                raise SystemExit(f"cannot read a topic back: {message.error()}")
            yield message
            if message.offset() + 1 >= high:
                return
    raise SystemExit(f"a topic ends before its end offset {high}")
