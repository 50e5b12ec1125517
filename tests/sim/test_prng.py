"""The generator against its published sequence, and the draws made from it."""

from __future__ import annotations

from kcs.sim.prng import SplitMix64, derive, log_uniform


def test_the_published_sequence() -> None:
    rng = SplitMix64(1234567)
    assert [rng.bits() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_seed_is_taken_modulo_2_to_the_64() -> None:
    assert SplitMix64(5).bits() == SplitMix64(5 + (1 << 64)).bits()


def test_below_stays_below_and_reaches_every_value() -> None:
    rng = SplitMix64(1)
    drawn = [rng.below(7) for _ in range(7_000)]
    assert set(drawn) == set(range(7))
    assert max(drawn.count(value) for value in range(7)) < 1_150


def test_derived_generators_are_their_own() -> None:
    assert derive(7, "a").bits() == derive(7, "a").bits()
    assert len({derive(seed, name).bits() for seed in (7, 8) for name in ("a", "b", "ab", "ba", "")}) == 10


def test_log_uniform_covers_its_magnitudes_evenly() -> None:
    rng = SplitMix64(3)
    lengths = [log_uniform(rng.bits(), 4, 11).bit_length() - 1 for _ in range(8_000)]
    assert set(lengths) == set(range(4, 12))
    assert all(850 < lengths.count(magnitude) < 1_150 for magnitude in range(4, 12))
