"""`kcs sim`: a deterministic exchange on a port, or on tape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kcs.cli import options
from kcs.cli.terminal import put_json, put_lines, say, table

if TYPE_CHECKING:
    from kcs.sim.fault_log import SimFaultLog
    from kcs.sim.settings import SimSettings


def sim(
    exchange: Annotated[str, typer.Option(help="Whose dialect to speak.")] = "upbit",
    port: Annotated[int, typer.Option(help="TCP port on --host; 0 picks one.")] = 9801,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 7,
    rate: Annotated[int, typer.Option(help="Frames per second over all markets and channels.")] = 1000,
    market: Annotated[
        list[str] | None, typer.Option(help="Repeatable or comma separated; default: all simulated.")
    ] = None,
    channel: Annotated[list[str] | None, typer.Option(help="Repeatable or comma separated; default: all.")] = None,
    burst: Annotated[int, typer.Option(help="Rate inside a burst, in percent of the mean; 100: no bursts.")] = 200,
    epoch: Annotated[
        str | None, typer.Option(help="Venue time at the start: RFC 3339, or `now`. Default: a fixed date.")
    ] = None,
    duration: Annotated[str | None, typer.Option(help="Stop after this time (30s, 10m).")] = None,
    frames: Annotated[int | None, typer.Option(help="Stop after this many market frames.")] = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT,...", help="Faults on purpose, such as drop=1% or chaos; repeatable. See docs/simulator.md."
        ),
    ] = None,
    faults_log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each fault that was done, as NDJSON.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a capture in virtual time instead of serving (needs --duration).")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="Wire format on tape.")] = "DEFAULT",
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Run a seeded exchange: a market whose book and trades agree, in the venue's own dialect and by its own rules.

    kcs live --url upbit=ws://127.0.0.1:9801 connects to it as to the real one.
    """
    from kcs.cli.running import run_async
    from kcs.config import parse_duration_ns, parse_time_ns, split_names
    from kcs.errors import UsageError
    from kcs.model import CHANNELS
    from kcs.sim.catalogue import DEFAULT_MARKETS
    from kcs.sim.fault_log import FaultLogFile, SimFaultLog
    from kcs.sim.fault_text import parse_faults
    from kcs.sim.settings import DEFAULT_EPOCH_NS, SimSettings

    epoch_ns = DEFAULT_EPOCH_NS if epoch is None else None if epoch == "now" else parse_time_ns(epoch, "--epoch", None)
    settings = SimSettings(
        exchange=exchange,
        seed=seed,
        rate=rate,
        markets=tuple(split_names(market or [])) or DEFAULT_MARKETS,
        channels=tuple(split_names(channel or [])) or CHANNELS,
        epoch_ns=epoch_ns,
        burst_percent=burst,
        duration_ns=None if duration is None else parse_duration_ns(duration, "--duration"),
        frames_max=frames,
        host=host,
        port=port,
        faults=parse_faults(faults or []),
    )
    if out is not None and settings.duration_ns is None:
        raise UsageError("a tape needs an end", where="kcs sim --out", remedy="--duration 10s")
    file = None if faults_log is None else FaultLogFile(faults_log, force=force)
    log = SimFaultLog(entries_max=0, sink=None if file is None else file.write)
    try:
        if out is not None:
            code = _tape(settings, out, format_, log, force=force, json=json)
        else:
            code = run_async(lambda: _serve(settings, log, json))
    finally:
        if file is not None:
            file.close()
    if file is not None and file.failed is not None:
        raise file.failed
    return code


def _tape(settings: SimSettings, out: Path, format_: str, log: SimFaultLog, *, force: bool, json: bool) -> int:
    from kcs.sim.tape import write_tape

    assert settings.duration_ns is not None
    report = write_tape(out, settings, settings.duration_ns, wire_format=format_, force=force, fault_log=log)
    if json:
        put_json(
            {
                "verb": "sim",
                "path": str(report.path),
                "id": report.capture_id.hex(),
                "records": report.records,
                "frames": report.frames,
                "bytes": report.bytes,
                "reconnects": report.reconnects,
                **log.report(),
            }
        )
    else:
        rows = [("capture", str(out)), ("records", f"{report.records:,}"), ("bytes", f"{report.bytes:,}")]
        table([*rows, *_done(log)], title="kcs sim")
    return 0


async def _serve(settings: SimSettings, log: SimFaultLog, json: bool) -> int:
    import asyncio
    import dataclasses

    from kcs.cli.running import interruptible
    from kcs.clock import SystemClock
    from kcs.sim.server import serve

    server = await serve(settings, SystemClock(), fault_log=log)
    say(
        f"kcs sim: {settings.exchange} on ws://{settings.host}:{server.port}, seed {settings.seed}, {settings.rate:,}/s"
    )
    if settings.faults:
        say(f"kcs sim: faults on purpose: {settings.faults}")
    put_lines([server.url])
    with interruptible() as stop:
        stopping = asyncio.ensure_future(stop.wait())
        ended = asyncio.ensure_future(server.wait_ended())
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = stopping.done()
        for task in (stopping, ended):
            task.cancel()
    stats = server.stats()
    await server.aclose()
    if json:
        put_json({**dataclasses.asdict(stats), **log.report()})
    else:
        rows = [(key.replace("_", " "), f"{value:,}") for key, value in dataclasses.asdict(stats).items()]
        table([*rows, *_done(log)], title="kcs sim")
    return 130 if interrupted else 0


def _done(log: SimFaultLog) -> list[tuple[str, str]]:
    """What was done wrong on purpose, as rows of a table."""
    report = log.report()
    lost = report["frames_lost"]
    return [
        (f"fault {name}", f"{count:,}" + (f", {lost[name]:,} frames lost" if lost.get(name) else ""))
        for name, count in report["faults"].items()
    ]
