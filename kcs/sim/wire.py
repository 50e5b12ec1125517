"""A socket at the end of a `ToxicPipe`: what comes out of the pipe is written, and the ends it knows are done for real.

Used by the server for one connection. Bounded: who lets more than `bytes_max` wait, in the pipe or in the transport, is
cut off, and `on_slow` is called. Runs in the loop of the transport; raises nothing of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final

from kcs.sim.toxics import How, PipeEnd, ToxicPipe

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing sends a TCP reset."""


class ToxicWire:
    """See the module docstring. `pipe` tells when the next `deliver` is due."""

    def __init__(
        self, transport: asyncio.Transport, pipe: ToxicPipe, bytes_max: int, on_slow: Callable[[], None]
    ) -> None:
        self.pipe = pipe
        self._transport = transport
        self._bytes_max = bytes_max
        self._on_slow = on_slow

    def feed(self, at_ns: int, data: bytes, *, draws: bool = True) -> None:
        """A chunk for the client (`ToxicPipe.feed`)."""
        self.pipe.feed(at_ns, data, draws=draws)
        if self.pipe.waiting_bytes > self._bytes_max:
            self._on_slow()
            self.pipe.overflow(at_ns)

    def deliver(self, now_ns: int) -> None:
        """What has come through by now goes to the socket."""
        transport = self._transport
        for _, item in self.pipe.poll(now_ns):
            if transport.is_closing():
                return
            if isinstance(item, bytes):
                transport.write(item)
                if transport.get_write_buffer_size() > self._bytes_max:
                    self._on_slow()
                    transport.abort()
            else:
                self._end(item)

    def drain(self) -> None:
        """The simulation is over: what waits goes to the socket at once."""
        if not self._transport.is_closing():
            self._transport.writelines(self.pipe.drain())

    def _end(self, end: PipeEnd) -> None:
        transport = self._transport
        if end.how is How.EOF and transport.can_write_eof():
            transport.write_eof()
        elif end.how is How.CLOSE:
            transport.close()
        else:
            if end.how is How.RESET:
                raw: socket.socket = transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
