"""`kcs recover` and `kcs repack`: what a crash or damage left, made whole, delivered to its end; and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kcs.cli import options
from kcs.cli.report import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOSS, EXIT_OK
from kcs.cli.terminal import Bar, progress, put_json, say, table
from kcs.errors import CaptureError, UndeliverableError, UsageError

if TYPE_CHECKING:
    from kcs.config import Config
    from kcs.deliver import Delivered


def recover(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN OUT | --produce FILE...",
            help="A capture that was cut, damaged or never sealed, and the sealed one to write; or those to deliver.",
            readable=False,
        ),
    ],
    produce: Annotated[
        bool, typer.Option("--produce", help="Seal FILE in place where it is not, and deliver what Kafka lacks of it.")
    ] = False,
    bootstrap: Annotated[
        str | None, typer.Option("-b", "--bootstrap", metavar="HOST:PORT,...", help="Kafka, for --produce.")
    ] = None,
    x: options.Property = None,
    settle: Annotated[
        str | None, typer.Option(help="Let what the dead process had under way arrive before looking. [5s]")
    ] = None,
    config: options.ConfigFile = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Save every intact record of IN in a new sealed capture OUT, same id and numbers. Exit 3: some are missing.

    With --produce: after a crash, deliver captures to their end without going live, as the next `kcs live` would.
    What is in Kafka already stays, exactly the rest is produced, to where the delivery file beside the capture says.
    """
    if produce:
        if force:
            raise UsageError("--force is for IN OUT: with --produce nothing is overwritten")
        return _produce(files, _config(bootstrap, x, settle, config), json=json, quiet=quiet)
    if bootstrap is not None or x or settle is not None:
        raise UsageError("-b, -X and --settle are for --produce", remedy="kcs recover --produce FILE... -b HOST:PORT")
    if len(files) != 2:
        what = f"IN and OUT are wanted, {len(files)} names are given"
        raise UsageError(what, remedy="kcs recover IN OUT, or kcs recover --produce FILE... -b HOST:PORT")
    return _save(files[0], files[1], force=force, json=json)


def _save(source: Path, out: Path, *, force: bool, json: bool) -> int:
    import msgspec

    from kcs.capture.info import describe_damage
    from kcs.capture.recover import recover as recover_capture

    report = recover_capture(source, out, force=force)
    if json:
        put_json({"verb": "recover", **msgspec.to_builtins(report)})
    else:
        rows = [("written", f"{report.target}: {report.records:,} records, {report.bytes:,} bytes")]
        rows += [("damage", describe_damage(damage).split(maxsplit=1)[1]) for damage in report.damage]
        if report.missing:
            rows.append(("missing", f"{report.missing:,} records, lost for good"))
        table(rows, title="kcs recover")
    return EXIT_OK if report.complete else EXIT_LOSS


def repack(captures: options.Captures, json: options.Json = False) -> int:
    """Rewrite sealed captures with larger chunks: the same records, numbers, id and digest in a smaller file.

    A live capture is written in chunks of a quarter of a second, so that a kill costs no more; large ones pack better.
    """
    import msgspec

    from kcs.capture.recover import repack as repack_capture

    for path in captures:
        report = repack_capture(path)
        if json:
            put_json({"verb": "repack", **msgspec.to_builtins(report)})
        else:
            chunks = f"{report.chunks_before:,} -> {report.chunks_after:,} chunks"
            table([(str(path), f"{report.bytes_before:,} -> {report.bytes_after:,} bytes, {chunks}")])
    return EXIT_OK


# --- --produce --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Outcome:
    """What became of one FILE. `done` None: it had been delivered before, or `error` says why not."""

    path: Path
    capture_id: str = ""
    exchange: str = ""
    order: tuple[int, int] = (0, 0)
    sealed: bool = True
    cut: int = 0
    done: Delivered | None = None
    error: str | None = None

    @property
    def code(self) -> int:
        done = self.done
        if self.error is not None:
            return EXIT_FAILED
        if done is None or (done.complete and not done.ledger.lost and not done.orphans and done.missing is None):
            return EXIT_OK
        return EXIT_INTERRUPTED if done.stopped and not done.ledger.failed else EXIT_LOSS


def _config(bootstrap: str | None, x: list[str] | None, settle: str | None, config: Path | None) -> Config:
    import os

    from kcs.config import load, parse_pairs

    flags = {"bootstrap": bootstrap, "settle": settle, "kafka": parse_pairs(x, "-X") if x else None}
    settings = load(flags, os.environ, config)
    if settings.bootstrap is None:
        what = "--produce goes on with what a Kafka cluster has already, and none is named"
        raise UsageError(what, remedy="-b HOST:PORT, or KCS_BOOTSTRAP")
    return settings


def _produce(files: Sequence[Path], config: Config, *, json: bool, quiet: bool) -> int:
    from kcs.cli.running import run_async
    from kcs.cli.sinks import warned
    from kcs.clock import NS_PER_S, SystemClock

    settle_s, warnings = config.settle_s, warned("kafka", config)
    clock = SystemClock()
    started_ns = clock.monotonic_ns()
    outcomes = sorted((_prepared(path) for path in files), key=lambda outcome: outcome.order)
    with progress("recover", None, quiet=quiet or json) as bar:
        run_async(lambda: _deliver(outcomes, config, settle_s, clock, bar))
    seconds = (clock.monotonic_ns() - started_ns) / NS_PER_S
    if json:
        put_json(_as_json(outcomes, seconds, warnings))
    elif not quiet:
        for outcome in outcomes:
            table(_rows(outcome), title=str(outcome.path))
    codes = {outcome.code for outcome in outcomes}
    return next(code for code in (EXIT_FAILED, EXIT_LOSS, EXIT_INTERRUPTED, EXIT_OK) if code in codes)


def _prepared(path: Path) -> _Outcome:
    """Seal it if it is not, as far as that goes, and look at its header."""
    from kcs.capture.leftover import PARTIAL, seal_in_place
    from kcs.capture.reader import CaptureReader
    from kcs.errors import CaptureBusyError, CaptureWriteError
    from kcs.live.backlog import described

    outcome = _Outcome(path)
    try:
        if path.name.endswith(PARTIAL) and path.exists():
            try:
                sealed = seal_in_place(path)
            except CaptureWriteError as error:
                say(f"kcs: delivering it as it is: {error}")
            else:
                say(f"kcs: {described(sealed)}")
                outcome.path, outcome.cut = sealed.capture.path, sealed.cut
        with CaptureReader(outcome.path, strict=False) as reader:
            header = reader.header
            outcome.path, outcome.sealed = reader.path, reader.sealed
        outcome.capture_id, outcome.exchange = header.capture_id.hex(), header.exchange
        outcome.order = header.created_ns, header.sequence
    except CaptureBusyError as error:
        outcome.error = str(CaptureBusyError("its collector is still running", where=error.where, remedy="stop it"))
    except CaptureError as error:
        outcome.error = str(error)
    return outcome


async def _deliver(outcomes: Sequence[_Outcome], config: Config, settle_s: float, clock: Any, bar: Bar) -> None:
    """One after the other. Raises KafkaError; what came before it is delivered."""
    from kcs.cli.running import interruptible
    from kcs.deliver import deliver
    from kcs.kafka.settings import KafkaSettings
    from kcs.live.receipt import has_receipt

    assert config.bootstrap is not None
    settings = KafkaSettings(
        config.bootstrap, partitions=config.partitions, replication=config.replication, properties=config.kafka
    )
    with interruptible() as stop:
        for outcome in outcomes:
            if outcome.error is not None or has_receipt(outcome.path):
                continue

            def show(fed: int, outcome: _Outcome = outcome) -> None:
                bar.update(0.0, f"{outcome.path.name}: {fed:,} records")

            try:
                outcome.done = await deliver(
                    outcome.path, settings, clock, settle_s=settle_s, stop=stop, on_progress=show
                )
            except (CaptureError, UndeliverableError) as error:
                outcome.error = str(error)
            else:
                settle_s = 0.0


def _as_json(outcomes: Sequence[_Outcome], seconds: float, warnings: Sequence[str]) -> dict[str, Any]:
    captures = [_capture_json(outcome) for outcome in outcomes]
    counted = [capture["records"] for capture in captures if capture["records"] is not None]
    return {
        "verb": "recover",
        "seconds": round(seconds, 6),
        "records": {name: sum(one[name] for one in counted) for name in _COUNTS},
        "uncaptured": sum(capture["uncaptured"] or 0 for capture in captures),
        "captures": captures,
        "warnings": list(warnings),
    }


_COUNTS = ("produced", "already", "acked", "failed", "in_flight")


def _capture_json(outcome: _Outcome) -> dict[str, Any]:
    import msgspec

    done = outcome.done
    shown: dict[str, Any] = {
        "path": str(outcome.path),
        "id": outcome.capture_id or None,
        "exchange": outcome.exchange or None,
        "sealed": outcome.sealed,
        "cut": outcome.cut,
        "delivered": None if outcome.error is not None else done is None or done.complete,
        "records": None,
        "uncaptured": None,
        "missing": None,
        "digest": None,
        "receipt": None,
        "error": outcome.error,
    }
    if done is not None:
        ledger = done.ledger
        counts = (ledger.produced, done.already, ledger.acked - done.already, ledger.failed, ledger.in_flight)
        shown["records"] = dict(zip(_COUNTS, counts, strict=True))
        shown["uncaptured"] = None if done.stopped else done.orphans
        shown["missing"] = None if done.missing is None else msgspec.to_builtins(done.missing)
        shown["digest"] = done.digest
        shown["receipt"] = None if done.receipt is None else str(done.receipt)
    return shown


def _rows(outcome: _Outcome) -> list[tuple[str, str]]:
    if outcome.error is not None:
        return [("FAILED", outcome.error)]
    done = outcome.done
    if done is None:
        return [("delivered", "before: it has a receipt")]
    ledger = done.ledger
    sent = ledger.acked - done.already
    rows = [("records", f"{ledger.produced:,} in all: {done.already:,} were in Kafka already, {sent:,} delivered now")]
    if done.digest:
        rows.append(("digest", done.digest))
    if done.receipt is not None:
        rows.append(("receipt", str(done.receipt)))
    elif done.unreceipted is not None:
        rows.append(("receipt", f"none, all is delivered all the same: {done.unreceipted}"))
    elif not done.stopped:
        rows.append(("receipt", "none: it could not be sealed; run this again when that is cured"))
    if done.orphans:
        rows.append(
            ("UNCAPTURED", f"{done.orphans:,} records in Kafka are of frames that died before they reached the disk")
        )
    if done.missing is not None:
        lost = "an unknown number of" if done.missing.records is None else f"{done.missing.records:,}"
        rows.append(("MISSING", f"{lost} records of the capture"))
        rows += [("", text) for text in done.missing.damage]
    if ledger.failed:
        rows.append(("FAILED", f"{ledger.failed:,} records were refused by the broker"))
    if done.stopped:
        rows.append(("STOPPED", f"{ledger.in_flight:,} records in flight; run it again, it goes on from here"))
    return rows
