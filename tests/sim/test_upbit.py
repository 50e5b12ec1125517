"""The venue's rules one by one, and that slicing of time and other clients make no difference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.exchanges.upbit import UPBIT
from kcs.model import OrderBook, Ticker, Trade
from kcs.sim.actions import Action, DropConnection, SendClose, SendFrame, SendPong
from kcs.sim.fault_text import parse_faults
from kcs.sim.schedule import FOREVER
from kcs.sim.settings import SimSettings
from kcs.sim.upbit import UpbitExchange
from tests.sim.helpers import START_NS, connected, decoded, everything, payloads, request, seconds

QUICK = SimSettings(rate=200, seed=7)
ALL = QUICK.markets
UP = b'{"status":"UP"}'


# Snapshots, channels, codes.


def test_snapshots_come_first_in_the_order_asked_then_live_frames() -> None:
    _, client = connected(QUICK)
    first = decoded(client.receive(START_NS, "text", request(["KRW-ETH", "KRW-BTC"])))
    assert [(frame["type"], frame["code"]) for frame in first] == [
        ("trade", "KRW-ETH"), ("trade", "KRW-BTC"), ("orderbook", "KRW-ETH"), ("orderbook", "KRW-BTC"),
        ("ticker", "KRW-ETH"), ("ticker", "KRW-BTC"),
    ]  # fmt: skip
    assert {frame["stream_type"] for frame in first} == {"SNAPSHOT"}
    later = decoded(client.poll(seconds(5)))
    assert {frame["stream_type"] for frame in later} == {"REALTIME"}
    assert {frame["code"] for frame in later} == {"KRW-BTC", "KRW-ETH"}
    assert {frame["type"] for frame in later} == {"trade", "orderbook", "ticker"}


def test_a_snapshot_repeats_the_last_trade() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(["KRW-BTC"], ["trade"]))
    last = decoded(client.poll(seconds(5)))[-1]
    (snapshot,) = decoded(client.receive(seconds(5), "text", request(["KRW-BTC"], ["trade"])))
    assert snapshot == last | {"stream_type": "SNAPSHOT"}


def test_frames_are_binary() -> None:
    _, client = connected(QUICK)
    actions = client.receive(START_NS, "text", request(ALL)) + client.receive(START_NS, "text", b"PING")
    actions += client.poll(seconds(11))
    assert all(isinstance(action, SendFrame) and action.binary for action in actions)


def test_only_realtime_has_no_snapshot_and_only_snapshot_nothing_else() -> None:
    _, client = connected(QUICK)
    assert client.receive(START_NS, "text", request(ALL, is_only_realtime=True)) == []
    assert len(client.poll(seconds(5))) == 1_000 - unseen(5)
    _, client = connected(QUICK)
    assert len(client.receive(START_NS, "text", request(ALL, is_only_snapshot=True))) == 30
    assert client.poll(seconds(5)) == []


def unseen(until_s: int) -> int:
    """By how much the market's frames differ from the mean in this stretch (bursts, phases)."""
    exchange = UpbitExchange(QUICK, START_NS)
    return QUICK.rate * until_s - exchange.advance(seconds(until_s))


def test_a_client_of_everything_gets_the_rate() -> None:
    frames = everything(SimSettings(rate=500, burst_percent=100), "DEFAULT", 32)
    assert abs(len(frames) - 30 - 500 * 32) < 160


@pytest.mark.parametrize("codes", [["KRW-NOPE"], ["krw-btc"], ["KRW-LINK"], ["KRW-BTC.5.5"[::-1]]])
def test_codes_that_are_not_there_are_silence(codes: list[str]) -> None:
    _, client = connected(QUICK)
    assert client.receive(START_NS, "text", request(codes)) == []
    assert client.poll(seconds(5)) == []
    assert not client.closed


def test_other_codes_of_the_same_request_still_work() -> None:
    _, client = connected(QUICK)
    frames = decoded(client.receive(START_NS, "text", request(["KRW-NOPE", "KRW-BTC", "krw-eth"], ["ticker"])))
    assert [frame["code"] for frame in frames] == ["KRW-BTC"]


@pytest.mark.parametrize(("suffix", "levels"), [("", 30), (".1", 1), (".5", 5), (".15", 15), (".30", 30), (".7", 30)])
def test_depth(suffix: str, levels: int) -> None:
    _, client = connected(QUICK)
    actions = client.receive(START_NS, "text", request([f"KRW-BTC{suffix}"], ["orderbook"])) + client.poll(seconds(3))
    frames = decoded(actions)
    assert len(frames) > 3
    assert {len(frame["orderbook_units"]) for frame in frames} == {levels}
    assert {frame["code"] for frame in frames} == {"KRW-BTC"}


def test_a_grouped_book_is_silence() -> None:
    _, client = connected(QUICK)
    assert client.receive(START_NS, "text", request(["KRW-BTC"], ["orderbook"], level=10_000)) == []
    assert client.poll(seconds(3)) == []
    assert len(client.receive(seconds(3), "text", request(["KRW-BTC"], ["orderbook"], level=0))) == 1


def test_a_second_request_replaces_the_first_and_its_format() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(["KRW-BTC"], wire_format="SIMPLE"))
    client.poll(seconds(1))
    client.receive(seconds(1), "text", request(["KRW-XRP"], ["trade"]))
    assert {(frame["type"], frame["code"]) for frame in decoded(client.poll(seconds(4)))} == {("trade", "KRW-XRP")}


def test_asking_twice_for_the_same_gives_each_frame_once() -> None:
    twice = orjson.dumps([{"ticket": "t"}, *[{"type": "trade", "codes": ["KRW-BTC", "KRW-BTC"]}] * 2])
    _, client = connected(QUICK)
    client.receive(START_NS, "text", twice)
    sids = [frame["sequential_id"] for frame in decoded(client.poll(seconds(5)))]
    assert len(sids) == len(set(sids)) > 10


# Errors, limits, idle, pings.


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (b"hello", "WRONG_FORMAT"),
        (b"\xff\xfe", "WRONG_FORMAT"),
        (b"ping", "WRONG_FORMAT"),
        (b'[{"type":"trade","codes":["KRW-BTC"]}]', "NO_TICKET"),
        (b'[{"ticket":"t"},{"codes":["KRW-BTC"]}]', "NO_TYPE"),
        (b'[{"ticket":"t"},{"type":"trade"}]', "NO_CODES"),
        (b'[{"ticket":"t"},{"type":"nope","codes":["KRW-BTC"]}]', "INVALID_PARAM"),
    ],
)
def test_an_error_is_told_and_the_connection_closed_150_ms_later(message: bytes, name: str) -> None:
    _, client = connected(QUICK)
    (error,) = decoded(client.receive(START_NS, "text", message))
    assert error["error"]["name"] == name
    assert error["error"]["message"]
    closing_ns = START_NS + 150 * NS_PER_MS
    assert client.next_due_ns == closing_ns
    assert client.poll(closing_ns - 1) == []
    assert client.poll(closing_ns) == [SendClose(closing_ns, 1000)]
    assert client.closed
    assert client.next_due_ns == FOREVER
    assert client.receive(closing_ns, "text", request(ALL)) == []


def test_the_stream_runs_on_until_the_close_and_no_further() -> None:
    _, client = connected(SimSettings(rate=2_000))
    client.receive(START_NS, "text", request(ALL))
    client.receive(seconds(1), "text", b"nonsense")
    actions = client.poll(seconds(3))
    assert isinstance(actions[-1], SendClose)
    assert max(action.at_ns for action in actions) == seconds(1.15)
    assert len(actions) > 200


def test_requests_after_an_error_are_not_read() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", b"nonsense")
    assert client.receive(START_NS + 1, "text", request(ALL)) == []


def test_five_messages_a_second() -> None:
    _, client = connected(QUICK)
    for _ in range(5):
        assert client.receive(START_NS, "text", b"PING") == []
    (error,) = decoded(client.receive(seconds(0.999), "text", b"PING"))
    assert error["error"]["name"] == "TOO_MANY_REQUESTS"
    _, client = connected(QUICK)
    for turn in range(30):
        assert client.receive(seconds(turn * 0.25), "text", b"PING") in ([], [SendFrame(seconds(0), UP, data=False)])


def test_a_hundred_messages_a_minute() -> None:
    _, client = connected(QUICK)
    for turn in range(100):
        assert b"error" not in b"".join(payloads(client.receive(seconds(turn * 0.5), "text", b"PING")))
    assert b"TOO_MANY_REQUESTS" in b"".join(payloads(client.receive(seconds(59.9), "text", b"PING")))


def test_protocol_pings_are_answered_and_not_limited() -> None:
    _, client = connected(QUICK)
    for turn in range(200):
        assert client.receive(START_NS, "ping", b"%d" % turn) == [SendPong(START_NS, b"%d" % turn)]
    assert client.receive(START_NS, "pong", b"") == []
    with pytest.raises(ValueError, match="kind"):
        client.receive(START_NS, "close", b"")


def test_up_comes_every_ten_seconds_on_the_tick_of_the_connection() -> None:
    _, client = connected(QUICK)
    assert client.poll(seconds(13)) == []
    assert client.receive(seconds(13), "text", b"PING") == []
    assert client.receive(seconds(14), "text", b"PING") == [], "a second PING changes nothing"
    ups = client.poll(seconds(45))
    assert ups == [SendFrame(seconds(at), UP, data=False) for at in (20, 30, 40)]


def test_sixty_silent_seconds_end_in_a_drop() -> None:
    _, client = connected(QUICK)
    assert client.poll(seconds(60) - 1) == []
    assert client.poll(seconds(60)) == [DropConnection(seconds(60), "idle")]
    assert client.closed


@pytest.mark.parametrize("kind", ["ping", "pong", "text"])
def test_traffic_of_the_client_keeps_the_connection(kind: str) -> None:
    _, client = connected(QUICK)
    client.receive(seconds(50), kind, request(["KRW-NOPE"]) if kind == "text" else b"")
    assert client.poll(seconds(109)) == []
    assert client.poll(seconds(111)) == [DropConnection(seconds(110), "idle")]


def test_traffic_of_the_venue_keeps_the_connection_and_a_lone_snapshot_does_not() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", b"PING")
    assert [type(action) for action in client.poll(seconds(300))] == [SendFrame] * 30
    _, client = connected(QUICK)
    client.receive(seconds(5), "text", request(ALL, is_only_snapshot=True))
    assert client.poll(seconds(300)) == [DropConnection(seconds(65), "idle")]


def test_list_subscriptions_answers_and_sets_the_format() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(["KRW-BTC"], ["trade"], wire_format="SIMPLE"))
    ask = [{"ticket": "q"}, {"method": "LIST_SUBSCRIPTIONS"}, {"format": "SIMPLE"}]
    (reply,) = decoded(client.receive(START_NS, "text", orjson.dumps(ask)))
    assert reply == {"mthd": "LIST_SUBSCRIPTIONS", "rslt": [{"ty": "trade", "cds": ["KRW-BTC"]}], "tckt": "q"}
    assert "ty" in decoded(client.poll(seconds(2)))[0]
    (reply,) = decoded(client.receive(seconds(2), "text", orjson.dumps(ask[:2])))
    assert reply["result"] == [{"type": "trade", "codes": ["KRW-BTC"]}]
    assert "type" in decoded(client.poll(seconds(4)))[0], "the stream follows the format of the last request"


# Time.


def test_actions_carry_their_due_times_in_order() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(ALL))
    client.receive(START_NS, "text", b"PING")
    actions = client.poll(seconds(25))
    times = [action.at_ns for action in actions]
    assert times == sorted(times)
    assert START_NS < times[0] <= times[-1] <= seconds(25)
    at = [action.at_ns for action in actions if isinstance(action, SendFrame) and action.payload == UP]
    assert at == [seconds(10), seconds(20)]


# A busy connection: ten-second UPs, candles, junk, stalls and in the end a drop.
BUSY = SimSettings(rate=150, faults=parse_faults("junk@every:7,stall=2s@every:4s,close_code=1006@after:23s"))


@pytest.mark.parametrize("step_ms", [7, 100, 1_000])
def test_however_time_is_sliced_the_bytes_are_the_same(step_ms: int) -> None:
    whole, sliced = run([25 * NS_PER_S]), run([step_ms * NS_PER_MS] * (25_000 // step_ms))
    assert sliced == whole
    assert isinstance(whole[-1], DropConnection)


@given(st.lists(st.integers(1, 2 * NS_PER_S), min_size=1, max_size=60))
@settings(max_examples=10, deadline=None)
def test_uneven_slices_make_no_difference_either(steps: list[int]) -> None:
    assert run([*steps, 25 * NS_PER_S]) == run([25 * NS_PER_S])


def run(steps: list[int]) -> list[Action]:
    _, client = connected(BUSY)
    actions = client.receive(START_NS, "text", request(ALL, ["trade", "orderbook", "candle.1s"]))
    actions += client.receive(START_NS, "text", b"PING")
    now_ns = START_NS
    for step in steps:
        now_ns += step
        actions += client.poll(now_ns)
    return actions


def test_clients_do_not_change_what_others_get() -> None:
    venue = SimSettings(rate=300, faults=parse_faults("close_code=1006@after:3s"))
    _, alone = connected(venue)
    wanted = alone.receive(START_NS, "text", request(ALL)) + alone.poll(seconds(2.9))
    exchange = UpbitExchange(venue, START_NS)
    others = [exchange.connect(START_NS) for _ in range(3)]
    client = exchange.connect(START_NS)
    for other in others:
        other.receive(START_NS, "text", request(ALL, wire_format="SIMPLE"))
    got = client.receive(START_NS, "text", request(ALL))
    for tenth in range(1, 30):
        for other in others:
            other.poll(seconds(tenth / 10))
        got += client.poll(seconds(tenth / 10))
    assert got == wanted


def test_a_client_that_ends_costs_its_neighbours_no_frame() -> None:
    exchange = UpbitExchange(SimSettings(rate=300, faults=parse_faults("close_code=1006@after:3s")), START_NS)
    first = exchange.connect(START_NS)
    first.receive(START_NS, "text", request(ALL))
    exchange.advance(seconds(1))
    second = exchange.connect(seconds(1))
    second.receive(seconds(1), "text", request(ALL))
    for tenth in range(11, 40):
        exchange.advance(seconds(tenth / 10))
    assert isinstance(first.poll(seconds(3.9))[-1], DropConnection)
    reference = UpbitExchange(SimSettings(rate=300), START_NS)
    seen = reference.connect(START_NS)
    reference.advance(seconds(1))
    seen.receive(seconds(1), "text", request(ALL))
    assert second.poll(seconds(3.9)) == seen.poll(seconds(3.9))


def test_a_client_that_hangs_up_is_forgotten() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(ALL))
    client.disconnect()
    assert client.poll(seconds(5)) == []
    assert client.next_due_ns == FOREVER


def test_next_due_is_when_something_comes() -> None:
    _, client = connected(QUICK)
    client.receive(START_NS, "text", request(ALL))
    for _ in range(200):
        due_ns = client.next_due_ns
        assert client.poll(due_ns - 1) == []
        assert [action.at_ns for action in client.poll(due_ns)] == [due_ns]


def test_the_market_opens_with_the_first_request_when_no_start_is_given() -> None:
    exchange = UpbitExchange(QUICK, None)
    client = exchange.connect(seconds(100))
    assert client.poll(seconds(130)) == []
    assert exchange.next_due_ns == FOREVER
    assert not exchange.ended
    late = payloads(client.receive(seconds(130), "text", request(ALL)) + client.poll(seconds(132)))
    assert late == everything(QUICK, "DEFAULT", 2), "the course begins with the first client"


def test_without_an_epoch_the_venue_shows_the_callers_time() -> None:
    exchange = UpbitExchange(SimSettings(rate=500, epoch_ns=None), seconds(7))
    client = exchange.connect(seconds(7))
    client.receive(seconds(7), "text", request(ALL, ["orderbook"]))
    for action in client.poll(seconds(9)):
        assert isinstance(action, SendFrame)
        assert orjson.loads(action.payload)["timestamp"] == action.at_ns // NS_PER_MS


def test_advance_can_be_bounded() -> None:
    exchange, client = connected(SimSettings(rate=1_000))
    client.receive(START_NS, "text", request(ALL))
    assert exchange.advance(seconds(5), 10) == 10
    assert exchange.next_due_ns < seconds(1)


# Faults.


def test_the_drop_fault() -> None:
    _, client = connected(SimSettings(rate=100, faults=parse_faults("close_code=1006@after:3s")))
    client.receive(START_NS, "text", request(ALL))
    assert client.poll(seconds(10))[-1] == DropConnection(seconds(3), "fault")
    _, client = connected(SimSettings(rate=100, faults=parse_faults("close_code=1001@after:3s")))
    assert client.poll(seconds(10)) == [SendClose(seconds(3), 1001, "fault")]


def test_the_junk_fault_adds_frames_and_removes_none() -> None:
    clean = everything(QUICK, "DEFAULT", 5)
    junky = everything(SimSettings(rate=200, faults=parse_faults("junk@every:10")), "DEFAULT", 5)
    assert len(junky) == len(clean) + len(clean[30:]) // 10
    assert [payload for payload in junky if payload in set(clean)] == clean


def test_the_stall_fault_delays_and_loses_nothing() -> None:
    _, client = connected(SimSettings(rate=200, faults=parse_faults("stall=1s@every:3s")))
    actions = client.receive(START_NS, "text", request(ALL)) + client.poll(seconds(3.99))
    assert max(action.at_ns for action in actions) < seconds(3)
    burst = client.poll(seconds(4))
    assert {action.at_ns for action in burst} == {seconds(4)}
    assert len(burst) > 100
    assert payloads(actions + burst + client.poll(seconds(5))) == everything(QUICK, "DEFAULT", 5)


# The other side reads it.


@pytest.mark.parametrize("wire_format", ["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"])
def test_the_adapter_reads_every_frame(wire_format: str) -> None:
    adapter = UPBIT.adapter()
    events = [event for payload in everything(QUICK, wire_format, 5) for event in adapter.parse(0, 0, payload)]
    kinds: Counter[Any] = Counter(type(event) for event in events)
    assert len(events) == len(everything(QUICK, wire_format, 5))
    assert min(kinds[kind] for kind in (Trade, OrderBook, Ticker)) > 100
    books: dict[str, OrderBook] = {}
    checked = 0
    for event in events:
        if isinstance(event, OrderBook):
            books[event.market] = event
        elif isinstance(event, Trade) and event.market in books:
            book = books[event.market]
            checked += 1
            assert event.price >= book.asks[0][0] if event.side == 1 else event.price <= book.bids[0][0]
    assert checked > 100


def test_the_adapters_subscription_is_understood() -> None:
    from kcs.exchanges.base import Subscription

    texts = UPBIT.subscribe(Subscription(("trade", "orderbook", "ticker"), ALL, "SIMPLE", 5), "ticket")
    _, client = connected(QUICK)
    frames = [frame for text in texts for frame in decoded(client.receive(START_NS, "text", text.encode()))]
    assert len(frames) == 30
    assert {len(frame["obu"]) for frame in frames if frame["ty"] == "orderbook"} == {5}
    for text in UPBIT.heartbeat.texts_after_subscribe:
        assert client.receive(START_NS, "text", text.encode()) == []
