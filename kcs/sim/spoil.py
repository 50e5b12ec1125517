"""How a frame is spoilt: pure functions of the frame and 64 random bits. Imports nothing of kcs."""

from __future__ import annotations

from typing import Final

_STRUCTURE: Final = frozenset(b'{}[]:,"')
_BAD_BYTES: Final = b"\x00\xff"


def junk_frame(payload: bytes, turn: int) -> bytes:
    """A frame that no parser can read: half a real one, bytes that are not UTF-8, JSON of no known shape, nothing."""
    return (payload[: len(payload) // 2], b"\xff\xfe\x00\x80", b'["not","what","you","asked"]', b"")[turn % 4]


def cut_frame(payload: bytes, bits: int) -> bytes:
    """The beginning of the frame: at least one byte, at least one byte less than all."""
    return payload[: 1 + (bits * (len(payload) - 1) >> 64)]


def spoilt_frame(payload: bytes, bits: int) -> tuple[bytes, int]:
    """The frame with one byte of its structure overwritten, so that it is JSON no more; (the frame, which byte).

    Structure, because a lenient parser would not notice a wrong byte inside a value that it skips.
    """
    size = len(payload)
    start = bits * size >> 64
    where = next((at for at in (*range(start, size), *range(start)) if payload[at] in _STRUCTURE), start)
    bad = _BAD_BYTES[bits & 1 : (bits & 1) + 1]
    return payload[:where] + bad + payload[where + 1 :], where
