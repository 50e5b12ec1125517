"""The gaps of one stream: begun when it stops delivering, written when it delivers again. Sans-I/O; times in ns.

Contract: one gap of the whole stream at a time, whatever causes follow meanwhile; its record names the markets of the
subscription, so that a reader need not know what was subscribed (none are named where there are more than
`MARKETS_NAMED_MAX`: then it is all of the stream). Gaps of single markets may lie inside it. Records are returned as
actions, to be written *before* the frame that ends them: a gap resets what the parser knows, and that frame may be the
snapshot that proves the state whole again.

`cover(from_ns, to_ns, market)` names the stream of a twin that delivered all the while, or None. Owned by one session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kcs.clock import NS_PER_S
from kcs.live.actions import Action, Log, gap_record
from kcs.model import GapFields

MARKETS_NAMED_MAX: Final = 2_000
"""Of a gap record; the largest venues list half as many in one subscription."""

Cover = Callable[[int, int, str | None], int | None]


class GapBook:
    """See the module docstring."""

    __slots__ = ("_cause", "_cover", "_from_ns", "_markets", "_stream", "count", "covered")

    def __init__(self, stream: int, cover: Cover) -> None:
        self._stream = stream
        self._cover = cover
        self._from_ns: int | None = None
        self._cause = ""
        self._markets: tuple[str, ...] = ()
        self.count = 0
        """Gaps written so far."""
        self.covered = 0
        """Those among them that a twin covered."""

    @property
    def is_open(self) -> bool:
        """The stream does not deliver, and should."""
        return self._from_ns is not None

    def begin(self, from_ns: int, cause: str, markets: Sequence[str]) -> None:
        """Data of these markets may be missing from here on; nothing changes while a gap is open."""
        if self._from_ns is None:
            self._from_ns, self._cause = from_ns, cause
            self._markets = tuple(dict.fromkeys(markets))

    def widen(self, markets: Sequence[str]) -> None:
        """These markets are asked for as well, and do not come either."""
        if self._from_ns is not None:
            self._markets = tuple(dict.fromkeys((*self._markets, *markets)))[: MARKETS_NAMED_MAX + 1]

    def forget(self, cause: str) -> None:
        """An open gap of this cause has been ended by another stream."""
        if self._cause == cause:
            self._from_ns = None

    def end(self, to_ns: int) -> tuple[str, list[Action]]:
        """The stream delivers again: the cause, and what to write. The gap must be open."""
        assert self._from_ns is not None
        named = self._markets if len(self._markets) <= MARKETS_NAMED_MAX else ()
        actions = self._record(self._from_ns, to_ns, self._cause, named, None)
        self._from_ns = None
        return self._cause, actions

    def of_market(self, market: str, from_ns: int, to_ns: int) -> list[Action]:
        """One market speaks again: what to write."""
        return self._record(from_ns, to_ns, "market_silence", (market,), market)

    def _record(
        self, from_ns: int, to_ns: int, cause: str, markets: tuple[str, ...], market: str | None
    ) -> list[Action]:
        # The wall clock of an earlier run may have been ahead of this one's.
        from_ns = min(from_ns, to_ns)
        twin = self._cover(from_ns, to_ns, market)
        self.count += 1
        self.covered += twin is not None
        told = f"gap of {(to_ns - from_ns) / NS_PER_S:.3f} s ({cause})"
        told += f" of {market}" if market is not None else ""
        told += "" if twin is None else f", covered by stream {twin}"
        return [
            gap_record(to_ns, GapFields(from_ns, to_ns, cause, markets, None, twin)),
            Log("warning", f"stream {self._stream}: {told}"),
        ]
