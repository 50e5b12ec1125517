"""Is a capture whole, and does it still become what it became live? Reads every byte; knows no Kafka.

`verify` decompresses and checks every chunk, feeds every record through the pipeline, recomputes the digest, and
compares it with the receipt beside the file (written when Kafka had acknowledged all of it) or with a digest that is
given. A receipt of another record-schema version is not comparable, and that is what the report says. Used by the
command line.

Whole means: all that was captured is here. What the venue sent and kcs never got is another question, which only the
venue's protocol can answer: `proves` says by what, and `gaps` are what it and the session found. Without a sequence or
a checksum (`verifiable` False) a loss inside a connection leaves no trace, and nobody may call the capture complete.

Files of one run are one log: give them to `verify` in their order with one `Runs`, and what is missing between two of
them shows. Whether all of it is in Kafka is `kcs.verify_topics`' question; it gives `verify` the sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kcs.capture.format import CaptureHeader
from kcs.capture.framecount import EndOfStream, FrameCount, Miscount
from kcs.capture.osfile import read_small
from kcs.capture.reader import CaptureReader, Damage
from kcs.errors import CaptureError
from kcs.exchanges import venue
from kcs.live.receipt import FILE_BYTES_MAX, receipt_path
from kcs.model import Event, Gap
from kcs.pipeline import Pipeline
from kcs.sink import RECORD_SCHEMA_VERSION, NullSink, Sink
from kcs.stats import Ledger

if TYPE_CHECKING:
    from kcs.kafka.findings import TopicReport

GAPS_MAX: Final = 1000
"""Gaps that a verdict names; all are counted."""


class _Receipt(msgspec.Struct, frozen=True):
    """The fields of a receipt that verification needs. One of a capture that was mended may carry no digest."""

    digest: str | None
    record_schema: int


@dataclass(slots=True, frozen=True)
class Comparison:
    """One digest to compare with. `matches` None: not comparable, `why` says why."""

    source: str
    digest: str | None
    matches: bool | None
    why: str = ""


@dataclass(slots=True, frozen=True)
class Verdict:
    """What verification found. `holes`: records whose numbers are missing, between those that are there or at the end;
    `missing` names them, (first number, how many).

    `miscounted`: opens and closes that say another number of data frames than is there, and no hole explains it.
    `recovered` is the damage of the file that this one was saved from: what it cost is missing here too.
    `proves` and `gaps`: see the module docstring; a gap is what the venue or the line lost, no damage of the capture.
    `absent`: (first, last) sequence number of files that are between the file of this run verified before and this one.
    `end` is one past the last number that the file ever had, `first_ns` the earliest receive time in it. `topics`: what
    Kafka has of it, where that was asked.
    """

    path: Path
    capture_id: str
    exchange: str
    sealed: bool
    records: int
    holes: int
    missing: tuple[tuple[int, int], ...]
    miscounted: tuple[Miscount, ...]
    damage: tuple[dict[str, Any], ...]
    recovered: tuple[dict[str, Any], ...]
    ledger: Ledger
    digest: str
    comparisons: tuple[Comparison, ...]
    proves: tuple[str, ...]
    verifiable: bool
    gaps: tuple[Gap, ...]
    absent: tuple[int, int] | None = None
    end: int = 0
    first_ns: int | None = None
    topics: TopicReport | None = None

    @property
    def whole(self) -> bool:
        """Sealed, undamaged, all numbers and frames there, nothing lost before it was saved from a damaged file."""
        lost_before = any(one["records_lost"] != 0 for one in self.recovered)
        return self.sealed and not (self.damage or self.holes or self.miscounted or lost_before)

    @property
    def ok(self) -> bool:
        """Whole, the files before it too, no comparison failed, and what was asked of Kafka is there."""
        compared = all(c.matches is not False for c in self.comparisons)
        return self.whole and self.absent is None and compared and (self.topics is None or self.topics.ok)


class Runs:
    """Remembers how the last file of each run ended, for the next one."""

    def __init__(self) -> None:
        self._ends: dict[bytes, tuple[int, Mapping[int, EndOfStream]]] = {}

    def before(self, header: CaptureHeader) -> tuple[tuple[int, int] | None, Mapping[int, EndOfStream]]:
        """(files left out before this one, how the streams stood before it); nothing is known where some are."""
        last, ends = self._ends.get(header.run_id, (None, {}))
        if last is None or header.sequence <= last:
            return None, {}
        if header.sequence == last + 1:
            return None, ends
        return (last + 1, header.sequence - 1), {}

    def after(self, header: CaptureHeader, ends: Mapping[int, EndOfStream]) -> None:
        """This file was read to its end."""
        self._ends[header.run_id] = header.sequence, ends


def in_run_order(paths: Sequence[Path]) -> list[Path]:
    """The same files: those of one run by sequence, where the first of them stands. What cannot be opened stays."""
    place: dict[bytes, int] = {}
    keys = []
    for number, path in enumerate(paths):
        try:
            with CaptureReader(path, strict=False) as reader:
                header = reader.header
        except CaptureError:
            keys.append((number, 0, number))
        else:
            keys.append((place.setdefault(header.run_id, number), header.sequence, number))
    return [paths[number] for _, _, number in sorted(keys)]


def verify(
    path: Path,
    *,
    expected: str | None = None,
    runs: Runs | None = None,
    sink_of: Callable[[CaptureHeader], Sink] | None = None,
) -> Verdict:
    """Check one capture. Raises CaptureError when it cannot be opened at all; damage inside is part of the verdict.

    `expected` is a digest that it must have; `runs` knows the files before it; `sink_of` gives the sink that gets the
    records it makes.
    """
    ledger = Ledger()
    runs = runs or Runs()
    with CaptureReader(path, strict=False) as reader:
        exchange = reader.header.exchange
        place = venue(exchange)
        sink = NullSink() if sink_of is None else sink_of(reader.header)
        pipeline = Pipeline(exchange, place.adapter(), sink, ledger)
        gaps = _Gaps()
        pipeline.tap = gaps.take
        pipeline.start(reader.header.capture_id)
        records = end = 0
        first_ns: int | None = None
        absent, before = runs.before(reader.header)
        counted = FrameCount(before)
        for batch in reader.batches():
            counted.add(batch)
            records += len(batch)
            end = batch[-1][0] + 1
            earliest_ns = min(record[3] for record in batch)
            first_ns = earliest_ns if first_ns is None else min(first_ns, earliest_ns)
            for record in batch:
                pipeline.record(record)
        runs.after(reader.header, counted.ends(reader.holes))
        ledger.settle(ledger.produced, 0)
        ledger.check()
        digest = pipeline.digest()
        damage = tuple(reader.damage)
        summary = reader.summary()
        return Verdict(
            path=path,
            capture_id=reader.header.capture_id.hex(),
            exchange=exchange,
            sealed=reader.sealed,
            records=records,
            holes=reader.holes,
            missing=tuple(reader.missing),
            miscounted=tuple(counted.found),
            damage=_shown(damage),
            recovered=_shown(summary.recovered) if summary is not None else (),
            ledger=ledger,
            digest=digest,
            comparisons=tuple(_comparisons(path, digest, expected)),
            proves=place.proves,
            verifiable=place.verifiable,
            gaps=tuple(gaps.found),
            absent=absent,
            end=max(end, reader.next_number or 0),
            first_ns=first_ns,
        )


class _Gaps:
    """A tap that keeps gaps, up to `GAPS_MAX`."""

    def __init__(self) -> None:
        self.found: list[Gap] = []

    def take(self, event: Event, recv_ns: int, number: int, index: int) -> None:
        if type(event) is Gap and len(self.found) < GAPS_MAX:
            self.found.append(event)


def _shown(damage: Iterable[Damage]) -> tuple[dict[str, Any], ...]:
    return tuple({"offset": one.offset, "what": one.what, "records_lost": one.records_lost} for one in damage)


def _comparisons(path: Path, digest: str, expected: str | None) -> list[Comparison]:
    found = []
    if expected is not None:
        found.append(Comparison("given", expected, digest == expected.lower()))
    receipt = receipt_path(path)
    if receipt.exists():
        found.append(_with_receipt(receipt, digest))
    return found


def _with_receipt(path: Path, digest: str) -> Comparison:
    try:
        receipt = msgspec.json.decode(read_small(path, FILE_BYTES_MAX) or b"", type=_Receipt)
    except CaptureError as error:
        why = error.what.removeprefix("cannot read: ")
        raise CaptureError(f"the receipt cannot be read: {why}", where=str(path), remedy="move it away") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CaptureError(f"the receipt cannot be read: {error}", where=str(path), remedy="move it away") from None
    if receipt.record_schema != RECORD_SCHEMA_VERSION:
        why = f"written under record schema {receipt.record_schema}, this kcs makes {RECORD_SCHEMA_VERSION}"
        return Comparison(str(path), receipt.digest, None, why)
    if receipt.digest is None:
        return Comparison(str(path), None, None, "it carries no digest")
    return Comparison(str(path), receipt.digest, receipt.digest == digest)
