"""Makes the worked example of FORMAT.md and the fixture of format version 1.

    python -m tests.capture.make_fixture hexdump     prints the example for section 6 of FORMAT.md
    python -m tests.capture.make_fixture fixture     writes data/v1-small.zst and data/v1-small.ndjson

The fixture stays for ever: when the format changes, make a new one of the new version and keep this one. Writing it
again would only prove that the writer agrees with the reader of the same day.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from kcs.capture.format import CaptureHeader
from kcs.capture.ndjson import to_ndjson
from kcs.capture.reader import CaptureReader
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.model import CloseFields, Kind, OpenFields
from tests.capture.making import all_kinds, append, header, ids

DATA = Path(__file__).parent / "data"
NAME = "v1-small"


def example(directory: Path) -> bytes:
    """Three records: open, one text frame, close."""
    t = 1_700_000_000_000_000_000
    capture_id = bytes.fromhex("6b6373206578616d")
    about = CaptureHeader(capture_id, capture_id, "upbit", "wss://api.upbit.com/websocket/v1", t, "0.1.0")
    target = CaptureWriter(directory, about, settings=WriterSettings(threaded=False), new_id=ids())
    target.append_fields(Kind.OPEN, 1, t, OpenFields(url=about.url))
    target.append(Kind.TEXT, 1, t + 250_000_000, b'{"status":"UP"}')
    target.append_fields(Kind.CLOSE, 1, t + 300_000_000, CloseFields(code=1000, frames=1))
    return target.close(t)[0].path.read_bytes()


def hexdump(data: bytes) -> str:
    """As `xxd -g1` writes it."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}: {row.hex(' '):<47}  {text}")
    return "\n".join(lines) + "\n"


def fixture(directory: Path) -> Path:
    """Every kind of record, in three chunks."""
    target = CaptureWriter(directory, header(), settings=WriterSettings(threaded=False), new_id=ids())
    for record in all_kinds():
        append(target, record)
        if record.number in (3, 7):
            target.flush()
    return target.close(header().created_ns)[0].path


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        if sys.argv[1:] == ["hexdump"]:
            sys.stdout.write(hexdump(example(Path(directory))))
        elif sys.argv[1:] == ["fixture"]:
            path = fixture(Path(directory))
            DATA.mkdir(exist_ok=True)
            with (DATA / f"{NAME}.zst").open("xb") as out, CaptureReader(path) as reader:
                out.write(path.read_bytes())
                lines = [to_ndjson(record, reader.header.capture_id) for record in reader.records()]
            (DATA / f"{NAME}.ndjson").write_bytes(b"".join(lines))
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
