"""A recorder that cannot record stops loudly: exit 1, what is there is sealed or can be read and recovered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcs.capture.reader import CaptureReader
from tests.cli.processes import balanced, partials, run, running, sealed

FILE_SIZE_MAX = 1_100_000
"""More than the megabyte that is set aside for the index, or nothing would be recorded at all."""

LIMITED = (
    f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_SIZE_MAX}, {FILE_SIZE_MAX}));"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, of which a megabyte is set aside for the index."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root of Linux may mount a small file system")
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "kcs-test", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def assert_stopped_loudly(code: int, err: str, report: dict[str, object], directory: Path, cause: str) -> None:
    assert code == 1
    assert cause in err
    assert "the capture failed" in err
    assert cause in str(report["failed"])
    balanced(report)
    files = [*sealed(directory), *partials(directory)]
    assert len(files) == 1
    with CaptureReader(files[0], strict=False) as reader:
        records = list(reader.records())
    assert len(records) > 100
    assert [record.number for record in records] == list(range(len(records)))


@pytest.mark.parametrize("verb", ["live", "capture"])
def test_a_full_disk(verb: str, small_disk: Path, busy_sim_url: str, tmp_path: Path) -> None:
    directory = small_disk / "captures"
    args = (verb, "--url", f"upbit={busy_sim_url}", "--capture", directory, "--json")
    with running(*args, cwd=tmp_path) as kcs:
        done = kcs.wait()
    assert_stopped_loudly(done.code, done.err, done.json, directory, "the disk is full")
    (left,) = [*sealed(directory), *partials(directory)]
    lost = done.json["frames"]["unwritten"]
    saved = run("recover", left, tmp_path / "saved.zst", "--json", cwd=tmp_path)
    assert saved.json["missing"] == lost > 0, "the run and the file agree on what is missing"
    replayed = run("replay", tmp_path / "saved.zst", "--sink", "null", "--json", cwd=tmp_path)
    assert (replayed.code, replayed.json["frames"]["unread"]) == (3, lost)


def test_a_file_that_may_not_grow(busy_sim_url: str, tmp_path: Path) -> None:
    directory = tmp_path / "captures"
    args = ("capture", "--url", f"upbit={busy_sim_url}", "--capture", directory, "--json")
    with running(*args, cwd=tmp_path, prefix=[sys.executable, "-c", LIMITED]) as kcs:
        done = kcs.wait()
    assert_stopped_loudly(done.code, done.err, done.json, directory, "file size limit")
    assert all(path.stat().st_size <= FILE_SIZE_MAX for path in directory.iterdir())


def test_a_disk_too_small_to_begin(small_disk: Path, busy_sim_url: str, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(1_000_000))
    args = ("capture", "--url", f"upbit={busy_sim_url}", "--capture", small_disk / "captures", "--json")
    done = run(*args, cwd=tmp_path)
    assert (done.code, done.out) == (1, b"")
    assert "the disk is full" in done.err


def test_the_outputs_of_file_tools_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    run("sim", "--out", "big.zst", "--duration", "3s", "--rate", "2000", cwd=tmp_path)
    (small_disk / "ballast").write_bytes(bytes(1_480_000))
    for args in (("recover", "big.zst", small_disk / "out.zst"), ("export", "big.zst", "--out", small_disk / "out")):
        done = run(*args, cwd=tmp_path)
        assert done.code == 1, done.err
        assert str(small_disk) in done.err
        assert not list(small_disk.rglob("*.zst"))
        assert not list(small_disk.rglob("*.parquet"))
