"""For services: `Fleet` sends commands to devices over MQTT 5 and returns their outcomes.

Decides nothing about delivery: that is the gateway's. One connection, which is not made again when it is
lost: every call that waits then fails, and so does every later one.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from math import ceil, inf
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.topics import BINARY_TYPE, JSON_TYPE, NodeStatus, Outcome, Presence, Topics, is_serial

MAX_OUTCOMES_QUEUED: Final = 10_000  # while the event loop is busy; what is over is lost, and its call times out
MAX_OUTCOMES_OF_A_CALL: Final = 8  # it is told `queued`, then the final one; more is not the gateway's
DEFAULT_INFLIGHT: Final = 20  # the Receive Maximum of a stock mosquitto, which aiomqtt does not read

LOOK_S: Final = 1.0  # for the broker to send what it retains; there is no end mark

_OUTCOME = msgspec.json.Decoder(Outcome)
_PRESENCE = msgspec.json.Decoder(Presence)
_NODE = msgspec.json.Decoder(NodeStatus)

T = TypeVar("T")


class NoOutcome(TimeoutError):
    """No final outcome in time; `Fleet.why_silent` may explain it. The device may still get the command."""


class Disconnected(ConnectionError):
    """There is no connection to the broker, or it was lost before the outcome came."""


class _Call(msgspec.Struct, frozen=True):
    """A call that waits: where its outcomes go, and the timer that ends it."""

    outcomes: asyncio.Queue[Outcome]
    deadline: asyncio.Timeout


class Fleet:
    """The devices, as a service sees them.

    Use it as `async with Fleet("mqtt://…") as fleet: await fleet.call(serial, "device_status")`, from as
    many tasks at once as you like.

    Args:
        url: the broker, as in the gateway's `mqtt.url`.
        prefix: where the gateway's topics begin.
        client_id: the MQTT client id, one topic level; by default a new one.
        max_inflight: QoS 1 commands that the broker may not have acknowledged yet; no more than its
            Receive Maximum. The project's mosquitto.conf allows 200, a stock EMQX 32, HiveMQ 10.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gw/v1",
        client_id: str | None = None,
        max_inflight: int = DEFAULT_INFLIGHT,
    ) -> None:
        self._broker = BrokerUrl.parse(url)
        self._topics = Topics(prefix)
        self._client_id = client_id or f"fleet-{secrets.token_hex(8)}"
        self._inbox = f"{prefix}/inbox/{self._client_id}/outcomes"
        self._max_inflight = max_inflight
        self._calls: dict[bytes, _Call] = {}
        self._client: aiomqtt.Client | None = None
        self._lost: str | None = None
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect, and subscribe to the outcomes. Raises Disconnected."""
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(self._connection(self._client_id))
                (granted,) = await client.subscribe(self._inbox, qos=1)
            except aiomqtt.MqttError as error:
                raise Disconnected(f"{self._broker}: {error}") from None
            if isinstance(granted, int) or granted.is_failure:
                raise Disconnected(f"{self._broker}: may not subscribe to {self._inbox}: {granted}")
            receiving = asyncio.create_task(self._receive(client), name=f"{self._client_id} outcomes")
            stack.push_async_callback(_end, receiving)
            self._client = client
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect; calls that still wait fail with Disconnected."""
        self._lose("the fleet was closed")
        with suppress(aiomqtt.MqttError):
            await self._exit.aclose()

    async def call(
        self,
        serial: str,
        event: str,
        payload: Any = None,
        *,
        qos: int = 0,
        timeout_s: float = 15.0,
        ttl_s: float | None = None,
        on_queued: Callable[[Outcome], None] | None = None,
    ) -> Outcome:
        """Send a command and return its final outcome, whatever its status.

        Args:
            serial: the device.
            event: the event of the device protocol.
            payload: None for no argument, bytes for a binary one, else what msgspec encodes as JSON.
            qos: 0 is now or never; 1 is held while the device is away.
            timeout_s: how long to wait here for the final outcome.
            ttl_s: how long the command is worth delivering, in whole seconds, rounded up; by default what
                the gateway decides. With QoS 1 choose `timeout_s` longer than that.
            on_queued: called with the outcome that says that the command is held.

        Raises:
            NoOutcome: it did not come within `timeout_s`.
            Disconnected: the connection to the broker is lost.
            ValueError: the serial or the event is no topic level.
        """
        if not is_serial(serial):
            raise ValueError(f"not a serial: {serial!r}")
        topic = self._topics.command(serial, event)
        key = secrets.token_hex(8)
        body, properties = _message(payload)
        properties.ResponseTopic = self._inbox
        properties.CorrelationData = key.encode()
        properties.UserProperty = [("id", key)]
        if ttl_s is not None:
            properties.MessageExpiryInterval = max(1, ceil(ttl_s))
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                call = self._calls[key.encode()] = _Call(asyncio.Queue(MAX_OUTCOMES_OF_A_CALL), deadline)
                await self._publish(topic, body, qos, properties)
                while not (outcome := await call.outcomes.get()).final:
                    if on_queued is not None:
                        on_queued(outcome)
                return outcome
        except TimeoutError:
            if self._lost is not None:
                raise Disconnected(self._lost) from None
            raise NoOutcome(f"{serial} {event}: no final outcome within {timeout_s:g} s") from None
        finally:
            self._calls.pop(key.encode(), None)

    async def emit_room(self, room: str, event: str, payload: Any = None, *, qos: int = 0) -> None:
        """Emit an event to every socket of a room, on every node. Raises Disconnected, ValueError."""
        body, properties = _message(payload)
        await self._publish(self._topics.room(room, event), body, qos, properties)

    async def why_silent(self, serial: str) -> str:
        """What explains that a device's command has no outcome: who is there, by what the broker retains.

        On a connection of its own, for at most LOOK_S. Raises Disconnected.
        """
        presence: Presence | None = None
        nodes: set[str] = set()
        mine, every_node = self._topics.presence(serial), self._topics.node_status("+")
        try:
            async with self._connection(f"{self._client_id}-look") as client:
                await client.subscribe([(mine, 1), (every_node, 1)])
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        async for message in client.messages:
                            if message.topic.value == mine:
                                presence = _decoded(_PRESENCE, message)
                            elif (node := _decoded(_NODE, message)) and node.online:
                                nodes.add(node.node)
        except aiomqtt.MqttError as error:
            raise Disconnected(f"{self._broker}: {error}") from None
        prefix = self._topics.prefix
        if not nodes:
            return f"is any gateway running with prefix {prefix}?"
        if presence is None:
            return f"{serial} never connected to a gateway with prefix {prefix}"
        if presence.online:
            return f"{serial} is connected to {presence.node}, and may still answer"
        return f"{serial} is away{f' since {presence.since}' if presence.since else ''}"

    def _connection(self, client_id: str) -> aiomqtt.Client:
        broker = self._broker
        nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paho leaves Nagle's algorithm on
        client = aiomqtt.Client(
            broker.unix_path or broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            transport="unix" if broker.unix_path else "tcp",
            tls_context=ssl.create_default_context() if broker.tls else None,
            socket_options=() if broker.unix_path else (nodelay,),
            max_queued_incoming_messages=MAX_OUTCOMES_QUEUED,
            max_inflight_messages=self._max_inflight,
            max_concurrent_outgoing_calls=self._max_inflight,
        )
        client.pending_calls_threshold = self._max_inflight  # it warns of each call above
        return client

    async def _publish(self, topic: str, body: bytes, qos: int, properties: Properties) -> None:
        if self._client is None or self._lost is not None:
            raise Disconnected(self._lost or "the fleet is not connected")
        try:
            await self._client.publish(topic, body, qos=qos, properties=properties, timeout=inf)
        except aiomqtt.MqttError as error:
            raise Disconnected(f"{self._broker}: {error}") from None

    async def _receive(self, client: aiomqtt.Client) -> None:
        try:
            async for message in client.messages:
                self._answer(message)
        except aiomqtt.MqttError as error:
            self._lose(f"{self._broker}: {error}")

    def _answer(self, message: aiomqtt.Message) -> None:
        """Hand an outcome to its call; what is malformed, late or not asked for is left aside."""
        call = self._calls.get(getattr(message.properties, "CorrelationData", b""))
        if call is not None and isinstance(message.payload, bytes):
            with suppress(msgspec.DecodeError, asyncio.QueueFull):
                call.outcomes.put_nowait(_OUTCOME.decode(message.payload))

    def _lose(self, reason: str) -> None:
        """Let every call that waits run out of time now; `_lost` tells it why."""
        self._lost = self._lost or reason
        for call in self._calls.values():
            if not call.deadline.expired():
                call.deadline.reschedule(0)


def _decoded(decoder: msgspec.json.Decoder[T], message: aiomqtt.Message) -> T | None:
    """What a retained message says; None if it is not ours to read."""
    with suppress(msgspec.DecodeError):
        return decoder.decode(bytes(message.payload)) if isinstance(message.payload, bytes) else None
    return None


def _message(payload: Any) -> tuple[bytes, Properties]:
    """The body of a message, and its properties with the Content Type that fits."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if payload is None:
        return b"", properties
    if isinstance(payload, bytes):
        properties.ContentType = BINARY_TYPE
        return payload, properties
    properties.ContentType = JSON_TYPE
    return msgspec.json.encode(payload), properties


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
