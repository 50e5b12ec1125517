"""aiokafka's log, bearable: it repeats the same line at every retry, ten a second while a broker is away.

`calm` lets each line through at once, then after 5, 10, 20, 40 s and once a minute, with the number of those that were
left out; after two minutes of silence it begins anew. Also for `kcs.kafka.retries`. Debug lines are all let through,
but those of a login without its content, in which the password stands. Idempotent; called where connections are made.
Lines that name lost records go another way and are never left out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

OURS: Final = "kcs.kafka.retries"
"""Of its lines each place, their first argument, has its own turn."""
_PAUSE_MIN_S: Final = 5.0
_PAUSE_MAX_S: Final = 60.0
_FORGET_S: Final = 120.0
_LINES_MAX: Final = 256
_LOGGERS: Final = (
    "aiokafka",
    "aiokafka.admin.client",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
    OURS,
)


@dataclass(slots=True)
class _Line:
    """What is known of the lines of one template."""

    next_s: float
    pause_s: float
    seen_s: float
    left_out: int = 0


class Repeats(logging.Filter):
    """Drops a line whose template was let through a short while ago."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, _Line] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        template, now_s = str(record.msg), record.created
        what = f"{template} {next(iter(record.args))}" if record.name == OURS and record.args else template
        line = self._lines.get(what)
        if line is None or now_s - line.seen_s > _FORGET_S:
            if len(self._lines) >= _LINES_MAX:
                self._lines.clear()
            self._lines[what] = _Line(now_s + _PAUSE_MIN_S, _PAUSE_MIN_S, now_s)
            return True
        line.seen_s = now_s
        if now_s < line.next_s:
            line.left_out += 1
            return False
        if line.left_out:
            record.msg = f"{template} (and {line.left_out} more like it)"
        line.pause_s = min(_PAUSE_MAX_S, 2 * line.pause_s)
        line.next_s, line.left_out = now_s + line.pause_s, 0
        return True


class Discreet(logging.Filter):
    """Leaves a login's content out of the requests and answers that aiokafka logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                "[a login]" if type(arg).__name__.startswith("SaslAuthenticate") else arg for arg in record.args
            )
        return True


_REPEATS: Final = Repeats()
_DISCREET: Final = Discreet()


def calm() -> None:
    """Thin out aiokafka's loggers and our own about retries."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_DISCREET)
        logging.getLogger(name).addFilter(_REPEATS)  # adding it twice is adding it once
