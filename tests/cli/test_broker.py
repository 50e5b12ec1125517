"""Kafka that is not there, late, gone or refuses: nothing is lost silently, and the exit code says it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcs.live.receipt import read_delivery, receipt_path
from kcs.verify import verify
from tests.cli.processes import balanced, run, running, sealed, wait_for, wait_frames
from tests.e2e.rig import fresh_template
from tests.kafka import mockcluster
from tests.kafka.mockcluster import PRODUCE, MockCluster
from tests.realkafka import free_port
from tests.replay.making import make, trades


@pytest.fixture
def mock() -> Iterator[MockCluster]:
    with MockCluster() as cluster:
        yield cluster


def live(sim_url: str, bootstrap: str, cwd: Path, *args: object) -> list[object]:
    where = ["--capture", cwd / "captures", "--topic", fresh_template("cli")]
    return ["live", "--url", f"upbit={sim_url}", "-b", bootstrap, *where, "--json", *args]


def test_a_replay_without_a_broker_says_so(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run("replay", make(tmp_path, 1, trades(3)), "-b", address, "--json", cwd=tmp_path, within_s=10.0)
    assert (done.code, done.out) == (1, b"")
    assert f"kcs: Kafka at {address}" in done.err


def test_a_broker_that_is_not_there_at_the_start_costs_no_frame(sim_url: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with running(*live(sim_url, address, tmp_path, "--drain", "100ms"), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    assert done.code == 3
    balanced(done.json)
    assert done.json["frames"]["behind"] == done.json["frames"]["captured"] >= 50
    assert done.json["digest"] is None
    assert f"kcs: WARNING: Kafka at {address}" in done.err
    (path,) = sealed(tmp_path / "captures")
    delivery = read_delivery(path)
    assert delivery is not None, "the next start knows where it was to go"
    assert (delivery.cluster, delivery.bootstrap) == (None, address)
    assert not receipt_path(path).exists()


def test_a_port_that_takes_connections_and_never_answers(sim_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with running(*live(sim_url, address, tmp_path, "--drain", "100ms"), cwd=tmp_path) as kcs:
            wait_frames(kcs, tmp_path / "captures", 50)
            kcs.send(signal.SIGTERM)
            done = kcs.wait()
    assert done.code == 3
    assert address in done.err


def test_a_broker_that_comes_after_the_first_frames_gets_them_all(
    mock: MockCluster, sim_url: str, tmp_path: Path
) -> None:
    mock.down()
    with running(*live(sim_url, mock.bootstrap, tmp_path), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        mock.up()
        wait_for(lambda: "Kafka is there" in kcs.err, "the broker to be found")
        wait_frames(kcs, tmp_path / "captures", 200)
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    assert done.code == 0, done.err
    balanced(done.json)
    assert done.json["catch_ups"] >= 1
    assert done.json["records"]["acked"] == done.json["records"]["produced"] >= 200
    assert done.json["digest"] == verify(sealed(tmp_path / "captures")[0]).digest


def test_a_broker_that_answers_late(mock: MockCluster, sim_url: str, tmp_path: Path) -> None:
    mock.set_delay_ms(100)
    with running(*live(sim_url, mock.bootstrap, tmp_path), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 100)
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    assert done.code == 0
    balanced(done.json)
    assert done.json["records"]["acked"] == done.json["records"]["produced"] >= 100
    assert done.json["ack_latency_ms"]["p50"] >= 90
    assert done.json["digest"] == verify(sealed(tmp_path / "captures")[0]).digest


def test_a_broker_that_goes_away_and_comes_back(mock: MockCluster, sim_url: str, tmp_path: Path) -> None:
    with running(*live(sim_url, mock.bootstrap, tmp_path), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        mock.down()
        wait_frames(kcs, tmp_path / "captures", 120)
        mock.up()
        kcs.send(signal.SIGTERM)
        done = kcs.wait()
    assert done.code == 0, done.err
    balanced(done.json)
    assert done.json["records"]["acked"] == done.json["records"]["produced"] >= 120


def test_a_broker_that_stays_away_is_exit_3_and_the_capture_is_whole(
    mock: MockCluster, sim_url: str, tmp_path: Path
) -> None:
    with running(*live(sim_url, mock.bootstrap, tmp_path, "--drain", "300ms"), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        mock.down()
        wait_frames(kcs, tmp_path / "captures", 150)
        kcs.send(signal.SIGINT)
        done = kcs.wait(15.0)
    assert done.code == 3, "loss comes before the interruption"
    report = done.json
    balanced(report)
    assert report["records"]["in_flight"] + report["frames"]["behind"] > 0
    assert report["frames"]["uncaptured"] == 0
    assert "still in flight" in done.err or "broke down" in done.err
    (path,) = sealed(tmp_path / "captures")
    verdict = verify(path)
    assert verdict.ok
    assert verdict.ledger.received == report["frames"]["captured"]
    again = run("replay", path, "--json", cwd=tmp_path)
    assert (again.code, again.json["records"]["acked"]) == (0, verdict.ledger.produced), "replay delivers it"


def test_a_second_signal_waits_no_longer(mock: MockCluster, sim_url: str, tmp_path: Path) -> None:
    with running(*live(sim_url, mock.bootstrap, tmp_path, "--drain", "1h"), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        mock.down()
        wait_frames(kcs, tmp_path / "captures", 100)
        kcs.send(signal.SIGINT)
        wait_for(lambda: sealed(tmp_path / "captures"), "the seal, which does not wait for Kafka")
        kcs.send(signal.SIGINT)
        done = kcs.wait(15.0)
    assert done.code == 3
    balanced(done.json)
    assert verify(sealed(tmp_path / "captures")[0]).ok


def test_a_broker_that_forbids_writing(mock: MockCluster, sim_url: str, tmp_path: Path) -> None:
    mock.answer(PRODUCE, *[mockcluster.TOPIC_AUTHORIZATION_FAILED] * 1_000)
    with running(*live(sim_url, mock.bootstrap, tmp_path, "--drain", "300ms"), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 50)
        kcs.send(signal.SIGTERM)
        done = kcs.wait(15.0)
    assert done.code == 3
    balanced(done.json)
    assert done.json["records"]["acked"] == 0
    assert done.json["records"]["failed"] + done.json["records"]["in_flight"] > 0
    assert "uthoriz" in done.err or "broke down" in done.err
    assert verify(sealed(tmp_path / "captures")[0]).ok


def test_replay_into_a_broker_that_forbids_writing(mock: MockCluster, tmp_path: Path) -> None:
    mock.answer(PRODUCE, *[mockcluster.TOPIC_AUTHORIZATION_FAILED] * 1_000)
    path = make(tmp_path, 1, trades(100))
    done = run("replay", path, "-b", mock.bootstrap, "--json", cwd=tmp_path)
    assert (done.code, done.out) == (1, b"")
    assert "uthoriz" in done.err


@pytest.mark.kafka
def test_a_topic_that_cannot_be_created(real_kafka: str, sim_url: str, tmp_path: Path) -> None:
    path = make(tmp_path, 1, trades(3))
    for args in (live(sim_url, real_kafka, tmp_path), ["replay", path, "-b", real_kafka, "--topic", "x3.{channel}"]):
        done = run(*args, "--replication", "3", cwd=tmp_path)
        assert (done.code, done.out) == (1, b"")
        assert "topic cannot be created" in done.err
        assert real_kafka in done.err
        assert "--replication" in done.err


@pytest.mark.kafka
def test_live_into_a_real_kafka_leaves_a_receipt_that_verify_compares(
    real_kafka: str, sim_url: str, tmp_path: Path
) -> None:
    with running(*live(sim_url, real_kafka, tmp_path), cwd=tmp_path) as kcs:
        wait_frames(kcs, tmp_path / "captures", 100)
        kcs.send(signal.SIGINT)
        done = kcs.wait()
    assert done.code == 130
    (capture,) = done.json["captures"]
    assert capture["receipt"] == capture["path"].replace(".zst", ".receipt.json")
    told = run("verify", capture["path"], "--json", cwd=tmp_path)
    assert told.code == 0
    assert told.json["compared"] == [
        {"with": capture["receipt"], "digest": done.json["digest"], "matches": True, "why": None}
    ]
