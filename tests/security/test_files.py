"""Files that kcs makes are for owner and group, directories too, and a link that somebody planted leads nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kcs.capture.leftover import seal_in_place
from kcs.capture.ndjson import import_ndjson
from kcs.capture.recover import recover, repack
from kcs.errors import CaptureError, CaptureWriteError
from kcs.live.receipt import DeliveryInfo, delivery_path, receipt_path, write_delivery, write_receipt
from tests.capture import making as captures
from tests.cli.processes import environment, run, running, simulator

PRECIOUS = b"somebody else's"


@pytest.mark.parametrize(("mask", "file", "directory"), [(0o022, 0o640, 0o750), (0o077, 0o600, 0o700)])
def test_all_that_the_verbs_make_is_for_owner_and_group(tmp_path: Path, mask: int, file: int, directory: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    under = ["/bin/sh", "-c", f'umask {mask:04o}; exec "$@"', "sh"]

    def verb(*args: object) -> None:
        with running(*args, cwd=home, prefix=under) as kcs:
            done = kcs.wait()
        assert done.code == 0, done.err

    with simulator(tmp_path, "--rate", "200") as url:
        verb("capture", "--url", f"upbit={url}", "--capture", "deep/captures", "--duration", "1s", "--max-age", "300ms")
    (first, *_) = sorted((home / "deep" / "captures").glob("*.zst"))
    verb("recover", first, "recovered.zst")
    verb("repack", "recovered.zst")
    verb("sim", "--duration", "1s", "--out", "tape.zst")
    verb("export", first, "--out", "data/set")
    (home / "in.jsonl").write_bytes(run("cat", "--json", first, cwd=home).out)
    (home / "in.jsonl").chmod(file)
    verb("import", "--exchange", "upbit", "in.jsonl", "imported.zst")
    made = sorted(home.rglob("*"))
    assert {path.suffix for path in made if path.is_file()} >= {".zst", ".parquet", ".lock"}
    for path in made:
        assert path.stat().st_mode & 0o7777 == (directory if path.is_dir() else file), path


def test_the_unsealed_file_of_a_running_collector_is_no_wider(tmp_path: Path) -> None:
    target = captures.writer(tmp_path / "new")
    assert target.path.stat().st_mode & 0o7777 & ~0o640 == 0
    target.close(captures.START_NS)


@dataclass(frozen=True, slots=True)
class State:
    """One record, acknowledged."""

    produced: int = 1
    acked: int = 1
    failed: int = 0
    offsets: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=lambda: {"trade.upbit": {0: (0, 0)}})


def info() -> DeliveryInfo:
    return DeliveryInfo("cluster", "{channel}.{exchange}", True, {"trade.upbit": 1}, lambda capture_id: State())


def beside(capture: Path) -> tuple[Path, Path]:
    """Write delivery file and receipt."""
    return (
        write_delivery(capture, b"\0" * 8, info()),
        write_receipt(capture, b"\0" * 8, "00" * 32, info(), State()),
    )


def test_delivery_file_and_receipt_are_for_owner_and_group(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        paths = beside(tmp_path / "a.zst")
    finally:
        os.umask(before)
    for path in paths:
        assert path.stat().st_mode & 0o7777 == 0o640


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(PRECIOUS)
    return path


def test_links_in_the_place_of_delivery_file_receipt_and_their_temporary_files(tmp_path: Path, victim: Path) -> None:
    capture = tmp_path / "a.zst"
    for path in (delivery_path(capture), receipt_path(capture)):
        path.symlink_to(victim)
        path.with_name(path.name + ".tmp").symlink_to(victim)
    for path in beside(capture):
        assert not path.is_symlink()
    assert victim.read_bytes() == PRECIOUS


def test_links_in_the_place_of_a_lock_a_partial_and_a_temporary_file(tmp_path: Path, victim: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".upbit.lock").symlink_to(victim)
    with pytest.raises(CaptureWriteError, match="symbolic link"):
        captures.writer(home)
    (home / ".upbit.lock").unlink()
    target = captures.writer(home)
    name = target.path.name
    target.close(captures.START_NS)
    for path in home.glob("*.zst"):
        path.unlink()
    (home / name).symlink_to(victim)
    with pytest.raises(CaptureWriteError, match="exists already"):
        captures.writer(home)
    with pytest.raises(CaptureError):
        seal_in_place(home / name)
    assert victim.read_bytes() == PRECIOUS


def recovering(source: Path, target: Path) -> None:
    recover(source, target)


def importing(source: Path, target: Path) -> None:
    import_ndjson([b'{"recv_ns":1,"kind":"text","payload":"x"}'], target, "upbit", kcs_version="0")


def repacking(source: Path, target: Path) -> None:
    os.link(source, target)
    repack(target)


@pytest.mark.parametrize("tool", [recovering, importing, repacking])
def test_a_link_in_the_place_of_a_tools_temporary_file(
    tmp_path: Path, victim: Path, tool: Callable[[Path, Path], None]
) -> None:
    source = captures.make(tmp_path / "in")
    target = tmp_path / "out.zst"
    target.with_name("out.zst.tmp").symlink_to(victim)
    with pytest.raises(CaptureWriteError, match="symbolic link"):
        tool(source, target)
    assert victim.read_bytes() == PRECIOUS


def test_a_tool_that_is_forced_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path, victim: Path) -> None:
    source = captures.make(tmp_path / "in")
    target = tmp_path / "out.zst"
    target.symlink_to(victim)
    with pytest.raises(CaptureWriteError, match="exists already"):
        recover(source, target)
    recover(source, target, force=True)
    assert not target.is_symlink()
    assert victim.read_bytes() == PRECIOUS


def test_a_tape_is_not_written_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "tape.zst").symlink_to(victim)
    for flags in ((), ("--force",)):
        done = run("sim", "--duration", "1s", "--out", "tape.zst", *flags, cwd=tmp_path, **environment())
        assert victim.read_bytes() == PRECIOUS, (flags, done.err)
