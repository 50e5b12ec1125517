"""aiokafka's repeated lines are thinned out, and only those."""

from __future__ import annotations

import logging

from aiokafka.protocol.admin import SaslAuthenticateRequest_v0

from kcs.kafka.quiet import OURS, Discreet, Repeats, calm


def line(message: str, created_s: float, *args: object) -> logging.LogRecord:
    record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, message, args, None)
    record.created = created_s
    return record


def test_a_line_comes_through_at_once_and_then_less_and_less() -> None:
    repeats = Repeats()
    shown = []
    for tenth in range(6_000):
        record = line("no node %s", tenth / 10, tenth)
        if repeats.filter(record):
            shown.append((tenth / 10, record.getMessage()))
    assert [moment for moment, _ in shown[:6]] == [0.0, 5.0, 15.0, 35.0, 75.0, 135.0]
    assert len(shown) == 13  # of 6,000 in ten minutes
    assert shown[1][1] == "no node 50 (and 49 more like it)"
    assert repeats.filter(line("another", 10.1))


def test_after_two_minutes_of_silence_it_begins_anew() -> None:
    repeats = Repeats()
    shown = [repeats.filter(line("no node", moment)) for moment in (0.0, 1.0, 122.0, 123.0, 127.5)]
    assert shown == [True, False, True, False, True]


def test_each_place_of_ours_has_its_turn() -> None:
    repeats = Repeats()
    records = [line("%s: came back", 0.0, place) for place in ("topic a", "topic b", "topic a")]
    for record in records:
        record.name = OURS
    assert [repeats.filter(record) for record in records] == [True, True, False]


def test_its_memory_is_bounded() -> None:
    repeats = Repeats()
    for number in range(1_000):
        repeats.filter(line(f"line {number}", 0.0))
    assert len(repeats._lines) <= 256


def test_debug_lines_are_all_let_through() -> None:
    repeats = Repeats()
    records = [line("request %s", 0.0, number) for number in range(3)]
    for record in records:
        record.levelno = logging.DEBUG
    assert all(map(repeats.filter, records))


def test_a_login_is_logged_without_its_content() -> None:
    record = line("Request to %s: %s", 0.0, "host", SaslAuthenticateRequest_v0(b"\0me\0s3cret"))
    assert "s3cret" in record.getMessage()
    assert Discreet().filter(record)
    assert record.getMessage() == "Request to host: [a login]"


def test_calming_twice_is_calming_once() -> None:
    calm()
    before = len(logging.getLogger("aiokafka").filters)
    calm()
    assert len(logging.getLogger("aiokafka").filters) == before
