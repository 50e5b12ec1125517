"""A slot between a scripted connection and a list of records: what is written in which order, and what is counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from kcs.clock import NS_PER_S, VirtualClock
from kcs.exchanges.base import Heartbeat
from kcs.live.rhythm import RhythmSettings
from kcs.live.session import Session, SessionSettings
from kcs.live.slot import CODES_SOUGHT_MAX, Slot
from kcs.model import Event, GapFields, Kind
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
from kcs.stats import Ledger
from tests.live.rig import trade
from tests.live.support import START_NS, LineAdapter, make_subscription, make_venue

S = NS_PER_S
BINARY = int(Kind.BINARY)


class Noting:
    """Plays the recorder: notes, and feeds the pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.noted: list[tuple[str, int, Any]] = []

    def frame(self, kind: int, stream: int, recv_ns: int, payload: bytes) -> None:
        self.noted.append(("frame", stream, payload))
        self.pipeline.feed(stream, recv_ns, payload)

    def control(self, kind: int, stream: int, recv_ns: int, fields: Any, payload: bytes = b"") -> None:
        self.noted.append((Kind(kind).name, stream, fields))
        self.pipeline.control(kind, stream, recv_ns, fields, payload)

    def sent(self, stream: int, recv_ns: int, text: str) -> None:
        self.noted.append(("sent", stream, text))


class Peer:
    """Plays the connection."""

    def send_text(self, text: str) -> bool:
        return True

    def ping(self, payload: bytes) -> None:
        pass


class CountingAdapter(LineAdapter):
    parses = 0

    def parse(self, stream: int, recv_ns: int, payload: bytes) -> Sequence[Event]:
        CountingAdapter.parses += 1
        return super().parse(stream, recv_ns, payload)


class Stage:
    """Slots over one pipeline under a virtual clock, their connections open; time moves by whole frames."""

    def __init__(self, *markets: str, slots: int = 1, codes_in_frames: bool = True) -> None:
        self.clock = VirtualClock(START_NS)
        venue = make_venue(
            heartbeat=Heartbeat(ping_every_s=1e6), adapter=CountingAdapter, codes_in_frames=codes_in_frames
        )
        self.pipeline = Pipeline(venue.name, CountingAdapter(), NullSink(), Ledger())
        self.recorder = Noting(self.pipeline)
        settings = SessionSettings(rhythm=RhythmSettings(samples=8, watched=2), silent_after_s=1e6)
        self.slots = []
        for stream in range(slots):
            session = Session(venue, make_subscription(*markets), random.Random(1), stream=stream, settings=settings)
            slot = Slot(
                session,
                self.recorder,  # type: ignore[arg-type]
                self.pipeline,
                None,  # type: ignore[arg-type]
                self.clock,
                lambda level, text: None,
                self.crash,
                lambda: None,
                counting=slots > 1,
            )
            slot.opened(Peer(), START_NS)  # type: ignore[arg-type]
            self.slots.append(slot)
        self.number = 0
        CountingAdapter.parses = 0

    def crash(self, error: BaseException) -> None:
        raise error

    def say(self, market: str, seconds: float = 0.0) -> None:
        self.clock.advance(round(seconds * S))
        self.number += 1
        now_ns = self.clock.now_ns()
        self.slots[0].frame(BINARY, now_ns, trade(self.number, market))
        self.slots[0].tick(now_ns)

    def lively(self, *markets: str, rounds: int) -> None:
        for _ in range(rounds):
            self.clock.advance(S // 5)
            for market in markets:
                self.say(market)


def silent_stage(*silent: str, **options: Any) -> Stage:
    """`KRW-BTC` goes on, the others have fallen silent."""
    stage = Stage("KRW-BTC", *silent, **options)
    stage.lively("KRW-BTC", *silent, rounds=300)
    stage.lively("KRW-BTC", rounds=200)
    assert set(stage.slots[0].session.silent) == set(silent)
    stage.recorder.noted.clear()
    CountingAdapter.parses = 0
    return stage


@pytest.mark.parametrize("codes_in_frames", [True, False])
def test_the_gap_of_a_market_is_written_before_its_frame(codes_in_frames: bool) -> None:
    stage = silent_stage("KRW-ETH", codes_in_frames=codes_in_frames)
    last_ns = stage.slots[0].session.markets["KRW-ETH"]
    stage.say("KRW-BTC", 1)
    stage.say("KRW-ETH", 1)
    stage.say("KRW-ETH", 1)
    kinds = [kind for kind, _, _ in stage.recorder.noted]
    assert kinds == ["frame", "GAP", "frame", "frame"]
    assert stage.recorder.noted[1][2] == GapFields(last_ns, stage.clock.now_ns() - S, "market_silence", ("KRW-ETH",))


def test_the_gap_resets_that_market_alone() -> None:
    stage = silent_stage("KRW-ETH")
    adapter = stage.pipeline._adapter
    assert isinstance(adapter, LineAdapter)
    before = adapter.counts[0, "KRW-BTC"]
    stage.say("KRW-ETH", 1)
    assert adapter.counts == {(0, "KRW-BTC"): before, (0, "KRW-ETH"): 1}


@pytest.mark.parametrize(("codes_in_frames", "parses"), [(True, 10), (False, 20)])
def test_frames_of_others_are_parsed_twice_only_where_the_code_could_be_hidden(
    codes_in_frames: bool, parses: int
) -> None:
    stage = silent_stage("KRW-ETH", codes_in_frames=codes_in_frames)
    for _ in range(10):
        stage.say("KRW-BTC")
    assert CountingAdapter.parses == parses


def test_a_code_within_another_code_ends_nothing() -> None:
    stage = silent_stage("KRW-BT")
    stage.say("KRW-BTC", 1)
    assert [kind for kind, _, _ in stage.recorder.noted] == ["frame"]
    assert set(stage.slots[0].session.silent) == {"KRW-BT"}


def test_many_silent_markets_are_not_looked_for_one_by_one() -> None:
    silent = [f"KRW-{number:02}" for number in range(CODES_SOUGHT_MAX + 1)]
    stage = silent_stage(*silent)
    stage.say("KRW-BTC")
    assert CountingAdapter.parses == 2
    for market in silent:
        stage.say(market)
    gaps = [fields.markets for kind, _, fields in stage.recorder.noted if kind == "GAP"]
    assert gaps == [(market,) for market in silent]
    CountingAdapter.parses = 0
    stage.say("KRW-BTC")
    assert CountingAdapter.parses == 1, "nobody is silent any more"


@pytest.mark.parametrize("payload", [b'{"up":1}', b"nonsense KRW-ETH"])
def test_frames_that_are_no_event_end_nothing(payload: bytes) -> None:
    stage = silent_stage("KRW-ETH", codes_in_frames=False)
    stage.slots[0].frame(BINARY, stage.clock.now_ns(), payload)
    assert [kind for kind, _, _ in stage.recorder.noted] == ["frame"]
    assert set(stage.slots[0].session.silent) == {"KRW-ETH"}


def test_only_what_no_other_stream_had_brought_is_saved() -> None:
    stage = Stage("KRW-BTC", slots=2)
    first, second = stage.slots
    now_ns = stage.clock.now_ns()
    for slot, number in ((first, 1), (second, 1), (second, 2), (first, 2), (second, 3)):
        slot.frame(BINARY, now_ns, trade(number))
    second.frame(BINARY, now_ns, b"nonsense")  # becomes a rejected record, which saves nothing
    second.frame(BINARY, now_ns, b'{"up":1}')
    assert (first.saved, second.saved) == (1, 2)
    assert (first.session.frames, second.session.frames) == (2, 5)


def test_without_twins_nothing_is_counted() -> None:
    stage = Stage("KRW-BTC")
    stage.say("KRW-BTC")
    assert stage.slots[0].saved == 0
