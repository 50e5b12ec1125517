"""Verdicts on JSON documents: where the depth bound lies, and that it is the same for every shape."""

from __future__ import annotations

import pytest

from kcs.errors import FrameRejected
from kcs.exchanges.document import ANY_DEPTH_BYTES_MAX, DEPTH_MAX, check_depth, check_document


def arrays(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def objects(depth: int) -> bytes:
    return b'{"":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


def one_array_inside(depth: int) -> bytes:
    return b'{"":' * (depth - 1) + b"[]" + b"}" * (depth - 1)


def alternating(depth: int) -> bytes:
    half = depth // 2
    return b'[{"":' * half + b"[]" * (depth % 2) + (b"" if depth % 2 else b"0") + b"}]" * half


@pytest.mark.parametrize("shape", [arrays, objects, one_array_inside, alternating])
def test_the_bound_is_exact(shape: object) -> None:
    assert callable(shape)
    check_depth(shape(DEPTH_MAX))
    check_document(shape(DEPTH_MAX))
    with pytest.raises(FrameRejected) as caught:
        check_depth(shape(DEPTH_MAX + 1))
    assert caught.value.reason == "too_deep"


@pytest.mark.parametrize("shape", [arrays, objects, one_array_inside, alternating])
def test_short_documents_cannot_be_too_deep(shape: object) -> None:
    """Callers skip `check_depth` up to this size."""
    assert callable(shape)
    assert len(shape(DEPTH_MAX + 1)) > ANY_DEPTH_BYTES_MAX


@pytest.mark.parametrize(
    "text",
    [
        b'"%s"' % (b"[" * 5000),
        b'"\\"%s"' % (b"[" * 5000),
        b'["\\\\",%s0]' % (b"[]," * 5000),
        b'{"\\\\\\"%s":[[]]}' % (b"{" * 5000),
    ],
)
def test_brackets_in_strings_do_not_count(text: bytes) -> None:
    check_document(text)


def test_brackets_after_a_string_that_ends_in_a_backslash_do_count() -> None:
    with pytest.raises(FrameRejected, match="too_deep"):
        check_depth(b'["\\\\",' + arrays(DEPTH_MAX) + b"]")
