"""aiokafka's connections, patient and tidy: the client under its producer, consumer and admin client. No public part.

`adopt` turns a client that is not started yet into a `Client`. What differs from aiokafka 0.14:

- what every address answered is kept (`refusals`) instead of logged and forgotten, so that an error can say why;
- a connection attempt ends after `connect_s`, and one to a dead host does not hold up those to others;
- metadata is asked for ten times a second at most, and less often while nobody answers: a partition without a leader
  made the sender ask without any pause;
- an error that the library did not expect does not end its metadata task, on which everything would wait for ever;
- `close` waits for nobody: bytes for a broker that does not read are dropped, and no connection is forgotten.

The private names used here are aiokafka's, hence the pinned minor version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.errors import KafkaError as ClientError
from aiokafka.protocol.metadata import MetadataRequest

CONNECT_ERRORS: Final = (OSError, ClientError, TimeoutError, ValueError, AssertionError, EOFError)
"""What a failed attempt raises; ValueError and AssertionError come from a peer that breaks SASL or the protocol."""

_UNEXPECTED: Final = (LookupError, RuntimeError, ValueError, AssertionError, OSError, AttributeError, EOFError)
"""What a metadata update was or may be seen to raise besides: uvloop's RuntimeError for a closed transport, KeyError
for a connection that another task has dropped, decoding errors. aiokafka's own errors are RuntimeErrors."""

_BURST: Final = 16
"""Metadata requests that need no pause: opening a sink asks for its topics one by one."""
_PAUSE_MAX_S: Final = 1.0
_BOOTSTRAP: Final = ("bootstrap", ConnectionGroup.DEFAULT)
_log = logging.getLogger("aiokafka")


class Client(AIOKafkaClient):  # type: ignore[misc]  # aiokafka is not typed
    """See the module's docstring. Made by `adopt` only."""

    connect_s: float
    refusals: dict[str, BaseException]
    """`host:port` to the error of the last attempt; an address that answered is not in it."""
    _conns: dict[Any, Any]
    _sync_task: Any

    def prepare(self, connect_s: float) -> None:
        """What `__init__` would set."""
        self.connect_s = connect_s
        self.refusals = {}
        self._locks: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tokens = float(_BURST)
        self._tokens_s = 0.0
        self._failed_pause_s = 0.0
        self._let_go = False

    async def bootstrap(self) -> None:
        """Learn the brokers from the first address that answers. Raises KafkaConnectionError; see `refusals`."""
        for host, port, _ in self.hosts:
            try:
                conn = self._conns[_BOOTSTRAP] = await self._connect(host, port)
                async with asyncio.timeout(self.connect_s):
                    metadata = await conn.send(MetadataRequest([]))
            except CONNECT_ERRORS as error:
                self.refusals[f"{host}:{port}"] = error
                self._drop_bootstrap()
                continue
            self.cluster.update_metadata(metadata)
            if self.cluster.brokers():  # else it is all there is until the first broker registers
                self._drop_bootstrap()
            break
        else:
            raise KafkaConnectionError(f"none of {self._bootstrap_servers} answers")
        if self._sync_task is None:
            self._sync_task = asyncio.get_running_loop().create_task(self._md_synchronizer())

    def _drop_bootstrap(self) -> None:
        conn = self._conns.pop(_BOOTSTRAP, None)
        if conn is not None:
            _abort(conn)

    async def _connect(self, host: str, port: int, on_close: Any = None) -> AIOKafkaConnection:
        conn = AIOKafkaConnection(
            host,
            port,
            client_id=self._client_id,
            request_timeout_ms=self._request_timeout_ms,
            ssl_context=self._ssl_context,
            security_protocol=self._security_protocol,
            on_close=on_close,
            max_idle_ms=self._connections_max_idle_ms,
            sasl_mechanism=self._sasl_mechanism,
            sasl_plain_username=self._sasl_plain_username,
            sasl_plain_password=self._sasl_plain_password,
            sasl_kerberos_service_name=self._sasl_kerberos_service_name,
            sasl_kerberos_domain_name=self._sasl_kerberos_domain_name,
            sasl_oauth_token_provider=self._sasl_oauth_token_provider,
        )
        try:
            async with asyncio.timeout(self.connect_s):
                await conn.connect()
        except CONNECT_ERRORS as error:
            self.refusals[f"{host}:{port}"] = error
            raise
        finally:
            if not conn.connected():
                _abort(conn)
        self.refusals.pop(f"{host}:{port}", None)
        return conn

    async def _get_conn(self, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
        place = (node_id, group)
        conn = self._conns.get(place)
        if conn is not None and conn.connected():
            return conn
        async with self._locks[place]:
            conn = self._conns.get(place)
            if conn is not None:
                if conn.connected():
                    return conn
                del self._conns[place]
            broker = self.cluster.broker_metadata(node_id)
            if broker is None:
                _log.error("broker %s is not in the cluster's metadata", node_id)
                self.force_metadata_update()
                return None
            try:
                conn = await self._connect(broker.host, broker.port, self._on_connection_closed)
            except CONNECT_ERRORS as error:
                _log.error(
                    "broker %s at %s:%s: %s", node_id, broker.host, broker.port, str(error) or type(error).__name__
                )
                self.force_metadata_update()
                return None
            self._conns[place] = conn
            return conn

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        await self._token()
        try:
            updated = bool(await super()._metadata_update(cluster_metadata, topics))
        except _UNEXPECTED as error:
            _log.error("metadata update: %s: %s", type(error).__name__, error)
            updated = False
        if updated:
            self._failed_pause_s = 0.0
        else:
            self._failed_pause_s = min(_PAUSE_MAX_S, max(self._retry_backoff, 2 * self._failed_pause_s))
            await asyncio.sleep(self._failed_pause_s)
        return updated

    async def _token(self) -> None:
        """Wait until another metadata request is due: a burst, then one each retry back-off."""
        now_s = asyncio.get_running_loop().time()
        earned = (now_s - self._tokens_s) / max(self._retry_backoff, 0.001)
        self._tokens, self._tokens_s = min(float(_BURST), self._tokens + earned), now_s
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens * self._retry_backoff)

    def force_metadata_update(self) -> Any:
        """As in the parent; after `close` there will be none, so that those who ask then do not wait for ever."""
        if self._let_go:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(KafkaConnectionError("the client is closed"))
            failed.exception()  # most callers do not look
            return failed
        return super().force_metadata_update()

    async def close(self) -> None:
        """Let go of all connections and of the metadata task, whatever is under way."""
        self._let_go = True
        task, self._sync_task = self._sync_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio does not report it
        if self._md_update_fut is not None and not self._md_update_fut.done():
            self._md_update_fut.set_result(False)
        conns, self._conns = list(self._conns.values()), {}
        closed = [ended for conn in conns if (ended := _abort(conn)) is not None]
        if closed:
            await asyncio.wait(closed)


def _abort(conn: Any) -> Any:
    """Cut a connection. Returns a future of its end (None: it had never begun)."""
    transport = getattr(conn._protocol, "_transport", None)
    ended = conn.close()
    if transport is not None:
        with contextlib.suppress(RuntimeError):  # uvloop: closed already
            transport.abort()
        return ended
    return None


def adopt(client: Any, connect_s: float) -> Client:
    """Make an aiokafka client that is not started yet a `Client`; each connection attempt may take `connect_s`."""
    client.__class__ = Client
    adopted: Client = client
    adopted.prepare(connect_s)
    return adopted
