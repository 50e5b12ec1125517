"""The codec of a chunk's content."""

from __future__ import annotations

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.capture.format import CHUNK_RAW_BYTES_MAX, Malformed, Newer
from kcs.capture.records import (
    BATCH_RECORDS_MAX,
    RECORD,
    Appended,
    compressor,
    decode_fields,
    decompress,
    encode_fields,
    encode_records,
    iter_batches,
    salvage,
)
from kcs.model import FIELDS_OF_KIND, Fields, Kind, OpenFields

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 2**53)
plain = st.tuples(
    st.sampled_from([2, 3, 4]), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.binary(max_size=60)
)
KIND_OF = {cls: kind for kind, cls in FIELDS_OF_KIND.items()}


def values_of(field: msgspec.structs.FieldInfo) -> st.SearchStrategy[object]:
    if field.name == "markets":
        return st.lists(texts, max_size=3).map(tuple)
    return {int: counts, str: texts, bool: st.booleans()}.get(
        getattr(field.type, "__origin__", field.type),  # Annotated[int, ...] is an int
        st.none() | counts,
    )


def arbitrary_fields() -> st.SearchStrategy[Fields]:
    classes = FIELDS_OF_KIND.values()
    return st.one_of(
        *(st.builds(cls, **{field.name: values_of(field) for field in msgspec.structs.fields(cls)}) for cls in classes)
    )


@given(arbitrary_fields(), st.binary(max_size=40))
@settings(max_examples=150)
def test_fields_come_back(value: Fields, payload: bytes) -> None:
    kind = KIND_OF[type(value)]
    assert decode_fields(kind, encode_fields(value, payload)) == (value, payload)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_a_number_that_no_report_could_show_is_malformed(number: int) -> None:
    text = b'{"from_ns":%d,"to_ns":1,"cause":"x"}' % number
    with pytest.raises(Malformed, match="from_ns"):
        decode_fields(Kind.GAP, len(text).to_bytes(4, "little") + text)


def test_equal_fields_have_equal_bytes_however_they_were_made() -> None:
    one = OpenFields(url="u", cause="start")
    other = OpenFields(url="u", cause="".join(["st", "art"]))
    assert encode_fields(one) == encode_fields(other) == b'\x0b\x00\x00\x00{"url":"u"}'


@given(st.lists(plain, min_size=1, max_size=30), st.integers(0, 2**62))
def test_records_come_back(records: list[Appended], first: int) -> None:
    raw = encode_records(records)
    read = [r for batch in iter_batches(raw, first, len(records)) for r in batch]
    assert read == [(first + i, kind, stream, t, body, None) for i, (kind, stream, t, body) in enumerate(records)]


def test_long_chunks_come_in_short_lists() -> None:
    raw = encode_records([(3, 1, 5, b"x")] * (2 * BATCH_RECORDS_MAX + 1))
    batches = list(iter_batches(raw, 10, 2 * BATCH_RECORDS_MAX + 1))
    assert [len(b) for b in batches] == [BATCH_RECORDS_MAX, BATCH_RECORDS_MAX, 1]
    assert batches[2][0][0] == 10 + 2 * BATCH_RECORDS_MAX


def test_content_cut_at_every_byte_is_never_read_as_records() -> None:
    raw = encode_records([(3, 1, 5, b"abc"), (1, 1, 6, encode_fields(OpenFields(url="u"))), (4, 2, 7, b"")])
    for end in range(len(raw)):
        with pytest.raises(Malformed):
            list(iter_batches(raw[:end], 0, 3))
    with pytest.raises(Malformed, match="after the last"):
        list(iter_batches(raw + b"\0", 0, 3))
    with pytest.raises(Malformed):
        list(iter_batches(raw, 0, 4))
    with pytest.raises(Malformed):
        list(iter_batches(raw, 0, 2))


def test_length_of_4_gib_inside_a_chunk_allocates_nothing() -> None:
    raw = RECORD.pack(5, 2**32 - 1, 1, 3) + b"abc"
    with pytest.raises(Malformed, match="past the end"):
        list(iter_batches(raw, 0, 1))


def test_unknown_kinds_newer_below_128_and_passed_over_above() -> None:
    with pytest.raises(Newer, match="kind 10"):
        list(iter_batches(encode_records([(10, 1, 5, b"")]), 0, 1))
    with pytest.raises(Newer, match="kind 0"):
        list(iter_batches(encode_records([(0, 1, 5, b"")]), 0, 1))
    raw = encode_records([(3, 1, 5, b"a"), (200, 1, 5, b"later"), (3, 1, 6, b"b")])
    assert [r[0] for batch in iter_batches(raw, 7, 3) for r in batch] == [7, 9]


@pytest.mark.parametrize(
    "body",
    [b"", b"\x05\0\0", b"\x05\0\0\0{}", b"\xff\xff\xff\xff{}", b"\x02\0\0\0{}", b"\x03\0\0\0{x}", b"\x02\0\0\0[]"],
)
def test_bad_fields_are_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode_fields(Kind.OPEN, body)


def test_deeply_nested_fields_are_malformed() -> None:
    text = b'{"url":"u","later":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(Malformed):
        decode_fields(Kind.OPEN, len(text).to_bytes(4, "little") + text)


@pytest.mark.parametrize("record", [(3, -1, 5, b""), (3, 2**32, 5, b""), (3, 1, -5, b""), (256, 1, 5, b"")])
def test_numbers_that_do_not_fit_are_named(record: Appended) -> None:
    with pytest.raises(Malformed, match="does not fit"):
        encode_records([record])


def test_zip_bomb_is_refused_by_what_it_promises() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(2 * CHUNK_RAW_BYTES_MAX))
    assert len(bomb) < 100_000
    reader = zstandard.ZstdDecompressor()
    with pytest.raises(Malformed, match="promises"):
        decompress(bomb, 1000, reader)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    with pytest.raises(Malformed, match="promises"):
        decompress(unsized, 5000, reader)
    assert salvage(bomb) is None


def test_frame_that_lies_about_its_size_is_refused() -> None:
    frame = bytearray(compressor(3).compress(b"abc" * 200))
    assert frame[5:7] == (600 - 256).to_bytes(2, "little")  # the content size of this frame
    frame[5] += 7
    with pytest.raises(Malformed):
        decompress(bytes(frame), 607, zstandard.ZstdDecompressor())


def test_frame_with_something_behind_it_is_refused() -> None:
    stored = compressor(3).compress(b"abc" * 100)
    assert decompress(stored, 300, zstandard.ZstdDecompressor()) == b"abc" * 100
    with pytest.raises(Malformed):
        decompress(stored + stored, 300, zstandard.ZstdDecompressor())
    with pytest.raises(Malformed, match="no zstd frame"):
        decompress(b"not zstd", 300, zstandard.ZstdDecompressor())


def test_salvage_wants_checksum_and_whole_records() -> None:
    raw = encode_records([(3, 1, 9, b"abc"), (3, 1, 5, b"")])
    found = salvage(compressor(3).compress(raw))
    assert found is not None
    assert (found.records, found.raw_bytes, found.first_ns, found.last_ns) == (2, len(raw), 5, 9)
    assert salvage(compressor(3).compress(raw[:-1])) is None
    assert salvage(zstandard.ZstdCompressor(write_checksum=False).compress(raw)) is None
    assert salvage(b"x") is None
