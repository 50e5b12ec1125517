"""More than the process can take, for a minute: does the socket live, is memory bounded, is all there in the end?

    python -m bench.faults overload --seconds 60          a real Kafka of its own (Java 17), else the embedded broker
    python -m bench.faults overload --seconds 60 -b HOST:PORT

A blaster (blaster.py) writes ready-made frames as fast as `kcs live` takes them. What is promised: one connection all
the while, our pings and the answers to the venue's in time, memory bounded, every frame captured and, once the follower
has caught up, in Kafka once and in order. The frames are compared one by one with what was sent (content.py). The
collector is `kcs live` as installed, except that it pings every `PING_EVERY_S` instead of every 20 s, so that there is
something to measure.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from bench.faults.blaster import STATUS, ready_block
from bench.faults.content import captured, expected, produced
from bench.faults.verdict import Verdict, say
from bench.tapes import NS_PER_S, ROOT, long_tape
from kcs.exchanges import VENUES, Heartbeat
from kcs.sim.settings import SimSettings
from kcs.sim.tape import write_tape
from tests.realkafka import KafkaUnavailable, RealKafka

PING_EVERY_S = 0.5
CHANNELS = ("trade", "orderbook")
MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP")
TEMPLATE = "overload.{channel}.{exchange}"
SAMPLE_EVERY_S = 0.25
DRAIN_TIMES_MAX = 10
"""The lag of a blast may take so many times the blast's length to drain."""

# Generous: a machine that is doing nothing else keeps well below them.
BLOCKED_SHARE_MIN = 0.5
PING_LATE_MAX_S = 1.0
PONG_P99_MAX_S = 2.0
PONG_MAX_S = 5.0
RSS_MAX_MIB = 512
RSS_GROWTH_MAX_MIB = 64


@dataclass(slots=True)
class Samples:
    """What was seen of the collector from outside. Times in seconds of `time.perf_counter`."""

    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: list[tuple[float, float]] = field(default_factory=list)
    acked: list[tuple[float, int]] = field(default_factory=list)
    sent: list[tuple[float, int]] = field(default_factory=list)
    quiet_at: float | None = None
    result: dict[str, Any] | None = None

    def rss_between(self, begin: float, end: float) -> list[float]:
        return [mib for at, mib in self.rss_mib if begin <= at < end] or [0.0]


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
def kafka(args: argparse.Namespace) -> Iterator[str | None]:
    """Where to produce to; None: kcs's embedded broker."""
    if args.bootstrap or args.embedded:
        yield args.bootstrap
        return
    node = RealKafka()
    try:
        bootstrap = node.start().bootstrap
    except KafkaUnavailable as error:
        say(f"no real Kafka ({error}): the embedded broker serves, contents of topics are not compared")
        yield None
        return
    with node:
        yield bootstrap


def collector(url: str, bootstrap: str | None, directory: Path) -> subprocess.Popen[bytes]:
    """`kcs live` on the blaster."""
    command = [sys.executable, "-m", "bench.faults.overload", "live", "--json", "--quiet"]
    command += ["--url", f"upbit={url}", "--channel", ",".join(CHANNELS), "--market", ",".join(MARKETS)]
    command += ["--capture", str(directory), "--topic", TEMPLATE, *(["-b", bootstrap] if bootstrap else [])]
    env = {name: value for name, value in os.environ.items() if not name.startswith("KCS_")}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE)


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


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("inf")


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def judge_line(verdict: Verdict, seen: dict[str, Any], report: dict[str, Any]) -> None:
    """The connection: overloaded, alive, in time."""
    seconds, frames = seen["seconds"], seen["frames"]
    verdict.tell("frames sent", f"{frames:,} in {seconds:.1f} s, {seen['bytes'] / seconds / 1e6:,.0f} MB/s")
    verdict.tell("frames taken a second", f"{frames / seconds:,.0f}")
    share = seen["blocked_s"] / seconds
    limit = f"> {BLOCKED_SHARE_MIN:.0%}"
    verdict.judge("time the socket took no more", f"{share:.0%}", limit, share > BLOCKED_SHARE_MIN)
    alive = seen["closed_by_client"] and not seen["error"] and report["reconnects"] == 0
    verdict.judge("the socket survives", f"{report['reconnects']} reconnects {seen['error']}", "closed by us", alive)
    blast = [at for at in seen["pings"] if at <= seconds]
    late = [b - a - PING_EVERY_S for a, b in itertools.pairwise(blast)]
    due = int(seconds / PING_EVERY_S * 0.8)
    verdict.judge("our pings while it blasts", len(blast), f"> {due}", len(blast) > due)
    name = "our pings leave late by p50 / p99 / max"
    shown = " / ".join(map(ms, (median(late or [9.9]), quantile(late, 0.99), max(late, default=9.9))))
    verdict.judge(name, shown, f"max < {ms(PING_LATE_MAX_S)}", max(late, default=9.9) < PING_LATE_MAX_S)
    pongs = seen["pong_s"][: seen["blasted_pongs"]]
    p99, most = quantile(pongs, 0.99), max(pongs, default=9.9)
    shown = " / ".join(map(ms, (quantile(pongs, 0.5), p99, most)))
    gate = f"p99 < {ms(PONG_P99_MAX_S)}, max < {ms(PONG_MAX_S)}"
    ok = p99 < PONG_P99_MAX_S and most < PONG_MAX_S
    verdict.judge(f"answers to {len(pongs)} pings of the venue p50 / p99 / max", shown, gate, ok)
    verdict.judge("pings not answered", seen["unanswered"], "< 2", seen["unanswered"] < 2)


def judge_memory(verdict: Verdict, samples: Samples) -> None:
    """Bounded, and not growing with the lag."""
    begin, end = samples.sent[0][0], samples.quiet_at or samples.sent[-1][0]
    third = (end - begin) / 3
    first, last = samples.rss_between(begin, begin + third), samples.rss_between(end - third, end)
    cpu = [used for at, used in samples.cpu_s if begin <= at < end]
    if len(cpu) > 1:
        used = cpu[-1] - cpu[0]
        share = f"{used / (end - begin):.0%} of a core"
        verdict.tell("processor time of the collector", f"{share}, {used / samples.sent[-1][1] * 1e6:.1f} us a frame")
    most = max(mib for _, mib in samples.rss_mib)
    verdict.judge("resident memory, most", f"{most:.0f} MiB", f"< {RSS_MAX_MIB} MiB", most < RSS_MAX_MIB)
    growth = median(last) - median(first)
    name, limit = "from the first third of the blast to the last", f"< {RSS_GROWTH_MAX_MIB} MiB"
    verdict.judge(name, f"{growth:+.0f} MiB", limit, growth < RSS_GROWTH_MAX_MIB)


def judge_lag(verdict: Verdict, samples: Samples, report: dict[str, Any]) -> None:
    """Fell behind, and caught up."""
    assert samples.quiet_at is not None
    sent = samples.sent[-1][1]
    lag = max((total - acked for total, acked in _together(samples)), default=0)
    verdict.tell("most frames behind", f"{lag:,}")
    drained = next((at for at, acked in samples.acked if acked >= sent), None)
    seconds = samples.quiet_at - samples.sent[0][0]
    shown = "never" if drained is None else f"{max(0.0, drained - samples.quiet_at):.1f} s"
    ok = drained is not None and drained - samples.quiet_at < DRAIN_TIMES_MAX * seconds
    verdict.judge("the lag drains after the blast", shown, f"< {DRAIN_TIMES_MAX * seconds:.0f} s", ok)
    verdict.judge("the follower fell behind and met the present", report["catch_ups"], "> 0", bool(report["catch_ups"]))


def _together(samples: Samples) -> Iterator[tuple[int, int]]:
    """(sent, acked) at about the same times."""
    for at, acked in samples.acked:
        sent = [frames for when, frames in samples.sent if when <= at]
        if sent:
            yield sent[-1], acked


def judge_content(verdict: Verdict, block: list[bytes], sent: int, directory: Path, bootstrap: str | None) -> None:
    """Every frame sent is in the capture, in order, and in Kafka once."""
    files = sorted(directory.glob("*.zst"), key=lambda path: path.stat().st_mtime_ns)
    held = captured(files, block, STATUS)
    for text in held.wrong:
        say(text)
    verdict.judge(
        "frames captured, byte for byte in order",
        f"{held.frames:,}",
        f"{sent:,}",
        held.frames == sent and not held.wrong,
    )
    if bootstrap is None:
        return
    found = produced(bootstrap, TEMPLATE, CHANNELS, held, expected(block))
    for text in found.wrong:
        say(text)
    verdict.judge("their records in Kafka, once each", f"{found.records:,}", f"{sent:,}", found.records == sent)
    bad = (found.repeated, found.foreign, found.unordered, len(found.wrong))
    verdict.judge("records twice / foreign / out of order / wrong", " / ".join(map(str, bad)), "none", not any(bad))


def judge_ledger(verdict: Verdict, report: dict[str, Any], code: int) -> None:
    """What kcs says of itself."""
    frames, records = report["frames"], report["records"]
    balanced = frames["received"] == frames["captured"] + frames["uncaptured"] and not frames["uncaptured"]
    parsed = frames["parsed"] + sum(frames["ignored"].values()) + sum(frames["rejected"].values()) + frames["behind"]
    balanced = balanced and frames["captured"] == parsed and not frames["behind"]
    balanced = balanced and records["acked"] == records["produced"]
    verdict.judge("its own ledger", f"{records['acked']:,} of {records['produced']:,} acked", "balances", balanced)
    receipts = [capture["receipt"] for capture in report["captures"]]
    verdict.judge("exit code", code, "130: ended by a signal", code == 130)
    verdict.tell("captures / receipts", f"{len(receipts)} / {sum(r is not None for r in receipts)}")
    verdict.tell("loop lag p99 / max", f"{report['loop_lag_ms']['p99']:.0f} / {report['loop_lag_ms']['max']:.0f} ms")


def block_tape(directory: Path, frames: int) -> Path:
    """What is sent over and over: simulated trades and books of 15 levels, SIMPLE spelling.

    Of few markets, so that each has more trades in it than kcs remembers ids of a market.
    """
    short = directory / "short.zst"
    settings = SimSettings(rate=1000, channels=CHANNELS, markets=MARKETS)
    write_tape(short, settings, 12 * NS_PER_S, wire_format="SIMPLE", depth=15)
    return long_tape(short, directory / "block", frames)


def run(args: argparse.Namespace, directory: Path, bootstrap: str | None) -> Verdict:
    """Blast, watch, stop, judge."""
    tape = block_tape(directory, args.frames)
    block, samples, captures = ready_block(tape, args.frames), Samples(), directory / "captures"
    captures.mkdir()
    blaster = Blaster(tape, args.frames, args.seconds, samples)
    process = collector(blaster.url, bootstrap, captures)
    watch = Watch(process.pid, bootstrap, samples)
    try:
        wait_drained(samples, process, args.seconds, by_topics=bootstrap is not None)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60 + 10 * args.seconds)
        seen = blaster.end()
    finally:
        watch.end()
        process.kill()
        process.wait()
        blaster.kill()
    report = orjson.loads(out)
    verdict = Verdict(f"overload: {args.seconds:g} s, {'real Kafka' if bootstrap else 'embedded broker'}")
    judge_line(verdict, seen, report)
    judge_memory(verdict, samples)
    if bootstrap is not None:
        judge_lag(verdict, samples, report)
    judge_content(verdict, block, seen["frames"], captures, bootstrap)
    judge_ledger(verdict, report, process.returncode)
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
        return run(args, directory, stack.enter_context(kafka(args))).show()


if __name__ == "__main__":
    as_kcs()
