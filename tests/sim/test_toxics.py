"""The bad network on its own: bytes and times in, bytes and times out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_S
from kcs.sim.fault_log import SimFaultLog
from kcs.sim.fault_text import parse_faults
from kcs.sim.schedule import FOREVER
from kcs.sim.toxics import How, Item, PipeEnd, ToxicPipe
from tests.sim.scripted import ms, stage


def piped(faults: str, *, seed: int = 7, connection: int = 1) -> tuple[ToxicPipe, SimFaultLog]:
    log = SimFaultLog()
    return ToxicPipe(parse_faults(faults).toxics, stage(log, seed=seed, connection=connection)), log


def data(items: list[Item]) -> bytes:
    return b"".join(item for _, item in items if isinstance(item, bytes))


def test_without_toxics_it_is_a_pipe() -> None:
    pipe, log = piped("")
    pipe.feed(ms(1), b"abc")
    pipe.feed(ms(2), b"")
    pipe.feed(ms(2), b"def")
    assert (pipe.next_due_ns, pipe.waiting_bytes, pipe.empty) == (ms(1), 6, False)
    assert pipe.poll(ms(1)) == [(ms(1), b"abc")]
    assert pipe.poll(ms(9)) == [(ms(2), b"def")]
    assert (pipe.next_due_ns, pipe.waiting_bytes, pipe.empty) == (FOREVER, 0, True)
    pipe.end(ms(9), How.EOF, "bye")
    pipe.end(ms(9), How.ABORT)
    pipe.feed(ms(9), b"late")
    assert pipe.poll(ms(9)) == [(ms(9), PipeEnd(How.EOF, "bye"))]
    assert (pipe.ended, pipe.next_due_ns, pipe.empty) == (True, FOREVER, True)
    assert pipe.poll(FOREVER) == []
    assert not log.entries


def test_latency_delays_each_chunk_and_the_end() -> None:
    pipe, log = piped("latency=50ms")
    for at in (0, 7, 20):
        pipe.feed(ms(at), b"%d" % at)
    pipe.end(ms(20), How.ABORT)
    assert pipe.next_due_ns == ms(50)
    assert pipe.poll(ms(57)) == [(ms(50), b"0"), (ms(57), b"7")]
    assert pipe.poll(ms(99)) == [(ms(70), b"20"), (ms(70), PipeEnd(How.ABORT))]
    assert [(entry.fault, entry.detail) for entry in log.entries] == [("latency", "50ms")], "once a connection"


def test_latency_in_windows_keeps_the_order() -> None:
    pipe, log = piped("latency=50ms@every:100ms@for:10ms")
    for at in (99, 100, 109, 111, 150, 200):
        pipe.feed(ms(at), b"%d " % at)
    assert pipe.poll(ms(999)) == [
        (ms(99), b"99 "), (ms(150), b"100 "), (ms(159), b"109 "), (ms(159), b"111 "), (ms(159), b"150 "),
        (ms(250), b"200 "),
    ]  # fmt: skip
    assert [entry.at_ns for entry in log.of("latency")] == [ms(100), ms(200)]


def test_jitter_is_plus_or_minus_and_never_overtakes() -> None:
    pipe, _ = piped("latency=50ms,jitter=20ms")
    for n in range(2_000):
        pipe.feed(ms(100 * n), b"x")
    delays = [due_ns - ms(100 * n) for n, (due_ns, _) in enumerate(pipe.poll(FOREVER - 1))]
    assert ms(30) <= min(delays) < ms(31)
    assert ms(69) < max(delays) <= ms(70)
    assert ms(49) < sum(delays) / len(delays) < ms(51)
    quick, _ = piped("jitter=20ms")
    for n in range(2_000):
        quick.feed(ms(n), b"x")
    times = [due_ns for due_ns, _ in quick.poll(FOREVER - 1)]
    assert times == sorted(times)
    assert all(ms(n) <= due_ns <= ms(n + 20) for n, due_ns in enumerate(times))


def test_bandwidth_is_bytes_a_second_in_pieces() -> None:
    pipe, _ = piped("bandwidth=1KB/s")
    pipe.feed(0, bytes(250))
    pipe.feed(ms(10), bytes(50))
    assert [(due_ns, len(item)) for due_ns, item in pipe.poll(ms(999)) if isinstance(item, bytes)] == [
        (ms(100), 100), (ms(200), 100), (ms(250), 50), (ms(300), 50),
    ]  # fmt: skip
    pipe.feed(ms(2_000), bytes(10))
    assert pipe.poll(ms(3_000)) == [(ms(2_010), bytes(10))], "an idle line owes nothing"


def test_the_slicer_cuts_within_its_variation() -> None:
    pipe, _ = piped("slicer=64B:16B:500us")
    sent = bytes(n % 251 for n in range(10_000))
    pipe.feed(ms(1), sent)
    items = pipe.poll(FOREVER - 1)
    assert data(items) == sent
    sizes = [len(item) for _, item in items if isinstance(item, bytes)]
    assert (min(sizes[:-1]), max(sizes)) == (48, 80)
    assert 60 < sum(sizes[:-1]) / len(sizes[:-1]) < 68
    assert [due_ns for due_ns, _ in items] == [ms(1) + n * 500_000 for n in range(len(items))]


def test_a_slow_close_puts_off_only_the_end() -> None:
    pipe, log = piped("slow_close=2s")
    pipe.feed(ms(5), b"close frame")
    pipe.end(ms(5), How.EOF)
    assert pipe.poll(ms(5)) == [(ms(5), b"close frame")]
    assert pipe.next_due_ns == ms(2_005)
    assert pipe.poll(ms(2_005)) == [(ms(2_005), PipeEnd(How.EOF))]
    assert log.counts == {"slow_close": 1}
    quick, log = piped("slow_close=2s")
    quick.feed(ms(5), b"x")
    assert not log.entries, "what never ends is not slow to close"


def test_limit_data_lets_exactly_so_many_bytes_through() -> None:
    pipe, log = piped("limit_data=10B")
    pipe.feed(0, b"handshake, not counted", draws=False)
    pipe.feed(ms(1), b"123456")
    pipe.feed(ms(2), b"789012")
    pipe.feed(ms(2), b"345")
    items = pipe.poll(ms(9))
    assert items[1:] == [(ms(1), b"123456"), (ms(2), b"7890"), (ms(2), PipeEnd(How.CLOSE, "limit_data"))]
    assert [(entry.at_ns, entry.detail) for entry in log.of("limit_data")] == [(ms(2), "closed, 5 bytes lost")]
    pipe.feed(ms(3), b"more")
    assert pipe.poll(ms(99)) == []


@pytest.mark.parametrize(("size", "ends"), [(9, False), (10, True), (11, True)])
def test_limit_data_closes_when_it_is_reached(size: int, ends: bool) -> None:
    pipe, _ = piped("limit_data=10B")
    pipe.feed(0, bytes(size))
    pipe.poll(ms(1))
    assert pipe.ended is ends


def test_limit_data_in_a_window_counts_from_its_beginning() -> None:
    pipe, _ = piped("limit_data=10B@every:10ms@for:3ms")
    for at in (1, 10, 14, 20, 22, 23, 31, 32):
        pipe.feed(ms(at), b"123456")
    items = pipe.poll(ms(99))
    assert items[-2:] == [(ms(22), b"1234"), (ms(22), PipeEnd(How.CLOSE, "limit_data"))]
    assert len(data(items)) == 4 * 6 + 4


def test_a_timeout_lets_nothing_through_and_then_closes() -> None:
    pipe, log = piped("latency=5ms,timeout=30ms@at:20ms")
    for at in (10, 16, 25, 40):
        pipe.feed(ms(at), b"%d" % at)
    assert pipe.poll(ms(20)) == [(ms(15), b"10")]
    assert pipe.next_due_ns == ms(21)
    assert pipe.poll(ms(49)) == []
    assert pipe.poll(ms(99)) == [(ms(50), PipeEnd(How.CLOSE, "timeout"))]
    assert [(entry.at_ns, entry.detail) for entry in log.of("timeout")] == [
        (ms(20), "30ms"), (ms(50), "closed, 6 bytes lost"),
    ]  # fmt: skip
    assert log.counts["timeout"] == 1


def test_a_timeout_of_0_never_closes() -> None:
    pipe, _ = piped("timeout=0s@after:20ms")
    pipe.feed(ms(19), b"a")
    pipe.feed(ms(20), b"b")
    pipe.feed(ms(9_000), b"c")
    assert pipe.poll(ms(99_000)) == [(ms(19), b"a")]
    assert (pipe.ended, pipe.waiting_bytes) == (False, 0)
    pipe.end(ms(99_000), How.EOF)
    assert pipe.poll(ms(99_000)) == [(ms(99_000), PipeEnd(How.EOF))], "that the venue ends it still arrives"


def test_a_bare_timeout_or_reset_is_about_the_beginning() -> None:
    pipe, _ = piped("timeout=30ms")
    pipe.feed(0, b"handshake", draws=False)
    assert pipe.poll(ms(99)) == [(ms(30), PipeEnd(How.CLOSE, "timeout"))]
    pipe, _ = piped("reset_peer")
    pipe.feed(0, b"handshake", draws=False)
    assert pipe.poll(0) == [(0, PipeEnd(How.RESET, "reset_peer"))]


def test_a_reset_loses_what_waits() -> None:
    pipe, log = piped("latency=5ms,reset_peer@every:20ms")
    for at in (10, 16):
        pipe.feed(ms(at), b"%d" % at)
    assert pipe.poll(ms(99)) == [(ms(15), b"10"), (ms(20), PipeEnd(How.RESET, "reset_peer"))]
    assert [(entry.at_ns, entry.detail) for entry in log.of("reset_peer")] == [(ms(20), "2 bytes lost")]


def test_a_reset_by_chance_is_drawn_at_each_time() -> None:
    ends = []
    for connection in range(1, 301):
        pipe, _ = piped("reset_peer@every:20ms@50%", connection=connection)
        ((at_ns, _),) = pipe.poll(ms(2_000))
        ends.append(at_ns // ms(20))
    assert 120 < ends.count(1) < 180
    assert 50 < ends.count(2) < 100


def test_a_property_by_chance_is_drawn_once_a_connection() -> None:
    slow = 0
    for connection in range(1, 301):
        pipe, log = piped("latency=5ms@20%", connection=connection)
        pipe.feed(ms(1), b"a")
        pipe.feed(ms(9), b"b")
        delays = {due_ns - ms(at) for at, (due_ns, _) in zip((1, 9), pipe.poll(ms(99)), strict=True)}
        assert delays in ({0}, {ms(5)})
        assert log.counts["latency"] == len(delays - {0})
        slow += delays == {ms(5)}
    assert 40 < slow < 80


def test_the_handshake_shifts_no_draws() -> None:
    def sizes(*, handshake: bool) -> list[Item]:
        pipe, _ = piped("slicer=8B,jitter=3ms,latency=9ms")
        if handshake:
            pipe.feed(0, bytes(200), draws=False)
        pipe.feed(ms(5), bytes(100))
        return pipe.poll(ms(99))[1 if handshake else 0 :]

    assert sizes(handshake=True) == sizes(handshake=False)


def test_too_much_is_given_up_at_once() -> None:
    pipe, log = piped("latency=5s")
    pipe.feed(ms(1), bytes(100))
    pipe.overflow(ms(2))
    pipe.overflow(ms(2))
    pipe.feed(ms(3), b"x")
    assert pipe.poll(ms(2)) == [(ms(2), PipeEnd(How.ABORT, "overflow"))]
    assert [entry.detail for entry in log.of("overflow")] == ["100 bytes lost"]


def test_draining_gives_all_at_once_unless_nothing_comes_through() -> None:
    pipe, _ = piped("latency=5s,slicer=3B")
    pipe.feed(0, b"abcdefgh")
    assert b"".join(pipe.drain()) == b"abcdefgh"
    assert (pipe.ended, pipe.waiting_bytes) == (True, 0)
    muted, _ = piped("timeout=0s")
    muted.poll(0)
    muted.feed(0, b"abc")
    assert muted.drain() == []


CHUNKS = st.lists(st.tuples(st.integers(0, ms(40)), st.binary(min_size=1, max_size=300)), max_size=20)
NETWORKS = st.sampled_from(
    [
        "latency=9ms",
        "jitter=9ms",
        "slicer=20B",
        "slicer=9B:3B:1ms",
        "bandwidth=5KB/s",
        "bandwidth=77B/s@every:50ms@for:20ms",
    ]
)


@given(CHUNKS, st.sets(NETWORKS, max_size=4), st.lists(st.integers(0, ms(30)), max_size=30))
@settings(max_examples=150, deadline=None)
def test_every_byte_comes_in_order_and_the_same_however_it_is_asked(
    chunks: list[tuple[int, bytes]], networks: set[str], polls: list[int]
) -> None:
    faults = ",".join({text.partition("=")[0]: text for text in sorted(networks)}.values())
    whole, sliced = piped(faults)[0], piped(faults)[0]
    now_ns, got, asks = 0, [], iter(polls)
    for wait_ns, chunk in chunks:
        now_ns += wait_ns
        for pipe in (whole, sliced):
            pipe.feed(now_ns, chunk)
        got += sliced.poll(now_ns + next(asks, 0))
    items = whole.poll(now_ns + 1000 * NS_PER_S)
    assert got + sliced.poll(now_ns + 1000 * NS_PER_S) == items
    assert data(items) == b"".join(chunk for _, chunk in chunks)
    times = [due_ns for due_ns, _ in items]
    assert times == sorted(times)


def test_the_same_seed_and_another() -> None:
    def times(**options: int) -> list[Item]:
        pipe, _ = piped("latency=50ms,jitter=20ms,slicer=50B", **options)
        for n in range(20):
            pipe.feed(ms(n), bytes(200))
        return pipe.poll(ms(999))

    assert times() == times()
    assert times() != times(seed=8)
    assert times() != times(connection=2)
