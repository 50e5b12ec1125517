"""`kill -9` of `kcs live` at random moments under load, a real Kafka: each captured event is there once, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcs.verify import verify
from tests.cli.processes import balanced, partials, run, running, sealed, simulator, wait_frames
from tests.e2e.crashing import Crashing, compare, owed

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("default::ResourceWarning")]

CRASHES = 5


def test_killed_five_times_and_started_again(real_kafka: str, tmp_path: Path) -> None:
    with simulator(tmp_path, "--rate", "2000") as url:
        crashing = Crashing(url, real_kafka, tmp_path, seed=20260102)
        crashes = [crashing.crash() for _ in range(CRASHES)]
        done = crashing.finish()
    found = compare(crashing.captures, real_kafka, crashing.template)
    assert found.clean, (found, crashes)
    assert found.events == found.found > 1_000
    assert found.captures >= CRASHES
    assert done.code == 0, done.err
    balanced(done.json)
    for path in sealed(crashing.captures):
        assert verify(path).whole


def test_recover_without_going_live(real_kafka: str, tmp_path: Path) -> None:
    """The same with `kcs recover --produce`, which is killed as well."""
    with simulator(tmp_path, "--rate", "3000") as url:
        crashing = Crashing(url, real_kafka, tmp_path, seed=7)
        with running(*crashing._args, cwd=tmp_path) as live:
            wait_frames(live, crashing.captures, 2_000)
            live.kill()
    assert len(owed(crashing.captures)) == 1
    left = partials(crashing.captures)
    args = ("recover", "--produce", *left, "-b", real_kafka, "--settle", "0s", "--json")
    with running(*args, cwd=tmp_path) as recovering:
        recovering.wait_said("sealed what a dead run left")
        recovering.kill()
    (path,) = sealed(crashing.captures)
    done = run(*args, cwd=tmp_path)  # the name of the `.partial` finds the sealed capture too
    assert done.code in (0, 3), done.err
    (report,) = done.json["captures"]
    assert report["delivered"] is True
    assert report["path"] == str(path)
    found = compare(crashing.captures, real_kafka, crashing.template)
    assert found.clean, found
    assert (done.code == 3) is (found.orphans > 0)
    again = run(*args, cwd=tmp_path)
    assert (again.code, again.json["captures"][0]["records"]) == (0, None)
