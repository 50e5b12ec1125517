"""What the security tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import Done, environment


@pytest.fixture
def kcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Done]:
    """`kcs(*args, **variables)` in this process, in an empty directory two levels down: what climbs out shows."""
    from kcs.cli.app import app

    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)

    def call(*args: object, **variables: str) -> Done:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        return Done(ended.value.code if isinstance(ended.value.code, int) else 0, out, err.decode("utf-8", "replace"))

    return call
