"""One and the same trade as seven kinds of Python objects, with the ways to make, read and write each.

The wire names are the venue's (`code`, `trade_price`, ...), so that decoding is what an adapter has to do: pick six
keys of a frame that has twenty. Used by test_dto.py only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import pydantic

FIELDS = ("code", "trade_price", "trade_volume", "ask_bid", "trade_timestamp", "sequential_id")


class TradeStruct(msgspec.Struct, frozen=True, gc=False):
    code: str
    trade_price: float
    trade_volume: float
    ask_bid: str
    trade_timestamp: int
    sequential_id: int


@dataclass(frozen=True, slots=True)
class TradeDataclass:
    code: str
    trade_price: float
    trade_volume: float
    ask_bid: str
    trade_timestamp: int
    sequential_id: int


class TradePlain:
    def __init__(
        self,
        code: str,
        trade_price: float,
        trade_volume: float,
        ask_bid: str,
        trade_timestamp: int,
        sequential_id: int,
    ) -> None:
        self.code = code
        self.trade_price = trade_price
        self.trade_volume = trade_volume
        self.ask_bid = ask_bid
        self.trade_timestamp = trade_timestamp
        self.sequential_id = sequential_id


class TradeModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    code: str
    trade_price: float
    trade_volume: float
    ask_bid: str
    trade_timestamp: int
    sequential_id: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kind of object. `construct(values)` from a dict of the six fields, `decode(frame)`, `encode(instance)`."""

    name: str
    construct: Callable[[dict[str, Any]], Any]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


def _picked(make: Callable[..., Any]) -> Callable[[bytes], Any]:
    """orjson.loads, then the six fields by position."""
    loads = orjson.loads

    def decode(frame: bytes) -> Any:
        d = loads(frame)
        return make(
            d["code"], d["trade_price"], d["trade_volume"], d["ask_bid"], d["trade_timestamp"], d["sequential_id"]
        )

    return decode


def _constructed(frame: bytes) -> TradeModel:
    d = orjson.loads(frame)
    return TradeModel.model_construct(
        code=d["code"],
        trade_price=d["trade_price"],
        trade_volume=d["trade_volume"],
        ask_bid=d["ask_bid"],
        trade_timestamp=d["trade_timestamp"],
        sequential_id=d["sequential_id"],
    )


def _dumped(model: TradeModel) -> bytes:
    return model.__pydantic_serializer__.to_json(model)


def candidates() -> list[Candidate]:
    """All of them, the one that kcs uses first. Each is given its fastest public way."""
    decode_struct = msgspec.json.Decoder(TradeStruct).decode
    decode_dataclass = msgspec.json.Decoder(TradeDataclass).decode
    encode = msgspec.json.Encoder().encode
    dumps = orjson.dumps
    return [
        Candidate("msgspec Struct (frozen, gc=False)", lambda v: TradeStruct(**v), decode_struct, encode),
        Candidate("dataclass (frozen, slots), msgspec", lambda v: TradeDataclass(**v), decode_dataclass, encode),
        Candidate("dataclass (frozen, slots), orjson", lambda v: TradeDataclass(**v), _picked(TradeDataclass), dumps),
        Candidate("plain class, orjson", lambda v: TradePlain(**v), _picked(TradePlain), lambda t: dumps(t.__dict__)),
        Candidate("dict, orjson", lambda v: dict(**v), orjson.loads, dumps),
        Candidate("pydantic model_validate", TradeModel.model_validate, TradeModel.model_validate_json, _dumped),
        Candidate("pydantic model_construct", lambda v: TradeModel.model_construct(**v), _constructed, _dumped),
    ]
