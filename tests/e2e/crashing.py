"""`kcs live` under load on a real Kafka, killed again and again, and the comparison of captures with topics afterwards.

    with simulator(...) as url:
        crashing = Crashing(url, bootstrap, directory, seed=1)
        for _ in range(5):
            crash = crashing.crash()        # start, wait for a random moment, kill -9
        done = crashing.finish()            # start once more, until nothing is owed, then end it cleanly
        found = compare(crashing.captures, bootstrap, crashing.template)
        assert found.clean

Used by `tests/e2e/test_crash.py` and `bench/faults/crash.py`. What must be in the topics is made from the captures by a
pipeline of its own (`tests.broker.made_by`); nothing here uses what kcs counts itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kcs.capture.reader import CaptureReader
from kcs.kafka import topics
from kcs.kafka.partition import partition_of
from kcs.kafka.settings import KafkaSettings
from kcs.live.receipt import read_receipt
from kcs.sink import POSITION
from tests.broker import made_by
from tests.cli.processes import Done, Kcs, partials, running, sealed, wait_for
from tests.e2e.rig import fresh_template

CHANNELS = ("trade", "orderbook", "ticker", "gap", "reject")
PARTITIONS = 3
MOMENTS = {"started": (0.3, 2.0), "connected": (0.0, 3.5), "caught up": (0.0, 1.5)}
"""What a kill is counted from, and how many seconds later it comes: from, to."""
CHANCES = (0.15, 0.45, 0.4)
CATCH_UP_S = 60.0
ROTATED_AGE = "700ms"

Place = tuple[str, int]
Entry = tuple[int, int, bytes, bytes]
"""(frame number, event index, key, value)"""


@dataclass(frozen=True, slots=True)
class Crash:
    """One `kill -9`, `after_s` after a `moment` (see `MOMENTS`).

    `owed`: delivery files without a receipt afterwards; `said`: the last thing that was on stderr.
    """

    moment: str
    after_s: float
    rotating: bool
    sealed: int
    partials: int
    owed: int
    said: str


class Crashing:
    """The runs of one directory. Every other one rotates its files quickly, so that seals are hit too."""

    def __init__(self, url: str, bootstrap: str, cwd: Path, *, seed: int, settle: str = "300ms") -> None:
        self.captures = cwd / "captures"
        self.template = fresh_template("crash")
        self._cwd = cwd
        self._random = random.Random(seed)
        self._args: list[object] = [
            *("live", "--url", f"upbit={url}", "--capture", self.captures, "-b", bootstrap, "--topic", self.template),
            *("--partitions", PARTITIONS, "--settle", settle),
        ]
        self._runs = 0

    def crash(self) -> Crash:
        """Start it, kill it at a random moment."""
        (moment,) = self._random.choices(tuple(MOMENTS), CHANCES)
        after_s = self._random.uniform(*MOMENTS[moment])
        rotating = self._runs % 2 == 1
        self._runs += 1
        with running(*self._args, *(("--max-age", ROTATED_AGE) if rotating else ()), cwd=self._cwd) as kcs:
            if moment != "started":
                kcs.wait_said("connected to")
            if moment == "caught up":
                wait_for(lambda: len(owed(self.captures)) <= 2 or not kcs.running, "the rest", CATCH_UP_S)
            began_s = time.monotonic()
            wait_for(lambda: time.monotonic() - began_s >= after_s or not kcs.running, "the moment to kill")
            assert kcs.running, kcs.err
            kcs.kill()
        check_talk(kcs)
        lines = [line for line in kcs.err.splitlines() if line.startswith("kcs: upbit: ")]
        said = lines[-1].removeprefix("kcs: upbit: ") if lines else "(started)"
        return Crash(
            moment,
            after_s,
            rotating,
            len(sealed(self.captures)),
            len(unsealed(self.captures)),
            len(owed(self.captures)),
            said,
        )

    def finish(self, within_s: float = 60.0) -> Done:
        """Run once more until only its own capture is owed, then end it; the report."""
        with running(*self._args, "--json", cwd=self._cwd) as kcs:
            kcs.wait_said("connected to")
            wait_for(lambda: self._own(kcs) == 1, "everything to be delivered", within_s)
            time.sleep(0.5)  # some more frames, straight into Kafka
            kcs.send(signal.SIGTERM)
            return kcs.wait(within_s)

    def _own(self, kcs: Kcs) -> int:
        """Captures that are owed, once the new run has one."""
        assert kcs.running, kcs.err
        return len(owed(self.captures)) if len(unsealed(self.captures)) == 1 else 0


def check_talk(kcs: Kcs) -> None:
    """A process that was killed must not have been in trouble before."""
    for trouble in ("Traceback", "Warning:", "never awaited", "not delivered", "defect"):
        assert trouble not in kcs.err, kcs.err


def unsealed(directory: Path) -> list[Path]:
    """The `.partial` files, but not those of a run that died before it wrote a byte."""
    return [path for path in partials(directory) if path.stat().st_size]


def owed(directory: Path) -> list[Path]:
    """The delivery files without a receipt."""
    return [path for path in sorted(directory.glob("*.delivery.json")) if not _receipt(path).exists()]


def _receipt(delivery: Path) -> Path:
    return delivery.with_name(delivery.name.replace(".delivery.", ".receipt."))


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Compared:
    """Captures against topics. `orphans`: records beyond the end of their capture, each of a frame that died.

    `absent`: the same of captures whose run died before their file was made; a receipt has to say how many.

    `wrong`: everything that must not be, the first few in words.
    """

    captures: int = 0
    frames: int = 0
    events: int = 0
    found: int = 0
    orphans: int = 0
    absent: int = 0
    missing: int = 0
    doubled: int = 0
    misplaced: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Each captured event exactly once, as the capture makes it, in order."""
        return not self.wrong

    def say(self, text: str) -> None:
        self.wrong.append(text) if len(self.wrong) < 10 else None


def compare(directory: Path, bootstrap: str, template: str) -> Compared:
    """Read everything back and compare. All captures must be sealed and have their receipts."""
    result = Compared()
    if unsealed(directory):
        result.say(f"not sealed: {[path.name for path in unsealed(directory)]}")
    ordered = in_order(sealed(directory))
    held = asyncio.run(_held(bootstrap, template))
    counts = asyncio.run(topics.partition_counts(KafkaSettings(bootstrap), _names(template)))
    for path in ordered:
        _compare_one(result, path, held, counts, template)
    _compare_absent(result, directory, {_id(path) for path in ordered}, held)
    _compare_order(result, ordered, held)
    return result


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Oldest first."""

    def key(path: Path) -> tuple[int, int]:
        with CaptureReader(path) as reader:
            return reader.header.created_ns, reader.header.sequence

    return sorted(paths, key=key)


def _id(path: Path) -> bytes:
    with CaptureReader(path) as reader:
        return reader.header.capture_id


def _names(template: str) -> list[str]:
    return [template.format(channel=channel, exchange="upbit") for channel in CHANNELS]


Held = dict[Place, dict[bytes, list[tuple[int, Entry]]]]
"""place -> capture id -> (offset, entry), in offset order"""


async def _held(bootstrap: str, template: str) -> Held:
    found: Held = defaultdict(lambda: defaultdict(list))
    async for record in topics.read_topics(KafkaSettings(bootstrap), _names(template)):
        header = dict(record.headers)["kcs"]
        number, index, _ = POSITION.unpack(header[8:])
        entry = (number, index, record.key or b"", record.value or b"")
        found[record.topic, record.partition][header[:8]].append((record.offset, entry))
    return found


def _compare_one(result: Compared, path: Path, held: Held, counts: dict[str, int], template: str) -> None:
    with CaptureReader(path) as reader:
        info, end, capture = reader.info(), reader.next_number or 0, reader.header.capture_id
    expected: dict[Place, list[Entry]] = defaultdict(list)
    for topic, key, value, header in made_by(path, counts, template):
        number, index, _ = POSITION.unpack(header[8:])
        expected[topic, partition_of(key, counts[topic])].append((number, index, key, value))
    result.captures += 1
    result.frames += info.frames
    orphans = 0
    for place in expected.keys() | {place for place, by_capture in held.items() if capture in by_capture}:
        all_of_it = [entry for _, entry in held.get(place, {}).get(capture, [])]
        there = [entry for entry in all_of_it if entry[0] < end]
        beyond = len(all_of_it) - len(there)
        orphans += beyond
        result.events += len(expected[place])
        result.found += len(there)
        if there != expected[place]:
            wanted, found = Counter(expected[place]), Counter(there)
            missing, extra = (wanted - found).total(), (found - wanted).total()
            result.missing += missing
            result.doubled += extra
            result.misplaced += not missing and not extra
            result.say(
                f"{path.name} {place}: {missing} missing, {extra} doubled or different, of {len(expected[place])}"
            )
    result.orphans += orphans
    _compare_receipt(result, path, sum(map(len, expected.values())), orphans)


def _compare_receipt(result: Compared, path: Path, events: int, orphans: int) -> None:
    receipt = read_receipt(path)
    if receipt is None:
        result.say(f"{path.name} has no receipt")
    elif (receipt.records.acked, receipt.uncaptured, receipt.whole) != (events, orphans, True):
        told = f"{receipt.records.acked} acked, {receipt.uncaptured} uncaptured, whole: {receipt.whole}"
        result.say(f"{path.name}: its receipt says {told}; there are {events} and {orphans}")


def _compare_absent(result: Compared, directory: Path, known: set[bytes], held: Held) -> None:
    """Records of captures that are not there, as their receipts count them."""
    there: Counter[bytes] = Counter()
    for by_capture in held.values():
        there.update({capture: len(entries) for capture, entries in by_capture.items() if capture not in known})
    told: Counter[bytes] = Counter()
    for path in directory.glob("*.receipt.json"):
        receipt = read_receipt(path.with_name(path.name.removesuffix(".receipt.json")))
        if receipt is not None and receipt.absent:
            told[bytes.fromhex(receipt.capture)] = receipt.uncaptured
    result.absent = there.total()
    if there != told:
        result.say(f"of captures that are not there: {dict(there)} records, receipts say {dict(told)}")


def _compare_order(result: Compared, ordered: Sequence[Path], held: Held) -> None:
    """On each partition the captures follow one another, oldest first, each in order of its positions."""
    rank = {_id(path): number for number, path in enumerate(ordered)}  # captures that are not there have no rank
    for place, by_capture in held.items():
        entries = sorted(
            (offset, rank[capture], entry[:2])
            for capture, of in by_capture.items()
            if capture in rank
            for offset, entry in of
        )
        positions = [(number, position) for _, number, position in entries]
        if positions != sorted(positions):
            result.misplaced += 1
            result.say(f"{place}: records are not in the order of the captures and of their frames")
