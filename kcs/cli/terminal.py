"""How kcs talks: tables and progress on stderr (plain off a terminal), NDJSON and JSON on stdout.

Talk never fails: whoever reads stderr may go away, and the disk under it may fill up, while a recorder goes on. What
venues and files of others say is shown, never obeyed: a terminal takes commands from control characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import orjson

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
ESCAPES = {code: ascii(chr(code))[1:-1] for code in _CONTROLS}
"""For `str.translate`: what a terminal would obey, or show in another order, spelled out."""
_TALK = {code: shown for code, shown in ESCAPES.items() if chr(code) not in "\n\t"}


class Bar(Protocol):
    """A progress display; `update` may be called often."""

    def update(self, done: float, text: str = "") -> None: ...


class _NoBar:
    def update(self, done: float, text: str = "") -> None:
        """Nobody watches."""


def harmless(text: str) -> str:
    """The text with its control characters spelled out, new lines and tabs excepted."""
    return text.translate(_TALK)


def say(text: str) -> None:
    """One line of talk. Lost, without an error, where stderr is closed, its reader is gone, or its disk is full."""
    if sys.stderr is None:  # closed before we started; print would take stdout instead, among the data
        return
    try:
        print(harmless(text), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _let_go()
    except OSError:
        pass  # a full disk: there may be room again for the next line


def end_talk() -> None:
    """To be called last: what stderr refuses must not become the exit code when the interpreter flushes it."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _let_go()


def _let_go() -> None:
    """Nobody reads stderr any more: from now on it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stderr.fileno())
    os.close(nowhere)


def put_json(value: Any) -> None:
    """One JSON object on stdout. Of a file name that is not UTF-8 the bytes in question are shown as `\\udcff`."""
    try:
        line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        line = orjson.dumps(_encodable(value), option=orjson.OPT_APPEND_NEWLINE)
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(content) for content in value]
    return value


def put_lines(lines: Iterable[str]) -> None:
    """Text on stdout, at once: another program may wait for it."""
    for line in lines:
        print(harmless(line).encode("utf-8", "backslashreplace").decode())  # a file's name may be no UTF-8
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
