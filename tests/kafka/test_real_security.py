"""SASL_SSL and client certificates on a real Kafka: what works, and what is said, without passwords, when it fails."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kcs.config import load
from kcs.errors import KafkaError, KafkaUnreachableError
from kcs.kafka.settings import KafkaSettings
from kcs.kafka.topics import cluster_id
from tests.kafka.secured import Authority, SecuredKafka
from tests.kafka.wire import assert_whole, emit, opened, read_back
from tests.realkafka import KafkaUnavailable

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]
FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "upbit.zst"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    try:
        with SecuredKafka(tmp_path_factory.mktemp("secured")) as kafka:
            yield kafka
    except KafkaUnavailable as error:
        if os.environ.get("REQUIRE_REAL_KAFKA") == "1":
            pytest.fail(f"REQUIRE_REAL_KAFKA=1, but {error}")
        pytest.skip(f"no real Kafka: {error}")


def there_and_back(bootstrap: str, properties: Mapping[str, str]) -> None:
    """Produce and read back with these properties."""

    async def run() -> None:
        async with opened(bootstrap, properties=properties, connect_timeout_s=10) as sink:
            for number in range(500):
                emit(sink, number)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait_for(sink.drain(), 30)
            assert (sink.acked, sink.failed) == (500, 0)
            assert_whole(await read_back(sink), set(range(500)))

    asyncio.run(run())


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_a_user_with_a_password(kafka: SecuredKafka, user: str) -> None:
    there_and_back(kafka.sasl, kafka.properties(user))


@pytest.mark.parametrize("password", ["", "opensesame"])
def test_a_client_certificate(kafka: SecuredKafka, password: str, tmp_path: Path) -> None:
    certificate, key = kafka.authority.issue("client", password=password)
    properties = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(kafka.authority.pem),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
    }
    if password:
        (tmp_path / "password").write_text(password)
        properties["ssl.key.password"] = f"@{tmp_path / 'password'}"
    there_and_back(kafka.mtls, properties)


def test_the_same_by_config_file_and_environment(kafka: SecuredKafka, tmp_path: Path) -> None:
    """A password in the environment goes with the rest in the file."""
    pairs = {name: value for name, value in kafka.properties("carol").items() if name != "sasl.password"}
    path = tmp_path / "kcs.toml"
    path.write_text("[kafka]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in pairs.items()))
    config = load({}, {"KCS_KAFKA_SASL_PASSWORD": kafka.passwords["carol"], "KCS_BOOTSTRAP": kafka.sasl}, path)
    assert config.bootstrap is not None
    there_and_back(config.bootstrap, config.kafka)


def test_the_command_line_by_file_of_a_password(kafka: SecuredKafka) -> None:
    flags = [f"-X{name}={value}" for name, value in kafka.properties("alice").items()]
    command = [sys.executable, "-m", "kcs", "replay", str(FIXTURE), "--speed", "max", "-b", kafka.sasl, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert kafka.passwords["alice"] not in " ".join(command) + done.stdout + done.stderr


Change = Mapping[str, str | None]


@pytest.mark.parametrize(
    ("user", "change", "said", "remedy"),
    [
        ("alice", {"sasl.password": "wrong-s3cret"}, "does not accept user 'alice' or the password (PLAIN)", "@FILE"),
        ("carol", {"sasl.password": "wrong-s3cret"}, "does not accept user 'carol' or the password", "sasl.mechanism"),
        ("alice", {"sasl.username": "nobody"}, "does not accept user 'nobody'", "the user exists"),
        (
            "alice",
            {"sasl.mechanism": "SCRAM-SHA-512"},
            "does not accept user 'alice'",
            "for this sasl.mechanism",
        ),
        ("alice", {"sasl.mechanism": "SCRAM-SHA-256"}, "does not take SCRAM-SHA-256", "-X sasl.mechanism="),
        ("alice", {"ssl.ca.location": None}, "not from a CA that is trusted here", "-X ssl.ca.location="),
        ("bob", {}, "Authorization", "give user 'bob' the right"),
    ],
)
def test_what_is_wrong_is_told_without_the_password(
    kafka: SecuredKafka, user: str, change: Change, said: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pairs = {name: value for name, value in {**kafka.properties(user), **change}.items() if value is not None}
    with pytest.raises(KafkaError) as raised:
        there_and_back(kafka.sasl, pairs)
    assert said in raised.value.what
    assert kafka.sasl in raised.value.where
    assert remedy in raised.value.remedy
    assert not isinstance(raised.value, KafkaUnreachableError), "waiting does not cure it"
    secrets = (*kafka.passwords.values(), "wrong-s3cret")
    assert not [secret for secret in secrets if secret in str(raised.value) + repr(raised.value) + caplog.text]


def refused(bootstrap: str, properties: Mapping[str, str]) -> KafkaError:
    with pytest.raises(KafkaError) as raised:
        asyncio.run(cluster_id(KafkaSettings(bootstrap, properties=properties, connect_timeout_s=3)))
    return raised.value


def test_another_authority(kafka: SecuredKafka, tmp_path: Path) -> None:
    pairs = {**kafka.properties("alice"), "ssl.ca.location": str(Authority(tmp_path, "other-ca").pem)}
    error = refused(kafka.sasl, pairs)
    assert "not from a CA that is trusted here" in error.what
    assert "-X ssl.ca.location=" in error.remedy


def test_a_name_that_the_certificate_does_not_have(kafka: SecuredKafka) -> None:
    error = refused(kafka.sasl.replace("localhost", "127.0.0.1"), kafka.properties("alice"))
    assert "certificate is for another name" in error.what
    assert "advertised.listeners" in error.remedy
    assert not isinstance(error, KafkaUnreachableError)


def test_a_client_certificate_that_is_missing_or_strange(kafka: SecuredKafka, tmp_path: Path) -> None:
    pairs = {"security.protocol": "SSL", "ssl.ca.location": str(kafka.authority.pem)}
    certificate, key = Authority(tmp_path, "other-ca").issue("client")
    for more in ({}, {"ssl.certificate.location": str(certificate), "ssl.key.location": str(key)}):
        error = refused(kafka.mtls, {**pairs, **more})
        assert "does not accept this client's certificate, or wants one" in error.what
        assert "-X ssl.certificate.location=" in error.remedy
        assert not isinstance(error, KafkaUnreachableError)


def test_the_wrong_kind_of_port(kafka: SecuredKafka) -> None:
    """The broker cuts the connection and says nothing, so it may as well be one that is stopping."""
    for bootstrap, properties in ((kafka.inside, kafka.properties("alice")), (kafka.sasl, {}), (kafka.mtls, {})):
        error = refused(bootstrap, properties)
        spoken = properties.get("security.protocol", "PLAINTEXT")
        assert f"it hangs up, as a port does that speaks something else than security.protocol={spoken}" in error.what
        assert "-X security.protocol=" in error.remedy


def test_a_password_changed_while_running_is_named_and_the_new_one_is_read_from_its_file(
    kafka: SecuredKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    path = tmp_path / "password"
    path.write_text(kafka.passwords["carol"])
    properties = {**kafka.properties("carol"), "sasl.password": f"@{path}"}

    async def run() -> None:
        async with opened(kafka.sasl, properties=properties, connect_timeout_s=10) as sink:
            for number in range(100):
                emit(sink, number)
            await sink.drain()
            await asyncio.to_thread(kafka.change_password, "carol", "n3w-s3cret")
            await asyncio.to_thread(kafka.restart)  # a connection that was let in stays so
            for number in range(100, 200):
                emit(sink, number)
            with pytest.raises(KafkaError, match="does not accept user 'carol'"):
                await asyncio.wait_for(sink.drain(), 60)
            path.write_text("n3w-s3cret")
            async with asyncio.timeout(60):
                while sink.fault is not None:  # noqa: ASYNC110 - stands until something is delivered
                    await asyncio.sleep(0.05)
            await asyncio.wait_for(sink.drain(), 30)
            assert_whole(await read_back(sink), set(range(200)))

    asyncio.run(run())
    kafka.change_password("carol", kafka.passwords["carol"])
