"""aiokafka's log, bearable: it repeats the same line at every retry, ten a second while a broker is away.

`calm` lets each line of it through once in five seconds. Idempotent; called where connections are made.
"""

from __future__ import annotations

import logging
from typing import Final

_PAUSE_S: Final = 5.0
_LINES_MAX: Final = 256
_LOGGERS: Final = (
    "aiokafka",
    "aiokafka.admin.client",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.producer.producer",
    "aiokafka.producer.sender",
)


class Repeats(logging.Filter):
    """Drops a line whose template was let through less than five seconds ago."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        template = str(record.msg)
        last_s = self._last_s.get(template)
        if last_s is not None and record.created - last_s < _PAUSE_S:
            return False
        if len(self._last_s) >= _LINES_MAX:
            self._last_s.clear()
        self._last_s[template] = record.created
        return True


_REPEATS: Final = Repeats()


def calm() -> None:
    """Thin out aiokafka's loggers."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_REPEATS)  # adding it twice is adding it once
