"""Faults of the websocket level, one by one on a scripted connection, and all at once on the simulated Upbit."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong
from kcs.sim.fault_log import FaultEntry, SimFaultLog, checksum
from kcs.sim.fault_text import parse_faults
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.upbit import UpbitExchange
from tests.sim.helpers import START_NS, connected, everything, payloads, request, seconds
from tests.sim.scripted import Script, behind, frame, frames, ms, texts

ALL = SimSettings().markets
UP = SendFrame(ms(2), b"up", False)


def struck(log: SimFaultLog, fault: str) -> list[int | None]:
    return [entry.frame for entry in log.of(fault)]


# One frame at a time.


def test_drop() -> None:
    connection, log = behind("drop@every:3", Script(frames(7)))
    assert texts(connection.poll(ms(9))) == ["0", "1", "3", "4", "6"]
    assert log.of("drop")[0] == FaultEntry(ms(3), 1, "drop", "", 2, "A", checksum(b'{"n":"2"}'), 1)
    assert struck(log, "drop") == [2, 5]
    assert log.report() == {"faults": {"drop": 2}, "frames_lost": {"drop": 2}}


def test_only_market_frames_are_hit() -> None:
    connection, log = behind("drop=100%,close_code=1000@at:4ms", Script([frame(1, "0"), UP, frame(3, "1")]))
    assert connection.poll(ms(9)) == [UP, SendClose(ms(4), 1000, "fault")]
    assert struck(log, "drop") == [0, 1]


def test_duplicate() -> None:
    connection, log = behind("duplicate@every:2", Script(frames(4)))
    assert texts(connection.poll(ms(9))) == ["0", "1", "1", "2", "3", "3"]
    assert struck(log, "duplicate") == [1, 3]
    assert not log.frames_lost


@pytest.mark.parametrize(("by", "order"), [("", "1 0 3 2"), ("=2", "1 2 0 3 4"), ("=4", "1 2 3 4 0")])
def test_reorder(by: str, order: str) -> None:
    every = "@every:2" if not by else "@at:1ms"
    script = Script([frame(0, "x"), *frames(4)] if not by else frames(5))
    connection, log = behind(f"reorder{by}{every}", script)
    got = connection.poll(ms(9))
    assert texts(got) == (["x", *order.split()] if not by else order.split())
    assert [action.at_ns for action in got] == sorted(action.at_ns for action in got)
    assert log.of("reorder")[0].detail == f"{by[1:] or 1} later"
    assert not log.frames_lost


@pytest.mark.parametrize("end", [SendClose(ms(4), 1000), DropConnection(ms(4), "idle")])
def test_what_was_overtaken_goes_out_before_the_end(end: SendClose | DropConnection) -> None:
    connection, _ = behind("reorder=9@every:2", Script([*frames(3), end]))
    assert texts(connection.poll(ms(9))) == ["0", "2", "1", type(end).__name__]
    assert connection.closed


def test_bad_and_truncated_json() -> None:
    for fault in ("bad_json", "truncated_json"):
        script = Script(frames(4))
        whole = [action.payload for action in script.actions if isinstance(action, SendFrame)]
        connection, log = behind(f"{fault}@every:2", script)
        got = payloads(connection.poll(ms(9)))
        assert [got[0], got[2]] == [whole[0], whole[2]]
        for number in (1, 3):
            assert got[number] != whole[number]
            assert (
                len(got[number]) == len(whole[number]) if fault == "bad_json" else whole[number].startswith(got[number])
            )
        assert struck(log, fault) == [1, 3]
        assert log.of(fault)[0].crc == checksum(whole[1]), "the frame as it was meant"
        assert log.of(fault)[0].detail


def test_junk_comes_after_live_frames_and_harms_none() -> None:
    script = Script([frame(0, "s", snapshot=True), *frames(4)])
    connection, log = behind("junk@every:2", script)
    got = connection.poll(ms(9))
    assert [action.data for action in got if isinstance(action, SendFrame)] == [
        True,
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert texts(action for action in got if isinstance(action, SendFrame) and action.data) == ["s", "0", "1", "2", "3"]
    assert struck(log, "junk") == [2, 4]


def test_a_frame_suffers_one_fault_at_most() -> None:
    connection, log = behind("reorder=100%,duplicate=100%,bad_json=100%,drop@every:2", Script(frames(4)))
    got = connection.poll(ms(9))
    assert len(got) == 2
    assert (struck(log, "drop"), struck(log, "bad_json")) == ([1, 3], [0, 2])
    assert log.counts.keys() == {"drop", "bad_json"}


# Windows.


def test_a_silent_stall_loses_data_and_keeps_the_rest() -> None:
    script = Script([*frames(4), SendFrame(ms(4.5), b"up", False), *frames(9)[4:]])
    connection, log = behind("silent_stall=3ms@at:3ms", script)
    assert texts(connection.receive(ms(4.2), "ping", b"p")) == ["0", "1", "SendPong"]
    assert texts(connection.poll(ms(20))) == ["up", "5", "6", "7", "8"]
    begin, *lost = log.of("silent_stall")
    assert begin == FaultEntry(ms(3), 1, "silent_stall", "for 3ms", 2)
    assert [(entry.frame, entry.detail, entry.frames_lost) for entry in lost] == [(n, "lost", 1) for n in (2, 3, 4)]
    assert log.report() == {"faults": {"silent_stall": 1}, "frames_lost": {"silent_stall": 3}}


def test_a_market_falls_silent_alone() -> None:
    connection, log = behind("market_silent=B:4ms@at:3ms", Script(frames(12, markets="ABC")))
    assert texts(connection.poll(ms(20))) == ["0", "1", "2", "3", "5", "6", "7", "8", "9", "10", "11"]
    assert [(entry.frame, entry.market) for entry in log.of("market_silent")] == [(4, "B"), (4, "B")]
    assert log.frames_lost == {"market_silent": 1}


def test_without_a_name_it_is_the_market_of_the_next_frame() -> None:
    connection, log = behind("market_silent=4ms@every:6ms", Script(frames(18, markets="ABC")))
    lost = {"5": "C", "8": "C", "11": "C", "14": "C", "17": "C"}
    assert texts(connection.poll(ms(20))) == [str(n) for n in range(18) if str(n) not in lost]
    assert log.counts["market_silent"] == 3
    assert log.frames_lost["market_silent"] == 5


def test_a_stall_delays_everything_and_loses_nothing() -> None:
    end = SendClose(ms(6.5), 1000)
    connection, log = behind("stall=3ms@every:4ms", Script([*frames(6), end]))
    assert texts(connection.receive(ms(4.5), "ping")) == ["0", "1", "2"]
    assert connection.next_due_ns == ms(7)
    assert connection.poll(ms(6.9)) == []
    assert not connection.closed
    held = connection.poll(ms(7))
    assert texts(held) == ["3", "SendPong", "4", "5", "SendClose"]
    assert {action.at_ns for action in held} == {ms(7)}
    assert connection.closed
    assert connection.next_due_ns == FOREVER
    assert log.of("stall") == [FaultEntry(ms(4), 1, "stall", "for 3ms")]


def test_what_a_stall_holds_is_bounded() -> None:
    connection, log = behind("stall=50ms@at:4ms", Script(frames(40)), bytes_max=100)
    got = connection.poll(ms(60))
    assert texts(got) == ["0", "1", "2", "DropConnection"]
    assert got[-1] == DropConnection(ms(14), "overflow"), "93 bytes wait, ten more are too many"
    assert connection.closed
    assert log.counts["overflow"] == 1


def test_a_window_by_chance() -> None:
    connection, log = behind("silent_stall=2ms@every:4", Script(frames(12)))
    assert texts(connection.poll(ms(20))) == ["0", "1", "2", "5", "6", "7", "10", "11"]
    assert [entry.at_ns for entry in log.of("silent_stall") if entry.detail != "lost"] == [ms(4), ms(9)]


# Snapshots, pings, ends.


def test_a_late_snapshot_comes_behind_live_frames() -> None:
    script = Script(frames(6), [frame(2.5, "s1", snapshot=True), frame(2.5, "s2", "B", snapshot=True)])
    connection, log = behind("late_snapshot=2ms", script)
    assert texts(connection.receive(ms(2.5), "text")) == ["0", "1"]
    assert connection.next_due_ns == ms(3)
    got = connection.poll(ms(4.5))
    assert texts(got) == ["2", "3", "s1", "s2"]
    assert got[-1].at_ns == ms(4.5)
    assert texts(connection.poll(ms(9))) == ["4", "5"]
    assert log.of("late_snapshot") == [FaultEntry(ms(2.5), 1, "late_snapshot", "by 2ms")]


def test_late_snapshots_by_chance_are_late_together() -> None:
    late = 0
    for connection in range(1, 201):
        script = Script([], [frame(0, "a", snapshot=True), frame(0, "b", snapshot=True)])
        mischief, log = behind("late_snapshot=1ms@30%", script, connection=connection)
        now, later = mischief.receive(0, "text"), mischief.poll(ms(1))
        assert len(now) in (0, 2)
        assert len(now) + len(later) == 2
        assert log.counts["late_snapshot"] == len(later) // 2
        late += len(later) // 2
    assert 40 < late < 80


def test_a_dropped_snapshot_keeps_its_number() -> None:
    script = Script(frames(3), [frame(1.5, "s", snapshot=True)])
    connection, log = behind("late_snapshot=9ms,drop@at:10ms", script)
    connection.receive(ms(1.5), "text")
    assert texts(connection.poll(ms(20))) == ["1", "2"]
    assert struck(log, "drop") == [1], "the second frame that the venue sent, though the fourth that was due"


def test_ignored_pings() -> None:
    connection, log = behind("ping_ignored@every:2", Script([]))
    pongs = [connection.receive(ms(n), "ping", b"%d" % n) for n in range(4)]
    assert pongs == [[SendPong(0, b"0")], [], [SendPong(ms(2), b"2")], []]
    assert [entry.detail for entry in log.of("ping_ignored")] == [b"1".hex(), b"3".hex()]


def test_a_close_code_by_timetable_without_any_frame() -> None:
    script = Script(frames(9))
    connection, log = behind("close_code=1012@after:4500us", script)
    assert connection.poll(ms(3))
    assert connection.next_due_ns == ms(4)
    assert texts(connection.poll(ms(4.2))) == ["3"]
    assert connection.next_due_ns == ms(4.5)
    assert connection.poll(ms(99)) == [SendClose(ms(4.5), 1012, "fault")]
    assert (connection.closed, script.closed) == (True, True)
    assert connection.receive(ms(100), "text") == connection.poll(ms(101)) == []
    assert script.received == []
    assert log.of("close_code") == [FaultEntry(ms(4.5), 1, "close_code", "1012")]


def test_1006_is_no_close_frame_and_a_chance_is_one_a_frame() -> None:
    connection, log = behind("close_code=1006@every:3", Script(frames(9)))
    got = connection.poll(ms(9))
    assert texts(got) == ["0", "1", "2", "DropConnection"]
    assert got[-1] == DropConnection(ms(3), "fault")
    assert log.counts == {"close_code": 1}


def test_a_client_that_hangs_up_is_forgotten() -> None:
    script = Script(frames(9))
    connection, _ = behind("stall=9ms@at:2ms,reorder@every:2,late_snapshot=5ms", script)
    connection.poll(ms(4))
    connection.disconnect()
    assert (connection.closed, script.closed, connection.next_due_ns) == (True, True, FOREVER)
    assert connection.poll(ms(50)) == []


# Chances over many frames, and the seed.


@pytest.mark.parametrize("fault", ["drop", "duplicate", "reorder", "bad_json", "truncated_json", "junk"])
def test_a_chance_of_p_hits_about_p_of_many_frames(fault: str) -> None:
    connection, log = behind(f"{fault}=2%", Script(frames(20_000, 0.01)))
    connection.poll(ms(1_000))
    assert 320 < log.counts[fault] < 480


def test_faults_do_not_change_what_others_hit() -> None:
    alone, log = behind("drop=5%", Script(frames(2_000, 0.01)))
    alone.poll(ms(100))
    crowd, crowd_log = behind("duplicate=9%,silent_stall=1ms@every:5ms,drop=5%,junk=3%", Script(frames(2_000, 0.01)))
    crowd.poll(ms(100))
    silenced = set(struck(crowd_log, "silent_stall"))
    assert struck(crowd_log, "drop") == [number for number in struck(log, "drop") if number not in silenced]


def test_seed_and_connection_decide() -> None:
    def hit(**options: int) -> list[int | None]:
        connection, log = behind("drop=5%", Script(frames(500, 0.01)), **options)
        connection.poll(ms(100))
        return struck(log, "drop")

    assert hit() == hit()
    assert hit() != hit(seed=8)
    assert hit() != hit(connection=2)


# On the simulated exchange.

WILD = (
    "drop=2%,truncated_json=1%,bad_json=1%,duplicate=2%,reorder=3@2%,junk@every:17,silent_stall=300ms@every:2s,"
    "market_silent=1s@every:3s,stall=700ms@1%,late_snapshot=400ms,ping_ignored=50%,clock_step=-1s@every:1500ms,"
    "close_code=1012@after:9s"
)


def wild(steps: list[int], faults: str = WILD) -> tuple[list[Action], list[FaultEntry]]:
    exchange, client = connected(SimSettings(rate=150, faults=parse_faults(faults)))
    actions = client.receive(START_NS, "text", request(ALL, ["trade", "orderbook", "candle.1s"]))
    actions += client.receive(START_NS, "text", b"PING")
    now_ns, asked = START_NS, 0
    for step in [*steps, 12 * NS_PER_S]:
        now_ns += step
        while START_NS + asked * NS_PER_S <= now_ns:
            actions += client.receive(max(START_NS, START_NS + asked * NS_PER_S), "ping", b"%d" % asked)
            asked += 1
        actions += client.poll(now_ns)
    return actions, exchange.fault_log.ordered()


@given(st.lists(st.integers(1, NS_PER_S), max_size=40))
@hypothesis(max_examples=12, deadline=None)
def test_however_time_is_sliced_the_same_goes_wrong(steps: list[int]) -> None:
    actions, log = wild(steps)
    whole, whole_log = wild([])
    assert actions == whole
    assert log == whole_log
    assert isinstance(actions[-1], SendClose)
    assert {entry.fault for entry in log} >= {"drop", "reorder", "silent_stall", "market_silent", "stall", "clock_step"}


def test_next_due_is_when_something_comes() -> None:
    _, client = connected(
        SimSettings(rate=100, faults=parse_faults("late_snapshot=1s,stall=500ms@every:2s,reorder=5%"))
    )
    client.receive(START_NS, "text", request(ALL))
    now_ns, got = START_NS, 0
    while now_ns < seconds(5):
        due_ns = client.next_due_ns
        assert due_ns > now_ns or not client.poll(now_ns)
        assert client.poll(due_ns - 1) == []
        actions = client.poll(due_ns)
        assert all(action.at_ns == due_ns for action in actions)
        got, now_ns = got + len(actions), due_ns
    assert got > 400


def test_what_is_logged_is_exactly_what_is_missing_doubled_and_spoilt() -> None:
    """The proof that others rely on: from the undisturbed frames and the log follows what the client gets."""
    settings = SimSettings(
        rate=300, faults=parse_faults("drop=3%,duplicate=3%,bad_json=2%,truncated_json=2%,silent_stall=200ms@every:1s")
    )
    exchange, client = connected(settings)
    got = payloads(client.receive(START_NS, "text", request(ALL)) + client.poll(seconds(5)))
    meant = everything(SimSettings(rate=300), "DEFAULT", 5)
    by_frame = {entry.frame: entry for entry in exchange.fault_log.entries if entry.crc is not None}
    assert all(checksum(meant[number]) == entry.crc for number, entry in by_frame.items() if number is not None)
    expected: list[bytes | None] = []
    for number, payload in enumerate(meant):
        fault = by_frame[number].fault if number in by_frame else ""
        if by_frame.get(number) is not None and by_frame[number].frames_lost:
            continue
        expected += [payload, payload] if fault == "duplicate" else [None if fault.endswith("json") else payload]
    assert len(got) == len(expected)
    assert all(wanted is None or wanted == payload for wanted, payload in zip(expected, got, strict=True))
    assert not {payload for wanted, payload in zip(expected, got, strict=True) if wanted is None} & set(meant)
    assert Counter(entry.fault for entry in by_frame.values()).keys() == {
        "drop", "duplicate", "bad_json", "truncated_json", "silent_stall",
    }  # fmt: skip


def test_virtual_time_is_the_markets_whenever_the_client_comes() -> None:
    """In the simulation's own time, two clients of different ages meet the same silence."""
    exchange = UpbitExchange(
        SimSettings(rate=200, faults=parse_faults("silent_stall=1s@at:5s,close_code=1001@every:8s")), None
    )
    early = exchange.connect(seconds(0))
    assert early.next_due_ns == seconds(60), "before the market opens only the venue's own idle rule is due"
    early.receive(seconds(10), "text", request(ALL))
    late = exchange.connect(seconds(15.5))
    late.receive(seconds(15.5), "text", request(ALL))
    ends = [connection.poll(seconds(30))[-1] for connection in (early, late)]
    assert ends == [SendClose(seconds(18), 1001, "fault")] * 2
    begins = [entry for entry in exchange.fault_log.ordered() if entry.detail == "for 1s"]
    assert [(entry.connection, entry.at_ns) for entry in begins] == [(1, 5 * NS_PER_S), (2, 5_500 * NS_PER_MS)]
    lost = {entry.connection: entry.at_ns for entry in exchange.fault_log.of("silent_stall")}
    assert all(5 * NS_PER_S <= at < 6 * NS_PER_S for at in lost.values())
