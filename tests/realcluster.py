"""A real cluster: three Kafka brokers in KRaft mode on this machine, and what may happen to them.

    with RealCluster() as cluster:
        cluster.bootstrap                                # "127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT"
        cluster.kill(cluster.leader("trade.upbit"))      # SIGKILL
        cluster.restart(1)
        cluster.wait_in_sync()

Topics have three replicas, of which two must be in sync. Used by the fixture `real_cluster` and by `bench/faults`. Each
broker takes 350 MB; the cluster is up in seven seconds. Raises `KafkaUnavailable`; see `tests/realkafka.py`.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tests.realkafka import (
    SERVER,
    START_TIMEOUT_S,
    KafkaUnavailable,
    Node,
    Reaper,
    check_java,
    fetch,
    free_port,
    new_cluster_id,
    property_lines,
)

_FLAGS = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""The quick compiler only: three of them start on one machine at once."""

_TOGETHER = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


class RealCluster:
    """Three brokers that are controllers too; topics have three replicas, of which two must be in sync.

    Brokers are called 1, 2, 3. Its methods block; inside a running loop call them by `asyncio.to_thread`.
    """

    def __init__(self, *, brokers: int = 3, options: Mapping[str, str] | None = None) -> None:
        self._numbers = range(1, brokers + 1)
        self._options = {**_TOGETHER, **(options or {})}
        self._reaper: Reaper | None = None
        self._admin: Any = None
        self.nodes: dict[int, Node] = {}

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())

    def start(self) -> RealCluster:
        """Format, start all, wait until all are in. Raises KafkaUnavailable."""
        check_java()
        fetch()
        self._reaper = Reaper()
        try:
            self._configure(self._reaper)
            for node in self.nodes.values():
                node.spawn()
            for node in self.nodes.values():
                node.wait()
            self.wait_until(lambda: len(self.metadata().brokers) == len(self.nodes), "all brokers to be in")
        except BaseException:
            self.stop()
            raise
        return self

    def _configure(self, reaper: Reaper) -> None:
        controllers = {number: free_port() for number in self._numbers}
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in controllers.items())
        cluster_id = new_cluster_id()
        for number in self._numbers:
            node = self.nodes[number] = Node(reaper, f"node{number}", free_port(), _FLAGS)
            server = SERVER.format(
                node=number,
                voters=voters,
                port=node.port,
                controller=controllers[number],
                advertised=f"127.0.0.1:{node.port}",
                data=node.data,
            )
            node.properties.write_text(server + property_lines(self._options))
            if number == 1:
                node.format(cluster_id)
            else:  # the same but for two lines, without another JVM
                shutil.copytree(self.nodes[1].data, node.data)
                meta = node.data / "meta.properties"
                text = re.sub(r"(?m)^node\.id=.*$", f"node.id={number}", meta.read_text())
                meta.write_text(re.sub(r"(?m)^directory\.id=.*$", f"directory.id={new_cluster_id()}", text))

    def metadata(self, topic: str | None = None) -> Any:
        """librdkafka's view: `.brokers`, `.topics[name].partitions[n].leader` and `.isrs`. Raises KafkaException."""
        if self._admin is None:
            from confluent_kafka.admin import AdminClient

            self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        return self._admin.list_topics(topic, timeout=5) if topic else self._admin.list_topics(timeout=5)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads a partition now; waits for one."""
        found = -1

        def led() -> bool:
            nonlocal found
            found = self.metadata(topic).topics[topic].partitions[partition].leader
            return found in self.nodes

        self.wait_until(led, f"a leader of {topic}[{partition}]")
        return found

    def wait_in_sync(self) -> None:
        """Return when every replica of every partition is in sync and has a leader."""

        def in_sync() -> bool:
            seen = self.metadata()
            parts = [part for topic in seen.topics.values() for part in topic.partitions.values()]
            everybody = len(seen.brokers) == len(self.nodes)
            return everybody and all(part.leader >= 0 and len(part.isrs) == len(part.replicas) for part in parts)

        self.wait_until(in_sync, "all replicas to be in sync")

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        from confluent_kafka import KafkaException

        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if reached():
                    return
            except (KafkaException, KeyError):
                pass  # in between
            time.sleep(0.2)
        logs = "\n".join(node.log()[-500:] for node in self.nodes.values())
        raise KafkaUnavailable(f"waited {START_TIMEOUT_S} s for {what}: {logs}")

    def kill(self, *numbers: int) -> None:
        """End brokers at once (SIGKILL); their data stay."""
        for number in numbers:
            self.nodes[number].kill()

    def halt(self, *numbers: int) -> None:
        """Stop brokers in good order (SIGTERM); their data stay. The last of a majority may take its 15 s."""
        for number in numbers:
            self.nodes[number].stop()

    def restart(self, *numbers: int) -> None:
        """Start brokers again on the data they have; returns when they take connections."""
        for number in numbers:
            self.nodes[number].spawn()
        for number in numbers:
            self.nodes[number].wait()

    def pause(self, number: int) -> None:
        """Freeze a broker (SIGSTOP): its connections stay open and it answers nothing."""
        self.nodes[number].signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self.nodes[number].signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all brokers at once and delete their data; safe to call twice."""
        self._admin = None
        for node in self.nodes.values():
            node.kill()
        self.nodes.clear()
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None

    def __enter__(self) -> RealCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
