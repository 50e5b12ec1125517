"""The fuzz targets without a fuzzer: the kept corpus, and random and mutated inputs by hypothesis."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.__main__ import BYTES_MAX, CORPUS, FILES_MAX, INPUT_BYTES_MAX
from fuzz.forge import encode, forge, instructions
from fuzz.seeds import seeds
from fuzz.targets import TARGETS, remove_files

KEPT = {name: sorted((CORPUS / name).iterdir()) for name in sorted(TARGETS)}


@pytest.fixture(autouse=True, scope="module")
def _files() -> Iterator[None]:
    yield
    remove_files()


@pytest.mark.parametrize("name", KEPT)
def test_the_corpus_passes(name: str) -> None:
    assert KEPT[name], "a target without a corpus"
    for path in KEPT[name]:
        TARGETS[name](path.read_bytes())


def test_the_corpus_is_small() -> None:
    paths = [path for paths in KEPT.values() for path in paths]
    assert len(paths) <= FILES_MAX
    assert sum(path.stat().st_size for path in paths) <= BYTES_MAX
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_every_target_has_seeds_and_passes_on_them() -> None:
    made = seeds()
    assert set(made) == set(TARGETS)
    for name, inputs in made.items():
        for data in inputs:
            TARGETS[name](data)


@pytest.mark.parametrize("name", KEPT)
def test_random_inputs(name: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, doubled, taken out or put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        end = min(len(found), at + chance.randint(0, 8))
        how = chance.randrange(4)
        if how == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del found[at:end]
        elif how == 2:
            found[at:at] = found[at:end] * 2
        else:
            found[at:at] = chance.randbytes(chance.randint(1, 3))
    return bytes(found[:INPUT_BYTES_MAX])


@pytest.mark.parametrize("name", KEPT)
def test_mutations_of_the_corpus(name: str) -> None:
    chance = random.Random(f"{name} 1")
    inputs = [path.read_bytes() for path in KEPT[name]]
    for _ in range(80):
        TARGETS[name](mutated(chance.choice(inputs), chance))


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8))
def test_instructions_are_read_as_they_are_written(steps: list[tuple[int, bytes]]) -> None:
    assert list(instructions(encode(*steps))) == steps
    assert forge(encode(*steps)) == forge(encode(*steps))


def test_a_target_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the targets check is noticed: a reader that loses a record, an import that loses a line."""
    from fuzz import targets
    from kcs.capture import recover

    whole = next(iter(seeds()["recover"]))
    monkeypatch.setattr(targets, "recover", recover.recover)
    targets.recovering(whole)
    read = targets._tolerant
    monkeypatch.setattr(targets, "_tolerant", lambda path: read(path)[1:])
    with pytest.raises(AssertionError):
        targets.recovering(whole)
