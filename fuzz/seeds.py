"""What a fuzzer begins with, made by our own simulator and writer: `python -m fuzz --seeds` writes it into corpus/."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fuzz.forge import CAPTURE_ID, START_NS, encode
from kcs.capture.ndjson import to_ndjson
from kcs.capture.reader import CaptureReader
from kcs.capture.records import encode_fields
from kcs.model import (
    FRAME_KINDS,
    ClockFields,
    CloseFields,
    Fields,
    GapFields,
    Kind,
    OpenFields,
    RestFields,
    StateFields,
)
from kcs.sim.settings import SimSettings
from kcs.sim.tape import write_tape

_HEADER = (
    b'{"capture_id":"0001020304050607","run_id":"0001020304050607","exchange":"upbit","url":"wss://x",'
    b'"created_ns":1700000000000000000,"kcs_version":"0.1.0","options":{"markets":["KRW-BTC"],"depth":15}}'
)
_SUMMARY = b'{"header":' + _HEADER + b',"kinds":{"text":3},"streams":[{"stream":1,"records":3,"frames":3}]}'
_FIELDS: dict[int, Fields] = {
    Kind.OPEN: OpenFields(url="wss://x/?a=b", cause="start", frames=3, continued=True),
    Kind.REST: RestFields(url="https://x/v1/book", status=503),
    Kind.CLOSE: CloseFields(code=1006, reason="bye", cause="silence", frames=3),
    Kind.GAP: GapFields(START_NS, START_NS + 5, "silence", ("KRW-BTC",), 3),
    Kind.CLOCK: ClockFields(START_NS, 5),
    Kind.STATE: StateFields(market="KRW-BTC"),
}
_STATE = b'{"trades":["1","2"],"book_ts_ns":5,"book_stream":1,"books":["AAAAAAAAAAAAAAAAAAAAAA=="]}'


def frames() -> list[bytes]:
    """A frame of each kind in each format, short: from the simulator."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        for wire_format in ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"):
            path = Path(home) / f"{wire_format}.zst"
            settings = SimSettings(markets=("KRW-BTC",), rate=40)
            write_tape(path, settings, 1_000_000_000, wire_format=wire_format, depth=1)
            with CaptureReader(path) as reader:
                of_length = {len(r.payload): r.payload for r in reader.records() if r.kind in FRAME_KINDS}
            by_start = {payload[:20]: payload for _, payload in sorted(of_length.items(), reverse=True)}
            found += sorted(by_start.values())
    return found


def _tape() -> tuple[bytes, bytes]:
    """(file, its records as NDJSON) of a short tape."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "a.zst"
        write_tape(path, SimSettings(markets=("KRW-BTC",), rate=10), 300_000_000, wire_format="SIMPLE", depth=1)
        with CaptureReader(path) as reader:
            lines = b"".join(to_ndjson(record, reader.header.capture_id) for record in reader.records())
        return path.read_bytes(), lines


def _body(kind: int) -> bytes:
    return encode_fields(_FIELDS[kind], _STATE if kind == Kind.STATE else b"")


def _record(kind: int, body: bytes, stream: int = 1, seconds: int = 0) -> bytes:
    return bytes((kind, stream, seconds)) + len(body).to_bytes(2, "big") + body


def _chunks() -> tuple[bytes, bytes]:
    every = b"".join(_record(kind, _body(kind), seconds=kind) for kind in _FIELDS)
    return _record(3, b"{}") + _record(4, b"\xff\0", 2, 1) + _record(2, b"PING"), every


def forged() -> Iterator[bytes]:
    """Instructions: a whole file, one cut, one damaged, lying descriptors, foreign indexes."""
    plain, every = _chunks()
    file = (1, _HEADER), (2, plain), (2, every), (2, plain)
    yield encode(*file, (6, _SUMMARY))
    yield encode(*file)
    yield encode(*file, (8, b"\0\0\x20"))
    yield encode(*file, (8, b"\0\1\x60\xff"), (6, _SUMMARY))
    yield encode(
        (1, _HEADER), (3, b"\x80\x80\1\0\0\0" + plain), (3, b"\x81\x7f\0\1\1\0" + every), (9, b"\7" + _SUMMARY)
    )
    yield encode((1, _HEADER), (4, b"\0\3" + plain), (5, b"\0\0\0\x10" + b"\x28\xb5\x2f\xfd"), (7, bytes(112)))
    yield encode((0, b"garbage"), (2, plain), (2, every))
    yield encode((1, _HEADER), (2, _record(130, b"ancillary") + plain), (6, b"{}"))
    yield encode((1, _HEADER), (2, _record(77, b"newer") + plain), (6, _SUMMARY))


def _pipeline() -> Iterator[bytes]:
    some = frames()
    kinds = [(kind - 1, _body(kind)) for kind in _FIELDS]
    yield encode(*[(2, frame) for frame in some[:6]])
    yield encode((0, _body(Kind.OPEN)), *[(2 + 9 * (at % 2), frame) for at, frame in enumerate(some[:8])], *kinds)
    yield encode(*kinds, (2, b"nonsense"), (3, some[0]), (3, some[0]))


def seeds() -> dict[str, list[bytes]]:
    """Target to its seeds."""
    tape, lines = _tape()
    some = frames()
    every = list(forged())
    return {
        "reader": [tape, tape[: len(tape) * 2 // 3], b"\x1f\x8b", b'{"kind":"text"}', b""],
        **dict.fromkeys(("forged", "recover", "repack", "leftover", "tail"), every),
        "records": [b"\0\3" + _chunks()[0], *map(_body, _FIELDS)],
        "import": [b"".join(lines.splitlines(keepends=True)[:6]), *_lines()],
        "upbit": [*some, b'{"status":"UP"}', b'{"error":{"name":"NO_TICKET","message":"x"}}', b"[]", b"[[[[{}]]]]"],
        "venues": [encode(*[(0, frame) for frame in some[:5]])],
        "pipeline": list(_pipeline()),
        "config": [
            b'bootstrap = "h:1"\nmarket = ["KRW-BTC"]\nflush = "250ms"\n[kafka]\n"sasl.username" = "me"\n',
            b"upbit=ws://127.0.0.1:9801/",
            b"KRW-BTC,KRW-ETH",
            b"1.5MiB",
        ],
        "socket": [
            encode(
                (0x81, b'{"status":"UP"}'), (0x82, b"\xff\0"), (0x89, b"ping"), (0x8A, b"pong"), (0x88, b"\x03\xe8bye")
            ),
            encode((0x01, b"begun"), (0x89, b""), (0x00 | 0x80, b"ended"), (5, b""), (4, b""), (0x88, b"\x03\xe8")),
            encode((1, b""), *[(0x89, bytes(125))] * 9, (2, b""), (3, b"")),
            encode((0, b"\x81\x7f" + bytes(7) + b"\x05hello"), (0, b"\x82"), (0, b"\x01x")),
            b"!" + encode((0, b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nContent-Length: 2\r\n\r\nno")),
            b"!" + encode((0, b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")),
        ],
        "beside": [_delivery(), _receipt()],
        "faults": [
            b"latency=20ms;jitter=5ms@p=0.5",
            b"drop@p=0.01;close_code=1001@every=10s",
            b"silent_stall=3s@at=5s",
            b"chaos",
            b"drop=off",
        ],
        "scrub": [
            b'{"op":"login","args":[{"apiKey":"k","passphrase":"p","sign":"s"}]}',
            b'{"op":"auth","args":["k",1,"s"]}',
            b"wss://me:pw@h/?token=x&a=b#listenKey=y",
            b"Authorization: Bearer abcdefghij\r\nX-API-KEY: z",
            b'{"a":"{\\"token\\":\\"x\\"}","n":[1.5,null]}',
        ],
    }


def _lines() -> Iterator[bytes]:
    yield b'{"recv_ns":1,"kind":"text","payload":"x"}\n{"recv_ns":2,"kind":"binary","payload_b64":"/w==","number":9}\n'
    for kind, fields in _FIELDS.items():
        shown = {"recv_ns": 1, "kind": Kind(kind).name.lower(), "stream": 3, **msgspec.to_builtins(fields)}
        yield msgspec.json.encode(shown) + b"\n"


def _delivery() -> bytes:
    return msgspec.json.encode(
        {
            "version": 1, "capture": CAPTURE_ID.hex(), "cluster": "c", "template": "{channel}.{exchange}",
            "headers": True, "partitions": {"trade.upbit": 1}, "record_schema": 1, "bootstrap": "h:1",
        }
    )  # fmt: skip


def _receipt() -> bytes:
    return msgspec.json.encode(
        {
            "version": 1, "capture": CAPTURE_ID.hex(), "file": "a.zst", "digest": "00" * 32, "cluster": "c",
            "records": {"produced": 1, "acked": 1, "failed": 0}, "template": "{channel}.{exchange}", "headers": True,
            "offsets": {"trade.upbit": {"0": {"first": 0, "last": 0}}}, "record_schema": 1, "uncaptured": 2,
            "recovered": True, "whole": False, "missing": {"records": None, "damage": ["x"]},
        }
    )  # fmt: skip
