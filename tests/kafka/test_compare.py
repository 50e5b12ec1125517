"""An audit of topics names exactly what is wrong: each fault by hand, then any mixture of them against an oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.kafka import compare, spool
from kcs.kafka.compare import Audit
from kcs.kafka.findings import Contradiction, Finding, Stated, TopicReport
from kcs.kafka.spool import Place
from kcs.sink import POSITION
from tests.kafka.topiclog import START_NS, TOPICS, Made, Msg, Told, expecting, logs, message, numbered, oracle, place

ONE, TWO, FOREIGN = b"capture1", b"capture2", b"foreign!"
TRADES: Place = ("trade.upbit", 1)
SEVERAL = [Made("trade", "A", number, value=b"[%d]" % number, trade_id=b"%d" % number) for number in range(10)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three entries, so that a handful of records crosses several."""
    monkeypatch.setattr(spool, "_BLOCK_ENTRIES", 3)
    monkeypatch.setattr(spool, "_BLOCK_BYTES", 3 * spool.ENTRY_BYTES)


def audited(
    captures: Mapping[bytes, Sequence[Made]],
    log: Mapping[Place, Sequence[Msg]],
    *,
    starts: Mapping[Place, int] | None = None,
    stated: Stated | None = None,
    ends: Mapping[bytes, int] | None = None,
    holes: Sequence[tuple[int, int]] = (),
) -> TopicReport:
    """The report of capture ONE."""
    audit = expecting(captures, ends=ends, holes=holes)
    for where, messages in log.items():
        audit.take(where, messages)
    report = audit.report(ONE, starts, stated)
    audit.close()
    assert report.expected == report.present + report.missing + report.expired
    assert report.found == report.present + report.doubled + report.misplaced + report.orphans
    return report


def of_trades(change: Callable[[list[Msg]], list[Msg]], **more: object) -> TopicReport:
    """Ten trades on one partition, their log changed."""
    log = numbered(logs({ONE: SEVERAL})[TRADES])
    return audited({ONE: SEVERAL}, {TRADES: change(log)}, **more)  # type: ignore[arg-type]


def names(report: TopicReport) -> list[tuple[str, int | None, int]]:
    """(fault, offset, frame)"""
    return [(each.fault, each.offset, each.frame) for each in report.findings]


# --- one fault at a time ----------------------------------------------------------------------------------------------


def test_what_is_all_there() -> None:
    report = of_trades(lambda log: log)
    assert report.ok
    assert (report.expected, report.present, report.found, report.findings) == (10, 10, 10, ())
    assert report.offsets == {TRADES: (0, 9)}


@pytest.mark.parametrize("at", [0, 4, 9])
def test_missing(at: int) -> None:
    report = of_trades(lambda log: log[:at] + log[at + 1 :])
    assert not report.ok
    assert (report.missing, report.present, report.found) == (1, 9, 9)
    assert report.findings == (Finding("missing", *TRADES, None, at, 0, last=(at, 0)),)


def test_missing_runs_are_named_once_with_their_length() -> None:
    report = of_trades(lambda log: log[2:4] + log[7:9])
    assert report.missing == 6
    runs = [(each.frame, each.last, each.records) for each in report.findings]
    assert runs == [(0, (1, 0), 2), (4, (6, 0), 3), (9, (9, 0), 1)]


def test_nothing_there() -> None:
    report = audited({ONE: SEVERAL}, {})
    assert (report.missing, report.present, report.found, report.offsets) == (10, 0, 0, {})
    assert report.findings == (Finding("missing", *TRADES, None, 0, 0, 10, (9, 0)),)


@pytest.mark.parametrize(("first", "again"), [(0, 1), (3, 4), (3, 9)])
def test_doubled(first: int, again: int) -> None:
    report = of_trades(lambda log: numbered([*log[:again], log[first], *log[again:]]))
    assert (report.doubled, report.missing, report.out_of_order, report.different) == (1, 0, 0, 0)
    assert names(report) == [("doubled", again, first)]


def test_a_whole_capture_twice() -> None:
    report = of_trades(lambda log: numbered(log + log))
    assert (report.doubled, report.found, report.present, report.out_of_order) == (10, 20, 10, 0)


def test_doubled_with_other_bytes_is_both() -> None:
    report = of_trades(lambda log: numbered([*log, replace(log[3], value=b"x")]))
    assert (report.doubled, report.different) == (1, 1)
    assert [(each.fault, each.fields) for each in report.findings] == [
        ("doubled", ("value",)),
        ("different", ("value",)),
    ]


def test_out_of_order() -> None:
    report = of_trades(lambda log: numbered([*log[:4], log[5], log[4], *log[6:]]))
    assert (report.out_of_order, report.missing, report.doubled) == (1, 0, 0)
    assert names(report) == [("out_of_order", 5, 4)]


def test_one_that_comes_early_makes_those_late_that_it_overtook() -> None:
    report = of_trades(lambda log: numbered([log[3], *log[:3], *log[4:]]))
    assert names(report) == [("out_of_order", 1, 0), ("out_of_order", 2, 1), ("out_of_order", 3, 2)]


CHANGES: dict[str, tuple[Callable[[Msg], Msg], str]] = {
    "value": (lambda msg: replace(msg, value=b"[]"), "value"),
    "no value": (lambda msg: replace(msg, value=None), "value"),
    "key": (lambda msg: replace(msg, key=b"B"), "key"),
    "no key": (lambda msg: replace(msg, key=None), "key"),
    "timestamp": (lambda msg: replace(msg, timestamp=msg.timestamp + 1), "timestamp"),
    "timestamp, by a power of two": (lambda msg: replace(msg, timestamp=msg.timestamp + 2**32), "timestamp"),
    "id": (lambda msg: replace(msg, headers=(msg.headers[0], ("id", b"other"))), "header id"),
    "empty id": (lambda msg: replace(msg, headers=(msg.headers[0], ("id", b""))), "header id"),
    "no id": (lambda msg: replace(msg, headers=msg.headers[:1]), "header id"),
    "a header more": (lambda msg: replace(msg, headers=(*msg.headers, ("x", b""))), "headers"),
    "kcs twice": (lambda msg: replace(msg, headers=(msg.headers[0], *msg.headers)), "headers"),
    "receive time": (
        lambda msg: replace(msg, headers=(("kcs", msg.headers[0][1][:20] + bytes(8)), *msg.headers[1:])),
        "header kcs",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_different(change: str) -> None:
    made, field = CHANGES[change]
    report = of_trades(lambda log: [*log[:4], made(log[4]), *log[5:]])
    assert (report.different, report.present, report.missing) == (1, 10, 0)
    assert report.fields == {field: 1}
    assert report.findings == (Finding("different", *TRADES, 4, 4, 0, fields=(field,)),)


def test_the_order_of_headers_is_no_difference() -> None:
    assert of_trades(lambda log: [replace(each, headers=each.headers[::-1]) for each in log]).ok


@pytest.mark.parametrize("reason", [b"other", None])
def test_the_reason_of_a_rejected_frame_is_told_apart(reason: bytes | None) -> None:
    made = Made("reject", "0", 5, value=b"junk", headers=(("reason", b"not_json"), ("truncated", b"9")))
    where = place(made)
    good = message(made, ONE)
    assert audited({ONE: [made]}, {where: [good]}).ok
    changed = tuple((name, reason if name == "reason" else content) for name, content in good.headers)
    bad = replace(good, headers=tuple(each for each in changed if each[1] is not None))
    assert audited({ONE: [made]}, {where: [bad]}).fields == {"header reason": 1}
    cut = replace(good, headers=good.headers[:2])
    assert audited({ONE: [made]}, {where: [cut]}).fields == {"headers": 1}


def test_nothing_is_not_an_empty_value() -> None:
    made = Made("reject", "0", 5, value=b"", headers=(("reason", b"not_json"),))
    assert audited({ONE: [made]}, {place(made): [message(made, ONE)]}).ok
    assert audited({ONE: [made]}, {place(made): [replace(message(made, ONE), value=None)]}).fields == {"value": 1}


def test_times_that_the_broker_set_are_not_compared() -> None:
    report = of_trades(lambda log: [replace(each, timestamp=1, timestamp_type=1) for each in log])
    assert report.ok
    assert report.broker_times == 10
    report = of_trades(lambda log: [replace(each, timestamp=1, timestamp_type=1, value=b"x") for each in log])
    assert report.fields == {"value": 10}


@pytest.mark.parametrize("elsewhere", [("trade.upbit", 0), ("orderbook.upbit", 1), ("trade.upbit", 7)])
def test_misplaced(elsewhere: Place) -> None:
    records = [*SEVERAL, Made("trade", "B", 20), Made("orderbook", "A", 21)]
    log = {where: numbered(messages) for where, messages in logs({ONE: records}).items()}
    moved = log[TRADES].pop(3)
    log[elsewhere] = numbered([*log.get(elsewhere, []), moved])
    report = audited({ONE: records}, log)
    assert (report.missing, report.misplaced, report.orphans) == (1, 1, 0)
    wrong = report.findings[-1]
    assert (wrong.fault, (wrong.topic, wrong.partition), wrong.frame) == ("misplaced", elsewhere, 3)
    assert wrong.why == "belongs to trade.upbit[1]"


@pytest.mark.parametrize(
    ("number", "index", "why", "beyond"),
    [
        (100, 0, "the capture ends before frame 100", 1),
        (2**63, 0, "the capture ends before frame 100", 1),
        (99, 0, "the capture makes no such record", 0),
        (3, 1, "the capture makes no such record", 0),
        (40, 0, "its frame is missing in the capture", 0),
        (49, 2, "its frame is missing in the capture", 0),
        (50, 0, "the capture makes no such record", 0),
    ],
)
def test_orphans(number: int, index: int, why: str, beyond: int) -> None:
    stray = Msg(0, b"A", b"", 0, (("kcs", ONE + POSITION.pack(number, index, START_NS)),))
    for at in (0, 5, 10):
        report = of_trades(
            lambda log, at=at: numbered([*log[:at], stray, *log[at:]]),  # type: ignore[misc]
            ends={ONE: 100},
            holes=[(60, 5), (40, 10)],
        )
        assert (report.orphans, report.beyond, report.missing, report.out_of_order) == (1, beyond, 0, 0)
        assert [(each.fault, each.offset, each.frame, each.event, each.why) for each in report.findings] == [
            ("orphan", at, number, index, why)
        ]


def test_records_of_others_are_counted_and_passed_over() -> None:
    strange = [
        message(SEVERAL[3], FOREIGN),
        replace(message(SEVERAL[3], ONE), headers=()),
        replace(message(SEVERAL[3], ONE), headers=(("kcs", b"short"),)),
    ]
    audit = expecting({ONE: SEVERAL})
    audit.take(TRADES, numbered([*logs({ONE: SEVERAL})[TRADES], *strange]))
    assert audit.report(ONE).ok
    assert (audit.other_captures, audit.without_header) == (1, 2)
    audit.close()


def test_examples_are_bounded_and_counts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "EXAMPLES_MAX", 3)
    report = of_trades(lambda log: numbered([*log, *log]))
    assert report.doubled == 10
    assert [each.offset for each in report.findings] == [10, 11, 12]


# --- receipts and retention -------------------------------------------------------------------------------------------


def stated(first: int, last: int, **more: bool) -> Stated:
    return Stated({TRADES: (first, last)}, **more)


def shifted(by: int) -> Callable[[list[Msg]], list[Msg]]:
    """The log with offsets from `by` on."""
    return lambda log: numbered(log, by)


def test_a_receipt_that_agrees() -> None:
    report = of_trades(shifted(100), stated=stated(100, 109))
    assert report.ok
    assert report.contradictions == ()


@pytest.mark.parametrize(("first", "last"), [(99, 109), (101, 109), (100, 108), (100, 110)])
def test_a_receipt_that_says_other_offsets(first: int, last: int) -> None:
    report = of_trades(shifted(100), stated=stated(first, last))
    assert not report.ok
    assert report.contradictions == (Contradiction(*TRADES, (first, last), (100, 109)),)


def test_a_receipt_that_knows_other_partitions() -> None:
    report = of_trades(shifted(0), stated=Stated({("gap.upbit", 0): (5, 6)}))
    assert report.contradictions == (
        Contradiction("gap.upbit", 0, (5, 6), None),
        Contradiction(*TRADES, None, (0, 9)),
    )


@pytest.mark.parametrize(("first", "last", "agrees"), [(99, 110, True), (101, 109, False), (100, 108, False)])
def test_a_receipt_of_a_capture_with_holes_may_count_records_of_missing_frames(
    first: int, last: int, agrees: bool
) -> None:
    report = of_trades(shifted(100), stated=stated(first, last, whole=False))
    assert (report.contradictions == ()) == agrees


def test_what_the_broker_dropped_is_expired_not_missing() -> None:
    report = of_trades(lambda log: numbered(log, 100)[4:], starts={TRADES: 104}, stated=stated(100, 109))
    assert (report.expired, report.missing, report.present) == (4, 0, 6)
    assert report.findings == (Finding("expired", *TRADES, None, 0, 0, 4, (3, 0)),)
    assert report.contradictions == ()
    assert report.log_starts == {TRADES: 104}
    assert not report.ok, "it cannot be checked any more"


def test_no_more_than_was_dropped_is_expired() -> None:
    report = of_trades(lambda log: numbered(log, 100)[6:], starts={TRADES: 104}, stated=stated(100, 109))
    assert (report.expired, report.missing) == (4, 2)
    assert [(each.fault, each.frame, each.records) for each in report.findings] == [
        ("missing", 4, 2),
        ("expired", 0, 4),
    ]


def test_all_of_it_may_be_expired() -> None:
    report = of_trades(lambda log: [], starts={TRADES: 500}, stated=stated(100, 109))
    assert (report.expired, report.missing, report.contradictions) == (10, 0, ())


def test_what_is_missing_later_is_not_expired() -> None:
    report = of_trades(
        lambda log: [each for each in numbered(log, 100)[2:] if each.offset != 105],
        starts={TRADES: 102},
        stated=stated(100, 109),
    )
    assert (report.expired, report.missing) == (2, 1)


def test_without_a_receipt_nobody_can_tell_but_where_the_log_begins_is_said() -> None:
    report = of_trades(lambda log: numbered(log, 100)[4:], starts={TRADES: 104})
    assert (report.expired, report.missing, report.log_starts) == (0, 4, {TRADES: 104})
    assert of_trades(shifted(100), starts={TRADES: 100}).log_starts == {}, "nothing is missing"


# --- any mixture ------------------------------------------------------------------------------------------------------

KEYS = ("A", "B", "C")


@st.composite
def captures(draw: st.DrawFn) -> dict[bytes, list[Made]]:
    """Two captures of up to 25 frames with up to three events each."""
    made: dict[bytes, list[Made]] = {}
    for capture_id in (ONE, TWO):
        made[capture_id] = []
        number = 0
        for _ in range(draw(st.integers(0, 25))):
            number += draw(st.integers(1, 3))
            for index in range(draw(st.integers(1, 3))):
                channel = draw(st.sampled_from(("trade", "trade", "orderbook", "reject")))
                value = b"%d.%d" % (number, index)
                trade_id = b"t" + value if channel == "trade" else b""
                headers = (("reason", b"not_json"),) if channel == "reject" else ()
                key = draw(st.sampled_from(KEYS))
                made[capture_id].append(Made(channel, key, number, index, value, trade_id, headers))
    return made


def damaged(log: dict[Place, list[Msg]], rng: random.Random, times: int) -> None:
    """Harm the topics in any way, so many times."""
    for _ in range(times):
        where = rng.choice(sorted(log))
        messages = log[where]
        at = rng.randrange(len(messages) + 1)
        what = rng.choice(("drop", "cut", "double", "swap", "change", "foreign", "orphan", "move", "strip"))
        if what == "foreign":
            messages.insert(at, replace(message(rng.choice(SEVERAL), FOREIGN)))
        elif what == "orphan":
            position = POSITION.pack(rng.randrange(100), rng.randrange(4), START_NS + rng.randrange(3))
            messages.insert(at, Msg(0, b"A", b"?", 5, (("kcs", rng.choice((ONE, TWO)) + position),)))
        elif at == len(messages):
            continue
        elif what == "drop":
            del messages[at]
        elif what == "cut":
            del messages[at : at + rng.randrange(10)]
        elif what == "double":
            messages.insert(rng.randrange(len(messages) + 1), messages[at])
        elif what == "swap":
            other = rng.randrange(len(messages))
            messages[at], messages[other] = messages[other], messages[at]
        elif what == "move":
            moved = messages.pop(at)
            log[rng.choice(sorted(log))].append(moved)
        elif what == "strip":
            messages[at] = replace(messages[at], headers=())
        elif messages[at].headers:
            make, _ = CHANGES[rng.choice(sorted(CHANGES))]
            messages[at] = make(messages[at])


def renumbered(log: dict[Place, list[Msg]], rng: random.Random) -> dict[Place, list[Msg]]:
    """With offsets that no two records of these topics share, so that a name is one record."""
    first, done = 0, {}
    for where in sorted(log):
        done[where] = numbered(log[where], first + rng.randrange(5))
        first += 1_000
    return done


def turns(log: Mapping[Place, Sequence[Msg]], rng: random.Random) -> Iterator[tuple[Place, Sequence[Msg]]]:
    """The partitions in batches, taking turns in any way."""
    left = {where: list(messages) for where, messages in log.items() if messages}
    while left:
        where = rng.choice(sorted(left))
        size = rng.randint(1, 7)
        yield where, left[where][:size]
        left[where] = left[where][size:]
        if not left[where]:
            del left[where]


def named(report: TopicReport, records: Sequence[Made]) -> set[tuple[str, str, int, int | None, int, int]]:
    """Findings as the oracle has them: missing runs taken apart."""
    found = set()
    for each in report.findings:
        if each.fault != "missing":
            found.add((each.fault, each.topic, each.partition, each.offset, each.frame, each.event))
            continue
        where, last = (each.topic, each.partition), each.last
        assert last is not None
        run = [made.at for made in records if place(made) == where and (each.frame, each.event) <= made.at <= last]
        assert len(run) == each.records
        found |= {("missing", *where, None, *at) for at in run}
    return found


def check(audit: Audit, capture_id: bytes, records: Sequence[Made], told: Told) -> None:
    report = audit.report(capture_id)
    for count in ("expected", "found", "doubled", "misplaced", "orphans", "beyond", "out_of_order", "different"):
        assert getattr(report, count) == getattr(told, count), count
    assert named(report, records) == told.named
    assert report.missing == sum(each[0] == "missing" for each in told.named)
    assert report.expected == report.present + report.missing
    assert report.found == report.present + report.doubled + report.misplaced + report.orphans
    for each in report.findings:
        if each.fault == "different":
            assert each.fields == told.fields[each.offset]
    assert report.ok == (not told.named)


@settings(max_examples=300, deadline=None)
@given(made=captures(), seed=st.integers(0, 2**32), times=st.integers(0, 12))
def test_any_mixture_is_named_exactly(made: dict[bytes, list[Made]], seed: int, times: int) -> None:
    rng = random.Random(seed)
    log = logs(made)
    for topic in TOPICS.values():
        log.setdefault((topic, 0), [])
    damaged(log, rng, times)
    log = renumbered(log, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "EXAMPLES_MAX", 10**6)
        audit = expecting(made)
        for where, messages in turns(log, rng):
            audit.take(where, messages)
        for capture_id, records in made.items():
            check(audit, capture_id, records, oracle(capture_id, records, log))
        audit.close()
    every = [each for messages in log.values() for each in messages]
    ids = [next((content for name, content in each.headers if name == "kcs"), b"")[:8] for each in every]
    assert audit.other_captures == ids.count(FOREIGN)
    assert audit.without_header == ids.count(b"")
