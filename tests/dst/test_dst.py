"""A few seeds of the deterministic simulation, that it is deterministic, and that its mutations still apply."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dst.many import command, quiet
from tests.dst.mutate import ROOT, mutated
from tests.dst.mutations import MUTATIONS, Mutation
from tests.dst.run import run_seed

SEEDS = range(25)


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    before = logging.root.manager.disable
    quiet()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    logging.disable(before)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_nothing_is_lost(seed: int) -> None:
    outcome = run_seed(seed)
    assert not outcome.failures, f"{outcome.failures[0]}\n{command(seed)}"


def test_one_seed_is_one_run() -> None:
    """Twice in this process, and once in another whose hashes of strings are others."""
    first, second = run_seed(3), run_seed(3)
    assert first.trace_hash == second.trace_hash
    script = "from tests.dst.run import run_seed; print(run_seed(3).trace_hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.split()[-1] == first.trace_hash


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_can_be_applied(mutation: Mutation) -> None:
    path, content = mutated(mutation, ROOT / "kcs")
    compile(content, str(path), "exec")
    assert content != Path(path).read_text()
