"""Talk on stderr never fails and never lands among the data; JSON takes any file name."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from kcs.capture.output import making
from kcs.capture.records import encode_fields
from kcs.cli import terminal
from kcs.model import GapFields, OpenFields
from tests.capture.making import START_NS, header
from tests.cli.processes import environment


def test_talk_goes_on_when_the_reader_of_stderr_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        terminal.say("a gap of 2 s")  # a recorder says this from the socket's callback
        terminal.say("and another")
        terminal.end_talk()


def test_talk_is_heard_again_once_a_full_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    disk = Disk()
    monkeypatch.setattr(sys, "stderr", disk)
    terminal.say("lost, perhaps")
    disk.full = False
    terminal.say("heard")
    assert disk.getvalue().endswith("heard\n")


def test_without_a_stderr_talk_does_not_land_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("talk")
    terminal.end_talk()
    assert capsys.readouterr().out == ""


def test_a_stderr_that_refuses_everything_does_not_change_the_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "kcs", "info", "/nonexistent"], stderr=full, check=False)
    assert done.returncode == 1
    with Path("/dev/full").open("w") as full:
        capture = Path(__file__).parents[2] / "fixtures" / "upbit.zst"
        arguments = [sys.executable, "-m", "kcs", "verify", str(capture)]
        assert subprocess.run(arguments, stderr=full, check=False).returncode == 0


def test_json_shows_a_file_name_that_is_not_utf8(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    name = os.fsdecode(b"/data/\xff.zst")
    terminal.put_json({"captures": [{"path": name, "records": 3}]})
    assert orjson.loads(capfdbinary.readouterr().out) == {"captures": [{"path": "/data/\\udcff.zst", "records": 3}]}


CONTROLS = "\x1b]0;pwned\x07\x1b[2J\x00\r\x7f\x9b31m\u2028\u202e"


def test_control_characters_are_shown_and_not_sent(capfd: pytest.CaptureFixture[str]) -> None:
    terminal.say(f"a{CONTROLS}b\n\tc")
    terminal.put_lines([f"a{CONTROLS}b"])
    terminal.table([("name", CONTROLS)])
    out, err = capfd.readouterr()
    shown = r"\x1b]0;pwned\x07\x1b[2J\x00\r\x7f\x9b31m\u2028\u202e"
    assert out == f"a{shown}b\n"
    assert err == f"a{shown}b\n\tc\n  name  {shown}\n"


def test_no_text_of_a_foreign_capture_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    made = replace(header(), exchange=CONTROLS, url=CONTROLS, kcs_version=CONTROLS, options={CONTROLS: [CONTROLS]})
    path = tmp_path / "\udcff\x1b[2J.zst"
    with making(path, made) as file:
        opened = encode_fields(OpenFields(url=CONTROLS))
        gap = encode_fields(GapFields(0, 1, CONTROLS))
        file.write(0, [(1, 0, START_NS, opened), (7, 0, START_NS, gap), (3, 0, START_NS, CONTROLS.encode())])
        file.seal()
    for verb in ("info", "verify", "cat", "replay", "recover"):
        done = subprocess.run(
            [sys.executable, "-m", "kcs", verb, path, *(["out.zst"] if verb == "recover" else [])],
            capture_output=True, check=False, cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert b"Traceback" not in said, said
        assert not set(said) & {0x1B, 0x07, 0x00, 0x7F, 0x0D}, (verb, said)
        assert not {0x9B, 0x2028, 0x202E} & set(map(ord, said.decode("utf-8"))), (verb, said)
