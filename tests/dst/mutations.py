"""Deliberate breakages of kcs, each of which some seed must notice. Applied by `tests.dst.mutate` to a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` stands once in `path` (below kcs/) and is replaced by `new`; `also`: more of the same file."""

    name: str
    path: str
    old: str
    new: str
    also: tuple[tuple[str, str], ...] = ()


MUTATIONS: Final = (
    Mutation(
        "the follower skips the first record of each chunk",
        "live/follower.py",
        "            self._batch, self._next = batch, 0\n            return State.MORE",
        "            self._batch, self._next = batch, min(1, len(batch) - 1)\n            return State.MORE",
    ),
    Mutation(
        "the follower does not ask whether the sink has room",
        "live/follower.py",
        "            if self._sink.full:\n                return State.FULL\n",
        "",
    ),
    Mutation(
        "the follower begins with a pipeline that knows nothing",
        "pipeline.py",
        "        other._trades = {key: route.copy() for key, route in self._trades.items()}\n",
        "",
    ),
    Mutation(
        "the run falls behind after the frame is captured",
        "live/recorder.py",
        """            self._fall_behind("Kafka does not keep up")
        self._append(kind, stream, recv_ns, payload)
""",
        """            self._append(kind, stream, recv_ns, payload)
            self._fall_behind("Kafka does not keep up")
        else:
            self._append(kind, stream, recv_ns, payload)
""",
    ),
    Mutation(
        "a frame is captured a turn of the loop after it was produced",
        "live/recorder.py",
        "        self._append(kind, stream, recv_ns, payload)\n        ledger.captured += 1\n",
        "        asyncio.get_running_loop().call_soon(self._append, kind, stream, recv_ns, payload)\n"
        "        ledger.captured += 1\n",
    ),
    Mutation(
        "frames that are behind are not counted",
        "live/recorder.py",
        "        ledger.behind = ledger.captured - fed\n",
        "",
    ),
    Mutation(
        "a rotated file begins without the parser's state",
        "live/recorder.py",
        "        for stream, state, payload in self._pipeline.save():\n",
        "        for stream, state, payload in ():\n",
    ),
    Mutation(
        "a receipt does not wait for the acks",
        "live/recorder.py",
        "not state.produced == file.produced == state.acked + state.failed",
        "state.produced != file.produced",
    ),
    Mutation(
        "a reconnection leaves no gap record",
        "live/session.py",
        "        cause, actions = self._gap.end(to_ns)\n",
        "        cause, actions = self._gap.end(to_ns)\n"
        "        actions = actions if cause == 'collector_down' else []\n",
    ),
    Mutation(
        "a start does not see that an earlier run has ended",
        "live/collector.py",
        "        self._down_since_ns = last_record_ns(settings.directory, venue.name)\n",
        "        self._down_since_ns = None\n",
    ),
    Mutation(
        "old chunks are not flushed",
        "capture/writer.py",
        "            self.flush()  # also a chunk that seems to begin in the future: its age cannot be told\n",
        "            pass\n",
    ),
    Mutation(
        "unwritten() forgets the chunk that was handed over last",
        "capture/writer.py",
        "        chunks = [c for c in self._pending.copy() if c.capture_id == self._header.capture_id]\n",
        "        chunks = [c for c in list(self._pending.copy())[:-1] if c.capture_id == self._header.capture_id]\n",
    ),
    Mutation(
        "closing forgets the open chunk",
        "capture/writer.py",
        "        if not self._closed:\n            self.flush()\n",
        "        if not self._closed:\n",
    ),
    Mutation(
        "the writer's queue has no bound",
        "capture/writer.py",
        "        if queued and queued + size > self._settings.queue_bytes_max:\n",
        "        if queued < 0:\n",
        (
            (
                "        return 4 * (self._handed_bytes - self._taken_bytes) >=",
                "        return self._handed_bytes < 0 and 0 >=",
            ),
        ),
    ),
    Mutation(
        "a failed write is not cut back",
        "capture/output.py",
        "            os.ftruncate(self._fd, self.end)\n            os.lseek(self._fd, self.end, os.SEEK_SET)\n\n",
        "            pass\n\n",
    ),
    Mutation(
        "a short write is taken for a whole one",
        "capture/osfile.py",
        "    if written == len(data):\n        return\n",
        "    return\n",
    ),
    Mutation(
        "following reads chunks that are not there whole",
        "capture/tail.py",
        "            if os.fstat(self._fd).st_size < end:\n                return False\n",
        "",
    ),
    Mutation(
        "sealing what a dead run left drops its last chunk",
        "capture/leftover.py",
        """    for chunk, batches in reader.decoded():
        file.keep(chunk.offset, chunk.meta, batches)
""",
        """    for chunk, batches in list(reader.decoded())[:-1]:
        file.keep(chunk.offset, chunk.meta, batches)
""",
    ),
    Mutation(
        "the mark itself is produced again",
        "kafka/resume.py",
        "        if position[POSITION_ORDER] <= route[1]:\n",
        "        if position[POSITION_ORDER] < route[1]:\n",
    ),
    Mutation(
        "a start does not let a dead run's batches settle",
        "deliver.py",
        "            await asyncio.sleep(settle_s)\n",
        "            await asyncio.sleep(0)\n",
    ),
    Mutation(
        "the name of a delivery file is not synced",
        "live/receipt.py",
        "            sync_directory(path.parent)\n",
        "            pass\n",
    ),
    Mutation(
        "a batch whose ack was lost is sent again without looking",
        "kafka/recovery.py",
        "        if not unwritten and await self._was_written(part, batch):\n            return\n",
        "",
    ),
    Mutation(
        "a batch that failed is looked for at once",
        "kafka/recovery.py",
        "        await asyncio.sleep(sink.settings.settle_s)\n",
        "",
    ),
    Mutation(
        "a partition ships without waiting for the ack",
        "kafka/sink.py",
        "        if part.flying is not None or self._closed:\n            return\n",
        "        if self._closed:\n            return\n",
    ),
    Mutation(
        "a batch that came back goes to the end of the queue",
        "kafka/sink.py",
        "        part.waiting.extendleft(reversed(parts))\n",
        "        part.waiting.extend(parts)\n",
    ),
    Mutation(
        "a record that is refused is not counted as failed",
        "kafka/sink.py",
        "        self.failed += 1\n        tally.failed += 1\n",
        "        self.acked += 1\n        tally.acked += 1\n",
    ),
    Mutation(
        "acks are not taken out of the buffer's size",
        "kafka/sink.py",
        "        self._buffer(-batch.size)\n        if self._latency is not None:\n",
        "        if self._latency is not None:\n",
    ),
    Mutation(
        "a receipt does not count what died with its process",
        "deliver.py",
        "            uncaptured=orphans,\n",
        "            uncaptured=0,\n",
    ),
)
