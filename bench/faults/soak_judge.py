"""What a soak left behind, held against what was done to it. Called by soak.py when everything has healed.

- the topics: every record that a capture makes is there once, unchanged, in order. Asked twice: by `kcs verify
  --topic`, and by a comparison of its own that knows nothing of receipts, marks and audits.
- the venue's log: for each connection that it cut while the collector lived, a close and a gap in the captures.
- the reports of the runs: ledgers that balance, the exit codes that docs/promises.md promises, no complaint.
- memory, open receipts, captures that are not sealed.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from bench.faults.content import consumed
from bench.faults.verdict import Verdict, say
from bench.tapes import ROOT
from kcs.capture.reader import CaptureReader
from kcs.exchanges import venue
from kcs.model import FRAME_KINDS, CloseFields, GapFields, Record
from kcs.pipeline import Pipeline
from kcs.sink import POSITION, Headers
from kcs.stats import Ledger

if TYPE_CHECKING:
    from bench.faults.soak import Soak
    from bench.faults.soak_actors import Life

SECOND = 1_000_000_000
CHANNELS = ("trade", "orderbook", "ticker", "gap", "reject")
CUTS = ("reset_peer", "close_code", "overflow", "limit_data", "timeout")
"""What ends a connection; a timeout stands in the log twice, the second time when it ends."""
BY_FRAME = ("drop", "bad_json", "truncated_json")
"""What costs one frame on one connection, drawn for each connection by itself."""
NOTICED_WITHIN_S = 5
COMPLAINTS = ("Traceback", "a defect in kcs", "LedgerError", "never retrieved", "was never awaited")
RSS_MAX_MIB = 300
RSS_GROWTH_MAX_MIB = 32
SETTLED_S = 15
BEYOND_MAX_S = 0.5
"""Of records whose frames died with a killed process: a flush interval, and a slow machine's slack."""

Position = tuple[bytes, int, int]
"""(capture id, frame number, event index)"""


class _Hashes:
    """A sink that keeps a hash of each record by its position."""

    acked = failed = 0
    full = False

    def __init__(self, into: dict[Position, bytes]) -> None:
        self._into = into
        self._capture = b""

    def start(self, capture_id: bytes) -> None:
        self._capture = capture_id

    def route(self, channel: str, exchange: str, key: str) -> tuple[str, bytes]:
        return channel, key.encode()

    def emit(
        self,
        route: tuple[str, bytes],
        value: bytes,
        recv_ns: int,
        position: bytes,
        trade_id: bytes,
        headers: Headers = (),
    ) -> None:
        number, index, _ = POSITION.unpack(position)
        channel, key = route
        self._into[self._capture, number, index] = _hash(channel, key, value, recv_ns // 1_000_000)

    async def room(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...


def _hash(channel: str, key: bytes, value: bytes, timestamp_ms: int) -> bytes:
    return blake2b(b"%b|%b|%d|%b" % (channel.encode(), key, timestamp_ms, value), digest_size=12).digest()


@dataclass(slots=True)
class Held:
    """All captures of the soak: what they must become, and what is in them that the judge needs."""

    due: dict[Position, bytes] = field(default_factory=dict)
    ends: dict[bytes, int] = field(default_factory=dict)
    """Capture id -> number after its last record."""
    closes: list[Record] = field(default_factory=list)
    gaps: list[Record] = field(default_factory=list)
    frames: int = 0
    checksums: set[int] = field(default_factory=set)
    """Of all frames: which of those that the venue lost on one connection came over the other."""


def read(files: Sequence[Path]) -> Held:
    """Feed every capture through a pipeline of its own: each file stands alone."""
    held = Held()
    for path in files:
        with CaptureReader(path, strict=False) as reader:
            exchange = reader.header.exchange
            pipeline = Pipeline(exchange, venue(exchange).adapter(), _Hashes(held.due), Ledger(), digest=False)
            pipeline.start(reader.header.capture_id)
            end = 0
            for record in reader.records():
                raw = (int(record.kind), record.stream, record.recv_ns, record.payload, record.fields)
                pipeline.record((record.number, *raw))
                end = record.number + 1
                if record.kind in FRAME_KINDS:
                    held.frames += 1
                    held.checksums.add(crc32(record.payload))
                elif isinstance(record.fields, CloseFields):
                    held.closes.append(record)
                elif isinstance(record.fields, GapFields):
                    held.gaps.append(record)
            held.ends[reader.header.capture_id] = end
    return held


@dataclass(slots=True)
class Found:
    """The topics, record by record."""

    records: int = 0
    repeated: int = 0
    wrong: int = 0
    unordered: int = 0
    foreign: int = 0
    beyond: Counter[bytes] = field(default_factory=Counter)
    """Capture id -> records of frames that are in no capture: they died with the process."""


def compare(bootstrap: str, template: str, held: Held) -> tuple[Found, int]:
    """What is in Kafka, and how many records of the captures are not."""
    found, missing = Found(), dict(held.due)
    seen: set[Position] = set()
    for channel in CHANNELS:
        last: dict[tuple[int, bytes], tuple[int, int]] = {}
        for message in consumed(bootstrap, template.format(channel=channel, exchange="upbit")):
            headers = dict(message.headers() or [])
            header: Any = headers["kcs"]
            number, index, _ = POSITION.unpack(header[8:])
            capture = header[:8]
            place: Position = (capture, number, index)
            partition = (message.partition() or 0, capture)
            found.unordered += (number, index) <= last.get(partition, (-1, -1))
            last[partition] = (number, index)
            if place in seen:
                found.repeated += 1
            elif place in missing:
                key, value = message.key() or b"", message.value() or b""
                found.wrong += missing.pop(place) != _hash(channel, key, value, message.timestamp()[1])
                found.records += 1
            elif number >= held.ends.get(capture, number + 1):
                found.beyond[capture] += 1
            else:
                found.foreign += 1
            seen.add(place)
    return found, len(missing)


def verified(files: Sequence[Path], bootstrap: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and reports of `kcs verify --topic`."""
    command = [sys.executable, "-m", "kcs", "verify", "--topic", "-b", bootstrap, "--json", "--quiet", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.stderr:
        say(done.stderr.decode("utf-8", "replace")[-2000:])
    return done.returncode, [orjson.loads(line) for line in done.stdout.splitlines()]


# --- the lines of the table -------------------------------------------------------------------------------------------


def judge(soak: Soak, title: str, template: str) -> Verdict:
    """The whole table."""
    verdict = Verdict(title)
    verdict.tell("what was done", ", ".join(f"{name} {count}" for name, count in sorted(soak.done.items())))
    files = sorted(soak.collector.directory.glob("*.zst"))
    held = read(files)
    _judge_topics(verdict, soak, files, held, template)
    _judge_captures(verdict, soak, files)
    _judge_cuts(verdict, soak, held)
    _judge_lives(verdict, soak.collector.lives)
    _judge_memory(verdict, soak.collector.lives)
    return verdict


def _judge_topics(verdict: Verdict, soak: Soak, files: Sequence[Path], held: Held, template: str) -> None:
    found, missing = compare(soak.kafka.bootstrap, template, held)
    verdict.tell("frames captured, over both connections", f"{held.frames:,}")
    due = f"{len(held.due):,}"
    verdict.judge("their records in Kafka, once, unchanged", f"{found.records:,}", due, not missing and not found.wrong)
    bad = (found.repeated, found.unordered, found.foreign)
    verdict.judge("records twice / out of order / of no capture", " / ".join(map(str, bad)), "none", not any(bad))
    most = max(found.beyond.values(), default=0)
    limit = int(4 * soak.rate * BEYOND_MAX_S)
    name = "records of frames that died with a process, most of one"
    verdict.judge(name, f"{sum(found.beyond.values())}, {most}", f"< {limit} (a flush)", most < limit)
    code, reports = verified(files, soak.kafka.bootstrap)
    for report in reports:
        if not report["ok"] and not _only_died(report):
            say(f"not ok: {orjson.dumps(report).decode()[:1500]}")
    died = sum(not report["ok"] and _only_died(report) for report in reports)
    ok = sum(report["ok"] for report in reports)
    seen = f"exit {code}: {ok} ok, {died} with records beyond their ends, of {len(files)}"
    fine = ok + died == len(files) and code == (3 if died else 0)
    verdict.judge("kcs verify --topic", seen, "nothing else to find", fine)


def _only_died(report: dict[str, Any]) -> bool:
    """All that is wrong: records in Kafka of frames that a killed process had not yet written."""
    topics = report["topics"]
    own = report["sealed"] and not (report["damage"] or report["holes"] or report["miscounted"] or report["absent"])
    others = ("missing", "expired", "doubled", "misplaced", "out_of_order", "different")
    return bool(own and topics["orphans"] == topics["beyond"] and not any(topics[name] for name in others))


def _judge_captures(verdict: Verdict, soak: Soak, files: Sequence[Path]) -> None:
    verdict.judge(
        "captures without a receipt", len(soak.open_captures()), f"0 of {len(files)}", not soak.open_captures()
    )
    partial = list(soak.collector.directory.glob("*.partial"))
    verdict.judge("captures not sealed", len(partial), "0", not partial)


def _alive(lives: Iterable[Life], from_ns: int, to_ns: int) -> bool:
    """One life lasted all that time, and what it saw was not taken away by its end."""
    return any(
        life.began_ns + 3 * SECOND < from_ns and to_ns + (0 if life.how == "stopped" else SECOND) < life.ended_ns
        for life in lives
    )


def _cuts(soak: Soak) -> Iterator[tuple[int, int, str]]:
    """(from, to, fault): when each connection was cut; only those that a living collector must have seen."""
    for seen_ns, entry in soak.simulator.log:
        fault, detail = entry["fault"], entry.get("detail", "")
        if fault not in CUTS or (fault == "timeout" and not detail.startswith("closed")):
            continue
        from_ns, to_ns = seen_ns - SECOND, seen_ns + NOTICED_WITHIN_S * SECOND
        if _alive(soak.collector.lives, from_ns, to_ns) and not _frozen(soak, from_ns, to_ns):
            yield from_ns, to_ns, fault


def _frozen(soak: Soak, from_ns: int, to_ns: int) -> bool:
    return any(begin < to_ns and end > from_ns for begin, end in soak.venue_frozen)


def _judge_cuts(verdict: Verdict, soak: Soak, held: Held) -> None:
    ends = sorted((r for r in held.closes if _unplanned(r)), key=lambda record: record.recv_ns)
    cuts = list(_cuts(soak))
    unseen, without_gap = [], 0
    for from_ns, to_ns, fault in cuts:
        close = next((record for record in ends if from_ns <= record.recv_ns <= to_ns), None)
        if close is None:
            unseen.append(fault)
            continue
        ends.remove(close)
        without_gap += not any(_covers(gap, close) for gap in held.gaps)
    seen = f"{len(cuts) - len(unseen)} closes, {len(cuts) - len(unseen) - without_gap} gaps"
    verdict.judge("connections that the venue cut", seen, f"{len(cuts)} of each", not unseen and not without_gap)
    if unseen:
        say(f"no close for: {dict(Counter(unseen))}")
    lost = [
        entry["crc"]
        for seen_ns, entry in soak.simulator.log
        if entry["fault"] in BY_FRAME and _alive(soak.collector.lives, seen_ns - SECOND, seen_ns + SECOND)
    ]
    came = sum(crc in held.checksums for crc in lost)
    verdict.tell(
        "frames that the venue lost on one connection, and that the other brought", f"{came:,} of {len(lost):,}"
    )
    causes = Counter(gap.fields.cause for gap in held.gaps if isinstance(gap.fields, GapFields))
    verdict.tell("gaps in the captures", ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items())))


def _unplanned(close: Record) -> bool:
    return isinstance(close.fields, CloseFields) and close.fields.cause not in ("stop", "planned")


def _covers(gap: Record, close: Record) -> bool:
    """The gap lasts from before this close until after it: of its stream, or the whole collector's."""
    fields = gap.fields
    assert isinstance(fields, GapFields)
    whole = gap.stream == close.stream or fields.cause == "collector_down"
    return whole and fields.from_ns <= close.recv_ns <= fields.to_ns


def _judge_lives(verdict: Verdict, lives: Sequence[Life]) -> None:
    ends = Counter(f"{life.how} {life.code}" for life in lives)
    wrong = [life for life in lives if not _as_promised(life)]
    for life in wrong:
        say(f"{life.how}, exit {life.code}, {life.report and life.report['frames']}: " + "\n".join(life.said[-4:]))
    seen = ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))
    verdict.judge("ends of the collector and their exit codes", seen, "as promised", not wrong)
    reports = [life.report for life in lives if life.report is not None]
    broken = sum(not _balances(report) for report in reports)
    verdict.judge("ledgers that do not balance", broken, f"0 of {len(reports)}", not broken)
    complaints = [line for life in lives for line in life.said if any(word in line for word in COMPLAINTS)]
    for line in complaints[:5]:
        say(line)
    verdict.judge("complaints on stderr", len(complaints), "0", not complaints)
    times = sum(report["catch_ups"] or 0 for report in reports)
    verdict.tell("times that delivery fell behind and met the present, in runs that reported", times)


def _as_promised(life: Life) -> bool:
    if life.how == "killed":
        return life.code == -9
    if life.report is None:
        return False
    if life.how == "disk":
        return life.code == 1 and life.report["failed"] is not None
    frames, records = life.report["frames"], life.report["records"]
    lost = frames["behind"] + frames["uncaptured"] + (records["failed"] or 0) + (records["in_flight"] or 0)
    if life.how == "stopped":
        return life.code == (3 if lost else 0) and not (lost and life.broker_was_well)
    return False


def _balances(report: dict[str, Any]) -> bool:
    frames, records = report["frames"], report["records"]
    rejected = sum(frames["rejected"].values())
    parsed = frames["parsed"] + sum(frames["ignored"].values()) + rejected + frames["behind"]
    emitted = sum(report["events"].values()) - sum(report["suppressed"].values())
    delivered = records["acked"] + records["failed"] + records["in_flight"]
    return bool(
        frames["received"] == frames["captured"] + frames["uncaptured"]
        and frames["captured"] == parsed
        and records["produced"] == emitted + rejected == delivered
    )


def _judge_memory(verdict: Verdict, lives: Sequence[Life]) -> None:
    most = max(mib for life in lives for _, mib in life.rss_mib)
    verdict.judge("resident memory, most", f"{most:.0f} MiB", f"< {RSS_MAX_MIB} MiB", most < RSS_MAX_MIB)
    growths = []
    for life in lives:
        begin = life.began_ns + SETTLED_S * SECOND
        settled = [mib for at, mib in life.rss_mib if begin <= at < begin + 10 * SECOND]
        last = [mib for at, mib in life.rss_mib if at >= life.ended_ns - 10 * SECOND]
        if settled and last and life.ended_ns > begin + 30 * SECOND:
            growths.append(median(last) - median(settled))
    if growths:
        limit = f"< {RSS_GROWTH_MAX_MIB} MiB"
        name = f"its growth in the {len(growths)} longest lives, most"
        verdict.judge(name, f"{max(growths):+.0f} MiB", limit, max(growths) < RSS_GROWTH_MAX_MIB)
