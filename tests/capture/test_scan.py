"""Finding chunks: tags across block borders, and the search after damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kcs.capture.format import CHUNK_TAG, INDEX_TAG, MIB, Malformed
from kcs.capture.reader import CaptureReader
from kcs.capture.scan import RawFile, find_index, find_tags
from tests.capture.making import START_NS, append, chunks_of, frames, make, records_of, writer

ID = bytes(range(8))


def opened(path: Path) -> RawFile:
    fd = os.open(path, os.O_RDONLY)
    return RawFile(fd, path.stat().st_size)


@pytest.mark.parametrize("at", [0, 5, MIB - 20, MIB - 12, MIB - 8, MIB - 1, MIB, 2 * MIB + 3])
def test_tags_are_found_wherever_blocks_end(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x"
    for tag in (CHUNK_TAG, INDEX_TAG):
        path.write_bytes(bytes(at + 8) + tag + ID + bytes(100))
        file = opened(path)
        assert list(find_tags(file, ID, 0, file.size)) == [at]
        assert list(find_tags(file, None, 0, file.size)) == [at]
        assert list(find_tags(file, ID[::-1], 0, file.size)) == []
        assert list(find_tags(file, ID, at + 1, file.size)) == []
        os.close(file.fd)


def test_tags_come_in_order_each_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    block = INDEX_TAG + ID + bytes(3) + CHUNK_TAG + ID + bytes(MIB // 2)
    path.write_bytes(block * 5)
    file = opened(path)
    found = list(find_tags(file, ID, -8, file.size))
    assert found == sorted(found)
    assert len(found) == len(set(found)) == 10
    os.close(file.fd)


def test_file_that_shrinks_while_it_is_read_is_damage_not_a_hang(tmp_path: Path) -> None:
    path = make(tmp_path)
    with CaptureReader(path, strict=False) as reader:
        os.truncate(path, chunks_of(path)[2].offset + 10)
        assert [r.number for r in reader.records()] == [0, 1, 2, 3, 4, 5]
        assert sum(d.records_lost or 0 for d in reader.damage) >= 6


def test_no_index_is_malformed(tmp_path: Path) -> None:
    file = opened(make(tmp_path, sealed=False))
    with pytest.raises(Malformed):
        find_index(file)
    os.close(file.fd)


def test_large_chunks_after_damage_are_found_again(tmp_path: Path) -> None:
    """Two chunks of more than a search block each, the first one's descriptor and data destroyed."""
    target = writer(tmp_path, chunk_bytes_max=4 * MIB)
    for number in range(3):
        target.append(3, 1, START_NS + number, os.urandom(3 * MIB))
        target.flush()
    path = target.path
    target._worker.file.abandon()
    first = chunks_of(path)[0]
    with path.open("r+b") as out:
        out.seek(first.offset)
        out.write(bytes(200))
    assert [r.number for r in records_of(path, strict=False)] == [1, 2]
    target._worker._lock.release()


def test_index_damage_costs_no_record_and_only_that_is_said(tmp_path: Path) -> None:
    path = make(tmp_path)
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    with CaptureReader(path, strict=False) as reader:
        assert list(reader.records()) == list(frames(12))
        assert [d.records_lost for d in reader.damage] == [0]


def test_holes_are_kept_and_are_no_damage(tmp_path: Path) -> None:
    from kcs.capture.output import CaptureFile
    from tests.capture.making import header

    file = CaptureFile(tmp_path / "a.partial", tmp_path / "a.zst", header())
    file.write(4, [(3, 1, 5, b"a")])
    file.write(9, [(3, 1, 6, b"b")])
    assert [r.number for r in records_of(file.path)] == [4, 9]
    file.seal()
    with CaptureReader(tmp_path / "a.zst") as reader:
        assert [r.number for r in reader.records()] == [4, 9]
        assert reader.info().holes == ((0, 4), (5, 4))
        assert reader.damage == []


def test_frames_helper_agrees_with_itself(tmp_path: Path) -> None:
    target = writer(tmp_path)
    for record in frames(5):
        append(target, record)
    assert records_of(target.close(START_NS)[0].path) == list(frames(5))
