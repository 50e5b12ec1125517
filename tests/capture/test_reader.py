"""Reading: ranges, and every kind of damage at every byte of a small file. Nothing is ever silently different."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcs.capture import tally
from kcs.capture.format import CHUNK_RAW_BYTES_MAX, ChunkMeta, encode_descriptor, encode_header
from kcs.capture.output import CaptureFile
from kcs.capture.reader import CaptureReader
from kcs.capture.records import Appended, encode_records
from kcs.capture.scan import Chunk
from kcs.capture.tally import Damage
from kcs.errors import CaptureError, DamagedCaptureError, NewerFormatError, NotACaptureError
from kcs.model import Kind, Record
from tests.capture.making import START_NS, all_kinds, append, chunks_of, frames, header, make, records_of, writer
from tests.capture.test_format import resign

MS = 1_000_000


@pytest.fixture(params=[True, False], ids=["sealed", "partial"])
def capture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Four chunks of three records."""
    return make(tmp_path, sealed=request.param)


def test_header_and_records_sealed_or_not(capture: Path) -> None:
    with CaptureReader(capture) as reader:
        assert reader.header == header()
        assert reader.sealed is (capture.suffix == ".zst")
        assert list(reader.records()) == list(frames(12))
        assert list(reader.records()) == list(frames(12))
        assert reader.damage == []


def test_range_reads_only_chunks_that_overlap_and_cuts_inside(capture: Path) -> None:
    with CaptureReader(capture) as reader:
        got = [r[0] for batch in reader.batches(START_NS + 4 * MS, START_NS + 8 * MS) for r in batch]
        assert got == [4, 5, 6, 7]
        assert [r.number for r in reader.records(START_NS + 5 * MS, START_NS + 6 * MS)] == [5]
        assert [r.number for r in reader.records(START_NS + 5 * MS, START_NS + 6 * MS + 1)] == [5, 6]
        assert list(reader.batches(START_NS + 12 * MS)) == []
        assert list(reader.batches(None, START_NS)) == []
        assert [r[0] for batch in reader.batches(None, None, from_number=7) for r in batch] == [7, 8, 9, 10, 11]


def test_range_does_not_touch_damaged_chunks_outside_it(capture: Path) -> None:
    chunk = chunks_of(capture)[0]
    flip(capture, chunk.offset + 80, 1)
    with CaptureReader(capture) as reader:
        assert [r.number for r in reader.records(START_NS + 3 * MS)] == list(range(3, 12))
    with pytest.raises(DamagedCaptureError):
        records_of(capture)


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=6),
    st.none() | st.integers(0, 60),
    st.none() | st.integers(0, 60),
    st.booleans(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_range_is_a_filter(
    tmp_path: Path, chunks: list[list[int]], low: int | None, high: int | None, sealed: bool
) -> None:
    """Times run back and forth between streams; a range must give what a plain filter gives."""
    path = tmp_path / "r.zst"
    path.unlink(missing_ok=True)
    file = CaptureFile(tmp_path / "r.zst.partial", path, header())
    number = 0
    expected = []
    for times in chunks:
        file.write(number, [(Kind.TEXT, 0, t, b"%d" % t) for t in times])
        expected += [(number + i, t) for i, t in enumerate(times)]
        number += len(times)
    if sealed:
        file.seal()
    else:
        file.abandon()
        file.path.rename(path.with_name("s.partial"))
        path = path.with_name("s.partial")
    with CaptureReader(path) as reader:
        got = [(r[0], r[3]) for batch in reader.batches(low, high) for r in batch]
    assert got == [(n, t) for n, t in expected if (low is None or t >= low) and (high is None or t < high)]


def test_partial_that_was_sealed_meanwhile_is_found(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert len(records_of(path.with_name(path.name + ".partial"))) == 12


def test_reader_of_a_live_capture_sees_what_is_handed_over(tmp_path: Path) -> None:
    target = writer(tmp_path)
    append(target, all_kinds()[0])
    target.flush()
    with CaptureReader(target.path) as reader:
        assert len(list(reader.records())) == 1
        append(target, all_kinds()[1])
        target.flush()
    assert len(records_of(target.path)) == 2
    target.close(START_NS)


# ---------------------------------------------------------------- damage


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def tolerant(path: Path) -> tuple[list[Record], CaptureReader] | None:
    """(records, reader) read tolerantly; None when the file says it cannot be read at all."""
    try:
        with CaptureReader(path, strict=False) as reader:
            return list(reader.records()), reader
    except (NotACaptureError, DamagedCaptureError, NewerFormatError):
        return None


def strict_complains(path: Path) -> bool:
    try:
        records_of(path)
    except CaptureError:
        return True
    return False


def numbers(records: list[Record]) -> set[int]:
    return {r.number for r in records}


def spans(chunks: list[Chunk]) -> Iterator[tuple[int, int, set[int]]]:
    """(first byte, byte after, record numbers) of each chunk."""
    for chunk in chunks:
        end = chunk.offset + 72 + chunk.meta.stored_bytes
        yield chunk.offset, end, set(range(chunk.meta.first_number, chunk.meta.next_number))


def test_cut_at_every_byte(capture: Path) -> None:
    data = capture.read_bytes()
    chunks = list(spans(chunks_of(capture)))
    truth = list(frames(12))
    for end in range(len(data)):
        capture.write_bytes(data[:end])
        whole = set().union(*(ids for _, stop, ids in chunks if stop <= end))
        found = tolerant(capture)
        if found is None:
            assert end < chunks[0][0], f"cut at {end}"
            continue
        records, reader = found
        assert records == truth[: len(records)]
        assert numbers(records) == whole, f"cut at {end}"
        at_chunk_end = end in (chunks[0][0], *(stop for _, stop, _ in chunks))
        if capture.suffix == ".partial" and at_chunk_end:
            assert reader.damage == []  # what a kill leaves: nothing is wrong with it
        else:
            assert reader.damage, f"cut at {end}"
            assert strict_complains(capture), f"cut at {end}"


def test_flip_a_bit_in_every_byte(capture: Path) -> None:
    data = capture.read_bytes()
    chunks = list(spans(chunks_of(capture)))
    truth = {r.number: r for r in frames(12)}
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        capture.write_bytes(changed)
        hit = next((ids for start, stop, ids in chunks if start <= at < stop), set())
        found = tolerant(capture)
        assert found is not None, f"flip at {at}"
        records, reader = found
        assert all(truth[r.number] == r for r in records)
        assert numbers(records) | hit == set(truth), f"flip at {at}"
        assert strict_complains(capture), f"flip at {at}"
        assert reader.damage, f"flip at {at}"
        in_descriptor = any(start <= at < start + 72 for start, _, _ in chunks)
        if in_descriptor:  # its content is intact, so its records are back
            assert numbers(records) == set(truth), f"flip at {at}"
        lost = sum(d.records_lost or 0 for d in reader.damage)
        assert len(records) + lost == 12, f"flip at {at}: {reader.damage}"


def test_flip_two_bits_anywhere(tmp_path: Path) -> None:
    """One bit in each of two places, on a fixed grid: also when both copies of a fact are damaged."""
    for sealed in (True, False):
        path = make(tmp_path / str(sealed), sealed=sealed)
        data = path.read_bytes()
        truth = {r.number: r for r in frames(12)}
        for one in range(5, len(data), 97):
            for other in range(one + 11, len(data), 89):
                changed = bytearray(data)
                changed[one] ^= 16
                changed[other] ^= 2
                path.write_bytes(changed)
                found = tolerant(path)
                assert found is not None
                assert all(truth[r.number] == r for r in found[0])
                assert found[1].damage


@pytest.mark.parametrize("size", [1, 50, 300])
def test_block_of_zeros_anywhere(capture: Path, size: int) -> None:
    """What a power cut leaves."""
    data = capture.read_bytes()
    chunks = list(spans(chunks_of(capture)))
    truth = {r.number: r for r in frames(12)}
    for at in range(0, len(data) - size, 13):
        capture.write_bytes(data[:at] + bytes(size) + data[at + size :])
        intact = set().union(*(ids for start, stop, ids in chunks if stop <= at or start >= at + size))
        found = tolerant(capture)
        assert found is not None
        assert all(truth[r.number] == r for r in found[0])
        assert intact <= numbers(found[0]), f"zeros at {at}"


@pytest.mark.parametrize("size", [1, 80, 250])
def test_bytes_missing_or_added_inside(capture: Path, size: int) -> None:
    data = capture.read_bytes()
    chunks = list(spans(chunks_of(capture)))
    truth = {r.number: r for r in frames(12)}
    for at in range(chunks[0][0], chunks[-1][1] - size, 17):
        for changed, gone in ((data[:at] + data[at + size :], size), (data[:at] + b"\x55" * size + data[at:], 0)):
            capture.write_bytes(changed)
            intact = set().union(*(ids for start, stop, ids in chunks if stop <= at or start >= at + gone + (not gone)))
            found = tolerant(capture)
            assert found is not None
            assert all(truth[r.number] == r for r in found[0])
            assert intact <= numbers(found[0]), f"{size} bytes at {at}"
            assert all(d.length >= 0 and 0 <= d.offset <= len(changed) for d in found[1].damage)
            assert strict_complains(capture)


def test_damage_says_where_and_how_much(tmp_path: Path) -> None:
    path = make(tmp_path)
    second = chunks_of(path)[1]
    flip(path, second.offset + 72 + 20, 0)
    with CaptureReader(path, strict=False) as reader:
        assert [r.number for r in reader.records()] == [0, 1, 2, 6, 7, 8, 9, 10, 11]
        (damage,) = reader.damage
    assert (damage.offset, damage.length) == (second.offset, 72 + second.meta.stored_bytes)
    assert (damage.records_lost, damage.first_number) == (3, 3)
    with pytest.raises(DamagedCaptureError, match=f"offset {second.offset}.*checksum") as caught:
        records_of(path)
    assert "kcs recover" in caught.value.remedy


def test_strict_yields_what_comes_before_the_damage(tmp_path: Path) -> None:
    path = make(tmp_path, sealed=False)
    flip(path, chunks_of(path)[2].offset + 80, 3)
    with CaptureReader(path) as reader:
        records = reader.records()
        assert [next(records).number for _ in range(6)] == [0, 1, 2, 3, 4, 5]
        with pytest.raises(DamagedCaptureError):
            next(records)


def test_cut_of_a_sealed_file_is_refused_at_once_when_strict(tmp_path: Path) -> None:
    path = make(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with CaptureReader(path) as reader, pytest.raises(DamagedCaptureError, match="never sealed"):
        next(reader.batches())


def test_index_of_another_file_is_refused(tmp_path: Path) -> None:
    ours, other = make(tmp_path / "a"), make(tmp_path / "b", number=2)
    end = chunks_of(ours)[-1]
    at = end.offset + 72 + end.meta.stored_bytes
    ours.write_bytes(ours.read_bytes()[:at] + other.read_bytes()[at:])
    with pytest.raises(DamagedCaptureError, match="different captures"):
        CaptureReader(ours)


def test_chunks_of_another_capture_are_never_taken(tmp_path: Path) -> None:
    ours, other = make(tmp_path / "a", sealed=False), make(tmp_path / "b", sealed=False, number=2)
    chunk = chunks_of(other)[0]
    foreign = other.read_bytes()[chunk.offset : chunk.offset + 72 + chunk.meta.stored_bytes]
    ours.write_bytes(ours.read_bytes() + foreign)
    found = tolerant(ours)
    assert found is not None
    assert found[0] == list(frames(12))
    assert "another capture" in found[1].damage[0].what


@pytest.mark.parametrize("at", [3, 9, 14, 21, 25, 70])
def test_nor_are_they_when_their_descriptor_is_damaged(tmp_path: Path, at: int) -> None:
    ours, other = make(tmp_path / "a", sealed=False), make(tmp_path / "b", sealed=False, number=2)
    chunk = chunks_of(other)[0]
    foreign = bytearray(other.read_bytes()[chunk.offset : chunk.offset + 72 + chunk.meta.stored_bytes])
    foreign[at] ^= 8
    ours.write_bytes(ours.read_bytes() + foreign)
    found = tolerant(ours)
    assert found is not None
    assert found[0] == list(frames(12))
    assert found[1].damage


# ---------------------------------------------------------------- hostile files


def crafted(path: Path, meta: ChunkMeta, stored: bytes) -> Path:
    """A `.partial` of one chunk that says whatever it likes, with right checksums."""
    path.write_bytes(encode_header(header()) + encode_descriptor(header().capture_id, meta) + stored)
    return path


def meta_of(stored: bytes, **said: int) -> ChunkMeta:
    from zlib import crc32

    honest = {"first_number": 0, "records": 1, "stored_bytes": len(stored), "raw_bytes": 20, "crc": crc32(stored)}
    return ChunkMeta(**{**honest, "first_ns": 5, "last_ns": 5, **said})


def one_record(body: bytes = b"abc") -> bytes:
    records: list[Appended] = [(Kind.TEXT, 1, 5, body)]
    return zstandard.ZstdCompressor(write_checksum=True).compress(encode_records(records))


def test_crafted_file_is_readable_at_all(tmp_path: Path) -> None:
    stored = one_record()
    assert records_of(crafted(tmp_path / "x.partial", meta_of(stored), stored))[0].payload == b"abc"


def test_zip_bomb_chunk_is_refused_without_its_memory(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bytes(512 << 20))
    for claimed in (20, CHUNK_RAW_BYTES_MAX):
        path = crafted(tmp_path / "x.partial", meta_of(bomb, raw_bytes=claimed), bomb)
        before = peak_kib()
        with pytest.raises(DamagedCaptureError, match="promises"):
            records_of(path)
        assert peak_kib() - before < 64 << 10
        found = tolerant(path)
        assert found is not None
        assert found[0] == []
        assert found[1].damage[0].records_lost == 1


def peak_kib() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "said",
    [
        {"stored_bytes": 2**32 - 1},
        {"raw_bytes": 2**32 - 1},
        {"records": 2**32 - 1},
        {"records": 0},
        {"records": 2},
        {"raw_bytes": 21},
        {"first_number": 2**64 - 1},
        {"last_ns": 2**63},
    ],
)
def test_lies_in_a_descriptor_are_damage(tmp_path: Path, said: dict[str, int]) -> None:
    stored = one_record()
    path = crafted(tmp_path / "x.partial", meta_of(stored, **said), stored)
    with pytest.raises(DamagedCaptureError):
        records_of(path)
    found = tolerant(path)
    assert found is not None
    assert found[0] in ([], [Record(0, Kind.TEXT, 1, 5, b"abc")])
    assert found[1].damage


@pytest.mark.parametrize("field", [(0, 8), (8, 8), (16, 8), (24, 4), (32, 4)])
def test_length_of_2_to_the_63_in_the_trailer(tmp_path: Path, field: tuple[int, int]) -> None:
    path = make(tmp_path)
    data = bytearray(path.read_bytes())
    at, size = len(data) - 64 + field[0], field[1]
    data[at : at + size] = (2**63 if size == 8 else 2**32 - 1).to_bytes(size, "little")
    path.write_bytes(data)
    found = tolerant(path)
    assert found is not None
    assert found[0] == list(frames(12))
    assert strict_complains(path)


def test_entries_that_lie_with_a_right_checksum_lead_to_walking(tmp_path: Path) -> None:
    from kcs.capture.format import encode_index, pack_entry

    path = make(tmp_path)
    chunks = chunks_of(path)
    end = chunks[-1].offset + 72 + chunks[-1].meta.stored_bytes
    lies = [pack_entry(offset, chunks[0].meta) * 2 for offset in (0, 2**63, chunks[1].offset)]
    for entries in (*lies, pack_entry(chunks[0].offset, chunks[0].meta)):
        parts = encode_index(header().capture_id, entries, b"{}", offset=end, records=12, next_number=12)
        path.write_bytes(path.read_bytes()[:end] + b"".join(parts))
        found = tolerant(path)
        assert found is not None
        assert found[0] == list(frames(12))
        assert "index entr" in found[1].damage[0].what
        assert strict_complains(path)


def test_record_numbers_that_run_back_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path, chunks=2, sealed=False)
    first = chunks_of(path)[0]
    data = path.read_bytes()
    path.write_bytes(data + data[first.offset : first.offset + 72 + first.meta.stored_bytes])
    found = tolerant(path)
    assert found is not None
    assert found[0] == list(frames(6))
    assert "run back" in found[1].damage[0].what


def test_newer_record_kind_and_flags_are_newer(tmp_path: Path) -> None:
    records: list[Appended] = [(77, 1, 5, b"abc")]
    stored = zstandard.ZstdCompressor(write_checksum=True).compress(encode_records(records))
    path = crafted(tmp_path / "x.partial", meta_of(stored), stored)
    flagged = bytearray(encode_descriptor(header().capture_id, meta_of(stored)))
    flagged[20] = 1
    other = tmp_path / "y.partial"
    other.write_bytes(encode_header(header()) + resign(bytes(flagged), 68) + stored)
    for one in (path, other):
        for strict in (True, False):
            with pytest.raises(NewerFormatError, match="newer kcs") as caught:
                records_of(one, strict=strict)
            assert str(one) in caught.value.where


def test_errors_of_the_system_are_typed(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file"):
        CaptureReader(tmp_path / "none.zst")
    with CaptureReader(make(tmp_path)) as reader:
        pass
    reader.close()
    with pytest.raises(CaptureError, match="cannot read"):
        list(reader.batches())


@pytest.mark.parametrize("sealed", [True, False])
def test_the_list_of_damage_is_bounded_and_its_cost_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    path = make(tmp_path, chunks=12, each=3, sealed=sealed)
    places = [chunk.offset for chunk in chunks_of(path)][:10]
    content = bytearray(path.read_bytes())
    for offset in places:
        content[offset + 90] ^= 2
    path.write_bytes(content)
    with CaptureReader(path, strict=False) as reader:
        assert sum(map(len, reader.batches())) == 6
        every = list(reader.damage)
    assert [damage.records_lost for damage in every] == [3] * 10
    monkeypatch.setattr(tally, "DAMAGE_LISTED_MAX", 4)
    with CaptureReader(path, strict=False) as reader:
        assert sum(map(len, reader.batches())) == 6
        assert reader.damage[:4] == every[:4]
        (rest,) = reader.damage[4:]
    assert (rest.what, rest.records_lost, rest.first_number) == (tally.MORE_DAMAGE, 18, 12)
    assert (rest.offset, rest.offset + rest.length) == (every[4].offset, every[-1].offset + every[-1].length)


def test_an_unknown_cost_stays_unknown_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "DAMAGE_LISTED_MAX", 1)
    found: list[Damage] = []
    for lost in (1, 2, None, 5):
        tally.note_damage(found, Damage(100, 10, "bad", lost, 7))
    assert found == [Damage(100, 10, "bad", 1, 7), Damage(100, 10, tally.MORE_DAMAGE, None, 7)]
