"""The text form of faults: `--faults 'drop=1%,silent_stall=5s@every:60s'`. Strict; imports `errors` and the catalogue.

    FAULTS = FAULT {"," FAULT}
    FAULT  = NAME ["=" VALUE] {"@" CLAUSE} | "chaos" | NAME "=off"
    CLAUSE = CHANCE | "at:" TIME | "every:" TIME | "every:" COUNT | "after:" TIME | "for:" TIME

`docs/simulator.md` says what each means. Raises UnknownNameError for a name that does not exist, else ConfigError,
which names the fault, the bad part and an example that works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NoReturn

from kcs.errors import ConfigError, UnknownNameError
from kcs.sim.faults import CERTAIN, FAULTS, Fault, FaultKind, Faults, Style, Value, When, WhenKind

CHAOS: Final = (
    "latency=20ms@every:45s@for:5s,jitter=15ms@every:45s@for:5s,bandwidth=4MB/s@every:50s@for:2s,"
    "slicer=700B@every:30s@for:3s,slow_close=500ms@50%,limit_data=200MB@50%,timeout=3s@every:131s@50%,"
    "reset_peer@every:83s@50%,drop=0.05%,truncated_json=0.02%,bad_json=0.02%,duplicate=0.05%,reorder=0.05%,junk=0.02%,"
    "silent_stall=4s@every:97s,market_silent=20s@every:71s,stall=1s@every:41s,close_code=1012@every:61s@50%,"
    "late_snapshot=300ms@25%,ping_ignored=2%,clock_step=-1s@every:113s@for:10s"
)
"""The preset `chaos`: everything, at rates that a collector survives."""

PRESETS: Final = {"chaos": CHAOS}
RENAMED: Final = {
    "drop_connection_every_s": "close_code=1006@after:30s",
    "stall_every_s": "stall=2s@every:30s",
    "stall_s": "stall=2s@every:30s",
}
"""Names of earlier versions, and how it is said now."""

TIME_MAX_NS: Final = 1000 * 3_600_000_000_000
PERIOD_MIN_NS: Final = 1_000_000
SIZE_MAX: Final = 1 << 40
COUNT_MAX: Final = 1_000_000_000
REORDER_MAX: Final = 1_000
CLOCK_STEP_MAX_NS: Final = 24 * 3_600_000_000_000
_TEXT_MAX: Final = 10_000

_CLOSE_CODES: Final = frozenset((*range(1000, 1004), 1006, *range(1007, 1015), *range(3000, 5000)))
"""What may stand in a close frame, and 1006 for no close frame."""

_TIMES: Final = {
    "ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000,
}  # fmt: skip
_SIZES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_QUANTITY: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?([A-Za-z]+|%)")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_WORDS: Final = {"at": "a time", "every": "a time or a count", "after": "a time", "for": "a time"}


def parse_faults(texts: str | Iterable[str]) -> Faults:
    """Faults from their text form; several texts are one list. A fault named beside a preset replaces the preset's."""
    specs = [spec.strip() for text in ([texts] if isinstance(texts, str) else texts) for spec in _split(text)]
    preset: list[Fault] = []
    for name in dict.fromkeys(spec for spec in specs if spec in PRESETS):
        preset += [_Spec(text).fault() for text in PRESETS[name].split(",")]
    given = [_Spec(spec) for spec in specs if spec and spec not in PRESETS]
    own = [spec.fault() for spec in given if not spec.off]
    _check_repeated(own)
    for spec in given:
        if spec.off and spec.name not in {fault.name for fault in preset}:
            spec.fail(f"{spec.text!r} takes away what is not there", "only beside a preset", f"chaos,{spec.name}=off")
    replaced = {spec.name for spec in given}
    return Faults((*(fault for fault in preset if fault.name not in replaced), *own))


def _split(text: str) -> list[str]:
    if len(text) > _TEXT_MAX:
        raise ConfigError(f"{len(text):,} characters of faults, at most {_TEXT_MAX:,}", where="--faults")
    return text.split(",")


def _check_repeated(faults: list[Fault]) -> None:
    for fault in faults:
        same = [other for other in faults if other.name == fault.name]
        if len(same) > 1 and any(one.when.kind == "always" or same.count(one) > 1 for one in same):
            raise ConfigError(
                f"fault {fault.name} is given twice: {same[0]}, {same[1]}",
                where="--faults",
                remedy="the same fault may stand several times only at different times: "
                f"{fault.kind.example.partition('@')[0].partition('%')[0]}@at:5s..., ...@at:9s",
            )


class _Spec:
    """One fault's text on its way to a Fault."""

    def __init__(self, text: str) -> None:
        self.text = text
        head, *self._clauses = text.split("@")
        self.name, equals, self._value = (part.strip() for part in head.partition("="))
        if self.name not in FAULTS:
            self._unknown()
        self._kind: FaultKind = FAULTS[self.name]
        self.off = self._value == "off" and not self._clauses
        if equals and not self._value:
            self.fail(f"nothing after '=' in {text!r}", self._wanted())
        self._chance: int | None = None
        self._when: WhenKind = "always"
        self._ns = self._for_ns = 0

    def fail(self, what: str, expected: str, example: str = "") -> NoReturn:
        """Raises ConfigError."""
        told = f"fault {self.name}: {what}; expected {expected}"
        raise ConfigError(told, where="--faults", remedy=f"--faults '{example or self._kind.example}'")

    def fault(self) -> Fault:
        """The whole, checked."""
        value, market = 0, ""
        extra: tuple[int, ...] = ()
        if self._value.endswith("%"):
            self._set_chance(self._value)
        elif self._value:
            value, market, extra = self._read_value()
        if not self._value or self._value.endswith("%"):
            if self._kind.value is Value.COUNT:
                value = 1
            elif self._kind.value is not Value.NONE:
                self.fail(f"no value in {self.text!r}", self._wanted())
        for clause in self._clauses:
            self._read_clause(clause.strip())
        if self.name == "reset_peer" and value:  # toxiproxy's spelling: so long after the connection began
            self._after(value)
            value = 0
        fault = Fault(
            self.name,
            value,
            market,
            extra,
            CERTAIN if self._chance is None else self._chance,
            When(self._when, self._ns, self._for_ns),
        )
        self._check(fault)
        return fault

    def _unknown(self) -> NoReturn:
        example = RENAMED.get(self.name)
        if example is not None:
            raise UnknownNameError("fault", self.name, (), where="--faults", suggestion=example)
        raise UnknownNameError("fault", self.name, (*FAULTS, *PRESETS), where="--faults")

    # The value.

    def _wanted(self) -> str:
        """What may stand after `=`."""
        return {
            Value.NONE: "a chance such as 1%",
            Value.TIME: "a time such as 50ms or 5s",
            Value.SIGNED_TIME: "a step such as -2s or +500ms",
            Value.MARKET_TIME: "a time such as 20s, or a market and a time such as KRW-BTC:20s",
            Value.SIZE: "a size such as 64KiB",
            Value.RATE: "a rate such as 100KB/s",
            Value.SLICES: "average size, then variation and delay if wanted, such as 64B or 64B:16B:500us",
            Value.CODE: "a close code: 1000-1003, 1007-1014, 3000-4999, or 1006 for none",
            Value.COUNT: f"by how many frames, 1 to {REORDER_MAX:,}, or a chance such as 1%",
        }[self._kind.value]

    def _read_value(self) -> tuple[int, str, tuple[int, ...]]:
        text, wanted = self._value, self._kind.value
        if wanted is Value.TIME:
            return self._time(text, self._wanted(), low=0 if self.name == "timeout" else 1), "", ()
        if wanted is Value.SIGNED_TIME:
            size = self._time(text.removeprefix("-").removeprefix("+"), self._wanted(), low=1, high=CLOCK_STEP_MAX_NS)
            return -size if text.startswith("-") else size, "", ()
        if wanted is Value.MARKET_TIME:
            market, _, time = text.rpartition(":")
            return self._time(time, self._wanted(), low=1), market, ()
        if wanted is Value.SIZE:
            return self._size(text), "", ()
        if wanted is Value.RATE:
            if not text.endswith("/s"):
                self.fail(f"{text!r} is no rate", self._wanted())
            return self._size(text.removesuffix("/s")), "", ()
        if wanted is Value.SLICES:
            return self._slices(text)
        if wanted is Value.NONE and self.name == "reset_peer":
            return self._time(text, "a time after which each connection is reset, or a chance", low=1), "", ()
        if wanted is Value.NONE:
            self.fail(f"{text!r} is no chance", self._wanted())
        return self._whole(text), "", ()

    def _whole(self, text: str) -> int:
        number = int(text) if _NUMBER.fullmatch(text) else -1
        good = number in _CLOSE_CODES if self._kind.value is Value.CODE else 1 <= number <= REORDER_MAX
        if not good:
            self.fail(f"{text!r} is not possible", self._wanted())
        return number

    def _slices(self, text: str) -> tuple[int, str, tuple[int, ...]]:
        parts = text.split(":")
        if len(parts) > 3:
            self.fail(f"{text!r} has {len(parts)} parts", self._wanted())
        average = self._size(parts[0])
        variation = self._size(parts[1], low=0) if len(parts) > 1 else average // 2
        if variation >= average:
            self.fail(f"{parts[1]!r} is no variation", f"less than the average size {parts[0]}")
        delay_ns = self._time(parts[2], "a delay such as 500us", low=0) if len(parts) > 2 else 0
        return average, "", (variation, delay_ns)

    # The clauses.

    def _read_clause(self, clause: str) -> None:
        if clause.endswith("%"):
            self._set_chance(clause)
            return
        word, colon, text = (part.strip() for part in clause.partition(":"))
        if not colon or word not in _WORDS:
            self.fail(f"{clause!r} says neither how often nor when", "1%, at:5s, every:30s, after:10s or for:2s")
        if word == "for":
            if self._for_ns:
                self.fail(f"a second 'for' in {self.text!r}", "one")
            self._for_ns = self._time(text, _WORDS[word], low=1)
        elif word == "after":
            self._after(self._time(text, _WORDS[word], low=0))
        elif word == "every" and _NUMBER.fullmatch(text):
            if int(text) < 1:
                self.fail(f"{clause!r} is never", "a count of 1 or more")
            self._set_when("frames", int(text))
        elif word == "every":
            self._set_when("every", self._time(text, _WORDS[word], low=PERIOD_MIN_NS))
        else:
            self._set_when("at", self._time(text, _WORDS[word], low=0))

    def _after(self, ns: int) -> None:
        self._set_when("after", ns)

    def _set_when(self, kind: WhenKind, ns: int) -> None:
        if self._when != "always":
            self.fail(f"two times in {self.text!r}", "one of at:, every:, after:")
        self._when, self._ns = kind, ns

    def _set_chance(self, text: str) -> None:
        if self._chance is not None:
            self.fail(f"two chances in {self.text!r}", "one")
        match = _QUANTITY.fullmatch(text)
        if match is None or match[3] != "%":
            self.fail(f"{text!r} is no chance", "a percentage such as 1% or 0.05%")
        self._chance = self._scaled(match[1], match[2], CERTAIN // 100, text)
        if self._chance > CERTAIN:
            self.fail(f"{text!r} is more than always", "at most 100%")

    # Quantities.

    def _time(self, text: str, wanted: str, *, low: int, high: int = TIME_MAX_NS) -> int:
        return self._quantity(text, _TIMES, wanted, low, high)

    def _size(self, text: str, *, low: int = 1) -> int:
        return self._quantity(text, _SIZES, self._wanted(), low, SIZE_MAX)

    def _quantity(self, text: str, units: dict[str, int], wanted: str, low: int, high: int) -> int:
        match = _QUANTITY.fullmatch(text)
        if match is None or match[3] not in units:
            self.fail(f"{text!r} is not possible", wanted)
        amount = self._scaled(match[1], match[2], units[match[3]], text)
        if not low <= amount <= high:
            self.fail(f"{text!r} is too {'small' if amount < low else 'large'}", wanted)
        return amount

    def _scaled(self, whole: str, fraction: str | None, unit: int, text: str) -> int:
        amount, rest = int(whole) * unit, 0
        if fraction:
            part, rest = divmod(int(fraction) * unit, 10 ** len(fraction))
            amount += part
        if rest:
            self.fail(f"{text!r} is finer than kcs counts", "fewer digits")
        return amount

    # The whole.

    def _check(self, fault: Fault) -> None:
        kind, when = self._kind, fault.when
        if when.kind == "always" and self._chance is None and not kind.bare:
            self.fail(f"{self.text!r} does not say when", "how often or when, after '@'")
        if kind.style is Style.STEP and when.kind not in ("at", "every"):
            self.fail(f"{self.text!r} strikes the venue's clock", "at: or every:")
        if when.kind == "frames" and kind.toxic:
            self.fail(f"'every:{when.ns}' counts frames, the network has none", "every: and a time")
        if when.for_ns and kind.style in (Style.WINDOW, Style.END):
            self.fail(f"'for' in {self.text!r}", f"no 'for': how long is said by the value, as in {kind.example}")
        if when.for_ns and when.kind not in ("at", "every", "after"):
            self.fail(f"'for' without a beginning in {self.text!r}", "at:, every: or after: and a time beside it")
        if kind.style is Style.STATE and when.kind != "always" and not when.for_ns:
            self.fail(f"{self.text!r} has no end", "for: beside it", f"{self.text}@for:2s")
        if when.kind == "every" and fault.length_ns >= when.ns:
            self.fail(f"{self.text!r} begins again before it has ended", "a longer 'every'")
        if kind.style in (Style.END, Style.STEP) and when.kind in ("at", "after") and not when.ns:
            self.fail(f"'{when.kind}:0s' in {self.text!r}", "a later moment")
