"""`kcs sim`: a deterministic exchange on a port, or on tape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kcs.cli import options
from kcs.cli.terminal import put_json, put_lines, say, table


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
        typer.Option(metavar="NAME=VALUE", help="Faults on purpose; repeatable. See docs/simulator.md."),
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
    from kcs.model import CHANNELS
    from kcs.sim.catalogue import DEFAULT_MARKETS
    from kcs.sim.faults import parse_faults
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
    if out is not None:
        return _tape(settings, out, format_, force=force, json=json)
    return run_async(lambda: _serve(settings, json))


def _tape(settings: object, out: Path, format_: str, *, force: bool, json: bool) -> int:
    from kcs.errors import UsageError
    from kcs.sim.settings import SimSettings
    from kcs.sim.tape import write_tape

    assert isinstance(settings, SimSettings)
    if settings.duration_ns is None:
        raise UsageError("a tape needs an end", where="kcs sim --out", remedy="--duration 10s")
    report = write_tape(out, settings, settings.duration_ns, wire_format=format_, force=force)
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
            }
        )
    else:
        table(
            [("capture", str(out)), ("records", f"{report.records:,}"), ("bytes", f"{report.bytes:,}")], title="kcs sim"
        )
    return 0


async def _serve(settings: object, json: bool) -> int:
    import asyncio
    import dataclasses

    from kcs.cli.running import interruptible
    from kcs.clock import SystemClock
    from kcs.sim.server import serve
    from kcs.sim.settings import SimSettings

    assert isinstance(settings, SimSettings)
    server = await serve(settings, SystemClock())
    say(
        f"kcs sim: {settings.exchange} on ws://{settings.host}:{server.port}, seed {settings.seed}, {settings.rate:,}/s"
    )
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
        put_json(dataclasses.asdict(stats))
    else:
        table(
            [(key.replace("_", " "), f"{value:,}") for key, value in dataclasses.asdict(stats).items()], title="kcs sim"
        )
    return 130 if interrupted else 0
