"""`python -m fuzz TARGET --seconds N`: fuzz one target with atheris, or keep its corpus. See README.md here."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

Arc = tuple[str, int, int]
"""File, line, next line."""

HERE: Final = Path(__file__).resolve().parent
CORPUS: Final = HERE / "corpus"
FINDINGS: Final = HERE / "findings"
WORK: Final = HERE / ".work"

FILES_MAX: Final = 200
BYTES_MAX: Final = 300 * 1024
"""Of the corpus in the repository, over all targets; each target has its share."""

INPUT_BYTES_MAX: Final = 4096
INPUT_SECONDS_MAX: Final = 20
MEMORY_MB_MAX: Final = 2048


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="one of those in targets.py; `all`: one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="how long, a target")
    parser.add_argument("--input", type=Path, help="run the target on this file once: a finding, under a debugger")
    parser.add_argument("--seeds", action="store_true", help="write the seeds of all targets into corpus/")
    parser.add_argument(
        "--keep", action="store_true", help="after the run, put the smallest corpus that reaches the same"
    )
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        return _inside(given.target, given.inside)
    if given.seeds:
        return _write_seeds()
    from fuzz.targets import TARGETS, remove_files

    try:
        names = list(TARGETS) if given.target == "all" else [given.target]
        if not set(names) <= set(TARGETS):
            parser.error(f"targets: all, {', '.join(TARGETS)}")
        if given.input is not None:
            TARGETS[given.target](given.input.read_bytes())
            return 0
    finally:
        remove_files()
    codes = [_fuzz(name, given.seconds) for name in names]
    for name in names if given.keep else ():
        _keep(name)
    remove_files()
    return max(codes)


def _inside(name: str, arguments: list[str]) -> int:
    """In the process that atheris takes over: import what is fuzzed under instrumentation, and go."""
    import atheris

    with atheris.instrument_imports(include=["kcs"]):
        from fuzz.targets import TARGETS

    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()
    return 0


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", name, "--inside", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": tempfile.gettempdir()}
    return subprocess.run(command, cwd=HERE.parent, env=environ, text=True, capture_output=True, check=False)


def _fuzz(name: str, seconds: int) -> int:
    """Fuzz in a process of its own; 0 when nothing was found."""
    for directory in (WORK / name, CORPUS / name, FINDINGS):
        directory.mkdir(parents=True, exist_ok=True)
    done = _run(
        name,
        str(WORK / name),
        str(CORPUS / name),
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MB_MAX}",
        f"-artifact_prefix={FINDINGS}/{name}-",
        f"-dict={_dictionary(name)}",
        "-print_final_stats=1",
    )
    (WORK / f"{name}.log").write_text(done.stdout + done.stderr)
    print(f"{name}: {_figures(done.stderr)}{'' if done.returncode == 0 else ', A FINDING:'}", flush=True)
    if done.returncode:
        told = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("#")]
        print("\n".join(told[-40:]), flush=True)
    return 1 if done.returncode else 0


def _dictionary(name: str) -> Path:
    """Words of the target's corpus: the decoders are C, so the fuzzer cannot see which ones it compares with."""
    words = {
        word
        for path in sorted((CORPUS / name).iterdir())
        for word in re.findall(rb'"[A-Za-z_.\-]{1,24}"|[A-Za-z_]{3,24}|[{}\[\]:,=@;]', path.read_bytes())
    }
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in sorted(words)[:500])
    path = WORK / f"{name}.dict"
    path.write_text("".join(f'"{word}"\n' for word in escaped))
    return path


def _figures(log: str) -> str:
    """Executions, edges and corpus of libFuzzer's log."""
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log)
    progress = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", log)
    took = re.findall(r"Done (\d+) runs in (\d+) second", log)
    runs = executed[-1] if executed else progress[-1][0] if progress else "0"
    edges, features, corpus = progress[-1][1:] if progress else ("0", "0", "0")
    seconds = f" in {took[-1][1]} s" if took else ""
    return f"{int(runs):,} executions{seconds}, {int(edges):,} edges, {int(features):,} features, corpus {corpus}"


def _keep(name: str) -> None:
    """The corpus of the repository becomes the smallest inputs that reach what all inputs reach, within its share.

    By Python's own tracing: libFuzzer's merge wants to start its program anew, and here that is an interpreter.
    """
    from fuzz.targets import TARGETS

    paths = [path for directory in (CORPUS, WORK) for path in (directory / name).iterdir()]
    inputs = sorted({path.read_bytes() for path in paths}, key=lambda data: (len(data), data))
    reached = {data: _arcs(TARGETS[name], data) for data in inputs}
    files, size = FILES_MAX // len(TARGETS), BYTES_MAX // len(TARGETS)
    kept: list[bytes] = []
    missing = frozenset[Arc]().union(*reached.values())
    while missing and len(kept) < files:
        fitting = [data for data in inputs if len(data) <= size and data not in kept]
        best = max(fitting, key=lambda data: (len(reached[data] & missing), -len(data)), default=None)
        if best is None or not reached[best] & missing:
            break
        kept.append(best)
        size -= len(best)
        missing -= reached[best]
    shutil.rmtree(CORPUS / name)
    _put(name, kept)
    print(f"{name}: {len(kept)} inputs kept, {len(missing)} of their steps are reached by none of them", flush=True)


def _arcs(target: Callable[[bytes], None], data: bytes) -> frozenset[Arc]:
    """The steps from line to line in kcs that an input takes."""
    found: set[Arc] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> object:
        name = frame.f_code.co_filename
        if "/kcs/" not in name:
            return None
        if event == "line":
            found.add((name, last.get(id(frame), 0), frame.f_lineno))
        last[id(frame)] = 0 if event == "return" else frame.f_lineno
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target(data)
    finally:
        sys.settrace(None)
    return frozenset(found)


def _put(name: str, inputs: list[bytes]) -> None:
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _write_seeds() -> int:
    from fuzz.seeds import seeds

    for name, inputs in seeds().items():
        _put(name, inputs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
