"""NDJSON out and in: the same records; foreign lines; errors that name the line."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcs.capture import ndjson
from kcs.capture.ndjson import ImportReport, import_ndjson, read_lines, to_ndjson
from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureError, CaptureWriteError
from kcs.model import FIELDS_OF_KIND, Fields, Kind, OpenFields, Record
from tests.capture.making import START_NS, all_kinds, header, records_of
from tests.capture.test_records import KIND_OF, arbitrary_fields

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"
FILES = sorted(CAPTURES.glob("*.jsonl"))


def imported(target: Path, *lines: bytes, force: bool = False) -> ImportReport:
    return import_ndjson(lines, target, "upbit", kcs_version="0.1.0", source="in.jsonl", force=force)


def test_cat_has_every_field_and_import_gives_it_back(tmp_path: Path) -> None:
    lines = [to_ndjson(record, header().capture_id) for record in all_kinds()]
    objects = [orjson.loads(line) for line in lines]
    assert objects[0] == {
        "number": 0,
        "capture": "0000000000000001",
        "recv_ns": START_NS,
        "stream": 1,
        "kind": "open",
        "url": "wss://api.upbit.com/websocket/v1",
        "cause": "start",
        "frames": 0,
        "continued": False,
    }
    assert objects[2]["payload"] == '{"status":"UP"}'
    assert objects[3]["payload_b64"] == "H4sA/yBub3QgdGV4dA=="
    assert "payload" not in objects[3]
    assert objects[4]["payload"] == ""
    for record, shown in zip(all_kinds(), objects, strict=True):
        names = FIELDS_OF_KIND[record.kind].__struct_fields__ if record.fields is not None else ()
        assert set(names) <= set(shown)
    report = imported(tmp_path / "out.zst", *lines)
    assert records_of(tmp_path / "out.zst") == all_kinds()
    assert (report.records, report.lines, report.kinds["text"]) == (11, 11, 2)


@given(
    st.lists(
        st.tuples(
            st.one_of(
                arbitrary_fields().map(lambda f: (KIND_OF[type(f)], f)),
                st.sampled_from([Kind.SENT, Kind.TEXT, Kind.BINARY]).map(lambda k: (k, None)),
            ),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**63 - 1),
            st.binary(max_size=30) | st.text(max_size=10).map(lambda t: t.encode("utf-8", "surrogatepass")),
            st.integers(1, 5),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_records_come_back_with_their_numbers(
    tmp_path: Path, drawn: list[tuple[tuple[Kind, Fields | None], int, int, bytes, int]]
) -> None:
    records = []
    number = -1
    for (kind, fields), stream, recv_ns, payload, step in drawn:
        number += step
        records.append(Record(number, kind, stream, recv_ns, payload, fields))
    imported(tmp_path / "out.zst", *(to_ndjson(r, b"12345678") for r in records), force=True)
    assert records_of(tmp_path / "out.zst") == records


def test_same_lines_same_file_other_lines_another_id(tmp_path: Path) -> None:
    line = b'{"recv_ns":5,"kind":"text","payload":"a"}'
    ids = [imported(tmp_path / name, line).capture_id for name in ("a", "b")]
    assert ids[0] == ids[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert imported(tmp_path / "c", line, line).capture_id != ids[0]


def test_foreign_lines_need_little(tmp_path: Path) -> None:
    imported(
        tmp_path / "out.zst",
        b'\xef\xbb\xbf{"recv_ns":5,"kind":"open","url":"wss://x","unknown":[1]}\r\n',
        b"\n",
        b'{"kind":"text","payload":"\xea\xb2\xbd","recv_ns":4}',
        b'{"recv_ns":6,"kind":"binary","payload_b64":"H4s="}\n',
        b'{"recv_ns":7,"kind":"text","payload":"later","number":9}\n',
    )
    with CaptureReader(tmp_path / "out.zst") as reader:
        assert (reader.header.url, reader.header.created_ns, reader.header.exchange) == ("wss://x", 5, "upbit")
        assert list(reader.records()) == [
            Record(0, Kind.OPEN, 0, 5, b"", OpenFields(url="wss://x")),
            Record(1, Kind.TEXT, 0, 4, "경".encode()),
            Record(2, Kind.BINARY, 0, 6, b"\x1f\x8b"),
            Record(9, Kind.TEXT, 0, 7, b"later"),
        ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"recv_ns":5,"kind":"rest","payload":"{}"}', "url"),
        (b'{"recv_ns":5,"kind":"text"}', "payload"),
        (b'{"recv_ns":5,"kind":"text","payload":"a","payload_b64":"YQ=="}', "both"),
        (b'{"recv_ns":5,"kind":"frame","payload":"a"}', "unknown kind 'frame'"),
        (b'{"kind":"text","payload":"a"}', "recv_ns"),
        (b'{"recv_ns":1.5,"kind":"text","payload":"a"}', "int"),
        (b'{"recv_ns":-1,"kind":"text","payload":"a"}', "recv_ns"),
        (b'{"recv_ns":9223372036854775808,"kind":"text","payload":"a"}', "recv_ns"),
        (b'{"recv_ns":5,"stream":4294967296,"kind":"text","payload":"a"}', "stream"),
        (b'{"recv_ns":5,"number":0,"kind":"text","payload":"a"}', "number 0 after number 0"),
        (b'{"recv_ns":5,"kind":"binary","payload_b64":"***"}', "base64"),
        (b'{"recv_ns":5,"kind":"text","payload":"\xff"}', "line 3"),
        (b"not json", "line 3"),
        (b"[" * 100_000, "line 3"),
        (b"\x00", "line 3"),
    ],
)
def test_bad_line_is_named_and_nothing_is_left(tmp_path: Path, line: bytes, says: str) -> None:
    good = b'{"recv_ns":5,"kind":"text","payload":"a"}'
    with pytest.raises(CaptureError) as caught:
        imported(tmp_path / "out.zst", good, b"", line)
    assert "in.jsonl, line 3" in caught.value.where
    assert says in f"{caught.value.where}: {caught.value.what}"
    assert "kcs cat" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_lines_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "LINE_BYTES_MAX", 50)
    lines = read_lines(io.BytesIO(b"a" * 49 + b"\n" + b"b" * 10**6))
    assert next(lines) == b"a" * 49 + b"\n"
    with pytest.raises(CaptureError, match="line 2"):
        next(lines)
    with pytest.raises(CaptureError, match="longer than 50"):
        imported(tmp_path / "out.zst", b'{"recv_ns":5,"kind":"text","payload":"' + b"a" * 50 + b'"}')


def test_nothing_to_import_and_existing_target(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no record"):
        imported(tmp_path / "out.zst", b"\n", b"  ")
    line = b'{"recv_ns":5,"kind":"text","payload":"a"}'
    (tmp_path / "out.zst").write_bytes(b"precious")
    with pytest.raises(CaptureWriteError, match="exists already"):
        imported(tmp_path / "out.zst", line)
    imported(tmp_path / "out.zst", line, force=True)
    assert len(records_of(tmp_path / "out.zst")) == 1


@pytest.mark.skipif(not FILES, reason="no real recordings beside the repository")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_real_recordings_come_through_byte_for_byte(tmp_path: Path, path: Path) -> None:
    import base64

    with path.open("rb") as source:
        import_ndjson(read_lines(source), tmp_path / "out.zst", path.stem, kcs_version="0.1.0", source=path.name)
    records = records_of(tmp_path / "out.zst")
    truth = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert len(records) == len(truth)
    for record, line in zip(records, truth, strict=True):
        assert (record.recv_ns, record.kind.name.lower()) == (line["recv_ns"], line["kind"])
        if "payload_b64" in line:
            assert record.payload == base64.b64decode(line["payload_b64"])
        elif "payload" in line:
            assert record.payload == line["payload"].encode()
    again = [to_ndjson(record, b"\0" * 8) for record in records]
    import_ndjson(again, tmp_path / "again.zst", path.stem, kcs_version="0.1.0")
    assert records_of(tmp_path / "again.zst") == records
