"""`kcs verify`: is a capture whole, the same as live, and (with --topic) in Kafka to the last record?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.report import EXIT_LOSS, EXIT_OK
from kcs.cli.terminal import progress, put_json, table
from kcs.errors import UsageError

if TYPE_CHECKING:
    from kcs.config import Config
    from kcs.kafka.findings import Finding, Stated, TopicReport
    from kcs.model import Gap
    from kcs.verify import Verdict
    from kcs.verify_topics import TopicVerdicts

_FINDINGS_SHOWN = 5
"""Findings of one fault on a terminal; --json has more."""


def verify(
    captures: options.Captures,
    digest: Annotated[str | None, typer.Option(metavar="HEX", help="The digest it must have (one capture).")] = None,
    topic: Annotated[
        bool, typer.Option("--topic", help="Read the topics back and check each position. Where: as delivered.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="TEMPLATE", help="The same, in topics of {channel} and {exchange}."),
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option("-b", "--bootstrap", metavar="HOST:PORT,...", help="Kafka, for --topic.")
    ] = None,
    x: options.Property = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Read every byte: checksums, ledger, digest. Is the capture whole, and does it still become what it became live?

    The digest is compared with the receipt beside the file and with --digest; files of one run are one log. With
    --topic also: is each record that the capture makes in Kafka, once, in order, unchanged, and nothing else of it?
    Exit 3 when anything is wrong or missing, 1 when the broker cannot be read.
    """
    if digest is not None and len(captures) != 1:
        raise UsageError("--digest belongs to one capture", remedy="verify the captures one by one")
    for path in captures:
        if "{channel}" in str(path):
            raise UsageError(f"{path} is a topic template, not a capture", remedy=f"--template '{path}'")
    if topic or template is not None:
        return _verify_topics(captures, _settings(bootstrap, x, config), template, digest, json=json, quiet=quiet)
    return _verify_files(captures, digest, json=json)


def _verify_files(captures: Sequence[Path], digest: str | None, *, json: bool) -> int:
    from kcs.verify import Runs, in_run_order
    from kcs.verify import verify as verify_capture

    code, runs = EXIT_OK, Runs()
    for path in in_run_order(captures):
        verdict = verify_capture(path, expected=digest, runs=runs)
        if json:
            put_json(_verdict_json(verdict, None))
        else:
            _show_verdict(verdict, ())
        if not verdict.ok:
            code = EXIT_LOSS
    return code


def _settings(bootstrap: str | None, x: list[str] | None, config: Path | None) -> Config:
    import os

    from kcs.config import load, parse_pairs

    settings = load({"bootstrap": bootstrap, "kafka": parse_pairs(x, "-X") if x else None}, os.environ, config)
    if settings.bootstrap is None:
        raise UsageError("--topic needs a broker to read", remedy="-b HOST:PORT, or KCS_BOOTSTRAP")
    return settings


def _verify_topics(
    captures: Sequence[Path], config: Config, template: str | None, digest: str | None, *, json: bool, quiet: bool
) -> int:
    from kcs.cli.running import run_async
    from kcs.cli.sinks import warned
    from kcs.kafka.settings import KafkaSettings
    from kcs.verify_topics import verify_topics

    assert config.bootstrap is not None
    warnings = warned("kafka", config)
    settings = KafkaSettings(config.bootstrap, properties=config.kafka)
    with progress("topics", 1.0, quiet=quiet or json) as bar:

        def show(read: int, total: int) -> None:
            bar.update(read / max(total, 1), f"{read:,} of {total:,} records")

        found = verify_topics(captures, settings, run=run_async, template=template, expected=digest, on_progress=show)
    for verdict, used in zip(found.verdicts, found.templates, strict=True):
        assert verdict.topics is not None
        if json:
            put_json(_verdict_json(verdict, {**_topics_json(verdict.topics, used, found), "warnings": warnings}))
        else:
            _show_verdict(verdict, _topic_rows(verdict.topics, used, found))
    return EXIT_OK if all(verdict.ok for verdict in found.verdicts) else EXIT_LOSS


# --- as JSON ----------------------------------------------------------------------------------------------------------


def _verdict_json(verdict: Verdict, topics: dict[str, Any] | None) -> dict[str, Any]:
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
        "absent": verdict.absent,
        "topics": topics,
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


def _topics_json(report: TopicReport, template: str, found: TopicVerdicts) -> dict[str, Any]:
    import msgspec

    stated = report.stated
    return {
        "ok": report.ok,
        "cluster": found.cluster_id,
        "template": template,
        "expected": report.expected,
        "present": report.present,
        "missing": report.missing,
        "expired": report.expired,
        "found": report.found,
        "doubled": report.doubled,
        "misplaced": report.misplaced,
        "orphans": report.orphans,
        "beyond": report.beyond,
        "out_of_order": report.out_of_order,
        "different": report.different,
        "different_in": report.fields,
        "broker_times": report.broker_times,
        "findings": [msgspec.to_builtins(finding) for finding in report.findings],
        "offsets": [
            {"topic": topic, "partition": partition, "first": first, "last": last}
            for (topic, partition), (first, last) in report.offsets.items()
        ],
        "log_starts": [
            {"topic": topic, "partition": partition, "offset": offset}
            for (topic, partition), offset in report.log_starts.items()
        ],
        "receipt": None
        if stated is None
        else {
            "whole": stated.whole,
            "recovered": stated.recovered,
            "failed": stated.failed,
            "uncaptured": stated.uncaptured,
            "contradicts": [msgspec.to_builtins(one) for one in report.contradictions],
        },
        "read": {
            "records": found.read,
            "other_captures": found.other_captures,
            "without_header": found.without_header,
        },
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _topic_rows(report: TopicReport, template: str, found: TopicVerdicts) -> list[tuple[str, str]]:
    rows = [
        (
            "topics",
            f"{template} of cluster {found.cluster_id}: {report.present:,} of {report.expected:,} records present;"
            f" {found.read:,} read, {found.other_captures:,} of other captures, {found.without_header:,} without kcs",
        )
    ]
    counts = (
        ("missing", report.missing, "are not there"),
        ("expired", report.expired, "were there, and the broker has dropped them (retention)"),
        ("doubled", report.doubled, "are there once more"),
        ("out_of_order", report.out_of_order, "come after a later one of their partition"),
        ("different", report.different, f"are not what the capture makes ({_counts_text(report.fields)})"),
        ("misplaced", report.misplaced, "belong to another partition"),
        ("orphan", report.orphans, f"are not of this capture's frames ({report.beyond:,} behind its end)"),
    )
    for fault, count, text in counts:
        if count:
            rows.append((fault.upper().replace("_", " "), f"{count:,} records {text}"))
            named = [finding for finding in report.findings if finding.fault == fault]
            rows += [("", _finding_text(finding)) for finding in named[:_FINDINGS_SHOWN]]
            if len(named) > _FINDINGS_SHOWN:
                rows.append(("", "... (--json names more)"))
    for (topic, partition), offset in report.log_starts.items():
        rows.append(
            ("note", f"the broker's log of {topic}[{partition}] begins at offset {offset:,}: older ones expired")
        )
    if report.broker_times:
        rows.append(("note", f"{report.broker_times:,} timestamps were set by the broker and are not compared"))
    if report.stated is not None:
        rows += _receipt_notes(report.stated)
    for one in report.contradictions:
        said, seen = ("none" if pair is None else f"{pair[0]:,} to {pair[1]:,}" for pair in (one.receipt, one.found))
        rows.append(("RECEIPT", f"{one.topic}[{one.partition}]: offsets {said} by the receipt, {seen} in the topic"))
    return rows


def _receipt_notes(stated: Stated) -> list[tuple[str, str]]:
    """What the receipt itself says is not as usual."""
    notes = (
        (stated.recovered, "delivered, in part at least, after its run had ended"),
        (not stated.whole, "the capture had holes when it was delivered"),
        (stated.failed, f"{stated.failed:,} records were refused by the broker"),
        (stated.uncaptured, f"{stated.uncaptured:,} records have frames beyond the capture's end"),
    )
    return [("receipt", text) for true, text in notes if true]


def _finding_text(finding: Finding) -> str:
    position = f"frame {finding.frame:,} event {finding.event}"
    if finding.records > 1 and finding.last is not None:
        position += f" to frame {finding.last[0]:,} event {finding.last[1]} ({finding.records:,} records)"
    offset = "" if finding.offset is None else f" offset {finding.offset:,}"
    more = ", ".join(filter(None, (*finding.fields, finding.why)))
    return f"{finding.topic}[{finding.partition}]{offset}: {position}{': ' + more if more else ''}"


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


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


def _show_verdict(verdict: Verdict, topics: Sequence[tuple[str, str]]) -> None:
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
        name, beside = ("given", "") if c.source == "given" else ("receipt", f", {Path(c.source).name}")
        rows.append((name, f"{same}{': ' + c.why if c.why else ''}{beside}"))
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
    if verdict.absent is not None:
        first, last = verdict.absent
        files = f"file {first:,}" if first == last else f"files {first:,} to {last:,}"
        rows.append(("ABSENT", f"{files} of this run, between the one before and this one"))
    rows += topics
    rows.append(("verdict", _verdict_text(verdict)))
    table(rows, title=str(verdict.path))


def _verdict_text(verdict: Verdict) -> str:
    if verdict.topics is None:
        return "whole" if verdict.ok else "NOT WHOLE"
    capture = "whole" if verdict.whole and verdict.absent is None else "NOT WHOLE"
    return f"{capture}; {'all in Kafka, once and in order' if verdict.topics.ok else 'NOT AS IT SHOULD BE IN KAFKA'}"
