"""What is in a capture, as data for `--json` and as text for people.

`CaptureInfo` comes from the summary of a sealed file, whatever its size, or is counted by reading the others. Times in
ns since the Unix epoch, sizes in bytes. `describe` writes UTC.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from kcs.capture.tally import Damage, GapSummary, StreamSummary
from kcs.clock import NS_PER_S

_FRAME_KINDS: Final = ("text", "binary")
_SHOWN: Final = 10


class CaptureInfo(msgspec.Struct, frozen=True):
    """A capture at a glance. `missing` counts records whose numbers are absent; `recovered` is damage of the source."""

    path: str
    sealed: bool
    capture_id: str
    run_id: str
    sequence: int
    exchange: str
    url: str
    created_ns: int
    kcs_version: str
    options: dict[str, str | int | float | bool | list[str] | None]
    bytes: int
    raw_bytes: int
    stored_bytes: int
    chunks: int
    records: int
    missing: int
    kinds: dict[str, int]
    first_ns: int | None
    last_ns: int | None
    streams: tuple[StreamSummary, ...]
    gaps: tuple[GapSummary, ...]
    gap_count: int
    reconnects: int
    holes: tuple[tuple[int, int], ...]
    recovered: tuple[Damage, ...]
    damage: tuple[Damage, ...]

    @property
    def frames(self) -> int:
        """Data frames that arrived."""
        return sum(self.kinds.get(kind, 0) for kind in _FRAME_KINDS)

    @property
    def ratio(self) -> float | None:
        """How many times smaller the file is than its records; None without records."""
        return self.raw_bytes / self.bytes if self.raw_bytes else None

    @property
    def urls(self) -> tuple[str, ...]:
        """Every url that was opened, each once, in order of streams."""
        return tuple(dict.fromkeys(url for stream in self.streams for url in stream.urls))


def utc(ns: int) -> str:
    """RFC 3339 UTC with nine digits."""
    seconds, fraction = divmod(ns, NS_PER_S)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def describe(info: CaptureInfo) -> list[str]:
    """Lines for `kcs info`."""
    lines = [
        f"{info.path}",
        f"  capture   {info.capture_id}, number {info.sequence} of run {info.run_id}, by kcs {info.kcs_version}",
        f"  state     {_state(info)}",
        f"  exchange  {info.exchange or 'unknown'} {info.url}".rstrip(),
    ]
    lines += [f"  {name:<9} {_value(value)}" for name, value in info.options.items()]
    if info.first_ns is not None and info.last_ns is not None:
        seconds = (info.last_ns - info.first_ns) / NS_PER_S
        lines.append(f"  time      {utc(info.first_ns)} to {utc(info.last_ns)} ({seconds:,.1f} s)")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in info.kinds.items())
    lines.append(f"  records   {info.records:,}" + (f" ({kinds})" if kinds else ""))
    ratio = f", {info.ratio:.1f} times smaller than its records" if info.ratio is not None else ""
    lines.append(f"  size      {info.bytes:,} bytes in {info.chunks:,} chunks{ratio}")
    lines += [
        f"  stream {s.stream:<2} {s.frames:,} frames, {s.opens} opens, {s.closes} closes {' '.join(s.urls)}".rstrip()
        for s in info.streams[:_SHOWN]
    ]
    lines += _more(len(info.streams), "streams")
    lines.append(f"  gaps      {info.gap_count}, reconnects {info.reconnects}")
    lines += [
        f"    stream {gap.stream} {utc(gap.from_ns)} to {utc(gap.to_ns)} {gap.cause}" for gap in info.gaps[:_SHOWN]
    ]
    lines += _more(info.gap_count, "gaps")
    if info.missing:
        lines.append(f"  missing   {info.missing:,} records, lost before this file was made")
    lines += [describe_damage(one) for one in info.recovered[:_SHOWN]]
    lines += [describe_damage(one) for one in info.damage[:_SHOWN]]
    return lines


def describe_damage(damage: Damage) -> str:
    """One line: where, what, what it cost."""
    lost = "an unknown number of" if damage.records_lost is None else f"{damage.records_lost:,}"
    since = "" if damage.first_number is None or not damage.records_lost else f" from number {damage.first_number}"
    return (
        f"  damage    bytes {damage.offset}..{damage.offset + damage.length}: {damage.what}; {lost} records lost{since}"
    )


def _state(info: CaptureInfo) -> str:
    if info.sealed:
        return "sealed" + (", damaged: try kcs recover" if info.damage else "")
    if info.path.endswith(".partial"):
        return "not sealed: still being written, or its collector was killed (kcs recover seals it)"
    return "cut or damaged: try kcs recover"


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _more(count: int, noun: str) -> list[str]:
    return [f"    and {count - _SHOWN:,} more {noun}"] if count > _SHOWN else []
