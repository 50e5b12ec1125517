"""`kill -9` of `kcs live` at random moments under load: is each captured event in Kafka once, in order, in the end?

    python -m bench.faults crash --times 50 --seed 1              a real Kafka of its own (Java 17, Maven); six minutes
    python -m bench.faults crash --times 50 --seed 1 -b HOST:PORT

A simulated venue sends; `kcs live` takes it into a real Kafka (three partitions a topic), is killed, started again,
and so on: some kills come while it starts, some soon after it is connected, when it seals, settles, delivers what it
finds and catches up, some when it delivers directly. Every other run rotates its file each 700 ms, so that seals are
hit too. A last run goes on until nothing is owed and ends cleanly. Then every capture is put through a pipeline of its
own and compared record by record with what the topics hold (tests/e2e/crashing.py), and `kcs verify --topic` has to say
the same. Prints a line for each crash, then the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.faults.verdict import Verdict, say
from tests.cli.processes import Done, run, sealed, simulator
from tests.e2e.crashing import Compared, Crash, Crashing, compare, owed
from tests.realkafka import KafkaUnavailable, RealKafka

VERIFY_S = 300.0
FINISH_S = 300.0


@contextmanager
def _kafka(bootstrap: str | None) -> Iterator[str]:
    """The broker that is named, or one of our own."""
    if bootstrap is not None:
        yield bootstrap
        return
    with RealKafka() as kafka:
        yield kafka.bootstrap


def _crash(crashing: Crashing, times: int) -> list[Crash]:
    say(f"{'':>4}  {'killed':<22}  {'sealed':>6} {'partial':>7} {'owed':>5}  the last it said")
    crashes = []
    for number in range(1, times + 1):
        crash = crashing.crash()
        crashes.append(crash)
        moment = f"{crash.after_s:.2f} s after {crash.moment}"
        kind = " (rotating)" if crash.rotating else ""
        say(
            f"{number:>4}  {moment:<22}  {crash.sealed:>6} {crash.partials:>7} {crash.owed:>5}  {crash.said[:90]}{kind}"
        )
    return crashes


def _verified(crashing: Crashing, bootstrap: str, cwd: Path) -> tuple[int, Counter[str]]:
    """How many captures `kcs verify --topic` looked at, and the sum of what it found."""
    args = ("verify", "--topic", "-b", bootstrap, "--json", *sealed(crashing.captures))
    done = run(*args, cwd=cwd, within_s=VERIFY_S)
    found: Counter[str] = Counter()
    verdicts: list[dict[str, Any]] = [json.loads(line) for line in done.out.splitlines()]
    for verdict in verdicts:
        topics = verdict["topics"]
        for name in ("expected", "present", "missing", "expired", "doubled", "misplaced", "out_of_order", "different"):
            found[name] += topics[name]
        found["beyond"] += topics["beyond"]
        found["not whole"] += bool(verdict["damage"] or verdict["holes"])
    return len(verdicts), found


def _judge(verdict: Verdict, crashes: Sequence[Crash], done: Done, found: Compared, left: int) -> None:
    moments = Counter(crash.moment for crash in crashes)
    verdict.tell("crashes", ", ".join(f"{count} after {moment}" for moment, count in sorted(moments.items())))
    verdict.tell("captures", f"{found.captures:,} with {found.frames:,} frames")
    verdict.judge("captures that are owed", left, "0", left == 0)
    verdict.judge("the last run's exit code", done.code, "0", done.code == 0)
    verdict.judge("captured events", f"{found.events:,}", "some", found.events > 0)
    verdict.judge("of them in Kafka", f"{found.found:,}", "all", found.found == found.events)
    verdict.judge("missing", found.missing, "0", found.missing == 0)
    verdict.judge("doubled", found.doubled, "0", found.doubled == 0)
    verdict.judge("partitions out of order", found.misplaced, "0", found.misplaced == 0)
    verdict.judge("anything else", "; ".join(found.wrong) or "nothing", "nothing", found.clean)
    verdict.tell("records of captures whose file was never made", f"{found.absent:,}")
    verdict.tell(
        "records of frames that died unwritten", f"{found.orphans:,} ({found.orphans / len(crashes):,.1f} a crash)"
    )


def _judge_verify(verdict: Verdict, captures: int, found: Counter[str], compared: Compared) -> None:
    verdict.judge("kcs verify --topic: captures", captures, str(compared.captures), captures == compared.captures)
    same = (found["expected"], found["present"]) == (compared.events, compared.events)
    verdict.judge("kcs verify --topic: positions present", f"{found['present']:,}", f"{compared.events:,}", same)
    faults = {name: found[name] for name in ("missing", "expired", "doubled", "misplaced", "out_of_order", "different")}
    bad = ", ".join(f"{count} {name}" for name, count in faults.items() if count)
    verdict.judge("kcs verify --topic: faults", bad or "none", "none", not bad)
    beyond = found["beyond"]
    verdict.judge("kcs verify --topic: beyond the end", beyond, f"{compared.orphans:,}", beyond == compared.orphans)


def main(argv: Sequence[str]) -> int:
    """The command; the result is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults crash", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=2_000, help="frames a second that the venue sends")
    parser.add_argument("--settle", default="300ms", help="kcs live --settle; its default is 5s")
    parser.add_argument("-b", "--bootstrap", help="a Kafka that is there; else one of our own is started")
    options = parser.parse_args(argv)
    verdict = Verdict(f"kill -9, {options.times} times at {options.rate:,} frames/s, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="kcs-crash-") as scratch:
        cwd = Path(scratch)
        try:
            with _kafka(options.bootstrap) as bootstrap:
                with simulator(cwd, "--rate", options.rate, "--seed", options.seed) as url:
                    crashing = Crashing(url, bootstrap, cwd, seed=options.seed, settle=options.settle)
                    crashes = _crash(crashing, options.times)
                    done = crashing.finish(FINISH_S)
                say("comparing what was captured with what the topics hold")
                found = compare(crashing.captures, bootstrap, crashing.template)
                _judge(verdict, crashes, done, found, len(owed(crashing.captures)))
                _judge_verify(verdict, *_verified(crashing, bootstrap, cwd), found)
        except KafkaUnavailable as error:
            say(f"no real Kafka: {error}")
            return 2
    return verdict.show()
