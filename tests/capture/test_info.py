"""What `kcs info` shows, and that its cost does not grow with the file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kcs.capture.format import ChunkMeta, encode_header, encode_index, header_fields, pack_entry
from kcs.capture.info import describe, utc
from kcs.capture.reader import CaptureReader
from kcs.capture.tally import Tally
from kcs.clock import NS_PER_MS, SystemClock
from tests.capture.making import START_NS, all_kinds, append, chunks_of, header, make, writer
from tests.capture.test_reader import flip


def filled(directory: Path) -> Path:
    target = writer(directory)
    for record in all_kinds():
        append(target, record)
    return target.close(START_NS)[0].path


def test_info_is_the_same_from_the_index_and_by_counting(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with CaptureReader(path) as reader:
        sealed = reader.info()
    chunk = chunks_of(path)[0]
    os.truncate(path, chunk.offset + 72 + chunk.meta.stored_bytes)
    partial = path.with_name(path.name + ".partial")
    path.rename(partial)
    with CaptureReader(partial) as reader:
        counted = reader.info()
    assert sealed.sealed
    assert not counted.sealed
    same = msgspec.structs.replace(counted, path=sealed.path, sealed=True, bytes=sealed.bytes)
    assert same == sealed
    assert sealed.frames == 3
    assert sealed.reconnects == 1
    assert sealed.gap_count == 1
    assert sealed.urls == ("wss://api.upbit.com/websocket/v1", "wss://other")
    assert (sealed.first_ns, sealed.last_ns) == (START_NS, START_NS + 9)
    assert sealed.options == {"channels": ["trade", "orderbook"], "depth": 15}


def test_info_is_json(tmp_path: Path) -> None:
    with CaptureReader(filled(tmp_path)) as reader:
        info = reader.info()
    assert msgspec.json.decode(msgspec.json.encode(info), type=type(info)) == info


def test_description_for_people(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with CaptureReader(path) as reader:
        text = "\n".join(describe(reader.info()))
    for part in ("sealed", "upbit", "2023-11-14T22:13:20.000000000Z", "11 (", "2 text", "reconnects 1", "silence"):
        assert part in text
    flip(path, chunks_of(path)[0].offset + 90, 1)
    with CaptureReader(path, strict=False) as reader:
        list(reader.batches())
        text = "\n".join(describe(reader.info()))
    assert "11 records lost from number 0" in text
    assert "kcs recover" in text


def test_description_of_what_is_not_sealed_and_of_nothing(tmp_path: Path) -> None:
    with CaptureReader(make(tmp_path / "a", chunks=0, sealed=False)) as reader:
        info = reader.info()
    assert (info.records, info.first_ns, info.ratio) == (0, None, None)
    assert "not sealed" in "\n".join(describe(info))


def test_utc() -> None:
    assert utc(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    assert utc(0) == "1970-01-01T00:00:00.000000000Z"


def test_info_of_a_gigabyte_and_of_a_day_of_small_chunks_is_quick(tmp_path: Path) -> None:
    """A sparse stand-in: 1 GB between header and index, 345,600 entries (four a second for a day)."""
    path = tmp_path / "huge.zst"
    head = encode_header(header())
    size, chunks = 1 << 30, 345_600
    meta = ChunkMeta(0, 10, 3000, 9000, 0, START_NS, START_NS)
    entries = b"".join(pack_entry(len(head) + n * 3000, meta) for n in range(1000)) * (chunks // 1000 + 1)
    entries = entries[: chunks * 48]
    summary = Tally().summary(header_fields(header()))
    parts = encode_index(
        header().capture_id, entries, msgspec.json.encode(summary), offset=size, records=10 * chunks, next_number=7
    )
    assert sum(map(len, parts)) < 17_000_000
    with path.open("wb") as out:
        out.write(head)
        out.truncate(size)
        out.seek(size)
        for part in parts:
            out.write(part)
    clock = SystemClock()
    took = []
    for _ in range(5):
        start = clock.monotonic_ns()
        with CaptureReader(path) as reader:
            assert reader.info().chunks == chunks
        took.append(clock.monotonic_ns() - start)
    assert min(took) < 20 * NS_PER_MS
