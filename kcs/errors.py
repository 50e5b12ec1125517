"""The error tree of kcs. Imports nothing of kcs; any module may raise from it, only the command line catches the root.

KcsError                      what, where, remedy; the command line prints it and exits with `exit_code`
|- UsageError                 the caller asked for something that cannot be (exit 2)
|  |- UnknownNameError        an exchange, channel, market, key... that does not exist; suggests the near one
|  `- ConfigError             a bad value or an unknown key in kcs.toml, KCS_* or a flag
|- CaptureError               a capture file cannot be read or written
|  |- NotACaptureError        the file is something else
|  |- NewerFormatError        written by a newer kcs
|  |- DamagedCaptureError     truncated, flipped bits, impossible lengths
|  |- CaptureBusyError        another process holds the file or the directory
|  `- CaptureWriteError       disk full, no permission, output exists
|- ExportError                a dataset cannot be written: disk full, no permission, output exists, another export runs
|- KafkaError                 the cluster refuses, or a topic cannot be made: somebody has to act
|  `- KafkaUnreachableError   no broker answers, or not in time: waiting and trying again may cure it
|- UndeliverableError         a capture cannot be delivered to its end: other cluster, topics gone, no positions there
|- VenueError                 the exchange refused us or broke its protocol
`- LedgerError                the books do not balance: a bug in kcs, never the user's fault

FrameIgnored, FrameRejected   verdicts of a parser about one frame; only `Pipeline.feed` sees and counts them
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KcsError(Exception):
    """Root of every error that kcs raises on purpose.

    `what` names the problem, `where` the place (file and offset, exchange and stream, broker), `remedy` the next step.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  try: {self.remedy}" if self.remedy else text


class UsageError(KcsError):
    """The request itself is wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that does not exist, with the closest ones that do. `suggestion`: the caller knows which one was meant."""

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, where: str = "", suggestion: str | None = None
    ) -> None:
        choices = sorted(known)
        near = (
            [suggestion]
            if suggestion
            else difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
            or difflib.get_close_matches(name.upper(), choices, n=1, cutoff=0.5)
        )
        hint = f"did you mean {near[0]!r}?" if near else ""
        listing = f"known: {', '.join(choices[:12])}{', ...' if len(choices) > 12 else ''}" if choices else ""
        super().__init__(f"unknown {kind} {name!r}", where=where, remedy=" ".join(filter(None, (hint, listing))))
        self.kind = kind
        self.name = name
        self.suggestion = near[0] if near else None


class ConfigError(UsageError):
    """A bad configuration value or an unknown key."""


class CaptureError(KcsError):
    """A capture cannot be read or written."""


class NotACaptureError(CaptureError):
    """The file is not a kcs capture."""


class NewerFormatError(CaptureError):
    """The file was written by a newer version of kcs."""


class DamagedCaptureError(CaptureError):
    """The file is truncated or its content does not match its checksums."""


class CaptureBusyError(CaptureError):
    """Another process is writing here."""


class CaptureWriteError(CaptureError):
    """A capture cannot be written: disk full, no permission, output exists."""


class ExportError(KcsError):
    """A dataset cannot be written: disk full, no permission, output exists, another export runs."""


class KafkaError(KcsError):
    """The cluster refuses, or a topic cannot be made: somebody has to act."""


class KafkaUnreachableError(KafkaError):
    """No broker answers, or not in time: trying again may cure it. Never raised for credentials or certificates."""


class UndeliverableError(KcsError):
    """A capture cannot be delivered to its end, whatever the broker's state; others can."""


class VenueError(KcsError):
    """The exchange refused us or broke its own protocol."""


class LedgerError(KcsError):
    """The loss ledger does not balance: a defect in kcs."""


class FrameIgnored(Exception):
    """The frame is recognised and carries no event (heartbeat, ack, candle). `args[0]` is the reason, a short slug."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


class FrameRejected(Exception):
    """The frame is not what the venue documents. `args[0]`: the reason, a short slug; `args[1]`: a detail, if any."""

    @property
    def reason(self) -> str:
        return str(self.args[0])
