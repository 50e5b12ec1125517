"""What every JSON venue needs to say about a frame that its typed decoder refused. Knows only `errors` and msgspec.

A venue decodes on trust, in one step. When that fails it asks here: `check_document` finds what is wrong with the bytes
as JSON, `rejected` turns the decoder's complaint into a verdict. `check_depth` must also run before the trusting
decode, for frames longer than `ANY_DEPTH_BYTES_MAX`. All of them raise FrameRejected and nothing else, in a time and
memory linear in the payload.

Reasons, a bounded set: empty, not_utf8, not_json, too_deep, too_large; missing_key, unknown_type, bad_type, bad_value.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

import msgspec

from kcs.errors import FrameRejected

DEPTH_MAX: Final = 700
"""Deeper JSON is rejected. Our own bound: the decoder's depends on the Python version and on the caller's stack, and
one capture must give the same records everywhere."""

ANY_DEPTH_BYTES_MAX: Final = 2 * DEPTH_MAX
"""No document of this size is too deep: a level costs two bytes at least."""

DOCUMENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Larger JSON is rejected: decoded, small elements take thirty times their bytes. Live takes half of it."""

_OBJECT_LEVEL_BYTES: Final = len(b'{"":}')
_DETAIL_LENGTH_MAX: Final = 200

_STRING: Final = re.compile(rb'"[^"]*"?')
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""One level down, one level up; 0xff read as a signed char is -1."""

_COMPLAINTS: Final = (
    ("Object missing required field", "missing_key"),
    ("Invalid value", "unknown_type"),
    ("Expected `int` ", "bad_value"),
    ("Expected `str` of", "bad_value"),
    ("Expected `", "bad_type"),
)
"""How msgspec's complaint begins -> our reason, first match; anything else is `bad_value`."""

_check_syntax: Final = msgspec.json.Decoder(msgspec.Raw).decode


def check_document(payload: bytes) -> None:
    """Raises FrameRejected unless the payload is one JSON document in UTF-8 of bounded depth."""
    if not payload or payload.isspace():
        raise FrameRejected("empty")
    check_depth(payload)
    try:
        payload.decode()
        _check_syntax(payload)
    except UnicodeDecodeError as error:
        raise FrameRejected("not_utf8", _detail(error)) from None
    except msgspec.DecodeError as error:
        raise FrameRejected("not_json", _detail(error)) from None
    except RecursionError as error:  # within our bound, but called from the bottom of a deep stack
        raise FrameRejected("too_deep", _detail(error)) from None


def check_depth(payload: bytes) -> None:
    """Raises FrameRejected when arrays and objects nest deeper than DEPTH_MAX, or the whole is larger than
    DOCUMENT_BYTES_MAX; cheap for a single order book."""
    if len(payload) > DOCUMENT_BYTES_MAX:
        raise FrameRejected("too_large", f"{len(payload)} bytes, at most {DOCUMENT_BYTES_MAX}")
    # A book is long but has one array, after byte 0; then only objects could be deep, and they need more bytes.
    if len(payload) <= _OBJECT_LEVEL_BYTES * DEPTH_MAX and payload.find(b"[", 1) == payload.rfind(b"["):
        return
    if payload.count(b"{") + payload.count(b"[") <= DEPTH_MAX:
        return
    bare = _STRING.sub(b"", payload.replace(rb"\\", b"").replace(rb"\"", b""))
    steps = memoryview(bare.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    depth = max(accumulate(steps), default=0)
    if depth > DEPTH_MAX:
        raise FrameRejected("too_deep", f"{depth} levels, at most {DEPTH_MAX}")


def rejected(error: msgspec.DecodeError | UnicodeDecodeError) -> FrameRejected:
    """The verdict for a well-formed object that the typed decoder refused."""
    complaint = str(error)
    reason = next((slug for start, slug in _COMPLAINTS if complaint.startswith(start)), "bad_value")
    return FrameRejected(reason, _detail(error))


def _detail(error: Exception) -> str:
    return str(error)[:_DETAIL_LENGTH_MAX]
