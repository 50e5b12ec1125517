"""A venue that sends faster than anybody can take: ready-made websocket frames, as fast as the socket takes them.

    python -m bench.faults.blaster CAPTURE --seconds 60

A process of its own. It prints its URL, takes one client, answers the upgrade, waits for the subscription and then
writes a block of frames over and over from memory; a server that makes its frames while it sends cannot outrun a
collector. Between the frames it pings every `PING_EVERY_S` and notes when each pong comes; the client's own pings are
answered and noted. After the time it goes on as a quiet venue does, with a status text every `STATUS_EVERY_S`, until
the client closes. It prints one JSON object a second (`frames`: how many the socket took so far) and one at the end.

The block repeats as it is. Where it is longer than the window of trade ids kcs remembers, no frame of it is a duplicate
(`ready_block` checks that), and the position in the cycle says which frame must come next.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from bench.tapes import frames_of
from kcs.exchanges import venue
from kcs.pipeline import Pipeline
from kcs.sink import NullSink
from kcs.stats import Ledger

PING_EVERY_S = 0.1
STATUS_EVERY_S = 5.0
STATUS = b'{"status":"UP"}'
SEGMENT_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 256 * 1024
"""Of the kernel; what waits in it is in every round trip that is measured."""
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A


def ready_block(capture: Path, frames: int) -> list[bytes]:
    """The market frames of a capture of Upbit, at most so many; sent over and over none of them is a duplicate.

    Raises SystemExit where the pipeline would drop one: then frames sent could not be compared with records made.
    """
    block = frames_of(capture).all[:frames]
    ledger = Ledger()
    pipeline = Pipeline("upbit", venue("upbit").adapter(), NullSink(), ledger, digest=False)
    for _ in range(2):
        for payload in block:
            pipeline.feed(0, 1, payload)
    if ledger.suppressed or ledger.rejected or ledger.ignored or ledger.produced != 2 * len(block):
        raise SystemExit(f"{capture}: not every frame becomes a record: {ledger.report()}")
    return block


def framed(opcode: int, payload: bytes) -> bytes:
    """One unmasked websocket frame, as servers send it."""
    length = len(payload)
    if length < 126:
        return bytes((opcode, length)) + payload
    if length < 1 << 16:
        return bytes((opcode, 126)) + length.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + length.to_bytes(8, "big") + payload


@dataclass(slots=True)
class Segment:
    """Frames in one piece of memory."""

    data: memoryview
    frames: int


def segments(block: Sequence[bytes]) -> list[Segment]:
    """The block in pieces of about `SEGMENT_BYTES`, each a whole number of frames."""
    found, parts, size = [], [], 0
    for number, payload in enumerate(block, 1):
        parts.append(framed(_TEXT, payload))
        size += len(parts[-1])
        if size >= SEGMENT_BYTES or number == len(block):
            found.append(Segment(memoryview(b"".join(parts)), len(parts)))
            parts, size = [], 0
    return found


@dataclass(slots=True)
class Noted:
    """What the blaster saw. Times in seconds since it began to send."""

    frames: int = 0
    bytes: int = 0
    seconds: float = 0.0
    blocked_s: float = 0.0
    """Time in which the socket took nothing more: the client was slower than the offer."""
    pings: list[float] = field(default_factory=list)
    """When pings of the client arrived."""
    pong_s: list[float] = field(default_factory=list)
    """Round trips of our pings while we blasted, and after: the first `blasted_pongs` are of the blast."""
    blasted_pongs: int = 0
    unanswered: int = 0
    closed_by_client: bool = False
    error: str = ""


class Client:
    """The one connection: non-blocking, frames in, frames out."""

    def __init__(self, connection: socket.socket, noted: Noted) -> None:
        self._socket = connection
        self._noted = noted
        self._incoming = bytearray()
        self._replies = bytearray()
        self._ping_sent: dict[bytes, float] = {}
        self._ping_number = 0
        self._ping_due = 0.0
        self._status_due = float("inf")
        self.began = 0.0
        self.subscribed = self.closed = False

    def now(self) -> float:
        return time.perf_counter() - self.began

    def handshake(self) -> None:
        """Read the upgrade request, answer it, read on until the subscription is there."""
        request = bytearray()
        while b"\r\n\r\n" not in request:
            request += self._socket.recv(4096)
        head, _, rest = bytes(request).partition(b"\r\n\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head.split(b"\r\n"))}
        accept = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + _GUID).digest())
        self._socket.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self._incoming += rest
        self._socket.setblocking(False)
        while not self.subscribed:
            select.select([self._socket], [], [])
            self.read()
        self.began = time.perf_counter()

    def read(self) -> None:
        """Take what the client said."""
        while not self.closed:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                self._noted.error, data = str(error), b""
            self.closed = not data
            self._incoming += data
        for opcode, payload in self._messages():
            self._message(opcode, payload)

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Whole frames; a client's are masked, and these are small."""
        data = self._incoming
        while len(data) >= 6:
            length, head = data[1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(data[2:4], "big"), 4
            end = head + 4 + length
            if len(data) < end:
                return
            mask = data[head : head + 4]
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[head + 4 : end]))
            opcode = data[0]
            del data[:end]
            yield opcode, payload

    def _message(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            self.subscribed = True  # by the first text; a second one, PING, asks for status texts
        elif opcode == _PING:
            self._noted.pings.append(self.now())
            self._replies += framed(_PONG, payload)
        elif opcode == _PONG:
            sent = self._ping_sent.pop(payload, None)
            if sent is not None:
                self._noted.pong_s.append(self.now() - sent)
        elif opcode == _CLOSE:
            self._noted.closed_by_client = True
            self._replies += framed(_CLOSE, payload)

    def extras(self) -> bytes:
        """What goes out between two segments: answers, and a ping or a status text when it is due."""
        now, out = self.now(), bytes(self._replies)
        self._replies.clear()
        if now >= self._ping_due and not self._noted.closed_by_client:
            self._ping_due = now + PING_EVERY_S
            self._ping_number += 1
            payload = b"%d" % self._ping_number
            self._ping_sent[payload] = now
            out += framed(_PING, payload)
        if now >= self._status_due:
            self._status_due = now + STATUS_EVERY_S
            out += framed(_TEXT, STATUS)
        return out

    def write(self, data: memoryview | bytes) -> bool:
        """All of `data` into the socket, reading meanwhile. False when the client is gone."""
        view = memoryview(data)
        while view and not self.closed:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                waited = time.perf_counter()
                readable, _, _ = select.select([self._socket], [self._socket], [], 1.0)
                self._noted.blocked_s += time.perf_counter() - waited
                if readable:
                    self.read()
            except OSError as error:
                self._noted.error, self.closed = str(error), True
        return not self.closed

    def quiet(self) -> None:
        """The blast is over: the venue goes on, and says only that it is there."""
        self._noted.blasted_pongs = len(self._noted.pong_s) + len(self._ping_sent)
        self._status_due = self.now()

    def idle(self) -> None:
        """One turn of the quiet venue."""
        self.write(self.extras())
        select.select([self._socket], [], [], 0.02)
        self.read()

    @property
    def unanswered(self) -> int:
        return len(self._ping_sent)


def blast(client: Client, pieces: Sequence[Segment], seconds: float, noted: Noted, tell: Any) -> None:
    """The block over and over for so long, whole frames, then quiet until the client goes."""
    told = 0.0
    while client.now() < seconds and not client.closed:
        for piece in pieces:
            client.read()
            if not (client.write(client.extras()) and client.write(piece.data)):
                break
            noted.frames += piece.frames
            noted.bytes += len(piece.data)
            now = client.now()
            if now >= told + 1.0:
                told = now
                tell({"at": round(now, 3), "frames": noted.frames})
            if now >= seconds:
                break
    noted.seconds = client.now()
    blocked_s = noted.blocked_s
    client.quiet()
    tell({"at": round(noted.seconds, 3), "frames": noted.frames, "quiet": True})
    while not client.closed:
        client.idle()
    noted.blocked_s = blocked_s
    noted.unanswered = client.unanswered


def main() -> None:
    """Listen, blast, report."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults.blaster", description=__doc__)
    parser.add_argument("block", type=Path, help="a capture whose market frames are sent")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--frames", type=int, default=120_000, help="of the block")
    args = parser.parse_args()
    pieces = segments(ready_block(args.block, args.frames))

    def tell(what: dict[str, Any]) -> None:
        sys.stdout.buffer.write(orjson.dumps(what) + b"\n")
        sys.stdout.buffer.flush()

    noted = Noted()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        tell({"url": f"ws://127.0.0.1:{listener.getsockname()[1]}/", "block": sum(p.frames for p in pieces)})
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(connection, noted)
        client.handshake()
        blast(client, pieces, args.seconds, noted, tell)
    tell({"result": {name: getattr(noted, name) for name in Noted.__slots__}})


if __name__ == "__main__":
    main()
