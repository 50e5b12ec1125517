"""NDJSON, the interchange form of captures: one JSON object a record, for scripts and for captures made elsewhere.

A line has `number`, `capture`, `recv_ns` (integer ns since the Unix epoch), `stream`, `kind`, every field of its kind,
and `payload` (text) or `payload_b64` (what is not UTF-8). Importing what `to_ndjson` wrote gives the same records under
the same numbers. From elsewhere only `recv_ns`, `kind` and what the kind needs are required: a missing `stream` is 0, a
missing `number` is the next. Memory: one line, one chunk. Raises `CaptureError` naming the line, `CaptureWriteError`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, Any, Final

import msgspec
import orjson

from kcs.capture.format import MIB, PAYLOAD_BYTES_MAX, CaptureHeader, Option
from kcs.capture.output import ChunkPacker, making
from kcs.capture.records import Appended, decode_fields, encode_fields
from kcs.errors import CaptureError
from kcs.model import FIELDS_OF_KIND, Kind, OpenFields, Record

LINE_BYTES_MAX: Final = 96 * MIB
"""A payload of the largest size fits as base64."""

CHUNK_BYTES: Final = 16 * MIB
_ID_LINES: Final = 64

_KINDS: Final = {kind.name.lower(): kind for kind in Kind}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


class ImportReport(msgspec.Struct, frozen=True):
    """What `import_ndjson` made."""

    path: str
    capture_id: str
    lines: int
    records: int
    kinds: dict[str, int]
    bytes: int
    first_ns: int | None
    last_ns: int | None


class _Line(msgspec.Struct, frozen=True, gc=False):
    """What every kind of line may hold; the fields of its kind are decoded apart."""

    recv_ns: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    kind: str
    stream: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    number: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    payload: str | None = None
    payload_b64: bytes | None = None
    capture: str = ""


_decode_line: Final = msgspec.json.Decoder(_Line).decode
_decode_fields: Final = {kind: msgspec.json.Decoder(fields).decode for kind, fields in FIELDS_OF_KIND.items()}


def to_ndjson(record: Record, capture_id: bytes) -> bytes:
    """One line, its newline included."""
    shown: dict[str, Any] = {
        "number": record.number,
        "capture": capture_id.hex(),
        "recv_ns": record.recv_ns,
        "stream": record.stream,
        "kind": _NAMES[record.kind],
    }
    if record.fields is not None:
        for name in record.fields.__struct_fields__:
            shown[name] = getattr(record.fields, name)
    if record.fields is None or record.payload:
        try:
            shown["payload"] = record.payload.decode("utf-8")
        except UnicodeDecodeError:
            shown["payload_b64"] = base64.b64encode(record.payload).decode("ascii")
    return orjson.dumps(shown) + b"\n"


def read_lines(source: IO[bytes]) -> Iterator[bytes]:
    """The lines of a binary stream, one at a time. Raises `CaptureError` for one beyond `LINE_BYTES_MAX`."""
    number = 0
    while line := source.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise CaptureError(f"longer than {LINE_BYTES_MAX} bytes", where=f"line {number}")
        yield line


def import_ndjson(
    lines: Iterable[bytes],
    target: Path,
    exchange: str,
    *,
    kcs_version: str,
    source: str = "stdin",
    capture_id: bytes | None = None,
    url: str = "",
    options: dict[str, Option] | None = None,
    force: bool = False,
) -> ImportReport:
    """Make a sealed capture of `lines` (see `read_lines`). Nothing is left behind when a line is wrong.

    `capture_id` None: made from exchange and the first lines, so that the same input gives the same file. The header's
    time is the first record's; its url that of a leading `open`, unless given.
    """
    rest = iter(lines)
    leading = list(islice(rest, _ID_LINES))
    parsed = _parse(chain(leading, rest), source)
    first = next(parsed, None)
    if first is None:
        raise CaptureError("no record in it", where=source)
    header = CaptureHeader(
        capture_id=capture_id or _id_of(exchange, leading),
        run_id=capture_id or _id_of(exchange, leading),
        exchange=exchange,
        url=url or _url_of(first[1]),
        created_ns=first[1][2],
        kcs_version=kcs_version,
        options=options or {},
    )
    with making(target, header, force=force) as file:
        packer = ChunkPacker(file, CHUNK_BYTES)
        count = 0
        for number, record in chain((first,), parsed):
            packer.add(number, record)
            count += 1
        packer.flush()
        kinds = file.tally.kinds()
        sealed = file.seal()
    return ImportReport(
        path=str(target),
        capture_id=sealed.capture_id.hex(),
        lines=count,
        records=sealed.records,
        kinds=kinds,
        bytes=sealed.bytes,
        first_ns=sealed.first_ns,
        last_ns=sealed.last_ns,
    )


def _id_of(exchange: str, leading: list[bytes]) -> bytes:
    digest = hashlib.blake2b(exchange.encode(), digest_size=8)
    for line in leading:
        digest.update(line)
    return digest.digest()


def _url_of(record: Appended) -> str:
    """The url of an open record, else nothing."""
    kind, _, _, body = record
    fields = decode_fields(kind, body)[0] if kind == Kind.OPEN else None
    return fields.url if isinstance(fields, OpenFields) else ""


def _parse(lines: Iterable[bytes], source: str) -> Iterator[tuple[int, Appended]]:
    """(number, record) of each line that is not blank. Raises `CaptureError` naming the line."""
    due = 0
    for at, line in enumerate(lines, 1):
        if at == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            number, record = _parse_line(line, due)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as exc:
            raise CaptureError(
                f"{exc}", where=f"{source}, line {at}", remedy="kcs cat FILE --json shows what lines look like"
            ) from exc
        due = number + 1
        yield number, record


def _parse_line(line: bytes, due: int) -> tuple[int, Appended]:
    """One line; `due` is the smallest number it may have. Raises ValueError (also msgspec's)."""
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"longer than {LINE_BYTES_MAX} bytes")
    parsed = _decode_line(line)
    kind = _KINDS.get(parsed.kind)
    if kind is None:
        raise ValueError(f"unknown kind {parsed.kind!r}; known: {', '.join(_KINDS)}")
    number = due if parsed.number is None else parsed.number
    if number < due:
        raise ValueError(f"number {number} after number {due - 1}")
    payload = _payload(parsed)
    decode = _decode_fields.get(kind)
    if decode is not None:
        return number, (int(kind), parsed.stream, parsed.recv_ns, encode_fields(decode(line), payload or b""))
    if payload is None:
        raise ValueError(f"a {parsed.kind} record needs payload or payload_b64")
    return number, (int(kind), parsed.stream, parsed.recv_ns, payload)


def _payload(line: _Line) -> bytes | None:
    if line.payload is not None and line.payload_b64 is not None:
        raise ValueError("both payload and payload_b64")
    payload = line.payload_b64 if line.payload is None else line.payload.encode("utf-8")
    if payload is not None and len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}")
    return payload
