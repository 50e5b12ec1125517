"""Rules of the house as tests: who may import whom, one room a library, one clock, no standard json."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kcs"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "model": set(),
    "sink": {"errors"},
    "config": {"errors"},
    "stats": {"clock", "errors"},
    "routes": {"sink"},
    "pipeline": {"errors", "model", "sink", "stats", "exchanges", "routes"},
    "exchanges": {"errors", "model"},
    "capture": {"errors", "clock", "model"},
    "kafka": {"errors", "clock", "sink", "stats"},
    "live": {"errors", "clock", "model", "sink", "stats", "pipeline", "exchanges", "capture"},
    "destination": {"errors", "model", "sink", "exchanges", "capture", "kafka", "live"},
    "outcome": {"errors", "live", "stats"},
    "absent": {"errors", "clock", "stats", "kafka", "live", "destination", "outcome"},
    "deliver": {"errors", "clock", "sink", "stats", "pipeline", "exchanges", "capture", "kafka", "live"}
    | {"destination", "outcome", "absent"},
    "replay": {"errors", "clock", "model", "sink", "stats", "pipeline", "exchanges", "capture"},
    "sim": {"errors", "clock", "model", "capture"},
    "export": {"errors", "clock", "model"},
}
"""The room itself and the package root (`kcs.__version__`) are always allowed. Rooms not listed: the command line."""

ROOMS_OF_LIBRARY: dict[str, set[str]] = {
    "aiokafka": {"kafka"},
    "confluent_kafka": {"kafka"},
    "pyarrow": {"export"},
    "typer": {"cli"},
    "websockets": {"live/transport.py", "live/tunnel.py", "sim/server.py"},
    "zstandard": {"capture"},
    "uvloop": {"cli"},
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return name_of(path).split("/")[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "kcs":
                yield from (f"kcs.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_in_the_agreed_direction(path: Path) -> None:
    room = room_of(path)
    inside = {parts[1] for name in imports_of(path) if (parts := name.split("."))[0] == "kcs" and len(parts) > 1}
    inside -= {room, "__version__"}
    assert "cli" not in inside or room in {"__main__"}, "nothing imports the command line"
    if room in MAY_IMPORT:
        assert inside <= MAY_IMPORT[room], f"{room} may not know {sorted(inside - MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_library_is_imported_in_its_room_only(path: Path) -> None:
    for name in imports_of(path):
        rooms = ROOMS_OF_LIBRARY.get(name.split(".")[0])
        assert rooms is None or room_of(path) in rooms or name_of(path) in rooms, f"{name} does not belong here"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_standard_json_and_one_clock(path: Path) -> None:
    source = path.read_text()
    assert not {"json", "datetime", "random.random"} & {name.split(".")[0] for name in imports_of(path)}
    if name_of(path) == "clock.py":
        return
    clocks = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            assert node.attr not in clocks, f"line {node.lineno} reads a clock"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_broad_except_and_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
            reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
            assert reraises or not names & {"Exception", "everything"}, f"line {node.lineno} catches {names}"
