"""Who takes part in a soak: the collector, started again and again, and the simulator with its log. Used by soak.py."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bench.tapes import ROOT

FAULTS = "chaos,limit_data=off,reset_peer@every:19s@50%,close_code=1012@every:29s@50%,timeout=3s@every:47s@50%"
"""Everything the simulator can do wrong, with more cuts: there must be some in the short lives of the collector."""
TEMPLATE = "soak.{channel}.{exchange}"
FILE_EVERY_S = 20


@dataclass(slots=True)
class Life:
    """One process of the collector. Wall times in ns. `how` it ended: `killed`, `stopped`, `disk` or `itself`."""

    began_ns: int
    ended_ns: int = 0
    how: str = "itself"
    code: int | None = None
    report: dict[str, Any] | None = None
    broker_was_well: bool = False
    """When it was told to stop."""
    rss_mib: list[tuple[int, float]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Collector:
    """`kcs live`, started again whenever it has ended."""

    def __init__(self, url: str, bootstrap: str, directory: Path) -> None:
        self.directory = directory
        self.lives: list[Life] = []
        self._command = [sys.executable, "-m", "kcs", "live", "--json", "--quiet", "--connections", "2"]
        self._command += ["--url", f"upbit={url}", "-b", bootstrap, "--topic", TEMPLATE, "--capture", str(directory)]
        self._command += ["--max-age", f"{FILE_EVERY_S}s", "--settle", "2s", "--drain", "5s"]
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._out = bytearray()

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("KCS_")}
        self._out = bytearray()
        self.lives.append(Life(time.time_ns()))
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._readers = [threading.Thread(target=target, daemon=True) for target in (self._read_out, self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._out += self._process.stdout.read()

    def _read_err(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.life.said.append(line.decode("utf-8", "replace").rstrip())
            del self.life.said[:-400]

    def sample(self) -> None:
        """Its memory now."""
        assert self._process is not None
        with suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            self.life.rss_mib.append((time.time_ns(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def signal(self, number: signal.Signals, how: str, *, broker_is_well: bool = False) -> None:
        assert self._process is not None
        self.life.how, self.life.broker_was_well = how, broker_is_well
        self._process.send_signal(number)

    def fill_disk(self) -> None:
        """Its files may grow no more: what a full disk does, by another errno."""
        assert self._process is not None
        self.life.how = "disk"
        largest = max((path.stat().st_size for path in self.directory.glob("*.partial")), default=0)
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (largest, hard))

    def wait(self, seconds: float) -> None:
        """Until it has ended, or is killed."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def reap(self) -> Life:
        """What became of a process that has ended."""
        assert self._process is not None
        code = self._process.wait()
        for reader in self._readers:
            reader.join()
        life = self.life
        life.ended_ns, life.code = time.time_ns(), code
        if self._out.strip():
            life.report = orjson.loads(bytes(self._out).splitlines()[-1])
        self._process = None
        return life

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Simulator:
    """`kcs sim`; its fault log is read as it grows, so that each entry has a wall time."""

    def __init__(self, seed: int, rate: int, directory: Path) -> None:
        self.log: list[tuple[int, dict[str, Any]]] = []
        self._file = directory / "faults.ndjson"
        command = [sys.executable, "-m", "kcs", "sim", "--port", "0", "--seed", str(seed), "--rate", str(rate)]
        command += ["--epoch", "now", "--faults", FAULTS, "--faults-log", str(self._file)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        if not self.url:
            raise SystemExit("the simulator did not start")
        self._read = 0

    def follow(self) -> None:
        """Take new entries of the log."""
        data = self._file.read_bytes()[self._read :]
        whole = data.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        now_ns = time.time_ns()
        self.log += [(now_ns, orjson.loads(line)) for line in whole.splitlines()]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
