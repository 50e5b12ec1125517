"""Talk on stderr never fails and never lands among the data; JSON takes any file name."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from kcs.cli import terminal


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
