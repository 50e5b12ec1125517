"""What a file is, and what it says it is not."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import zstandard

from kcs.capture.reader import CaptureReader
from kcs.errors import DamagedCaptureError, NewerFormatError, NotACaptureError
from tests.capture.making import frames, header, make, records_of
from tests.capture.test_format import resign

FOREIGN = {
    "empty": (b"", "empty", ""),
    "gzip": (gzip.compress(b"{}"), "gzip", "decompress"),
    "zstd": (zstandard.compress(b"{}"), "plain Zstandard", "zstd -dc"),
    "skippable": (bytes.fromhex("502a4d1804000000") + b"abcd", "another program", ""),
    "json lines": (b'{"recv_ns":1}\n', "JSON lines", "kcs import"),
    "json lines, indented, with a mark": (b'\xef\xbb\xbf \n {"recv_ns":1}\n', "JSON lines", "kcs import"),
    "json": (b"[1,2]", "JSON", "kcs import"),
    "zip": (b"PK\x03\x04rest", "zip", "unpack"),
    "parquet": (b"PAR1....PAR1", "Parquet", "export"),
    "zeros": (bytes(5000), "begins with bytes 00 00", ""),
    "one byte": (b"\x5c", "begins with", ""),
    "text": (b"hello", "begins with", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("strict", [True, False])
def test_not_a_capture_says_what_it_looks_like(tmp_path: Path, name: str, strict: bool) -> None:
    content, says, remedy = FOREIGN[name]
    path = tmp_path / "x.zst"
    path.write_bytes(content)
    with pytest.raises(NotACaptureError) as caught:
        CaptureReader(path, strict=strict)
    assert says in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.where == str(path)


def test_directory_and_fifo(tmp_path: Path) -> None:
    with pytest.raises(NotACaptureError, match="directory") as caught:
        CaptureReader(tmp_path)
    assert "*.zst" in caught.value.remedy
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotACaptureError, match="not a regular file"):
        CaptureReader(tmp_path / "fifo")


def test_newer_version_is_named_even_when_the_rest_is_unknown(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path).read_bytes())
    length = 36 + int.from_bytes(data[20:24], "little")
    data[16] = 9
    path = tmp_path / "newer.zst"
    path.write_bytes(resign(bytes(data[:length]), 32) + b"whatever version 9 has here")
    for strict in (True, False):
        with pytest.raises(NewerFormatError, match="version 9") as caught:
            CaptureReader(path, strict=strict)
        assert "upgrade" in caught.value.remedy


def test_header_lost_from_a_sealed_file_comes_from_the_summary(tmp_path: Path) -> None:
    path = make(tmp_path)
    data = path.read_bytes()
    renamed = tmp_path / "renamed.zst"
    renamed.write_bytes(bytes(36) + data[36:])
    with pytest.raises(DamagedCaptureError):
        CaptureReader(renamed)
    with CaptureReader(renamed, strict=False) as reader:
        assert reader.header == header()
        assert list(reader.records()) == list(frames(12))
        assert [d.records_lost for d in reader.damage] == [0]


def test_header_lost_from_a_partial_leaves_exchange_and_id(tmp_path: Path) -> None:
    path = make(tmp_path, sealed=False)
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 40 + data[40:])
    with CaptureReader(path, strict=False) as reader:
        assert (reader.header.exchange, reader.header.capture_id) == ("upbit", header().capture_id)
        assert list(reader.records()) == list(frames(12))
    other = tmp_path / "nameless.partial"
    path.rename(other)
    with CaptureReader(other, strict=False) as reader:
        assert (reader.header.exchange, reader.header.capture_id) == ("", header().capture_id)


def test_header_alone_and_cut(tmp_path: Path) -> None:
    path = make(tmp_path, chunks=0, sealed=False)
    assert records_of(path) == []
    data = path.read_bytes()
    for end in (12, 16, 40, len(data) - 1):
        path.write_bytes(data[:end])
        for strict in (True, False):
            with pytest.raises(DamagedCaptureError, match="nothing can be read"):
                CaptureReader(path, strict=strict)


def test_empty_capture_is_a_capture(tmp_path: Path) -> None:
    path = make(tmp_path, chunks=0)
    assert records_of(path) == []
    path.write_bytes(bytes(36) + path.read_bytes()[36:])
    assert records_of(path, strict=False) == []
