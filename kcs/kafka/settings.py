"""How to reach Kafka and what to do there: settings, topic template, `-X` properties. Imports no client library.

Everything here is checked before a socket is opened; what is wrong raises ConfigError with what to write instead.
"""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any, Final

from kcs.errors import ConfigError
from kcs.sink import RECORD_BYTES_MAX

DEFAULT_PORT: Final = 9092
TOPIC_LENGTH_MAX: Final = 249
REPLAY_BUFFER_BYTES: Final = 8 * 1024 * 1024
"""`buffer_bytes_max` of a replay. It has nothing to outwait, and what is buffered longer falls out of the cache."""

SYSTEM_CHANNELS: Final = ("gap", "reject")
"""Channels that every run may produce besides those subscribed to."""

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]+")
SECRETS: Final = ("sasl.password", "ssl.key.password")
"""Properties whose value is a password, or `@FILE` with one; the file is read again for each new connection."""
_SECRET_BYTES_MAX: Final = 64 * 1024
_PLACEHOLDERS: Final = ("channel", "exchange")
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_BATCH_BYTES_MIN: Final = 1024


@dataclass(slots=True, frozen=True)
class KafkaSettings:
    """What a sink needs to know. Raises ConfigError on construction for a value that cannot work.

    `bootstrap` is `host:port[,host:port...]`; `partitions` and `replication` (None: the cluster's default) are for
    topics that have to be created; `retention_forever` gives those `retention.ms=-1` and refuses existing topics that
    would drop records at once. `properties` are `-X` pairs in the names of librdkafka. Sizes in bytes, times in s.
    """

    bootstrap: str
    template: str = "{channel}.{exchange}"
    headers: bool = True
    partitions: int = 1
    replication: int | None = None
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Not in the repr: a password among them must not reach a log or a traceback."""
    buffer_bytes_max: int = 64 * 1024 * 1024
    batch_bytes_max: int = 896 * 1024
    retention_forever: bool = False
    client_id: str = "kcs"
    connect_timeout_s: float = 5.0
    settle_s: float = 5.0
    """How long to let a lost batch surface before the partition is read to see whether it was written."""
    cluster_id: str = ""
    """The cluster that it must be; empty: whichever answers. A sink sets it when it opens."""

    def __post_init__(self) -> None:
        parse_bootstrap(self.bootstrap)
        check_template(self.template)
        if self.partitions < 1:
            raise ConfigError(f"a topic needs at least 1 partition, not {self.partitions}")
        if self.replication is not None and self.replication < 1:
            raise ConfigError(f"the replication factor must be at least 1, not {self.replication}")
        if not _BATCH_BYTES_MIN <= self.batch_bytes_max <= RECORD_BYTES_MAX:
            raise ConfigError(
                f"batch_bytes_max is {self.batch_bytes_max}, not between {_BATCH_BYTES_MIN} and {RECORD_BYTES_MAX}"
            )
        if self.buffer_bytes_max < self.batch_bytes_max:
            raise ConfigError(f"buffer_bytes_max ({self.buffer_bytes_max}) is less than one batch")
        client_options(self)
        producer_options(self)


def parse_bootstrap(bootstrap: str) -> list[tuple[str, int]]:
    """`host[:port],...` as pairs; `[::1]:9092` for IPv6. Raises ConfigError."""
    servers = []
    for part in bootstrap.split(","):
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", part.strip())
        port = int(found[2] or DEFAULT_PORT) if found else 0
        if found is None or not 0 < port < 65536:
            raise ConfigError(
                f"{part.strip()!r} is not a broker address",
                where=f"bootstrap {bootstrap!r}",
                remedy="HOST:PORT[,HOST:PORT...]",
            )
        servers.append((found[1].strip("[]"), port))
    return servers


def check_template(template: str) -> None:
    """Refuse a topic template that is not made of legal characters, `{channel}` and `{exchange}`."""
    remedy = "use letters, digits, '.', '_', '-' and the placeholders {channel} and {exchange}"
    where = f"topic template {template!r}"
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{error}", where=where, remedy=remedy) from None
    names = [name for _, name, _, _ in pieces if name is not None]
    for literal, name, spec, conversion in pieces:
        if literal and not _TOPIC.fullmatch(literal):
            raise ConfigError(f"{literal!r} cannot stand in a topic's name", where=where, remedy=remedy)
        if name is not None and (name not in _PLACEHOLDERS or spec or conversion):
            raise ConfigError(f"there is no placeholder {{{name}}}", where=where, remedy=remedy)
    if "channel" not in names:
        raise ConfigError(
            "without {channel} trades, books and gaps would share a topic", where=where, remedy="put {channel} into it"
        )


def topic_name(template: str, channel: str, exchange: str) -> str:
    """The topic of a channel. Raises ConfigError where Kafka would not take the name."""
    name = template.format(channel=channel, exchange=exchange)
    if not _TOPIC.fullmatch(name) or len(name) > TOPIC_LENGTH_MAX or name in (".", ".."):
        raise ConfigError(f"{name!r} is not a legal topic name", where=f"topic template {template!r}")
    return name


def topic_names(template: str, channels: Iterable[str], exchanges: Iterable[str]) -> dict[tuple[str, str], str]:
    """(channel, exchange) to topic, system channels included. Raises ConfigError where exchanges would share one."""
    venues = sorted(set(exchanges))
    wanted = sorted({*channels, *SYSTEM_CHANNELS})
    names = {(channel, venue): topic_name(template, channel, venue) for channel in wanted for venue in venues}
    if len(set(names.values())) < len(names):
        raise ConfigError(
            "records of several exchanges would share a topic",
            where=f"topic template {template!r}",
            remedy="put {exchange} into it",
        )
    return names


# --- properties -------------------------------------------------------------------------------------------------------


def _number(text: str) -> int:
    return int(text)


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _compression(text: str) -> str | None:
    if text not in ("none", "gzip", "snappy", "lz4", "zstd"):
        raise ValueError
    if text in ("snappy", "lz4", "zstd") and find_spec("cramjam") is None:
        raise ConfigError(
            f"compression {text} needs a package that is not installed",
            where=f"-X compression.type={text}",
            remedy="pip install cramjam, or -X compression.type=gzip",
        )
    return None if text == "none" else text


def _protocol(text: str) -> str:
    if text.upper() not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise ValueError
    return text.upper()


def _mechanism(text: str) -> str:
    if text.upper() not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"):
        raise ValueError
    if text.upper() == "GSSAPI" and find_spec("gssapi") is None:
        raise ConfigError(
            "Kerberos needs a package that is not installed",
            where=f"-X sasl.mechanism={text}",
            remedy="pip install gssapi",
        )
    return text.upper()


def _secret(text: str) -> str:
    """A password: `@/path/of/a/file` is that file's content, `@@...` one that begins with an @."""
    if text.startswith("@@"):
        return text[1:]
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        if not path.is_file():  # a pipe or a device would never end, or be empty the second time
            raise ConfigError("it is no regular file", where=str(path), remedy="chmod 600 FILE with the password in it")
        with path.open("rb") as stream:
            content = stream.read(_SECRET_BYTES_MAX + 1).decode()
    except OSError as error:
        raise ConfigError(f"the password cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("the password is not UTF-8", where=str(path)) from None
    password = content.removesuffix("\n").removesuffix("\r")
    if not password or len(content) > _SECRET_BYTES_MAX:
        raise ConfigError(
            "there is no password in it" if not password else "it is too large for a password", where=str(path)
        )
    return password


def _readable_by_others(settings: KafkaSettings) -> list[str]:
    """Files with passwords that any user of the machine may read."""
    texts = [settings.properties.get(name, "") for name in SECRETS]
    paths = [Path(text[1:]).expanduser() for text in texts if text.startswith("@") and not text.startswith("@@")]
    return [str(path) for path in paths if path.is_file() and path.stat().st_mode & 0o004]


_CLIENT: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "client.id": ("client_id", str),
    "security.protocol": ("security_protocol", _protocol),
    "sasl.mechanism": ("sasl_mechanism", _mechanism),
    "sasl.mechanisms": ("sasl_mechanism", _mechanism),
    "sasl.username": ("sasl_plain_username", str),
    "sasl.password": ("sasl_plain_password", _secret),
    "sasl.kerberos.service.name": ("sasl_kerberos_service_name", str),
    "request.timeout.ms": ("request_timeout_ms", _number),
    "socket.timeout.ms": ("request_timeout_ms", _number),
    "retry.backoff.ms": ("retry_backoff_ms", _number),
    "metadata.max.age.ms": ("metadata_max_age_ms", _number),
    "topic.metadata.refresh.interval.ms": ("metadata_max_age_ms", _number),
    "connections.max.idle.ms": ("connections_max_idle_ms", _number),
}
_PRODUCER: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "compression.type": ("compression_type", _compression),
    "compression.codec": ("compression_type", _compression),
}
_TLS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "ssl.ca.location": ("ca", str),
    "ssl.certificate.location": ("certificate", str),
    "ssl.key.location": ("key", str),
    "ssl.key.password": ("password", _secret),
    "ssl.endpoint.identification.algorithm": ("identify", lambda text: {"https": True, "none": False}[text.lower()]),
    "enable.ssl.certificate.verification": ("verify", _flag),
}
_FIXED: Final[dict[str, tuple[str, ...]]] = {
    "acks": ("all", "-1"),
    "request.required.acks": ("all", "-1"),
    "enable.idempotence": ("true",),
    "linger.ms": ("0",),
    "queue.buffering.max.ms": ("0",),
    "max.in.flight": ("1",),
    "max.in.flight.requests.per.connection": ("1",),
    "partitioner": ("murmur2", "murmur2_random"),
}
"""What the guarantees and latencies rest on: may be stated, not changed."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that aiokafka's producer, consumer and admin client share. Raises ConfigError."""
    options: dict[str, Any] = {
        "bootstrap_servers": [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in parse_bootstrap(settings.bootstrap)
        ],
        "client_id": settings.client_id,
        "request_timeout_ms": 30_000,
        "retry_backoff_ms": 100,
        **_mapped(settings.properties, _CLIENT),
    }
    protocol = options.get("security_protocol", "PLAINTEXT")
    _check_sasl(protocol, options)
    tls = _mapped(settings.properties, _TLS)
    if protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = _ssl_context(tls)
    elif tls:
        raise ConfigError(
            f"TLS properties are given, but security.protocol is {protocol}", remedy="-X security.protocol=SSL"
        )
    return options


def warnings(settings: KafkaSettings) -> list[str]:
    """What a person must be told, each time, about protection that these settings give up. Empty: nothing."""
    given = settings.properties
    tls = _mapped(given, _TLS)
    options = _mapped(given, _CLIENT)
    found = []
    if not tls.get("verify", True):
        found.append(
            "KAFKA'S CERTIFICATE IS NOT CHECKED (enable.ssl.certificate.verification=false): whoever is on the way can"
            " pose as the cluster, take the password and read, change or drop records"
        )
    elif not tls.get("identify", True):
        found.append(
            "THE KAFKA BROKER'S NAME IS NOT CHECKED (ssl.endpoint.identification.algorithm=none): anyone with any"
            " certificate of the same authority can pose as the cluster"
        )
    found += [
        f"EVERY USER OF THIS MACHINE CAN READ THE PASSWORD IN {path}: chmod 600 it"
        for path in _readable_by_others(settings)
    ]
    hosts = {host for host, _ in parse_bootstrap(settings.bootstrap)}
    if options.get("security_protocol") == "SASL_PLAINTEXT" and not hosts <= _LOOPBACK:
        found.append(
            "THE LOGIN TO KAFKA IS NOT ENCRYPTED (security.protocol=SASL_PLAINTEXT): use security.protocol=SASL_SSL"
        )
    return found


def retry_pause_s(settings: KafkaSettings) -> float:
    """How long the client library waits before it repeats something."""
    return float(_mapped(settings.properties, _CLIENT).get("retry_backoff_ms", 100)) / 1000


def producer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that only the producer takes."""
    return _mapped(settings.properties, _PRODUCER)


def _mapped(properties: Mapping[str, str], table: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    mapped = {}
    for name, text in properties.items():
        if name in table:
            option, convert = table[name]
            try:
                mapped[option] = convert(text)
            except (ValueError, KeyError):
                raise ConfigError(f"{text!r} is no value for it", where=f"-X {name}") from None
        else:
            _check_known(name, text)
    return mapped


def _check_known(name: str, text: str) -> None:
    if name in _FIXED:
        if text.lower() not in _FIXED[name]:
            raise ConfigError(f"kcs always works with {name}={_FIXED[name][0]}", where=f"-X {name}={text}")
        return
    known = [*_CLIENT, *_PRODUCER, *_TLS, *_FIXED]
    if name in known:
        return
    if name in ("bootstrap.servers", "metadata.broker.list"):
        raise ConfigError("the brokers are not given as a property", where=f"-X {name}", remedy="-b HOST:PORT")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise ConfigError(
        f"unknown property {name!r}",
        where=f"-X {name}",
        remedy=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}",
    )


def _check_sasl(protocol: str, options: Mapping[str, Any]) -> None:
    secrets = [name for name in ("sasl_plain_username", "sasl_plain_password") if options.get(name) is not None]
    if not protocol.startswith("SASL_"):
        if secrets or "sasl_mechanism" in options:
            raise ConfigError(
                f"SASL properties are given, but security.protocol is {protocol}",
                remedy="-X security.protocol=SASL_SSL",
            )
        return
    if options.get("sasl_mechanism", "PLAIN") != "GSSAPI" and len(secrets) < 2:
        raise ConfigError(
            "SASL needs sasl.username and sasl.password",
            remedy="-X sasl.username=NAME -X sasl.password=@FILE (chmod 600), or write both under [kafka] in kcs.toml,"
            " or set KCS_KAFKA_SASL_USERNAME and KCS_KAFKA_SASL_PASSWORD; a command line is there for everyone to see",
        )


def _no_password() -> str:
    """Called for an encrypted key; without it OpenSSL would ask at the terminal, and a service would hang."""
    raise ConfigError(
        "the key is encrypted and there is no ssl.key.password",
        remedy="-X ssl.key.password=@FILE (chmod 600), [kafka] in kcs.toml (chmod 600), or KCS_KAFKA_SSL_KEY_PASSWORD",
    )


def _ssl_context(tls: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.get("ca"))
        if "certificate" in tls:
            context.load_cert_chain(tls["certificate"], tls.get("key"), tls.get("password") or _no_password)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(tls[name] for name in ("ca", "certificate", "key") if name in tls)
        raise ConfigError(f"TLS files cannot be used: {error}", where=files) from None
    if not tls.get("verify", True):  # `warnings` shouts about both
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not tls.get("identify", True):
        context.check_hostname = False
    return context
