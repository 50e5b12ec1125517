"""A venue that sends what it should not, to a running `kcs live`: it is counted, kept, and the run goes on."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from kcs.capture.reader import CaptureReader
from kcs.model import CloseFields, GapFields, Kind, Record
from kcs.verify import verify
from tests.cli.processes import Done, balanced, running, sealed, wait_for
from tests.replay.making import trade

Script = Callable[[ServerConnection, int], Awaitable[None]]


@contextmanager
def venue(script: Script) -> Iterator[str]:
    """A websocket server in a thread that plays `script(connection, number of the connection)`; its URL."""
    loop = asyncio.new_event_loop()
    ready, url = threading.Event(), ""
    stop = asyncio.Event()
    connections = 0

    async def handle(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        await connection.recv()  # the subscription
        await script(connection, connections - 1)
        await connection.wait_closed()

    async def main() -> None:
        nonlocal url
        async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(10)
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def send_text(connection: ServerConnection, payload: bytes) -> None:
    """A text frame of any bytes: the library would not send text that is no UTF-8."""
    async with connection.send_context():
        connection.protocol.send_text(payload)


def collect(url: str, cwd: Path, verb: str, frames: int) -> tuple[Done, list[Record]]:
    """Run until so many frames are on disk, then SIGTERM; the report and the records."""
    directory = cwd / "captures"

    def on_disk() -> int:
        for path in directory.glob("*.partial"):
            with CaptureReader(path, strict=False) as reader:
                return sum(record.kind in (Kind.TEXT, Kind.BINARY) for record in reader.records())
        return 0

    with running(verb, "--url", f"upbit={url}", "--capture", directory, "--json", cwd=cwd) as kcs:
        wait_for(lambda: directory.exists() and any(p.stat().st_size for p in directory.glob("*.partial")), "a file")
        wait_for(lambda: on_disk() >= frames or not kcs.running, f"{frames} frames; it said {kcs.err}")
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    balanced(done.json)
    (path,) = sealed(directory)
    assert verify(path).digest == done.json["digest"]
    with CaptureReader(path) as reader:
        return done, list(reader.records())


def frames_of(records: list[Record]) -> list[bytes]:
    return [record.payload for record in records if record.kind in (Kind.TEXT, Kind.BINARY)]


HOSTILE: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"\xff\xfe\x00", "not_utf8"),
    (b'{"ty":"trade","cd":"\xc3\x28"}', "not_utf8"),
    (b"[" * 10_000 + b"]" * 10_000, "too_deep"),
    (b'{"type":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
    (b'{"ty":"trade","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too_deep"),
    (b'{"type":"trade"', "not_json"),
    (b"\x00" * 100, "not_json"),
    (trade(1)[:-2], "not_json"),
    (b'{"ty":"trade","cd":"KRW-BTC","ttms":1e400}', "bad_type"),
    (b'{"ty":"trade","cd":"KRW-BTC"}', "missing_key"),
    (b'{"ty":"tarde","cd":"KRW-BTC"}', "bad_value"),
]


@pytest.mark.parametrize("verb", ["live", "capture"])
def test_frames_that_no_parser_can_read(verb: str, tmp_path: Path) -> None:
    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(trade(0))
        for payload, _ in HOSTILE:
            await connection.send(payload)
            await send_text(connection, payload)
        await connection.send(trade(1))

    with venue(script) as url:
        done, records = collect(url, tmp_path, verb, 2 + 2 * len(HOSTILE))
    assert done.code == 0, done.err
    assert frames_of(records) == [trade(0), *(p for payload, _ in HOSTILE for p in (payload, payload)), trade(1)]
    report = done.json
    assert report["events"]["trade"] == report["frames"]["parsed"] == 2
    assert sum(report["frames"]["rejected"].values()) == 2 * len(HOSTILE)
    assert report["frames"]["rejected"].keys() <= {*(reason for _, reason in HOSTILE), "unknown_type", "bad_value"}
    for reason in ("empty", "not_utf8", "too_deep", "not_json"):
        assert report["frames"]["rejected"][reason] >= 2
    assert report["records"]["produced"] == 2 + 2 * len(HOSTILE), "the reject topic has them all"
    assert report["records"]["acked"] == (2 + 2 * len(HOSTILE) if verb == "live" else None)


def test_a_frame_of_7_mb_is_kept_whole_and_rejected_in_short(tmp_path: Path) -> None:
    big = b'{"ty":"trade","x":"' + b"y" * 7_000_000 + b'"}'

    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(big)
        await connection.send(trade(1))

    with venue(script) as url:
        done, records = collect(url, tmp_path, "live", 2)
    assert (done.code, frames_of(records)) == (0, [big, trade(1)])
    assert sum(done.json["frames"]["rejected"].values()) == 1
    assert done.json["records"]["acked"] == 2


def test_a_frame_of_30_mb_costs_the_connection_and_is_a_gap(tmp_path: Path) -> None:
    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(trade(number))
        if number == 0:
            await connection.send(b"z" * 30_000_000)

    with venue(script) as url:
        done, records = collect(url, tmp_path, "live", 2)
    assert done.code == 0
    assert frames_of(records) == [trade(0), trade(1)]
    assert (done.json["reconnects"], done.json["gaps"]) == (1, 1)
    closes = [record.fields for record in records if isinstance(record.fields, CloseFields)]
    assert (closes[0].code, closes[0].cause) == (1009, "oversize")
    gaps = [record.fields for record in records if isinstance(record.fields, GapFields)]
    assert [gap.cause for gap in gaps] == ["disconnect"]
    assert "oversize" in done.err


def test_a_venue_that_speaks_no_websocket_after_the_handshake(tmp_path: Path) -> None:
    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(trade(number))
        if number == 0:
            connection.transport.write(b"HTTP/1.1 500 oops\r\n\r\n" * 10)

    with venue(script) as url:
        done, records = collect(url, tmp_path, "capture", 2)
    assert done.code == 0
    assert frames_of(records) == [trade(0), trade(1)]
    assert done.json["reconnects"] == 1
    closes = [record.fields for record in records if isinstance(record.fields, CloseFields)]
    assert closes[0].cause == "protocol_error"
