"""The frame codec: header, descriptor, index."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.capture.format import (
    CHUNK_RAW_BYTES_MAX,
    CHUNK_RECORDS_MAX,
    CHUNK_STORED_BYTES_MAX,
    DESCRIPTOR_BYTES,
    END_MAGIC,
    ENTRY_BYTES,
    HEADER_JSON_BYTES_MAX,
    INDEX_HEAD_BYTES,
    TRAILER_BYTES,
    CaptureHeader,
    ChunkMeta,
    Malformed,
    Newer,
    check_index_head,
    check_meta,
    decode_descriptor,
    decode_header,
    decode_trailer,
    encode_descriptor,
    encode_header,
    encode_index,
    header_json_bytes,
    iter_entries,
    pack_entry,
)
from tests.capture.making import header

ID = bytes(range(8))
META = ChunkMeta(first_number=7, records=3, stored_bytes=100, raw_bytes=400, crc=5, first_ns=10, last_ns=20)

times = st.integers(0, 2**63 - 1)
metas = st.builds(
    lambda first, records, stored, raw, crc, a, b: ChunkMeta(first, records, stored, raw, crc, min(a, b), max(a, b)),
    st.integers(0, 2**62),
    st.integers(1, CHUNK_RECORDS_MAX),
    st.integers(0, CHUNK_STORED_BYTES_MAX),
    st.integers(0, CHUNK_RAW_BYTES_MAX),
    st.integers(0, 2**32 - 1),
    times,
    times,
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-9, 2**53), st.text(max_size=8))
options = st.dictionaries(st.text(max_size=8), scalars | st.lists(st.text(max_size=5)), max_size=4)
headers = st.builds(
    CaptureHeader,
    capture_id=st.binary(min_size=8, max_size=8),
    run_id=st.binary(min_size=8, max_size=8),
    exchange=st.text(max_size=10),
    url=st.text(max_size=30),
    created_ns=times,
    kcs_version=st.text(max_size=8),
    sequence=st.integers(0, 1000),
    options=options,
    seed=st.none() | st.integers(0, 2**63),
    host=st.text(max_size=8),
)


def resign(data: bytes, at: int) -> bytes:
    """`data` with the CRC at `at` made right again."""
    return data[:at] + crc32(data[at + 4 :], crc32(data[:at])).to_bytes(4, "little") + data[at + 4 :]


@given(headers)
@settings(max_examples=80)
def test_header_comes_back(value: CaptureHeader) -> None:
    assert decode_header(encode_header(value)) == value


def test_header_of_a_newer_version_is_newer_only_when_its_checksum_holds() -> None:
    data = bytearray(encode_header(header()))
    data[16] = 2
    with pytest.raises(Malformed, match="checksum"):
        decode_header(bytes(data))
    with pytest.raises(Newer, match="version 2"):
        decode_header(resign(bytes(data), 32))


def test_reserved_flags_are_checked_and_unknown_json_keys_are_not() -> None:
    data = bytearray(encode_header(header()))
    data[18] = 1
    with pytest.raises(Newer):
        decode_header(resign(bytes(data), 32))
    text = encode_header(header())[36:].replace(b'"exchange"', b'"later":[1],"exchange"')
    head = bytearray(encode_header(header())[:36])
    head[4:8] = (28 + len(text)).to_bytes(4, "little")
    head[20:24] = len(text).to_bytes(4, "little")
    assert decode_header(resign(bytes(head) + text, 32)) == header()


@pytest.mark.parametrize("length", [HEADER_JSON_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_header_length_is_bounded_before_it_is_believed(length: int) -> None:
    data = bytearray(encode_header(header()))
    data[20:24] = length.to_bytes(4, "little")
    data[4:8] = ((length + 28) % 2**32).to_bytes(4, "little")
    with pytest.raises(Malformed, match="length"):
        header_json_bytes(bytes(data))


def test_header_refuses_what_the_format_cannot_hold() -> None:
    with pytest.raises(Malformed, match="8 bytes"):
        encode_header(replace(header(), capture_id=b"short"))
    with pytest.raises(Malformed, match="at most"):
        encode_header(replace(header(), options={"markets": ["KRW-BTC"] * 200_000}))


@given(metas)
def test_descriptor_and_entry_come_back(meta: ChunkMeta) -> None:
    data = encode_descriptor(ID, meta)
    assert len(data) == DESCRIPTOR_BYTES
    assert decode_descriptor(data, ID) == (ID, meta)
    assert decode_descriptor(data, None) == (ID, meta)
    assert list(iter_entries(pack_entry(99, meta) * 2)) == [(99, meta)] * 2


def test_every_flipped_bit_of_a_descriptor_is_noticed() -> None:
    data = encode_descriptor(ID, META)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Malformed):
            decode_descriptor(bytes(flipped), ID)


def test_descriptor_of_another_capture_and_reserved_flags() -> None:
    with pytest.raises(Malformed, match="another capture"):
        decode_descriptor(encode_descriptor(bytes(8), META), ID)
    flagged = bytearray(encode_descriptor(ID, META))
    flagged[21] = 128
    with pytest.raises(Newer):
        decode_descriptor(resign(bytes(flagged), 68), ID)
    unused = bytearray(encode_descriptor(ID, META))
    unused[22] = unused[64] = 255
    assert decode_descriptor(resign(bytes(unused), 68), ID)[1] == META


@pytest.mark.parametrize(
    "meta",
    [
        replace(META, records=0),
        replace(META, records=CHUNK_RECORDS_MAX + 1),
        replace(META, stored_bytes=CHUNK_STORED_BYTES_MAX + 1),
        replace(META, raw_bytes=CHUNK_RAW_BYTES_MAX + 1),
        replace(META, first_ns=21),
        replace(META, last_ns=2**63),
        replace(META, first_number=2**63),
    ],
)
def test_impossible_numbers_are_refused_even_with_a_right_checksum(meta: ChunkMeta) -> None:
    with pytest.raises(Malformed, match="impossible"):
        check_meta(meta)
    with pytest.raises(Malformed, match="impossible"):
        decode_descriptor(encode_descriptor(ID, meta), ID)


def index() -> tuple[bytes, bytes, bytes]:
    """(head, body, trailer) of an index of two entries."""
    parts = encode_index(ID, pack_entry(50, META) * 2, b'{"a":1}', offset=1000, records=6, next_number=13)
    return parts[0], parts[1] + parts[2], parts[3]


def test_index_comes_back() -> None:
    head, body, tail = index()
    assert (len(head), len(tail), len(body)) == (INDEX_HEAD_BYTES, TRAILER_BYTES, 2 * ENTRY_BYTES + 7)
    assert tail.endswith(END_MAGIC)
    trailer = decode_trailer(tail)
    check_index_head(head, trailer, tail)
    assert (trailer.index_offset, trailer.records, trailer.next_number, trailer.entries) == (1000, 6, 13, 2)
    assert int.from_bytes(head[4:8], "little") == len(head) - 8 + len(body) + len(tail)


@pytest.mark.parametrize("at", [20, 24 + 48])
def test_reserved_flags_of_the_index_are_checked(at: int) -> None:
    head, _, tail = index()
    both = bytearray(head + tail)
    both[at] = 1
    both[76:80] = crc32(both[:76]).to_bytes(4, "little")
    with pytest.raises(Newer, match="index flags"):
        check_index_head(bytes(both[:24]), decode_trailer(bytes(both[24:])), bytes(both[24:]))


def test_every_flipped_bit_of_index_head_and_trailer_is_noticed() -> None:
    head, _, tail = index()
    for bit in range((len(head) + len(tail)) * 8):
        both = bytearray(head + tail)
        both[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Malformed):
            check_index_head(bytes(both[:24]), decode_trailer(bytes(both[24:])), bytes(both[24:]))
