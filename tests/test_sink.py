"""The digest, computed a second time by its written definition; the sinks that need no broker."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcs.errors import ConfigError, KcsError
from kcs.sink import META_POSITION, POSITION, RECORD_META, Digest, NullSink, StdoutSink

RECV_NS = 1_700_000_000_123_456_789
CAPTURE = bytes.fromhex("00112233aabbccdd")

Row = tuple[str, str, str, bytes, int, int, int, bytes]
"""channel, exchange, key, value, recv_ns, frame number, event index, trade id"""


def by_definition(rows: list[Row]) -> str:
    """Section 6 of the design, read literally, in one piece."""
    sha = hashlib.sha256()
    for channel, exchange, key, value, recv_ns, number, index, trade_id in rows:
        topic = f"{channel}.{exchange}".encode()
        for text in (topic, key.encode()):
            sha.update(len(text).to_bytes(4, "big") + text)
        sha.update(len(value).to_bytes(4, "big"))
        sha.update((recv_ns // 1_000_000).to_bytes(8, "big"))
        sha.update(len(trade_id).to_bytes(4, "big"))
        sha.update(number.to_bytes(8, "big") + index.to_bytes(4, "big") + recv_ns.to_bytes(8, "big"))
        sha.update(trade_id + value)
    return sha.hexdigest()


def add(made: Digest, row: Row) -> None:
    channel, exchange, key, value, recv_ns, number, index, trade_id = row
    meta = RECORD_META.pack(len(value), recv_ns // 1_000_000, len(trade_id), number, index, recv_ns)
    assert meta[META_POSITION:] == POSITION.pack(number, index, recv_ns)
    made.add(Digest.prefix(channel, exchange, key), meta, trade_id, value)


def digest(rows: list[Row]) -> Digest:
    made = Digest()
    for row in rows:
        add(made, row)
    return made


rows = st.lists(
    st.tuples(
        st.sampled_from(["trade", "orderbook", "gap", "reject"]),
        st.just("upbit"),
        st.text(max_size=8),
        st.binary(max_size=40),
        st.integers(0, 2**63 - 1),
        st.integers(0, 2**63 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=12),
    ),
    max_size=20,
)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_digest_is_what_its_definition_says(some: list[Row]) -> None:
    assert digest(some).hexdigest() == by_definition(some)


def test_digest_of_many_records_and_in_between() -> None:
    many: list[Row] = [("trade", "upbit", "KRW-BTC", b"[%d]" % n, RECV_NS + n, n, 0, b"%d" % n) for n in range(5_000)]
    made = Digest()
    for count, row in enumerate(many):
        if count % 777 == 0:
            assert made.hexdigest() == by_definition(many[:count]), "looking at it must not change it"
        add(made, row)
    assert made.hexdigest() == by_definition(many)
    assert made.records == 5_000


BASE: Row = ("trade", "upbit", "KRW-BTC", b"[1,2,1,3.0]", RECV_NS, 5, 0, b"77")


@pytest.mark.parametrize(
    "changed",
    [
        ("ticker", *BASE[1:]),
        (BASE[0], "bithumb", *BASE[2:]),
        (*BASE[:2], "KRW-ETH", *BASE[3:]),
        (*BASE[:3], b"[1,2,1,3.1]", *BASE[4:]),
        (*BASE[:4], RECV_NS + 1, *BASE[5:]),
        (*BASE[:5], 6, *BASE[6:]),
        (*BASE[:6], 1, *BASE[7:]),
        (*BASE[:7], b"78"),
    ],
)
def test_everything_that_makes_a_record_enters(changed: Row) -> None:
    assert digest([BASE]).hexdigest() != digest([changed]).hexdigest()


def test_neither_order_nor_boundaries_can_be_confused() -> None:
    other: Row = ("trade", "upbit", "KRW-ETH", b"[1,2,1,3.0]", RECV_NS, 6, 0, b"78")
    assert digest([BASE, other]).hexdigest() != digest([other, BASE]).hexdigest()
    moved = [(*BASE[:3], b"xab", *BASE[4:7], b"c"), (*BASE[:3], b"ab", *BASE[4:7], b"cx")]
    assert digest([moved[0]]).hexdigest() != digest([moved[1]]).hexdigest()


def test_null_sink_counts_and_is_never_full() -> None:
    sink = NullSink()
    sink.start(CAPTURE)
    for number in range(3):
        sink.emit(sink.route("trade", "upbit", "KRW-BTC"), b"1", RECV_NS, POSITION.pack(number, 0, RECV_NS), b"")

    async def waits() -> None:
        await sink.room()
        await sink.drain()
        await sink.close()

    asyncio.run(waits())
    assert (sink.acked, sink.failed, sink.full) == (3, 0, False)


def shown(template: str, channel: str, value: bytes, trade_id: bytes = b"", **headers: bytes) -> dict[str, Any]:
    out = io.BytesIO()
    sink = StdoutSink(template, out)
    sink.start(CAPTURE)
    route = sink.route(channel, "upbit", "KRW-BTC")
    sink.emit(route, value, RECV_NS, POSITION.pack(12, 3, RECV_NS), trade_id, tuple(headers.items()))
    assert (sink.acked, sink.failed) == (1, 0)
    text = out.getvalue()
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    record: dict[str, Any] = json.loads(text)
    return record


def test_stdout_shows_topic_key_value_time_and_where_it_comes_from() -> None:
    assert shown("replay.{channel}.{exchange}", "trade", b"[1.5,0.25,1,1700000000.0]", b"99") == {
        "topic": "replay.trade.upbit",
        "key": "KRW-BTC",
        "value": [1.5, 0.25, 1, 1_700_000_000.0],
        "timestamp": RECV_NS // 1_000_000,
        "headers": {
            "kcs": {"capture": "00112233aabbccdd", "frame": 12, "event": 3, "recv_ns": RECV_NS},
            "id": "99",
        },
    }


def test_stdout_is_written_once_a_turn_and_acked_when_it_is_written() -> None:
    out = io.BytesIO()
    due: list[Callable[[], None]] = []
    sink = StdoutSink("{channel}", out, due.append)
    route = sink.route("trade", "upbit", "KRW-BTC")
    for number in range(3):
        sink.emit(route, b"1", RECV_NS, POSITION.pack(number, 0, RECV_NS), b"")
    assert (len(due), sink.acked, out.getvalue()) == (1, 0, b"")
    due.pop()()
    assert (sink.acked, out.getvalue().count(b"\n")) == (3, 3)
    for number in range(1000):
        sink.emit(route, b"1", RECV_NS, POSITION.pack(number, 0, RECV_NS), b"")
    assert sink.acked > 900, "what waits is bounded"
    asyncio.run(sink.drain())
    assert (sink.acked, sink.failed) == (1003, 0)


def test_what_a_reader_that_is_gone_did_not_get_is_not_acked() -> None:
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as out:
        sink = StdoutSink("{channel}", out)
        route = sink.route("trade", "upbit", "KRW-BTC")
        sink.emit(route, b"1", RECV_NS, POSITION.pack(0, 0, RECV_NS), b"")
        os.close(read_end)
        for number in (1, 2):
            sink.emit(route, b"1", RECV_NS, POSITION.pack(number, 0, RECV_NS), b"")
        assert (sink.acked, sink.failed, sink.full) == (1, 2, True)
        for wait in (sink.room, sink.drain):
            with pytest.raises(KcsError, match="2 records or more did not arrive"):
                asyncio.run(wait())
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)  # so that closing it has something to write to


@pytest.mark.parametrize("template", ["{", "{0}", "{market}", "{channel.x}"])
def test_a_template_that_cannot_be_filled_in_is_a_wrong_call(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        StdoutSink(template)


def test_stdout_shows_a_rejected_frame_as_text_whatever_its_bytes() -> None:
    record = shown("{channel}.{exchange}", "reject", b'\xff{"not json\n', reason=b"not_utf8", truncated=b"31457280")
    assert record["value"] == '�{"not json\n'
    assert record["headers"]["reason"] == "not_utf8"
    assert record["headers"]["truncated"] == "31457280"
    assert "id" not in record["headers"]
