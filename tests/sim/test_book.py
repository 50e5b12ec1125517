"""One market's book under random trades and refreshes: never crossed, sorted, on the tick grid, never empty."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.model import BUY, SELL
from kcs.sim.book import Book, order_size
from kcs.sim.catalogue import CATALOGUE, Ticks
from kcs.sim.prng import SplitMix64


def check(book: Book, quote: str) -> None:
    ticks = Ticks(quote)
    assert book.bid_px[0] < book.ask_px[0], "crossed"
    assert book.ask_px == sorted(set(book.ask_px))
    assert book.bid_px == sorted(set(book.bid_px), reverse=True)
    assert all(price > 0 and price % ticks.tick(price) == 0 for price in book.ask_px + book.bid_px)
    assert all(size > 0 for size in book.ask_sz + book.bid_sz)
    assert len(book.ask_px) == len(book.ask_sz)
    assert len(book.bid_px) == len(book.bid_sz)


@given(
    st.sampled_from(sorted(CATALOGUE)),
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.sampled_from(["refresh", "take"]), st.sampled_from([BUY, SELL]), st.integers(0, 40))),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_book_stays_a_book(code: str, seed: int, steps: list[tuple[str, int, int]]) -> None:
    spec = CATALOGUE[code]
    book = Book(spec, SplitMix64(seed))
    check(book, spec.quote)
    for what, side, bits in steps:
        if what == "refresh":
            book.refresh(side)
        else:
            best = (book.ask_px if side == BUY else book.bid_px)[0]
            price, filled = book.take(side, 1 << bits)
            assert price == best
            assert 0 < filled <= 1 << bits
        check(book, spec.quote)
    assert len(book.ask_px) >= spec.levels


def test_a_small_order_leaves_the_rest_of_the_level() -> None:
    book = Book(CATALOGUE["KRW-BTC"], SplitMix64(1))
    price, size = book.ask_px[0], book.ask_sz[0]
    assert book.take(BUY, 1) == (price, 1)
    assert (book.ask_px[0], book.ask_sz[0]) == (price, size - 1)


def test_a_large_order_takes_the_level_and_no_more() -> None:
    book = Book(CATALOGUE["KRW-BTC"], SplitMix64(1))
    price, size, next_price = book.bid_px[0], book.bid_sz[0], book.bid_px[1]
    assert book.take(SELL, size + 5) == (price, size)
    assert book.bid_px[0] == next_price


def test_trades_alone_never_touch_the_other_side() -> None:
    book = Book(CATALOGUE["KRW-XRP"], SplitMix64(1))
    bids = (list(book.bid_px), list(book.bid_sz))
    for _ in range(200):
        book.take(BUY, 1 << 40)
    assert (book.bid_px[:36], book.bid_sz[:36]) == (bids[0][:36], bids[1][:36])


def test_a_wide_spread_closes_again() -> None:
    book = Book(CATALOGUE["KRW-XRP"], SplitMix64(1))
    for _ in range(25):
        book.take(BUY, 1 << 60)
    wide = book.ask_px[0] - book.bid_px[0]
    for _ in range(20):
        book.refresh(BUY)
    assert book.ask_px[0] - book.bid_px[0] < wide // 5


@pytest.mark.parametrize("lot", [1, 7, 4_290, 10**13])
def test_sizes_are_positive_and_some_are_round(lot: int) -> None:
    rng = SplitMix64(9)
    sizes = [order_size(rng, lot, 8, 20) for _ in range(2_000)]
    assert min(sizes) >= lot
    assert max(sizes) < lot << 13
    if lot > 1_000_000:
        assert 150 < sum(size % 10 ** (len(str(size)) - 3) == 0 for size in sizes) < 350
