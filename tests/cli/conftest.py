"""What the tests of the command line share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.processes import Done, environment, simulator


@pytest.fixture(scope="session")
def sim_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A simulated Upbit for all tests, 400 frames/s over all markets and channels."""
    with simulator(tmp_path_factory.mktemp("sim"), "--rate", "400") as url:
        yield url


@pytest.fixture
def kcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., Done]:
    """`kcs(*args)` in this process, in an empty directory: quick, for verbs that need no loop of their own."""
    from kcs.cli.app import app

    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)

    def call(*args: object) -> Done:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(arg) for arg in args])
        captured = capfdbinary.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err.decode())

    return call


@pytest.fixture(scope="session")
def busy_sim_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A simulated Upbit with 12,000 frames/s: fills a small disk soon."""
    with simulator(tmp_path_factory.mktemp("sim"), "--rate", "12000") as url:
        yield url
