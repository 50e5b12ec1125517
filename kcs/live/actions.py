"""What a session asks its owner to do, and what the transport tells a session. Frozen values; imports only `model`.

A `Session` (session.py) returns a list of actions from each call; the owner carries them out in that order. Records
among them become capture records in that order, too, so the order of a list is the order of the capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kcs.model import CloseFields, Fields, GapFields, Kind, OpenFields

CLOSE_NORMAL: Final = 1000
CLOSE_ABNORMAL: Final = 1006


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection; answer with `Session.opened` or `Session.connect_failed`, exactly once."""

    url: str


@dataclass(frozen=True, slots=True)
class SendText:
    """Send this text message, and record it as sent."""

    text: str


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send a protocol ping; its pong comes back with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Start the closing handshake, or give up connecting; answered by `closed` or `connect_failed`."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """Write this record: open, close or gap."""

    kind: Kind
    recv_ns: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the user. `level` is `info`, `warning` or `error`."""

    level: str
    text: str


Action = Connect | SendText | SendPing | CloseConnection | WriteRecord | Log

NO_ACTIONS: Final[tuple[Action, ...]] = ()


@dataclass(frozen=True, slots=True)
class ConnectFailure:
    """Why a connection did not come about.

    `cause`: `dns`, `refused`, `timeout`, `network`, `tls`, `proxy`, `handshake`, `http` (then `status` is set),
    `cancelled` (we gave up ourselves) or `internal` (a defect in kcs). `retry_after_s`: what the server asked for.
    """

    cause: str
    detail: str = ""
    status: int | None = None
    retry_after_s: float | None = None

    @property
    def slug(self) -> str:
        """`http_429`, `dns`...: what is counted."""
        return f"http_{self.status}" if self.status is not None else self.cause


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """How an open connection ended.

    `code` is the peer's close code, or the one we failed the connection with, or 1006 when there was no close frame.
    `cause`: `remote` (the peer closed), `lost` (without a close frame), `oversize`, `protocol_error`, `write_stalled`,
    `internal` (a defect in kcs while handling a frame).
    """

    code: int
    reason: str = ""
    cause: str = "remote"


def open_record(recv_ns: int, fields: OpenFields) -> WriteRecord:
    """A connection was made."""
    return WriteRecord(Kind.OPEN, recv_ns, fields)


def close_record(recv_ns: int, fields: CloseFields) -> WriteRecord:
    """A connection ended."""
    return WriteRecord(Kind.CLOSE, recv_ns, fields)


def gap_record(recv_ns: int, fields: GapFields) -> WriteRecord:
    """Data may be missing."""
    return WriteRecord(Kind.GAP, recv_ns, fields)
