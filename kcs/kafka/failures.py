"""What a failed batch means: which of the client library's errors say what about the records. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Final

from aiokafka import errors

from kcs.kafka.careful import MAYBE_WRITTEN


class Verdict(Enum):
    """What is known about a batch whose future failed."""

    CONTENT = "content"
    """The broker looked at it and refused it: nothing was written; some record in it is at fault."""
    MAYBE_CONTENT = "maybe content"
    """The broker failed on it, or refused it with a code the library does not know (INVALID_RECORD)."""
    REFUSED = "refused"
    """Nothing was written and no record is at fault: rights, policy, a missing topic. Somebody has to act."""
    UNKNOWN = "unknown"
    """The producer is of no more use; whether the batch was written must be read from the partition."""


_CONTENT: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.UnsupportedForMessageFormatError,
)
_MAYBE_CONTENT: Final = (errors.CorruptRecordException, errors.UnknownError)
_REFUSED: Final = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.UnknownTopicOrPartitionError,
    errors.InvalidTopicError,
    errors.InvalidRequiredAcksError,
    errors.PolicyViolationError,
    errors.UnsupportedVersionError,
    errors.InvalidRequestError,
    errors.KafkaTimeoutError,
    AssertionError,  # aiokafka: the partition is not in the topic's metadata
)

LIBRARY_ERRORS: Final = (errors.KafkaError, errors.IllegalOperation, AssertionError)
"""Everything that aiokafka raises for a batch."""


def verdict_of(error: BaseException) -> Verdict:
    """Sort an error of a batch."""
    if isinstance(error, _CONTENT):
        return Verdict.CONTENT
    if isinstance(error, _MAYBE_CONTENT):
        return Verdict.MAYBE_CONTENT
    if isinstance(error, _REFUSED):
        return Verdict.REFUSED
    return Verdict.UNKNOWN


def was_answered(error: BaseException) -> bool:
    """Whether a broker sent this error as its answer to the batch."""
    return isinstance(error, errors.BrokerResponseError)


def was_judged(error: BaseException) -> bool:
    """Whether the answer says that this attempt wrote nothing; some failures may come after the writing."""
    return was_answered(error) and not isinstance(error, (errors.UnknownError, *MAYBE_WRITTEN))


def too_large(error: BaseException) -> bool:
    """Whether the batch, not necessarily a record of it, is too large."""
    return isinstance(error, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError))


def remedy_of(error: BaseException) -> str:
    """What somebody has to do about a batch that is refused whatever it holds."""
    if isinstance(error, (errors.UnknownTopicOrPartitionError, AssertionError)):
        return "make the topic again with at least as many partitions as before; the records wait for it"
    if isinstance(error, (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError)):
        return "give this user the right to write there; the records wait for it"
    return "see what the broker says; the records wait until it takes them"


def named(error: BaseException) -> str:
    """The error for a person: the class without its suffix, and what it says."""
    name = type(error).__name__.removesuffix("Error").removesuffix("Exception")
    text = str(error).removeprefix(f"[Error {getattr(error, 'errno', '')}] ")
    text = text.removeprefix(type(error).__name__).removeprefix(": ")
    if isinstance(error, errors.UnknownError):
        text = "the broker refused it with a code that the client does not know, such as INVALID_RECORD"
    elif isinstance(error, AssertionError):
        name, text = "UnknownPartition", "the partition is gone from the topic"
    return f"{name}: {text}" if text else name
