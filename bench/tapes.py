"""What is measured on: frames of a capture, and long tapes made of copies of it.

A tape is a capture in which every copy of the source is later than the one before: receive times, venue times and trade
ids are moved on by the length of the source, digit for digit, so no copy is a duplicate to the pipeline and every frame
keeps its size. Nothing here is on a measured path. Times in ns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kcs
from kcs.capture.format import CaptureHeader
from kcs.capture.ndjson import import_ndjson, read_lines
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.model import Kind, Record
from kcs.sim.settings import SimSettings
from kcs.sim.tape import write_tape

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "fixtures" / "upbit.zst"
REAL_FRAMES = ROOT.parent / "shared" / "captures" / "upbit.jsonl"
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

_FRAMES = (Kind.TEXT, Kind.BINARY)
_MOVED = re.compile(rb'"(?:timestamp|trade_timestamp|sequential_id|tms|ttms|sid)":(\d{13,17})')
_UNIT = re.compile(rb"\{\"ask_price\"[^}]*\}")


@dataclass(slots=True, frozen=True)
class Frames:
    """The data frames of a capture that carry market data, in order, by what they are."""

    all: list[bytes]
    trade: list[bytes]
    orderbook: list[bytes]
    ticker: list[bytes]

    @property
    def mean_bytes(self) -> int:
        """Mean size of a frame."""
        return sum(map(len, self.all)) // len(self.all)


def frames_of(path: Path) -> Frames:
    """The market frames of a capture of Upbit, whatever its wire format."""
    found: dict[str, list[bytes]] = {"trade": [], "orderbook": [], "ticker": []}
    everything = []
    with CaptureReader(path) as reader:
        for record in reader.records():
            kind = re.match(rb'\[?\{"(?:type|ty)":"(\w+)"', record.payload) if record.kind in _FRAMES else None
            if kind is not None and (name := kind[1].decode()) in found:
                found[name].append(record.payload)
                everything.append(record.payload)
    return Frames(everything, **found)


def simulated_short(target: Path) -> Path:
    """Simulated frames in the shape of the real recording: SIMPLE spelling, trades and books of 15 levels."""
    settings = SimSettings(rate=1000, channels=("trade", "orderbook"))
    write_tape(target, settings, 12 * NS_PER_S, wire_format="SIMPLE", depth=15)
    return target


def imported(source: Path, target: Path) -> Path:
    """A capture made of recorded NDJSON, as `kcs import` makes it."""
    with source.open("rb") as lines:
        import_ndjson(read_lines(lines), target, "upbit", kcs_version=kcs.__version__)
    return target


def moved(payload: bytes, ms: int) -> bytes:
    """The frame with its times `ms` later and its ids as much higher; the same length."""

    def later(found: re.Match[bytes]) -> bytes:
        digits = found[1]
        value = int(digits) + ms * 10 ** (len(digits) - 13)  # ids are the time with digits behind it
        return found[0].replace(digits, b"%d" % value)

    return _MOVED.sub(later, payload)


def long_tape(source: Path, directory: Path, frames: int) -> Path:
    """A sealed capture of about `frames` data frames: the source over and over, each time later."""
    with CaptureReader(source) as reader:
        records = list(reader.records())
        header = CaptureHeader(
            capture_id=b"kcsbench",
            run_id=b"kcsbench",
            exchange=reader.header.exchange,
            url=reader.header.url,
            created_ns=reader.header.created_ns,
            kcs_version=kcs.__version__,
            options=dict(reader.header.options),
        )
    span_ms = (records[-1].recv_ns - records[0].recv_ns) // NS_PER_MS + 10_000
    copies = max(1, round(frames / sum(record.kind in _FRAMES for record in records)))
    settings = WriterSettings(threaded=False, flush_ns=1 << 60)  # full chunks, as on a busy feed or after repacking
    directory.mkdir(parents=True, exist_ok=True)
    writer = CaptureWriter(directory, header, settings=settings, new_id=lambda: b"kcsbench")
    for record in _copies(records, copies, span_ms):
        if record.fields is None:
            writer.append(int(record.kind), record.stream, record.recv_ns, record.payload)
        else:
            writer.append_fields(int(record.kind), record.stream, record.recv_ns, record.fields, record.payload)
    (sealed,) = writer.close(records[-1].recv_ns + copies * span_ms * NS_PER_MS)
    return sealed.path


def _copies(records: list[Record], copies: int, span_ms: int) -> Iterator[Record]:
    for copy in range(copies):
        ms = copy * span_ms
        for record in records:
            payload = moved(record.payload, ms) if record.kind in _FRAMES else record.payload
            yield Record(
                record.number, record.kind, record.stream, record.recv_ns + ms * NS_PER_MS, payload, record.fields
            )


def book_of_1024_bytes(book: bytes) -> bytes:
    """An order book in DEFAULT spelling, cut to what fits into 1,024 bytes, padded with a key nobody reads."""
    units = _UNIT.findall(book)
    head, tail = book[: book.index(b"[{") + 1], book[book.rindex(b"}]") + 1 :]
    while len(head) + len(b",".join(units)) + len(tail) > 1024 - len(b',"pad":""'):
        units.pop()
    whole = head + b",".join(units) + tail
    padding = b"-" * (1024 - len(whole) - len(b',"pad":""'))
    return whole[:-1] + b',"pad":"' + padding + b'"}'
