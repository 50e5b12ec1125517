"""Spoilt frames are spoilt whatever was drawn."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcs.errors import FrameRejected
from kcs.exchanges.upbit import UPBIT
from kcs.sim.settings import SimSettings
from kcs.sim.spoil import cut_frame, junk_frame, spoilt_frame
from tests.sim.helpers import everything

BITS = st.integers(0, (1 << 64) - 1)
FRAMES = everything(SimSettings(rate=100), "DEFAULT", 1)


def test_junk_comes_in_four_kinds() -> None:
    assert len({junk_frame(b'{"type":"trade"}', turn) for turn in range(8)}) == 4


@given(st.sampled_from(FRAMES), BITS)
def test_no_parser_reads_a_spoilt_or_cut_frame(frame: bytes, bits: int) -> None:
    spoilt, where = spoilt_frame(frame, bits)
    assert len(spoilt) == len(frame)
    assert [at for at in range(len(frame)) if frame[at] != spoilt[at]] == [where]
    part = cut_frame(frame, bits)
    assert frame.startswith(part)
    assert 0 < len(part) < len(frame)
    for payload in (spoilt, part):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(payload)
        with pytest.raises(FrameRejected):
            UPBIT.adapter().parse(0, 0, payload)


@given(st.binary(min_size=1, max_size=5), BITS)
def test_frames_of_any_other_kind_are_spoilt_too(frame: bytes, bits: int) -> None:
    assert len(spoilt_frame(frame, bits)[0]) == len(frame)
    assert frame.startswith(cut_frame(frame, bits))


def test_all_places_are_hit() -> None:
    assert {len(cut_frame(b"abcdef", bits << 58)) for bits in range(64)} == {1, 2, 3, 4, 5}
    assert {spoilt_frame(b"[1,2]", bits << 58)[1] for bits in range(64)} == {0, 2, 4}
    assert {spoilt_frame(b"[1]", bits)[0] for bits in range(2)} == {b"\x001]", b"\xff1]"}
