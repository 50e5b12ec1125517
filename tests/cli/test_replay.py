"""`kcs replay` from the command line: what is printed, where, and the exit code; with sinks that are slow or lose."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import kcs.cli.sinks
from kcs.cli.running import interruptible, run_async
from kcs.errors import KafkaError
from kcs.replay import engine
from kcs.verify import verify
from tests.cli.processes import Done, balanced, run, running
from tests.replay.making import SECOND, START_NS, ListSink, SlowSink, StuckSink, make, trades

Call = Callable[..., Done]


@pytest.fixture
def into(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let `kcs replay` find this sink where it would open Kafka."""

    def use(sink: Any) -> None:
        @asynccontextmanager
        async def open_sink(kind: str, *_: Any, **__: Any) -> AsyncIterator[Any]:
            assert kind == "kafka"
            yield sink

        monkeypatch.setattr(kcs.cli.sinks, "open_sink", open_sink)

    return use


@pytest.mark.slow
def test_107600_messages_into_a_slow_sink_all_arrive_and_exit_is_0(
    tmp_path: Path, kcs: Call, into: Callable[[Any], None]
) -> None:
    """A rival reports these as replayed while its Kafka sink dropped 87,600 of them."""
    path = make(tmp_path, 1, trades(107_600, step_ns=100_000))
    sink = SlowSink(room_for=20_000, each=500)
    into(sink)
    done = kcs("replay", path, "--json")
    assert done.code == 0
    assert done.json["records"] == {"produced": 107_600, "acked": 107_600, "failed": 0, "in_flight": 0}
    assert (len(sink.records), sink.over) == (107_600, 0)
    assert done.json["digest"] == verify(path).digest


def test_records_that_fail_are_exit_3_and_are_counted_aloud(
    tmp_path: Path, kcs: Call, into: Callable[[Any], None]
) -> None:
    path = make(tmp_path, 1, trades(2_000))
    into(SlowSink(room_for=500, each=100, fail_every=20))
    done = kcs("replay", path)
    assert (done.code, done.out) == (3, b"")
    assert "100 records failed" in done.err
    assert "1,900 acked + 100 failed + 0 in flight" in done.err
    into(SlowSink(room_for=500, each=100, fail_every=20))
    done = kcs("replay", path, "--json")
    assert (done.code, done.json["records"]["failed"]) == (3, 100)
    balanced(done.json)


def test_a_sink_that_breaks_down_is_exit_1(tmp_path: Path, kcs: Call, into: Callable[[Any], None]) -> None:
    class Broken(ListSink):
        async def drain(self) -> None:
            raise KafkaError("the topic is gone", where="replay.trade.upbit", remedy="make it again")

    into(Broken())
    done = kcs("replay", make(tmp_path, 1, trades(10)), "--json")
    assert (done.code, done.out) == (1, b"")
    assert "kcs: replay.trade.upbit: the topic is gone\n  try: make it again" in done.err


def test_a_sink_that_is_stuck_when_the_signal_comes(
    tmp_path: Path, kcs: Call, into: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STOP_GRACE_S", 0.1)

    class Signalled(StuckSink):
        async def room(self) -> None:
            signal.raise_signal(signal.SIGINT)
            await super().room()

    into(Signalled(100))
    done = kcs("replay", make(tmp_path, 1, trades(1_000)), "--json")
    assert done.code == 3, "loss comes before the interruption"
    assert done.json["records"] == {"produced": 100, "acked": 0, "failed": 0, "in_flight": 100}
    balanced(done.json)


@pytest.mark.parametrize("room_for", [100, 10_000], ids=["feeding", "draining"])
def test_a_second_signal_ends_the_grace_and_the_ledger_still_comes_out(
    tmp_path: Path, kcs: Call, into: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    monkeypatch.setattr(engine, "STOP_GRACE_S", 3_600.0)

    class Signalled(StuckSink):
        async def _signals(self) -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        async def room(self) -> None:
            await self._signals()
            await super().room()

        async def drain(self) -> None:
            if room_for > 1_000:
                await self._signals()
            await super().drain()

    into(Signalled(room_for))
    path = make(tmp_path, 1, trades(1_000))
    fed = min(room_for, 1_000)
    done = kcs("replay", path, "--json")
    assert done.code == 3, "loss comes before the interruption"
    assert done.json["records"] == {"produced": fed, "acked": 0, "failed": 0, "in_flight": fed}
    balanced(done.json)


def test_signals_stop_then_force_then_cancel() -> None:
    seen: list[tuple[bool, bool]] = []

    async def main() -> None:
        with interruptible() as stop:
            for until in (stop.wait, stop.force.wait, asyncio.Event().wait):
                signal.raise_signal(signal.SIGTERM)
                await until()
                seen.append((stop.is_set(), stop.force.is_set()))

    with pytest.raises(KeyboardInterrupt):
        run_async(main)
    assert seen == [(True, False), (True, True)]


def test_stdout_sink_is_ndjson_and_talk_is_elsewhere(tmp_path: Path, kcs: Call) -> None:
    path = make(tmp_path, 1, [*trades(3), (START_NS + SECOND, b"junk \xff")])
    done = kcs("replay", path, "--sink", "stdout", "--topic", "t.{channel}.{exchange}")
    assert done.code == 0
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["topic"] for row in rows] == ["t.trade.upbit"] * 3 + ["t.reject.upbit"]
    assert rows[1] == {
        "topic": "t.trade.upbit",
        "key": "KRW-BTC",
        "value": [1.5, 0.25, 1, 1_700_000_000.001],
        "timestamp": (START_NS + 10_000_000) // 1_000_000,
        "headers": {
            "kcs": {"capture": "0000000000000001", "frame": 1, "event": 0, "recv_ns": START_NS + 10_000_000},
            "id": "1",
        },
    }
    assert rows[3]["value"] == "junk �"
    assert "4 acked" in done.err
    assert kcs("replay", path, "--sink", "stdout", "-q").err == ""
    assert len(kcs("replay", path, "--sink", "stdout", "--json").out.splitlines()) == 4, "records only: no report"


def test_range_loop_and_speed(tmp_path: Path, kcs: Call) -> None:
    path = make(tmp_path, 1, trades(100))
    done = kcs("replay", path, "--sink", "null", "--from", "+200ms", "--to", "+400ms", "--loop", "2", "--json")
    assert (done.code, done.json["records"]["produced"], done.json["digest"]) == (0, 40, None)
    done = kcs("replay", path, "--sink", "null", "--speed", "20", "--json")
    report = done.json
    assert (report["rate"]["speed_asked"], report["digest"]) == ("20", verify(path).digest)
    assert 10 < report["rate"]["speed_reached"] <= 20.0
    assert report["seconds"] >= 0.99 / 20
    assert report["lateness_ms"].keys() == {"p50", "p99", "max"}
    assert report["ack_latency_ms"] is report["reconnects"] is report["catch_ups"] is None


def test_a_signal_ends_a_paced_replay_at_once(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3, step_ns=3_600 * SECOND))
    for number in (signal.SIGINT, signal.SIGTERM):
        args = ("replay", path, "--sink", "stdout", "--speed", "1")
        with running(*args, cwd=tmp_path, PYTHONUNBUFFERED="1") as kcs:
            assert kcs.first_line()
            kcs.send(number)
            done = kcs.wait(8.0)
        assert done.code == 130
        assert "1 received" in done.err


def test_into_the_embedded_broker(tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3_000))
    done = run("replay", path, "--json", cwd=tmp_path)
    assert done.code == 0
    assert done.json["records"]["acked"] == 3_000
    assert done.json["digest"] == verify(path).digest
    assert "embedded broker" in done.err
