"""A real, throw-away Apache Kafka: one KRaft node on free ports of 127.0.0.1, its data in a temporary directory.

The jars come from `tests/pom.xml` through Maven into `tests/.kafka/` (once; 43 MB) and need Java 17 or newer.

    with RealKafka() as kafka:
        kafka.bootstrap                     # "127.0.0.1:PORT"

Used by the fixture `real_kafka` and by `bench/`; `tests/realcluster.py` makes a cluster of such nodes. Raises
`KafkaUnavailable` with the reason where Java or Maven is missing or the node does not come up. The node is stopped and
its data deleted when the block ends, when start-up fails, and when this process ends in whatever way (a helper process
sees to that).
"""

from __future__ import annotations

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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

POM = Path(__file__).with_name("pom.xml")
CACHE = Path(os.environ.get("REAL_KAFKA_CACHE") or Path(__file__).with_name(".kafka"))
PORT_MIN, PORT_MAX = 18_000, 32_000
"""Below the range from which Linux takes the ports of outgoing connections."""
JAVA_VERSION_MIN = 17
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
FLAGS = ("-Xms512m", "-Xmx512m", "-XX:+UseSerialGC")

SERVER = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://{advertised}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""

_ALONE = {
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
}
_LOGGING = """\
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
appender.console.name=console
appender.console.type=Console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c %m%n
"""

_REAPER = """\
import os, shutil, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
groups = {int(line) for line in sys.stdin}
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
"""Waits for the end of its input, which comes when this process ends, even by SIGKILL; then it cleans up."""


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


class Reaper:
    """A temporary directory and the processes that live on it: both are gone when it is closed or this process dies."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="kcs-kafka-"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _REAPER, str(self.home)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """`process` leads a process group, which is to be killed in the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{process.pid}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Node:
    """One JVM of Kafka with its directory. `port` is where it serves clients."""

    def __init__(self, reaper: Reaper, name: str, port: int, flags: Sequence[str]) -> None:
        self._reaper = reaper
        self.home = reaper.home / name
        self.home.mkdir()
        self.data = self.home / "data"
        self.port = port
        self._flags = flags
        self._jars = fetch()
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "log4j2.properties").write_text(_LOGGING)

    @property
    def properties(self) -> Path:
        return self.home / "server.properties"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _java(self, *arguments: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.home}/log4j2.properties"
        return ["java", *self._flags, logging, "-cp", f"{self._jars}/*", *arguments]

    def format(self, cluster_id: str, arguments: Iterable[str] = ()) -> None:
        """Prepare the data directory that `properties` names."""
        command = self._java("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self.properties))
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KafkaUnavailable(f"Kafka's log could not be formatted: {done.stderr.strip()[:500]}")

    def spawn(self) -> None:
        """Start it on the data it has; `wait` waits until it serves."""
        with (self.home / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.properties)),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the node
            )
        self._reaper.watch(self._process)

    def wait(self) -> None:
        """Return when it takes connections. Raises KafkaUnavailable."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.running:
                raise KafkaUnavailable(f"Kafka died at start: {self.log()[-500:]}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise KafkaUnavailable(f"Kafka did not answer within {START_TIMEOUT_S} s: {self.log()[-500:]}")

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once; its data stay for `spawn`."""
        self.signal(signal.SIGKILL)
        self._ended()

    def stop(self) -> None:
        """End it in good order: a broker hands its partitions over first."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self._ended()

    def _ended(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        """What it printed."""
        path = self.home / "kafka.log"
        return path.read_text(errors="replace") if path.exists() else ""


def check_java() -> None:
    """Raises KafkaUnavailable where Java is missing or too old."""
    version = java_version()
    if version is None or version < JAVA_VERSION_MIN:
        raise KafkaUnavailable(f"Java {JAVA_VERSION_MIN} or newer is needed, found {version or 'none'}")


def new_cluster_id() -> str:
    """A random one. It does not begin with a dash, which one in 64 would: the tool takes that for an option."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def property_lines(options: Mapping[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in options.items())


class RealKafka:
    """One broker; `start` returns when it answers. `port` fixes its port, `advertised` its public address.

    `options` are lines of server.properties and win over its own; `formatting` are arguments of `StorageTool format`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        advertised: str | None = None,
        options: Mapping[str, str] | None = None,
        formatting: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self._advertised = advertised or f"127.0.0.1:{self.port}"
        self._options = {**_ALONE, **(options or {})}
        self._formatting = formatting
        self._reaper: Reaper | None = None
        self._node: Node | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> RealKafka:
        """Fetch, format, start, wait. Raises KafkaUnavailable."""
        check_java()
        fetch()
        self._reaper = Reaper()
        try:
            self._node = Node(self._reaper, "node", self.port, FLAGS)
            controller = free_port()
            server = SERVER.format(
                node=1,
                voters=f"1@127.0.0.1:{controller}",
                port=self.port,
                controller=controller,
                advertised=self._advertised,
                data=self._node.data,
            )
            self._node.properties.write_text(server + property_lines(self._options))
            self._node.format(new_cluster_id(), self._formatting)
            self.resume()
        except BaseException:
            self.stop()
            raise
        return self

    def resume(self) -> None:
        """Start the node on the data it has (after `kill`)."""
        assert self._node is not None
        self._node.spawn()
        self._node.wait()

    def log(self) -> str:
        """What the node printed."""
        return self._node.log() if self._node else ""

    def kill(self) -> None:
        """End the node at once (SIGKILL); its data stay for `resume`."""
        if self._node is not None:
            self._node.kill()

    def pause(self) -> None:
        """Freeze the node (SIGSTOP): its connections stay, nobody answers."""
        if self._node is not None:
            self._node.signal(signal.SIGSTOP)

    def unpause(self) -> None:
        """Let a frozen node go on."""
        if self._node is not None:
            self._node.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the node and delete its data; safe to call twice."""
        if self._node is not None:
            self._node.stop()
            self._node = None
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None

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
