"""`kcs live` and `kcs capture` against the simulator, as processes: signals, reports, kills, a second collector."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY

import pytest

from kcs.capture.reader import CaptureReader
from kcs.model import CloseFields, Kind
from kcs.verify import verify
from tests.cli.processes import Done, Kcs, balanced, partials, run, running, sealed, wait_frames

REPORT_KEYS = {
    *("verb", "seconds", "frames", "events", "suppressed", "records", "digest", "captures", "gaps", "reconnects"),
    *("gaps_covered", "streams", "catch_ups", "rate", "lateness_ms", "ack_latency_ms", "gc", "loop_lag_ms"),
    *("unverifiable", "acks_undone"),
}
FRAME_KEYS = {"received", "captured", "uncaptured", "parsed", "ignored", "rejected", "behind"}
LATENCY_KEYS = {"count", "p50", "p90", "p99", "p999", "max"}


def collecting(verb: str, sim_url: str, cwd: Path, *args: object) -> list[object]:
    return [verb, "--url", f"upbit={sim_url}", "--capture", cwd / "captures", *args]


def stop(kcs: Kcs, directory: Path, number: int, frames: int = 20) -> None:
    wait_frames(kcs, directory, frames)
    kcs.send(number)


UNLESS_NOHUP = pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="under nohup, which kcs leaves alone"
)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 0), pytest.param(signal.SIGHUP, 0, marks=UNLESS_NOHUP)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.parametrize("verb", ["live", "capture"])
def test_a_signal_seals_and_reports(verb: str, number: int, code: int, sim_url: str, tmp_path: Path) -> None:
    directory = tmp_path / "captures"
    with running(*collecting(verb, sim_url, tmp_path, "--json"), cwd=tmp_path) as kcs:
        stop(kcs, directory, number)
        done = kcs.wait()
    assert done.code == code, done.err
    report = done.json
    assert report.keys() >= REPORT_KEYS
    assert report["frames"].keys() >= FRAME_KEYS
    assert report["records"].keys() == {"produced", "acked", "failed", "in_flight"}
    assert report["rate"].keys() == {"frames_per_s", "speed_asked", "speed_reached"}
    assert report["gc"].keys() == {"share", "collections", "pause_max_ms"}
    balanced(report)
    assert report["verb"] == verb
    assert report["frames"]["captured"] >= 20
    assert report["frames"]["uncaptured"] == report["frames"]["behind"] == 0
    assert report["lateness_ms"] is report["rate"]["speed_asked"] is report["rate"]["speed_reached"] is None
    if verb == "live":
        assert report["ack_latency_ms"].keys() == LATENCY_KEYS
        assert report["ack_latency_ms"]["count"] == report["records"]["acked"] == report["records"]["produced"] > 0
    else:
        assert report["records"] == {**dict.fromkeys(("acked", "failed", "in_flight")), "produced": ANY}
        assert report["records"]["produced"] > 0
        assert report["ack_latency_ms"] is None, "nobody acknowledged anything"
    (path,) = sealed(directory)
    assert partials(directory) == []
    verdict = verify(path)
    assert verdict.ok
    assert verdict.digest == report["digest"]
    assert verdict.ledger.received == report["frames"]["captured"]
    (capture,) = report["captures"]
    expected = {"path": str(path), "id": verdict.capture_id, "digest": verdict.digest, "receipt": None}
    assert capture == expected, "the embedded broker keeps nothing, so there is no receipt"
    assert not list(directory.glob("*.json"))
    with CaptureReader(path) as reader:
        kinds = [record.kind for record in reader.records()]
    assert kinds[:2] == [Kind.CLOCK, Kind.OPEN]
    assert kinds[-1] == Kind.CLOSE


def test_without_json_stdout_is_empty_and_the_ledger_and_digest_are_told(sim_url: str, tmp_path: Path) -> None:
    with running(*collecting("live", sim_url, tmp_path, "--duration", "600ms"), cwd=tmp_path) as kcs:
        done = kcs.wait()
    assert (done.code, done.out) == (0, b"")
    (path,) = sealed(tmp_path / "captures")
    for text in ("received", "acked", "0 failed", "0 in flight", "embedded broker", str(path), verify(path).digest):
        assert text in done.err
    assert "\x1b" not in done.err
    replayed = run("replay", path, "--json", cwd=tmp_path)
    assert (replayed.code, replayed.json["digest"]) == (0, verify(path).digest)
    assert replayed.json["records"]["acked"] == replayed.json["records"]["produced"] > 0


def test_only_what_was_asked_for_is_collected_and_stands_in_the_header(sim_url: str, tmp_path: Path) -> None:
    args = ("--channel", "trade", "--market", "KRW-BTC,KRW-ETH", "--format", "SIMPLE", "--duration", "600ms", "--json")
    done = run(*collecting("capture", sim_url, tmp_path, *args), cwd=tmp_path)
    assert done.code == 0
    assert done.json["events"]["trade"] > 0
    assert done.json["events"]["orderbook"] == done.json["events"]["ticker"] == 0
    (path,) = sealed(tmp_path / "captures")
    with CaptureReader(path) as reader:
        options = reader.header.options
        assert (options["channels"], options["markets"]) == (["trade"], ["KRW-BTC", "KRW-ETH"])
        assert options["format"] == "SIMPLE"
        payloads = [record.payload for record in reader.records() if record.kind is Kind.BINARY]
    assert all(payload.startswith((b'{"ty":"trade"', b'{"status"')) for payload in payloads)


def test_two_connections_are_captured_and_produced_once(sim_url: str, tmp_path: Path) -> None:
    args = ("--connections", "2", "--duration", "1500ms", "--json")
    report = run(*collecting("live", sim_url, tmp_path, *args), cwd=tmp_path).json
    balanced(report)
    (path,) = sealed(tmp_path / "captures")
    with CaptureReader(path) as reader:
        assert reader.header.options["connections"] == 2
        frames = [record.stream for record in reader.records() if record.kind is Kind.BINARY]
    assert set(frames) == {0, 1}
    first, second = report["streams"]
    assert (first["exchange"], first["stream"], second["stream"]) == ("upbit", 0, 1)
    assert (first["frames"], second["frames"]) == (frames.count(0), frames.count(1))
    assert (first["opens"], second["opens"]) == (1, 1)
    produced = report["records"]["produced"] - report["events"]["gap"]
    assert first["saved"] + second["saved"] == produced
    assert sum(report["suppressed"].values()) > 0, "what came twice went out once"
    assert verify(path).digest == report["digest"]


def test_sigusr1_renews_the_connection_without_a_gap(sim_url: str, tmp_path: Path) -> None:
    directory = tmp_path / "captures"
    with running(*collecting("live", sim_url, tmp_path, "--json"), cwd=tmp_path) as kcs:
        wait_frames(kcs, directory, 20)
        kcs.send(signal.SIGUSR1)
        kcs.wait_said("retires")
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    assert done.code == 0, done.err
    report = done.json
    balanced(report)
    assert (report["gaps"], report["reconnects"]) == (0, 0)
    assert [(stream["stream"], stream["opens"], stream["saved"]) for stream in report["streams"]] == [
        (0, 1, None),
        (1, 1, None),
    ]
    (path,) = sealed(directory)
    with CaptureReader(path) as reader:
        closes = [
            (r.stream, r.fields.code, r.fields.cause) for r in reader.records() if isinstance(r.fields, CloseFields)
        ]
    assert closes == [(0, 1000, "planned"), (1, 1000, "stop")]
    verdict = verify(path)
    assert verdict.ok
    assert verdict.digest == report["digest"]


def test_shards_share_the_markets_and_say_so(sim_url: str, tmp_path: Path) -> None:
    markets = "KRW-BTC,KRW-ETH,KRW-XRP,KRW-SOL,KRW-DOGE"
    seen: list[str] = []
    for shard in ("1/2", "2/2"):
        args = ("--market", markets, "--shard", shard, "--channel", "trade", "--duration", "600ms")
        command = ["capture", "--url", f"upbit={sim_url}", "--capture", tmp_path / shard[0], *args]
        assert run(*command, cwd=tmp_path).code == 0
        (path,) = sealed(tmp_path / shard[0])
        with CaptureReader(path) as reader:
            assert reader.header.options["shard"] == shard
            seen += reader.header.options["markets"]
    assert sorted(seen) == sorted(markets.split(","))


def test_a_second_collector_is_refused_and_the_first_goes_on(sim_url: str, tmp_path: Path) -> None:
    directory = tmp_path / "captures"
    with running(*collecting("capture", sim_url, tmp_path, "--json"), cwd=tmp_path) as first:
        wait_frames(first, directory)
        second = run(*collecting("capture", sim_url, tmp_path, "--json"), cwd=tmp_path)
        assert (second.code, second.out) == (1, b"")
        assert f"another collector (process {first.process.pid}) captures upbit here" in second.err
        assert str(directory) in second.err
        busy = run("recover", partials(directory)[0], tmp_path / "out.zst", cwd=tmp_path)
        assert busy.code == 1
        assert "still writing" in busy.err
        assert not (tmp_path / "out.zst").exists()
        first.send(signal.SIGTERM)
        done = first.wait()
    assert done.code == 0
    assert verify(sealed(directory)[0]).digest == done.json["digest"]


@pytest.mark.parametrize("verb", ["live", "capture"])
def test_kill_9_costs_a_quarter_of_a_second_and_the_rest_is_recovered(
    verb: str, sim_url: str, tmp_path: Path, kcs: Callable[..., Done]
) -> None:
    directory = tmp_path / "captures"
    with running(*collecting(verb, sim_url, tmp_path), cwd=tmp_path) as process:
        wait_frames(process, directory, 150)
        killed_ns = time.time_ns()
        process.kill()
    (partial,) = partials(directory)
    assert sealed(directory) == []
    assert b"not sealed" in kcs("info", partial).out
    saved = tmp_path / "saved.zst"
    done = kcs("recover", partial, saved, "--json")
    assert done.code in (0, 3)
    assert done.json["missing"] == 0
    assert done.json["records"] >= 150
    busy_machine_ns = 500_000_000
    assert killed_ns - done.json["last_ns"] < 250_000_000 + busy_machine_ns
    with CaptureReader(saved) as reader:
        numbers = [record.number for record in reader.records()]
    assert numbers == list(range(done.json["records"]))
    one, two = (kcs("replay", file, "--sink", "null", "--json").json for file in (partial, saved))
    assert one["records"] == two["records"]
    assert one["digest"] is None
    assert two["digest"] == verify(saved).digest
    again = run(*collecting(verb, sim_url, tmp_path, "--duration", "300ms", "--json"), cwd=tmp_path)
    assert again.code == 0
    assert again.json["gaps"] == 1, "the time without a collector is a gap"
    (path,) = sealed(directory)
    with CaptureReader(path) as reader:
        (gap,) = reader.info().gaps
    assert gap.cause == "collector_down"
    assert gap.from_ns == done.json["last_ns"]


def test_gaps_are_an_exit_code_only_when_asked_for(sim_url: str, tmp_path: Path) -> None:
    for expected, args in ((0, []), (3, ["--fail-on-gaps"])):
        command = collecting("capture", sim_url, tmp_path, "--duration", "300ms", *args)
        assert run(*command, cwd=tmp_path).code == expected


def test_rotation_makes_files_that_together_are_the_run(sim_url: str, tmp_path: Path) -> None:
    args = ("--max-age", "300ms", "--duration", "1100ms", "--json")
    report = run(*collecting("live", sim_url, tmp_path, *args), cwd=tmp_path).json
    paths = sealed(tmp_path / "captures")
    assert len(paths) == len(report["captures"]) >= 3
    assert report["digest"] is None, "there is no one digest of several files"
    assert {c["path"]: c["digest"] for c in report["captures"]} == {str(path): verify(path).digest for path in paths}
    done = run("replay", *paths, "--json", cwd=tmp_path)
    assert done.code == 0
    assert done.json["digest"] is None
    assert done.json["records"]["acked"] == report["records"]["acked"]
    assert done.json["events"] == report["events"]
    assert [c["digest"] for c in done.json["captures"]] == [c["digest"] for c in report["captures"]]


def test_a_venue_that_is_not_there(tmp_path: Path) -> None:
    done = run(*collecting("capture", "ws://127.0.0.1:9/", tmp_path, "--duration", "300ms", "--json"), cwd=tmp_path)
    assert done.code == 1
    assert done.json["failed"] == "no connection to the venue came about"
    assert done.json["frames"]["received"] == 0
    assert "127.0.0.1:9" in done.err
    (path,) = sealed(tmp_path / "captures")
    assert verify(path).ok, "the capture says that there was nothing"


def test_settings_of_environment_and_file_are_used(sim_url: str, tmp_path: Path) -> None:
    (tmp_path / "kcs.toml").write_text(f'channel = ["ticker"]\n[url]\nupbit = "{sim_url}"\n')
    done = run("capture", "--json", cwd=tmp_path, KCS_DURATION="400ms", KCS_CAPTURE="elsewhere")
    assert done.code == 0
    assert sealed(tmp_path / "elsewhere")
    assert done.json["events"]["ticker"] > 0
    assert done.json["events"]["trade"] == 0


@pytest.mark.slow
def test_the_demo_proves_itself(tmp_path: Path) -> None:
    done = run("demo", "--seconds", "1", "--rate", "1000", "--capture", tmp_path / "kept", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    report = done.json
    assert report["digests_equal"] is True
    assert report["digest"] == report["replay"]["digest"] == verify(sealed(tmp_path / "kept")[0]).digest
    balanced(report)
    balanced(report["replay"])
    assert len(report["targets"]) == 4
    assert json.loads(done.out)["verb"] == "demo"


def test_the_simulator_on_tape_and_its_signals(tmp_path: Path) -> None:
    for out in ("a.zst", "b.zst"):
        done = run("sim", "--out", out, "--duration", "2s", "--rate", "200", "--seed", "5", "--json", cwd=tmp_path)
        assert (done.code, done.json["reconnects"]) == (0, 0)
    assert (tmp_path / "a.zst").read_bytes() == (tmp_path / "b.zst").read_bytes()
    for number in (signal.SIGINT, signal.SIGTERM):
        with running("sim", "--port", "0", "--json", cwd=tmp_path) as sim:
            assert sim.first_line().startswith("ws://127.0.0.1:")
            sim.send(number)
            assert sim.wait().code == 130
