"""One market's own rhythm: how long it pauses, and which pause is too long. Pure; times in ns.

A market is *silent* when its pause is longer than `factor` times the longest that it made of late, counted twice: in
time (never less than `floor_s`) and in frames of the stream. The first lets a market be quiet by nature; the second
keeps a line that stalled, or a night in which everything slows down, from looking like 855 silent markets.

Pauses are remembered for one to two windows. A market is judged once `samples` pauses of it were seen, and only over a
silence that fits `watched` times into the time that it was listened to: with heavy-tailed pauses (Pareto, 1.2), sixty
markets and three hours that is the difference between none and 144 false alarms. One that turns out to be quiet rather
than lost costs one more subscription; each time it gets twice the patience, up to `PATIENCE_MAX` times, and half of it
back after a time as lively as before. Used by hearing.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kcs.clock import NS_PER_S

PATIENCE_MAX: Final = 64
FRAMES_LEAST: Final = 50
"""So many frames must have come of a stream before one of its markets is called silent."""


@dataclass(frozen=True, slots=True)
class RhythmSettings:
    """When a market is silent; see the module docstring. A window lasts `window_s` and twice `samples` pauses."""

    floor_s: float = 20.0
    factor: int = 4
    samples: int = 32
    watched: int = 20
    window_s: float = 3600.0


class Rhythm:
    """What is known of one market. Pauses are (ns, frames of the stream), as seen when it was looked at."""

    __slots__ = (
        "_calm_count",
        "_calm_ns",
        "_first_ns",
        "_frames",
        "_longest",
        "_longest_ns",
        "_older",
        "_older_ns",
        "_patience",
        "_pause",
        "_pause_ns",
        "_settings",
        "_turned_count",
        "_turned_ns",
        "back_ns",
        "count",
        "seen_ns",
    )

    def __init__(self, settings: RhythmSettings, seen_ns: int, frames: int) -> None:
        self._settings = settings
        self.seen_ns = seen_ns
        """Its last event when it was last looked at."""
        self.count = 0
        """How often it was seen to have spoken."""
        self._frames = frames
        """Frames of the stream when it was last seen to have spoken."""
        self._first_ns = self._turned_ns = seen_ns
        self._turned_count = 0
        self._pause_ns = self._pause = 0
        """The pause that it is making."""
        self._longest_ns = self._longest = 0
        """The longest that it ended in this window."""
        self._older_ns = self._older = 0
        """The longest of the window before."""
        self._patience = 1
        self._calm_ns = self._calm_count = 0
        """Since when it is lively again."""
        self.back_ns = 0
        """When its last silence ended."""

    @property
    def longest_ns(self) -> int:
        """The longest pause of late."""
        return max(self._longest_ns, self._older_ns)

    def begin(self, last_ns: int, frames: int) -> None:
        """A pause begins; the one before says nothing of its rhythm."""
        self.seen_ns, self._frames = last_ns, frames
        self._pause_ns = self._pause = 0

    def spoke(self, last_ns: int, frames: int, now_ns: int) -> None:
        """Its pause is over: so long may it be. Old pauses are forgotten; who is lively again is trusted again."""
        self._longest_ns, self._longest = max(self._longest_ns, self._pause_ns), max(self._longest, self._pause)
        self.count += 1
        self.begin(last_ns, frames)
        settings = self._settings
        if (
            self.count - self._turned_count >= 2 * settings.samples
            and now_ns - self._turned_ns >= settings.window_s * NS_PER_S
        ):
            self._older_ns, self._older = self._longest_ns, self._longest
            self._longest_ns = self._longest = 0
            self._turned_ns, self._turned_count = now_ns, self.count
        if (
            self._patience > 1
            and self.count - self._calm_count >= settings.samples
            and last_ns - self._calm_ns >= self._limit_ns() * self._patience
        ):
            self._patience //= 2
            self._calm_ns, self._calm_count = last_ns, self.count

    def back(self, last_ns: int, frames: int) -> None:
        """A silence is over; it was no pause of its rhythm, and what follows is counted afresh."""
        self.begin(last_ns, frames)
        self.back_ns = self._calm_ns = last_ns
        self._calm_count = self.count

    def pauses(self, pause_ns: int, frames: int) -> bool:
        """It still makes its pause, `pause_ns` long now. True when it is silent; patience has doubled then."""
        self._pause_ns, self._pause = pause_ns, frames - self._frames
        settings = self._settings
        if pause_ns <= settings.floor_s * NS_PER_S or self.count < settings.samples:
            return False
        limit_ns, patience = self._limit_ns(), self._patience
        least = max(FRAMES_LEAST, settings.factor * max(self._longest, self._older))
        if (
            pause_ns <= limit_ns * patience
            or self._pause <= least * patience
            or self.seen_ns - self._first_ns <= settings.watched * limit_ns
        ):
            return False
        self._patience = min(PATIENCE_MAX, 2 * patience)
        return True

    def adopt(self, other: Rhythm) -> None:
        """Know what was learned of the same market on another connection, too."""
        self._older_ns = max(self._older_ns, other.longest_ns)
        self._older = max(self._older, other._longest, other._older)
        self._first_ns = min(self._first_ns, other._first_ns)
        self.count += other.count
        self._turned_count += other.count
        self._calm_count += other.count
        self._patience = max(self._patience, other._patience)

    def _limit_ns(self) -> int:
        settings = self._settings
        return max(int(settings.floor_s * NS_PER_S), settings.factor * self.longest_ns)
