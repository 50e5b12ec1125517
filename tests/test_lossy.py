"""What is said of a capture that lost, doubled, exchanged or spoilt frames: exactly what can be proven, and no more.

A capture proves its own losses: numbers that are missing, and frame counts. A venue proves its own: sequences and
checksums where it has them (tests/sequenced.py), nothing but duplicates where it has not (Upbit), and then kcs must
say "not verifiable". What the book ended as is compared market by market with what was sent: two digests may agree on a
book that is wrong twice.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from kcs.capture.framecount import Miscount
from kcs.capture.reader import CaptureReader
from kcs.exchanges import VENUES, Venue
from kcs.model import CloseFields, Gap, Kind, OpenFields, Record
from kcs.replay.events import Positioned, positioned
from kcs.sim.fault_text import parse_faults
from kcs.sim.settings import SimSettings
from kcs.sim.tape import write_tape
from kcs.stats import Ledger
from kcs.verify import Verdict, verify
from tests.cli import conftest as cli
from tests.cli.processes import Done
from tests.live.rig import Rig
from tests.lossy import Lossy
from tests.replay.making import ListSink, play
from tests.sequenced import MARKETS, NAME, SEQUENCED, Book, Feed

SECOND = 1_000_000_000
kcs = cli.kcs
"""The fixture."""
Books = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upbit, three channels, three connections."""
    path = tmp_path_factory.mktemp("tape") / "upbit.zst"
    settings = SimSettings(rate=150, faults=parse_faults("close_code=1006@after:3s"))
    report = write_tape(path, settings, 10 * SECOND)
    assert report.reconnects >= 2
    return path


@pytest.fixture
def sequenced(monkeypatch: pytest.MonkeyPatch) -> Venue:
    """The venue that proves what it sends, in the registry."""
    monkeypatch.setitem(VENUES, NAME, SEQUENCED)
    return SEQUENCED


def channel_of(record: Record) -> str:
    """What an Upbit frame is, by a reader of its own."""
    return str(json.loads(record.payload).get("type", "other"))


def numbers_of(lossy: Lossy, channel: str) -> list[int]:
    return [number for number, record in lossy.frames.items() if channel_of(record) == channel]


def runs(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """(first, how many) of each run of neighbours."""
    found = []
    for _, group in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in group]
        found.append((members[0], len(members)))
    return tuple(found)


def records_of(path: Path) -> list[Record]:
    with CaptureReader(path) as reader:
        return list(reader.records())


def events_of(path: Path) -> tuple[list[Positioned], Ledger]:
    ledger = Ledger()
    return list(positioned([path], ledger=ledger)), ledger


def gaps_of(verdict: Verdict) -> list[tuple[str, tuple[str, ...], int | None]]:
    return [(gap.cause, gap.markets, gap.frames) for gap in verdict.gaps]


# ---------------------------------------------------------------- the tool


@pytest.mark.parametrize("holes", [True, False])
@pytest.mark.parametrize("counts", [True, False])
def test_nothing_asked_is_the_same_capture(tape: Path, tmp_path: Path, holes: bool, counts: bool) -> None:
    same = Lossy(tape).write(tmp_path / "same.zst", holes=holes, counts=counts)
    assert records_of(same) == records_of(tape)
    assert verify(same, expected=verify(tape).digest).ok
    other = Lossy(tape).write(tmp_path / "other.zst", capture_id=b"\x01" * 8)
    assert (verify(other).capture_id, verify(other).digest) == ("01" * 8, verify(tape).digest)


def test_each_change_is_where_it_was_asked_for(tape: Path, tmp_path: Path) -> None:
    lossy = Lossy(tape)
    dropped, doubled, one, other, spoilt = list(lossy.frames)[10:60:10]
    before = {record.number: record for record in records_of(tape)}
    lossy.drop([dropped]).duplicate([doubled], times=2).swap(one, other).corrupt(
        [spoilt], lambda payload: payload + b"!"
    )
    found = records_of(lossy.write(tmp_path / "out.zst"))
    assert [record.number for record in found] == [n for n in range(len(before) + 2) if n != dropped]
    by_number = {record.number: record for record in found}
    assert [by_number[n].payload for n in range(doubled, doubled + 3)] == [before[doubled].payload] * 3
    assert {by_number[n].recv_ns for n in range(doubled, doubled + 3)} == {before[doubled].recv_ns}
    assert by_number[one + 2].payload == before[other].payload
    assert by_number[one + 2].recv_ns == before[one].recv_ns
    assert by_number[other + 2].payload == before[one].payload
    assert by_number[spoilt + 2].payload == before[spoilt].payload + b"!"
    assert [record.payload for record in found[-5:]] == [record.payload for record in list(before.values())[-5:]]


def test_numbers_that_run_on_and_counts_that_fit(tape: Path, tmp_path: Path) -> None:
    lossy = Lossy(tape)
    lossy.drop(list(lossy.frames)[10:13]).duplicate(list(lossy.frames)[20:21])
    found = records_of(lossy.write(tmp_path / "out.zst", holes=False, counts=False))
    assert [record.number for record in found] == list(range(len(lossy.records) - 2))
    said = [r.fields.frames for r in found if isinstance(r.fields, OpenFields | CloseFields)]
    were = [r.fields.frames for r in lossy.records if isinstance(r.fields, OpenFields | CloseFields)]
    assert said == [0, *(count - 2 for count in were[1:])]


def test_only_data_frames_can_be_chosen(tape: Path) -> None:
    lossy = Lossy(tape)
    opening = next(record.number for record in lossy.records if record.kind is Kind.OPEN)
    for refused in (lossy.drop, lossy.duplicate, lossy.corrupt):
        with pytest.raises(KeyError):
            refused([opening])
    with pytest.raises(KeyError):
        lossy.swap(opening, next(iter(lossy.frames)))


# ---------------------------------------------------------------- what a capture proves of itself


@pytest.mark.parametrize("seed", range(6))
def test_missing_numbers_are_named_one_by_one(tape: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    lossy = Lossy(tape)
    chosen = rng.sample(list(lossy.frames), rng.choice([1, 5, 100]))
    verdict = verify(lossy.drop(chosen).write(tmp_path / "out.zst"))
    assert verdict.missing == runs(chosen)
    assert (verdict.holes, verdict.miscounted, verdict.damage) == (len(chosen), (), ())
    assert not verdict.whole
    with CaptureReader(tmp_path / "out.zst") as reader:
        assert reader.info().holes == runs(chosen)  # from the index alone


def test_a_frame_that_was_never_written_shows_in_the_counts_of_its_connection(tape: Path, tmp_path: Path) -> None:
    lossy = Lossy(tape)
    first, second = [record.number for record in lossy.records if record.kind is Kind.CLOSE][:2]
    early = [number for number in lossy.frames if number < first]
    late = [number for number in lossy.frames if first < number < second]
    chosen = [early[3], early[-1], late[7]]  # the last one of a connection leaves nothing behind it to be missed by
    out = lossy.drop(chosen).write(tmp_path / "out.zst", holes=False)
    verdict = verify(out)
    closes = [record for record in records_of(out) if record.kind is Kind.CLOSE][:2]
    said = [close.fields.frames for close in closes if isinstance(close.fields, CloseFields)]
    assert verdict.miscounted == (
        Miscount(closes[0].number, 0, said[0], said[0] - 2),
        Miscount(closes[1].number, 0, said[1], said[1] - 1),
    )
    assert (verdict.holes, verdict.whole) == (0, False)


def test_spoilt_frames_are_rejected_one_by_one(tape: Path, tmp_path: Path) -> None:
    lossy = Lossy(tape)
    chosen = random.Random(1).sample(numbers_of(lossy, "trade"), 7)
    before = verify(tape).ledger
    cut = lossy.corrupt(chosen[:4]).corrupt(chosen[4:], lambda payload: payload.replace(b'"type"', b'"tipe"'))
    sink = ListSink()
    _, ledger = play([cut.write(tmp_path / "out.zst")], sink)
    assert ledger.rejected == {"not_json": 4, "unknown_type": 3}
    assert (ledger.parsed, ledger.trades) == (before.parsed - 7, before.trades - 7)
    rejects = {number: value for _, channel, _, number, _, value in sink.records if channel == "reject"}
    assert rejects == {number: cut._spoilt[number] for number in sorted(chosen)}
    assert verify(tmp_path / "out.zst").whole  # the capture holds what came, and it came like that


# ---------------------------------------------------------------- what Upbit's protocol proves: duplicates


def test_upbits_duplicates_are_dropped_and_counted(tape: Path, tmp_path: Path) -> None:
    lossy = Lossy(tape)
    before = verify(tape).ledger
    trades, books, tickers = (numbers_of(lossy, name)[5:50:5] for name in ("trade", "orderbook", "ticker"))
    lossy.duplicate(trades).duplicate(books, times=2).duplicate(tickers)
    verdict = verify(lossy.write(tmp_path / "out.zst", holes=False, counts=False))
    after = verdict.ledger
    more = {name: after.suppressed.get(name, 0) - before.suppressed.get(name, 0) for name in after.suppressed}
    assert more == {
        "trade_repeated": len(trades),
        "book_repeated": 2 * len(books),
        "ticker_repeated": len(tickers),
    }
    assert after.produced == before.produced
    assert verdict.whole


@pytest.mark.parametrize("channel", ["trade", "orderbook", "ticker"])
@pytest.mark.parametrize("what", ["drop", "swap"])
def test_what_upbit_loses_inside_a_connection_is_not_verifiable(
    tape: Path, tmp_path: Path, channel: str, what: str, kcs: Callable[..., Done]
) -> None:
    lossy = Lossy(tape)
    one, other = numbers_of(lossy, channel)[8:10]
    lossy = lossy.drop([one]) if what == "drop" else lossy.swap(one, other)
    out = lossy.write(tmp_path / "out.zst", holes=False, counts=False)
    verdict, before = verify(out), verify(tape)
    assert verdict.gaps == before.gaps  # nothing of it can be named, and nothing is invented
    assert {gap.cause for gap in verdict.gaps} == {"disconnect"}
    assert (verdict.whole, verdict.verifiable, verdict.proves) == (True, False, ("trade_ids",))
    assert verdict.digest != before.digest
    assert not verify(out, expected=before.digest).ok  # who knows what was delivered knows that this is not it

    done = kcs("verify", out)
    assert done.code == 0
    text = done.out.decode() + done.err
    assert "not verifiable: upbit sends no sequence and no checksum" in text
    assert not any(word in text.lower() for word in ("clean", "complete", "no loss"))
    replayed = kcs("replay", "--sink", "null", "--json", "--quiet", out).json
    assert (replayed["unverifiable"], replayed["gaps"]) == (["upbit"], len(before.gaps))
    report = kcs("verify", "--json", out).json
    assert (report["verifiable"], report["proves"]) == (False, ["trade_ids"])
    assert [gap["cause"] for gap in report["gaps"]] == ["disconnect"] * len(before.gaps)


def test_the_verdict_in_words_names_gaps_and_missing_numbers(
    tape: Path, tmp_path: Path, kcs: Callable[..., Done]
) -> None:
    lossy = Lossy(tape)
    first, second, *_ = chosen = [list(lossy.frames)[n] for n in (20, 40, 41, 42)]
    out = lossy.drop(chosen).write(tmp_path / "out.zst")
    done = kcs("verify", out)
    assert done.code == 3
    text = done.out.decode() + done.err
    assert f"numbers {first}, {second}-{second + 2}" in text
    assert text.count("disconnect: all markets, an unknown number of frames") == 2 == len(verify(tape).gaps)
    assert kcs("verify", "--json", out).json["missing"] == [[first, 1], [second, 3]]


# ---------------------------------------------------------------- what a venue with sequences proves: everything


def live_run(directory: Path, venue: Venue, messages: Sequence[bytes]) -> tuple[Path, Books]:
    """A real collector against a real socket that sends these; its capture, and the books it ended with."""

    async def script(websocket: ServerConnection, number: int) -> None:
        await websocket.recv()
        for message in messages:
            await websocket.send(message.decode())
        async for _ in websocket:
            pass

    async def run() -> tuple[Path, Books]:
        rig = Rig(directory, venue=venue)
        async with rig.serving(script):
            rig.start()
            await rig.received(len(messages))
            result = await rig.stop()
        books = {key: json.loads(value) for channel, key, value in rig.sink.all if channel == "orderbook"}
        (capture,) = result.captures
        return capture.path, books

    return asyncio.run(run())


def book_value(book: Book) -> dict[str, Any]:
    asks, bids = book.levels()
    return {"asks": [list(level) for level in asks], "bids": [list(level) for level in bids]}


def replayed_books(path: Path) -> Books:
    """The last book of each market that a replay makes."""
    sink = ListSink()
    play([path], sink)
    return {key: json.loads(value) for _, channel, key, _, _, value in sink.records if channel == "orderbook"}


def levels_of(books: Books) -> Books:
    """Without the time."""
    return {market: {side: book[side] for side in ("asks", "bids")} for market, book in books.items()}


def sent(seed: int, count: int, kind: Any) -> tuple[Feed, list[bytes]]:
    feed = Feed(random.Random(seed), kind=kind)
    return feed, [*feed.opening(), *(feed.next() for _ in range(count))]


class Oracle:
    """What must be said of trades that arrive as these numbers: an independent reading of the rules."""

    def __init__(self) -> None:
        self.gaps: list[tuple[str, tuple[str, ...], int | None]] = []
        self.repeated = 0
        self._seen: defaultdict[str, set[int]] = defaultdict(set)

    def take(self, market: str, number: int) -> None:
        seen = self._seen[market]
        if number in seen:
            self.repeated += 1
        elif seen and number > max(seen) + 1:
            self.gaps.append(("sequence", (market,), number - max(seen) - 1))
        elif seen and min(seen) < number < max(seen):
            self.gaps.append(("reordered", (market,), 1))
        seen.add(number)


@pytest.mark.parametrize("seed", range(8))
def test_a_sequence_names_every_hole_exchange_and_duplicate(sequenced: Venue, tmp_path: Path, seed: int) -> None:
    _, messages = sent(seed, 400, "trade")
    source, _ = live_run(tmp_path, sequenced, messages)
    lossy, rng = Lossy(source), random.Random(seed)
    numbers = list(lossy.frames)
    lossy.drop(rng.sample(numbers, 30)).duplicate(rng.sample(numbers, 10))
    for _ in range(20):
        at = rng.randrange(len(numbers) - 5)
        lossy.swap(numbers[at], numbers[at + rng.randrange(1, 5)])
    out = lossy.write(tmp_path / "out.zst", holes=False, counts=False)

    oracle = Oracle()
    for record in Lossy(out).frames.values():
        frame = json.loads(record.payload)
        oracle.take(frame["m"], frame["n"])
    verdict = verify(out)
    assert {cause for cause, _, _ in oracle.gaps} == {"sequence", "reordered"}
    assert gaps_of(verdict) == oracle.gaps
    assert verdict.ledger.suppressed == {"trade_repeated": oracle.repeated}
    assert (verdict.whole, verdict.verifiable) == (True, True)


def test_a_hole_from_k_to_m_is_one_gap_of_so_many_frames(sequenced: Venue, tmp_path: Path) -> None:
    feed = Feed(random.Random(1), markets=("A-X",), kind="trade")
    source, _ = live_run(tmp_path, sequenced, [feed.next() for _ in range(30)])
    lossy = Lossy(source)
    numbers = list(lossy.frames)
    verdict = verify(lossy.drop(numbers[10:17]).write(tmp_path / "out.zst", holes=False, counts=False))
    (gap,) = verdict.gaps
    last, first = lossy.frames[numbers[9]], lossy.frames[numbers[17]]
    assert gap == Gap(0, last.recv_ns, first.recv_ns, "sequence", ("A-X",), 7)
    ends = verify(Lossy(source).drop(numbers[-3:]).write(tmp_path / "ends.zst", holes=False))
    assert ends.gaps == ()  # nothing came after them that could tell
    assert [(m.said, m.counted) for m in ends.miscounted] == [(30, 27)]  # but the collector had counted them


@pytest.mark.parametrize("seed", range(6))
def test_a_book_that_lost_a_change_is_not_shown_until_it_is_whole_again(
    sequenced: Venue, tmp_path: Path, seed: int
) -> None:
    """Every book that is emitted is one that the venue truly had, whatever was lost."""
    rng = random.Random(seed)
    feed = Feed(rng, kind="book")
    messages, true = feed.opening(), {(m, json.dumps(book_value(feed.books[m]))) for m in MARKETS}
    for turn in range(300):
        messages.append(feed.snapshot(MARKETS[turn // 50 % 3]) if turn % 50 == 49 else feed.next())
        true |= {(m, json.dumps(book_value(feed.books[m]))) for m in MARKETS}
    source, _ = live_run(tmp_path, sequenced, messages)
    lossy = Lossy(source)
    lossy.drop(rng.sample(list(lossy.frames)[3:], 6))
    out = lossy.write(tmp_path / "out.zst", holes=False, counts=False)
    events, ledger = events_of(out)
    gaps = [item.event for item in events if isinstance(item.event, Gap)]
    assert gaps
    assert {gap.cause for gap in gaps} == {"sequence"}
    assert ledger.ignored.keys() <= {"no_book", "old"}
    for market, book in emitted_books(out):
        assert (market, json.dumps(book)) in true


def emitted_books(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    sink = ListSink()
    play([path], sink)
    for _, channel, key, _, _, value in sink.records:
        if channel == "orderbook":
            yield key, levels_of({key: json.loads(value)})[key]


def test_a_checksum_finds_a_change_that_the_numbers_do_not(sequenced: Venue, tmp_path: Path) -> None:
    feed = Feed(random.Random(3), markets=("A-X",), kind="book")
    source, _ = live_run(tmp_path, sequenced, [*feed.opening(), *(feed.next() for _ in range(20))])
    lossy = Lossy(source)
    chosen = list(lossy.frames)[9]

    def wrong(payload: bytes) -> bytes:
        frame = json.loads(payload)
        frame["a"].append([250.0, 1.0])
        return json.dumps(frame).encode()

    out = lossy.corrupt([chosen], wrong).write(tmp_path / "out.zst")
    assert gaps_of(verify(out)) == [("checksum", ("A-X",), None)]
    events, ledger = events_of(out)
    assert [item.frame for item in events if isinstance(item.event, Gap)] == [chosen]
    assert ledger.ignored == {"no_book": 11}


# ---------------------------------------------------------------- the book it ends with


@pytest.mark.parametrize("seed", range(4))
def test_the_books_of_a_live_run_of_its_replay_and_of_the_venue_are_the_same(
    sequenced: Venue, tmp_path: Path, seed: int
) -> None:
    feed, messages = sent(seed, 300, "both")
    source, live = live_run(tmp_path, sequenced, messages)
    true = {market: book_value(book) for market, book in feed.books.items()}
    assert levels_of(live) == true
    assert replayed_books(source) == live
    # A trade is no part of a book; a change of the book is, and a market that lost one stops at the last true book.
    lossy = Lossy(source)
    frames = {number: json.loads(record.payload) for number, record in lossy.frames.items()}
    trades = [number for number, frame in frames.items() if frame["k"] == "trade"]
    lost_trade = lossy.drop(trades[::7]).write(tmp_path / "trades.zst", holes=False, counts=False)
    assert replayed_books(lost_trade) == live
    changes = [n for n, frame in frames.items() if frame["k"] == "delta" and frame["m"] == "B-X"]
    lost_change = Lossy(source).drop([changes[20]]).write(tmp_path / "change.zst", holes=False, counts=False)
    broken = replayed_books(lost_change)
    assert {market for market in MARKETS if broken[market] != live[market]} == {"B-X"}
    assert gaps_of(verify(lost_change)) == [("sequence", ("B-X",), 1)]
    assert broken["B-X"]["ts"] == frames[changes[19]]["t"] / 1000


def raw_books(records: Iterable[Record]) -> Books:
    """The last book of each market in Upbit's frames, by a reader of its own."""
    found: Books = {}
    for record in records:
        frame = json.loads(record.payload)
        if frame.get("type") == "orderbook":
            units = frame["orderbook_units"]
            sides = {"asks": ("ask_price", "ask_size"), "bids": ("bid_price", "bid_size")}
            found[frame["code"]] = {s: [[u[p], u[q]] for u in units if u[p] and u[q]] for s, (p, q) in sides.items()}
    return found


def test_upbits_books_at_the_end_of_live_replay_and_a_lossy_replay(tape: Path, tmp_path: Path) -> None:
    market_frames = [r for r in records_of(tape) if r.kind in (Kind.TEXT, Kind.BINARY) and channel_of(r) != "other"]
    source, live = live_run(tmp_path, VENUES["upbit"], [record.payload for record in market_frames])
    true = raw_books(market_frames)
    assert len(true) >= 3
    assert levels_of(live) == true
    assert replayed_books(source) == live
    # Every frame is a whole book: what is lost before the last one of a market changes nothing at the end...
    lossy = Lossy(source)
    books = numbers_of(lossy, "orderbook")
    by_market: dict[str, list[int]] = defaultdict(list)
    for number in books:
        by_market[json.loads(lossy.frames[number].payload)["code"]].append(number)
    earlier = [number for numbers in by_market.values() for number in numbers[3:-1:4]]
    assert replayed_books(lossy.drop(earlier).write(tmp_path / "earlier.zst")) == live
    # ...and a lost last one leaves the one before, which the capture's own count tells and Upbit never could.
    market, numbers = next(iter(by_market.items()))
    out = Lossy(source).drop([numbers[-1]]).write(tmp_path / "last.zst", holes=False)
    ended = replayed_books(out)
    assert {name for name in live if ended[name] != live[name]} == {market}
    assert levels_of(ended)[market] == raw_books([lossy.frames[numbers[-2]]])[market]
    verdict = verify(out)
    assert [(m.said, m.counted) for m in verdict.miscounted] == [(len(market_frames), len(market_frames) - 1)]
