"""Options that several verbs share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Files are opened by those who read them: their errors name what to do and are exit 1, not a wrong call.
Captures = Annotated[
    list[Path], typer.Argument(help="Capture files (*.zst, also *.partial).", show_default=False, readable=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Bootstrap = Annotated[
    str | None,
    typer.Option("-b", "--bootstrap", metavar="HOST:PORT,...", help="Kafka; without it the embedded broker serves."),
]
Property = Annotated[
    list[str] | None, typer.Option("-X", metavar="KEY=VALUE", help="Kafka property, as kcat spells it. Repeatable.")
]
Topic = Annotated[
    str | None, typer.Option("--topic", metavar="TEMPLATE", help="Topic template of {channel} and {exchange}.")
]
Partitions = Annotated[int | None, typer.Option("--partitions", help="Partitions of topics that have to be created.")]
Replication = Annotated[
    int | None, typer.Option("--replication", help="Replication factor of topics that have to be created.")
]
NoHeaders = Annotated[bool, typer.Option("--no-headers", help="No `kcs` header on records: rules out recovery.")]
From = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="First receive time: RFC 3339, or +30s from the start.")
]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="End, exclusive: RFC 3339, or +30s.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (default: ./kcs.toml if there).")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress display.")]
