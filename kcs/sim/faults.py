"""What the simulated venue does wrong on purpose. Imports only `errors`.

Faults are part of the dialect, not of the socket: they happen at the same virtual time and after the same frame in
every run with the same settings, over a socket, in memory and in a written tape. Text form: NAME=VALUE, whole numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kcs.errors import ConfigError, UnknownNameError

_CLOSE_CODES: Final = frozenset((1000, 1001, 1002, 1003, 1006, *range(1007, 1015)))
"""What may stand in a close frame, and 1006 for no close frame."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Which faults, 0 = off.

    drop_connection_every_s   each connection ends this many seconds after it was made
    close_code                with this close code; 1006: without a close frame
    junk                      after every n-th data frame one extra frame that no parser can read
    stall_every_s, stall_s    every `stall_every_s` seconds of a connection nothing is sent for `stall_s` seconds; what
                              was due meanwhile follows in one burst, as from a congested network
    """

    drop_connection_every_s: int = 0
    close_code: int = 1006
    junk: int = 0
    stall_every_s: int = 0
    stall_s: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise ConfigError(f"fault {field.name}={value} must not be negative")
        if self.close_code not in _CLOSE_CODES and not 3000 <= self.close_code <= 4999:
            raise ConfigError(
                f"fault close_code={self.close_code} is not a close code",
                remedy="1000-1003, 1007-1014, 3000-4999, or 1006 for none",
            )
        if self.stall_s and self.stall_every_s <= self.stall_s:
            raise ConfigError(
                f"fault stall_s={self.stall_s} needs a longer stall_every_s than {self.stall_every_s}",
                remedy=f"stall_every_s={self.stall_s * 5},stall_s={self.stall_s}",
            )


def parse_faults(texts: Iterable[str]) -> Faults:
    """Faults from `NAME=VALUE` texts, each possibly several separated by commas.

    Raises UnknownNameError for a name that does not exist, ConfigError for a bad value or the same name twice.
    """
    known = {field.name for field in dataclasses.fields(Faults)}
    values: dict[str, int] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        if not text:
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        if name not in known:
            raise UnknownNameError("fault", name, known, where="--faults")
        if not equals or not value.isascii() or not value.isdigit() or len(value) > 9:
            raise ConfigError(f"fault {text!r} is not NAME=NUMBER", where="--faults", remedy=f"{name}=10")
        if name in values:
            raise ConfigError(f"fault {name!r} is given twice", where="--faults")
        values[name] = int(value)
    return Faults(**values)


def junk_frame(payload: bytes, turn: int) -> bytes:
    """A frame that no parser can read: half a real one, bytes that are not UTF-8, JSON of no known shape, nothing."""
    return (payload[: len(payload) // 2], b"\xff\xfe\x00\x80", b'["not","what","you","asked"]', b"")[turn % 4]
