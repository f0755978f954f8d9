"""Who a link works for, who talks to it, and what stands between it and its broker."""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiomqtt
import mqtt5

from gateway.addresses import BrokerUrl
from gateway.mqtt.link import Link, link_alarms
from gateway.mqtt.values import (
    Backoff,
    Credentials,
    LinkEvent,
    LinkOwner,
    Options,
    Subscribed,
    Subscription,
)

from .conftest import Broker, FakeBroker

E = TypeVar("E")
BACKOFF = Backoff(0.01, 0.1)
COMMANDS = (Subscription("d/1/commands/#"),)


@dataclass
class Owner:
    """Records the events of a link; `expect` takes the next one, of the type it must have."""

    queue: asyncio.Queue[LinkEvent] = field(default_factory=asyncio.Queue)

    def link_event(self, event: LinkEvent) -> None:
        self.queue.put_nowait(event)

    async def expect(self, kind: type[E], *, skipping: tuple[type, ...] = (Subscribed,)) -> E:
        async with asyncio.timeout(10):
            while True:
                event = await self.queue.get()
                if isinstance(event, kind):
                    return event
                assert isinstance(event, skipping), event


def cut(link: Link) -> None:
    """Cut the current connection as a network does: the Will fires, the session stays."""
    connection = link._current
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()


def make_link(
    url: str,
    owner: LinkOwner,
    credentials: Credentials | None = None,
    may_reconnect: Callable[[], Awaitable[bool]] | None = None,
    uniform: Callable[[float, float], float] = random.uniform,
    connect_timeout_s: float = 5,
    tls: ssl.SSLContext | None = None,
    **options: object,
) -> Link:
    settings: dict[str, object] = {"client_id": "d-1", "subscriptions": COMMANDS, "session_expiry_s": 60} | options
    return Link(
        BrokerUrl.parse(url),
        Options(**settings),  # type: ignore[arg-type]
        credentials or Credentials(),
        owner,
        alarms=link_alarms(),
        backoff=BACKOFF,
        connect_timeout_s=connect_timeout_s,
        tls=tls,
        may_reconnect=may_reconnect,
        uniform=uniform,
    )


def service(broker: Broker, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        **options,  # type: ignore[arg-type]
    )


async def next_of(queue: "asyncio.Queue[E]") -> E:
    async with asyncio.timeout(10):
        return await queue.get()


async def accept(connections: "asyncio.Queue[FakeBroker]") -> FakeBroker:
    peer = await next_of(connections)
    peer.transport.write(mqtt5.ConnAckPacket(session_present=True).write())
    return peer


class Proxy:
    """Between a link and its broker; `lose_puback` cuts both ways just as the link's next PUBACK passes."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tasks: list[asyncio.Task[None]] = []
        self.lose_puback = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._broker.port)
        await asyncio.gather(self._pump(reader, outer), self._pump(inner, writer))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if data[0] == 0x40 and self.lose_puback:
                self.lose_puback = False
                break
            sink.write(data)
        sink.transport.abort()


def read_publishes(data: bytes) -> list[mqtt5.PublishPacket]:
    found = []
    while data:
        packet, size = mqtt5.read(memoryview(data))
        data = data[size:]
        if isinstance(packet, mqtt5.PublishPacket):
            found.append(packet)
    return found
