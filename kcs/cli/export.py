"""`kcs export`: captures as Parquet datasets for research."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kcs.cli import options
from kcs.cli.terminal import progress, put_json, table


def export(
    captures: options.Captures,
    out: Annotated[Path, typer.Option(help="Directory of the datasets; made if missing.")],
    from_: options.From = None,
    to: options.To = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Write one Parquet dataset a channel (OUT/channel=/exchange=/date=): the same events as in Kafka.

    Read it with DuckDB: SELECT * FROM read_parquet('OUT/channel=trade/**/*.parquet', hive_partitioning=true).
    """
    from kcs.cli.report import RunReport
    from kcs.clock import SystemClock
    from kcs.config import parse_time_ns
    from kcs.export.parquet import ParquetExporter
    from kcs.replay.events import positioned
    from kcs.replay.source import plan
    from kcs.stats import Ledger

    sources = plan(captures)
    first_ns = next((s.first_ns for s in sources if s.first_ns is not None), None)
    last_ns = max((s.last_ns for s in sources if s.last_ns is not None), default=None)
    from_ns = None if from_ is None else parse_time_ns(from_, "--from", first_ns)
    to_ns = None if to is None else parse_time_ns(to, "--to", first_ns)
    ledger, clock = Ledger(), SystemClock()
    started_ns = clock.monotonic_ns()
    total = (last_ns - first_ns) / 1e9 if first_ns is not None and last_ns is not None else None
    exporter = ParquetExporter(out, force=force)
    current = b""
    with progress("export", total, quiet=quiet or json) as bar, exporter:
        for number, item in enumerate(positioned(captures, from_ns=from_ns, to_ns=to_ns, strict=False, ledger=ledger)):
            if item.capture_id != current:
                current = item.capture_id
                exporter.start(item.exchange, current.hex())
            exporter.add(item.event, item.recv_ns, item.frame, item.index)
            if not number & 0xFFF:
                bar.update((item.recv_ns - (first_ns or 0)) / 1e9, f"{number:,} rows")
        written = exporter.close()
    run = RunReport("export", (clock.monotonic_ns() - started_ns) / 1e9, ledger)
    if json:
        put_json(
            {**run.as_json(), "files": [str(f) for f in written.files], "rows": written.rows, "bytes": written.bytes}
        )
    else:
        rows = [(channel, f"{count:,} rows") for channel, count in sorted(written.rows.items())]
        table([*rows, ("files", f"{len(written.files):,} in {out}"), *run.lines()[:1]], title="kcs export")
    return run.exit_code()
