"""What the simulator did wrong on purpose, one entry a fault: the truth that a collector's report is held against.

Virtual time is ns since the market opened (0 before). Connections count from 1 in the order in which they were made; 0
is the venue itself. `frame` is the number of the market frame on its connection, from 0, snapshots included, before any
fault: what the client would have counted. `crc` is the CRC-32 of that frame as the venue meant it. Within a connection
and a fault the order is that of time; entries of different connections may interleave differently from run to run,
`ordered` makes them comparable.

Entries are kept up to a bound, beyond it only counted; a `FaultLogFile` gets all of them as they happen.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from kcs.capture.osfile import FILE_MODE, write_all, write_error
from kcs.errors import CaptureWriteError

ENTRIES_MAX: Final = 200_000


class FaultEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One thing that was done. `frames_lost`: market frames that the client never gets because of it."""

    at_ns: int
    connection: int
    fault: str
    detail: str = ""
    frame: int | None = None
    market: str = ""
    crc: int | None = None
    frames_lost: int = 0


class SimFaultLog:
    """Every fault of a simulation. `sink` is told each entry at once and must not raise."""

    def __init__(self, *, entries_max: int = ENTRIES_MAX, sink: Callable[[FaultEntry], None] | None = None) -> None:
        self.entries: list[FaultEntry] = []
        self.unkept = 0
        """Entries beyond `entries_max`: counted and told to the sink, not kept."""
        self.counts: Counter[str] = Counter()
        """How often each fault happened. What a window did inside counts once, as the window."""
        self.frames_lost: Counter[str] = Counter()
        self._entries_max = entries_max
        self._sink = sink

    def add(self, entry: FaultEntry, *, counts: bool = True) -> None:
        """A fault happened; not `counts`: it is a part of one that was counted."""
        if counts:
            self.counts[entry.fault] += 1
        if entry.frames_lost:
            self.frames_lost[entry.fault] += entry.frames_lost
        if len(self.entries) < self._entries_max:
            self.entries.append(entry)
        else:
            self.unkept += 1
        if self._sink is not None:
            self._sink(entry)

    def of(self, fault: str) -> list[FaultEntry]:
        """The kept entries of one fault."""
        return [entry for entry in self.entries if entry.fault == fault]

    def ordered(self) -> list[FaultEntry]:
        """The kept entries in an order that does not depend on how time was sliced."""
        return sorted(self.entries, key=lambda entry: (entry.connection, entry.at_ns, entry.fault, entry.frame or 0))

    def report(self) -> dict[str, dict[str, int]]:
        """The totals, by name."""
        return {
            "faults": dict(sorted(self.counts.items())),
            "frames_lost": dict(sorted(self.frames_lost.items())),
        }


def checksum(payload: bytes) -> int:
    """What stands in `crc`."""
    return crc32(payload)


class FaultLogFile:
    """NDJSON, one entry a line, written as it happens: a killed simulator leaves a log that is whole up to then.

    Raises CaptureWriteError when it cannot be made; a later failure is kept in `failed` and nothing more is written.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        self.failed: CaptureWriteError | None = None
        self._encode = msgspec.json.Encoder().encode
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if force else os.O_EXCL)
        try:
            self._descriptor = os.open(path, flags, FILE_MODE)
        except OSError as error:
            raise write_error(error, path, "write the fault log") from error

    def write(self, entry: FaultEntry) -> None:
        """Append one entry; what `SimFaultLog.sink` expects."""
        if self.failed is not None:
            return
        try:
            write_all(self._descriptor, self._encode(entry) + b"\n")
        except OSError as error:
            self.failed = write_error(error, self.path, "write the fault log")

    def close(self) -> None:
        """No more entries."""
        os.close(self._descriptor)
