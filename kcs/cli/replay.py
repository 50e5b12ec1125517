"""`kcs replay`: captures through the live pipeline into Kafka, stdout or nothing, at 1x, Nx or full speed."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.report import RunReport
from kcs.cli.terminal import progress, put_json, say, table
from kcs.config import Config, format_time, load, parse_pairs, parse_time_ns


def replay(
    captures: options.Captures,
    speed: Annotated[str, typer.Option(help="max, 1, 0.5, 10, ...")] = "max",
    sink: Annotated[str, typer.Option(help="kafka, stdout or null.")] = "kafka",
    from_: options.From = None,
    to: options.To = None,
    loop: Annotated[int, typer.Option(min=1, help="Play it N times.")] = 1,
    bootstrap: options.Bootstrap = None,
    topic: options.Topic = None,
    partitions: options.Partitions = None,
    replication: options.Replication = None,
    x: options.Property = None,
    no_headers: options.NoHeaders = False,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Push captures through the parser and producer of live. The exit code is the ledger's.

    Topics default to replay.{channel}.{exchange}, so that a replay never lands among live records by accident. Several
    files are merged by time. Nothing is dropped to keep up: a slow consumer makes it late, and that is reported.
    """
    import os

    from kcs.cli.running import run_async
    from kcs.replay.pacing import parse_speed
    from kcs.replay.source import plan as plan_sources

    settings = load(
        {
            "bootstrap": bootstrap,
            "topic": topic,
            "partitions": partitions,
            "replication": replication,
            "kafka": parse_pairs(x, "-X") if x else None,
            "headers": False if no_headers else None,
        },
        os.environ,
        config,
    )
    factor = parse_speed(speed)
    sources = plan_sources(captures)
    first_ns = next((source.first_ns for source in sources if source.first_ns is not None), None)
    from_ns = None if from_ is None else parse_time_ns(from_, "--from", first_ns)
    to_ns = None if to is None else parse_time_ns(to, "--to", first_ns)
    for source in sources:
        if not source.sealed:
            say(f"kcs: {source.path} is not sealed (a crash, or still being written): `kcs recover` makes it whole")
    job = Job(settings, sources, factor, speed, sink, from_ns, to_ns, loop, quiet or json)
    report = run_async(job.run)
    if json and sink != "stdout":
        put_json(report.as_json())
    elif not quiet:
        table(report.lines(), title="kcs replay")
    return report.exit_code()


class Job:
    """One replay, from settings to report."""

    def __init__(
        self,
        config: Config,
        sources: Any,
        speed: Fraction | None,
        speed_text: str,
        sink: str,
        from_ns: int | None,
        to_ns: int | None,
        loops: int,
        quiet: bool,
    ) -> None:
        from kcs.replay.engine import Plan

        self.config = config
        self.plan = Plan(sources, speed, from_ns, to_ns, loops)
        self.speed_text = speed_text
        self.sink = sink
        self.quiet = quiet or sink == "stdout"

    async def run(self) -> RunReport:
        from kcs.cli.running import interruptible, measured
        from kcs.cli.sinks import REPLAY_TOPIC, open_sink, warned
        from kcs.clock import SystemClock
        from kcs.exchanges import unverifiable
        from kcs.replay.engine import Progress
        from kcs.replay.engine import replay as play
        from kcs.stats import Ledger

        warnings = warned(self.sink, self.config)
        clock, ledger, sources = SystemClock(), Ledger(), self.plan.sources
        oldest_ns = min((s.first_ns for s in sources if s.first_ns is not None), default=None)
        newest_ns = max((s.last_ns for s in sources if s.last_ns is not None), default=None)
        async with open_sink(
            self.sink,
            self.config,
            exchanges=sorted({source.exchange for source in sources}),
            clock=clock,
            template=REPLAY_TOPIC,
            retain=True,
            oldest_ns=oldest_ns,
        ) as sink:
            total = (newest_ns - oldest_ns) / 1e9 if oldest_ns is not None and newest_ns is not None else None
            with interruptible() as stop, measured(clock) as meters, progress("replay", total, quiet=self.quiet) as bar:

                def show(at: Progress) -> None:
                    done = (at.position_ns - (oldest_ns or 0)) / 1e9
                    bar.update(done, f"{at.frames:,} frames, {format_time(at.position_ns)}")

                result = await play(self.plan, sink, ledger, clock, stop=stop, force=stop.force, on_progress=show)
        ledger.check()
        played = result.played
        return RunReport(
            verb="replay",
            seconds=result.seconds,
            ledger=ledger,
            captures=[
                {"path": str(p.path), "id": p.capture_id.hex(), "digest": p.digest, "receipt": None} for p in played
            ],
            digest=played[0].digest if len(played) == 1 and not ledger.lost else None,
            unverifiable=unverifiable(source.exchange for source in sources),
            speed_asked=self.speed_text,
            speed_reached=result.speed_reached,
            lateness=result.lateness,
            gc=meters.gc.report(),
            loop_lag=meters.loop.report_ms(),
            delivers=self.sink != "null",
            interrupted=result.interrupted,
            warnings=warnings,
        )
