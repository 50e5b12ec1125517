"""What captures make, kept on disk: places, look-ups, a full disk, and nothing left behind."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest

from kcs.errors import KcsError
from kcs.kafka import spool
from kcs.kafka.spool import ENTRY_BYTES, Expectation, Spool, entry_of
from tests.kafka.topiclog import Made, message, place, place_of

CAPTURE = b"capture1"


def filled(target: Spool, records: list[Made]) -> Expectation:
    sink = Expectation(target, place_of)
    for made in records:
        route = sink.route(made.channel, "upbit", made.key)
        sink.emit(route, made.value, made.recv_ns, made.position, made.trade_id, made.headers)
    sink.seal()
    return sink


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1_500])
def test_every_entry_is_where_its_index_says(count: int) -> None:
    records = [Made("trade", "ABC"[n % 3], n, value=b"%d" % n, trade_id=b"t%d" % n) for n in range(count)]
    with Spool() as target:
        sink = filled(target, records)
        assert sink.acked == count
        for where, shelf in sink.shelves.items():
            here = [made for made in records if place(made) == where]
            assert shelf.count == len(here)
            for index, made in enumerate(here):
                expected = entry_of(made.position, message(made, CAPTURE), shelf.named)
                assert shelf.entry(index) == expected
                assert shelf.entry(index, 12) == made.position[:12]
                follow = shelf.entries(index)
                assert len(follow) == ENTRY_BYTES * min(shelf.count - index, 512 - index % 512)
                assert follow.startswith(expected)


def test_memory_does_not_grow_with_the_capture() -> None:
    with Spool() as target:
        sink = Expectation(target, place_of)
        route = sink.route("trade", "upbit", "A")
        value, position = bytes(300), bytes(20)
        tracemalloc.start()
        for number in range(60_000):
            sink.emit(route, value, number, position, b"")
            if number == 5_000:
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 30_000, "a block's place is all that stays of 512 records"


def test_a_full_disk_says_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Spool() as target:
        monkeypatch.setattr(spool.os, "write", full)
        with pytest.raises(KcsError, match="No space left") as raised:
            filled(target, [Made("trade", "A", 0)])
    assert "TMPDIR" in raised.value.remedy


def test_a_write_may_be_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(spool.os, "write", lambda fd, data: write(fd, data[:7]))
    with Spool() as target:
        at = target.write(bytes(range(100)))
        assert target.read(at, 100) == bytes(range(100))


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path))
    with Spool() as target:
        filled(target, [Made("trade", "A", n) for n in range(600)])
        assert list(tmp_path.iterdir()) == []
    target.close()
