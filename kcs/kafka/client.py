"""aiokafka's connections, patient and tidy: the client under its producer, consumer and admin client. No public part.

`adopt` turns a client that is not started yet into a `Client`. What differs from aiokafka 0.14:

- what every address answered is kept (`refusals`) instead of logged and forgotten, so that an error can say why;
- a connection attempt ends after `connect_s`, and one to a dead host does not hold up those to others;
- metadata is asked for ten times a second at most, and less often while nobody answers: a partition without a leader
  made the sender ask without any pause; a broker that is frozen is asked for `connect_s`, then the next;
- when no broker known from before answers, the addresses of the beginning are tried again: all may have moved;
- a cluster with another id than the one begun with is not taken for it (`OtherCluster`);
- no topic is made by asking for it, but on the embedded broker: one that somebody deleted would come back empty;
- an error that the library did not expect does not end its metadata task, on which everything would wait for ever;
- `close` waits for nobody: bytes for a broker that does not read are dropped, and no connection is forgotten.

The private names used here are aiokafka's, hence the pinned minor version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.errors import KafkaError as ClientError
from aiokafka.protocol.metadata import MetadataRequest

from kcs.kafka.embedded import CLUSTER_ID_PREFIX

CONNECT_ERRORS: Final = (OSError, ClientError, TimeoutError, ValueError, AssertionError, EOFError)
"""What a failed attempt raises; ValueError and AssertionError come from a peer that breaks SASL or the protocol."""

_BURST: Final = 16
"""Metadata requests that need no pause: opening a sink asks for its topics one by one."""
_PAUSE_MAX_S: Final = 1.0
_log = logging.getLogger("aiokafka")


class OtherCluster(ClientError):  # type: ignore[misc]  # aiokafka is not typed
    """The address belongs to another cluster now."""


class Client(AIOKafkaClient):  # type: ignore[misc]  # aiokafka is not typed
    """See the module's docstring. Made by `adopt` only."""

    connect_s: float
    refusals: dict[str, BaseException]
    """`host:port` to the error of the last attempt; an address that answered is not in it."""
    cluster_id: str
    on_update: Callable[[], None] | None
    """Called after each new metadata of the cluster."""
    _conns: dict[Any, Any]
    _sync_task: Any

    def prepare(self, connect_s: float, cluster_id: str) -> None:
        """What `__init__` would set."""
        self.connect_s = connect_s
        self.cluster_id = cluster_id
        self.on_update = None
        self.refusals = {}
        self._locks: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tokens = float(_BURST)
        self._tokens_s = 0.0
        self._failed_pause_s = 0.0
        self._turn = 0
        self._let_go = False

    async def bootstrap(self) -> None:
        """Learn the brokers from the first address that answers. Raises KafkaConnectionError; see `refusals`."""
        if not await self._ask_first_addresses(MetadataRequest([]), self.cluster):
            raise KafkaConnectionError(f"none of {self._bootstrap_servers} answers")
        if self._sync_task is None:
            self._sync_task = asyncio.get_running_loop().create_task(self._md_synchronizer())

    async def send(self, node_id: Any, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """As in the parent; what it did not expect is a connection that broke, which its callers know to handle."""
        try:
            return await super().send(node_id, request, group=group)
        except ClientError:
            raise
        except (RuntimeError, LookupError) as error:
            # uvloop: written to a closed transport; KeyError: another task dropped the connection that timed out
            raise KafkaConnectionError(f"connection to broker {node_id} broken: {error!r}") from error

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
                _log.error("broker %s at %s:%s: %s", node_id, broker.host, broker.port, _short(error))
                self.force_metadata_update()
                return None
            self._conns[place] = conn
            return conn

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        await self._token()
        request = MetadataRequest(list(topics) if topics else None, self._topics_appear)
        updated = await self._ask_known(request, cluster_metadata) or await self._ask_first_addresses(
            request, cluster_metadata
        )
        if updated:
            self._failed_pause_s = 0.0
            if cluster_metadata is self.cluster and self.on_update is not None:
                self.on_update()
        else:
            _log.error("no broker answers: %s", "; ".join(dict.fromkeys(map(_short, self.refusals.values()))))
            self._failed_pause_s = min(_PAUSE_MAX_S, max(self._retry_backoff, 2 * self._failed_pause_s))
            await asyncio.sleep(self._failed_pause_s)
        return updated

    async def _ask_known(self, request: Any, cluster: Any) -> bool:
        nodes = sorted(broker.nodeId for broker in self.cluster.brokers())
        self._turn += 1  # each time another one comes first
        first = self._turn % len(nodes) if nodes else 0
        for node in nodes[first:] + nodes[:first]:
            conn = await self._get_conn(node)
            if conn is not None and await self._ask(conn, request, cluster):
                return True
        return False

    async def _ask_first_addresses(self, request: Any, cluster: Any) -> bool:
        for host, port, _ in self.hosts:
            try:
                conn = await self._connect(host, port)
            except CONNECT_ERRORS:
                continue  # see `refusals`
            try:
                if await self._ask(conn, request, cluster):
                    return True
            finally:
                _abort(conn)
        return False

    async def _ask(self, conn: Any, request: Any, cluster: Any) -> bool:
        """Take the metadata that one broker has; False: it has none, or not in time."""
        address = f"{conn.host}:{conn.port}"
        try:
            async with asyncio.timeout(self.connect_s):
                metadata = await conn.send(request)
            self._check_cluster(getattr(metadata, "cluster_id", None))
        except (*CONNECT_ERRORS, LookupError, RuntimeError) as error:
            self.refusals[address] = error
            return False
        if not metadata.brokers:
            return False
        cluster.update_metadata(metadata)
        return True

    def _check_cluster(self, found: str | None) -> None:
        if found is None:
            return
        if self.cluster_id and found != self.cluster_id:
            raise OtherCluster(f"another cluster answers there: its id is {found}, not {self.cluster_id}")
        self.cluster_id = found
        self._topics_appear = found.startswith(CLUSTER_ID_PREFIX)

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


def _short(error: BaseException) -> str:
    return str(error) or type(error).__name__


def adopt(client: Any, connect_s: float, cluster_id: str = "") -> Client:
    """Make an aiokafka client that is not started yet a `Client`; each connection attempt may take `connect_s`.

    `cluster_id`: the cluster that it must be; empty: the first that answers.
    """
    client.__class__ = Client
    adopted: Client = client
    adopted.prepare(connect_s, cluster_id)
    return adopted
