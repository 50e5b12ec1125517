"""More than the process can take, for a minute: does the socket live, is memory bounded, is all there in the end?

    python -m bench.faults overload --seconds 60          a real Kafka of its own (Java 17), else the embedded broker
    python -m bench.faults overload --seconds 60 -b HOST:PORT

A blaster (blaster.py) writes ready-made frames as fast as `kcs live` takes them; for the second quarter of the time our
own broker is frozen. What is promised: one connection all the while, our pings and the answers to the venue's in time,
memory bounded, every frame captured and, once the follower has caught up, in Kafka once and in order. The frames are
compared one by one with what was sent (content.py). The collector is `kcs live` as installed, except that it pings
every `PING_EVERY_S` instead of every 20 s, so that there is something to measure.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from bench.faults.blaster import ready_block
from bench.faults.overload_judge import CHANNELS, DRAIN_TIMES_MAX, PING_EVERY_S, TEMPLATE, Samples, judge, judge_content
from bench.faults.verdict import Verdict, say
from bench.tapes import NS_PER_S, ROOT, long_tape
from kcs.exchanges import VENUES, Heartbeat
from kcs.sim.settings import SimSettings
from kcs.sim.tape import write_tape
from tests.realkafka import KafkaUnavailable, RealKafka

MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP")
SAMPLE_EVERY_S = 0.25
WAITS = b"reading waits for the disk"


class Blaster:
    """The blaster's process; its lines are read as they come."""

    def __init__(self, block: Path, frames: int, seconds: float, samples: Samples) -> None:
        command = [sys.executable, "-m", "bench.faults.blaster", str(block)]
        command += ["--seconds", str(seconds), "--frames", str(frames)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        self._samples = samples
        self.url = orjson.loads(self._line())["url"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the blaster did not start")
        return line

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said, now = orjson.loads(line), time.perf_counter()
            if "result" in said:
                self._samples.result = said["result"]
                continue
            self._samples.sent.append((now, said["frames"]))
            if said.get("quiet"):
                self._samples.quiet_at = now

    def end(self) -> dict[str, Any]:
        """Its report, once the client has gone."""
        self._process.wait(30)
        self._reader.join(10)
        if self._samples.result is None:
            raise SystemExit("the blaster ended without a report")
        return self._samples.result

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Watch:
    """Samples memory and the topics' end offsets beside the run."""

    def __init__(self, pid: int, bootstrap: str | None, samples: Samples) -> None:
        self._pid, self._samples = pid, samples
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "kcs-watch"}) if bootstrap else None
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._memory, daemon=True)]
        if self._consumer is not None:
            self._threads.append(threading.Thread(target=self._topics, daemon=True))
        for thread in self._threads:
            thread.start()

    def _memory(self) -> None:
        page, ticks = os.sysconf("SC_PAGE_SIZE") / 2**20, os.sysconf("SC_CLK_TCK")
        while not self._done.wait(SAMPLE_EVERY_S):
            try:
                pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
                used = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
            except (OSError, IndexError):
                return
            now = time.perf_counter()
            self._samples.rss_mib.append((now, pages * page))
            self._samples.cpu_s.append((now, (int(used[11]) + int(used[12])) / ticks))

    def _topics(self) -> None:
        assert self._consumer is not None
        while not self._done.wait(2 * SAMPLE_EVERY_S):
            total = 0
            try:
                for channel in CHANNELS:
                    topic = TopicPartition(TEMPLATE.format(channel=channel, exchange="upbit"), 0)
                    total += self._consumer.get_watermark_offsets(topic, timeout=5)[1]
            except KafkaException:
                continue  # not there yet
            self._samples.acked.append((time.perf_counter(), total))

    def end(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        if self._consumer is not None:
            self._consumer.close()


@contextmanager
def kafka(args: argparse.Namespace) -> Iterator[tuple[str | None, RealKafka | None]]:
    """Where to produce to (None: kcs's embedded broker), and the node where it is ours."""
    if args.bootstrap or args.embedded:
        yield args.bootstrap, None
        return
    node = RealKafka()
    try:
        bootstrap = node.start().bootstrap
    except KafkaUnavailable as error:
        say(f"no real Kafka ({error}): the embedded broker serves, contents of topics are not compared")
        yield None, None
        return
    try:
        yield bootstrap, node
    finally:
        node.stop()


def freeze(node: RealKafka, samples: Samples, seconds: float) -> None:
    """Freeze the broker for the second quarter of the blast: the follower must fall behind, at full load."""
    while not samples.sent:
        time.sleep(SAMPLE_EVERY_S)
    time.sleep(seconds / 4)
    began = time.perf_counter()
    node.pause()
    say("broker frozen")
    time.sleep(seconds / 4)
    node.unpause()
    samples.frozen_s = time.perf_counter() - began
    say("broker goes on")


def collector(url: str, bootstrap: str | None, directory: Path) -> subprocess.Popen[bytes]:
    """`kcs live` on the blaster."""
    command = [sys.executable, "-m", "bench.faults.overload", "live", "--json", "--quiet"]
    command += ["--url", f"upbit={url}", "--channel", ",".join(CHANNELS), "--market", ",".join(MARKETS)]
    command += ["--capture", str(directory), "--topic", TEMPLATE, *(["-b", bootstrap] if bootstrap else [])]
    env = {name: value for name, value in os.environ.items() if not name.startswith("KCS_")}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def pass_on(process: subprocess.Popen[bytes], samples: Samples) -> threading.Thread:
    """What the collector says, as it says it, and whether it said that the venue has to wait."""

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            say(line.decode("utf-8", "replace").rstrip())
            samples.venue_waited |= WAITS in line

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def as_kcs() -> None:
    """`kcs ARGS`, but Upbit is pinged often."""
    from kcs.cli import main as kcs_main

    upbit = VENUES["upbit"]
    beat = replace(upbit.heartbeat, ping_every_s=PING_EVERY_S)
    VENUES["upbit"] = replace(upbit, heartbeat=beat)
    assert isinstance(beat, Heartbeat)
    kcs_main()


def wait_drained(samples: Samples, process: subprocess.Popen[bytes], seconds: float, *, by_topics: bool) -> None:
    """Until the blast is over and all of it is acknowledged, the collector has ended, or patience has."""
    ends = time.perf_counter() + seconds * (1 + DRAIN_TIMES_MAX) + 60
    told = 0.0
    while time.perf_counter() < ends and process.poll() is None:
        time.sleep(SAMPLE_EVERY_S)
        sent = samples.sent[-1][1] if samples.sent else 0
        acked = samples.acked[-1][1] if samples.acked else 0
        now = time.perf_counter()
        if now >= told + 5:
            told = now
            rss = samples.rss_mib[-1][1] if samples.rss_mib else 0
            say(f"sent {sent:,}, in Kafka {acked:,}, {rss:.0f} MiB resident")
        if samples.quiet_at is not None and (acked >= sent if by_topics else now > samples.quiet_at + seconds):
            return


def block_tape(directory: Path, frames: int) -> Path:
    """What is sent over and over: simulated trades and books of 15 levels, SIMPLE spelling.

    Of few markets, so that each has more trades in it than kcs remembers ids of a market.
    """
    short = directory / "short.zst"
    settings = SimSettings(rate=1000, channels=CHANNELS, markets=MARKETS)
    write_tape(short, settings, 12 * NS_PER_S, wire_format="SIMPLE", depth=15)
    return long_tape(short, directory / "block", frames)


def run(args: argparse.Namespace, directory: Path, bootstrap: str | None, node: RealKafka | None) -> Verdict:
    """Blast, watch, stop, judge."""
    tape = block_tape(directory, args.frames)
    block, samples, captures = ready_block(tape, args.frames), Samples(), directory / "captures"
    captures.mkdir()
    blaster = Blaster(tape, args.frames, args.seconds, samples)
    process = collector(blaster.url, bootstrap, captures)
    watch = Watch(process.pid, bootstrap, samples)
    reader = pass_on(process, samples)
    if node is not None:
        threading.Thread(target=freeze, args=(node, samples, args.seconds), daemon=True).start()
    try:
        wait_drained(samples, process, args.seconds, by_topics=bootstrap is not None)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        out = process.stdout.read()
        process.wait(60)
        reader.join()
        seen = blaster.end()
    finally:
        watch.end()
        process.kill()
        process.wait()
        blaster.kill()
    report = orjson.loads(out)
    verdict = Verdict(f"overload: {args.seconds:g} s, {'real Kafka' if bootstrap else 'embedded broker'}")
    judge(verdict, samples, seen, report, process.returncode)
    judge_content(verdict, block, seen["frames"], captures, bootstrap)
    return verdict


def main(argv: Sequence[str]) -> int:
    """The whole bench; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--frames", type=int, default=120_000, help="of the block that is sent over and over")
    parser.add_argument("-b", "--bootstrap", help="a Kafka that is there")
    parser.add_argument("--embedded", action="store_true", help="kcs's own broker; topics are not compared")
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kcs-overload-")))
        return run(args, directory, *stack.enter_context(kafka(args))).show()


if __name__ == "__main__":
    as_kcs()
