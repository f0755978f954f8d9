"""One connection to the broker that comes back by itself. Decides when to try again, not what a message means."""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from types import TracebackType
from typing import Final, Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.addresses import BrokerUrl

MAX_MESSAGES_QUEUED: Final = 10_000  # while the event loop is busy; what is over is lost
SESSION_S: Final = 60  # for so long the broker keeps what it could not deliver, and an empty session after the goodbye
GOODBYE_S: Final = 2.0  # for the broker to hear that nothing is to be kept
FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 10.0

log = logging.getLogger(__name__)


class Disconnected(ConnectionError):
    """There is no connection to the broker, or it was lost before the outcome came."""


class Connection:
    """An MQTT session with fixed subscriptions.

    Entering it connects, or raises Disconnected. A connection that is lost later is made again, with full
    jitter, until it is left; the broker keeps the session and what is QoS 1 for SESSION_S meanwhile.

    Args:
        broker: where to.
        client_id: the MQTT client id.
        filters: what to subscribe to, with QoS 1.
        receive: called with each message; must not block or raise.
        lost: called with the reason whenever the connection is lost.
        max_inflight: how many QoS 1 messages the broker may not have acknowledged yet.
        tls: for `mqtts://`; by default the broker's certificate is verified by the system's authorities.
    """

    def __init__(
        self,
        broker: BrokerUrl,
        client_id: str,
        filters: Sequence[str],
        receive: Callable[[aiomqtt.Message], None],
        *,
        lost: Callable[[str], None] = lambda _: None,
        max_inflight: int = 20,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._broker = broker
        self._client_id = client_id
        self._filters = [(topic_filter, 1) for topic_filter in filters]
        self._receive = receive
        self._lost = lost
        self._max_inflight = max_inflight
        self._client: aiomqtt.Client | None = None
        self._up = asyncio.Event()
        self._publishing: set[asyncio.Timeout] = set()
        self._life: asyncio.Task[None] | None = None
        self._why = "not connected"

    async def __aenter__(self) -> Self:
        """Connect and subscribe. Raises Disconnected."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(first), name=f"{self._client_id} connection")
        try:
            await asyncio.wait({first, self._life}, return_when=asyncio.FIRST_COMPLETED)
            await (first if first.done() else self._life)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect for good; the broker keeps nothing more for the session."""
        assert self._life is not None  # it was entered
        try:
            await self._unsubscribe()
        finally:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
            self._lose("closed")

    async def up(self) -> None:
        """Wait until there is a connection."""
        await self._up.wait()

    async def publish(self, topic: str, body: bytes, qos: int, properties: Properties) -> None:
        """Publish; with QoS 1 return once the broker has it. Raises Disconnected: none, or lost meanwhile."""
        client = self._client
        if client is None:
            raise Disconnected(self._why)
        try:
            async with asyncio.timeout(None) as limit:
                self._publishing.add(limit)
                try:
                    await client.publish(topic, body, qos=qos, properties=properties, timeout=inf)
                finally:
                    self._publishing.discard(limit)
        except TimeoutError:
            raise Disconnected(self._why) from None
        except aiomqtt.MqttError as error:  # it may be known here before it is in `_live`
            if self._client is client:
                self._lose(f"{self._broker}: {error}")
            raise Disconnected(f"{self._broker}: {error}") from None

    async def _live(self, first: asyncio.Future[None]) -> None:
        failures = 0
        while True:
            try:
                async with self._connect() as client:
                    await self._subscribe(client)
                    failures, self._client = 0, client
                    self._up.set()
                    if not first.done():
                        first.set_result(None)
                    async for message in client.messages:
                        self._receive(message)
            except (aiomqtt.MqttError, Disconnected) as error:
                self._lose(f"{self._broker}: {error}")
            if not first.done():
                first.set_exception(Disconnected(self._why))
                return
            log.debug("connection lost", extra={"reason": self._why, "failures": failures})
            limit_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(0, limit_s))  # noqa: S311  (jitter)
            failures += 1

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        if not self._filters:
            return
        granted = await client.subscribe(self._filters)
        for (topic_filter, _), code in zip(self._filters, granted, strict=True):
            if not isinstance(code, ReasonCode) or code.is_failure:
                raise Disconnected(f"may not subscribe to {topic_filter}: {code}")

    async def _unsubscribe(self) -> None:
        if self._client is None or not self._filters:
            return
        with suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._client.unsubscribe([topic_filter for topic_filter, _ in self._filters])

    def _lose(self, reason: str) -> None:
        self._client, self._why = None, reason
        self._up.clear()
        for limit in self._publishing:
            if not limit.expired():
                limit.reschedule(0)
        self._lost(reason)

    def _connect(self) -> aiomqtt.Client:
        broker = self._broker
        nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paho leaves Nagle's algorithm on
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S
        client = aiomqtt.Client(
            broker.unix_path or broker.host,
            broker.port or 1883,  # paho wants one for a unix socket, too
            username=broker.username,
            password=broker.password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,  # mosquitto saves no session that began with a clean start, whatever its expiry
            properties=properties,
            transport="unix" if broker.unix_path else "tcp",
            tls_context=(self._tls or ssl.create_default_context()) if broker.tls else None,
            socket_options=() if broker.unix_path else (nodelay,),
            max_queued_incoming_messages=MAX_MESSAGES_QUEUED,
            max_inflight_messages=self._max_inflight,
            max_concurrent_outgoing_calls=self._max_inflight,
        )
        client.pending_calls_threshold = self._max_inflight  # it warns of each call above
        return client
