"""A collector to be killed: appends `rate` records a second, ticks every 50 ms, and logs what it appended.

    python -m tests.capture.killed DIRECTORY RATE LOG

The log is written with plain writes, which survive kill -9 in the page cache: (number, recv_ns) after each append, and
(2^64 - 1, now) after each turn.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from pathlib import Path

from kcs.clock import SystemClock
from tests.capture.making import payload_of, writer

ENTRY = struct.Struct("<QQ")
TURN = 2**64 - 1
TICK_NS = 50_000_000


def main() -> None:
    directory, rate, log = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    clock = SystemClock()
    target = writer(directory, threaded=True)
    note = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pause = threading.Event()
    start = next_tick = clock.now_ns()
    number = 0
    while True:
        now = clock.now_ns()
        due = (now - start) * rate // 1_000_000_000 + 1
        while number < due:
            recv_ns = clock.now_ns()
            target.append(3, number % 3, recv_ns, payload_of(number))
            os.write(note, ENTRY.pack(number, recv_ns))
            number += 1
        if now >= next_tick:
            target.tick(now)
            next_tick = now + TICK_NS
            os.write(note, ENTRY.pack(TURN, clock.now_ns()))
        pause.wait(0.002 if rate > 100 else 0.01)


if __name__ == "__main__":
    main()
