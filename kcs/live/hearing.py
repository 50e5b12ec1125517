"""What a stream hears: of which market when, and which market has fallen silent while the others go on. Sans-I/O.

One `Hearing` belongs to one session. `on_market` (HOT) writes one entry of a dict; everything else happens when `scan`
looks at the markets of the subscription, in slices, at all of them about once a second. Whether a pause is too long is
the market's own rhythm to say (rhythm.py). Time counts only up to the last event of any market, so a stream that is
silent as a whole makes no market silent: that is for the session to judge. What happens while there is no connection is
no pause of anyone.

Of a frame with events of several markets only the last one is heard of. Memory: at most `MARKETS_MAX` names, and one
small object for each market of the subscription. Times in ns. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.live.keepalive import NEVER_NS
from kcs.live.rhythm import Rhythm, RhythmSettings

MARKETS_MAX: Final = 65_536
"""Markets whose last event is remembered: names come from outside, no venue has a tenth of this."""

SLICE: Final = 128
"""Markets looked at in one step: some 70 us."""
STEP_NS: Final = 100 * NS_PER_MS
PASS_NS: Final = NS_PER_S
"""The next step follows after `STEP_NS`, the next pass over all markets after `PASS_NS`."""

NAMES_TOLD_MAX: Final = 20
"""Of a log line."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A market that does not speak: its name as bytes, its last event, and how long it paused at most before."""

    code: bytes
    from_ns: int
    longest_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a step of `scan` found: silences that begin, and those that ended though nobody said so (`speaks`)."""

    begun: tuple[str, ...] = ()
    ended: tuple[tuple[str, Silence], ...] = ()


class Hearing:
    """See the module docstring."""

    __slots__ = (
        "_cursor",
        "_data_ns",
        "_rhythms",
        "_settings",
        "_since_ns",
        "_watched",
        "market_ns",
        "markets",
        "next_due_ns",
        "silent",
    )

    def __init__(self, settings: RhythmSettings, markets: Sequence[str]) -> None:
        self._settings = settings
        self._watched = tuple(dict.fromkeys(markets))
        self._rhythms: dict[str, Rhythm] = {}
        self._cursor = 0
        self._since_ns = 0
        """Silence counts from here at the earliest: the connection, or another subscription."""
        self._data_ns = 0
        self.next_due_ns = NEVER_NS
        """When `scan` wants to be called next."""
        self.market_ns = -1
        """The last event of any market on this connection; -1 before the first."""
        self.markets: dict[str, int] = {}
        """Market -> time of its last event."""
        self.silent: dict[str, Silence] = {}
        """The markets that do not speak."""

    def on_market(self, market: str, recv_ns: int) -> None:
        """A frame carried an event of this market. HOT."""
        self.market_ns = recv_ns
        markets = self.markets
        if market in markets or len(markets) < MARKETS_MAX:
            markets[market] = recv_ns

    def on_data(self, recv_ns: int) -> None:
        """A frame was data of the venue, though it cannot be said of which market."""
        self._data_ns = recv_ns

    @property
    def last_data_ns(self) -> int:
        """When the venue last said something that is no heartbeat; the opening when it has not yet."""
        return max(self.market_ns, self._data_ns)

    @property
    def habit_ns(self) -> int:
        """The longest pause of late of the market that pauses least: how long the stream may say nothing."""
        known = [rhythm.longest_ns for rhythm in self._rhythms.values() if rhythm.count >= self._settings.samples]
        return min(known, default=0)

    def has_been_silent(self, since_ns: int, market: str | None) -> bool:
        """Is this market silent, or was it since then? None: any market."""
        rhythms = self._rhythms
        if market is None:
            return bool(self.silent) or any(rhythm.back_ns > since_ns for rhythm in rhythms.values())
        return market in self.silent or (market in rhythms and rhythms[market].back_ns > since_ns)

    def unheard(self) -> tuple[str, ...]:
        """Markets of the subscription that never spoke."""
        return tuple(market for market in self._watched if market not in self.markets)

    def opened(self, now_ns: int, frames: int) -> None:
        """A connection begins."""
        self._data_ns = now_ns
        self.market_ns = -1
        self._rest(now_ns, frames)

    def watch(self, markets: Sequence[str], now_ns: int, frames: int) -> list[tuple[str, Silence]]:
        """Other markets are asked for from now on; the silences of those that no longer are, which end here."""
        self._watched = tuple(dict.fromkeys(markets))
        wanted = set(self._watched)
        self._rhythms = {market: rhythm for market, rhythm in self._rhythms.items() if market in wanted}
        self._rest(now_ns, frames)
        gone = [market for market in self.silent if market not in wanted]
        return [(market, self.silent.pop(market)) for market in gone]

    def adopt(self, other: Hearing, frames: int) -> None:
        """This stream takes the place of another of the same subscription: know what that one learned."""
        markets = self.markets
        for market, last_ns in other.markets.items():
            if market not in markets and len(markets) < MARKETS_MAX:
                markets[market] = last_ns
        for market, theirs in other._rhythms.items():
            rhythm = self._rhythms.get(market)
            if rhythm is None and market in markets:
                rhythm = self._rhythms[market] = Rhythm(self._settings, markets[market], frames)
            if rhythm is not None:
                rhythm.adopt(theirs)

    def scan(self, now_ns: int, frames: int) -> Found:
        """Look at the next slice. `frames`: data frames of the stream so far."""
        begun: list[str] = []
        ended: list[tuple[str, Silence]] = []
        end = min(self._cursor + SLICE, len(self._watched))
        for market in self._watched[self._cursor : end]:
            last_ns = self.markets.get(market)
            if last_ns is None:
                continue
            rhythm = self._rhythms.get(market)
            if rhythm is None:
                self._rhythms[market] = Rhythm(self._settings, last_ns, frames)
            elif market in self.silent:
                if last_ns != rhythm.seen_ns:
                    ended.append((market, self._end(market, last_ns, frames)))
            elif last_ns != rhythm.seen_ns:
                rhythm.spoke(last_ns, frames, now_ns)
            elif rhythm.pauses(self.market_ns - max(last_ns, self._since_ns), frames):
                self.silent[market] = Silence(market.encode(), last_ns, rhythm.longest_ns)
                begun.append(market)
        whole = end == len(self._watched)
        self._cursor = 0 if whole else end
        self.next_due_ns = now_ns + (PASS_NS if whole else STEP_NS)
        return Found(tuple(begun), tuple(ended))

    def speaks(self, market: str, recv_ns: int, frames: int) -> Silence | None:
        """A frame of this market has come, of which `on_market` will tell: the silence that it ends, if any."""
        return self._end(market, recv_ns, frames) if market in self.silent else None

    def _end(self, market: str, last_ns: int, frames: int) -> Silence:
        self._rhythms[market].back(last_ns, frames)
        return self.silent.pop(market)

    def _rest(self, now_ns: int, frames: int) -> None:
        self._cursor = 0
        self._since_ns = now_ns
        self.next_due_ns = now_ns + PASS_NS
        for market, rhythm in self._rhythms.items():
            rhythm.begin(self.markets[market], frames)


def told(markets: Sequence[str]) -> str:
    """Names for a log line, not all of them when there are many."""
    more = f" and {len(markets) - NAMES_TOLD_MAX} more" if len(markets) > NAMES_TOLD_MAX else ""
    return ", ".join(markets[:NAMES_TOLD_MAX]) + more
