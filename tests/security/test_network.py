"""Nothing listens but the simulator, on this machine; certificates are checked, and who gives that up hears of it."""

from __future__ import annotations

import ast
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from kcs.cli.app import app
from kcs.cli.sinks import warned
from kcs.config import Config
from kcs.kafka.embedded import EmbeddedBroker
from kcs.sim.settings import SimSettings
from tests.cli.processes import run, running, simulator
from tests.test_house import MODULES, PACKAGE, name_of

LISTENING = {
    "create_server", "create_unix_server", "start_server", "start_unix_server", "create_datagram_endpoint", "bind",
    "listen", "serve_forever", "HTTPServer", "ThreadingHTTPServer",
}  # fmt: skip
UNCHECKED = re.compile(
    r"CERT_NONE|CERT_OPTIONAL|check_hostname|_create_unverified|verify_mode|ssl\s*=\s*False|verify\s*=\s*False"
)


def names_called(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def test_only_the_simulator_listens() -> None:
    found = {name_of(path) for path in MODULES if LISTENING & set(names_called(path))}
    assert found == {"sim/server.py"}


def test_the_simulator_listens_on_this_machine_unless_told_otherwise() -> None:
    assert SimSettings().host == "127.0.0.1"
    command = typer.main.get_command(app)
    options = {name: option.default for name, option in options_of(command, "sim").items()}
    assert options["--host"] == "127.0.0.1"


def options_of(command: object, verb: str) -> dict[str, typer.core.TyperOption]:
    found = command.commands[verb]  # type: ignore[attr-defined]
    return {name: option for option in found.params for name in option.opts if name.startswith("-")}


def test_no_flag_switches_off_the_check_of_a_certificate() -> None:
    command = typer.main.get_command(app)
    for verb in command.commands:  # type: ignore[attr-defined]
        for name in options_of(command, verb):
            assert not re.search(r"insecure|tls|ssl|cert|unsafe|no-verify|verify", name), f"kcs {verb} {name}"
    assert not [name for name in Config.__struct_encode_fields__ if re.search(r"insecure|tls|ssl|cert|verify", name)]


def test_certificates_can_be_left_unchecked_in_one_place_only() -> None:
    found = {name_of(path) for path in MODULES if UNCHECKED.search(path.read_text())}
    assert found == {"kafka/settings.py"}


def addresses_listened_on(pid: int) -> set[str]:
    """Local addresses of the listening TCP sockets of a process, from the system's tables."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table, family, size in (("tcp", socket.AF_INET, 4), ("tcp6", socket.AF_INET6, 16)):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                raw = bytes.fromhex(columns[1].split(":")[0])
                words = b"".join(raw[at : at + 4][::-1] for at in range(0, size, 4))
                found.add(socket.inet_ntop(family, words))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc to look into")


@needs_proc
def test_the_simulator_is_seen_on_loopback_only(tmp_path: Path) -> None:
    with running("sim", "--port", "0", cwd=tmp_path) as sim:
        sim.first_line()
        assert addresses_listened_on(sim.process.pid) == {"127.0.0.1"}


@needs_proc
def test_the_embedded_broker_is_seen_on_loopback_only() -> None:
    before = addresses_listened_on(os.getpid())
    with EmbeddedBroker() as broker:
        assert broker.bootstrap.startswith("127.0.0.1:")
        assert addresses_listened_on(os.getpid()) - before <= {"127.0.0.1"}
        assert "127.0.0.1" in addresses_listened_on(os.getpid())


# What gives protection up is said each time.


def test_a_venue_without_tls_is_named_at_the_start_and_in_the_report(tmp_path: Path) -> None:
    with simulator(tmp_path, "--rate", "50") as url:
        elsewhere = url.replace("127.0.0.1", "0.0.0.0")  # any address of this machine; looks like another's
        done = run("capture", "--url", f"upbit={elsewhere}", "--duration", "1s", "--json", cwd=tmp_path)
        assert done.code == 0, done.err
        assert "kcs: WARNING: NOTHING PROTECTS WHAT COMES FROM ws://0.0.0.0" in done.err
        (warning,) = done.json["warnings"]
        assert warning in done.err
        plain = run("capture", "--url", f"upbit={elsewhere}", "--duration", "1s", "-q", cwd=tmp_path)
        assert "WARNING" in plain.err, "no flag makes it silent"
        quiet = run("capture", "--url", f"upbit={url}", "--duration", "1s", "--json", cwd=tmp_path)
        assert quiet.json["warnings"] == []
        assert "WARNING" not in quiet.err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("enable.ssl.certificate.verification", "false", "CERTIFICATE IS NOT CHECKED"),
        ("ssl.endpoint.identification.algorithm", "none", "NAME IS NOT CHECKED"),
    ],
)
def test_an_unchecked_broker_is_named_at_each_start(
    name: str, value: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config(bootstrap="h:1", kafka={"security.protocol": "SSL", name: value})
    for _ in range(2):
        (text,) = warned("kafka", config, argv=())
        assert said in text
        assert f"kcs: WARNING: {text}\n" == capfd.readouterr().err
    assert warned("null", config, argv=()) == []
    assert warned("kafka", Config(), urls=["wss://api.upbit.com", "ws://localhost:1"], argv=()) == []


@pytest.mark.parametrize(
    "argument",
    ["sasl.password=hunter2", "-Xsasl.password=hunter2", "ssl.key.password = hunter2", "sasl.password=@@hunter2"],
)
def test_a_password_on_the_command_line_is_told_without_it(argument: str) -> None:
    (text,) = warned("null", Config(), argv=["kcs", "live", "-X", argument])
    assert "ON THE COMMAND LINE" in text
    assert "KCS_KAFKA_S" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("argument", ["sasl.password=@/run/kafka", "-Xssl.key.password=@key"])
def test_the_name_of_a_file_on_the_command_line_is_no_password(argument: str) -> None:
    assert warned("null", Config(), argv=["kcs", "live", "-X", argument]) == []


def test_each_verb_that_reaches_kafka_says_it() -> None:
    """By the source: who makes KafkaSettings or opens a sink for a verb also calls `warned`."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        called = set(names_called(path))
        if called & {"KafkaSettings", "open_sink"} and path.name != "sinks.py":
            assert "warned" in called, path.name
