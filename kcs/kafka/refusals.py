"""Why a cluster cannot be used: unreachable for now, or refusing for a reason that somebody must remove. No I/O.

`refusal` makes the error that a person reads, naming the brokers, what they said, and what to do. It never holds a
password: only what brokers and the system answered, and the user's name.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Final

from aiokafka import errors

from kcs.errors import KafkaError, KafkaUnreachableError
from kcs.kafka.client import OtherCluster
from kcs.kafka.settings import KafkaSettings, parse_bootstrap

_CREDENTIALS: Final = (
    errors.SaslAuthenticationFailed,
    errors.AuthenticationFailedError,
    errors.IllegalSaslStateError,
)
_VERSIONS: Final = (
    errors.IncompatibleBrokerVersion,
    errors.UnrecognizedBrokerVersion,
    errors.UnsupportedVersionError,
)
_RIGHTS: Final = (
    errors.ClusterAuthorizationFailedError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
)
_TLS_CUT: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""The peer went away in the middle: a broker that stops, too."""
_WRONG_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_OUT_OF_DATE: Final = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_CHAIN_MAX: Final = 8


def refusal(
    settings: KafkaSettings, error: BaseException, refusals: Mapping[str, BaseException], advertised: list[str]
) -> KafkaError:
    """The error for a cluster that cannot be used.

    `error` ended the attempt, `refusals` are the answers of single addresses, `advertised` the addresses that the
    cluster gave, if it answered at all. KafkaUnreachableError where trying again later may help, else KafkaError.
    """
    place = f"Kafka at {', '.join(f'{host}:{port}' for host, port in parse_bootstrap(settings.bootstrap))}"
    if advertised:
        place += f", advertised as {', '.join(advertised)}"
    for address, answer in [*refusals.items(), ("", error)]:
        for cause in _chain(answer):
            found = _incurable(settings, cause)
            if found is not None:
                where = f"{place}, answered by {address}" if len(refusals) > 1 and address else place
                return KafkaError(found[0], where=where, remedy=found[1])
    reasons = list(dict.fromkeys(_reason(answer, settings) for answer in refusals.values())) or [
        _reason(error, settings)
    ]
    if advertised:
        return KafkaUnreachableError(
            f"the cluster answers but its brokers do not take a producer: {'; '.join(reasons)}",
            where=place,
            remedy="check advertised.listeners and the rights of this user; both addresses must be reachable from here",
        )
    return KafkaUnreachableError(
        f"no broker answers: {'; '.join(reasons)}",
        where=place,
        remedy="start it, correct -b HOST:PORT or -X security.protocol=..., or leave -b out for the embedded broker",
    )


def broken_off(
    settings: KafkaSettings, error: BaseException, refusals: Mapping[str, BaseException], what: str
) -> KafkaError:
    """The error for something that a connected client could not do: `what`, and what it heard."""
    for cause in [each for answer in (*refusals.values(), error) for each in _chain(answer)]:
        if _incurable(settings, cause) is not None:
            return refusal(settings, error, refusals, [])
    kind = KafkaUnreachableError if refusals or _passes(error) else KafkaError
    return kind(f"{what}: {str(error) or type(error).__name__}", where=f"Kafka at {settings.bootstrap}")


def incurable(error: BaseException) -> bool:
    """Whether waiting cannot cure what an address answered: credentials, certificates, rights, versions."""
    known = (*_CREDENTIALS, *_VERSIONS, *_RIGHTS, errors.UnsupportedSaslMechanismError, OtherCluster)
    return any(
        isinstance(cause, known) or (isinstance(cause, ssl.SSLError) and not isinstance(cause, _TLS_CUT))
        for cause in _chain(error)
    )


def _passes(error: BaseException) -> bool:
    """Whether it is about the brokers' state, not about what was asked."""
    if isinstance(error, (errors.UnknownTopicOrPartitionError, errors.InvalidTopicError)):
        return False
    return isinstance(error, (OSError, TimeoutError)) or bool(getattr(error, "retriable", False))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: the client library wraps what ended a connection."""
    cause: BaseException | None = error
    for _ in range(_CHAIN_MAX):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _incurable(settings: KafkaSettings, error: BaseException) -> tuple[str, str] | None:
    """(what, remedy), or None where waiting may cure it."""
    mechanism = settings.properties.get("sasl.mechanism") or settings.properties.get("sasl.mechanisms", "PLAIN")
    user = settings.properties.get("sasl.username", "")
    if isinstance(error, _CREDENTIALS):
        return (
            f"the broker does not accept user {user!r} or the password ({mechanism}): {_said(error)}",
            "check sasl.username and sasl.password (-X sasl.password=@FILE, [kafka] in kcs.toml, or "
            "KCS_KAFKA_SASL_PASSWORD), and that the user exists for this sasl.mechanism",
        )
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        return f"the broker does not take {mechanism}: {_said(error)}", "-X sasl.mechanism=ONE-OF-THOSE"
    if isinstance(error, OtherCluster):
        return str(error), "start the cluster that was there, or run again to begin with this one"
    if isinstance(error, _VERSIONS):
        return f"client and broker have no version in common: {_said(error)}", "use Kafka 2.1 or newer"
    if isinstance(error, _RIGHTS):
        return (
            f"the broker denies it: {type(error).__name__.removesuffix('Error')}",
            f"give user {user!r} the right to describe, create and write the topics, or IdempotentWrite on the cluster",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error)
    if isinstance(error, ssl.SSLError) and not isinstance(error, _TLS_CUT):
        return _tls(error)
    return None


def _certificate(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    if error.verify_code in _WRONG_NAME:
        return (
            f"the broker's certificate is for another name: {error.verify_message}",
            "use the name that the certificate has in -b and in advertised.listeners, "
            "or give the broker a certificate with this one",
        )
    if error.verify_code in _OUT_OF_DATE:
        return f"the broker's certificate is out of date: {error.verify_message}", "renew it, or set this clock right"
    return (
        f"the broker's certificate is not from a CA that is trusted here: {error.verify_message}",
        "-X ssl.ca.location=CA.pem with the CA of this cluster",
    )


def _tls(error: ssl.SSLError) -> tuple[str, str]:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return (
            f"this port does not speak TLS ({reason})",
            "-b with the port of its SSL listener, or -X security.protocol=PLAINTEXT (SASL_PLAINTEXT)",
        )
    if "ALERT" in (error.reason or "") and any(
        word in (error.reason or "") for word in ("CERT", "UNKNOWN_CA", "HANDSHAKE_FAILURE")
    ):
        return (
            f"the broker does not accept this client's certificate, or wants one ({reason})",
            "-X ssl.certificate.location=CLIENT.pem -X ssl.key.location=CLIENT.key, from a CA that the broker trusts",
        )
    return f"no TLS connection comes about ({reason})", "compare the TLS versions and ciphers of broker and client"


def _said(error: BaseException) -> str:
    """What the broker said, without the library's numbering."""
    text = str(error).removeprefix(f"[Error {getattr(error, 'errno', '')}] ")
    return text.removeprefix(type(error).__name__).removeprefix(": ") or type(error).__name__


def _reason(error: BaseException, settings: KafkaSettings) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {settings.connect_timeout_s:g} s"
    if any(isinstance(cause, (ConnectionResetError, EOFError, *_TLS_CUT)) for cause in _chain(error)):
        protocol = settings.properties.get("security.protocol", "PLAINTEXT")
        return f"it hangs up, as a port does that speaks something else than security.protocol={protocol}"
    return str(error) or type(error).__name__
