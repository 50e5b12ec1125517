"""Settings that cannot work are refused before a socket is opened, with what to write instead."""

from __future__ import annotations

import os
import ssl
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from kcs.errors import ConfigError
from kcs.kafka.settings import (
    KafkaSettings,
    check_template,
    client_options,
    parse_bootstrap,
    producer_options,
    topic_name,
    topic_names,
    warnings,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:9092", [("localhost", 9092)]),
        ("a.b-c_d", [("a.b-c_d", 9092)]),
        ("one:1, two:65535", [("one", 1), ("two", 65535)]),
        ("[::1]:9093", [("::1", 9093)]),
    ],
)
def test_bootstrap(text: str, expected: list[tuple[str, int]]) -> None:
    assert parse_bootstrap(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":9092", "host:", "host:0", "host:70000", "a b:1", "kafka://h:1", "h:1,,g:2", "::1"]
)
def test_bad_bootstrap(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        KafkaSettings(text)


def test_ipv6_stays_bracketed_for_the_client() -> None:
    assert client_options(KafkaSettings("[::1]:9093,h:1"))["bootstrap_servers"] == ["[::1]:9093", "h:1"]


@pytest.mark.parametrize("template", ["{channel}.{exchange}", "replay.{channel}", "{exchange}_{channel}-1"])
def test_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize(
    "template",
    ["", "plain", "{exchange}", "{channel}/{exchange}", "../{channel}", "{channel}.{market}", "{channel}{",
     "{channel}}", "{channel!r}", "{channel:>9}", "{channel.__class__}", "{0}{channel}", "{}{channel}",
     "{channel} {exchange}", "Ü{channel}"],
)  # fmt: skip
def test_bad_templates(template: str) -> None:
    with pytest.raises(ConfigError):
        KafkaSettings("h:1", template=template)


def test_topic_names_are_legal() -> None:
    assert topic_name("{channel}.{exchange}", "trade", "upbit") == "trade.upbit"
    for bad in ("a/b", "", "x" * 250):
        with pytest.raises(ConfigError, match="legal topic name"):
            topic_name("{channel}", bad, "upbit")
    with pytest.raises(ConfigError, match="legal topic name"):
        topic_name("{channel}", "..", "upbit")


def test_topics_of_a_run_include_gaps_and_rejects_and_are_never_shared() -> None:
    names = topic_names("{channel}.{exchange}", ["trade"], ["upbit"])
    assert set(names.values()) == {"trade.upbit", "gap.upbit", "reject.upbit"}
    assert len(topic_names("{channel}", ["trade"], ["upbit"])) == 3
    with pytest.raises(ConfigError, match="share a topic"):
        topic_names("{channel}", ["trade"], ["upbit", "binance"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"partitions": 0},
        {"replication": 0},
        {"batch_bytes_max": 10},
        {"batch_bytes_max": 2**20},
        {"buffer_bytes_max": 10},
    ],
)
def test_bad_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        KafkaSettings("h:1", **wrong)  # type: ignore[arg-type]


def test_properties_are_named_as_in_librdkafka(tmp_path: Path) -> None:
    settings = KafkaSettings(
        "h:1",
        properties={
            "security.protocol": "sasl_ssl",
            "sasl.mechanism": "scram-sha-512",
            "sasl.username": "me",
            "sasl.password": "secret",
            "ssl.endpoint.identification.algorithm": "none",
            "client.id": "my-client",
            "request.timeout.ms": "7000",
            "compression.type": "gzip",
            "acks": "all",
        },
    )
    options = client_options(settings)
    context = options.pop("ssl_context")
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname is False
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert options == {
        "bootstrap_servers": ["h:1"],
        "client_id": "my-client",
        "request_timeout_ms": 7000,
        "retry_backoff_ms": 100,
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "secret",
    }
    assert producer_options(settings) == {"compression_type": "gzip"}


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"securty.protocol": "SSL"}, r"did you mean 'security.protocol'\?"),
        ({"qqq": "1"}, "unknown property 'qqq'"),
        ({"bootstrap.servers": "h:1"}, "-b HOST:PORT"),
        ({"security.protocol": "TLS"}, "'TLS' is no value"),
        ({"request.timeout.ms": "soon"}, "'soon' is no value"),
        ({"acks": "1"}, "always works with acks=all"),
        ({"enable.idempotence": "false"}, "always works with"),
        ({"sasl.username": "me"}, "security.protocol is PLAINTEXT"),
        ({"security.protocol": "SASL_SSL", "sasl.username": "me"}, "sasl.password"),
        ({"ssl.ca.location": "/x"}, "security.protocol is PLAINTEXT"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/no/such/ca.pem"}, "/no/such/ca.pem"),
        ({"compression.type": "rar"}, "'rar' is no value"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "no value"),
    ],
)
def test_bad_properties(properties: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KafkaSettings("h:1", properties=properties)


@pytest.mark.parametrize(
    ("properties", "package"),
    [
        ({"compression.type": "zstd"}, "cramjam"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "GSSAPI"}, "gssapi"),
    ],
)
def test_what_needs_another_package_says_so(properties: dict[str, str], package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        KafkaSettings("h:1", properties=properties)


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        KafkaSettings("h:1", properties={"security.protocol": "SSL", "ssl.ca.location": str(path)})


def test_verification_can_be_switched_off() -> None:
    properties = {"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}
    context = client_options(KafkaSettings("h:1", properties=properties))["ssl_context"]
    assert context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({}, []),
        ({"security.protocol": "SSL"}, []),
        ({"security.protocol": "SSL", "enable.ssl.certificate.verification": "true"}, []),
        ({"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "https"}, []),
        ({"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}, ["CERTIFICATE IS NOT CHECKED"]),
        ({"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "none"}, ["NAME IS NOT CHECKED"]),
        (
            {"security.protocol": "SASL_PLAINTEXT", "sasl.username": "me", "sasl.password": "hunter2"},
            ["LOGIN TO KAFKA IS NOT ENCRYPTED"],
        ),
    ],
)
def test_protection_that_is_given_up_is_said_and_nothing_else_is(properties: dict[str, str], said: list[str]) -> None:
    found = warnings(KafkaSettings("kafka-1:9092", properties=properties))
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
    assert "hunter2" not in "".join(found)


def test_a_login_in_the_clear_on_this_machine_needs_no_warning() -> None:
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.username": "me", "sasl.password": "x"}
    assert warnings(KafkaSettings("localhost:1,127.0.0.1:2,[::1]:3", properties=login)) == []
    assert len(warnings(KafkaSettings("localhost:1,10.0.0.1:2", properties=login))) == 1


def test_a_repr_holds_no_password() -> None:
    login = {"security.protocol": "SASL_SSL", "sasl.username": "me", "sasl.password": "hunter2"}
    settings = KafkaSettings("h:1", properties=login)
    assert "hunter2" not in repr(settings)
    assert "h:1" in repr(settings)


def test_an_encrypted_key_without_a_password_is_an_error_and_no_question(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:hunter2", "-subj", "/CN=me", "-days", "1",
         "-keyout", key, "-out", certificate],
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("openssl makes no key here")
    properties = {
        "security.protocol": "SSL",
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    with pytest.raises(ConfigError, match="KCS_KAFKA_SSL_KEY_PASSWORD"):
        KafkaSettings("h:1", properties=properties)
    KafkaSettings("h:1", properties={**properties, "ssl.key.password": "hunter2"})


def login(password: str) -> KafkaSettings:
    properties = {"security.protocol": "SASL_SSL", "sasl.username": "me", "sasl.password": password}
    return KafkaSettings("h:1", properties=properties)


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b" two\nlines \n\n", " two\nlines \n"),
    ],
)
def test_a_password_comes_from_a_file(tmp_path: Path, content: bytes, password: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    settings = login(f"@{path}")
    assert client_options(settings)["sasl_plain_password"] == password
    assert warnings(settings) == []
    path.write_text("new")  # changed meanwhile: the next connection uses it
    assert client_options(settings)["sasl_plain_password"] == "new"


def test_a_password_may_begin_with_an_at_sign() -> None:
    assert client_options(login("@@home"))["sasl_plain_password"] == "@home"


def test_a_password_file_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "password").write_text("s3cret")
    assert client_options(login("@~/password"))["sasl_plain_password"] == "s3cret"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no regular file"),
        (b"", "no password"),
        (b"\n", "no password"),
        (b"\xff", "UTF-8"),
        (b"x" * 70_000, "large"),
    ],
)
def test_a_password_file_that_is_none_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        login(f"@{path}")
    assert raised.value.where == str(path)


def test_a_pipe_is_no_password_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        login(f"@{tmp_path / 'pipe'}")


def test_a_password_file_that_everybody_may_read_is_told(tmp_path: Path) -> None:
    """Told, not refused: secrets that a container gets are often mounted so."""
    path = tmp_path / "password"
    path.write_text("s3cret")
    path.chmod(0o644)
    (text,) = warnings(login(f"@{path}"))
    assert str(path) in text
    assert "s3cret" not in text
