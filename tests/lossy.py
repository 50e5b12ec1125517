"""A capture with chosen frames removed, doubled, exchanged or spoilt: what a bad line, venue or disk leaves behind.

    Lossy(path).drop([3, 4]).duplicate([9]).swap(12, 13).corrupt([20]).write(out)

Frames are named by their record numbers in the source, in every call and whatever the order of the calls. Two questions
decide what can be proven of the result, so `write` asks both:

`holes`   True: every record keeps its number (those behind a duplicate move up) and what was dropped leaves a hole, as
          in a damaged file. False: numbers run on, as where the record was never written.
`counts`  True: opens and closes keep the frame counts they had, as where the loss came after the collector counted.
          False: they are made to fit, as where the venue never sent the frame: only the venue's protocol can tell.

Exchanged frames change places; receive times stay with the place, since they say when something came. A duplicate comes
right behind its original, at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from kcs.capture.format import MIB
from kcs.capture.output import ChunkPacker, making
from kcs.capture.reader import CaptureReader
from kcs.capture.records import encode_fields
from kcs.model import FRAME_KINDS, CloseFields, Fields, OpenFields, Record


def cut_short(payload: bytes) -> bytes:
    """The first half, which is no JSON any more."""
    return payload[: len(payload) // 2]


class Lossy:
    """See the module docstring. `frames`: the source's data frames by number; KeyError for a number that is none."""

    def __init__(self, source: Path) -> None:
        with CaptureReader(source) as reader:
            self.header = reader.header
            self.records = list(reader.records())
        self.frames: dict[int, Record] = {r.number: r for r in self.records if r.kind in FRAME_KINDS}
        self._copies: dict[int, int] = {}
        self._standing: dict[int, int] = {number: number for number in self.frames}
        """Place -> whose frame stands there."""
        self._spoilt: dict[int, bytes] = {}

    def drop(self, numbers: Iterable[int]) -> Lossy:
        """These are not there."""
        return self._copy(numbers, 0)

    def duplicate(self, numbers: Iterable[int], times: int = 1) -> Lossy:
        """These come `times` times more."""
        return self._copy(numbers, 1 + times)

    def swap(self, first: int, second: int) -> Lossy:
        """The frames that stand at these places change them."""
        standing = self._standing
        standing[first], standing[second] = standing[second], standing[first]
        return self

    def corrupt(self, numbers: Iterable[int], how: Callable[[bytes], bytes] = cut_short) -> Lossy:
        """These have other bytes."""
        self._spoilt.update({number: how(self.frames[number].payload) for number in numbers})
        return self

    def write(self, out: Path, *, holes: bool = True, counts: bool = True, capture_id: bytes | None = None) -> Path:
        """Write the sealed capture `out`, under the source's id unless another is given."""
        header = self.header if capture_id is None else replace(self.header, capture_id=capture_id)
        with making(out, header) as file:
            packer = ChunkPacker(file, MIB)
            end = 0
            for number, record in self._numbered(holes=holes, counts=counts):
                end = number + 1
                if record is not None:
                    fields, payload = record.fields, record.payload
                    body = payload if fields is None else encode_fields(fields, payload)
                    packer.add(number, (int(record.kind), record.stream, record.recv_ns, body))
            packer.flush()
            file.tally.skip_to(end)  # a hole at the very end is known from the index
            file.seal()
        return out

    def _copy(self, numbers: Iterable[int], copies: int) -> Lossy:
        self._copies.update({self.frames[number].number: copies for number in numbers})
        return self

    def _numbered(self, *, holes: bool, counts: bool) -> Iterator[tuple[int, Record | None]]:
        """The records of the result, numbered; None for a number that nobody has."""
        more: dict[int, int] = {}
        """Frames of each stream beyond what the collector counted."""
        number = 0
        for record in self.records:
            copies = 1
            if record.number in self.frames:
                record, copies = self._at(record)
                more[record.stream] = more.get(record.stream, 0) + copies - 1
            elif not counts:
                record = msgspec.structs.replace(record, fields=_counting(record.fields, more.get(record.stream, 0)))
            for _ in range(copies):
                yield number, record
                number += 1
            if holes and not copies:
                yield number, None
                number += 1

    def _at(self, place: Record) -> tuple[Record, int]:
        """The frame that stands at this place, and how often."""
        number = self._standing[place.number]
        frame = self.frames[number]
        payload = self._spoilt.get(number, frame.payload)
        return Record(place.number, frame.kind, frame.stream, place.recv_ns, payload), self._copies.get(number, 1)


def _counting(fields: Fields | None, more: int) -> Fields | None:
    """An open or close that counts so many frames more."""
    if isinstance(fields, OpenFields | CloseFields):
        return msgspec.structs.replace(fields, frames=fields.frames + more)
    return fields
