"""One function a target: bytes in; returns, or raises because kcs did what it must not do.

A target may meet the errors that its code promises (`kcs.errors`, verdicts of a parser); anything else that is raised
is a finding, and so is a broken promise that is checked here (what was recovered reads back, what is parsed the fast
way is parsed the thorough way...). Deterministic, no clock, no network; files only in a directory of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from fuzz.forge import CAPTURE_ID, START_NS, forge, instructions
from fuzz.peer import converse
from kcs.capture.format import Malformed, Newer
from kcs.capture.leftover import seal_in_place
from kcs.capture.ndjson import import_ndjson, read_lines, to_ndjson
from kcs.capture.reader import CaptureReader
from kcs.capture.records import RawRecord, decode_fields, encode_fields, iter_batches, salvage
from kcs.capture.recover import recover, repack
from kcs.capture.tail import CaptureTail
from kcs.config import load
from kcs.errors import CaptureError, ConfigError, DamagedCaptureError, FrameIgnored, FrameRejected, UsageError
from kcs.exchanges import VENUES
from kcs.exchanges import upbit as upbit_module
from kcs.live.receipt import read_delivery, read_receipt
from kcs.live.scrub import scrub, scrub_url
from kcs.model import FRAME_KINDS, Kind
from kcs.pipeline import Pipeline
from kcs.sim.fault_text import parse_faults
from kcs.sink import NullSink
from kcs.stats import Ledger

Target = Callable[[bytes], None]

_HOME: Final = Path(tempfile.mkdtemp(prefix="kcs-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def remove_files() -> None:
    """Remove what the targets left; they make their directory anew."""
    shutil.rmtree(_HOME, ignore_errors=True)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """An empty directory for one input."""
    _HOME.mkdir(exist_ok=True)
    try:
        yield _HOME
    finally:
        for path in _HOME.iterdir():
            path.unlink()


def _tolerant(path: Path) -> list[RawRecord]:
    """All that can be read; checks what a reader promises of it."""
    with CaptureReader(path, strict=False) as reader:
        found = [record for batch in reader.batches() for record in batch]
        numbers = [record[0] for record in found]
        assert numbers == sorted(set(numbers)), "numbers ascend, none twice"
        assert len(reader.damage) <= 10_001
        for number, kind, _, recv_ns, _, fields in found:
            assert number >= 0
            assert recv_ns >= 0
            assert (fields is None) == (Kind.SENT <= kind <= Kind.BINARY)
        reader.info()
        if found and _honest(reader):
            middle = found[len(found) // 2][3]
            later = [record for batch in reader.batches(from_ns=middle) for record in batch]
            assert later == [record for record in found if record[3] >= middle]
    return found


def _honest(reader: CaptureReader) -> bool:
    """Whether the descriptors tell the times of their records: ranges go by them, and nobody reads a chunk to check."""
    times = [([r[3] for batch in batches for r in batch], chunk.meta) for chunk, batches in reader.decoded()]
    return all(of and (min(of), max(of)) == (meta.first_ns, meta.last_ns) for of, meta in times)


def _strict(path: Path) -> list[RawRecord]:
    with CaptureReader(path) as reader:
        found = [record for batch in reader.batches() for record in batch]
        assert reader.sealed
        assert not reader.damage
    return found


def reader(data: bytes) -> None:
    """Any bytes as a capture file."""
    with _directory() as home:
        path = home / "a.zst"
        path.write_bytes(data)
        with contextlib.suppress(CaptureError):
            _tolerant(path)
        with contextlib.suppress(CaptureError):
            _strict(path)


def forged(data: bytes) -> None:
    """A capture whose checksums are right and whose content is not, read by both kinds of reader."""
    reader(forge(data))


def _recovered(source: Path, home: Path) -> Path | None:
    try:
        before = _tolerant(source)
        recover(source, home / "b.zst")
    except CaptureError:
        return None
    after = _strict(home / "b.zst")
    kept = {record[0] for record in after}
    assert after == [record for record in before if record[0] in kept], "what is recovered is what was read"
    return home / "b.zst"


def recovering(data: bytes) -> None:
    """`kcs recover` of a forged file: the result is whole, and is what a tolerant reader sees."""
    with _directory() as home:
        source = home / "a.zst"
        source.write_bytes(forge(data))
        _recovered(source, home)


def repacking(data: bytes) -> None:
    """`kcs repack` of what was recovered changes no record."""
    with _directory() as home:
        source = home / "a.zst"
        source.write_bytes(forge(data))
        target = _recovered(source, home)
        if target is not None:
            before = _strict(target)
            repack(target, chunk_bytes=256)
            assert _strict(target) == before


def leftover(data: bytes) -> None:
    """A `.partial` of a dead run is sealed in place: every record that could be read before is there after."""
    with _directory() as home:
        partial = home / "upbit-20260102T030405Z-0001020304050607.zst.partial"
        partial.write_bytes(forge(data))
        try:
            before = _tolerant(partial)
            sealed = seal_in_place(partial)
        except CaptureError:
            return
        after = _tolerant(sealed.capture.path)
        kept = {record[0] for record in after}
        assert after == [record for record in before if record[0] in kept]


def tail(data: bytes) -> None:
    """Following a forged file gives a beginning of what reading it gives, or an error."""
    with _directory() as home:
        path = home / "a.zst"
        path.write_bytes(forge(data))
        follower = CaptureTail(path, CAPTURE_ID)
        found: list[RawRecord] = []
        try:
            while batch := follower.read():
                found += batch
        except CaptureError:
            pass
        finally:
            follower.close()
        with contextlib.suppress(CaptureError):
            assert found == _tolerant(path)[: len(found)]


def records(data: bytes) -> None:
    """Any bytes as the content of a chunk, as fields of each kind, and as a chunk without its descriptor."""
    if len(data) > 4:
        count = int.from_bytes(data[:2], "big") % 600
        with contextlib.suppress(Malformed, Newer):
            list(iter_batches(data[2:], 7, count))
    for kind in Kind:
        with contextlib.suppress(Malformed, Newer):
            fields, payload = decode_fields(kind, data)
            again = decode_fields(kind, encode_fields(fields, payload))
            assert again == (fields, payload), "fields read back as they are written"
    salvage(data)


def importing(data: bytes) -> None:
    """NDJSON: a file comes of it whole, and printed and imported again it is the same; or an error and no file."""
    with _directory() as home:
        (home / "in.jsonl").write_bytes(data)
        first = home / "a.zst"
        try:
            with (home / "in.jsonl").open("rb") as stream:
                import_ndjson(read_lines(stream), first, "upbit", kcs_version="0")
        except CaptureError:
            assert [path.name for path in home.iterdir()] == ["in.jsonl"], "nothing is left behind"
            return
        before = _strict(first)
        with CaptureReader(first) as opened:
            capture_id = opened.header.capture_id
            lines = [to_ndjson(record, capture_id) for record in opened.records()]
        import_ndjson(lines, home / "b.zst", "upbit", kcs_version="0")
        assert _strict(home / "b.zst") == before


def upbit(data: bytes) -> None:
    """A frame of Upbit: events that fit everywhere, or a verdict; the fast way and the thorough one agree."""
    adapter = upbit_module.UpbitAdapter()
    try:
        events = list(adapter.parse(0, START_NS, data))
    except (FrameIgnored, FrameRejected):
        return
    assert events
    for event in events:
        assert 0 <= event.ts_ns < 2**63
        orjson.dumps(msgspec.to_builtins(event))
    assert list(upbit_module._parse_thoroughly(data)) == events


def venues(data: bytes) -> None:
    """A frame of each venue there is, one after the other on one stream: events or a verdict."""
    for place in VENUES.values():
        adapter = place.adapter()
        for _, frame in instructions(data):
            try:
                for event in adapter.parse(0, START_NS, frame):
                    orjson.dumps(msgspec.to_builtins(event))
            except (FrameIgnored, FrameRejected):
                continue
        for stream, market, state in adapter.save():
            place.adapter().load(stream, market, state)


def _steps(data: bytes) -> Iterator[RawRecord]:
    """Instructions as records of a capture: the operation chooses kind and stream."""
    for number, (operation, body) in enumerate(instructions(data)):
        kind, stream = operation % 9 + 1, operation // 9 % 3
        recv_ns = START_NS + number * 1_000_000
        if kind in FRAME_KINDS or kind == Kind.SENT:
            yield number, kind, stream, recv_ns, body, None
        else:
            try:
                fields, payload = decode_fields(kind, body)
            except (Malformed, Newer):
                continue
            yield number, kind, stream, recv_ns, payload, fields


def pipeline(data: bytes) -> None:
    """Records through the pipeline: never an error but for a foreign state, the books balance, and a copy agrees."""
    place = VENUES["upbit"]
    first = Pipeline("upbit", place.adapter(), NullSink(), Ledger())
    first.start(CAPTURE_ID)
    second: Any = None
    for at, record in enumerate(_steps(data)):
        if at == 2:
            second = first.fork(place.adapter())
        for one in (first, second):
            if one is None:
                continue
            try:
                one.record(record)
            except DamagedCaptureError:
                assert record[1] == Kind.STATE
    first.ledger.settle(first.ledger.produced, 0)
    first.ledger.check()
    if second is not None:
        assert first.difference(second) is None
        assert first.digest() == second.digest()
    _saved_and_loaded(first)


def _saved_and_loaded(first: Pipeline) -> None:
    """load(save(s)) behaves as s."""
    place = VENUES["upbit"]
    third = Pipeline("upbit", place.adapter(), NullSink(), Ledger())
    third.start(CAPTURE_ID)
    states = first.save()
    for stream, fields, payload in states:
        body = encode_fields(fields, payload)
        third.control(Kind.STATE, stream, START_NS, *decode_fields(Kind.STATE, body))
    assert third.save() == states


def config(data: bytes) -> None:
    """A configuration file, and its text in variables."""
    with _directory() as home:
        path = home / "kcs.toml"
        path.write_bytes(data)
        with contextlib.suppress(UsageError):
            repr(load({}, {}, path))
    text = data.decode("utf-8", "surrogateescape")
    for name in ("KCS_KAFKA", "KCS_URL", "KCS_MARKET", "KCS_PARTITIONS", "KCS_KAFKA_X", "KCS_FLUSH"):
        with contextlib.suppress(UsageError):
            found = load({}, {name: text}, path=Path(os.devnull))
            for unit in (lambda: found.flush_ns, lambda: found.max_size_bytes):  # noqa: B023
                unit()


def beside(data: bytes) -> None:
    """A delivery file and a receipt."""
    with _directory() as home:
        for name, read in (("a.delivery.json", read_delivery), ("a.receipt.json", read_receipt)):
            (home / name).write_bytes(data)
            with contextlib.suppress(CaptureError):
                read(home / "a.zst")


def faults(data: bytes) -> None:
    """The simulator's fault syntax: what is understood can be said again and means the same."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(UsageError, ConfigError):
        parse_faults(text.split(";"))


def scrubbing(data: bytes) -> None:
    """Texts that we send and URLs: never an error; JSON stays JSON, and a second time changes neither it nor a URL."""
    text = data.decode("utf-8", "surrogatepass") if _decodes(data) else repr(data)
    once = scrub(text)
    if _is_json(text):
        assert _is_json(once)
        assert scrub(once) == once
    url = scrub_url(text)
    assert scrub_url(url) == url


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text.encode())
    except (ValueError, RecursionError):
        return False
    return True


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def socket(data: bytes) -> None:
    """What a venue sends: frames in bounds, one open, one close, never an exception in the transport."""
    asyncio.run(converse(data))


TARGETS: Final[dict[str, Target]] = {
    "reader": reader,
    "forged": forged,
    "recover": recovering,
    "repack": repacking,
    "leftover": leftover,
    "tail": tail,
    "records": records,
    "import": importing,
    "upbit": upbit,
    "venues": venues,
    "pipeline": pipeline,
    "config": config,
    "beside": beside,
    "faults": faults,
    "scrub": scrubbing,
    "socket": socket,
}
