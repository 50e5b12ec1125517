"""A capture of the simulated exchange without any socket, under virtual time: `kcs sim --out`.

One client connects, subscribes to everything that is simulated, sends the text PING, comes back a second after each
time it was cut off, and records what it sees through the ordinary capture writer, as live does. Receive time is the
time at which a frame was due, or, through toxics, at which its last byte arrived. With a fixed epoch the same arguments
give the same bytes (of the frames on any machine; of the file where the same zstd release compresses it). Memory is
bounded by a slice of virtual time and one chunk.

Raises: UsageError (no fixed duration), CaptureWriteError and CaptureBusyError from the writer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson

import kcs
from kcs.capture.format import MIB, CaptureHeader
from kcs.capture.osfile import write_error
from kcs.capture.output import SealedCapture
from kcs.capture.writer import CaptureWriter, WriterSettings
from kcs.clock import NS_PER_MS, NS_PER_S, VirtualClock
from kcs.errors import UsageError
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, VenueConnection
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.link import dial
from kcs.sim.prng import SplitMix64, derive
from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings
from kcs.sim.upbit import UpbitExchange

SLICE_NS: Final = 50 * NS_PER_MS
RECONNECT_AFTER_NS: Final = NS_PER_S
_FLUSH_NS: Final = 3600 * NS_PER_S
"""Chunks end by size alone: nothing is lost with a process whose input can be made again."""


@dataclass(frozen=True, slots=True)
class TapeReport:
    """What was written. `frames`: messages received, market frames and others."""

    path: Path
    capture_id: bytes
    records: int
    frames: int
    bytes: int
    first_ns: int | None
    last_ns: int | None
    reconnects: int


def write_tape(
    path: Path,
    settings: SimSettings,
    duration_ns: int,
    *,
    wire_format: str = "DEFAULT",
    depth: int | None = None,
    force: bool = False,
    fault_log: SimFaultLog | None = None,
) -> TapeReport:
    """Write `duration_ns` of the simulated exchange, from its opening, into a capture.

    `path` is a directory that exists (the file gets its usual name in it) or the name of the file, which must not exist
    unless `force`. `settings.epoch_ns` None counts as the default epoch: a tape has no "now". `depth`: book levels.
    What goes wrong on purpose is told to `fault_log`.
    """
    if duration_ns <= 0:
        raise UsageError(f"a tape needs a length, not {duration_ns} ns", remedy="--duration 60s")
    if path.is_dir():
        return _Tape(settings, wire_format, depth, fault_log).write(path, duration_ns)
    return _write_file(path, _Tape(settings, wire_format, depth, fault_log), duration_ns, force=force)


def _write_file(path: Path, tape: _Tape, duration_ns: int, *, force: bool) -> TapeReport:
    """Write in a directory of its own beside `path`, then move: the writer chooses its file names itself."""
    workshop = path.with_name(f".{path.name}.tape")
    try:
        # The name is taken before the work begins, so that nothing is overwritten and nobody waits for an error.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | (0 if force else os.O_EXCL), 0o640))
    except OSError as error:
        raise write_error(error, path, "write the tape") from error
    try:
        workshop.mkdir()
    except OSError as error:
        if not force:
            path.unlink(missing_ok=True)
        raise write_error(error, workshop, "write the tape") from error
    try:
        report = tape.write(workshop, duration_ns)
        report.path.replace(path)
    except BaseException:
        if not force:
            path.unlink(missing_ok=True)
        raise
    finally:
        for leftover in workshop.iterdir():
            leftover.unlink()
        workshop.rmdir()
    return TapeReport(
        path, report.capture_id, report.records, report.frames, report.bytes, report.first_ns, report.last_ns,
        report.reconnects,
    )  # fmt: skip


class _Tape:
    """The recording client. Used once."""

    def __init__(
        self, settings: SimSettings, wire_format: str, depth: int | None, fault_log: SimFaultLog | None
    ) -> None:
        self._settings = settings
        self._format = wire_format
        self._depth = depth
        self._epoch_ns = DEFAULT_EPOCH_NS if settings.epoch_ns is None else settings.epoch_ns
        self._clock = VirtualClock(self._epoch_ns)
        self._exchange = UpbitExchange(settings, self._epoch_ns, fault_log)
        self._frames = self._connections = 0
        self._last_frame_ns = self._epoch_ns
        self._open_cause = "start"
        self._gap_from_ns: int | None = None
        self._writer: CaptureWriter

    def write(self, directory: Path, duration_ns: int) -> TapeReport:
        ids = self._ids(duration_ns)
        header = self._header(ids.bits().to_bytes(8, "big"))
        self._writer = writer = CaptureWriter(
            directory,
            header,
            settings=WriterSettings(flush_ns=_FLUSH_NS, chunk_bytes_max=MIB, threaded=False),
            new_id=lambda: ids.bits().to_bytes(8, "big"),
        )
        try:
            self._run(self._epoch_ns + duration_ns)
        finally:
            sealed = writer.close(self._clock.now_ns())
        if writer.failed is not None:
            raise writer.failed
        return self._report(sealed[0])

    def _ids(self, duration_ns: int) -> SplitMix64:
        """The capture id follows from everything that the content follows from."""
        settings = self._settings
        content = (
            settings.exchange, settings.seed, settings.rate, settings.markets, settings.channels, self._epoch_ns,
            settings.burst_percent, settings.duration_ns, settings.frames_max, str(settings.faults), duration_ns,
            self._format, self._depth,
        )  # fmt: skip
        return derive(settings.seed, sha256(repr(content).encode()).hexdigest())

    def _header(self, capture_id: bytes) -> CaptureHeader:
        settings = self._settings
        return CaptureHeader(
            capture_id=capture_id,
            run_id=capture_id,
            exchange=settings.exchange,
            url=self._url,
            created_ns=self._epoch_ns,
            kcs_version=kcs.__version__,
            options={
                "channels": list(settings.channels),
                "markets": list(settings.markets),
                "format": self._format,
                "depth": self._depth,
            },
            seed=settings.seed,
        )

    @property
    def _url(self) -> str:
        return f"sim://{self._settings.exchange}"

    def _report(self, sealed: SealedCapture) -> TapeReport:
        return TapeReport(
            sealed.path, sealed.capture_id, sealed.records, self._frames, sealed.bytes, sealed.first_ns, sealed.last_ns,
            self._connections - 1,
        )  # fmt: skip

    def _run(self, end_ns: int) -> None:
        connection, reopen_ns = self._connect(self._epoch_ns), 0
        while (now_ns := self._clock.now_ns()) < end_ns and not self._exchange.ended and self._writer.failed is None:
            self._clock.set(min(end_ns, now_ns + SLICE_NS))
            now_ns = self._clock.now_ns()
            if connection.closed:
                self._exchange.advance(now_ns)
                if now_ns >= reopen_ns:
                    connection = self._connect(now_ns)
                continue
            self._record(connection.poll(now_ns))
            reopen_ns = now_ns + RECONNECT_AFTER_NS
        if not connection.closed:
            self._closed(self._clock.now_ns(), 1000, "", "stop")
        elif self._gap_from_ns is not None:
            self._gap(self._clock.now_ns())

    def _connect(self, now_ns: int) -> VenueConnection:
        writer, stream = self._writer, 0
        connection = dial(self._exchange, now_ns)
        self._connections += 1
        fields = OpenFields(url=self._url, cause=self._open_cause, frames=self._frames)
        writer.append_fields(Kind.OPEN, stream, now_ns, fields)
        for text in (self._subscription(), b"PING"):
            if connection.closed:
                break
            writer.append(Kind.SENT, stream, now_ns, text)
            self._record(connection.receive(now_ns, "text", text))
        return connection

    def _subscription(self) -> bytes:
        settings = self._settings
        request: list[dict[str, object]] = [{"ticket": f"kcs-sim-{settings.seed}-{self._connections}"}]
        for channel in settings.channels:
            suffix = f".{self._depth}" if channel == "orderbook" and self._depth is not None else ""
            request.append({"type": channel, "codes": [f"{code}{suffix}" for code in settings.markets]})
        return orjson.dumps([*request, {"format": self._format}])

    def _record(self, actions: list[Action]) -> None:
        append, binary, text = self._writer.append, int(Kind.BINARY), int(Kind.TEXT)
        for action in actions:
            if isinstance(action, SendFrame):
                if self._gap_from_ns is not None:
                    self._gap(action.at_ns)
                append(binary if action.binary else text, 0, action.at_ns, action.payload)
                self._frames += 1
                self._last_frame_ns = action.at_ns
            elif isinstance(action, SendClose):
                self._closed(action.at_ns, action.code, action.reason, "remote")
            elif isinstance(action, DropConnection):
                self._closed(action.at_ns, 1006, "", "lost")

    def _closed(self, at_ns: int, code: int, reason: str, cause: str) -> None:
        fields = CloseFields(code=code, reason=reason, cause=cause, frames=self._frames)
        self._writer.append_fields(Kind.CLOSE, 0, at_ns, fields)
        if cause != "stop":
            self._open_cause = cause
            if self._gap_from_ns is None:
                self._gap_from_ns = self._last_frame_ns

    def _gap(self, to_ns: int) -> None:
        """As live does it: from the last frame before to the first one after, written before that one."""
        assert self._gap_from_ns is not None
        fields = GapFields(from_ns=self._gap_from_ns, to_ns=to_ns, cause="disconnect")
        self._writer.append_fields(Kind.GAP, 0, to_ns, fields)
        self._gap_from_ns = None
