"""What a dead run left is delivered once and in order, whatever dies on the way; what cannot be is refused by name."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import InvalidTimestampError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcs import deliver as module
from kcs import destination
from kcs.capture.leftover import seal_in_place
from kcs.clock import VirtualClock
from kcs.deliver import Delivered, deliver, deliver_all, described
from kcs.errors import CaptureBusyError, CaptureError, CaptureWriteError, KafkaError, UndeliverableError
from kcs.kafka import marks, topics
from kcs.kafka.batch import BatchRecord
from kcs.kafka.partition import partition_of
from kcs.kafka.settings import KafkaSettings
from kcs.live.receipt import (
    Claim,
    DeliveryInfo,
    delivery_path,
    read_delivery,
    read_receipt,
    receipt_path,
    write_delivery,
)
from kcs.model import CloseFields, Kind, OpenFields
from kcs.sink import POSITION, RECORD_SCHEMA_VERSION
from kcs.verify import verify
from tests.broker import CLUSTER, Broker, begin_delivery, made_by
from tests.capture.making import chunks_of
from tests.capture.test_reader import flip
from tests.kafka.fakes import Answer
from tests.replay.making import START_NS, capture_id, make, trade, trades, until, writer

COUNTS = {"gap.upbit": 1, "reject.upbit": 1, "trade.upbit": 3}
MARKETS = tuple(f"KRW-{n}" for n in range(7))
SETTINGS = KafkaSettings("fake:9092", settle_s=0, batch_bytes_max=2_000)


def frames(count: int, first: int = 0) -> list[tuple[int, bytes]]:
    """Trades of seven markets, and a frame now and then that is none."""
    return [
        (START_NS + n * 1_000_000, b"junk" if n % 50 == 17 else trade(n, MARKETS[n % 7]))
        for n in range(first, first + count)
    ]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker(COUNTS)
    broker.install(monkeypatch)
    return broker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sealed capture whose delivery began."""
    path = make(tmp_path, 1, frames(600))
    begin_delivery(path, COUNTS)
    return path


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, level: str, text: str) -> None:
        self.lines.append((level, text))


async def delivering(broker: Broker, path: Path, **how: Any) -> Delivered:
    how.setdefault("settle_s", 0)
    how.setdefault("settings", SETTINGS)
    kafka = how.pop("settings")
    return await deliver(path, kafka, VirtualClock(START_NS), connector=broker.connect, **how)


def run(broker: Broker, path: Path, **how: Any) -> Delivered:
    """One delivery to its end."""
    return asyncio.run(asyncio.wait_for(delivering(broker, path, **how), 20))


def die(broker: Broker, path: Path, at: int, *, written: bool) -> bool:
    """A delivery whose process dies at batch `at`; False when it came to its end before."""

    async def go() -> bool:
        died = broker.die_at(at, written=written)
        task = asyncio.ensure_future(delivering(broker, path))
        await asyncio.wait({task, asyncio.ensure_future(died.wait())}, return_when=asyncio.FIRST_COMPLETED)
        ended = task.done()
        if not ended:
            task.cancel()
            await asyncio.wait({task})
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        return not ended

    try:
        return asyncio.run(asyncio.wait_for(go(), 20))
    finally:
        broker.revive()


def produce_some(broker: Broker, path: Path, upto: int, *, beyond: Iterable[int] = ()) -> int:
    """What the live run had delivered: records of frames below `upto`, and of frames that never reached the disk."""
    count = 0
    by_place: dict[tuple[str, int], list[Any]] = {}
    for topic, key, value, header in made_by(path, broker.topics):
        number = POSITION.unpack(header[8:])[0]
        if number < upto:
            by_place.setdefault(place_of(broker, topic, key), []).append((number, key, value, header))
            count += 1
    for number in beyond:
        key = MARKETS[number % 7].encode()
        header = capture_id(1) + POSITION.pack(number, 0, START_NS)
        by_place.setdefault(place_of(broker, "trade.upbit", key), []).append((number, key, b"[1]", header))
    for place, records in by_place.items():
        write(broker, place, sorted(records))
    return count


def place_of(broker: Broker, topic: str, key: bytes) -> tuple[str, int]:
    return topic, partition_of(key, broker.topics[topic])


def write(broker: Broker, place: tuple[str, int], records: list[Any]) -> None:
    broker.log[place] += [
        BatchRecord(header[8:], START_NS // 1_000_000, key, value, [("kcs", header)])
        for _, key, value, header in records
    ]


# --- exactly the rest -------------------------------------------------------------------------------------------------


def test_nothing_there_means_all_of_it_and_a_receipt(broker: Broker, path: Path) -> None:
    done = run(broker, path)
    assert broker.holds() == made_by(path, COUNTS)
    assert (done.already, done.orphans, done.missing, done.stopped, done.complete) == (0, 0, None, False, True)
    assert (done.ledger.captured, done.ledger.produced, done.ledger.acked) == (600, 600, 600)
    assert done.digest == verify(path).digest
    receipt = read_receipt(path)
    assert receipt is not None
    assert done.receipt == receipt_path(path)
    assert (receipt.digest, receipt.recovered, receipt.whole, receipt.uncaptured) == (done.digest, True, True, 0)
    assert (receipt.records.produced, receipt.records.acked, receipt.records.failed) == (600, 600, 0)
    assert (receipt.cluster, receipt.template, receipt.record_schema) == (
        CLUSTER,
        "{channel}.{exchange}",
        RECORD_SCHEMA_VERSION,
    )
    for topic, partitions in receipt.offsets.items():
        for number, of in partitions.items():
            assert (of.first, of.last) == (0, len(broker.log[topic, number]) - 1)
    assert verify(path).ok
    assert "missing" not in json.loads(receipt_path(path).read_text())


@pytest.mark.parametrize("upto", [0, 1, 50, 333, 599, 600])
def test_exactly_the_rest(broker: Broker, path: Path, upto: int) -> None:
    before = produce_some(broker, path, upto)
    done = run(broker, path)
    assert broker.holds() == made_by(path, COUNTS)
    assert (done.already, done.ledger.acked) == (before, 600)
    assert done.digest == verify(path).digest
    receipt = read_receipt(path)
    assert receipt is not None
    assert receipt.records.acked == 600
    assert {(t, p): (o.first, o.last) for t, ps in receipt.offsets.items() for p, o in ps.items()} == {
        place: (0, len(records) - 1) for place, records in broker.log.items() if records
    }


def test_partitions_stand_at_different_places(broker: Broker, path: Path) -> None:
    produce_some(broker, path, 400)
    del broker.log["trade.upbit", 0][3:]
    del broker.log["trade.upbit", 2][:]
    del broker.log["reject.upbit", 0][1:]
    run(broker, path)
    assert broker.holds() == made_by(path, COUNTS)


def test_what_else_is_in_the_topics_does_not_matter(broker: Broker, path: Path, tmp_path: Path) -> None:
    other = make(tmp_path, 2, frames(100))
    begin_delivery(other, COUNTS)
    produce_some(broker, path, 200)
    run(broker, other)
    run(broker, path)
    theirs = [made for made in broker.holds() if made[3][:8] == capture_id(2)]
    assert theirs == made_by(other, COUNTS)
    assert [made for made in broker.holds() if made[3][:8] == capture_id(1)] == made_by(path, COUNTS)
    receipt = read_receipt(path)
    assert receipt is not None
    for topic, partitions in receipt.offsets.items():
        for number, of in partitions.items():
            for offset in (of.first, of.last):
                assert dict(broker.log[topic, number][offset].headers)["kcs"][:8] == capture_id(1)


@given(
    st.integers(0, 300),
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4),
    st.integers(1, 4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_killed_at_any_batch_again_and_again_it_is_delivered_once_and_in_order(
    tmp_path: Path, upto: int, deaths: list[tuple[int, bool]], partitions: int
) -> None:
    counts = {**COUNTS, "trade.upbit": partitions}
    path = made_once(tmp_path, counts)
    receipt_path(path).unlink(missing_ok=True)
    broker = Broker(counts)
    with pytest.MonkeyPatch.context() as monkeypatch:
        broker.install(monkeypatch)
        produce_some(broker, path, upto)
        for at, written in deaths:
            if not die(broker, path, at, written=written):
                break
            assert not receipt_path(path).exists()
        if not receipt_path(path).exists():
            run(broker, path)
    assert broker.holds() == made_by(path, counts)


def made_once(tmp_path: Path, counts: dict[str, int]) -> Path:
    found = sorted(tmp_path.glob("1/*.zst"))
    path = found[0] if found else make(tmp_path, 1, frames(300))
    begin_delivery(path, counts)
    return path


def test_a_delivery_that_dies_leaves_no_receipt_and_lets_go(broker: Broker, path: Path) -> None:
    assert die(broker, path, 3, written=True)
    assert not receipt_path(path).exists()
    Claim(path).release()
    done = run(broker, path)
    assert done.already > 0
    assert broker.holds() == made_by(path, COUNTS)


# --- the capture's end ------------------------------------------------------------------------------------------------


def test_records_of_frames_that_died_with_the_process_stay_and_are_counted(broker: Broker, path: Path) -> None:
    produce_some(broker, path, 600, beyond=range(600, 620))
    del broker.log["trade.upbit", 0][4:]
    holds = made_by(path, COUNTS)
    done = run(broker, path)
    orphans = [made for made in broker.holds() if POSITION.unpack(made[3][8:])[0] >= 600]
    assert [made for made in broker.holds() if made not in orphans] == holds
    assert done.orphans == len(orphans) > 0
    receipt = read_receipt(path)
    assert receipt is not None
    assert receipt.uncaptured == done.orphans
    assert receipt.digest == verify(path).digest, "the capture itself is whole"
    for topic, partitions in receipt.offsets.items():
        for number, of in partitions.items():
            numbers = [POSITION.unpack(record.position)[0] for record in broker.log[topic, number]]
            assert numbers[of.last] < 600
            assert of.last + 1 == len(numbers) or numbers[of.last + 1] >= 600
    assert f"{done.orphans} records of frames that died" in described(done)


def test_an_empty_capture_of_which_records_died(broker: Broker, tmp_path: Path) -> None:
    path = make(tmp_path, 1, [])
    begin_delivery(path, COUNTS)
    produce_some(broker, path, 0, beyond=range(20))
    before = broker.holds()
    done = run(broker, path)
    assert broker.holds() == before
    assert (done.orphans, done.ledger.produced) == (20, 0)
    receipt = read_receipt(path)
    assert receipt is not None
    assert (receipt.uncaptured, receipt.offsets) == (20, {})


def test_a_damaged_capture_is_delivered_as_far_as_it_goes_and_never_again(broker: Broker, path: Path) -> None:
    produce_some(broker, path, 75)
    second = chunks_of(path)[1]
    flip(path, second.offset + 90, 2)
    done = run(broker, path)
    numbers = sorted(POSITION.unpack(made[3][8:])[0] for made in broker.holds())
    assert numbers == sorted([*range(75), *range(100, 600)])
    assert (done.digest, done.complete, done.ledger.unread) == (None, True, 50)
    assert done.missing is not None
    receipt = read_receipt(path)
    assert receipt is not None
    assert (receipt.whole, receipt.digest) == (False, None)
    assert receipt.missing is not None
    assert receipt.missing.records == 50
    assert "checksum" in receipt.missing.damage[0]
    assert not verify(path).ok
    assert "not whole" in described(done)
    with pytest.raises(CaptureError, match="nothing of it is left"):
        run(broker, path)


def test_frames_that_a_close_counted_and_that_are_not_there(broker: Broker, tmp_path: Path) -> None:
    target = writer(tmp_path, 1)
    target.append_fields(Kind.OPEN, 0, START_NS, OpenFields("ws://venue.test/"))
    target.append(Kind.TEXT, 0, START_NS, trade(1))
    target.append_fields(Kind.CLOSE, 0, START_NS, CloseFields(1006, frames=8))
    path = target.close(START_NS)[0].path
    begin_delivery(path, COUNTS)
    done = run(broker, path)
    assert done.missing is not None
    assert done.missing.records == 7
    assert "says 8 frames" in done.missing.damage[0]
    assert verify(path).whole is False


def test_many_damaged_places_are_not_all_told(broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DAMAGE_SHOWN", 1)
    chunks = chunks_of(path)
    for number in (1, 3, 5):
        flip(path, chunks[number].offset + 90, 2)
    done = run(broker, path)
    assert done.missing is not None
    assert done.missing.records == 150
    assert len(done.missing.damage) == 2
    assert "and 2 more" in done.missing.damage[1]


def test_a_cut_end_is_unknown_not_nothing(broker: Broker, path: Path) -> None:
    os.truncate(path, chunks_of(path)[9].offset)
    done = run(broker, path)
    assert done.missing is not None
    assert done.missing.records is None
    assert done.ledger.lost
    receipt = read_receipt(path)
    assert receipt is not None
    assert (receipt.whole, receipt.missing) == (False, done.missing)


def test_an_unfinished_chunk_that_the_seal_cut_off_is_no_damage(broker: Broker, path: Path) -> None:
    os.truncate(path, chunks_of(path)[9].offset + 100)
    path.rename(path.with_name(path.name + ".partial"))
    produce_some(broker, path.with_name(path.name + ".partial"), 450, beyond=range(450, 470))
    seal_in_place(path.with_name(path.name + ".partial"))
    done = run(broker, path)
    assert (done.missing, done.orphans) == (None, 20)
    assert done.digest == verify(path).digest
    assert verify(path).ok


def test_a_capture_that_could_not_be_sealed_is_delivered_without_a_receipt_until_it_is(
    broker: Broker, path: Path
) -> None:
    sealed_bytes = path.read_bytes()
    partial = path.with_name(path.name + ".partial")
    path.rename(partial)
    os.truncate(partial, chunks_of(partial)[9].offset + 100)
    done = run(broker, partial)
    assert (done.sealed, done.receipt, done.complete) == (False, None, True)
    assert broker.holds() == made_by(partial, COUNTS)
    partial.unlink()
    path.write_bytes(sealed_bytes)
    assert run(broker, path).receipt is not None
    assert broker.holds() == made_by(path, COUNTS)


def test_a_record_that_the_broker_refuses_is_counted_and_not_tried_at_each_start(broker: Broker, path: Path) -> None:
    def decide(place: tuple[str, int], batch: Any) -> Answer:
        numbers = [POSITION.unpack(position)[0] for position in batch.positions]
        return Answer(InvalidTimestampError()) if 321 in numbers else Answer()

    broker.decide = decide
    done = run(broker, path)
    assert (done.ledger.failed, done.ledger.acked, done.complete) == (1, 599, False)
    receipt = read_receipt(path)
    assert receipt is not None
    assert (receipt.records.produced, receipt.records.acked, receipt.records.failed) == (600, 599, 1)
    assert "1 failed" in described(done)


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_partitions_added_since_change_nothing(broker: Broker, path: Path) -> None:
    produce_some(broker, path, 300)
    broker.topics["trade.upbit"] = 9
    run(broker, path)
    assert broker.holds() == made_by(path, COUNTS)


def test_the_template_is_that_of_the_delivery_file(broker: Broker, path: Path) -> None:
    counts = {name.replace(".", "-v1."): count for name, count in COUNTS.items()}
    broker.topics = dict(counts)
    begin_delivery(path, counts, template="{channel}-v1.{exchange}")
    run(broker, path)
    assert broker.holds() == made_by(path, counts, "{channel}-v1.{exchange}")


def test_a_delivery_that_began_without_a_broker_is_put_right_before_the_first_record(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.topics = {"trade.upbit": 2}
    begin_delivery(path, {}, cluster=None, bootstrap="fake:9092")
    known: list[Any] = []

    def decide(place: tuple[str, int], batch: Any) -> Answer:
        known.append(read_delivery(path))
        with pytest.raises(CaptureBusyError):
            Claim(path)  # the new file is held as the old one was
        return Answer()

    broker.decide = decide
    run(broker, path)
    assert known[0].cluster == CLUSTER
    assert known[0].partitions == {"gap.upbit": 1, "reject.upbit": 1, "trade.upbit": 2}
    assert broker.holds() == made_by(path, broker.topics)
    Claim(path).release()


def test_it_settles_after_the_replicas_are_in_sync_and_before_the_marks_are_read(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds:
            broker.asked.append(f"{seconds:g} s")
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    run(broker, path, settle_s=5.0)
    assert broker.asked == ["in sync?", "5 s", "marks?"]


def refused(broker: Broker, path: Path) -> str:
    with pytest.raises(UndeliverableError) as caught:
        run(broker, path)
    assert caught.value.remedy
    assert broker.holds() == []
    assert not receipt_path(path).exists()
    return str(caught.value)


def test_refusals_say_what_and_what_to_do(broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_delivery(path, COUNTS, headers=False)
    assert "headers were off" in refused(broker, path)
    with monkeypatch.context() as patched:
        patched.setattr(destination, "VENUES", {})
        begin_delivery(path, COUNTS)
        assert "exchange 'upbit' is none that this kcs knows" in refused(broker, path)
    begin_delivery(path, COUNTS, cluster="another")
    said = refused(broker, path)
    assert "cluster another" in said
    assert "cluster fake" in said
    begin_delivery(path, COUNTS, template="{nothing}")
    assert "{nothing}" in refused(broker, path)
    begin_delivery(path, {**COUNTS, "trade.upbit": 4})
    said = refused(broker, path)
    assert "has 3 partitions" in said
    assert "went to 4" in said
    begin_delivery(path, {**COUNTS, "ticker.upbit": 1})
    assert "topic ticker.upbit at fake:9092: it is gone" in refused(broker, path)
    assert "ticker.upbit" not in broker.topics, "it must not be made with another number of partitions"
    written = json.loads(delivery_path(path).read_text())
    delivery_path(path).write_text(json.dumps({**written, "record_schema": 99}))
    assert "record schema 99" in refused(broker, path)
    delivery_path(path).write_text(json.dumps({**written, "capture": "00" * 8}))
    assert "about capture 0000000000000000" in refused(broker, path)
    begin_delivery(path, COUNTS)
    broker.cluster_id = "mockClusterXYZ"
    assert topics.is_embedded(broker.cluster_id)
    assert "embedded broker keeps nothing" in refused(broker, path)


def test_no_delivery_file_or_one_that_is_damaged(broker: Broker, path: Path) -> None:
    delivery_path(path).write_text("{")
    with pytest.raises(CaptureError, match="cannot be read") as caught:
        run(broker, path)
    assert str(delivery_path(path)) in str(caught.value)
    delivery_path(path).unlink()
    with pytest.raises(CaptureError, match="nothing of it was ever to go"):
        run(broker, path)


def test_two_at_once_is_one_too_many(broker: Broker, path: Path) -> None:
    claim = Claim(path)
    with pytest.raises(CaptureBusyError, match="another kcs is delivering"):
        run(broker, path)
    claim.release()
    run(broker, path)


def test_a_capture_that_is_being_written_is_busy(broker: Broker, tmp_path: Path) -> None:
    target = writer(tmp_path, 1)
    begin_delivery(target.path, COUNTS)
    with pytest.raises(CaptureBusyError, match="still writing"):
        run(broker, target.path)
    target.close(START_NS)


# --- stopping, trouble ------------------------------------------------------------------------------------------------


def test_told_to_stop_it_ends_soon_and_the_next_run_goes_on(broker: Broker, path: Path) -> None:
    async def stopped_at(record: int) -> Delivered:
        stop = asyncio.Event()
        fed: list[int] = []

        def look(number: int) -> None:
            fed.append(number)
            if number >= record:
                stop.set()

        done = await delivering(broker, path, stop=stop, on_progress=look)
        assert max(b - a for a, b in zip([0, *fed], fed, strict=False)) <= module.SLICE_RECORDS
        return done

    done = asyncio.run(stopped_at(200))
    assert done.stopped
    assert not done.complete
    assert (done.receipt, done.digest) == (None, None)
    assert 200 <= done.ledger.acked == len(broker.holds()) <= 200 + module.SLICE_RECORDS
    assert "the next start goes on" in described(done)
    assert not run(broker, path, stop=asyncio.Event()).stopped
    assert broker.holds() == made_by(path, COUNTS)


def test_others_get_their_turn_every_128_records(broker: Broker, path: Path) -> None:
    async def go() -> list[int]:
        fed, seen = [0], []

        async def spin() -> None:
            while True:
                seen.append(fed[-1])
                await asyncio.sleep(0)

        spinner = asyncio.ensure_future(spin())
        await delivering(broker, path, on_progress=fed.append)
        spinner.cancel()
        return [0, *seen, fed[-1]]

    seen = asyncio.run(go())
    assert seen[-1] == 600
    assert max(b - a for a, b in itertools.pairwise(seen)) <= module.SLICE_RECORDS


def test_told_to_stop_while_it_waits_for_replicas(broker: Broker, path: Path) -> None:
    async def go() -> Delivered:
        broker.in_sync.clear()
        stop = asyncio.Event()
        task = asyncio.ensure_future(delivering(broker, path, stop=stop))
        await until(lambda: "in sync?" in broker.asked)
        stop.set()
        return await task

    done = asyncio.run(go())
    assert done.stopped
    assert broker.holds() == []


def test_told_to_stop_while_no_ack_comes(broker: Broker, path: Path) -> None:
    async def go() -> Delivered:
        stop = asyncio.Event()
        hung = broker.die_at(4, written=False)
        small = KafkaSettings("fake:9092", settle_s=0, batch_bytes_max=1_024, buffer_bytes_max=4_096)
        task = asyncio.ensure_future(delivering(broker, path, settings=small, stop=stop, drain_s=0))
        await hung.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        stop.set()
        return await task

    done = asyncio.run(go())
    broker.revive()
    assert done.stopped
    assert done.ledger.in_flight > 0
    run(broker, path)
    assert broker.holds() == made_by(path, COUNTS)


def test_memory_is_bounded_by_the_buffer(broker: Broker, path: Path) -> None:
    """A broker that never answers: what is fed ends soon, long before the capture does."""

    async def go() -> int:
        broker.die_at(1, written=False)
        fed = [0]
        small = KafkaSettings("fake:9092", settle_s=0, batch_bytes_max=1_024, buffer_bytes_max=4_096)
        task = asyncio.ensure_future(delivering(broker, path, settings=small, on_progress=fed.append))
        for _ in range(200):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return fed[-1]

    assert asyncio.run(go()) < 200


def test_a_broker_that_goes_away_raises_and_the_next_run_goes_on(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise KafkaError("no broker answers")

    with monkeypatch.context() as patched:
        patched.setattr(marks, "read_extents", away)
        with pytest.raises(KafkaError):
            run(broker, path)
    assert not receipt_path(path).exists()
    done = run(broker, path)
    assert done.already == 600
    assert broker.holds() == made_by(path, COUNTS)


def test_a_disk_that_takes_no_receipt_is_told_and_the_next_delivery_writes_it(
    broker: Broker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise CaptureWriteError("cannot write it: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_receipt", full)
        done = run(broker, path)
    assert (done.receipt, done.complete) == (None, True)
    assert "no receipt: cannot write it: the disk is full" in described(done)
    done = run(broker, path)
    assert done.already == 600
    assert done.receipt == receipt_path(path)
    assert broker.holds() == made_by(path, COUNTS)


def test_a_torn_receipt_is_written_anew(broker: Broker, path: Path) -> None:
    done = run(broker, path)
    whole = receipt_path(path).read_bytes()
    receipt_path(path).write_bytes(whole[:80])
    again = run(broker, path)
    assert (again.already, again.digest) == (600, done.digest)
    assert receipt_path(path).read_bytes() == whole
    assert broker.holds() == made_by(path, COUNTS)


# --- no capture -------------------------------------------------------------------------------------------------------


def test_a_delivery_file_without_a_capture_is_settled_by_counting(broker: Broker, path: Path) -> None:
    produce_some(broker, path, 30)
    before = broker.holds()
    content = path.read_bytes()
    path.unlink()
    done = run(broker, path)
    assert broker.holds() == before
    assert (done.absent, done.orphans, done.sealed, done.receipt) == (True, 30, False, receipt_path(path))
    assert "30 records of it are in Kafka" in described(done)
    receipt = read_receipt(path)
    assert receipt is not None
    assert (receipt.absent, receipt.whole, receipt.digest, receipt.uncaptured) == (True, False, None, 30)
    with pytest.raises(CaptureError, match="nothing of it is left"):
        run(broker, path)
    path.write_bytes(content)
    again = run(broker, path)
    assert (again.already, again.absent, again.receipt) == (30, False, receipt_path(path))
    assert broker.holds() == made_by(path, COUNTS)
    assert read_receipt(path) != receipt


def test_nothing_is_asked_of_kafka_where_nothing_can_be_there(broker: Broker, path: Path) -> None:
    path.unlink()
    begin_of(path, None, {})
    done = run(broker, path)
    assert (done.orphans, broker.asked) == (0, [])
    begin_of(path, CLUSTER, COUNTS)
    receipt_path(path).unlink()
    run(broker, path)
    assert broker.asked == ["in sync?", "marks?"]


def begin_of(path: Path, cluster: str | None, counts: dict[str, int]) -> None:
    info = DeliveryInfo(cluster, "{channel}.{exchange}", True, counts, lambda capture_id: None, "fake:9092")
    write_delivery(path, capture_id(1), info)


def test_a_delivery_file_of_no_capture_at_all(broker: Broker, path: Path) -> None:
    path.unlink()
    written = json.loads(delivery_path(path).read_text())
    for name in ("nothing", "00" * 8, ""):
        delivery_path(path).write_text(json.dumps({**written, "capture": name}))
        assert "there is none" in refused(broker, path)


# --- several ----------------------------------------------------------------------------------------------------------


def test_several_in_order_settling_once_and_passing_over_what_cannot_be(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make(tmp_path, number, frames(40, number * 40)) for number in (1, 2, 3)]
    for path in paths:
        begin_delivery(path, COUNTS, headers=path is not paths[0])
    settled: list[float] = []
    real = module.deliver

    async def noted(path: Path, *args: Any, settle_s: float, **how: Any) -> Delivered:
        settled.append(settle_s)
        return await real(path, *args, settle_s=0.0, connector=broker.connect, **how)

    monkeypatch.setattr(module, "deliver", noted)
    log = Log()
    done = asyncio.run(deliver_all(paths, SETTINGS, VirtualClock(START_NS), log=log, settle_s=3.0))
    assert [one.path for one in done] == paths[1:]
    assert settled == [3.0, 3.0, 0.0]
    assert [level for level, _ in log.lines] == ["error"]
    assert paths[0].name in log.lines[0][1]
    stop = asyncio.Event()
    stop.set()
    assert asyncio.run(deliver_all(paths, SETTINGS, VirtualClock(START_NS), log=log, stop=stop)) == []


def test_a_capture_without_its_header_goes_by_the_delivery_file(broker: Broker, path: Path) -> None:
    before = made_by(path, COUNTS)
    flip(path, 20, 2)
    done = run(broker, path)
    assert broker.holds() == before
    assert done.missing is not None
    assert done.missing.records == 0
    assert done.ledger.unread == 0


def test_trades_alone_need_no_other_topics(broker: Broker, path: Path) -> None:
    assert set(broker.topics) == set(COUNTS)
    run(broker, path)
    assert set(broker.topics) == set(COUNTS)


def test_empty_trades(broker: Broker, tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(0))
    begin_delivery(path, COUNTS)
    assert run(broker, path).receipt is not None
