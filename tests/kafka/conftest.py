"""The session's real Kafka (`real_kafka`) comes from tests/conftest.py; here is what only these tests need."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.realkafka import RealKafka, free_port


@pytest.fixture(scope="session")
def proxied_kafka(real_kafka: str) -> Iterator[tuple[RealKafka, socket.socket]]:
    """A second node that tells clients to come through a proxy: (node, listening socket for the proxy).

    Depends on `real_kafka` for the skip. The node itself may be killed and resumed.
    """
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        address, port = listening.getsockname()
        with RealKafka(advertised=f"{address}:{port}") as kafka:
            yield kafka, listening
