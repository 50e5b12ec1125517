"""Where the last run of an exchange stopped: the end of the newest capture in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kcs.capture.format import ChunkMeta
from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureError

FILES_TRIED_MAX: Final = 8
"""Newest files looked at, by the second in their names: a start must not read a whole archive."""


def last_record_ns(directory: Path, exchange: str) -> int | None:
    """Receive time of the last record of the newest captures of the exchange; None when there is none.

    The latest of several, because files of one second have no order by name. What cannot be read is passed over: this
    is no place to fail a start.
    """
    names = [path for pattern in (".zst", ".zst.partial") for path in directory.glob(f"{exchange}-*{pattern}")]
    ends: list[int] = []
    for path in sorted(names, key=lambda p: p.name, reverse=True)[:FILES_TRIED_MAX]:
        try:
            with CaptureReader(path, strict=False) as reader:
                last_ns = _end_of(reader) if reader.header.exchange == exchange else None
        except CaptureError:
            continue
        if last_ns is not None:
            ends.append(last_ns)
    return max(ends, default=None)


def _end_of(reader: CaptureReader) -> int | None:
    """From the summary when sealed; else from the chunk descriptors alone, without reading what they describe."""
    if reader.sealed:
        return reader.info().last_ns
    ends: list[int] = []

    def note(meta: ChunkMeta) -> bool:
        ends.append(meta.last_ns)
        return False

    for _ in reader.chunks(note):
        pass
    return max(ends, default=None)
