"""Small files that want to become large: memory stays bounded, whatever a file claims, holds or nests.

Each is read by the verbs in a process of its own, whose largest memory is measured by the system. The bound is what a
chunk and its records may take (96 MiB each, and 16 MiB of JSON decoded), not what a bomb asks for.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from zlib import crc32

import pytest
import zstandard

from kcs.capture.format import (
    CHUNK_RAW_BYTES_MAX,
    CHUNK_RECORDS_MAX,
    FRAME,
    HEADER_FIXED_BYTES,
    HEADER_JSON_BYTES_MAX,
    MIB,
    ChunkMeta,
    Malformed,
    encode_descriptor,
    encode_header,
)
from kcs.capture.output import making
from kcs.capture.reader import CaptureReader
from kcs.capture.records import RECORD, decode_fields
from kcs.errors import CaptureError, NotACaptureError
from kcs.model import Kind
from kcs.verify import verify
from tests.capture.making import START_NS, header
from tests.cli.processes import environment

MEMORY_MAX = 900 * MIB
"""Of one process: interpreter and libraries 150 MiB, a chunk, its records, the JSON of one frame decoded."""

CHEAP_MAX = 300 * MIB
"""Where nothing of the size that is claimed may be allocated at all."""

_LENGTH = Struct("<I").pack


def run(path: Path, *verb: str) -> tuple[subprocess.CompletedProcess[bytes], int]:
    """`kcs VERB path`: how it ended, and the most memory it had."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from kcs.cli.app import app\n"
        "def peak():\n"
        "    status = Path('/proc/self/status')\n"  # `ru_maxrss` is at least what the parent had when it forked
        "    if not status.exists():\n        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    return int(status.read_text().partition('VmHWM:')[2].split()[0])\n"
        "try:\n    app()\n"
        "finally:\n    sys.stderr.write(f'\\nMAXRSS {peak()}\\n')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *verb, str(path)],
        capture_output=True, check=False, cwd=path.parent, env=environment(), stdin=subprocess.DEVNULL, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    assert b"Traceback" not in ended.stderr, ended.stderr[-3000:]
    assert b"MemoryError" not in ended.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    return ended, int(ended.stderr.rpartition(b"MAXRSS ")[2]) * unit


def chunk(stored: bytes, *, raw_bytes: int, records: int = 1, first: int = 0, stored_bytes: int | None = None) -> bytes:
    """A chunk whose descriptor says this and whose checksums are right, whatever is in it."""
    size = len(stored) if stored_bytes is None else stored_bytes
    meta = ChunkMeta(first, records, size, raw_bytes, crc32(stored), START_NS, START_NS)
    return encode_descriptor(header().capture_id, meta) + stored


def forged(path: Path, *chunks: bytes) -> Path:
    """A file of these chunks, never sealed."""
    path.write_bytes(encode_header(header()) + b"".join(chunks))
    return path


def compressed(content: bytes, *, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=size).compress(content)


def zeros(count: int, *, says: int | None = None) -> bytes:
    """A zstd frame of so many zeros, made without having them: blocks of 128 KiB that repeat one byte.

    `says`: the size that the frame promises.
    """
    head = b"\x28\xb5\x2f\xfd\xe0" + (count if says is None else says).to_bytes(8, "little")
    blocks, left = [], count
    while left:
        size = min(left, 128 * 1024)
        left -= size
        blocks.append(((size << 3) | 2 | (not left)).to_bytes(3, "little") + b"\0")
    return head + b"".join(blocks)


def holding(path: Path, *records: tuple[int, int, int, bytes]) -> Path:
    with making(path, header()) as file:
        file.write(0, list(records))
        file.seal()
    assert path.stat().st_size < 300_000, "no bomb"
    return path


def test_the_forged_frame_of_zeros_is_one() -> None:
    frame = zeros(300_000)
    assert zstandard.ZstdDecompressor().decompress(frame) == bytes(300_000)
    assert len(zeros(CHUNK_RAW_BYTES_MAX)) * 20_000 < CHUNK_RAW_BYTES_MAX


CLAIMS: dict[str, Callable[[], bytes]] = {
    "descriptor claims 4 GiB": lambda: chunk(zeros(1 << 20), raw_bytes=(1 << 32) - 1),
    "frame claims an exabyte": lambda: chunk(zeros(1 << 20, says=1 << 60), raw_bytes=1 << 20),
    "frame without a size": lambda: chunk(compressed(bytes(90 * MIB), size=False), raw_bytes=90 * MIB),
    "more comes out than was said": lambda: chunk(zeros(80 * MIB, says=1024), raw_bytes=1024),
    "less comes out than was said": lambda: chunk(zeros(1024, says=90 * MIB), raw_bytes=90 * MIB),
    "records beyond the bound": lambda: chunk(zeros(90 * MIB), raw_bytes=90 * MIB, records=CHUNK_RECORDS_MAX + 1),
    "stored beyond the file": lambda: chunk(b"", raw_bytes=90 * MIB, stored_bytes=96 * MIB),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_file_only_claims_is_never_allocated(tmp_path: Path, name: str) -> None:
    path = forged(tmp_path / "bomb.zst.partial", CLAIMS[name]())
    done, memory = run(path, "verify")
    assert done.returncode == 3, done.stderr
    assert memory < CHEAP_MAX, memory


def test_a_gigabyte_in_many_chunks_takes_the_memory_of_one(tmp_path: Path) -> None:
    content = RECORD.pack(START_NS, 60 * MIB, 0, Kind.TEXT) + bytes(60 * MIB)
    one = compressed(content)
    chunks = [chunk(one, raw_bytes=len(content), first=number) for number in range(20)]
    path = forged(tmp_path / "bomb.zst.partial", *chunks)
    assert path.stat().st_size < 64_000
    for done, memory in (run(path, "verify"), run(tmp_path / "out.zst", "recover", str(path))):
        assert done.returncode in (0, 3), done.stderr  # 3: it is not sealed
        assert memory < CHEAP_MAX + 100 * MIB, memory


def text_of(unit: bytes, head: bytes, tail: bytes, size: int) -> bytes:
    return head + b",".join([unit] * (size // (len(unit) + 1))) + tail


_BOOK = b'{"ty":"orderbook","cd":"KRW-BTC","tms":1,"obu":['
_LEVEL = b'{"ap":1,"bp":1,"as":1,"bs":1}'

HELD: dict[str, Callable[[], tuple[int, bytes]]] = {
    "zeros": lambda: (3, bytes(60 * MIB)),
    "a book of 2 million levels": lambda: (3, text_of(_LEVEL, _BOOK, b"]}", 60 * MIB)),
    "the largest book that is decoded": lambda: (3, text_of(_LEVEL, _BOOK, b"]}", 15 * MIB)),
    "a state of 15 million trade ids": lambda: (
        9, _LENGTH(20) + b'{"market":"KRW-BTC"}' + text_of(b'"1"', b'{"trades":[', b"]}", 60 * MIB),
    ),
    "a state that nests": lambda: (9, _LENGTH(2) + b"{}" + b'{"trades":' + b"[" * (60 * MIB)),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_a_frame_that_decodes_to_much_takes_bounded_memory(tmp_path: Path, name: str) -> None:
    kind, body = HELD[name]()
    path = holding(tmp_path / "bomb.zst", (kind, 0, START_NS, body))
    done, memory = run(path, "verify")
    assert done.returncode in (0, 1), done.stderr
    assert memory < MEMORY_MAX, memory


def test_fields_are_bounded_before_they_are_decoded(tmp_path: Path) -> None:
    fields = text_of(b'"ab"', b'{"from_ns":0,"to_ns":1,"cause":"x","markets":[', b"]}", 60 * MIB)
    body = _LENGTH(len(fields)) + fields
    with pytest.raises(Malformed, match="impossible fields"):
        decode_fields(Kind.GAP, body)
    content = RECORD.pack(START_NS, len(body), 0, Kind.GAP) + body
    path = forged(tmp_path / "bomb.zst.partial", chunk(compressed(content), raw_bytes=len(content)))
    done, memory = run(path, "verify")
    assert done.returncode == 3, done.stderr
    assert memory < CHEAP_MAX + 100 * MIB


@pytest.mark.parametrize("length", [1 << 31, (1 << 32) - 1, 64 * MIB + 1])
def test_a_body_beyond_its_bound_is_damage(tmp_path: Path, length: int) -> None:
    content = RECORD.pack(START_NS, length, 0, Kind.TEXT) + bytes(min(length, 70 * MIB))
    path = forged(tmp_path / "bomb.zst.partial", chunk(compressed(content), raw_bytes=len(content)))
    with CaptureReader(path, strict=False) as reader:
        assert list(reader.records()) == []
        assert reader.damage


@pytest.mark.parametrize(
    "text",
    [
        b'{"capture_id":' + b"[" * (HEADER_JSON_BYTES_MAX - 14),
        b'{"options":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"}",
        b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    ],
    ids=["open", "objects", "skipped key"],
)
def test_a_header_that_nests_is_damage_and_no_crash(tmp_path: Path, text: bytes) -> None:
    whole = encode_header(header())
    fixed = bytearray(whole[:HEADER_FIXED_BYTES])
    text = text[:HEADER_JSON_BYTES_MAX]
    fixed[4:8] = _LENGTH(HEADER_FIXED_BYTES - FRAME.size + len(text))
    fixed[20:24] = _LENGTH(len(text))
    fixed[-4:] = _LENGTH(crc32(text, crc32(fixed[:-4])))
    path = tmp_path / "bomb.zst"
    path.write_bytes(bytes(fixed) + text)
    with pytest.raises(CaptureError):
        CaptureReader(path)


@pytest.mark.parametrize("text", [b"[" * 2_000_000, b'{"kind":"text","recv_ns":1,"x":' + b"[" * 2_000_000])
def test_an_import_of_nested_json_is_an_error_that_names_the_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "in.jsonl").write_bytes(text)
    done, memory = run(tmp_path / "out.zst", "import", "--exchange", "upbit", str(tmp_path / "in.jsonl"))
    assert done.returncode == 1
    assert b"line 1" in done.stderr
    assert memory < CHEAP_MAX
    assert not (tmp_path / "out.zst").exists()


def test_an_import_without_an_end_of_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    done, memory = run(tmp_path / "out.zst", "import", "--exchange", "upbit", "/dev/zero")
    assert done.returncode == 1
    assert b"longer than" in done.stderr
    assert memory < MEMORY_MAX


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b'{"digest":' + b"[" * 100_000, b" " * (17 * MIB), b"\xff", b""])
def test_a_receipt_that_is_none_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = holding(tmp_path / "a.zst", (3, 0, START_NS, b"{}"))
    (tmp_path / "a.receipt.json").write_bytes(content)
    with pytest.raises(CaptureError, match="the receipt cannot be read") as error:
        verify(path)
    assert error.value.where.endswith("a.receipt.json")


def test_a_pipe_in_the_place_of_a_receipt_or_a_capture_blocks_nobody(tmp_path: Path) -> None:
    path = holding(tmp_path / "a.zst", (3, 0, START_NS, b"{}"))
    os.mkfifo(tmp_path / "a.receipt.json")
    with pytest.raises(CaptureError, match=r"a\.receipt\.json: the receipt cannot be read"):
        verify(path)
    os.mkfifo(tmp_path / "b.zst")
    with pytest.raises(NotACaptureError, match="not a regular file"):
        CaptureReader(tmp_path / "b.zst")
