"""A password or token given to kcs comes out nowhere: no output, no error, no file, however the run goes.

Each place where a secret may be given holds one of its own; every verb that takes it is run, well and badly, and all
that it wrote is searched: both streams, and every file, captures decompressed.
"""

from __future__ import annotations

import base64
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kcs.capture.format import header_fields
from kcs.capture.reader import CaptureReader
from kcs.config import Config
from kcs.errors import KcsError
from kcs.kafka.settings import KafkaSettings
from kcs.live.receipt import DeliveryInfo, write_delivery
from kcs.model import Kind
from tests.capture import making as captures
from tests.cli.processes import Done, run, sealed, simulator
from tests.test_house import ROOT

FILE, VARIABLE, FLAG, URL, PROXY = (f"hunter2-{place}-Zq7" for place in ("file", "variable", "flag", "url", "proxy"))
SECRETS = (FILE, VARIABLE, FLAG, URL, PROXY)

LOGIN = ("-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.username=me")
CONFIG = f'[kafka]\n"security.protocol" = "SASL_PLAINTEXT"\n"sasl.username" = "me"\n"sasl.password" = "{FILE}"\n'


def spellings(secret: str) -> set[bytes]:
    """As it is, and as base64 would carry it, wherever it begins."""
    plain = secret.encode()
    found = {plain, plain.hex().encode()}
    for shift in range(3):
        found.add(base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4])
    return found


NEEDLES = {needle for secret in SECRETS for needle in spellings(secret)}


def everything_in(directory: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all that was written; of captures also header, summary and records."""
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.name in ("kcs.toml", "other.toml"):
            continue
        yield str(path), path.read_bytes()
        if ".zst" in path.name:
            with CaptureReader(path, strict=False) as reader:
                yield f"{path} header", repr((header_fields(reader.header), reader.info())).encode()
                for record in reader.records():
                    yield f"{path} record {record.number}", record.payload + repr(record.fields).encode()


def clean(done: Done, directory: Path) -> Done:
    """Fails where anything of it holds a secret."""
    places = [("stdout", done.out), ("stderr", done.err.encode()), *everything_in(directory)]
    for place, content in places:
        for needle in NEEDLES:
            assert needle not in content, f"{place}: {content[:2000]!r}"
    return done


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """A port that takes a connection, says `answer` and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1024)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join()


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture with a delivery file of a cluster that is nowhere."""
    path = captures.make(tmp_path / "captures")
    info = DeliveryInfo("cluster", "{channel}.{exchange}", True, {"trade.upbit": 1}, lambda capture_id: None)
    write_delivery(path, (1).to_bytes(8, "big"), info)
    return path


GIVEN = ("file", "other file", "variable", "one variable", "flag")


def given(how: str, directory: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Flags and variables that hand over a password in this way."""
    if how == "file":
        (directory / "kcs.toml").write_text(CONFIG)
        return (), {}
    if how == "other file":
        (directory / "other.toml").write_text(CONFIG)
        return ("--config", "other.toml"), {}
    if how == "variable":
        return LOGIN, {"KCS_KAFKA_SASL_PASSWORD": VARIABLE}
    if how == "one variable":
        return LOGIN, {"KCS_KAFKA": f"sasl.password={VARIABLE}"}
    return (*LOGIN, "-X", f"sasl.password={FLAG}"), {}


@pytest.mark.parametrize("how", GIVEN)
def test_a_broker_that_is_none(tmp_path: Path, capture: Path, how: str) -> None:
    flags, environ = given(how, tmp_path)
    with listener(b"\0\0\0\4\xff\xff\xff\xff") as broker:
        done = run("replay", capture, "-b", broker, *flags, cwd=tmp_path, **environ)
    assert clean(done, tmp_path).code == 1, done.err
    assert ("COMMAND LINE" in done.err) is (how == "flag")


def test_every_verb_that_reaches_kafka(tmp_path: Path, capture: Path) -> None:
    flags, environ = given("variable", tmp_path)
    kafka = ("-b", "127.0.0.1:9", *flags, "--json")
    for arguments in (
        ("replay", capture, *kafka),
        ("recover", "--produce", capture, *kafka),
        ("verify", "--topic", capture, *kafka),
        ("live", "--duration", "1s", "--url", "upbit=ws://127.0.0.1:9/", "--drain", "0s", *kafka),
    ):
        assert clean(run(*arguments, cwd=tmp_path, **environ), tmp_path).code in (1, 3)


@pytest.mark.parametrize(
    "flags",
    [
        (*LOGIN, "-X", f"sasl.pasword={FLAG}"),
        (*LOGIN, "-X", f"sasl.password:{FLAG}"),
        (*LOGIN, "-X", f"={FLAG}"),
        (*LOGIN, "-X", FLAG),
        ("-X", "security.protocol=PLAINTEXT", "-X", f"sasl.password={FLAG}"),
        ("-X", "security.protocol=SASL_SSL", "-X", f"sasl.password={FLAG}"),
        (*LOGIN, "-X", f"sasl.password={FLAG}", "-X", "sasl.mechanism=GUESS"),
        ("-X", "security.protocol=SSL", "-X", "ssl.certificate.location=/dev/null", "-X", f"ssl.key.password={FLAG}"),
        ("-X", "security.protocol=SSL", "-X", "ssl.ca.location=/none", "-X", f"ssl.key.password={FLAG}"),
    ],
)
def test_a_flag_that_is_wrong(tmp_path: Path, kcs: Callable[..., Done], capture: Path, flags: tuple[str, ...]) -> None:
    done = clean(kcs("replay", capture, "-b", "127.0.0.1:9", *flags), tmp_path)
    assert done.code == 2, done.err


@pytest.mark.parametrize(
    "text",
    [
        f'[kafka]\n"sasl.password" = "{FILE}',
        f'[kafka]\n"sasl.password" = {FILE}\n',
        f'kafka = "{FILE}"\n',
        f'[kafka]\n"sasl.password" = ["{FILE}"]\n',
        f'[kafka]\n"sasl.pasword" = "{FILE}"\n',
        f'[kafkaa]\n"sasl.password" = "{FILE}"\n',
        f'sasl.password = "{FILE}"\n',
        f'[kafka]\n"sasl.password" = "{FILE}"\n"sasl.password" = "{FILE}"\n',
        f'[url]\nupbit = "ws://me:{FILE}@h/"\n',
        f'[url]\nupbit = "ws://h:0x/?token={FILE}"\n',
    ],
)
def test_a_configuration_file_that_is_wrong(tmp_path: Path, kcs: Callable[..., Done], text: str) -> None:
    Path("kcs.toml").write_text(text)
    done = clean(kcs("live", "--duration", "1s", "-b", "127.0.0.1:9"), tmp_path)
    assert done.code == 2, done.err


@pytest.mark.parametrize(
    "environ",
    [
        {"KCS_KAFKA": VARIABLE},
        {"KCS_KAFKA": f"sasl.password:{VARIABLE}"},
        {"KCS_KAFKA_SASL_PASWORD": VARIABLE},
        {"KCS_KAFKA_SASL_PASSWORD": VARIABLE},
        {"KCS_URL": f"upbit=ws://me:{VARIABLE}@h/"},
        {"KCS_URL": f"ws://h/?token={VARIABLE}"},
        {"KCS_PARTITIONS": VARIABLE},
    ],
)
def test_a_variable_that_is_wrong(tmp_path: Path, kcs: Callable[..., Done], environ: dict[str, str]) -> None:
    done = clean(kcs("live", "--duration", "1s", "-b", "127.0.0.1:9", **environ), tmp_path)
    assert done.code == 2, done.err


@pytest.mark.parametrize(
    "flag", [f"upbit=ws://me:{URL}@127.0.0.1:9/", f"upbit=ws://{URL}@127.0.0.1:9/", f"ws://h/{URL}"]
)
def test_a_url_with_credentials_is_refused(tmp_path: Path, kcs: Callable[..., Done], flag: str) -> None:
    done = clean(kcs("capture", "--url", flag, "--duration", "1s"), tmp_path)
    assert done.code == 2, done.err


def test_a_token_in_a_url_is_used_and_written_nowhere(tmp_path: Path) -> None:
    query = f"?token={URL}&listenKey={URL}&a=b"
    with simulator(tmp_path, "--rate", "100") as url:
        arguments = ("--url", f"upbit={url}{query}", "--duration", "1s")
        done = clean(run("capture", *arguments, "--json", cwd=tmp_path), tmp_path)
        assert done.code == 0, done.err
        (path,) = sealed(tmp_path / "captures")
        with CaptureReader(path) as reader:
            assert reader.header.url == f"{url}?token=[scrubbed]&listenKey=[scrubbed]&a=b"
            (opened, *_) = [record.fields for record in reader.records() if record.kind is Kind.OPEN]
            assert opened is not None
            assert opened.url == reader.header.url  # type: ignore[union-attr]
        for verb in (("info", path), ("cat", path, "--json"), ("verify", path), ("export", path, "--out", "data")):
            assert clean(run(*verb, cwd=tmp_path), tmp_path).code == 0
    away = clean(run("capture", "--url", f"upbit=ws://127.0.0.1:9/{query}", "--duration", "1s", cwd=tmp_path), tmp_path)
    assert away.code == 1
    wrong = clean(
        run("capture", "--url", f"upbit=http://127.0.0.1:9/{query}", "--duration", "1s", cwd=tmp_path), tmp_path
    )
    assert wrong.code == 2


def test_the_password_of_a_proxy(tmp_path: Path) -> None:
    url = ("capture", "--url", "upbit=ws://venue.invalid/", "--duration", "1s")
    with listener(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        for address, code in (
            (f"http://me:{PROXY}@{proxy}", 1),
            (f"http://me:{PROXY}@127.0.0.1:9", 1),
            (f"socks5://me:{PROXY}@{proxy}", 2),
            (f"nonsense://me:{PROXY}@{proxy}", 2),
            (f"http://me:{PROXY}@{proxy}/path", 2),
        ):
            names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "WS_PROXY", "ws_proxy")
            done = run(*url, cwd=tmp_path, **dict.fromkeys(names, address), NO_PROXY="", no_proxy="")
            assert clean(done, tmp_path).code == code, done.err


def test_reprs_and_tracebacks_hold_none(tmp_path: Path) -> None:
    kafka = {"security.protocol": "SASL_SSL", "sasl.username": "me", "sasl.password": FLAG}
    config = Config(kafka=kafka, url={"upbit": f"ws://h/?token={URL}"})
    settings = KafkaSettings("h:1", properties=kafka)
    shown = f"{config!r}{config}{settings!r}{settings}"
    for wrong in (
        lambda: KafkaSettings("h:1", properties={**kafka, "acks": "1"}),
        lambda: KafkaSettings("h:", properties=kafka),
    ):
        with pytest.raises(KcsError) as error:
            wrong()
        shown += "".join(traceback.format_exception(error.value)) + repr(error.value)
    assert not [needle for needle in NEEDLES if needle in shown.encode()]


# The documents: nobody learns from us to put a password where all can read it.

_ON_A_COMMAND_LINE = re.compile(r"-X\s*[\"']?(?:sasl|ssl\.key)\.password\s*=(?!@)|--password|://[^/\s:@]+:[^/\s@]+@")
_EXAMPLE = re.compile(r"^\s*(?:\$ )?(?:kcs|python -m kcs|sudo|docker|env|KCS_\w+=)[^\n]*$", re.MULTILINE)
_FROM_A_FILE = re.compile(r"(?:sasl|ssl\.key)\.password=@\S+")
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {"node_modules", ".venv", ".git"} & set(path.parts))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_puts_a_password_on_a_command_line(path: Path) -> None:
    text = path.read_text()
    assert not _ON_A_COMMAND_LINE.search(text)
    for line in _EXAMPLE.findall(text):
        assert not re.search(r"(?i)password|secret|token", _FROM_A_FILE.sub("", line)), line


def test_no_help_and_no_remedy_puts_a_password_on_a_command_line() -> None:
    for path in (ROOT / "kcs").rglob("*.py"):
        assert not re.search(r"-X\s*(?:sasl|ssl\.key)\.password(?!=@)", path.read_text()), path
