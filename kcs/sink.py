"""Where records go: the `Sink` protocol, the digest, and the sinks that need no broker.

Contract: `Pipeline` calls `route` once per (channel, key) and keeps what it returns; then `emit` once per record, in
capture order, never awaiting. `full` is tested *before* a frame; a frame once fed is taken whole, so a sink must accept
the records of one frame even when it just became full. The caller awaits `room` (replay) or falls behind (live).

A record's *position* is 20 packed bytes: frame number u64, event index u32, receive time in ns u64, big-endian
(`POSITION`); the `kcs` header is the capture id (8 bytes) followed by the position.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from struct import Struct
from typing import IO, Any, Final, Protocol

import orjson

from kcs.errors import ConfigError, KcsError

POSITION: Final = Struct(">QIQ")
"""frame number, event index, receive time in ns."""

RECORD_META: Final = Struct(">IQIQIQ")
"""Value length, timestamp in ms, trade id length, then the position: made in one go, for the digest and the header."""

META_POSITION: Final = 16
"""Where the position begins in `RECORD_META`."""

HEADER_NAME: Final = "kcs"
RECORD_SCHEMA_VERSION: Final = 2
"""Counts changes of what a capture becomes in Kafka; digests of different versions do not compare."""

RECORD_BYTES_MAX: Final = 900 * 1024
"""No record value is larger: one that Kafka refuses for its size would stop its partition."""

Headers = tuple[tuple[str, bytes], ...]

DIGEST_PARTS_MAX: Final = 192
"""Flushed every 48 records: what is held longer falls out of the processor's cache, which costs more than hashing."""
_LINES_MAX: Final = 64
"""Records that wait for the end of the loop's turn on their way to stdout."""
_LENGTH: Final = Struct(">I").pack


class Sink(Protocol):
    """Takes records. Not thread-safe: one loop, one sink."""

    @property
    def acked(self) -> int:
        """Records that reached their destination."""
        ...

    @property
    def failed(self) -> int:
        """Records that are lost for good; each one is named in an error on stderr."""
        ...

    @property
    def full(self) -> bool:
        """True while the bounded buffer is over its mark."""
        ...

    def start(self, capture_id: bytes) -> None:
        """Records from now on belong to this capture file (8 bytes)."""
        ...

    def route(self, channel: str, exchange: str, key: str) -> Any:
        """A handle for `emit`; opaque to the caller, who keeps one per (channel, key)."""
        ...

    def emit(
        self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        """Take one record. Its Kafka timestamp is `recv_ns // 1_000_000`."""
        ...

    async def room(self) -> None:
        """Return when `full` is False."""
        ...

    async def drain(self) -> None:
        """Return when every record taken is acked or failed."""
        ...

    async def close(self) -> None:
        """Drain and release; safe to call twice."""
        ...


class Digest:
    """SHA-256 over the records of one capture file, in capture order.

    Per record: u32 length and bytes of canonical topic (`{channel}.{exchange}`), the same of the key, then u32 value
    length, u64 timestamp ms, u32 trade id length, position (20 bytes), trade id, value; integers big-endian. Capture
    id, topic template and headers do not enter.

    A record is four parts: prefix of its route, `RECORD_META`, trade id, value. Many are hashed at once, when there are
    more than `DIGEST_PARTS_MAX` parts. The pipeline's hot paths have `add` written out.
    """

    __slots__ = ("_sha", "parts", "records")

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.parts: list[bytes] = []
        self.records = 0

    @staticmethod
    def prefix(channel: str, exchange: str, key: str) -> bytes:
        """The part that is the same for all records of a route; made once."""
        topic = f"{channel}.{exchange}".encode()
        raw_key = key.encode()
        return _LENGTH(len(topic)) + topic + _LENGTH(len(raw_key)) + raw_key

    def add(self, prefix: bytes, meta: bytes, trade_id: bytes, value: bytes) -> None:
        """Take one record."""
        self.parts += (prefix, meta, trade_id, value)
        if len(self.parts) > DIGEST_PARTS_MAX:
            self.flush()

    def flush(self) -> None:
        """Hash what waits in `parts`."""
        self.records += len(self.parts) // 4
        self._sha.update(b"".join(self.parts))
        self.parts.clear()

    def copy(self) -> Digest:
        """A second one that has taken the same records."""
        self.flush()
        other = Digest()
        other._sha, other.records = self._sha.copy(), self.records
        return other

    def hexdigest(self) -> str:
        """The digest so far; more records may follow."""
        self.flush()
        return self._sha.hexdigest()


class NullSink:
    """Takes everything and keeps nothing: capture only, benchmarks, `kcs verify`."""

    __slots__ = ("acked", "failed")

    def __init__(self) -> None:
        self.acked = 0
        self.failed = 0

    @property
    def full(self) -> bool:
        return False

    def start(self, capture_id: bytes) -> None:
        """Nothing depends on the capture here."""

    def route(self, channel: str, exchange: str, key: str) -> None:
        return None

    def emit(
        self, route: Any, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        self.acked += 1

    async def room(self) -> None:
        """Never full."""

    async def drain(self) -> None:
        """Nothing in flight."""

    async def close(self) -> None:
        """Nothing to release."""


class StdoutSink:
    """One NDJSON object a record: topic, key, value (parsed), timestamp (ms), headers (position decoded).

    A record is acked when the system took it: `soon` (of the loop) is asked to write what a turn produced, so a reader
    sees a paced replay as it happens. When the reader is gone, `room` and `drain` raise KcsError.
    """

    __slots__ = ("_capture", "_error", "_lines", "_out", "_soon", "_template", "acked", "failed")

    def __init__(
        self, template: str, out: IO[bytes] | None = None, soon: Callable[[Callable[[], None]], Any] | None = None
    ) -> None:
        """Raises ConfigError for a template that cannot be filled in."""
        try:
            template.format(channel="trade", exchange="x")
        except (LookupError, ValueError, AttributeError) as error:
            remedy = "use the placeholders {channel} and {exchange}"
            raise ConfigError(f"bad topic template: {error}", where=template, remedy=remedy) from None
        self.acked = 0
        self.failed = 0
        self._template = template
        self._capture = ""
        self._out = out or sys.stdout.buffer
        self._soon = soon or (lambda write: write())
        self._lines: list[bytes] = []
        self._error: OSError | None = None

    @property
    def full(self) -> bool:
        return self._error is not None

    def _flush(self) -> None:
        records, lines = len(self._lines), b"".join(self._lines)
        self._lines.clear()
        try:
            if self._error is None:
                self._out.write(lines)
                self._out.flush()
                self.acked += records
                return
        except OSError as error:
            self._error = error
        self.failed += records

    def start(self, capture_id: bytes) -> None:
        self._capture = capture_id.hex()

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, str, bool]:
        return self._template.format(channel=channel, exchange=exchange), key, channel == "reject"

    def emit(
        self,
        route: tuple[str, str, bool],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        topic, key, raw = route
        number, index, _ = POSITION.unpack(position)
        shown: dict[str, Any] = {
            "kcs": {"capture": self._capture, "frame": number, "event": index, "recv_ns": recv_ns},
        }
        if trade_id:
            shown["id"] = trade_id.decode()
        for name, content in headers:
            shown[name] = content.decode("utf-8", "replace")
        record = {
            "topic": topic,
            "key": key,
            "value": value.decode("utf-8", "replace") if raw else orjson.Fragment(value),
            "timestamp": recv_ns // 1_000_000,
            "headers": shown,
        }
        self._lines.append(orjson.dumps(record) + b"\n")
        if len(self._lines) == 1:
            self._soon(self._flush)
        elif len(self._lines) >= _LINES_MAX:
            self._flush()

    async def room(self) -> None:
        """Never full while somebody reads: a slow reader blocks the write itself."""
        if self._error is not None:
            what = f"{self._error.strerror}: {self.failed:,} records or more did not arrive, {self.acked:,} did"
            raise KcsError(what, where="stdout")

    async def drain(self) -> None:
        """Write what is left."""
        self._flush()
        await self.room()

    async def close(self) -> None:
        """The stream belongs to the process."""
