"""Fault texts and the limits of their values."""

from __future__ import annotations

import pytest

from kcs.errors import ConfigError, UnknownNameError
from kcs.sim.faults import Faults, junk_frame, parse_faults


def test_several_in_one_text_or_in_many() -> None:
    wanted = Faults(drop_connection_every_s=7, close_code=1001, junk=50)
    assert parse_faults(["drop_connection_every_s=7, close_code=1001", "junk=50"]) == wanted
    assert parse_faults([]) == parse_faults([""]) == Faults()


def test_an_unknown_fault_names_the_near_one() -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_faults(["jnk=3"])
    assert caught.value.suggestion == "junk"


@pytest.mark.parametrize("text", ["junk", "junk=", "junk=x", "junk=-1", "junk=1.5", "junk=٣", "junk=9999999999"])
def test_bad_values(text: str) -> None:
    with pytest.raises(ConfigError, match="junk"):
        parse_faults([text])


def test_twice_is_once_too_often() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_faults(["junk=1", "junk=1"])


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1015, 2999, 5000])
def test_codes_that_cannot_be_sent(code: int) -> None:
    with pytest.raises(ConfigError, match=str(code)):
        Faults(close_code=code)


def test_a_stall_must_end_before_the_next() -> None:
    with pytest.raises(ConfigError, match="stall_every_s"):
        Faults(stall_s=5, stall_every_s=5)
    assert Faults(stall_s=5, stall_every_s=6).stall_s == 5


def test_junk_comes_in_four_kinds() -> None:
    assert len({junk_frame(b'{"type":"trade"}', turn) for turn in range(8)}) == 4
