"""`kcs info`, `cat`, `verify`, `recover`, `import`: tools that read and mend capture files, without Kafka."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.report import EXIT_LOSS, EXIT_OK
from kcs.cli.terminal import put_json, put_lines, say, table

if TYPE_CHECKING:
    from kcs.model import Gap
    from kcs.replay.events import Positioned
    from kcs.verify import Verdict

_TEXT_SHOWN = 160
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _CONTROLS}
"""What a venue sends is shown, never obeyed: a terminal would take commands from it."""


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
    return f"{head}{fields} {text}".rstrip().translate(_ESCAPES).encode() + b"\n"


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


def verify(
    captures: options.Captures,
    digest: Annotated[str | None, typer.Option(metavar="HEX", help="The digest it must have (one capture).")] = None,
    json: options.Json = False,
) -> int:
    """Read every byte: checksums, ledger, digest. Is the capture whole, and does it still become what it became live?

    The digest is compared with the receipt beside the file and with --digest. Exit 3 when anything is wrong or missing.
    """
    from kcs.errors import UsageError
    from kcs.verify import verify as verify_capture

    if digest is not None and len(captures) != 1:
        raise UsageError("--digest belongs to one capture", remedy="verify the captures one by one")
    code = EXIT_OK
    for path in captures:
        verdict = verify_capture(path, expected=digest)
        if json:
            put_json(_verdict_json(verdict))
        else:
            _show_verdict(verdict)
        if not verdict.ok:
            code = EXIT_LOSS
    return code


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "verb": "verify",
        "path": str(verdict.path),
        "id": verdict.capture_id,
        "exchange": verdict.exchange,
        "ok": verdict.ok,
        "sealed": verdict.sealed,
        "records": verdict.records,
        "holes": verdict.holes,
        "miscounted": [
            {"number": m.number, "stream": m.stream, "said": m.said, "counted": m.counted} for m in verdict.miscounted
        ],
        "damage": verdict.damage,
        "recovered": verdict.recovered,
        "missing": verdict.missing,
        "proves": verdict.proves,
        "verifiable": verdict.verifiable,
        "gaps": [_gap_json(gap) for gap in verdict.gaps],
        **{key: value for key, value in verdict.ledger.report().items() if key != "records"},
        "digest": verdict.digest,
        "compared": [
            {"with": c.source, "digest": c.digest, "matches": c.matches, "why": c.why or None}
            for c in verdict.comparisons
        ],
    }


def _gap_json(gap: Gap) -> dict[str, Any]:
    return {
        "stream": gap.stream,
        "from_ns": gap.from_ns,
        "to_ns": gap.to_ns,
        "cause": gap.cause,
        "markets": gap.markets,
        "frames": gap.frames,
        "covered_by": gap.covered_by,
    }


_PROVEN_BY = {"sequence": "sequence numbers", "checksum": "checksums", "trade_ids": "trade ids"}
_GAPS_SHOWN = 20


def _venue_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """What can be said of the frames that the venue sent, which is less than what can be said of the capture."""
    from kcs.capture.info import utc

    if verdict.verifiable:
        proofs = ", ".join(_PROVEN_BY[proof] for proof in verdict.proves)
        rows = [("venue", f"{verdict.exchange}: losses show by its {proofs}")]
    else:
        rows = [
            ("venue", f"not verifiable: {verdict.exchange} sends no sequence and no checksum; a frame that was lost"),
            ("", "before it reached kcs leaves no trace (whole is said of the capture alone)"),
        ]
    for gap in verdict.gaps[:_GAPS_SHOWN]:
        markets = ", ".join(gap.markets[:_GAPS_SHOWN]) or "all markets"
        frames = "an unknown number of" if gap.frames is None else f"{gap.frames:,}"
        when = f"{utc(gap.from_ns)} to {utc(gap.to_ns)}"
        covered = "" if gap.covered_by is None else f"; stream {gap.covered_by} delivered all the while"
        rows.append(("gap", f"stream {gap.stream}, {when}, {gap.cause}: {markets}, {frames} frames{covered}"))
    if verdict.ledger.gaps > _GAPS_SHOWN:
        rows.append(("gap", f"and {verdict.ledger.gaps - _GAPS_SHOWN:,} more"))
    return rows


def _missing_text(verdict: Verdict) -> str:
    runs = [f"{first:,}" if count == 1 else f"{first:,}-{first + count - 1:,}" for first, count in verdict.missing]
    more = f" and {len(runs) - _GAPS_SHOWN:,} more runs" if len(runs) > _GAPS_SHOWN else ""
    return ", ".join(runs[:_GAPS_SHOWN]) + more


def _show_verdict(verdict: Verdict) -> None:
    from kcs.cli.report import RunReport

    rows = [
        ("capture", f"{verdict.capture_id} of {verdict.exchange}, {verdict.records:,} records"),
        ("state", "sealed" if verdict.sealed else "not sealed: kcs recover makes it whole"),
        *RunReport("verify", 0.0, verdict.ledger).lines()[:2],
        ("digest", verdict.digest),
        *_venue_rows(verdict),
    ]
    for c in verdict.comparisons:
        same = "not comparable" if c.matches is None else "equal" if c.matches else f"NOT EQUAL ({c.digest})"
        rows.append((c.source, f"{same}{': ' + c.why if c.why else ''}"))
    if verdict.holes:
        rows.append(("HOLES", f"{verdict.holes:,} records are missing: their numbers are not there"))
        rows.append(("", f"numbers {_missing_text(verdict)}"))
    rows += [
        (
            "MISCOUNTED",
            f"record {m.number:,} says {m.said:,} frames of stream {m.stream} by then; here are {m.counted:,}",
        )
        for m in verdict.miscounted
    ]
    rows += [("DAMAGE", f"offset {d['offset']:,}: {d['what']}") for d in verdict.damage]
    rows += [
        ("LOST BEFORE", f"saved from a file with damage at {d['offset']:,}: {d['what']}") for d in verdict.recovered
    ]
    rows.append(("verdict", "whole" if verdict.ok else "NOT WHOLE"))
    table(rows, title=str(verdict.path))


def recover(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A capture that was cut, damaged or never sealed.", readable=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The sealed capture to write.", readable=False)],
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Save every intact record into a new sealed capture, under the same id and numbers. Exit 3: some are missing."""
    import msgspec

    from kcs.capture.info import describe_damage
    from kcs.capture.recover import recover as recover_capture

    report = recover_capture(source, out, force=force)
    if json:
        put_json({"verb": "recover", **msgspec.to_builtins(report)})
    else:
        rows = [("written", f"{report.target}: {report.records:,} records, {report.bytes:,} bytes")]
        rows += [("damage", describe_damage(damage).split(maxsplit=1)[1]) for damage in report.damage]
        if report.missing:
            rows.append(("missing", f"{report.missing:,} records, lost for good"))
        table(rows, title="kcs recover")
    return EXIT_OK if report.complete else EXIT_LOSS


def repack(captures: options.Captures, json: options.Json = False) -> int:
    """Rewrite sealed captures with larger chunks: the same records, numbers, id and digest in a smaller file.

    A live capture is written in chunks of a quarter of a second, so that a kill costs no more; large ones pack better.
    """
    import msgspec

    from kcs.capture.recover import repack as repack_capture

    for path in captures:
        report = repack_capture(path)
        if json:
            put_json({"verb": "repack", **msgspec.to_builtins(report)})
        else:
            chunks = f"{report.chunks_before:,} -> {report.chunks_after:,} chunks"
            table([(str(path), f"{report.bytes_before:,} -> {report.bytes_after:,} bytes, {chunks}")])
    return EXIT_OK


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
