"""What a client may send to Upbit, parsed strictly. Pure; raises `Refused` with the venue's own error name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kcs.sim.upbit_frames import DEPTHS, FORMATS, LISTS, LONG

CANDLE_MINUTES: Final = (1, 3, 5, 10, 15, 30, 60, 240)
CANDLE_PERIODS_MS: Final[dict[str, int]] = {
    "candle.1s": 1_000,
    **{f"candle.{minutes}m": minutes * 60_000 for minutes in CANDLE_MINUTES},
}
TYPES: Final = ("trade", "orderbook", "ticker", *CANDLE_PERIODS_MS)
_DEPTH_DEFAULT: Final = 30

MESSAGES: Final[dict[str, str]] = {
    "WRONG_FORMAT": "요청 형식이 올바르지 않습니다.",
    "NO_TICKET": "티켓이 존재하지 않습니다.",
    "NO_TYPE": "타입 필드가 존재하지 않습니다.",
    "NO_CODES": "코드 필드가 존재하지 않습니다.",
    "INVALID_PARAM": "지원하지 않는 파라미터입니다.",
    "TOO_MANY_REQUESTS": "요청 수 제한을 초과했습니다.",
}
"""The venue's error names with a text as it could stand there. TOO_MANY_REQUESTS is ours: what the venue sends to a
connection that exceeds its message limit is not documented."""


class Refused(Exception):
    """A verdict about a request: the venue answers with this error and closes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class TypeRequest:
    """One type object. `level` as sent; anything but 0 is a grouping, which the simulator answers with silence."""

    type: str
    codes: tuple[str, ...]
    only_snapshot: bool = False
    only_realtime: bool = False
    level: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. `wire_format` is DEFAULT when the client named none, as on the wire."""

    ticket: str
    wire_format: str
    types: tuple[TypeRequest, ...]
    list_subscriptions: bool = False


def parse_request(payload: bytes) -> Request:
    """The request in `payload`; raises Refused."""
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise Refused("WRONG_FORMAT") from None
    if not isinstance(document, list) or not all(isinstance(part, dict) for part in document):
        raise Refused("WRONG_FORMAT")
    parts: list[dict[str, Any]] = document
    ticket = next((part["ticket"] for part in parts if "ticket" in part), None)
    if not isinstance(ticket, str) or not ticket:
        raise Refused("NO_TICKET")
    wire_format = next((part["format"] for part in parts if "format" in part), "DEFAULT")
    if wire_format not in FORMATS:
        raise Refused("INVALID_PARAM")
    methods = [part["method"] for part in parts if "method" in part]
    if methods:
        if methods != ["LIST_SUBSCRIPTIONS"]:
            raise Refused("INVALID_PARAM")
        return Request(ticket, wire_format, (), list_subscriptions=True)
    types = tuple(_parse_type(part) for part in parts if not part.keys() <= {"ticket", "format"})
    if not types:
        raise Refused("NO_TYPE")
    return Request(ticket, wire_format, types)


def _parse_type(part: dict[str, Any]) -> TypeRequest:
    name = part.get("type")
    if name is None:
        raise Refused("NO_TYPE")
    if name not in TYPES:
        raise Refused("INVALID_PARAM")
    codes = part.get("codes")
    if not codes:
        raise Refused("NO_CODES")
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise Refused("INVALID_PARAM")
    flags = [part.get(flag, False) for flag in ("is_only_snapshot", "is_only_realtime")]
    level = part.get("level", 0)
    if not all(isinstance(flag, bool) for flag in flags) or isinstance(level, bool):
        raise Refused("INVALID_PARAM")
    if not isinstance(level, int | float) or level < 0:
        raise Refused("INVALID_PARAM")
    return TypeRequest(name, tuple(codes), flags[0], flags[1], 0 if level == 0 else max(1, int(level)))


def split_depth(code: str) -> tuple[str, int]:
    """`KRW-BTC.5` -> (`KRW-BTC`, 5); a depth that the venue does not offer falls back to 30."""
    base, dot, suffix = code.partition(".")
    if not dot:
        return code, _DEPTH_DEFAULT
    depth = int(suffix) if suffix.isascii() and suffix.isdigit() and len(suffix) < 4 else 0
    return base, depth if depth in DEPTHS else _DEPTH_DEFAULT


def subscriptions_reply(request: Request, types: Iterable[TypeRequest]) -> bytes:
    """The answer to LIST_SUBSCRIPTIONS, in the spelling of the request's format."""
    long = request.wire_format in LONG
    kind, codes, level = ("type", "codes", "level") if long else ("ty", "cds", "lv")
    listed: list[dict[str, object]] = []
    for wanted in types:
        entry: dict[str, object] = {kind: wanted.type, codes: wanted.codes}
        if wanted.type == "orderbook":
            entry[level] = wanted.level
        listed.append(entry)
    method, result, ticket = ("method", "result", "ticket") if long else ("mthd", "rslt", "tckt")
    body = orjson.dumps({method: "LIST_SUBSCRIPTIONS", result: listed, ticket: request.ticket})
    return b"[" + body + b"]" if request.wire_format in LISTS else body
