"""Which link a sink ships over, and when an old one may be closed: as soon as it carries nothing any more. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kcs.kafka.link import Link


class Links:
    """The current link and those that still carry something. `retire` is given each one that is no longer used."""

    __slots__ = ("_flights", "_retire", "current")

    def __init__(self, retire: Callable[[Link], None]) -> None:
        self.current: Link | None = None
        self._flights: dict[Link, int] = {}
        self._retire = retire

    def adopt(self, link: Link) -> None:
        """Ship over this one from now on; an idle old one is let go at once."""
        old, self.current = self.current, link
        self._flights[link] = 0
        if old is not None and not self._flights[old]:
            self._release(old)

    def took_off(self, link: Link) -> None:
        """A batch is under way."""
        self._flights[link] += 1

    def landed(self, link: Link) -> None:
        """It came to an end, one way or the other."""
        self._flights[link] -= 1
        if link is not self.current and not self._flights[link]:
            self._release(link)

    def clear(self) -> list[Link]:
        """All that are not closed yet, for the end of the sink."""
        left = list(self._flights)
        self._flights.clear()
        return left

    def _release(self, link: Link) -> None:
        del self._flights[link]
        self._retire(link)
