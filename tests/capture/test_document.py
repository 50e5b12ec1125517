"""FORMAT.md and the fixture: the document shows real bytes, and version 1 stays readable for ever."""

from __future__ import annotations

import re
from pathlib import Path

import zstandard

import kcs.capture
from kcs.capture.ndjson import to_ndjson
from kcs.capture.reader import CaptureReader
from kcs.capture.tally import DAMAGE_MAX, GAPS_MAX, HOLES_MAX, STREAMS_MAX, URL_CHARS_MAX, URLS_OF_STREAM_MAX
from kcs.model import FIELDS_OF_KIND, Kind
from tests.capture.make_fixture import DATA, NAME, example, fixture
from tests.capture.making import all_kinds, records_of

FORMAT = (Path(kcs.capture.__file__).parent / "FORMAT.md").read_text()
ZSTD_OF_THE_EXAMPLE = (1, 5, 7)
"""Another library may compress the same content to other bytes; then the content is compared."""


def shown_bytes() -> bytes:
    """The bytes of the hexdump in section 6."""
    block = re.search(r"<!-- hexdump -->\n```\n(.*?)```", FORMAT, re.DOTALL)
    assert block is not None
    rows = [line[10:57] for line in block[1].splitlines()]
    return bytes.fromhex("".join(rows))


def test_the_worked_example_is_what_the_code_writes(tmp_path: Path) -> None:
    shown = shown_bytes()
    made = example(tmp_path)
    if zstandard.ZSTD_VERSION == ZSTD_OF_THE_EXAMPLE:
        assert shown == made
    (tmp_path / "shown.zst").write_bytes(shown)
    (tmp_path / "made.zst").write_bytes(made)
    assert records_of(tmp_path / "shown.zst") == records_of(tmp_path / "made.zst")
    assert len(records_of(tmp_path / "shown.zst")) == 3


def test_the_table_beside_the_example_is_right() -> None:
    data = shown_bytes()
    offsets = [int(text, 16) for text in re.findall(r"^\| `0x(\w+)` \| ", FORMAT, re.MULTILINE)]
    assert offsets == [0, 0xD4, 0x11C, 0x188, 0x1D0, 0x20A]
    ours, theirs = "5c2a4d18", "28b52ffd"
    assert [data[at : at + 4].hex() for at in offsets] == [ours, ours, theirs, ours, theirs, ours]
    assert data[0x024:0x026] == b'{"'
    assert data[0x0F4] == 2
    assert data[0x164:0x16C] == (1_700_000_000_250_000_000).to_bytes(8, "little")
    assert data[0x222:0x22A] == (0xD4).to_bytes(8, "little")
    assert data[0x282:0x28B] == b'{"header"'
    assert data[0x434:0x43C] == (0x20A).to_bytes(8, "little")


def test_the_document_names_every_kind_with_every_field() -> None:
    for kind in Kind:
        row = re.search(rf"^\| {kind.value} \| {kind.name.lower()} \| (.*) \|$", FORMAT, re.MULTILINE)
        assert row is not None, kind
        fields = FIELDS_OF_KIND.get(kind)
        for name in fields.__struct_fields__ if fields is not None else ():
            assert f"`{name}`" in row[1]


def test_the_document_states_the_bounds_that_the_code_keeps() -> None:
    from kcs.capture import format as codec

    mib = codec.MIB
    for bound in (
        f"at most {codec.HEADER_JSON_BYTES_MAX // mib} MiB",
        f"1 to {codec.CHUNK_RECORDS_MAX:,}",
        f"at most {codec.CHUNK_STORED_BYTES_MAX // mib} MiB",
        f"at most {codec.CHUNK_RAW_BYTES_MAX // mib} MiB",
        f"at most {codec.PAYLOAD_BYTES_MAX // mib} MiB",
        f"at most {codec.INDEX_ENTRIES_MAX:,}",
        f"at most {codec.SUMMARY_BYTES_MAX // mib} MiB",
        f"at most\n{STREAMS_MAX:,}",
        f"at most {URLS_OF_STREAM_MAX} different",
        f"cut at {URL_CHARS_MAX} characters",
        f"the first {GAPS_MAX:,}",
        f"the first {HOLES_MAX:,} pairs",
        f"the first {DAMAGE_MAX:,} places",
    ):
        assert bound in FORMAT, bound


def test_version_1_stays_readable() -> None:
    path = DATA / f"{NAME}.zst"
    with CaptureReader(path) as reader:
        lines = b"".join(to_ndjson(record, reader.header.capture_id) for record in reader.records())
        info = reader.info()
    assert lines == (DATA / f"{NAME}.ndjson").read_bytes()
    assert (info.records, info.chunks, info.exchange) == (11, 3, "upbit")
    assert records_of(path) == all_kinds()


def test_todays_writer_makes_the_same_records(tmp_path: Path) -> None:
    path = fixture(tmp_path)
    assert records_of(path) == records_of(DATA / f"{NAME}.zst")
    if zstandard.ZSTD_VERSION == ZSTD_OF_THE_EXAMPLE:
        assert path.read_bytes() == (DATA / f"{NAME}.zst").read_bytes()
