"""The `kcs` program: registers the verbs, turns errors into messages and exit codes."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from kcs import __version__
from kcs.cli import demo, exchanges, export, files, live, recover, replay, sim, verify
from kcs.cli.report import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from kcs.cli.terminal import end_talk, say
from kcs.errors import KcsError

app = typer.Typer(
    name="kcs",
    help="Record, replay and prove exchange market data: the capture is the log, Kafka is a follower of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(value: bool) -> None:
    if value:
        print(f"kcs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Record, replay and prove exchange market data: the capture is the log, Kafka is a follower of it."""


def _guarded(verb: Callable[[], int | None]) -> int:
    """Run a verb: its exit code, or that of the error it raised, which is printed. Defects still show a traceback."""
    try:
        return verb() or EXIT_OK
    except KcsError as error:
        say(f"kcs: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout went away (`kcs cat ... | head`): nothing is wrong, and nothing more may be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        say(f"kcs: {error.filename or 'system'}: {error.strerror or error}")
        return EXIT_FAILED


def _register(name: str, verb: Callable[..., int | None]) -> None:
    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(_guarded(functools.partial(verb, *args, **kwargs)))

    app.command(name)(run)


for _name, _verb in (
    ("live", live.live),
    ("capture", live.capture),
    ("replay", replay.replay),
    ("sim", sim.sim),
    ("demo", demo.demo),
    ("info", files.info),
    ("cat", files.cat),
    ("verify", verify.verify),
    ("recover", recover.recover),
    ("repack", recover.repack),
    ("import", files.import_),
    ("export", export.export),
    ("exchanges", exchanges.exchanges),
):
    _register(_name, _verb)


def main() -> None:
    """The entry point of the `kcs` command."""
    try:
        app()
    finally:
        end_talk()
