"""The session, driven by hand under the virtual clock: what it does, when, and what it writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_S
from kcs.exchanges.base import Heartbeat, Limits
from kcs.live.actions import (
    Action,
    CloseConnection,
    Connect,
    ConnectFailure,
    ConnectionEnd,
    SendPing,
    SendText,
    WriteRecord,
)
from kcs.live.backoff import BackoffSettings, ConnectPace
from kcs.live.gaps import MARKETS_NAMED_MAX
from kcs.live.hearing import MARKETS_MAX
from kcs.live.keepalive import NEVER_NS
from kcs.live.rhythm import RhythmSettings
from kcs.live.session import Phase, Session, SessionSettings
from kcs.model import CloseFields, GapFields, Kind, OpenFields
from tests.live.support import MARKETS, START_NS, URL, Driver, make_subscription, make_venue

S = NS_PER_S


def texts(actions: list) -> list[str]:
    return [action.text for action in actions if isinstance(action, SendText)]


def pings(actions: list) -> list[bytes]:
    return [action.payload for action in actions if isinstance(action, SendPing)]


# ---------------------------------------------------------------- connecting and subscribing


def test_start_connects_at_once() -> None:
    driver = Driver()
    assert driver.start() == [Connect(URL)]
    assert driver.session.phase is Phase.CONNECTING
    assert driver.session.next_due_ns == NEVER_NS


def test_url_may_point_elsewhere() -> None:
    assert Driver(url="ws://127.0.0.1:9801/x").start() == [Connect("ws://127.0.0.1:9801/x")]


def test_open_records_first_then_subscribes() -> None:
    driver = Driver()
    actions = driver.open()
    assert actions[0] == WriteRecord(Kind.OPEN, START_NS, OpenFields(URL, "start", 0))
    (text,) = texts(actions)
    assert text.startswith("SUB kcs-")
    assert text.endswith("trade KRW-BTC,KRW-ETH")


def test_ticket_is_a_function_of_the_seed() -> None:
    first, again, other = (texts(Driver(seed).open()) for seed in (1, 1, 2))
    assert first == again != other


def test_texts_keep_the_message_limit_and_come_in_order() -> None:
    driver = Driver(
        venue=make_venue(limits=Limits(messages_per_s=5.0)),
        subscription=make_subscription("KRW-BTC", channels=("trade", "orderbook")),
    )
    sent = [(driver.now_ns, text.split()[-2:]) for text in texts(driver.open())]
    while driver.session.next_due_ns < START_NS + S:
        sent += [(driver.now_ns, text.split()[-2:]) for text in texts(driver.tick_when_due())]
    assert sent == [
        (START_NS, ["trade", "KRW-BTC"]),
        (START_NS + S // 5, ["orderbook", "KRW-BTC"]),
        (START_NS + 2 * S // 5, ["PING"]),
    ]


def test_heartbeat_texts_are_sent_once_per_connection() -> None:
    driver = Driver()
    driver.open()
    sent = [text for _ in range(100) for text in texts(driver.tick(0.2))]
    assert sent == ["PING"]
    driver.lost()
    driver.tick(60)
    driver.opened()
    assert "PING" in [text for _ in range(10) for text in texts(driver.tick(0.2))]


def test_changing_the_subscription_sends_one_full_list() -> None:
    driver = Driver()
    driver.open()
    driver.tick(1)
    driver.after(1)
    actions = driver.take(driver.session.subscribe(make_subscription("KRW-XRP", "KRW-BTC"), driver.now_ns))
    (text,) = texts(actions)
    assert text.endswith("trade KRW-XRP,KRW-BTC")


def test_a_burst_of_changes_sends_only_the_last_list() -> None:
    driver = Driver()
    driver.open()
    sent = []
    for number in range(50):
        sent += texts(driver.take(driver.session.subscribe(make_subscription(f"KRW-{number}"), driver.now_ns)))
    assert sent == []  # the first list went out in this very moment
    sent += texts(driver.tick(0.2))
    assert [text.split()[-1] for text in sent] == ["KRW-49"]
    assert texts(driver.tick(0.2)) == ["PING"]


def test_a_change_while_away_is_what_the_next_connection_asks_for() -> None:
    driver = Driver()
    driver.start()
    assert driver.take(driver.session.subscribe(make_subscription("KRW-XRP"), driver.now_ns)) == []
    assert texts(driver.opened())[0].endswith("KRW-XRP")


# ---------------------------------------------------------------- heartbeat


def test_pings_every_20_s_while_answered() -> None:
    driver = Driver()
    driver.open()
    sent: list[tuple[int, bytes]] = []
    for _ in range(4 * 65):
        for payload in pings(driver.tick(0.25)):
            sent.append((driver.now_ns - START_NS, payload))
            driver.after(0.16)
            driver.session.pong(driver.now_ns, payload)
        driver.frame()
    assert [round(at / S) for at, _ in sent] == [20, 40, 60]
    assert len({payload for _, payload in sent}) == 3
    assert driver.session.rtt_ns == round(0.16 * S)


def test_a_missing_pong_closes_with_ping_timeout() -> None:
    driver = Driver()
    driver.open()
    driver.tick(1)
    driver.tick(19)
    driver.frame(10)
    assert driver.tick(9.99) == []
    assert driver.tick(0.01) == [CloseConnection(1001, "no pong")]
    assert driver.tick(100) == []  # closing: the transport's turn
    driver.lost()
    assert driver.records()[-1].fields == CloseFields(1006, "", "ping_timeout", 1)


def test_a_pong_to_something_else_does_not_count() -> None:
    driver = Driver()
    driver.open()
    driver.tick(1)
    (payload,) = pings(driver.tick(19))
    driver.frame(10)
    driver.session.pong(driver.now_ns, payload + b"x")
    driver.session.pong(driver.now_ns, b"")
    assert driver.session.rtt_ns is None
    assert driver.tick(10) == [CloseConnection(1001, "no pong")]


def test_an_unsolicited_pong_means_nothing() -> None:
    driver = Driver()
    driver.open()
    driver.session.pong(driver.now_ns, b"kcs 0")
    assert driver.session.rtt_ns is None


def test_the_next_connection_does_not_wait_for_the_old_pong() -> None:
    driver = Driver()
    driver.open()
    driver.tick(1)
    assert pings(driver.tick(19))
    driver.lost()
    driver.tick(60)
    driver.opened()
    driver.frame(5)
    driver.tick(0.5)
    assert CloseConnection(1001, "no pong") not in driver.tick(14)


# ---------------------------------------------------------------- silence


def quiet_driver() -> Driver:
    return Driver(venue=make_venue(heartbeat=Heartbeat(ping_every_s=1e6, silence_max_s=60.0)))


def test_silence_closes_and_leaves_a_gap() -> None:
    driver = quiet_driver()
    driver.open()
    driver.tick(1)
    driver.frame(1)
    last_ns = driver.now_ns
    driver.tick(59.999)
    assert driver.tick(0.001) == [CloseConnection(1001, "no data")]
    driver.lost(ConnectionEnd(1001, "no data", "remote"))
    driver.tick(60)
    assert driver.opened()[0].fields.cause == "silence"
    driver.frame(0.5)
    assert driver.records()[-1].fields == GapFields(last_ns, driver.now_ns, "silence", MARKETS)


def test_heartbeat_frames_do_not_break_the_silence() -> None:
    driver = quiet_driver()
    driver.open()
    driver.tick(1)
    driver.frame(1)
    data_ns = driver.now_ns
    closed = []
    for _ in range(6):
        driver.frame(9.9, market=None)
        closed += driver.tick()
    closed += driver.tick(1)
    assert closed == [CloseConnection(1001, "no data")]
    driver.lost()
    driver.tick(60)
    driver.opened()
    driver.frame(1)
    # From the last frame that carried data, not from the last heartbeat.
    assert driver.records()[-1].fields.from_ns == data_ns


def test_rejected_frames_are_the_venue_talking() -> None:
    driver = quiet_driver()
    driver.open()
    for _ in range(20):
        driver.frame(10, market=None)
        driver.session.on_data(driver.now_ns)
        assert CloseConnection(1001, "no data") not in driver.tick()


def test_a_stream_quiet_by_nature_is_reopened_ever_less_often() -> None:
    driver = quiet_driver()
    driver.start()
    waits = []
    for _ in range(6):
        driver.opened()
        driver.frame()  # the snapshot, then nothing
        opened_ns = driver.now_ns
        while not any(isinstance(action, CloseConnection) for action in driver.tick(1)):
            pass
        waits.append((driver.now_ns - opened_ns) // S)
        driver.lost()
        driver.tick(60)
    assert waits == [60, 120, 240, 480, 480, 480]


def test_a_lively_stream_that_falls_silent_gets_no_more_patience() -> None:
    driver = quiet_driver()
    driver.start()
    for _ in range(3):
        driver.opened()
        for _ in range(20):
            driver.frame(5)
            driver.tick()
        silent_since_ns = driver.now_ns
        while not any(isinstance(action, CloseConnection) for action in driver.tick(1)):
            pass
        assert (driver.now_ns - silent_since_ns) // S == 60
        driver.lost()
        driver.tick(60)


# ---------------------------------------------------------------- losing and coming back


def test_records_of_a_reconnection() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    driver.frame(1)
    last_ns = driver.now_ns
    driver.after(0.5)
    closed_ns = driver.now_ns
    driver.lost(ConnectionEnd(1001, "maintenance", "remote"))
    assert driver.tick(60) == [Connect(URL)]
    opened_ns = driver.now_ns
    driver.opened()
    driver.after(0.3)
    first_ns = driver.now_ns
    assert driver.frame() == [WriteRecord(Kind.GAP, first_ns, GapFields(last_ns, first_ns, "disconnect", MARKETS))]
    assert driver.frame(1) == []
    assert driver.records() == [
        WriteRecord(Kind.OPEN, START_NS, OpenFields(URL, "start", 0)),
        WriteRecord(Kind.CLOSE, closed_ns, CloseFields(1001, "maintenance", "remote", 2)),
        WriteRecord(Kind.OPEN, opened_ns, OpenFields(URL, "remote", 2)),
        WriteRecord(Kind.GAP, first_ns, GapFields(last_ns, first_ns, "disconnect", MARKETS)),
    ]
    assert driver.session.gaps == 1
    assert driver.session.opens == 2
    assert driver.session.frames == 4


def test_two_losses_without_a_frame_between_are_one_gap() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    last_ns = driver.now_ns
    for _ in range(3):
        driver.lost()
        driver.tick(60)
        driver.opened()
    driver.frame(1)
    gaps = [record.fields for record in driver.records() if record.kind is Kind.GAP]
    assert gaps == [GapFields(last_ns, driver.now_ns, "disconnect", MARKETS)]


def test_a_loss_before_any_frame_is_suspect_from_the_opening() -> None:
    driver = Driver()
    driver.open()
    driver.after(5)
    driver.lost()
    driver.tick(60)
    driver.opened()
    driver.frame(1)
    assert driver.records()[-1].fields == GapFields(START_NS, driver.now_ns, "disconnect", MARKETS)


def test_a_run_after_an_earlier_capture_begins_with_a_gap() -> None:
    driver = Driver(down_since_ns=START_NS - 3600 * S)
    driver.open()
    driver.lost()  # a first connection that brings nothing changes neither begin nor cause
    driver.tick(60)
    driver.opened()
    (gap,) = driver.frame(1)
    assert gap.fields == GapFields(START_NS - 3600 * S, driver.now_ns, "collector_down", MARKETS)


def test_an_earlier_capture_from_the_future_makes_no_negative_gap() -> None:
    driver = Driver(down_since_ns=START_NS + 3600 * S)
    driver.open()
    (gap,) = driver.frame(1)
    assert gap.fields == GapFields(driver.now_ns, driver.now_ns, "collector_down", MARKETS)


def test_failed_attempts_are_counted_by_cause_and_tried_again() -> None:
    driver = Driver()
    driver.start()
    for failure in (ConnectFailure("dns", "no such host"), ConnectFailure("tls"), ConnectFailure("http", "", 503)):
        assert driver.take(driver.session.connect_failed(driver.now_ns, failure)) == []
        assert driver.tick(60) == [Connect(URL)]
    assert driver.session.connect_failures == {"dns": 1, "tls": 1, "http_503": 1}
    assert "dns (no such host)" in driver.logs()[0]
    assert driver.records() == []


@pytest.mark.parametrize(
    ("failure", "least_s", "most_s"),
    [
        (ConnectFailure("refused"), 0.25, 0.75),
        (ConnectFailure("http", "", 503), 0.25, 0.75),
        (ConnectFailure("http", "", 429), 10.0, 10.0),
        (ConnectFailure("http", "", 418), 60.0, 60.0),
        (ConnectFailure("http", "", 403), 30.0, 30.0),
        (ConnectFailure("http", "", 404), 10.0, 10.0),
        (ConnectFailure("http", "", 429, retry_after_s=7.0), 10.0, 10.0),
        (ConnectFailure("http", "", 429, retry_after_s=123.0), 123.0, 123.0),
        (ConnectFailure("http", "", 503, retry_after_s=5.0), 5.0, 5.0),
        (ConnectFailure("http", "", 418, retry_after_s=1e9), 86_400.0, 86_400.0),
    ],
)
def test_how_long_a_refusal_keeps_us_away(failure: ConnectFailure, least_s: float, most_s: float) -> None:
    driver = Driver()
    driver.start()
    driver.take(driver.session.connect_failed(driver.now_ns, failure))
    wait_ns = driver.session.next_due_ns - driver.now_ns
    assert least_s * S <= wait_ns <= most_s * S
    assert driver.tick_when_due() == [Connect(URL)]


def retry_waits(driver: Driver, count: int) -> list[int]:
    """Delays of `count` failures in a row, in ns."""
    waits = []
    for _ in range(count):
        driver.take(driver.session.connect_failed(driver.now_ns, ConnectFailure("refused")))
        waits.append(driver.session.next_due_ns - driver.now_ns)
        driver.tick_when_due()
    return waits


def test_back_off_is_decorrelated_jitter() -> None:
    settings = SessionSettings(BackoffSettings(base_s=0.5, cap_s=20.0))
    driver = Driver(settings=settings)
    driver.start()
    waits = retry_waits(driver, 400)
    previous = S // 2
    for wait in waits:
        assert S // 2 <= wait <= min(20 * S, 3 * previous)
        previous = wait
    assert max(waits) == 20 * S
    assert len(set(waits)) > 100  # it is jitter, not a ladder
    away = waits[20:]
    assert 5 * S < sum(away) / len(away) < 15 * S
    assert min(away) < 5 * S


def test_back_off_is_a_function_of_the_seed() -> None:
    drivers = [Driver(seed) for seed in (5, 5, 6)]
    for driver in drivers:
        driver.start()
    first, again, other = (retry_waits(driver, 20) for driver in drivers)
    assert first == again != other


def grown_driver() -> Driver:
    """Back-off near its cap, then connected."""
    driver = Driver(settings=SessionSettings(BackoffSettings(base_s=0.1, cap_s=1000.0, healthy_s=30.0)))
    driver.start()
    retry_waits(driver, 40)
    driver.opened()
    return driver


def test_a_healthy_period_resets_the_back_off() -> None:
    driver = grown_driver()
    driver.frame(1)
    driver.after(29)
    driver.lost()
    assert driver.session.next_due_ns - driver.now_ns <= round(0.3 * S)


def test_a_short_life_does_not_reset_the_back_off() -> None:
    driver = grown_driver()
    driver.frame(1)
    driver.after(28.9)
    driver.lost()
    longest = driver.session.next_due_ns - driver.now_ns
    for _ in range(20):  # a server that accepts and drops at once must not be hammered
        driver.tick_when_due()
        driver.opened()
        driver.frame(0.1)
        driver.lost()
        longest = max(longest, driver.session.next_due_ns - driver.now_ns)
    assert longest > S


def test_a_long_life_without_a_frame_is_not_healthy() -> None:
    driver = grown_driver()
    driver.after(50)
    driver.lost()
    retry_waits_ns = [driver.session.next_due_ns - driver.now_ns]
    for _ in range(10):
        driver.tick_when_due()
        driver.opened()
        driver.after(50)
        driver.lost()
        retry_waits_ns.append(driver.session.next_due_ns - driver.now_ns)
    assert max(retry_waits_ns) > S


def test_sessions_that_share_a_pace_connect_one_after_another() -> None:
    pace = ConnectPace(5.0)
    venue, rng = make_venue(), random.Random(1)
    sessions = [Session(venue, make_subscription(), rng, stream=n, pace=pace) for n in range(3)]
    assert [len(session.start(START_NS)) for session in sessions] == [1, 0, 0]
    assert [session.next_due_ns - START_NS for session in sessions[1:]] == [S // 5, 2 * S // 5]
    assert not sessions[2].tick(START_NS + S // 5)
    assert sessions[1].tick(START_NS + S // 5) == [Connect(URL)]
    assert sessions[2].tick(START_NS + 2 * S // 5) == [Connect(URL)]


# ---------------------------------------------------------------- one silent market


def market_driver(**options: object) -> Driver:
    """Two lively markets on an open connection, watched for long enough."""
    rhythm = RhythmSettings(floor_s=20, samples=8, watched=2)
    settings = SessionSettings(rhythm=rhythm, silent_after_s=1e6, **options)
    driver = Driver(venue=make_venue(heartbeat=Heartbeat(ping_every_s=1e6)), settings=settings)
    driver.open()
    for _ in range(120):
        driver.frame(0.5, "KRW-ETH")
        driver.frame(0, "KRW-BTC")
        driver.tick()
    return driver


def go_on(driver: Driver, seconds: int) -> list[Action]:
    """Only KRW-BTC speaks, often enough for a count of frames."""
    actions = []
    for _ in range(10 * seconds):
        driver.frame(0.1)
        actions += driver.tick()
    return actions


def test_a_silent_market_is_named_and_asked_for_again_once() -> None:
    driver = market_driver()
    told = len(driver.logs())
    actions = go_on(driver, 300)
    (text,) = texts(actions)
    assert text.startswith("SUB kcs-")
    assert text.endswith("trade KRW-BTC,KRW-ETH"), "the full list, not the silent one alone"
    (said,) = driver.logs()[told:]
    assert "KRW-ETH" in said
    assert "KRW-BTC" not in said
    assert set(driver.session.silent) == {"KRW-ETH"}
    assert driver.session.is_open


def test_its_gap_is_written_before_the_frame_with_which_it_speaks_again() -> None:
    driver = market_driver()
    last_ns = driver.session.markets["KRW-ETH"]
    go_on(driver, 60)
    driver.after(0.1)
    assert driver.take(driver.session.frame(driver.now_ns)) == []
    assert driver.take(driver.session.speaks("KRW-BTC", driver.now_ns)) == []
    assert driver.take(driver.session.speaks("KRW-ETH", driver.now_ns)) == [
        WriteRecord(Kind.GAP, driver.now_ns, GapFields(last_ns, driver.now_ns, "market_silence", ("KRW-ETH",)))
    ]
    assert driver.take(driver.session.speaks("KRW-ETH", driver.now_ns)) == []
    assert not driver.session.silent
    assert driver.session.gaps == 1


def test_a_market_that_speaks_unnoticed_gets_its_gap_all_the_same() -> None:
    driver = market_driver()
    last_ns = driver.session.markets["KRW-ETH"]
    go_on(driver, 60)
    driver.frame(0.1, "KRW-ETH")
    go_on(driver, 2)
    (gap,) = [record.fields for record in driver.records() if record.kind is Kind.GAP]
    assert (gap.from_ns, gap.cause, gap.markets) == (last_ns, "market_silence", ("KRW-ETH",))
    assert not driver.session.silent


def test_silent_markets_one_after_another_do_not_hammer_the_venue() -> None:
    markets = tuple(f"KRW-{number:02}" for number in range(10))
    rhythm = RhythmSettings(floor_s=20, samples=8, watched=2)
    driver = Driver(
        venue=make_venue(heartbeat=Heartbeat(ping_every_s=1e6)),
        subscription=make_subscription(*markets),
        settings=SessionSettings(rhythm=rhythm, silent_after_s=1e6, ask_again_every_s=10.0),
    )
    driver.open()
    sent = []
    for step in range(1500):  # one market more stops every 3 s, from 60 s on
        stopped = max(0, (step - 600) // 30)
        for market in markets[: max(1, len(markets) - stopped)]:
            driver.frame(0, market)
        driver.after(0.1)
        sent += [driver.now_ns for text in texts(driver.tick()) if text.startswith("SUB")]
    assert len(driver.session.silent) == 9
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    assert 2 <= len(gaps) <= 5
    assert min(gaps) >= 10 * S


def test_a_market_that_is_still_silent_at_the_stop_has_its_gap_end_there() -> None:
    driver = market_driver()
    last_ns = driver.session.markets["KRW-ETH"]
    go_on(driver, 60)
    driver.take(driver.session.stop(driver.now_ns))
    close, gap = driver.lost(ConnectionEnd(1000))
    assert close.kind is Kind.CLOSE
    assert gap.fields == GapFields(last_ns, driver.now_ns, "market_silence", ("KRW-ETH",))


def test_a_silent_market_stays_so_over_a_reconnection() -> None:
    driver = market_driver()
    last_ns = driver.session.markets["KRW-ETH"]
    go_on(driver, 60)
    driver.lost()
    driver.tick(60)
    driver.opened()
    driver.frame(1)
    assert driver.records()[-1].fields.cause == "disconnect"
    assert set(driver.session.silent) == {"KRW-ETH"}
    driver.after(1)
    (gap,) = driver.take(driver.session.speaks("KRW-ETH", driver.now_ns))
    assert gap.fields == GapFields(last_ns, driver.now_ns, "market_silence", ("KRW-ETH",))


def test_unsubscribing_a_silent_market_ends_its_gap() -> None:
    driver = market_driver()
    go_on(driver, 60)
    actions = driver.take(driver.session.subscribe(make_subscription("KRW-BTC"), driver.now_ns))
    assert [action.fields.cause for action in actions if isinstance(action, WriteRecord)] == ["market_silence"]
    assert not driver.session.silent


def test_heartbeats_are_not_the_stream_going_on() -> None:
    driver = market_driver()
    for _ in range(55):
        driver.frame(1, market=None)
        driver.tick()
    assert not driver.session.silent


# ---------------------------------------------------------------- which markets a gap names


def test_a_gap_names_what_was_subscribed_when_it_began_and_what_was_added_since() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    driver.lost()
    driver.take(driver.session.subscribe(make_subscription("KRW-XRP", "KRW-BTC"), driver.now_ns))
    driver.tick(60)
    driver.opened()
    (gap,) = driver.frame(1)
    assert gap.fields.markets == (*MARKETS, "KRW-XRP")


@pytest.mark.parametrize(("count", "named"), [(MARKETS_NAMED_MAX, MARKETS_NAMED_MAX), (MARKETS_NAMED_MAX + 1, 0)])
def test_a_gap_of_more_markets_than_a_record_names_is_of_all(count: int, named: int) -> None:
    driver = Driver(subscription=make_subscription(*(f"KRW-{number}" for number in range(count))))
    driver.open()
    driver.frame(1)
    driver.lost()
    driver.tick(60)
    driver.opened()
    (gap,) = driver.frame(1)
    assert len(gap.fields.markets) == named


def test_repeated_names_are_named_once() -> None:
    driver = Driver(subscription=make_subscription("KRW-BTC", "KRW-BTC"), down_since_ns=START_NS - S)
    driver.open()
    (gap,) = driver.frame(1)
    assert gap.fields.markets == ("KRW-BTC",)


# ---------------------------------------------------------------- stopping


def test_stop_closes_cleanly() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    driver.after(1)
    assert driver.take(driver.session.stop(driver.now_ns)) == [CloseConnection(1000, "")]
    assert not driver.session.finished
    driver.frame(0.01)  # still on the wire: it counts
    driver.after(0.01)
    assert driver.lost(ConnectionEnd(1000)) == [
        WriteRecord(Kind.CLOSE, driver.now_ns, CloseFields(1000, "", "stop", 2))
    ]
    assert driver.session.finished
    assert driver.session.next_due_ns == NEVER_NS
    assert driver.tick(1000) == []


def test_stop_while_away_ends_the_gap_there() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    last_ns = driver.now_ns
    driver.lost()
    driver.after(2)
    assert driver.take(driver.session.stop(driver.now_ns)) == [
        WriteRecord(Kind.GAP, driver.now_ns, GapFields(last_ns, driver.now_ns, "disconnect", MARKETS))
    ]
    assert driver.session.finished


def test_stop_before_the_first_frame_of_a_reconnection_ends_the_gap_after_the_close() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1)
    driver.lost()
    driver.tick(60)
    driver.opened()
    driver.take(driver.session.stop(driver.now_ns))
    assert [action.kind for action in driver.lost(ConnectionEnd(1000))] == [Kind.CLOSE, Kind.GAP]


def test_stop_while_connecting_gives_up() -> None:
    driver = Driver()
    driver.start()
    assert driver.take(driver.session.stop(driver.now_ns)) == [CloseConnection(1000)]
    assert driver.take(driver.session.connect_failed(driver.now_ns, ConnectFailure("cancelled"))) == []
    assert driver.session.finished
    assert driver.session.connect_failures == {}


def test_a_handshake_that_succeeds_after_the_stop_is_closed_again() -> None:
    driver = Driver()
    driver.start()
    driver.take(driver.session.stop(driver.now_ns))
    actions = driver.opened()
    assert isinstance(actions[0], WriteRecord)
    assert actions[-1] == CloseConnection(1000, "")
    assert texts(actions) == []
    driver.lost(ConnectionEnd(1000))
    assert driver.session.finished


def test_stop_before_start() -> None:
    driver = Driver()
    assert driver.take(driver.session.stop(driver.now_ns)) == []
    assert driver.session.finished


def test_stop_while_a_dead_connection_is_closing() -> None:
    driver = quiet_driver()
    driver.open()
    driver.frame(1)
    last_ns = driver.now_ns
    driver.tick(1)
    driver.tick(60)
    assert driver.take(driver.session.stop(driver.now_ns)) == []
    close, gap = driver.lost()
    assert close.fields.cause == "silence"
    assert gap.fields == GapFields(last_ns, driver.now_ns, "silence", MARKETS)
    assert driver.session.finished


# ---------------------------------------------------------------- what the rest needs


def test_markets_that_never_spoke_are_named_once() -> None:
    driver = Driver(
        subscription=make_subscription("KRW-BTC", "KRW-NOPE"), settings=SessionSettings(silent_after_s=15.0)
    )
    driver.open()
    driver.frame(1)
    assert driver.session.silent_markets(driver.now_ns) == ()
    driver.tick(13.9)
    assert not any("KRW-NOPE" in text for text in driver.logs())
    for _ in range(5):
        driver.tick(0.2)
        driver.frame()
    assert driver.session.silent_markets(driver.now_ns) == ("KRW-NOPE",)
    named = [text for text in driver.logs() if "KRW-NOPE" in text]
    assert len(named) == 1
    assert "KRW-BTC" not in named[0]


def test_a_market_that_spoke_in_time_is_not_named() -> None:
    driver = Driver()
    driver.open()
    driver.frame(1, "KRW-BTC")
    driver.frame(1, "KRW-ETH")
    driver.tick(20)
    assert driver.session.silent_markets(driver.now_ns) == ()
    assert not any("nothing yet" in text for text in driver.logs())


def test_many_silent_markets_are_counted_not_listed() -> None:
    driver = Driver(subscription=make_subscription(*(f"KRW-{number:03}" for number in range(300))))
    driver.open()
    driver.tick(16)
    (text,) = [text for text in driver.logs() if "nothing yet" in text]
    assert "and 280 more" in text
    assert len(text) < 400


def test_continued_says_that_the_stream_is_still_open() -> None:
    driver = Driver()
    assert not driver.session.is_open
    driver.open()
    driver.frame(1)
    assert driver.session.is_open
    assert driver.session.continued() == OpenFields(URL, "continued", 1, True)
    driver.lost()
    assert not driver.session.is_open


def test_market_names_from_outside_are_bounded() -> None:
    driver = Driver()
    driver.open()
    for number in range(MARKETS_MAX + 10):
        driver.session.on_market(f"X-{number}", driver.now_ns + number)
    assert len(driver.session.markets) == MARKETS_MAX
    assert driver.session.last_data_ns == driver.now_ns + MARKETS_MAX + 9
    driver.session.on_market("X-0", driver.now_ns + 1)
    assert driver.session.markets["X-0"] == driver.now_ns + 1


STEPS = ("frame", "beat", "tick", "pong", "loss", "open", "fail", "stop")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 90))))
@example([("open", 0), ("loss", 0), ("frame", 1), ("open", 0), ("beat", 1), ("tick", 59)])
def test_whatever_happens_the_records_tell_a_consistent_story(steps: list[tuple[str, int]]) -> None:
    """Any order of events: opens and closes alternate, a gap stands before the frame that ends it, none overlap."""
    driver = Driver()
    session = driver.session
    story: list[WriteRecord | int] = []  # records, and the times of frames

    def take(actions: Sequence[Action]) -> None:
        story.extend(action for action in driver.take(actions) if isinstance(action, WriteRecord))

    take(session.start(driver.now_ns))
    for step, seconds in steps:
        driver.after(seconds)
        connected = session.phase in (Phase.OPEN, Phase.CLOSING)
        if step in ("frame", "beat") and connected:
            take(session.frame(driver.now_ns))
            story.append(driver.now_ns)
            if step == "frame":
                session.on_market("KRW-BTC", driver.now_ns)
        elif step == "pong" and connected:
            session.pong(driver.now_ns, b"kcs 1")
        elif step == "loss" and connected:
            take(session.closed(driver.now_ns, ConnectionEnd(1006, "", "lost")))
        elif step == "open" and session.phase is Phase.CONNECTING:
            take(session.opened(driver.now_ns))
        elif step == "fail" and session.phase is Phase.CONNECTING:
            take(session.connect_failed(driver.now_ns, ConnectFailure("dns")))
        elif step == "stop":
            take(session.stop(driver.now_ns))
        else:
            take(session.tick(driver.now_ns))
    take(session.stop(driver.now_ns))
    if session.phase is Phase.CONNECTING:
        take(session.connect_failed(driver.now_ns, ConnectFailure("cancelled")))
    elif not session.finished:
        take(session.closed(driver.now_ns, ConnectionEnd(1000)))
    assert session.finished

    is_open, frames, losses, gap_end, opened_ns = False, 0, 0, 0, 0
    for position, item in enumerate(story):
        if isinstance(item, int):
            assert is_open
            frames += 1
        elif item.kind is Kind.OPEN:
            assert not is_open
            is_open, opened_ns = True, item.recv_ns
            assert item.fields.frames == frames
        elif item.kind is Kind.CLOSE:
            assert is_open
            is_open = False
            losses += item.fields.cause != "stop"
            assert item.fields.frames == frames
        else:
            # A heartbeat may have ended the gap before; that there was no data counts from the opening all the same.
            earliest_ns = min(gap_end, opened_ns) if item.fields.cause == "silence" else gap_end
            assert earliest_ns <= item.fields.from_ns <= item.fields.to_ns == item.recv_ns
            gap_end = item.fields.to_ns
            if position + 1 < len(story):
                assert story[position + 1] == gap_end  # the frame that ended it
    assert not is_open
    assert bool(losses) == bool(session.gaps)


def test_ticking_early_and_often_changes_nothing() -> None:
    """The same events with a tick each 50 ms and with a tick only when due give the same actions."""

    def run(busy: bool) -> list:
        driver = Driver()
        driver.open()
        end_ns = START_NS + 200 * S
        while driver.now_ns < end_ns:
            if busy:
                driver.tick(0.05)
            else:
                driver.clock.set(min(end_ns, driver.session.next_due_ns))
                driver.tick()
            if driver.session.phase is Phase.CLOSING:
                driver.lost()
            if driver.session.phase is Phase.CONNECTING:
                driver.opened()
        return [type(action) for action in driver.log]

    assert run(busy=True) == run(busy=False)
