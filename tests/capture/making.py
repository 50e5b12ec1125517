"""What the capture tests make files with: ids, headers, records, and small files with several chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from kcs.capture.format import CaptureHeader
from kcs.capture.reader import CaptureReader
from kcs.capture.scan import Chunk
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.errors import CaptureWriteError
from kcs.model import ClockFields, CloseFields, GapFields, Kind, OpenFields, Record, RestFields, StateFields

START_NS = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def ids(first: int = 1) -> Callable[[], bytes]:
    """A generator of ids: 1, 2, 3..."""
    numbers = itertools.count(first)
    return lambda: next(numbers).to_bytes(8, "big")


def header(number: int = 1, exchange: str = "upbit") -> CaptureHeader:
    capture_id = number.to_bytes(8, "big")
    return CaptureHeader(
        capture_id=capture_id,
        run_id=capture_id,
        exchange=exchange,
        url="wss://api.upbit.com/websocket/v1",
        created_ns=START_NS,
        kcs_version="0.1.0",
        options={"channels": ["trade", "orderbook"], "depth": 15},
    )


def writer(
    directory: Path,
    *,
    number: int = 1,
    threaded: bool = False,
    on_error: Callable[[CaptureWriteError], None] | None = None,
    **settings: object,
) -> CaptureWriter:
    chosen = WriterSettings(threaded=threaded, **settings)  # type: ignore[arg-type]
    return CaptureWriter(directory, header(number), settings=chosen, new_id=ids(number + 1), on_error=on_error)


def all_kinds() -> list[Record]:
    """One record of every kind and more, with payloads that are no UTF-8, empty, and of another stream."""
    t = START_NS
    return [
        Record(0, Kind.OPEN, 1, t, b"", OpenFields(url="wss://api.upbit.com/websocket/v1")),
        Record(1, Kind.SENT, 1, t + 1, b'[{"ticket":"t"}]'),
        Record(2, Kind.TEXT, 1, t + 2, b'{"status":"UP"}'),
        Record(3, Kind.BINARY, 1, t + 3, b"\x1f\x8b\x00\xff not text"),
        Record(4, Kind.TEXT, 4_000_000_000, t + 1, b""),
        Record(5, Kind.REST, 1, t + 4, b'{"bids":[]}', RestFields(url="https://api.upbit.com/v1/o", status=503)),
        Record(6, Kind.GAP, 1, t + 5, b"", GapFields(t, t + 5, "silence", ("KRW-BTC", "KRW-ETH"), 3)),
        Record(7, Kind.CLOCK, 0, t + 6, b"", ClockFields(wall_ns=t + 6, monotonic_ns=6)),
        Record(8, Kind.CLOSE, 1, t + 7, b"", CloseFields(code=1006, reason="경고", cause="silence", frames=2)),
        Record(9, Kind.STATE, 1, t + 8, b"\x00state", StateFields(market="KRW-BTC")),
        Record(10, Kind.OPEN, 1, t + 9, b"", OpenFields(url="wss://other", cause="silence", frames=2, continued=False)),
    ]


def append(target: CaptureWriter, record: Record) -> None:
    if record.fields is None:
        target.append(record.kind, record.stream, record.recv_ns, record.payload)
    else:
        target.append_fields(record.kind, record.stream, record.recv_ns, record.fields, record.payload)


def frames(count: int, first: int = 0, step_ns: int = 1_000_000) -> Iterator[Record]:
    """Text records whose payload is a function of their number."""
    for number in range(first, first + count):
        yield Record(number, Kind.TEXT, number % 3, START_NS + number * step_ns, payload_of(number))


def payload_of(number: int) -> bytes:
    return b'{"n":%d,"x":"%d"}' % (number, number * 2654435761 % 2**32)


def make(directory: Path, chunks: int = 4, each: int = 3, *, sealed: bool = True, number: int = 1) -> Path:
    """A file of `chunks` chunks of `each` frames."""
    target = writer(directory, number=number)
    for record in frames(chunks * each):
        append(target, record)
        if record.number % each == each - 1:
            target.flush()
    if sealed:
        return target.close(START_NS)[0].path
    path = target.path
    target._worker.file.abandon()
    target._worker._lock.release()
    return path


def records_of(path: Path, *, strict: bool = True) -> list[Record]:
    with CaptureReader(path, strict=strict) as reader:
        return list(reader.records())


def chunks_of(path: Path) -> list[Chunk]:
    with CaptureReader(path) as reader:
        return list(reader.chunks())
