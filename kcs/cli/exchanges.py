"""`kcs exchanges`: the venues kcs speaks."""

from __future__ import annotations

from typing import Any

from kcs.cli import options
from kcs.cli.terminal import put_json, put_lines


def exchanges(json: options.Json = False) -> None:
    """List the exchanges, their channels, wire formats and addresses."""
    from kcs.exchanges import VENUES

    rows: list[dict[str, Any]] = [
        {
            "name": venue.name,
            "title": venue.title,
            "channels": venue.channels,
            "formats": venue.formats,
            "depths": venue.depths,
            "url": venue.url,
            "rest_url": venue.rest_url,
            "docs": venue.docs_url,
            "default_markets": venue.default_markets,
            "proves": venue.proves,
            "verifiable": venue.verifiable,
        }
        for venue in VENUES.values()
    ]
    if json:
        put_json(rows)
        return
    for row in rows:
        put_lines([f"{row['name']}  ({row['title']})"])
        for key in ("channels", "formats", "depths", "default_markets"):
            put_lines([f"  {key:<16}{', '.join(str(item) for item in row[key])}"])
        losses = "show" if row["verifiable"] else "not verifiable"
        put_lines([f"  {'proves':<16}{', '.join(row['proves']) or 'nothing'}; losses inside a connection: {losses}"])
        for key in ("url", "rest_url", "docs"):
            put_lines([f"  {key:<16}{row[key]}"])
