"""Everything at once, for as long as you like: a venue that misbehaves, a broker that stops, a full disk, kill -9.

    python -m bench.faults soak --minutes 10 --seed 7           needs Java 17

`kcs sim` with faults, a real Kafka and `kcs live` on two connections, with a new file every 20 s; a timetable
drawn from the seed freezes, kills and restarts the broker, kills the collector, stops it in good order, takes its disk
away (a limit on the size of its files) and freezes the venue, one line each as it happens. Whenever the collector has
ended it is started again on the same directory. In the end everything is healed and must heal: soak_judge.py holds the
captures, the topics, the simulator's own log of what it did, and every report and exit code against each other.

The venue's faults are a function of the seed and its own time, the timetable of the seed; what meets what is not.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from bench.faults.soak_actors import TEMPLATE, Collector, Simulator
from bench.faults.soak_judge import judge
from bench.faults.verdict import say
from tests.realkafka import KafkaUnavailable, RealKafka

QUIET_S = 8.0
"""At the start and before the end nothing is done."""
HEAL_WITHIN_S = 240.0
LOOK_EVERY_S = 0.2

Action = Callable[[], object]
"""Returns False when there was nothing to do it to."""


class Soak:
    """The run: who there is, what is due, what has been done."""

    def __init__(self, args: argparse.Namespace, directory: Path, kafka: RealKafka) -> None:
        self.kafka = kafka
        self.simulator = Simulator(args.seed, args.rate, directory)
        captures = directory / "captures"
        captures.mkdir()
        self.collector = Collector(self.simulator.url, kafka.bootstrap, captures)
        self.seconds = args.minutes * 60
        self.rate = args.rate
        self.done: dict[str, int] = {}
        self._rng = Random(args.seed)
        self._began = time.monotonic()
        self._due: list[tuple[float, str, Action]] = []
        self._broker_well_since = self._began
        self._broker_down = False
        self._venue_frozen: list[tuple[int, int]] = []
        self._restart_at: float | None = 0.0

    @property
    def venue_frozen(self) -> list[tuple[int, int]]:
        """Wall times (from, to) in ns."""
        return self._venue_frozen

    def at(self) -> float:
        return time.monotonic() - self._began

    def tell(self, text: str) -> None:
        say(f"[{self.at():7.1f} s] {text}")

    # The timetable.

    def plan(self) -> None:
        """What happens when: one thing about every thirteen seconds, some of them while another lasts."""
        rng, at = self._rng, QUIET_S
        kinds = {
            "broker frozen": (3, self._freeze_broker),
            "broker killed": (2, self._kill_broker),
            "collector killed": (4, self._kill_collector),
            "collector stopped": (2, self._stop_collector),
            "disk full": (1, self._fill_disk),
            "venue frozen": (2, self._freeze_venue),
        }
        names, weights = list(kinds), [weight for weight, _ in kinds.values()]
        while at < self.seconds - QUIET_S:
            (name,) = rng.choices(names, weights)
            self._due.append((at, name, kinds[name][1]))
            at += rng.uniform(3, 24)
        self._due.sort(key=lambda due: due[0])

    def _later(self, seconds: float, action: Action) -> bool:
        self._due.append((self.at() + seconds, "", action))
        self._due.sort(key=lambda due: due[0])
        return True

    def _freeze_broker(self) -> bool:
        if self._broker_down:
            return False
        seconds = self._rng.uniform(1, 12)
        self._broker_down = True
        self.kafka.pause()
        self.tell(f"broker frozen for {seconds:.1f} s")

        def end() -> None:
            self.kafka.unpause()
            self._broker_back("broker goes on")

        return self._later(seconds, end)

    def _kill_broker(self) -> bool:
        if self._broker_down:
            return False
        seconds = self._rng.uniform(0.5, 8)
        self._broker_down = True
        self.kafka.kill()
        self.tell(f"broker killed, back in {seconds:.1f} s")

        def end() -> None:
            self.kafka.resume()
            self._broker_back("broker started again")

        return self._later(seconds, end)

    def _broker_back(self, text: str) -> None:
        self._broker_down = False
        self._broker_well_since = time.monotonic()
        self.tell(text)

    def _kill_collector(self) -> bool:
        if not self.collector.running:
            return False
        self.collector.signal(signal.SIGKILL, "killed")
        self.tell("collector killed")
        return True

    def _stop_collector(self) -> bool:
        if not self._grown_up():
            return False
        well = not self._broker_down and time.monotonic() - self._broker_well_since > 20
        self.collector.signal(signal.SIGTERM, "stopped", broker_is_well=well)
        self.tell("collector asked to stop")
        return True

    def _grown_up(self) -> bool:
        """It runs, and is past its start: a process without its signal handlers can promise nothing."""
        return self.collector.running and time.time_ns() - self.collector.life.began_ns > 3_000_000_000

    def _fill_disk(self) -> bool:
        if not self._grown_up():
            return False
        self.collector.fill_disk()
        self.tell("disk full")
        return True

    def _freeze_venue(self) -> bool:
        seconds = self._rng.uniform(1, 6)
        began_ns = time.time_ns()
        self.simulator.signal(signal.SIGSTOP)
        self.tell(f"venue frozen for {seconds:.1f} s")

        def end() -> None:
            self.simulator.signal(signal.SIGCONT)
            self._venue_frozen.append((began_ns, time.time_ns()))

        return self._later(seconds, end)

    # The run.

    def run(self) -> None:
        """The timetable, then healing. Raises SystemExit when it does not heal."""
        self.plan()
        while self.at() < self.seconds or self._due:
            while self._due and self._due[0][0] <= self.at():
                _, name, action = self._due.pop(0)
                if action() is not False and name:
                    self.done[name] = self.done.get(name, 0) + 1
            self._look()
        self.tell("healing")
        self._heal()

    def _look(self) -> None:
        """A collector that has ended is reaped, and started again a little later."""
        collector = self.collector
        if collector.running:
            collector.sample()
        elif self._restart_at is None:
            life = collector.reap()
            self._restart_at = self.at() + self._rng.choice((0.0, 0.5, 3.0))
            self.tell(f"collector ended ({life.how}) with {life.code}")
            if life.how == "itself":
                say("\n".join(life.said[-5:]))
        elif self.at() >= self._restart_at:
            self._restart_at = None
            collector.start()
        self.simulator.follow()
        time.sleep(LOOK_EVERY_S)

    def _heal(self) -> None:
        """Until the collector lives undisturbed and all but the file it writes is delivered; then a clean stop."""
        until = self.at() + HEAL_WITHIN_S
        calm_from = self.at() + QUIET_S
        while self.at() < until:
            self._look()
            if self.collector.running and self.at() > calm_from and not self.open_captures():
                break
        self.tell(f"healed, {len(self.open_captures())} captures without a receipt")
        if not self.collector.running:
            raise SystemExit("the collector does not stay alive")
        self.collector.signal(signal.SIGTERM, "stopped", broker_is_well=True)
        self.collector.wait(60)
        self.simulator.follow()
        self.tell(f"collector ended (stopped) with {self.collector.reap().code}")

    def open_captures(self) -> list[Path]:
        """Sealed captures without a receipt."""
        sealed = sorted(self.collector.directory.glob("*.zst"))
        return [path for path in sealed if not path.with_name(f"{path.stem}.receipt.json").exists()]

    def end(self) -> None:
        self.collector.kill()
        self.simulator.kill()


@contextmanager
def workshop(keep: Path | None) -> Iterator[Path]:
    """The directory to work in."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    directory = Path(tempfile.mkdtemp(prefix="kcs-soak-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    """The whole run; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=int, default=500, help="frames a second of the venue, for each connection")
    parser.add_argument("--keep", type=Path, help="a new directory for captures and logs, kept")
    args = parser.parse_args(argv)
    try:
        kafka = RealKafka().start()
    except KafkaUnavailable as error:
        raise SystemExit(f"a soak needs a real Kafka: {error}") from None
    with kafka, workshop(args.keep) as directory:
        soak = Soak(args, directory, kafka)
        try:
            soak.run()
            title = f"soak: {args.minutes:g} min, seed {args.seed}, {args.rate:,} frames/s on each of 2 connections"
            return judge(soak, title, TEMPLATE).show()
        finally:
            soak.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
