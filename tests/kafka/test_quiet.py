"""aiokafka's repeated lines are thinned out, and only those."""

from __future__ import annotations

import logging

from kcs.kafka.quiet import Repeats, calm


def line(message: str, created_s: float, *args: object) -> logging.LogRecord:
    record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, message, args, None)
    record.created = created_s
    return record


def test_a_line_comes_through_once_in_five_seconds() -> None:
    repeats = Repeats()
    shown = [repeats.filter(line("no node %s", moment, moment)) for moment in (0.0, 0.1, 4.9, 5.0, 5.1, 10.0)]
    assert shown == [True, False, False, True, False, True]
    assert repeats.filter(line("another", 10.1))


def test_its_memory_is_bounded() -> None:
    repeats = Repeats()
    for number in range(1_000):
        repeats.filter(line(f"line {number}", 0.0))
    assert len(repeats._last_s) <= 256


def test_calming_twice_is_calming_once() -> None:
    calm()
    before = len(logging.getLogger("aiokafka").filters)
    calm()
    assert len(logging.getLogger("aiokafka").filters) == before
