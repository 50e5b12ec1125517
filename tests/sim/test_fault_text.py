"""The text form of faults: what it means, that it survives being written and read, and how the wrong is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.clock import NS_PER_MS, NS_PER_S
from kcs.errors import ConfigError, UnknownNameError, UsageError
from kcs.sim.fault_text import PRESETS, RENAMED, parse_faults
from kcs.sim.faults import CERTAIN, FAULTS, Fault, Faults, Style, Value, When
from kcs.sim.settings import SimSettings

PERCENT = CERTAIN // 100
KIB, KB = 1024, 1000
S = NS_PER_S


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("drop=1%", Fault("drop", chance=PERCENT)),
        ("drop@1%", Fault("drop", chance=PERCENT)),
        ("drop=0.0000001%", Fault("drop", chance=1)),
        ("drop@every:100", Fault("drop", when=When("frames", 100))),
        ("drop=50%@every:60s@for:5s", Fault("drop", chance=50 * PERCENT, when=When("every", 60 * S, 5 * S))),
        ("drop @ for:5s @ at:1.5s", Fault("drop", when=When("at", 1_500 * NS_PER_MS, 5 * NS_PER_S))),
        ("reorder=1%", Fault("reorder", 1, chance=PERCENT)),
        ("reorder=3@1%", Fault("reorder", 3, chance=PERCENT)),
        ("latency=50ms", Fault("latency", 50 * NS_PER_MS)),
        ("latency=50ms@10%", Fault("latency", 50 * NS_PER_MS, chance=10 * PERCENT)),
        ("latency=1m@after:2h@for:3s", Fault("latency", 60 * S, when=When("after", 7200 * S, 3 * S))),
        ("bandwidth=100KB/s", Fault("bandwidth", 100 * KB)),
        ("limit_data=64KiB", Fault("limit_data", 64 * KIB)),
        ("slicer=64B", Fault("slicer", 64, extra=(32, 0))),
        ("slicer=64B:16B:500us", Fault("slicer", 64, extra=(16, 500_000))),
        ("timeout=0s@at:20s", Fault("timeout", 0, when=When("at", 20 * NS_PER_S))),
        ("reset_peer", Fault("reset_peer")),
        ("reset_peer@at:12s", Fault("reset_peer", when=When("at", 12 * NS_PER_S))),
        ("reset_peer=5s@50%", Fault("reset_peer", chance=50 * PERCENT, when=When("after", 5 * NS_PER_S))),
        ("silent_stall=5s@every:60s", Fault("silent_stall", 5 * NS_PER_S, when=When("every", 60 * NS_PER_S))),
        ("market_silent=KRW-BTC:20s@at:0s", Fault("market_silent", 20 * NS_PER_S, "KRW-BTC", when=When("at"))),
        ("market_silent=20s@0.1%", Fault("market_silent", 20 * NS_PER_S, chance=PERCENT // 10)),
        ("close_code=1012@every:30s", Fault("close_code", 1012, when=When("every", 30 * NS_PER_S))),
        ("clock_step=-2s@at:30s", Fault("clock_step", -2 * NS_PER_S, when=When("at", 30 * NS_PER_S))),
        ("clock_step=+500ms@every:9s@for:1s", Fault("clock_step", 500 * NS_PER_MS, when=When("every", 9 * S, S))),
        ("late_snapshot=2s", Fault("late_snapshot", 2 * NS_PER_S)),
        ("ping_ignored=10%", Fault("ping_ignored", chance=10 * PERCENT)),
    ],
)  # fmt: skip
def test_what_a_text_means(text: str, fault: Fault) -> None:
    assert parse_faults(text).items == (fault,)
    assert parse_faults(str(fault)).items == (fault,)


def test_several_in_one_text_or_in_many() -> None:
    wanted = parse_faults(["latency=50ms,jitter=20ms", "drop=1%"])
    assert [fault.name for fault in wanted.items] == ["latency", "jitter", "drop"]
    assert parse_faults(" latency=50ms , jitter=20ms,, drop=1% ") == wanted
    assert str(wanted) == "latency=50ms,jitter=20ms,drop@1%"
    assert parse_faults([]) == parse_faults("") == parse_faults(["", ","]) == Faults()
    assert not Faults()
    assert wanted


def test_the_kinds_go_where_they_act() -> None:
    faults = parse_faults("latency=1ms,drop=1%,clock_step=1s@at:5s,market_silent=KRW-XRP:1s@1%")
    assert [fault.name for fault in faults.toxics] == ["latency"]
    assert [fault.name for fault in faults.mischief] == ["drop", "market_silent"]
    assert [fault.name for fault in faults.clock_steps] == ["clock_step"]
    assert faults.markets == ("KRW-XRP",)


@pytest.mark.parametrize("name", FAULTS)
def test_every_example_works(name: str) -> None:
    (fault,) = parse_faults(FAULTS[name].example).items
    assert fault.name == name
    assert fault.kind is FAULTS[name]


def test_chaos_is_everything_and_can_be_changed() -> None:
    chaos = parse_faults("chaos")
    assert {fault.name for fault in chaos.items} == set(FAULTS)
    assert parse_faults(str(chaos)) == chaos
    changed = parse_faults(["chaos,drop=5%", "timeout=off"])
    assert {fault.name for fault in changed.items} == set(FAULTS) - {"timeout"}
    assert changed.named("drop") == (Fault("drop", chance=5 * PERCENT),)


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_says_how_it_is_said_now(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_faults(f"{name}=3")
    assert RENAMED[name] in str(caught.value)
    assert parse_faults(RENAMED[name])


@pytest.mark.parametrize(
    ("text", "near"), [("jnk=3", "junk"), ("latancy=3ms", "latency"), ("kaos", "chaos"), ("=1%", "")]
)
def test_an_unknown_fault_names_the_near_one(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_faults(text)
    assert (caught.value.suggestion or "") == near


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drop", "does not say when"),
        ("drop=", "nothing after '='"),
        ("drop=5", "'5' is no chance"),
        ("drop=5ms", "'5ms' is no chance"),
        ("drop=101%", "'101%' is more than always"),
        ("drop=-1%", "'-1%' is no chance"),
        ("drop=1e0%", "'1e0%' is no chance"),
        ("drop=٣%", "is no chance"),
        ("drop=0.00000001%", "finer than kcs counts"),
        ("drop=1%@2%", "two chances"),
        ("drop=1%@every:5s@at:3s", "two times"),
        ("drop@soon", "'soon' says neither how often nor when"),
        ("drop@", "'' says neither"),
        ("drop@at", "'at' says neither"),
        ("drop@at:5", "'5' is not possible"),
        ("drop@every:0", "'every:0' is never"),
        ("drop@every:1us", "'1us' is too small"),
        ("drop@every:5s@for:5s", "begins again before it has ended"),
        ("drop=1%@for:5s", "'for' without a beginning"),
        ("drop@every:5@for:2s", "'for' without a beginning"),
        ("drop@at:1s@for:1s@for:2s", "a second 'for'"),
        ("drop@at:1s@for:0s", "'0s' is too small"),
        ("drop=off", "takes away what is not there"),
        ("chaos@1%", "unknown fault"),
        ("reorder=0@1%", "'0' is not possible"),
        ("reorder=1001@1%", "'1001' is not possible"),
        ("latency", "no value"),
        ("latency=5%", "no value"),
        ("latency=50", "'50' is not possible"),
        ("latency=0ms", "'0ms' is too small"),
        ("latency=1001h", "'1001h' is too large"),
        ("latency=5ms@every:5s", "has no end"),
        ("latency=5ms@every:5", "'every:5' counts frames"),
        ("bandwidth=100KB", "'100KB' is no rate"),
        ("bandwidth=100KX/s", "'100KX' is not possible"),
        ("bandwidth=0B/s", "'0B' is too small"),
        ("slicer=64B:64B", "'64B' is no variation"),
        ("slicer=1B:0B:1us:7", "has 4 parts"),
        ("limit_data=0B", "'0B' is too small"),
        ("limit_data=0.3B", "finer than kcs counts"),
        ("reset_peer=1012", "'1012' is not possible"),
        ("reset_peer=5s@at:3s", "two times"),
        ("reset_peer@at:0s", "'at:0s'"),
        ("close_code=1012", "does not say when"),
        ("close_code=1004@1%", "'1004' is not possible"),
        ("close_code=5000@1%", "'5000' is not possible"),
        ("close_code=0@1%", "'0' is not possible"),
        ("close_code=1012@at:5s@for:2s", "'for' in"),
        ("silent_stall=5s", "does not say when"),
        ("silent_stall@every:60s", "no value"),
        ("silent_stall=5s@every:5s", "begins again"),
        ("silent_stall=5s@every:60s@for:3s", "'for' in"),
        ("market_silent=KRW-BTC@at:5s", "'KRW-BTC' is not possible"),
        ("clock_step=2s@1%", "strikes the venue's clock"),
        ("clock_step=2s@after:5s", "strikes the venue's clock"),
        ("clock_step=25h@at:5s", "'25h' is too large"),
        ("clock_step=--2s@at:5s", "is not possible"),
        ("x" * 20_000, "20,000 characters"),
    ],
)
def test_the_wrong_is_named_with_an_example_that_works(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_faults(text)
    told = str(caught.value)
    assert said in told
    assert "--faults" in told
    name = text.partition("=")[0].partition("@")[0]
    if name in FAULTS:
        assert f"fault {name}: " in told
        example = told.rpartition("--faults '")[2].rstrip("'")
        assert parse_faults(example), "what it tells the user to try must work"


def test_the_same_fault_several_times() -> None:
    assert len(parse_faults("close_code=1012@at:5s,close_code=1001@at:9s").items) == 2
    for text in ("drop=1%,drop=2%", "drop@at:5s,drop=1%", "drop@at:5s,drop@at:5s"):
        with pytest.raises(ConfigError, match="twice"):
            parse_faults(text)


def test_a_silent_market_must_be_simulated() -> None:
    faults = parse_faults("market_silent=KRW-BTC:5s@at:5s")
    with pytest.raises(UnknownNameError, match="KRW-BTC"):
        SimSettings(markets=("KRW-ETH",), faults=faults)
    assert SimSettings(faults=faults).faults == faults


# Any fault that can be thought of, and any text at all.

_LENGTHS = st.integers(1, 10**9)
_CHANCES = st.integers(0, CERTAIN)


@st.composite
def any_fault(draw: st.DrawFn) -> Fault:
    name = draw(st.sampled_from(sorted(FAULTS)))
    kind = FAULTS[name]
    value = {
        Value.NONE: st.just(0), Value.TIME: _LENGTHS, Value.MARKET_TIME: _LENGTHS,
        Value.SIZE: st.integers(1, 1 << 40),
        Value.SIGNED_TIME: st.integers(-(10**13), 10**13).filter(bool), Value.RATE: st.integers(1, 1 << 40),
        Value.SLICES: st.integers(1, 1 << 40), Value.CODE: st.sampled_from((1000, 1006, 1012, 3000, 4999)),
        Value.COUNT: st.integers(1, 1000),
    }[kind.value]  # fmt: skip
    size = draw(value)
    extra = (draw(st.integers(0, size - 1)), draw(st.integers(0, 10**9))) if kind.value is Value.SLICES else ()
    market = draw(st.sampled_from(("", "KRW-BTC", "a:b/c"))) if kind.value is Value.MARKET_TIME else ""
    kinds = ["at", "every"] if kind.style is Style.STEP else ["at", "every", "after", "always"]
    if not kind.toxic and kind.style is not Style.STEP:
        kinds.append("frames")
    when = When(draw(st.sampled_from(kinds)))  # type: ignore[arg-type]
    if when.kind == "frames":
        when = When("frames", draw(st.integers(1, 10**9 - 1)))
    elif when.kind != "always":
        lasting = kind.style is Style.STATE or (kind.style in (Style.STRIKE, Style.STEP) and draw(st.booleans()))
        when = When(when.kind, draw(st.integers(10**10, 10**13)), draw(_LENGTHS) if lasting else 0)
    return Fault(name, size, market, extra, draw(_CHANCES), when)


@given(any_fault())
@settings(max_examples=300, deadline=None)
def test_any_fault_survives_its_text(fault: Fault) -> None:
    assert parse_faults(str(fault)).items == (fault,)


@given(st.lists(any_fault(), max_size=4, unique_by=lambda fault: fault.name))
@settings(max_examples=50, deadline=None)
def test_any_list_of_faults_survives_its_text(faults: list[Fault]) -> None:
    assert parse_faults(str(Faults(tuple(faults)))) == Faults(tuple(faults))


_WORDS = st.sampled_from(
    [*FAULTS, *PRESETS, "=", "@", ":", "%", ",", "5s", "1", "every", "at", "for", "off", "1.5", "KB/s", " "]
)


@given(st.one_of(st.text(max_size=40), st.lists(_WORDS, max_size=9).map("".join)))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    faults, told = Faults(), "--faults"
    try:
        faults = parse_faults(text)
    except UsageError as error:
        told = str(error)
    assert "--faults" in told
    assert parse_faults(str(faults)) == faults


def test_every_fault_is_documented_and_every_documented_command_works() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "simulator.md").read_text()
    rows = dict.fromkeys(re.findall(r"^\| `([a-z_]+)[=`]", page, re.MULTILINE))
    assert set(rows) == set(FAULTS)
    order = [name for name in rows if name in FAULTS]
    assert order[-13:-8] == ["drop", "truncated_json", "bad_json", "duplicate", "reorder"], (
        "the order in which they count"
    )
    commands = re.findall(r"--faults '([^']+)'", page)
    assert len(commands) > 3
    for text in commands:
        assert parse_faults(text)
