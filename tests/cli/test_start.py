"""Help, start-up and what every verb has in common."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from kcs import __version__
from kcs.cli.app import app
from tests.cli.processes import ROOT, Done, environment, run

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
VERBS = sorted(COMMANDS)
HEAVY = ("aiokafka", "pyarrow", "websockets", "confluent_kafka", "rich", "zstandard", "asyncio", "uvloop", "duckdb")


def test_the_verbs() -> None:
    promised = {"live", "capture", "replay", "sim", "demo", "info", "cat", "verify", "recover", "import", "export"}
    assert promised <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_and_every_option_says_what_it_does(verb: str, kcs: Callable[..., Done]) -> None:
    for flag in ("--help", "-h"):
        done = kcs(verb, flag)
        assert (done.code, done.err) == (0, "")
        assert f"Usage: kcs {verb}".encode() in done.out or b"Usage: " in done.out
    assert COMMANDS[verb].help
    assert [parameter.name for parameter in COMMANDS[verb].params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_and_option_is_documented(verb: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    section = re.search(rf"^## kcs {verb}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section `## kcs {verb}`"
    for parameter in COMMANDS[verb].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert f"{parameter.opts[0]}" in section[1], f"{parameter.opts[0]} is not in docs/cli.md"


def test_help_lists_all_verbs_and_bare_kcs_shows_it(kcs: Callable[..., Done]) -> None:
    done = kcs("--help")
    assert done.code == 0
    for verb in VERBS:
        assert f"\n  {verb}".encode() in done.out
    assert b"Usage:" in kcs().out + kcs().err.encode()


def test_version(kcs: Callable[..., Done]) -> None:
    assert kcs("--version").out == f"kcs {__version__}\n".encode()


def test_start_up_imports_nothing_heavy() -> None:
    """What makes `kcs --help` slow is imported by the verb that needs it."""
    code = f"import sys, kcs.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "args", [("nonsense",), ("replay",), ("replay", "--nonsense"), ("live", "--depth", "many"), ("cat", "--from")]
)
def test_a_wrong_call_is_exit_2_and_talks_on_stderr(args: tuple[str, ...], kcs: Callable[..., Done]) -> None:
    done = kcs(*args)
    assert (done.code, done.out) == (2, b"")
    assert "Usage" in done.err or "Error" in done.err


def test_no_colour_off_a_terminal(tmp_path: Path) -> None:
    for args in (("--help",), ("live", "--help"), ("info", "nothing.zst"), ("live", "--exchange", "upbitt")):
        done = run(*args, cwd=tmp_path, FORCE_COLOR="", TERM="xterm-256color")
        assert b"\x1b" not in done.out
        assert "\x1b" not in done.err


def test_exchanges(kcs: Callable[..., Done]) -> None:
    done = kcs("exchanges")
    assert done.code == 0
    assert b"wss://api.upbit.com/websocket/v1" in done.out
    (upbit,) = [row for row in kcs("exchanges", "--json").json if row["name"] == "upbit"]
    assert upbit["channels"] == ["trade", "orderbook", "ticker"]
