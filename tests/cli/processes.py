"""`kcs` as users run it: in a process of its own, its two streams read as they come; or called in this process.

Nothing here sleeps for a fixed time: what is waited for is looked at until it is there or a deadline has passed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kcs.capture.reader import CaptureReader
from kcs.errors import NotACaptureError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
_LOOK_EVERY_S = 0.01

T = TypeVar("T")


def wait_for(look: Callable[[], T | None], what: str, within_s: float = DEADLINE_S) -> T:
    """The first true value that `look` returns."""
    ends = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < ends, f"waited {within_s:g} s for {what}"
        time.sleep(_LOOK_EVERY_S)
    return found


def environment(**extra: str) -> dict[str, str]:
    """This environment without any KCS_* setting or proxy, so that `kcs` runs on what the test says."""
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KCS_") and k.lower() not in proxies}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **extra}


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count(b"\n") == 1, self.out
        return json.loads(self.out)


class Kcs:
    """A running `kcs`."""

    def __init__(self, *args: object, cwd: Path, prefix: Sequence[str] = (), **env: str) -> None:
        self.args = [str(arg) for arg in args]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "kcs", *self.args],
            cwd=cwd,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the tests is not for it
        )
        self._out, self._err = bytearray(), bytearray()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._out)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._err)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, into: bytearray) -> None:
        while data := stream.read1(65536):
            into += data
        stream.close()

    @property
    def err(self) -> str:
        return self._err.decode("utf-8", "replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_said(self, text: str) -> None:
        """Until `text` stands on stderr."""
        wait_for(lambda: text in self.err or not self.running, f"{text!r} from {self.args}; it said {self.err!r}")
        assert text in self.err, self.err

    def first_line(self) -> str:
        """The first line on stdout."""
        line = wait_for(lambda: self._out.partition(b"\n")[1] or not self.running, f"a line from {self.args}")
        assert line, self.err
        return self._out.partition(b"\n")[0].decode()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = DEADLINE_S) -> Done:
        """Its end. A traceback, a warning or a complaint of the interpreter is a failure whatever the exit code."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.args} did not end within {within_s:g} s; it said {self.err!r}") from None
        for reader in self._readers:
            reader.join()
        done = Done(code, bytes(self._out), self.err)
        for trouble in ("Traceback", "Warning:", "Exception ignored", "was never awaited", "never retrieved"):
            assert trouble not in done.err, done.err
        return done

    def kill(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()


@contextmanager
def running(*args: object, cwd: Path, prefix: Sequence[str] = (), **env: str) -> Iterator[Kcs]:
    """`kcs ARGS` for the length of the block; killed at its end if it is still there."""
    kcs = Kcs(*args, cwd=cwd, prefix=prefix, **env)
    try:
        yield kcs
    finally:
        kcs.kill()


def run(*args: object, cwd: Path, within_s: float = DEADLINE_S, **env: str) -> Done:
    """`kcs ARGS` to its end."""
    with running(*args, cwd=cwd, **env) as kcs:
        return kcs.wait(within_s)


@contextmanager
def simulator(cwd: Path, *args: object) -> Iterator[str]:
    """A simulated Upbit in a process of its own; its URL."""
    with running("sim", "--port", "0", "--epoch", "now", *args, cwd=cwd) as sim:
        yield sim.first_line()
        sim.send(signal.SIGTERM)
        sim.wait()


def partials(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.zst.partial"))


def sealed(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.zst"))


def wait_frames(kcs: Kcs, directory: Path, frames: int = 1) -> None:
    """Until so many data frames of the newest capture are on disk."""

    def there() -> bool:
        assert kcs.running, kcs.err
        for path in partials(directory)[-1:]:
            with suppress(NotACaptureError), CaptureReader(path, strict=False) as reader:  # empty: just created
                return sum(record.kind.name in ("TEXT", "BINARY") for record in reader.records()) >= frames
        return False

    wait_for(there, f"{frames} frames in {directory}")


def balanced(report: dict[str, Any]) -> None:
    """The ledger's equations, on the printed report."""
    frames, records = report["frames"], report["records"]
    rejected = sum(frames["rejected"].values())
    assert frames["received"] == frames["captured"] + frames["uncaptured"]
    assert frames["captured"] == frames["parsed"] + sum(frames["ignored"].values()) + rejected + frames["behind"]
    emitted = sum(report["events"].values()) - sum(report["suppressed"].values())
    assert records["produced"] == emitted + rejected
    delivered = (records["acked"], records["failed"], records["in_flight"])
    if delivered == (None, None, None):  # the null sink
        assert report["verb"] in ("capture", "replay")
    else:
        assert records["produced"] == sum(delivered)
