"""How kcs talks: tables and progress on stderr (plain off a terminal), NDJSON and JSON on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import orjson


class Bar(Protocol):
    """A progress display; `update` may be called often."""

    def update(self, done: float, text: str = "") -> None: ...


class _NoBar:
    def update(self, done: float, text: str = "") -> None:
        """Nobody watches."""


def say(text: str) -> None:
    """One line of talk."""
    print(text, file=sys.stderr, flush=True)


def put_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def put_lines(lines: Iterable[str]) -> None:
    """Text on stdout, at once: another program may wait for it."""
    for line in lines:
        print(line)
    sys.stdout.flush()


def table(rows: Iterable[tuple[str, str]], *, title: str = "") -> None:
    """Two aligned columns on stderr."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    if title:
        say(title)
    for name, text in rows:
        say(f"  {name:<{width}}  {text}")


@contextmanager
def progress(title: str, total: float | None, *, quiet: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr when that is a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield _NoBar()
        return
    from rich.console import Console  # lazily: `kcs --help` needs no terminal library
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=10,
    ) as display:
        task = display.add_task(title, total=total, text="")

        class _Bar:
            def update(self, done: float, text: str = "") -> None:
                display.update(task, completed=done, text=text)

        yield _Bar()
