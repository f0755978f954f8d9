"""For services: `Fleet` sends commands to devices over MQTT 5, and says what they emit, ask and are.

Decides nothing about delivery: that is the gateway's. Imports nothing of the server.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from math import ceil
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiomqtt
import msgspec
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.bodies import NodeStatus, Outcome, Presence
from gateway.fleet.calls import Called, CallOutcome, Calls, NoOutcome, NotAcked, Sent
from gateway.fleet.connection import Connection, Disconnected
from gateway.fleet.messages import message_of
from gateway.fleet.watch import DeviceEvent, PresenceMap, read_event
from gateway.topics import Topics, encode_level, is_serial

__all__ = [
    "CallOutcome",
    "Called",
    "DeviceEvent",
    "Disconnected",
    "Fleet",
    "NoOutcome",
    "NotAcked",
    "Outcome",
    "PresenceMap",
    "Sent",
]

DEFAULT_INFLIGHT: Final = 20  # the Receive Maximum of a stock mosquitto, which aiomqtt does not read
MAX_EVENTS_QUEUED: Final = 10_000  # that a watcher has not read yet; what is over is lost, and logged
MAX_ANSWERING: Final = 1_000  # questions at once; more are not answered, and the device's ack times out
LOOK_S: Final = 1.0  # for the broker to send what it retains; there is no end mark

_OUTCOME = msgspec.json.Decoder(CallOutcome)
_PRESENCE = msgspec.json.Decoder(Presence)
_NODE = msgspec.json.Decoder(NodeStatus)

Answer = Callable[[DeviceEvent], Awaitable[Any]]
AnswerT = TypeVar("AnswerT", bound=Answer)
T = TypeVar("T")

log = logging.getLogger(__name__)


class Fleet:
    """The devices, as a service sees them.

    Use it as `async with Fleet("mqtt://…") as fleet: await fleet.call(serial, "device_status")`, from as
    many tasks at once as you like. A connection that is lost is made again: commands of QoS 0 that wait fail
    then with Disconnected, those of QoS 1 go on waiting until their own timeout. It can be entered once.

    Args:
        url: the broker, as in the gateway's `mqtt.url`.
        prefix: where the gateway's topics begin.
        client_id: the MQTT client id, one topic level; by default a new one.
        max_inflight: QoS 1 commands that the broker may not have acknowledged yet; no more than its
            Receive Maximum. The project's mosquitto.conf allows 200, a stock EMQX 32, HiveMQ 10.
        tls: for `mqtts://`, with authorities or a client certificate of your own.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "gw/v1",
        client_id: str | None = None,
        max_inflight: int = DEFAULT_INFLIGHT,
        tls: SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._broker = BrokerUrl.parse(url)
        self._topics = Topics(prefix)
        self._client_id = client_id or f"fleet-{secrets.token_hex(8)}"
        self._inbox = f"{prefix}/inbox/{self._client_id}/outcomes"
        self._max_inflight = max_inflight
        self._calls = Calls()
        self._answers: dict[str, Answer] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Queue[DeviceEvent | None]] = set()
        self._connection: Connection | None = None
        self._exit = AsyncExitStack()
        self._why = "the fleet is not connected"

    async def __aenter__(self) -> Self:
        """Connect, and subscribe to the outcomes and the questions. Raises Disconnected."""
        questions = [f"{self._topics.event('+', event)}/+" for event in self._answers]
        self._connection = await self._exit.enter_async_context(
            Connection(
                self._broker,
                self._client_id,
                [self._inbox, *questions],
                self._receive,
                lost=lambda reason: self._calls.lose(reason, every=False),
                max_inflight=self._max_inflight,
                tls=self._tls,
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect; commands that wait fail with Disconnected, and every `events` ends."""
        self._connection, self._why = None, "the fleet was closed"
        self._calls.lose(self._why, every=True)
        for watcher in self._watchers:
            while watcher.full():
                watcher.get_nowait()
            watcher.put_nowait(None)
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
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
        on_queued: Callable[[CallOutcome], None] | None = None,
    ) -> CallOutcome:
        """Send a command and return its final outcome, whatever its status: `raise_for_status()` minds it.

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
            NoOutcome: it did not come within `timeout_s`. So ends a command for a device that no node ever had:
                the broker says "no matching subscribers" (0x10) in the PUBACK of QoS 1, but aiomqtt 2.5 drops the
                reason code in its `_on_publish`, and offers no public way to it. See `why_silent`.
            Disconnected: QoS 0 and the connection is lost, or the fleet was closed.
            ValueError: the serial or the event is no topic level.
        """
        sent = self._start(serial, event, qos, timeout_s)
        try:
            await self._submit(sent, payload, ttl_s)
            if on_queued is not None and not (first := await sent.queued()).final:
                on_queued(first)
            return await sent.outcome()
        finally:
            self._calls.drop(sent)

    async def send(
        self, serial: str, event: str, payload: Any = None, *, ttl_s: float, timeout_s: float | None = None
    ) -> Sent:
        """Send a command with QoS 1, return once the broker has it, and leave the waiting to the handle.

        Args:
            serial, event, payload: as for `call`.
            ttl_s: how long the command is worth delivering, in whole seconds, rounded up.
            timeout_s: how long the handle waits for the final outcome; by default 15 s longer than `ttl_s`.

        Raises as `call` does.
        """
        sent = self._start(serial, event, 1, ttl_s + 15.0 if timeout_s is None else timeout_s)
        try:
            await self._submit(sent, payload, ttl_s)
        except BaseException:
            self._calls.drop(sent)
            raise
        if sent.done:
            await sent.outcome()  # it ended before the broker had it
        return sent

    async def call_many(
        self,
        serials: Iterable[str],
        event: str,
        payload: Any = None,
        *,
        concurrency: int = 100,
        qos: int = 0,
        timeout_s: float = 15.0,
        ttl_s: float | None = None,
    ) -> AsyncGenerator[Called, None]:
        """Call many devices, `concurrency` at once, and yield how each call ended, as they end.

        What ends a single call with NoOutcome or Disconnected is yielded too. Raises ValueError.
        """
        pending, running = iter(serials), set[asyncio.Task[Called]]()

        async def one(serial: str) -> Called:
            try:
                outcome = await self.call(serial, event, payload, qos=qos, timeout_s=timeout_s, ttl_s=ttl_s)
            except (NoOutcome, Disconnected) as error:
                return Called(serial, error=error)
            return Called(serial, outcome)

        try:
            while True:
                while len(running) < concurrency and (serial := next(pending, None)) is not None:
                    running.add(asyncio.create_task(one(serial), name=f"call {serial}"))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def emit_room(self, room: str, event: str, payload: Any = None, *, qos: int = 0) -> None:
        """Emit an event to every socket of a room; what the gateway refuses, nobody is told. Raises as `send`."""
        body, properties = message_of(payload)
        await self._connected().publish(self._topics.room(room, event), body, qos, properties)

    async def events(self, serial: str | None = None, event: str | None = None) -> AsyncGenerator[DeviceEvent, None]:
        """What devices emit from now on, until the fleet is closed; of one device, of one name, or all.

        On a connection of its own, made when the iteration starts, and made again when it is lost.
        Raises Disconnected, ValueError.
        """
        if serial is not None and not is_serial(serial):
            raise ValueError(f"not a serial: {serial!r}")
        self._connected()
        events: asyncio.Queue[DeviceEvent | None] = asyncio.Queue(MAX_EVENTS_QUEUED)
        level = "" if event is None else f"{encode_level(event)}/"

        def receive(message: aiomqtt.Message) -> None:
            if (found := read_event(self._topics, message)) is not None:
                try:
                    events.put_nowait(found)
                except asyncio.QueueFull:
                    log.warning("event lost: nobody reads them", extra={"serial": found.serial})

        self._watchers.add(events)
        try:
            # [MQTT-4.7.1-2] `#` matches the parent too: events with and without a question.
            async with self._watching([f"{self._topics.prefix}/devices/{serial or '+'}/events/{level}#"], receive):
                while (found := await events.get()) is not None:
                    yield found
        finally:
            self._watchers.discard(events)

    def answer(self, event: str) -> Callable[[AnswerT], AnswerT]:
        """Decorate a coroutine function: what it returns is the ack of a device that asks with this event.

        To be used before the fleet is entered. If it raises, the device is acked
        `{"ack": false, "error_msg": …}`. Of several services that answer, the first is heard.
        """
        encode_level(event)
        if self._connection is not None:
            raise RuntimeError("answers are registered before the fleet is entered")

        def register(answer: AnswerT) -> AnswerT:
            self._answers[event] = answer
            return answer

        return register

    def presence(self) -> PresenceMap:
        """A live map of who is connected: `async with fleet.presence() as devices: devices["AC…"].online`."""
        return PresenceMap(self._topics, self._watching)

    async def why_silent(self, serial: str) -> str:
        """What explains that a device's command has no outcome: who is there, by what the broker retains.

        On a connection of its own, for LOOK_S. Raises Disconnected.
        """
        presence: list[Presence] = []
        nodes: set[str] = set()
        mine, every_node = self._topics.presence(serial), self._topics.node_status("+")

        def receive(message: aiomqtt.Message) -> None:
            if message.topic.value == mine:
                presence[:] = filter(None, [_decoded(_PRESENCE, message)])
            elif (node := _decoded(_NODE, message)) and node.online:
                nodes.add(node.node)

        async with self._watching([mine, every_node], receive):
            await asyncio.sleep(LOOK_S)
        prefix = self._topics.prefix
        if not nodes:
            return f"is any gateway running with prefix {prefix}?"
        if not presence:
            return f"{serial} never connected to a gateway with prefix {prefix}"
        if presence[0].online:
            return f"{serial} is connected to {presence[0].node}, and may still answer"
        return f"{serial} is away{f' since {presence[0].since}' if presence[0].since else ''}"

    def _watching(self, filters: list[str], receive: Callable[[aiomqtt.Message], None]) -> Connection:
        client_id = f"{self._client_id}-{secrets.token_hex(4)}"
        return Connection(self._broker, client_id, filters, receive, tls=self._tls)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise Disconnected(self._why)
        return self._connection

    def _start(self, serial: str, event: str, qos: int, timeout_s: float) -> Sent:
        if not is_serial(serial):
            raise ValueError(f"not a serial: {serial!r}")
        encode_level(event)
        self._connected()
        sent = Sent(secrets.token_hex(8), serial, event, qos)
        self._calls.add(sent, timeout_s)
        return sent

    async def _submit(self, sent: Sent, payload: Any, ttl_s: float | None) -> None:
        """Publish a command; with QoS 1 again after a loss, until the broker has it or the command has ended."""
        body, properties = message_of(payload)
        properties.ResponseTopic = self._inbox
        properties.CorrelationData = sent.id.encode()
        properties.UserProperty = [("id", sent.id)]
        if ttl_s is not None:
            properties.MessageExpiryInterval = max(1, ceil(ttl_s))
        publishing = asyncio.create_task(self._publish(sent, body, properties), name=f"publish {sent.id}")
        try:
            ends: set[asyncio.Future[Any]] = {publishing, sent.final}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if publishing.done():
                publishing.result()
        finally:
            publishing.cancel()
            with suppress(asyncio.CancelledError, Disconnected):
                await publishing

    async def _publish(self, sent: Sent, body: bytes, properties: Properties) -> None:
        topic = self._topics.command(sent.serial, sent.event)
        while not sent.done:
            connection = self._connected()
            try:
                await connection.publish(topic, body, sent.qos, properties)
                return
            except Disconnected:
                if sent.qos == 0:
                    raise
            await connection.up()

    def _receive(self, message: aiomqtt.Message) -> None:
        if message.topic.value == self._inbox:
            self._told(message)
            return
        question = read_event(self._topics, message)
        if question is None or question.question is None or question.event not in self._answers:
            return
        if len(self._answering) < MAX_ANSWERING:
            task = asyncio.create_task(self._answer(question), name=f"answer {question.question}")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    def _told(self, message: aiomqtt.Message) -> None:
        """Hand an outcome to its command; what is malformed, late or not asked for is left aside."""
        key = getattr(message.properties, "CorrelationData", b"")
        if isinstance(message.payload, bytes):
            with suppress(msgspec.DecodeError):
                self._calls.tell(key.decode(errors="replace"), _OUTCOME.decode(message.payload))

    async def _answer(self, question: DeviceEvent) -> None:
        try:
            reply = await self._answers[question.event](question)
        except Exception as error:  # whatever an answer of the service raises must not end the others
            log.exception("answer failed", extra={"event": question.event})
            reply = {"ack": False, "error_msg": str(error) or type(error).__name__}
        assert question.question is not None
        topic = self._topics.reply(question.serial, question.event, question.question)
        with suppress(Disconnected):  # the device asks again
            await self._connected().publish(topic, *_reply(reply))


def _reply(reply: Any) -> tuple[bytes, int, Properties]:
    body, properties = message_of(reply)
    return body, 1, properties


def _decoded(decoder: msgspec.json.Decoder[T], message: aiomqtt.Message) -> T | None:
    """What a retained message says; None if it is not ours to read."""
    with suppress(msgspec.DecodeError):
        return decoder.decode(bytes(message.payload)) if isinstance(message.payload, bytes) else None
    return None
