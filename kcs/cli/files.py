"""`kcs info`, `cat`, `import`: tools that read and make capture files, without Kafka."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.report import EXIT_LOSS, EXIT_OK
from kcs.cli.terminal import ESCAPES, put_json, put_lines, say, table

if TYPE_CHECKING:
    from kcs.replay.events import Positioned

_TEXT_SHOWN = 160


def info(captures: options.Captures, json: options.Json = False) -> int:
    """Say what is in a capture, from its index: times, counts, streams, gaps. Exit 3 when something is damaged."""
    import msgspec

    from kcs.capture.info import describe
    from kcs.capture.reader import CaptureReader

    damaged = False
    for path in captures:
        with CaptureReader(path, strict=False) as reader:
            found = reader.info()
        damaged |= bool(found.damage)
        if json:
            put_json({**msgspec.to_builtins(found), "frames": found.frames, "ratio": found.ratio, "urls": found.urls})
        else:
            put_lines(describe(found))
    return EXIT_LOSS if damaged else EXIT_OK


def cat(
    captures: options.Captures,
    from_: options.From = None,
    to: options.To = None,
    events: Annotated[bool, typer.Option("--events", help="Parsed events instead of raw records.")] = False,
    json: Annotated[bool, typer.Option("--json", help="NDJSON, one object a line; `kcs import` reads it.")] = False,
) -> int:
    """Print the records of captures (or the events they become), one a line. Exit 3 when something was unreadable."""
    from kcs.config import parse_time_ns
    from kcs.replay.source import plan

    first_ns = next((s.first_ns for s in plan(captures) if s.first_ns is not None), None)
    from_ns = None if from_ is None else parse_time_ns(from_, "--from", first_ns)
    to_ns = None if to is None else parse_time_ns(to, "--to", first_ns)
    if events:
        return _cat_events(captures, from_ns, to_ns, json=json)
    return _cat_records(captures, from_ns, to_ns, json=json)


def _cat_records(captures: list[Path], from_ns: int | None, to_ns: int | None, *, json: bool) -> int:
    from kcs.capture.info import describe_damage
    from kcs.capture.ndjson import to_ndjson
    from kcs.capture.reader import CaptureReader

    write, code = sys.stdout.buffer.write, EXIT_OK
    for path in captures:
        with CaptureReader(path, strict=False) as reader:
            for record in reader.records(from_ns, to_ns):
                write(to_ndjson(record, reader.header.capture_id) if json else _record_line(record))
            for damage in reader.damage:
                say(f"kcs: {path}: {describe_damage(damage).strip()}")
                code = EXIT_LOSS
    sys.stdout.buffer.flush()
    return code


def _record_line(record: Any) -> bytes:
    from kcs.capture.info import utc

    text = record.payload.decode("utf-8", "backslashreplace")
    if len(text) > _TEXT_SHOWN:
        text = f"{text[:_TEXT_SHOWN]}... ({len(record.payload):,} bytes)"
    fields = "" if record.fields is None else f" {record.fields!r}"
    head = f"{record.number:>8}  {utc(record.recv_ns)}  {record.stream}  {record.kind.name.lower():<6}"
    return f"{head}{fields} {text}".rstrip().translate(ESCAPES).encode() + b"\n"


def _cat_events(captures: list[Path], from_ns: int | None, to_ns: int | None, *, json: bool) -> int:
    from kcs.capture.info import utc
    from kcs.replay.events import positioned
    from kcs.stats import Ledger

    ledger, write = Ledger(), sys.stdout.buffer.write
    for item in positioned(captures, from_ns=from_ns, to_ns=to_ns, strict=False, ledger=ledger):
        if json:
            write(_event_json(item))
        else:
            write(f"{item.frame:>8}.{item.index}  {utc(item.recv_ns)}  {item.event!r}\n".encode())
    sys.stdout.buffer.flush()
    if ledger.unread:
        say(f"kcs: {ledger.unread:,} records could not be read: kcs verify FILE")
    return EXIT_LOSS if ledger.unread else EXIT_OK


def _event_json(item: Positioned) -> bytes:
    import msgspec

    position = {
        "exchange": item.exchange,
        "capture": item.capture_id.hex(),
        "frame": item.frame,
        "event": item.index,
        "recv_ns": item.recv_ns,
        "channel": type(item.event).__name__.lower(),
    }
    return msgspec.json.encode({**position, **msgspec.to_builtins(item.event)}) + b"\n"


def import_(
    source: Annotated[str, typer.Argument(metavar="IN", help="NDJSON as `kcs cat --json` writes it; - reads stdin.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The capture to write.", readable=False)],
    exchange: Annotated[str, typer.Option(help="Whose frames these are.")],
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Make a capture of NDJSON records that came from elsewhere, so that they can be replayed."""
    import msgspec

    from kcs import __version__
    from kcs.capture.ndjson import import_ndjson, read_lines
    from kcs.capture.output import refuse_source
    from kcs.exchanges import venue

    venue(exchange)
    refuse_source(0 if source == "-" else Path(source), out)
    with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as stream:
        report = import_ndjson(
            read_lines(stream),
            out,
            exchange,
            kcs_version=__version__,
            source="stdin" if source == "-" else source,
            force=force,
        )
    if json:
        put_json({"verb": "import", **msgspec.to_builtins(report)})
    else:
        table([("written", f"{report.path}: {report.records:,} records, {report.bytes:,} bytes")], title="kcs import")
    return EXIT_OK
