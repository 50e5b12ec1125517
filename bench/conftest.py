"""What benches share: frames, tapes, brokers, the report at the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.report import Report
from bench.rig import outcome
from bench.tapes import FIXTURE, REAL_FRAMES, Frames, frames_of, imported, long_tape, simulated_short
from kcs.stats import freeze_heap
from tests.conftest import real_kafka  # noqa: F401

FIXTURE_TAPE_FRAMES = 60_000
REAL_TAPE_FRAMES = 120_000

_REPORT = pytest.StashKey[Report]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()
    if config.option.verbose <= 0:
        config.option.benchmark_quiet = True  # our table says the same in fewer columns; -v shows both


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    if not report.rows and not report.tables:
        return
    terminalreporter.section("kcs benchmarks")
    for line in report.lines():
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written to {report.write()}")


@pytest.fixture(autouse=True)
def long_lived_heap() -> Iterator[None]:
    """Garbage collection as in every verb of kcs: what exists is frozen, so pytest's own heap is not scanned for us."""
    thresholds = gc.get_threshold()
    freeze_heap()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Where figures go."""
    return pytestconfig.stash[_REPORT]


@pytest.fixture(scope="session")
def frames() -> Frames:
    """The market frames of the fixture: simulated, DEFAULT spelling, books of 30 levels."""
    return frames_of(FIXTURE)


@pytest.fixture(scope="session")
def real_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the real frames: SIMPLE spelling, books of 15 levels."""
    if not REAL_FRAMES.exists():
        pytest.skip(f"no real frames at {REAL_FRAMES}")
    return imported(REAL_FRAMES, tmp_path_factory.mktemp("real") / "upbit.zst")


@pytest.fixture(scope="session")
def real_frames(real_capture: Path) -> Frames:
    """The market frames of the real recording."""
    return frames_of(real_capture)


@pytest.fixture(scope="session")
def fixture_tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60,000 frames: the fixture over and over."""
    return long_tape(FIXTURE, tmp_path_factory.mktemp("tape"), FIXTURE_TAPE_FRAMES)


@pytest.fixture(scope="session")
def real_tape(real_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120,000 frames: the real ones over and over."""
    return long_tape(real_capture, tmp_path_factory.mktemp("tape"), REAL_TAPE_FRAMES)


@pytest.fixture(scope="session")
def short_tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 120,000 simulated frames in the shape of the real ones."""
    directory = tmp_path_factory.mktemp("short")
    return long_tape(simulated_short(directory / "upbit.zst"), directory / "tape", REAL_TAPE_FRAMES)


@pytest.fixture(params=["fixture", "short", "real"])
def tape(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The tapes, one after the other, with their names."""
    return request.param, request.getfixturevalue(f"{request.param}_tape")


@pytest.fixture(scope="session")
def warm_kafka(real_kafka: str, fixture_tape: Path) -> str:  # noqa: F811
    """A real Kafka whose JIT has seen batches: a cold one costs a factor of 2 to 4."""
    outcome("replay", str(fixture_tape), "--bootstrap", real_kafka, "--rounds", "4", timeout_s=200)
    return real_kafka
