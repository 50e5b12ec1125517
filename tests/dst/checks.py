"""What must be true of a run, whatever failed in it. Each finding begins with the name of its checker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

from kcs.capture.reader import CaptureReader
from kcs.errors import CaptureError
from kcs.kafka.batch import BatchRecord
from kcs.live.receipt import receipt_path
from kcs.model import FRAME_KINDS, GapFields, Kind
from tests.dst.broker import full_position
from tests.dst.evidence import Evidence, Findings
from tests.dst.gaps import gaps_recorded
from tests.dst.life import LifeReport
from tests.dst.replayed import Place, Replayed
from tests.dst.world import MS


def check(evidence: Evidence) -> list[str]:
    """All findings."""
    evidence.load()
    return [f"{checker.__name__}: {text}" for checker in CHECKERS for text in checker(evidence)]


def ended_well(evidence: Evidence) -> Findings:
    """The last life, in which nothing fails, has nothing left to do and exits 0."""
    last = evidence.reports[-1]
    result = last.result
    if result is None:
        yield f"the last life did not end well: {last.ended} {last.error}"
        return
    ledger = result.ledger
    refused = sum(position[:8] in last.captures for position in evidence.cluster.poisoned)
    lost = ledger.uncaptured + ledger.in_flight + ledger.unwritten + abs(ledger.failed - refused)
    if result.failure is not None or result.behind or not result.drained or ledger.behind or lost:
        yield (
            f"the last life ends with failure {result.failure}, behind {result.behind} ({ledger.behind} frames), "
            f"drained {result.drained}, in flight {ledger.in_flight}, failed {ledger.failed}"
        )


def ledger_balances(evidence: Evidence) -> Findings:
    """Of every life that lived to count; and it received what the network handed over."""
    for report in evidence.reports:
        if report.result is None:
            continue
        ledger = report.result.ledger
        for wrong in ledger.imbalances():
            yield f"life {report.number}: {wrong}"
        if ledger.received != len(report.received):
            yield f"life {report.number}: {ledger.received} frames counted, {len(report.received)} handed over"
        if report.result.behind != bool(ledger.behind) and ledger.behind:
            yield f"life {report.number}: {ledger.behind} frames behind, and the result says it is not"


def captures_readable(evidence: Evidence) -> Findings:
    """Everything is sealed and whole."""
    yield from evidence.unreadable
    for path in sorted(evidence.directory.glob("*.partial")):
        if _holds_anything(path):
            yield f"{path.name} is not sealed"
    for one in evidence.captures.values():
        yield from (f"{one.path.name}: {miscount}" for miscount in one.miscounts)


def _holds_anything(path: Path) -> bool:
    """False where the writer died in the header, or the power with it: there is nothing to seal."""
    try:
        with CaptureReader(path, strict=False) as reader:
            return bool(reader.info().records)
    except CaptureError:
        return False


def frames_captured(evidence: Evidence) -> Findings:
    """The captures of a life hold the frames that it was handed, byte for byte, from the first one on."""
    for report in evidence.reports:
        captured = [
            record for one in evidence.captures_of(report) for record in one.records if record[1] in FRAME_KINDS
        ]
        for number, (record, frame) in enumerate(zip(captured, report.received, strict=False)):
            if (record[1], record[2], record[3], record[4]) != (frame.kind, frame.stream, frame.recv_ns, frame.payload):
                yield f"life {report.number}: frame {number} in the capture is another than was received"
                break
        if len(captured) > len(report.received):
            yield f"life {report.number}: {len(captured)} frames captured, {len(report.received)} received"
        yield from _lost_frames(evidence, report, len(captured))


def _lost_frames(evidence: Evidence, report: LifeReport, captured: int) -> Findings:
    lost = report.received[captured:]
    result = report.result
    if not lost:
        return
    if result is not None and result.failure is not None:
        if result.records_lost < len(lost) - result.ledger.uncaptured:
            yield f"life {report.number}: {len(lost)} frames lost, {result.records_lost} records said to be"
        return
    if report.ended == "clean":
        yield f"life {report.number}: {len(lost)} frames are not in its captures"
        return
    cut = any(later.ended == "power cut" for later in evidence.reports[report.number :])
    if report.failed or (cut and not report.fsync):  # what was written and not synced went with the power
        return
    since = report.ended_ns - report.flush_ns - report.held_up_ns
    if report.queue_since_ns is not None:
        since = min(since, report.queue_since_ns)
    if lost[0].recv_ns < since:
        late = (report.ended_ns - lost[0].recv_ns) / MS
        yield f"life {report.number}: a frame received {late:.0f} ms before the end is lost"


def down_time_recorded(evidence: Evidence) -> Findings:
    """A life that finds captures of an earlier one says since when nothing was recorded."""
    last_ns = None
    for report in evidence.reports:
        mine = list(evidence.captures_of(report))
        frames = [r for one in mine for r in one.records if r[1] in FRAME_KINDS]
        gaps = [r[5] for one in mine for r in one.records if r[1] == Kind.GAP]
        if last_ns is not None and frames:
            first = frames[0]
            if not any(isinstance(g, GapFields) and g.cause == "collector_down" and g.to_ns <= first[3] for g in gaps):
                yield f"life {report.number}: nothing says that the collector was down"
        ends = [r[3] for one in mine for r in one.records]
        last_ns = max([*ends, *([last_ns] if last_ns is not None else [])], default=None)


def delivered_once(evidence: Evidence) -> Findings:
    """Every event of every capture is in the broker, once, in order, byte for byte what a replay makes."""
    for one in evidence.captures.values():
        for place, records in evidence.in_broker(one.capture_id):
            yield from _place(evidence, one, place, records)


def _place(evidence: Evidence, one: Replayed, place: Place, records: list[BatchRecord]) -> Findings:
    name, expected = f"{one.capture_id.hex()} on {place[0]}[{place[1]}]", one.made.get(place, {})
    found: dict[bytes, BatchRecord] = {}
    for record in records:
        found.setdefault(full_position(record), record)
    doubtful = one.capture_id in evidence.cluster.doubtful
    if not doubtful:
        if len(found) < len(records):
            yield f"{name}: {len(records) - len(found)} records doubled"
        if list(found) != sorted(found):
            yield f"{name}: out of order"
    missing = [position for position in expected if position not in found and position not in evidence.cluster.poisoned]
    if missing and evidence.must_be_delivered(one):
        yield f"{name}: {len(missing)} of {len(expected)} records missing, first frame {_frame(missing[0])}"
    for position in found.keys() - expected.keys():
        if _frame(position) < one.next_number:
            yield f"{name}: frame {_frame(position)} does not become this"
            break
    else:
        if len(found.keys() - expected.keys()) and not _may_have_lost(evidence, one):
            yield f"{name}: records beyond the end of a whole capture"
    for position, made in expected.items():
        held = found.get(position)
        if held is not None:
            there = (held.key, held.value, held.timestamp_ms, tuple(held.headers))
            if there != (made.key, made.value, made.timestamp_ms, made.headers):
                yield f"{name}: frame {_frame(position)} has other bytes than a replay makes"
                break


def _may_have_lost(evidence: Evidence, one: Replayed) -> bool:
    """Whether the end of this capture may have died with its process or its disk."""
    report = evidence.life_of(one.capture_id)
    return report is None or report.ended != "clean" or report.failed


def receipts_true(evidence: Evidence) -> Findings:
    """A receipt says what a replay says, and did not come before the last record was in the broker."""
    for one in evidence.captures.values():
        path = receipt_path(one.path)
        if not path.exists():
            continue
        evidence.world.count("receipt")
        try:
            receipt = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError:
            yield f"{path.name} cannot be read"
            continue
        whole = receipt.get("whole", True)
        if whole != one.whole:
            yield f"{path.name}: it says whole={whole}, and the capture is {'' if one.whole else 'not '}whole"
        if receipt["digest"] != (one.digest if whole else None):
            yield f"{path.name}: its digest is not that of a replay"
        counts = receipt["records"]
        refused = sum(position in made for made in one.made.values() for position in evidence.cluster.poisoned)
        told = counts["produced"], counts["acked"], counts["failed"]
        right = [
            (one.produced, one.produced - n, n) for n in (range(refused + 1) if "recovered" in receipt else (refused,))
        ]
        if told not in right:
            yield f"{path.name}: it counts {counts}, a replay makes {one.produced}, of which {refused} were refused"
        if receipt["capture"] != one.capture_id.hex():
            yield f"{path.name}: it is of another capture"
        yield from _early(evidence, one, path.name)
        yield from _places(evidence, one, receipt)


def _places(evidence: Evidence, one: Replayed, receipt: dict[str, Any]) -> Findings:
    """First and last offset of each partition, and the records of frames that died with their process."""
    orphans, places = 0, {}
    for place, records in evidence.in_broker(one.capture_id):
        log, held = evidence.cluster.log(place), {id(record) for record in records}
        offsets = [offset for offset, record in enumerate(log) if id(record) in held]
        below = [offset for offset in offsets if _frame(full_position(log[offset])) < one.end_number]
        orphans += len(offsets) - len(below)
        if below:
            places[place] = (below[0], below[-1])
    if one.capture_id in evidence.cluster.doubtful:
        return
    told = {
        (topic, int(number)): (at["first"], at["last"])
        for topic, partitions in receipt["offsets"].items()
        for number, at in partitions.items()
    }
    if told != places and not evidence.world.counts["ack without offset"]:
        yield f"{one.capture_id.hex()}: the receipt says it is at {told}, and it is at {places}"
    if receipt.get("recovered") and receipt.get("uncaptured", 0) != orphans:
        yield f"{one.capture_id.hex()}: the receipt counts {receipt.get('uncaptured', 0)} orphans, there are {orphans}"


def _early(evidence: Evidence, one: Replayed, name: str) -> Findings:
    held = evidence.receipts.get(name, {})
    for place, expected in one.made.items():
        log = evidence.cluster.log(place)[: held.get(place, 0)]
        there = {full_position(record) for record in log}
        missing = [p for p in expected if p not in there and p not in evidence.cluster.poisoned]
        if missing:
            yield f"{name}: {len(missing)} records of {place[0]}[{place[1]}] were not in the broker when it was written"


def receipts_complete(evidence: Evidence) -> Findings:
    """At the end each capture that is bound for this cluster has its receipt."""
    for one in evidence.captures.values():
        if evidence.must_be_delivered(one) and not receipt_path(one.path).exists():
            yield f"{one.path.name} has no receipt"


def _frame(position: bytes) -> int:
    return int.from_bytes(position[8:16], "big")


CHECKERS: Final[tuple[Callable[[Evidence], Findings], ...]] = (
    ended_well,
    ledger_balances,
    captures_readable,
    frames_captured,
    gaps_recorded,
    down_time_recorded,
    delivered_once,
    receipts_true,
    receipts_complete,
)
