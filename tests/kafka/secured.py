"""A real Kafka behind TLS and passwords: its own authority and certificates, users, rights. For tests.

    with SecuredKafka(directory) as kafka:
        kafka.sasl, kafka.mtls                  # "localhost:PORT", whose certificate names localhost and nothing else
        kafka.properties("carol")               # -X pairs that work, the password in a file

Users: `alice` (PLAIN) and `carol` (SCRAM-SHA-512) may do everything, as may the client certificate; `bob` (PLAIN) may
do nothing. The plain listener (`kafka.inside`) belongs to the broker itself and to whoever administers it.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.realkafka import KafkaUnavailable, RealKafka, free_port

MECHANISMS = {"alice": "PLAIN", "bob": "PLAIN", "carol": "SCRAM-SHA-512"}
_EXTENSIONS = """\
subjectAltName={names}
authorityKeyIdentifier=keyid
subjectKeyIdentifier=hash
basicConstraints=CA:FALSE
keyUsage=digitalSignature
extendedKeyUsage=serverAuth,clientAuth
"""


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """A certificate authority in a directory; `pem` is what its clients trust."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.pem = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        _openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self._key, "-out", self.pem, "-days", 2,
            "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip

    def issue(self, name: str, names: str = "DNS:localhost", password: str = "") -> tuple[Path, Path]:
        """Certificate and key (encrypted if there is a password) of somebody."""
        key, request, pem = (self._directory / f"{name}.{suffix}" for suffix in ("key", "csr", "crt"))
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(_EXTENSIONS.format(names=names))
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self._key, "-CAcreateserial", "-days", 2,
            "-extfile", extensions, "-out", pem,
        )  # fmt: skip
        if password:
            encrypted = key.with_suffix(".enc")
            _openssl("pkcs8", "-topk8", "-in", key, "-out", encrypted, "-passout", f"pass:{password}")
            return pem, encrypted
        return pem, key


class SecuredKafka:
    """See the module's docstring. `passwords`: user to password, also in files of that name, mode 0600."""

    def __init__(self, directory: Path) -> None:
        """Raises KafkaUnavailable where openssl is missing."""
        if shutil.which("openssl") is None:
            raise KafkaUnavailable("openssl is not installed: there would be no certificates")
        self.directory = directory
        self.authority = Authority(directory, "kcs-test-ca")
        self.passwords = {user: secrets.token_hex(8) for user in MECHANISMS}
        for user, password in self.passwords.items():
            path = directory / user
            path.write_text(f"{password}\n")
            path.chmod(0o600)
        pem, key = self.authority.issue("broker")
        keystore = directory / "broker.pem"
        keystore.write_text(key.read_text() + pem.read_text())
        inside, sasl, mtls, controller = (free_port() for _ in range(4))
        self.inside = f"127.0.0.1:{inside}"
        self.sasl, self.mtls = f"localhost:{sasl}", f"localhost:{mtls}"
        plain = " ".join(f'user_{user}="{self.passwords[user]}"' for user in ("alice", "bob"))
        module = "org.apache.kafka.common.security"
        self._kafka = RealKafka(
            port=inside,
            options={
                "listeners": f"PLAINTEXT://{self.inside},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{mtls},"
                f"CONTROLLER://127.0.0.1:{controller}",
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://{self.inside},SASL_SSL://{self.sasl},SSL://{self.mtls}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.authority.pem),
                "listener.name.ssl.ssl.client.auth": "required",
                "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule required {plain};",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:alice;User:carol;User:CN=client",
            },
            formatting=["--add-scram", f"SCRAM-SHA-512=[name=carol,password={self.passwords['carol']}]"],
        )

    def properties(self, user: str) -> dict[str, str]:
        """What `-X` needs for a user."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISMS[user],
            "sasl.username": user,
            "sasl.password": f"@{self.directory / user}",
            "ssl.ca.location": str(self.authority.pem),
        }

    def change_password(self, user: str, password: str) -> None:
        """Of a SCRAM user; connections that are open stay so."""
        admin = AdminClient({"bootstrap.servers": self.inside, "log_level": 0})
        credentials = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(user, credentials, password.encode())
        admin.alter_user_scram_credentials([change])[user].result(30)

    def restart(self) -> None:
        """Kill it and start it again."""
        self._kafka.kill()
        self._kafka.resume()

    def __enter__(self) -> SecuredKafka:
        self._kafka.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kafka.stop()
