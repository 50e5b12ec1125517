"""Where the last run stopped: whatever the names of its files, sealed or not, readable or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcs.capture.format import CaptureHeader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.live.previous import last_record_ns
from kcs.model import Kind

SECOND = 1_000_000_000
START_NS = 1_767_258_000 * SECOND


def capture(directory: Path, capture_id: bytes, created_ns: int, last_ns: int, exchange: str = "upbit") -> Path:
    """A sealed capture with two frames, the later one at `last_ns`."""
    header = CaptureHeader(capture_id, capture_id, exchange, "ws://x", created_ns, "0")
    writer = CaptureWriter(directory, header, settings=WriterSettings(threaded=False), new_id=lambda: b"neverxyz")
    writer.append(Kind.TEXT, 0, last_ns, b"{}")
    writer.append(Kind.TEXT, 0, created_ns, b"{}")
    (sealed,) = writer.close(last_ns)
    return sealed.path


def test_nothing_there(tmp_path: Path) -> None:
    assert last_record_ns(tmp_path, "upbit") is None


def test_the_newest_capture_counts(tmp_path: Path) -> None:
    capture(tmp_path, b"zzzzzzzz", START_NS, START_NS + 5 * SECOND)
    capture(tmp_path, b"aaaaaaaa", START_NS + 60 * SECOND, START_NS + 65 * SECOND)
    assert last_record_ns(tmp_path, "upbit") == START_NS + 65 * SECOND


@pytest.mark.parametrize("ids", [(b"aaaaaaaa", b"zzzzzzzz"), (b"zzzzzzzz", b"aaaaaaaa")])
def test_of_two_files_of_one_second_the_later_end_counts(tmp_path: Path, ids: tuple[bytes, bytes]) -> None:
    capture(tmp_path, ids[0], START_NS, START_NS + 1)
    capture(tmp_path, ids[1], START_NS + 2, START_NS + 7)
    assert last_record_ns(tmp_path, "upbit") == START_NS + 7


def test_other_exchanges_and_files_that_are_no_captures_do_not_count(tmp_path: Path) -> None:
    capture(tmp_path, b"aaaaaaaa", START_NS, START_NS + 3)
    capture(tmp_path, b"bbbbbbbb", START_NS, START_NS + 9, exchange="korbit")
    (tmp_path / "upbit-29990101T000000Z-0000000000000000.zst").write_bytes(b"nonsense")
    assert last_record_ns(tmp_path, "upbit") == START_NS + 3


def test_an_unsealed_file_counts_up_to_its_last_chunk(tmp_path: Path) -> None:
    sealed = capture(tmp_path, b"aaaaaaaa", START_NS, START_NS + 3)
    content = sealed.read_bytes()
    sealed.unlink()
    (tmp_path / f"{sealed.name}.partial").write_bytes(content[:-70])
    assert last_record_ns(tmp_path, "upbit") == START_NS + 3
