"""A table of promises with what was seen: each kept or broken; the exit code is theirs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from bench.report import columns


@dataclass(slots=True, frozen=True)
class Line:
    """One figure. `ok` None: reported, not judged."""

    name: str
    seen: str
    promised: str
    ok: bool | None


@dataclass(slots=True)
class Verdict:
    """Collects lines; `code` is 0 when every promise was kept."""

    title: str
    lines: list[Line] = field(default_factory=list)

    def judge(self, name: str, seen: object, promised: str, ok: bool) -> None:
        """A promise."""
        self.lines.append(Line(name, str(seen), promised, ok))

    def tell(self, name: str, seen: object) -> None:
        """A figure without a promise."""
        self.lines.append(Line(name, str(seen), "", None))

    @property
    def broken(self) -> list[Line]:
        """Promises that were not kept."""
        return [line for line in self.lines if line.ok is False]

    @property
    def code(self) -> int:
        """0, or 1 when a promise was broken."""
        return 1 if self.broken else 0

    def show(self) -> int:
        """Print the table on stdout; returns `code`."""
        words = {True: "ok", False: "BROKEN", None: ""}
        rows = [[line.name, line.seen, line.promised, words[line.ok]] for line in self.lines]
        print(f"\n{self.title}")
        for text in columns([["what", "seen", "promised", "verdict"], *rows]):
            print(f"  {text}")
        kept = sum(line.ok is True for line in self.lines)
        print(f"{kept} promises kept, {len(self.broken)} broken", flush=True)
        return self.code


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
