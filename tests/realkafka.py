"""A real, throw-away Apache Kafka: one KRaft node on free ports of 127.0.0.1, its data in a temporary directory.

The jars come from `tests/pom.xml` through Maven into `tests/.kafka/` (once; 43 MB) and need Java 17 or newer.

    with RealKafka() as kafka:
        kafka.bootstrap                     # "127.0.0.1:PORT"

Used by the fixture `real_kafka` and by `bench/`. Raises `KafkaUnavailable` with the reason where Java or Maven is
missing or the node does not come up; the node is stopped when the block ends, when start-up fails and at exit.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

POM = Path(__file__).with_name("pom.xml")
CACHE = Path(os.environ.get("REAL_KAFKA_CACHE") or Path(__file__).with_name(".kafka"))
PORT_MIN, PORT_MAX = 18_000, 32_000
"""Below the range from which Linux takes the ports of outgoing connections."""
JAVA_VERSION_MIN = 17
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15

_SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{advertised}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
auto.create.topics.enable=false
"""

_LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.name=console
appender.console.type=Console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c %m%n
"""


class KafkaUnavailable(RuntimeError):
    """A real Kafka cannot be had on this machine; the message says why."""


def java_version() -> int | None:
    """Major version of `java` on the path, or None."""
    if shutil.which("java") is None:
        return None
    shown = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', shown)
    return int(found[1]) if found else None


def fetch() -> Path:
    """The directory of jars that `tests/pom.xml` asks for, copied by Maven unless they are there already."""
    stamp = hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    home = CACHE / f"lib-{stamp}"
    if home.is_dir():
        return home
    if shutil.which("mvn") is None:
        raise KafkaUnavailable("mvn (Maven) is not installed: Kafka's jars cannot be fetched")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(POM),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={scratch}/lib",
        ]
        done = subprocess.run([*command, "-DincludeScope=runtime"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaUnavailable(f"mvn could not fetch Kafka: {(done.stdout + done.stderr).strip()[:500]}")
        try:
            os.rename(f"{scratch}/lib", home)
        except OSError:
            if not home.is_dir():  # otherwise another process was faster
                raise
    return home


_ports = itertools.cycle(range(PORT_MIN, PORT_MAX))
for _ in range(os.getpid() * 101 % (PORT_MAX - PORT_MIN)):  # two test runs at once rarely meet
    next(_ports)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that no outgoing connection will be given."""
    for port in itertools.islice(_ports, PORT_MAX - PORT_MIN):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise KafkaUnavailable(f"no free port from {PORT_MIN} to {PORT_MAX}")


class RealKafka:
    """One broker; `start` returns when it answers. `port` fixes its port, `advertised` its public address."""

    def __init__(
        self, *, port: int | None = None, advertised: str | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        self.port = port or free_port()
        self._advertised = advertised or f"127.0.0.1:{self.port}"
        self._options = dict(options or {})
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._java: list[str] = []

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> RealKafka:
        """Fetch, format, start, wait. Raises KafkaUnavailable."""
        version = java_version()
        if version is None or version < JAVA_VERSION_MIN:
            raise KafkaUnavailable(f"Java {JAVA_VERSION_MIN} or newer is needed, found {version or 'none'}")
        jars = fetch()
        self._home = Path(tempfile.mkdtemp(prefix="kcs-kafka-"))
        atexit.register(self.stop)
        try:
            self._configure(jars)
            self.resume()
        except BaseException:
            self.stop()
            raise
        return self

    def _configure(self, jars: Path) -> None:
        assert self._home is not None
        server = _SERVER.format(
            port=self.port, controller=free_port(), advertised=self._advertised, data=self._home / "data"
        )
        server += "".join(f"{key}={value}\n" for key, value in self._options.items())
        (self._home / "server.properties").write_text(server)
        (self._home / "log4j2.properties").write_text(_LOGGING)
        self._java = ["java", f"-Dlog4j2.configurationFile={self._home}/log4j2.properties", "-cp", f"{jars}/*"]
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        storage = [*self._java, "kafka.tools.StorageTool"]
        formatting = [*storage, "format", "-t", cluster_id, "-c", str(self._home / "server.properties")]
        done = subprocess.run(formatting, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaUnavailable(f"Kafka's log could not be formatted: {done.stderr.strip()[:500]}")

    def resume(self) -> None:
        """Start the node on the data it has (after `kill`)."""
        assert self._home is not None
        flags = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC"]
        with (self._home / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java[:1], *flags, *self._java[1:], "kafka.Kafka", str(self._home / "server.properties")],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the node
            )
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise KafkaUnavailable(f"Kafka died at start: {self.log()[-500:]}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise KafkaUnavailable(f"Kafka did not answer within {START_TIMEOUT_S} s: {self.log()[-500:]}")

    def log(self) -> str:
        """What the node printed."""
        return (self._home / "kafka.log").read_text(errors="replace") if self._home else ""

    def kill(self) -> None:
        """End the node at once (SIGKILL); its data stay for `resume`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the node and delete its data; safe to call twice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None
        atexit.unregister(self.stop)

    def __enter__(self) -> RealKafka:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main() -> None:
    """`python -m tests.realkafka`: run a node until Enter or end of input; its address is the first line printed."""
    with RealKafka() as kafka:
        print(kafka.bootstrap, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
