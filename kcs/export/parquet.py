"""Events as Parquet datasets, one a channel, in Hive layout: a replay into files instead of Kafka.

    OUT/channel=trade/exchange=upbit/date=2026-09-23/part-0123456789abcdef-0.parquet

`date` is the UTC day of the *receive* time (a venue's own time may be days old: a quiet book's last change), the hex
text is the capture id, the number counts the parts that one capture has in one directory. Columns: `rows.schema`. A
row's (`capture`, `frame`, `event`) is the position that leads back to the raw frame: `kcs cat` shows that record.

Row groups are sorted by (market, recv, frame, event), gaps by (recv, frame, event), and carry statistics and a page
index, so that a reader who wants one market skips the rest. ORDER BY recv, frame, event gives the order of arrival.

Contract: one `ParquetExporter` a run, used by one thread as a context manager. `start` names the capture of the events
that follow (several may take turns), `add` takes one, `close` completes the dataset. Files have a temporary name
(`.parquet.tmp`) until `close` renames all of them, so a run that fails or is interrupted leaves nothing that a reader
would take for data. A capture that is in OUT already is refused without `force`; with it, its parts are replaced.
Memory: rows are packed up to `buffer_bytes` in all, then the largest buffer becomes a row group; while that happens
about three times `buffer_bytes` are in use. At most `files_open_max` files are open; the one unused longest is
completed first, and another part follows if its day returns. Same events, same bytes.

Files and directories are for owner and group only, less the umask. Exchange and capture id become parts of paths: what
is no plain name is refused, wherever the capture came from.

Raises ExportError: output exists, disk full, no permission, another export in the same directory, a value that does not
fit its column, a name that is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kcs.errors import ExportError
from kcs.export.rows import Rows, channel_of, rows_of, schema
from kcs.model import Event

ROW_GROUP_ROWS: Final = 131_072
BUFFER_BYTES: Final = 64 * 1024 * 1024
FILES_OPEN_MAX: Final = 16

_DAY_NS: Final = 86_400_000_000_000
_NS_MAX: Final = 2**63 - 1
_DICTIONARY: Final = ("market", "capture", "cause")
_TEMPORARY: Final = ".tmp"
_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_EXCHANGE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
_CAPTURE: Final = re.compile(r"[0-9a-f]{16}")
_COMPRESSION_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: the files by path, rows by channel, bytes of all files together."""

    files: tuple[Path, ...]
    rows: dict[str, int]
    bytes: int


class _Part:
    """One Parquet file being written under its temporary name, and the rows not yet in it."""

    __slots__ = ("_writer", "buffered_bytes", "capture", "channel", "path", "rows")

    def __init__(self, channel: str, capture: str, path: Path) -> None:
        self.channel = channel
        self.capture = capture
        self.path = path
        self.rows: Rows = rows_of(channel)
        self.buffered_bytes = 0
        self._writer: Any = None

    @property
    def temporary(self) -> Path:
        return self.path.with_name(self.path.name + _TEMPORARY)

    def flush(self) -> None:
        """What is buffered becomes one row group."""
        if not len(self.rows):
            return
        with _explained(self.temporary, "write a row group"):
            if self._writer is None:
                self._writer = _open(self.temporary, self.channel)
            table = self.rows.table(self.capture)
            self._writer.write_table(table, row_group_size=table.num_rows)
        self.rows = rows_of(self.channel)
        self.buffered_bytes = 0

    def finish(self) -> None:
        """Flush, write the footer, close; the name stays temporary."""
        self.flush()
        if self._writer is not None:
            with _explained(self.temporary, "complete the file"):
                self._writer.close()

    def abandon(self) -> None:
        """Close without care for the content and remove the file."""
        with contextlib.suppress(ExportError):
            if self._writer is not None:
                with _explained(self.temporary, "close"):
                    self._writer.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)


class ParquetExporter:
    """Writes events as Parquet datasets below `out_dir`; see the module docstring for the contract."""

    __slots__ = (
        "_buffer_bytes",
        "_buffered",
        "_capture",
        "_day_texts",
        "_directories",
        "_exchange",
        "_files_open_max",
        "_finished",
        "_force",
        "_lock_fd",
        "_next_part",
        "_open",
        "_out",
        "_report",
        "_row_group_rows",
        "_rows",
        "_stale",
        "_started",
    )

    def __init__(
        self,
        out_dir: Path,
        *,
        force: bool = False,
        row_group_rows: int = ROW_GROUP_ROWS,
        buffer_bytes: int = BUFFER_BYTES,
        files_open_max: int = FILES_OPEN_MAX,
    ) -> None:
        """Creates `out_dir` if it is missing and takes its lock."""
        if min(row_group_rows, buffer_bytes, files_open_max) < 1:
            raise ValueError("row_group_rows, buffer_bytes and files_open_max are at least 1")
        self._out = out_dir
        self._force = force
        self._row_group_rows = row_group_rows
        self._buffer_bytes = buffer_bytes
        self._files_open_max = files_open_max
        self._buffered = 0
        self._exchange = ""
        self._capture = ""
        self._started: set[tuple[str, str]] = set()
        self._day_texts: dict[int, str] = {}
        self._open: OrderedDict[tuple[str, int, str], _Part] = OrderedDict()
        self._finished: list[_Part] = []
        self._next_part: dict[tuple[str, int, str], int] = {}
        self._directories: set[Path] = set()
        self._stale: list[Path] = []
        self._rows: dict[str, int] = {}
        self._report: ExportReport | None = None
        self._lock_fd = _locked(out_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Completes the dataset, or removes it when the block raised."""
        if kind is None:
            self.close()
        else:
            self.abandon()

    def start(self, exchange: str, capture_id_hex: str) -> None:
        """The events that follow are of this capture. Cheap when it was started before."""
        if not (_EXCHANGE.fullmatch(exchange) and _CAPTURE.fullmatch(capture_id_hex)):
            raise ExportError(f"{exchange[:80]!r}, {capture_id_hex[:80]!r}: no names of an exchange and a capture")
        self._exchange = exchange
        self._capture = capture_id_hex
        if (exchange, capture_id_hex) in self._started:
            return
        self._started.add((exchange, capture_id_hex))
        parts = sorted(self._out.glob(f"channel=*/exchange={exchange}/date=*/part-{capture_id_hex}-*.parquet"))
        if parts and not self._force:
            raise ExportError(
                f"capture {capture_id_hex} was exported here before ({len(parts)} files)",
                where=str(parts[0]),
                remedy="choose another --out; --force replaces the files of this capture",
            )
        self._stale += parts

    def add(self, event: Event, recv_ns: int, frame_number: int, event_index: int) -> None:
        """One event, received at `recv_ns`, that is event `event_index` of record `frame_number` of the capture."""
        channel = channel_of(event)
        if not 0 <= recv_ns <= _NS_MAX:
            raise self._misfit(f"a receive time of {recv_ns} ns is outside 1970 to 2262", frame_number)
        key = (channel, recv_ns // _DAY_NS, self._capture)
        part = self._open.get(key)
        if part is None:
            part = self._new_part(key)
        else:
            self._open.move_to_end(key)
        try:
            size = part.rows.add(event, recv_ns, frame_number, event_index)
        except OverflowError as error:
            raise self._misfit(f"a value of {event!r:.200} does not fit its column: {error}", frame_number) from error
        part.buffered_bytes += size
        self._buffered += size
        self._rows[channel] = self._rows.get(channel, 0) + 1
        if len(part.rows) >= self._row_group_rows:
            self._flush(part)
        if self._buffered >= self._buffer_bytes:
            self._flush(max(self._open.values(), key=lambda open_part: open_part.buffered_bytes))

    def close(self) -> ExportReport:
        """Complete and rename all files, remove the ones that `force` replaces. A second call gives the same report."""
        if self._report is not None:
            return self._report
        if self._lock_fd < 0:
            raise ExportError("this export was abandoned", where=str(self._out))
        try:
            while self._open:
                self._finish(next(iter(self._open)))
            files, size = self._publish()
        except ExportError:
            self.abandon()
            raise
        self._report = ExportReport(files, dict(self._rows), size)
        self._unlock()
        return self._report

    def abandon(self) -> None:
        """Remove everything that is not complete; nothing is left that a reader would find. Safe to call twice."""
        for part in (*self._open.values(), *self._finished):
            part.abandon()
        self._open.clear()
        self._finished.clear()
        for directory in self._directories:
            _remove_if_empty(directory, self._out)
        self._unlock()

    def _misfit(self, what: str, frame_number: int) -> ExportError:
        return ExportError(what, where=f"capture {self._capture}, frame {frame_number}")

    def _new_part(self, key: tuple[str, int, str]) -> _Part:
        """The file for that key; completes the one unused longest when too many are open."""
        if self._lock_fd < 0:
            raise ExportError("this export is over", where=str(self._out))
        if not self._capture:
            raise ExportError("an event before any capture was named: a defect in kcs", where=str(self._out))
        while len(self._open) >= self._files_open_max:
            self._finish(next(iter(self._open)))
        channel, day, capture = key
        number = self._next_part.get(key, 0)
        self._next_part[key] = number + 1
        directory = self._out / f"channel={channel}" / f"exchange={self._exchange}" / f"date={self._day_text(day)}"
        with _explained(directory, "create the directory"):
            _make_directory(directory)
        self._directories.add(directory)
        part = self._open[key] = _Part(channel, capture, directory / f"part-{capture}-{number}.parquet")
        return part

    def _day_text(self, day: int) -> str:
        text = self._day_texts.get(day)
        if text is None:
            text = self._day_texts[day] = time.strftime("%Y-%m-%d", time.gmtime(day * (_DAY_NS // 1_000_000_000)))
        return text

    def _flush(self, part: _Part) -> None:
        self._buffered -= part.buffered_bytes
        part.flush()

    def _finish(self, key: tuple[str, int, str]) -> None:
        part = self._open.pop(key)
        self._finished.append(part)
        self._buffered -= part.buffered_bytes
        part.finish()

    def _publish(self) -> tuple[tuple[Path, ...], int]:
        """Give every file its name. From here on a failure leaves whole files only."""
        files: list[Path] = []
        size = 0
        for part in list(self._finished):
            with _explained(part.path, "name the file"):
                size += _synced_size(part.temporary)
                part.temporary.replace(part.path)
            self._finished.remove(part)
            files.append(part.path)
        for path in set(self._stale).difference(files):
            with _explained(path, "remove the file that this export replaces"):
                path.unlink(missing_ok=True)
        return tuple(sorted(files)), size

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _open(path: Path, channel: str) -> Any:
    """A `pyarrow.parquet.ParquetWriter`; format 2.6 is the first that keeps nanoseconds."""
    import pyarrow.parquet as pq

    columns = schema(channel)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a dead export; or a link that leads elsewhere
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))
    packed = [name for name in ("ts", "recv", "frame", "event", "from", "to") if name in columns.names]
    return pq.ParquetWriter(
        path,
        columns,
        version="2.6",
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=[name for name in _DICTIONARY if name in columns.names],
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        write_statistics=True,
        write_page_index=True,
    )


def _make_directory(path: Path) -> None:
    """Make it and what is missing above it. Raises OSError."""
    try:
        os.mkdir(path, _DIRECTORY_MODE)
    except FileNotFoundError:
        if path.parent == path:
            raise
        _make_directory(path.parent)
        os.mkdir(path, _DIRECTORY_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise


def _synced_size(path: Path) -> int:
    """The size of the file once the disk has it: a name must never outlive a power cut without its content."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _locked(directory: Path) -> int:
    """A descriptor of the directory under an exclusive lock: two exports would write each other's temporary files."""
    with _explained(directory, "open the output directory"):
        _make_directory(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ExportError(
            "another export writes here", where=str(directory), remedy="wait for it, or choose another --out"
        ) from error
    return fd


def _remove_if_empty(directory: Path, out: Path) -> None:
    """Take away the directories that an abandoned export made, up to `out`, as far as they are empty."""
    with contextlib.suppress(OSError):
        while directory != out:
            directory.rmdir()
            directory = directory.parent


@contextlib.contextmanager
def _explained(path: Path, doing: str) -> Iterator[None]:
    """Turns what the system and pyarrow raise into ExportError."""
    import pyarrow as pa

    try:
        yield
    except OSError as error:
        raise ExportError(
            f"cannot {doing}: {error.strerror or error}", where=str(path), remedy="check the space and the permissions"
        ) from error
    except (pa.ArrowException, OverflowError) as error:
        raise ExportError(f"cannot {doing}: {error}", where=str(path)) from error
