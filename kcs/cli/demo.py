"""`kcs demo`: simulator, live collector, embedded broker, replay, proof; nothing needed but Python."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.terminal import put_json, say, table
from kcs.errors import KcsError

if TYPE_CHECKING:
    from kcs.cli.report import RunReport

PARSE_LIMIT_US_PER_KB = 50.0
ACK_LIMIT_MS = 2.0
RATE_LIMIT = 10_000.0
GC_LIMIT = 0.01
SIMULATOR_START_S = 20.0
PARSE_SAMPLE_BYTES = 64 * 1024 * 1024


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long live runs.")] = 5.0,
    rate: Annotated[int, typer.Option(min=1, help="Frames per second that the simulator sends.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Seed of the simulated market.")] = 7,
    capture: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the capture here. [a temporary directory, removed]")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Run the whole loop for a few seconds: simulate, collect, capture, produce, seal, replay, compare digests."""
    import tempfile

    from kcs.cli.running import run_async

    with tempfile.TemporaryDirectory(prefix="kcs-demo-") as temporary:
        outcome = run_async(lambda: _demo(capture or Path(temporary), seconds, rate, seed, quiet=quiet or json))
    if json:
        put_json(outcome.as_json())
    else:
        outcome.show()
    return outcome.exit_code()


class _Outcome:
    """Both runs and the figures beside their targets."""

    def __init__(self, live: RunReport, replay: RunReport, parse_us_per_kb: float | None) -> None:
        self.live = live
        self.replay = replay
        self.parse_us_per_kb = parse_us_per_kb

    @property
    def equal(self) -> bool:
        return self.live.digest is not None and self.live.digest == self.replay.digest

    def exit_code(self) -> int:
        if self.live.interrupted or self.replay.interrupted:
            return self.live.exit_code() or self.replay.exit_code()
        return self.live.exit_code() or self.replay.exit_code() or (0 if self.equal else 3)

    def figures(self) -> list[tuple[str, str, str, bool | None]]:
        """(metric, target, measured, met)."""
        ack = self.live.ack_latency.report_ms() if self.live.ack_latency and self.live.ack_latency.count else None
        p50 = ack["p50"] if ack else None
        speed = self.replay.ledger.received / self.replay.seconds if self.replay.seconds > 0 else None
        share = self.live.gc.share if self.live.gc else None
        parse = self.parse_us_per_kb
        return [
            (
                "parse",
                f"< {PARSE_LIMIT_US_PER_KB:.0f} us per KB",
                "-" if parse is None else f"{parse:.2f} us per KB",
                None if parse is None else parse < PARSE_LIMIT_US_PER_KB,
            ),
            (
                "websocket receive to Kafka ack",
                f"< {ACK_LIMIT_MS:.0f} ms",
                "-" if ack is None else f"p50 {ack['p50']:.2f}, p99 {ack['p99']:.2f} ms",
                None if p50 is None else p50 < ACK_LIMIT_MS,
            ),
            (
                "replay through parser and Kafka",
                f"> {RATE_LIMIT:,.0f} frames/s",
                "-" if speed is None else f"{speed:,.0f} frames/s",
                None if speed is None else speed > RATE_LIMIT,
            ),
            (
                "garbage collection",
                f"< {GC_LIMIT:.0%} of the time",
                "-" if share is None else f"{share:.3%}",
                None if share is None else share < GC_LIMIT,
            ),
        ]

    def as_json(self) -> dict[str, Any]:
        report = self.live.as_json()
        report["verb"] = "demo"
        report["replay"] = self.replay.as_json()
        report["digests_equal"] = self.equal
        report["parse_us_per_kb"] = None if self.parse_us_per_kb is None else round(self.parse_us_per_kb, 3)
        report["targets"] = [
            {"metric": metric, "target": target, "measured": measured, "met": met}
            for metric, target, measured, met in self.figures()
        ]
        return report

    def show(self) -> None:
        table(self.live.lines(), title="\nlive (simulator -> capture -> parser -> embedded Kafka)")
        table(self.replay.lines(), title="\nreplay (the sealed capture -> the same parser -> embedded Kafka)")
        say("\nproof")
        say(f"  live digest    {self.live.digest or '- (nothing was proven)'}")
        say(f"  replay digest  {self.replay.digest or '-'}")
        say(f"  {'EQUAL: live and replay made the same records, byte for byte' if self.equal else 'NOT EQUAL'}")
        say("\nfigures of this machine                 target              measured")
        for metric, target, measured, met in self.figures():
            verdict = "-" if met is None else "met" if met else "MISSED"
            say(f"  {metric:<36}  {target:<18}  {measured:<26}  {verdict}")


async def _demo(directory: Path, seconds: float, rate: int, seed: int, *, quiet: bool) -> _Outcome:
    from kcs.cli.collecting import collect
    from kcs.cli.replay import Job
    from kcs.config import Config
    from kcs.kafka.embedded import EmbeddedBroker
    from kcs.replay.source import plan
    from kcs.sim.catalogue import DEFAULT_MARKETS

    with EmbeddedBroker() as broker:
        async with _simulator(seed, rate) as url:
            say(f"kcs demo: simulated Upbit at {url}, seed {seed}, {rate:,} frames/s; embedded broker; {directory}/")
            config = Config(
                url={"upbit": url},
                market=tuple(DEFAULT_MARKETS),
                bootstrap=broker.bootstrap,
                capture=str(directory),
                duration=f"{seconds:.3f}s",
            )
            live = await collect("live", "kafka", config, quiet=quiet)
        paths = [Path(capture["path"]) for capture in live.captures]
        say(f"kcs demo: sealed {', '.join(path.name for path in paths)}; replaying it at full speed")
        replay = await Job(config, plan(paths), None, "max", "kafka", None, None, 1, quiet).run()
    return _Outcome(live, replay, _parse_cost(paths))


@asynccontextmanager
async def _simulator(seed: int, rate: int) -> AsyncIterator[str]:
    """`kcs sim` in a process of its own, so that it does not share the collector's loop; yields its URL."""
    import asyncio  # 30 ms that `kcs --help` can do without

    arguments = ("sim", "--port", "0", "--seed", str(seed), "--rate", str(rate), "--epoch", "now")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kcs", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), SIMULATOR_START_S)).decode().strip()
        if not url:
            told = (await process.stderr.read(4096)).decode("utf-8", "replace").strip()
            raise KcsError(f"the simulator did not start: {told}", remedy="kcs sim --port 0")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        # Read to the end: a full pipe would keep the process from exiting.
        await process.communicate()


def _parse_cost(paths: Sequence[Path]) -> float | None:
    """Microseconds of parsing per KB of frame, over the frames just captured."""
    from kcs.capture.reader import CaptureReader
    from kcs.clock import SystemClock
    from kcs.errors import FrameIgnored, FrameRejected
    from kcs.exchanges import venue
    from kcs.model import FRAME_KINDS

    clock, spent_ns, size = SystemClock(), 0, 0
    for path in paths:
        with CaptureReader(path) as reader:
            parse = venue(reader.header.exchange).adapter().parse
            for batch in reader.batches():
                frames = [(r[2], r[3], r[4]) for r in batch if r[1] in FRAME_KINDS]
                size += sum(len(payload) for _, _, payload in frames)
                began_ns = clock.monotonic_ns()
                for stream, recv_ns, payload in frames:
                    try:
                        parse(stream, recv_ns, payload)
                    except (FrameIgnored, FrameRejected):
                        continue
                spent_ns += clock.monotonic_ns() - began_ns
            if size > PARSE_SAMPLE_BYTES:
                break
    return spent_ns / 1000 / (size / 1024) if size else None
