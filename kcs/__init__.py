"""kcs: the record/replay toolkit for exchange market data.

The capture is the log, Kafka is a follower of it. For notebooks and tests::

    import kcs
    for event in kcs.read("fixtures/upbit.zst"):
        print(event)                       # Trade, OrderBook, Ticker or Gap, see kcs.model

Heavy imports stay inside the functions that need them, so that importing the package (and `kcs --help`) is quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from kcs.model import Event, Record

__version__ = "0.1.0"
__all__ = ["__version__", "read", "records"]


def read(*paths: str | Path, from_ns: int | None = None, to_ns: int | None = None) -> Iterator[Event]:
    """Typed events of one or several captures, merged by receive time, as Kafka gets them. See kcs/replay/events.py."""
    from kcs.replay.events import read as read_events

    return read_events(*paths, from_ns=from_ns, to_ns=to_ns)


def records(path: str | Path) -> Iterator[Record]:
    """Every raw record of a capture: frames byte for byte, and opens, closes, gaps between them. See kcs/capture."""
    from pathlib import Path as _Path

    from kcs.capture.reader import CaptureReader

    with CaptureReader(_Path(path)) as reader:
        yield from reader.records()
