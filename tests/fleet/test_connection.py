"""The connection of a fleet: what the broker keeps for it while it is away, and what it leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.fleet.connection import Connection, Disconnected
from tests.clients.install import missing

TOPIC = "gw/v1/inbox/me/outcomes"
WAIT_S = 20.0


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    try:
        async with local_broker("mosquitto", tmp_path) as running:
            yield running
    except BrokerUnavailable as problem:
        missing(str(problem))


class Inbox:
    """A connection that keeps what it receives."""

    def __init__(self, broker: LocalBroker, topic: str = TOPIC) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.connection = Connection(
            BrokerUrl.parse(broker.url), "me", [topic], self._receive, lost=lambda _: self.lost.set()
        )

    def _receive(self, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes)
        self.received.put_nowait(message.payload)

    async def next(self) -> bytes:
        return await asyncio.wait_for(self.received.get(), WAIT_S)


async def publish(broker: LocalBroker, topic: str, body: bytes) -> None:
    url = BrokerUrl.parse(broker.url)
    async with aiomqtt.Client(url.host, url.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.publish(topic, body, qos=1)


async def test_what_comes_before_it_is_back_is_kept(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """mosquitto forgot the session at each restart, because it had begun with a clean start."""
    monkeypatch.setattr("gateway.fleet.connection.random.uniform", lambda _, __: 1.0)  # it comes back after the publish
    inbox = Inbox(broker)
    async with inbox.connection:
        await broker.stop()
        await inbox.lost.wait()
        await broker.start()
        await publish(broker, TOPIC, b"outcome")
        assert await inbox.next() == b"outcome"


async def test_after_the_goodbye_nothing_is_kept(broker: LocalBroker) -> None:
    first = Inbox(broker)
    async with first.connection:
        await publish(broker, TOPIC, b"1")
        assert await first.next() == b"1"
    await publish(broker, TOPIC, b"2")
    second = Inbox(broker, "gw/v1/inbox/me/other")
    async with second.connection:
        await publish(broker, "gw/v1/inbox/me/other", b"3")
        assert await second.next() == b"3"


async def test_a_publish_that_finds_the_connection_broken(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended in a RuntimeError of asyncio's where it was the first to notice."""

    async def publish(*_: object, **__: object) -> None:
        raise aiomqtt.MqttError("broken pipe")

    inbox = Inbox(broker)
    async with inbox.connection:
        monkeypatch.setattr(aiomqtt.Client, "publish", publish)
        with pytest.raises(Disconnected, match="broken pipe"):
            await inbox.connection.publish(TOPIC, b"", 1, Properties(PacketTypes.PUBLISH))  # type: ignore[no-untyped-call]
        assert inbox.lost.is_set()
