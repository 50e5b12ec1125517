"""What captures must have become in Kafka, on disk: the side of an audit that comes from the captures.

An `Expectation` is a `kcs.sink.Sink`: a pipeline fed with a capture fills it, record by record, in capture order. It
keeps no content but one *entry* of 60 bytes a record, by topic and partition, in a nameless temporary file: the
position, the timestamp, and 64-bit hashes of key, value and headers. Entries of one partition are sorted by position,
so any position can be looked up; memory does not grow with the capture.

The hash is Python's own of bytes (SipHash with a key of this process): two different contents pass as equal once in
2**64 times, and entries mean nothing outside this process. Raises KcsError where the temporary directory has no room.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from struct import Struct
from types import TracebackType
from typing import Any, Final

from kcs.errors import KcsError
from kcs.sink import HEADER_NAME, Headers

Place = tuple[str, int]
"""Topic and partition."""

ENTRY_BYTES: Final = 60
POSITION_BYTES: Final = 20
ORDER_BYTES: Final = 12
"""Frame number and event index: the part of a position that orders the records of a capture."""

FIELDS: Final = ("timestamp", "key", "value", "named header", "headers")
"""What an entry has behind its position, 8 bytes each. The named header is `id`, on the reject topic `reason`."""

_pack: Final = Struct("=qqqqq").pack
_MS_NS: Final = 1_000_000
_BLOCK_ENTRIES: Final = 512
_BLOCK_BYTES: Final = _BLOCK_ENTRIES * ENTRY_BYTES
_ABSENT: Final = 1
_NO_HEADERS: Final = hash(())
_TWO: Final = 2


def named_header(channel: str) -> str:
    """The header that is told apart from the others on this channel's topic."""
    return "reason" if channel == "reject" else "id"


def entry_of(position: bytes, message: Any, named: str) -> bytes:
    """The entry of a record that was read; `position` comes from its header `kcs`, of which it has at least one."""
    headers = message.headers
    if len(headers) == 1:
        name_hash, rest_hash = _ABSENT, _NO_HEADERS
    elif len(headers) == _TWO and headers[1][0] == named:
        name_hash, rest_hash = hash(headers[1][1]), _NO_HEADERS
    else:
        name_hash, rest_hash = _split(headers, named)
    return position + _pack(message.timestamp, hash(message.key), hash(message.value), name_hash, rest_hash)


def _split(headers: Sequence[tuple[str, bytes]], named: str) -> tuple[int, int]:
    """Hashes of the named header and of all others but the first `kcs`."""
    rest = list(headers)
    del rest[next(i for i, (name, _) in enumerate(rest) if name == HEADER_NAME)]
    for i, (name, content) in enumerate(rest):
        if name == named:
            del rest[i]
            return hash(content), hash(tuple(rest))
    return _ABSENT, hash(tuple(rest))


def differences(expected: bytes, found: bytes, named: str) -> tuple[str, ...]:
    """The names of what two entries of one position do not have in common."""
    names = [] if expected[ORDER_BYTES:POSITION_BYTES] == found[ORDER_BYTES:POSITION_BYTES] else ["header kcs"]
    for number, name in enumerate(FIELDS):
        at = POSITION_BYTES + 8 * number
        if expected[at : at + 8] != found[at : at + 8]:
            names.append(f"header {named}" if name == "named header" else name)
    return tuple(names)


class Spool:
    """The temporary file of one audit. Filled by its `Expectation`s, then read; a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="kcs-verify-", buffering=0)  # noqa: SIM115 - closed by `close`
        self._size = 0

    def write(self, block: bytes) -> int:
        """Keep a block; returns where it begins."""
        at = self._size
        left = memoryview(block)
        try:
            while left:
                left = left[os.write(self._file.fileno(), left) :]
        except OSError as error:
            raise KcsError(
                f"no room for what the captures make, 60 bytes a record: {error.strerror or error}",
                where=tempfile.gettempdir(),
                remedy="TMPDIR=/a/larger/directory kcs verify ...",
            ) from None
        self._size += len(block)
        return at

    def read(self, at: int, size: int) -> bytes:
        """A part of what was written."""
        return os.pread(self._file.fileno(), size, at)

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Shelf:
    """The entries of one capture on one partition: `blocks` are their places in the spool, all full but the last."""

    __slots__ = ("_spool", "blocks", "count", "named", "pending")

    def __init__(self, spool: Spool, named: str) -> None:
        self._spool = spool
        self.named = named
        self.blocks: list[int] = []
        self.count = 0
        self.pending = bytearray()

    def flush(self) -> None:
        """Move what is pending to the spool."""
        self.blocks.append(self._spool.write(bytes(self.pending)))
        self.pending.clear()

    def entry(self, index: int, size: int = ENTRY_BYTES) -> bytes:
        """The first `size` bytes of an entry; after the last `flush`."""
        block, within = divmod(index, _BLOCK_ENTRIES)
        return self._spool.read(self.blocks[block] + within * ENTRY_BYTES, size)

    def entries(self, index: int) -> bytes:
        """This entry and those that follow it in its block."""
        follow = min(self.count - index, _BLOCK_ENTRIES - index % _BLOCK_ENTRIES)
        return self.entry(index, follow * ENTRY_BYTES)


class _Route:
    __slots__ = ("key_hash", "shelf")

    def __init__(self, shelf: Shelf, key_hash: int) -> None:
        self.shelf = shelf
        self.key_hash = key_hash


class Expectation:
    """What one capture makes: a sink for its pipeline. `place_of(channel, exchange, key)` says where a record goes."""

    full = False

    def __init__(self, spool: Spool, place_of: Callable[[str, str, bytes], Place]) -> None:
        self._spool = spool
        self._place_of = place_of
        self.shelves: dict[Place, Shelf] = {}
        self.acked = 0
        self.failed = 0

    def start(self, capture_id: bytes) -> None:
        """One expectation, one capture."""

    def route(self, channel: str, exchange: str, key: str) -> _Route:
        raw_key = key.encode()
        place = self._place_of(channel, exchange, raw_key)
        shelf = self.shelves.get(place)
        if shelf is None:
            shelf = self.shelves[place] = Shelf(self._spool, named_header(channel))
        return _Route(shelf, hash(raw_key))

    def emit(
        self, route: _Route, value: bytes, recv_ns: int, position: bytes, trade_id: bytes, headers: Headers = ()
    ) -> None:
        """Take one record."""
        shelf = route.shelf
        if headers:
            name_hash, rest_hash = _split(((HEADER_NAME, b""), *headers), shelf.named)
        else:
            name_hash, rest_hash = _ABSENT, _NO_HEADERS
        if trade_id:
            name_hash = hash(trade_id)
        pending = shelf.pending
        pending += position + _pack(recv_ns // _MS_NS, route.key_hash, hash(value), name_hash, rest_hash)
        shelf.count += 1
        self.acked += 1
        if len(pending) == _BLOCK_BYTES:
            shelf.flush()

    def seal(self) -> None:
        """The capture is at its end: everything goes to the spool."""
        for shelf in self.shelves.values():
            if shelf.pending:
                shelf.flush()

    async def room(self) -> None:
        """Never full."""

    async def drain(self) -> None:
        """Nothing in flight."""

    async def close(self) -> None:
        """The spool belongs to the audit."""
