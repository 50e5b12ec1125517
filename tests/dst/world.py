"""What outlives a simulated process: time, randomness, the world's own events, the trace, and the counts.

Everything random is drawn from `World.rng(name)`: one generator a subject, derived from the seed, so that a draw more
in one place changes nothing elsewhere. Times are ns since the Unix epoch.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

START_NS: Final = 1_735_689_600_000_000_000
"""2025-01-01T00:00:00Z."""

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
NEVER: Final = 1 << 63


class SimClock:
    """Virtual time. Reading it costs a little, as all work does: slices measured by it come to an end."""

    __slots__ = ("_read_ns", "now")

    def __init__(self, read_ns: int) -> None:
        self.now = START_NS
        self._read_ns = read_ns

    def now_ns(self) -> int:
        self.now += self._read_ns
        return self.now

    def monotonic_ns(self) -> int:
        return self.now_ns() - START_NS

    def wall_ns(self) -> int:
        return self.now_ns()


class ProcessClock:
    """What a process takes for the time: its machine's clock may be ahead of the world or behind."""

    __slots__ = ("_clock", "offset_ns")

    def __init__(self, clock: SimClock, offset_ns: int) -> None:
        self._clock = clock
        self.offset_ns = offset_ns

    def now_ns(self) -> int:
        return self._clock.now_ns() + self.offset_ns

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()

    def wall_ns(self) -> int:
        return self.now_ns()


class World:
    """See the module docstring. `verbose`: each line of the trace is printed as it comes."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.verbose = verbose
        self.root = "//"
        """The directory of this run: its name is another each time, and left out of the trace."""
        self.counts: Counter[str] = Counter()
        """How often each thing happened, for the coverage report."""
        self.defects: list[str] = []
        """What must never happen, whatever fails; any makes the run a failure."""
        self._trace = hashlib.sha256()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.clock = SimClock(self.rng("clock").choice((200, 1_000, 5_000)))

    def rng(self, name: str) -> random.Random:
        """A generator for one subject."""
        return random.Random(f"{self.seed}/{name}")

    # Events of the world: they happen whether or not a process lives.

    def at(self, when_ns: int, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when_ns, self._order, event))

    @property
    def next_ns(self) -> int:
        return self._events[0][0] if self._events else NEVER

    def run_due(self) -> None:
        while self._events and self._events[0][0] <= self.clock.now:
            heapq.heappop(self._events)[2]()

    def sleep_until(self, when_ns: int) -> None:
        """Time passes while no process lives."""
        while self.next_ns <= when_ns:
            self.clock.now = max(self.clock.now, self.next_ns)
            self.run_due()
        self.clock.now = max(self.clock.now, when_ns)

    # What happened.

    def count(self, name: str, by: int = 1) -> None:
        if by:
            self.counts[name] += by

    def tell(self, what: str) -> None:
        """One line of the trace; its hash says whether two runs were the same."""
        line = f"{(self.clock.now - START_NS) / SECOND:12.6f} {what.replace(self.root, '')}"
        self._trace.update(line.encode() + b"\n")
        if self.verbose:
            print(line)

    def defect(self, what: str) -> None:
        """Something that must not happen."""
        self.tell(f"DEFECT {what}")
        self.defects.append(what)

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest()
