"""The far end of a bad network: whole messages, later, and the ends that a client would see."""

from __future__ import annotations

import pytest
from websockets.frames import Close, Frame, Opcode

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong, VenueConnection
from kcs.sim.fault_log import FaultEntry
from kcs.sim.fault_text import parse_faults
from kcs.sim.link import ToxicLink, dial, on_the_wire
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.upbit import UpbitConnection, UpbitExchange
from tests.sim.helpers import START_NS, payloads, request, seconds
from tests.sim.scripted import Script, frames, ms, stage, texts

ALL = SimSettings().markets


def link(faults: str, script: Script, *, bytes_max: int = 1 << 20) -> ToxicLink:
    return ToxicLink(script, parse_faults(faults).toxics, stage(bytes_max=bytes_max))


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_messages_have_the_size_that_a_server_writes(size: int) -> None:
    frame = Frame(Opcode.BINARY, bytes(size)).serialize(mask=False)
    assert len(on_the_wire(SendFrame(0, bytes(size)))) == len(frame)
    if size < 126:
        assert len(on_the_wire(SendPong(0, bytes(size)))) == len(frame)
    close = Frame(Opcode.CLOSE, Close(1012, "잘가").serialize()).serialize(mask=False)
    assert len(on_the_wire(SendClose(0, 1012, "잘가"))) == len(close)


def test_messages_arrive_whole_with_their_last_byte() -> None:
    connection = link("bandwidth=1KB/s", Script([*frames(3), SendClose(ms(3), 1000, "bye")]))
    assert connection.poll(ms(11)) == []
    assert connection.next_due_ns <= ms(12)
    got = connection.poll(ms(99))
    assert texts(got) == ["0", "1", "2", "SendClose"]
    assert [action.at_ns for action in got] == [ms(12), ms(23), ms(34), ms(41)]
    assert got[-1] == SendClose(ms(41), 1000, "bye")
    assert (connection.closed, connection.next_due_ns) == (True, FOREVER)


def test_answers_take_their_time_too() -> None:
    connection = link("latency=5ms", Script(frames(2)))
    assert connection.receive(ms(1), "ping", b"p") == []
    assert connection.poll(ms(6)) == [SendFrame(ms(6), b'{"n":"0"}', market="A"), SendPong(ms(6), b"p")]
    assert connection.next_due_ns == ms(7), "the second frame is on its way"
    assert connection.poll(ms(6.5)) == []
    assert texts(connection.poll(ms(7))) == ["1"]


def test_a_drop_of_the_venue_is_put_off_by_a_slow_close() -> None:
    script = Script([*frames(2), DropConnection(ms(3), "idle")])
    connection = link("slow_close=9ms", script)
    assert texts(connection.poll(ms(11))) == ["0", "1"]
    assert not connection.closed
    assert connection.poll(ms(12)) == [DropConnection(ms(12), "idle")]
    assert script.closed


@pytest.mark.parametrize(
    ("faults", "seen", "cause", "at_ms"),
    [
        ("limit_data=15B", ["0"], "limit_data", 2),
        ("reset_peer@after:2500us", ["0", "1"], "reset_peer", 2.5),
        ("timeout=4ms@after:2500us", ["0", "1"], "timeout", 6.5),
    ],
)
def test_the_ends_that_a_network_makes(faults: str, seen: list[str], cause: str, at_ms: float) -> None:
    script = Script(frames(9))
    connection = link(faults, script)
    got = connection.poll(ms(50))
    assert texts(got) == [*seen, "DropConnection"]
    assert got[-1] == DropConnection(ms(at_ms), cause)
    assert (connection.closed, script.closed) == (True, True)
    assert connection.receive(ms(60), "text") == []
    assert script.received == []


def test_a_close_frame_that_was_cut_off_is_none() -> None:
    connection = link("limit_data=16B", Script([*frames(1), SendClose(ms(3), 1000, "bye")]))
    assert texts(connection.poll(ms(9))) == ["0", "DropConnection"]


def test_a_close_frame_that_a_timeout_swallowed_is_none() -> None:
    connection = link("timeout=0s@at:2ms", Script([*frames(1), SendClose(ms(3), 1000, "bye")]))
    assert texts(connection.poll(ms(9))) == ["0", "DropConnection"]


def test_too_many_bytes_on_the_way_end_it() -> None:
    connection = link("latency=1s", Script(frames(20)), bytes_max=100)
    assert connection.poll(ms(30)) == [DropConnection(ms(10), "overflow")]


def test_without_toxics_it_is_the_venues_own() -> None:
    assert isinstance(dial(UpbitExchange(SimSettings(), START_NS), START_NS), UpbitConnection)


BAD = "latency=30ms,jitter=20ms,slicer=300B,bandwidth=3MB/s,drop=1%,stall=200ms@every:1s,limit_data=5MB"


def story(steps_ms: int | None) -> tuple[list[Action], list[FaultEntry]]:
    exchange = UpbitExchange(SimSettings(rate=300, faults=parse_faults(BAD)), START_NS)
    client: VenueConnection = dial(exchange, START_NS)
    got = client.receive(START_NS, "text", request(ALL))
    for turn in range(0 if steps_ms is None else 4_000 // steps_ms):
        got += client.poll(START_NS + turn * (steps_ms or 0) * NS_PER_MS)
    got += client.poll(seconds(4))
    return got, exchange.fault_log.ordered()


def test_however_time_is_sliced_the_same_arrives() -> None:
    whole, log = story(None)
    assert story(7) == story(500) == (whole, log)
    assert len(whole) > 1_000
    assert {entry.fault for entry in log} == {"latency", "jitter", "slicer", "bandwidth", "drop", "stall"}


def test_every_message_of_the_venue_arrives() -> None:
    def got(faults: str) -> list[bytes]:
        client = dial(
            UpbitExchange(SimSettings(rate=300, frames_max=600, faults=parse_faults(faults)), START_NS), START_NS
        )
        return payloads(client.receive(START_NS, "text", request(ALL)) + client.poll(START_NS + 5 * NS_PER_S))

    assert got("latency=30ms,jitter=20ms,slicer=300B:50B:10us") == got("")
