"""Breaks kcs on purpose and says which seed and which checker noticed: `python -m tests.dst.mutate [NAME...]`.

Each mutation is applied to a copy of the package in a temporary directory; seeds run there until one fails.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.dst.mutations import MUTATIONS, Mutation

ROOT: Final = Path(__file__).resolve().parents[2]
_FAILED: Final = re.compile(r"^  seed (\d+): (.*)$", re.MULTILINE)


class Stale(AssertionError):
    """The text to be replaced is not there any more, or not once."""


def mutated(mutation: Mutation, package: Path) -> tuple[Path, str]:
    """The file and its new content. Raises Stale."""
    path = package / mutation.path
    content = path.read_text()
    for old, new in ((mutation.old, mutation.new), *mutation.also):
        if content.count(old) != 1:
            raise Stale(f"{mutation.name}: its text stands {content.count(old)} times in {mutation.path}")
        content = content.replace(old, new)
    return path, content


def hunt(mutation: Mutation, seeds: int) -> tuple[int, str] | None:
    """(seed, finding) of the first seed that fails on the broken copy and not on the whole one; None: there is none."""
    with tempfile.TemporaryDirectory(prefix="kcs-mutant-") as name:
        copy = Path(name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "kcs", copy / "kcs", ignore=ignore)
        shutil.copytree(ROOT / "tests" / "dst", copy / "tests" / "dst", ignore=ignore)
        (copy / "tests" / "__init__.py").touch()
        path, content = mutated(mutation, copy / "kcs")
        path.write_text(content)
        first = 0
        while first < seeds:
            found = _first_failure(copy, first, seeds - first)
            if found is None or _first_failure(ROOT, found[0], 1) is None:
                return found
            first = found[0] + 1
    return None


def _first_failure(where: Path, first: int, seeds: int) -> tuple[int, str] | None:
    numbers = ["--from", str(first), "--seeds", str(seeds)]
    command = [sys.executable, "-m", "tests.dst", *numbers, "--jobs", "1", "--stop-after", "1"]
    run = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    found = _FAILED.search(run.stdout)
    if found is None:
        assert run.returncode in (0, 1), run.stderr
        return None
    return int(found[1]), found[2]


def main(arguments: Sequence[str]) -> int:
    """0: every mutation was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.dst.mutate", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations whose name contains one of these; all [all]")
    parser.add_argument("--seeds", type=int, default=400, help="give up after so many [400]")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if not options.names or any(name in m.name for name in options.names)]
    missed = 0
    print("| broken on purpose | caught by | seeds |\n|---|---|---|")
    for mutation in chosen:
        started = time.perf_counter()
        found = hunt(mutation, options.seeds)
        missed += found is None
        if found is None:
            print(f"| {mutation.name} | **nothing** | {options.seeds} |", flush=True)
        else:
            seed, text = found
            print(f"| {mutation.name} | {checker(text)} | {seed + 1} |", flush=True)
            print(f"    {time.perf_counter() - started:.0f} s, seed {seed}: {text}", file=sys.stderr, flush=True)
    return 1 if missed else 0


_DEFECTS: Final = {
    "LedgerError": "`LedgerError`",
    "delivery stops": "delivery gives up",
    "the sink buffers": "the sink's bound",
    "the writer queues": "the writer's bound",
    "two batches in flight": "two batches in flight",
}


def checker(text: str) -> str:
    """What noticed, in a few words."""
    name = text.partition(":")[0]
    if name != "defect":
        return "a traceback" if name.startswith("life") else f"`{name}`"
    return "defect: " + next((short for part, short in _DEFECTS.items() if part in text), text.partition(": ")[2])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
