"""The link on a real broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiomqtt
import mqtt5
import pytest
import uvloop

from gateway.addresses import BrokerUrl
from gateway.mqtt import (
    Backoff,
    Credentials,
    Down,
    LinkEvent,
    Message,
    Opened,
    Options,
    Published,
    Received,
    Refused,
    Subscribed,
    Subscription,
    Unavailable,
    Will,
)
from gateway.mqtt.link import Link
from gateway.mqtt.session import Closed, Dropped

from .conftest import Broker

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


def make_link(url: str, owner: Owner, credentials: Credentials | None = None, **options: object) -> Link:
    settings: dict[str, object] = {"client_id": "d-1", "subscriptions": COMMANDS, "session_expiry_s": 60} | options
    return Link(
        BrokerUrl.parse(url),
        Options(**settings),  # type: ignore[arg-type]
        credentials or Credentials(),
        owner,
        backoff=BACKOFF,
        connect_timeout_s=5,
    )


def service(broker: Broker, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        protocol=aiomqtt.ProtocolVersion.V5,
        **options,  # type: ignore[arg-type]
    )


async def both_ways(broker: Broker, url: str) -> None:
    owner = Owner()
    link = make_link(url, owner)
    link.open()
    assert await owner.expect(Opened) == Opened(session_present=False)
    assert (await owner.expect(Subscribed)).refused == ()
    async with service(broker) as client:
        await client.subscribe("d/1/acks/#", qos=1)
        await client.publish("d/1/commands/x", b"in", qos=1)
        received = await owner.expect(Received)
        assert (received.message.topic, received.message.payload) == ("d/1/commands/x", b"in")
        assert received.delivery is not None
        link.publish(Message("d/1/acks/x", b"out", 1, correlation=b"c", user_properties=(("id", "7"),)), token=1)
        link.puback(received.delivery)
        link.flush()
        answer = await anext(aiter(client.messages))
        assert answer.payload == b"out"
        assert getattr(answer.properties, "UserProperty", None) == [("id", "7")]
        assert getattr(answer.properties, "CorrelationData", None) == b"c"
    assert await owner.expect(Published) == Published(1, 0)
    await link.close()
    assert not link.connected


async def test_publishes_both_ways(broker: Broker) -> None:
    await both_ways(broker, broker.url)


async def test_publishes_both_ways_over_a_unix_socket(broker: Broker) -> None:
    await both_ways(broker, f"mqtt+unix://{broker.socket_path}")


def test_publishes_both_ways_under_uvloop(broker: Broker) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both_ways(broker, broker.url))


async def test_reads_a_message_that_comes_in_many_parts(broker: Broker) -> None:
    owner = Owner()
    link = make_link(broker.url, owner)
    link.open()
    await owner.expect(Subscribed, skipping=(Opened,))
    payload = bytes(range(256)) * 8_000
    async with service(broker) as client:
        await client.publish("d/1/commands/x", payload, qos=1)
        await client.publish("d/1/commands/x", b"next", qos=1)
    assert (await owner.expect(Received)).message.payload == payload
    assert (await owner.expect(Received)).message.payload == b"next"
    await link.close()


async def test_resumes_after_the_broker_restarts(broker: Broker) -> None:
    owner = Owner()
    link = make_link(broker.url, owner)
    link.open()
    await owner.expect(Subscribed, skipping=(Opened,))
    broker.stop()
    await owner.expect(Down)
    link.publish(Message("d/1/commands/echo", b"kept", 1), token=5)
    link.flush()
    broker.start()
    assert (await owner.expect(Opened, skipping=(Unavailable,))).session_present
    assert (await owner.expect(Received, skipping=(Subscribed, Published))).message.payload == b"kept"
    await link.close()


async def test_a_redelivery_after_a_cut_keeps_its_delivery(broker: Broker) -> None:
    owner = Owner()
    link = make_link(broker.url, owner)
    link.open()
    await owner.expect(Subscribed, skipping=(Opened,))
    async with service(broker) as client:
        for payload in (b"1", b"2"):
            await client.publish("d/1/commands/x", payload, qos=1)
        first, second = await owner.expect(Received), await owner.expect(Received)
        assert first.delivery is not None
        assert second.delivery is not None
        link.abort()
        link.puback(second.delivery)
        link.open()
        assert (await owner.expect(Opened)).session_present
        link.puback(first.delivery)
        link.flush()
        await client.publish("d/1/commands/x", b"3", qos=1)
        third = await owner.expect(Received)
        assert (third.message.payload, third.duplicate) == (b"3", False)
        link.abort()
        link.open()
        await owner.expect(Opened)
        await client.publish("d/1/commands/x", b"4", qos=1)
        assert (await owner.expect(Received)).message.payload == b"4"  # 1 and 2 were acknowledged, 3 is known
    await link.close()


async def test_the_will_fires_on_abort_but_not_on_close(broker: Broker) -> None:
    owner = Owner()
    link = make_link(broker.url, owner, will=Will(Message("d/1/presence", b"offline", 1)))
    async with service(broker) as client:
        await client.subscribe("d/1/presence", qos=1)
        link.open()
        await owner.expect(Opened)
        link.publish(Message("d/1/presence", b"closing"))
        await link.close()
        link.open()
        await owner.expect(Opened)
        link.abort()
        messages = aiter(client.messages)
        assert [(await anext(messages)).payload, (await anext(messages)).payload] == [b"closing", b"offline"]


async def test_prove_promotes_only_with_the_right_password(start_broker: Callable[..., Broker]) -> None:
    broker = start_broker({"d-1": "old", "svc": "svc"})
    owner = Owner()
    link = make_link(broker.url, owner, Credentials("d-1", b"old"))
    assert isinstance(await link.prove(Credentials("d-1", b"bad")), Refused)
    assert not link.connected
    assert isinstance(await link.prove(Credentials("d-1", b"old")), Opened)
    await owner.expect(Subscribed, skipping=(Opened,))
    async with service(broker, username="svc", password="svc") as client:
        await client.publish("d/1/commands/x", b"1", qos=1)
        held = await owner.expect(Received)
        assert held.delivery is not None
        verdicts = await asyncio.gather(*(link.prove(Credentials("d-1", key)) for key in (b"bad", b"old", b"no")))
        assert [type(v) for v in verdicts] == [Refused, Opened, Refused]
        assert link.connected
        assert await owner.expect(Opened) == Opened(session_present=True)
        link.puback(held.delivery)
        link.flush()
        await client.publish("d/1/commands/x", b"2", qos=1)
        assert (await owner.expect(Received)).message.payload == b"2"
    await link.close()
    assert owner.queue.empty()


async def test_a_refused_link_keeps_trying_until_closed(start_broker: Callable[..., Broker]) -> None:
    broker = start_broker({"d-1": "key"})
    owner = Owner()
    link = make_link(broker.url, owner, Credentials("d-1", b"wrong"))
    link.open()
    for _ in range(3):
        assert (await owner.expect(Refused)).code >= 0x80
    await link.close()
    assert not link.connected


async def test_a_taken_over_link_asks_before_it_reconnects(broker: Broker) -> None:
    answers = iter([False])
    owner, other = Owner(), Owner()

    async def may_reconnect() -> bool:
        return next(answers)

    link = Link(
        BrokerUrl.parse(broker.url),
        Options("d-1"),
        Credentials(),
        owner,
        backoff=BACKOFF,
        connect_timeout_s=5,
        may_reconnect=may_reconnect,
    )
    link.open()
    await owner.expect(Opened)
    winner = make_link(broker.url, other)
    winner.open()
    await other.expect(Opened)
    await owner.expect(Closed, skipping=(Down,))  # 0x8E at once, or a cut and then the answer no
    assert not link.connected
    assert winner.connected
    await winner.close()
    await link.close()


async def test_nobody_listens(unused_port: int) -> None:
    owner = Owner()
    link = make_link(f"mqtt://127.0.0.1:{unused_port}", owner)
    assert isinstance(await link.prove(Credentials()), Unavailable)
    link.open()
    await owner.expect(Unavailable)
    await owner.expect(Unavailable)
    await link.close()


def test_backoff_is_full_jitter_with_a_ceiling() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    assert [Backoff(1, 30).delay_s(n, uniform) for n in (0, 1, 4, 5, 5000)] == [1, 2, 16, 30, 30]
    assert {low for low, _ in asked} == {0.0}


class FakeBroker(asyncio.Protocol):
    """The broker's end of a connection, played by the test."""

    def __init__(self, connections: "asyncio.Queue[FakeBroker]") -> None:
        self._connections = connections
        self.read = asyncio.Queue[bytes]()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data[0] == 0x10:
            self.hello = data
            self._connections.put_nowait(self)
        else:
            self.read.put_nowait(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def accept(connections: "asyncio.Queue[FakeBroker]") -> FakeBroker:
    async with asyncio.timeout(10):
        peer = await connections.get()
    peer.transport.write(mqtt5.ConnAckPacket(session_present=True).write())
    return peer


@pytest.fixture
async def fake() -> AsyncIterator[tuple[str, "asyncio.Queue[FakeBroker]"]]:
    """URL and connections of a fake broker."""
    connections = asyncio.Queue[FakeBroker]()
    server = await asyncio.get_running_loop().create_server(lambda: FakeBroker(connections), "127.0.0.1", 0)
    yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    server.close()
    while not connections.empty():
        connections.get_nowait().transport.abort()


Fake = tuple[str, "asyncio.Queue[FakeBroker]"]


async def test_a_session_taken_over_ends_the_link(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    peer.transport.write(b"\xe0\x02\x8e\x00")
    assert (await owner.expect(Closed, skipping=(Opened,))).code == 0x8E
    await peer.lost.wait()
    await link.close()
    assert (owner.queue.empty(), fake[1].empty(), link.connected) == (True, True, False)


@pytest.mark.parametrize(("goodbye", "asked"), [(b"", 2), (b"\xe0\x01\x8b", 0)])
async def test_only_a_cut_without_a_reason_asks_before_a_reconnect(fake: Fake, goodbye: bytes, asked: int) -> None:
    calls: list[bool] = []

    async def may_reconnect() -> bool:
        calls.append(len(calls) == 0)
        return calls[-1]

    owner = Owner()
    address = BrokerUrl.parse(fake[0])
    link = Link(
        address,
        Options("d"),
        Credentials(),
        owner,
        backoff=BACKOFF,
        connect_timeout_s=5,
        may_reconnect=may_reconnect,
    )
    link.open()
    for _ in range(2):
        peer = await accept(fake[1])
        await owner.expect(Opened)
        peer.transport.write(goodbye)
        peer.transport.close()
        await owner.expect(Down)
    if asked:
        assert await owner.expect(Closed) == Closed(None, "gave way")
    else:
        (await fake[1].get()).transport.abort()
    await link.close()
    assert len(calls) == asked


async def test_a_protocol_error_is_told_to_the_broker_before_the_reconnect(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    peer.transport.write(b"\x00\x00")
    assert (await owner.expect(Down, skipping=(Opened,))).code == 0x81
    assert (await peer.read.get())[:1] == b"\xe0"
    await accept(fake[1])
    await owner.expect(Opened)
    await link.close()


async def test_what_the_broker_does_not_read_waits_in_the_session(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    await owner.expect(Opened)
    peer.transport.pause_reading()
    payload = bytes(1 << 20)
    for _ in range(20):
        link.publish(Message("t", payload), droppable=True)
        link.flush()
    await owner.expect(Dropped)  # paused: the waiting ones are bounded
    peer.transport.resume_reading()
    link.publish(Message("t", b"last"), token=1)
    assert await owner.expect(Published, skipping=(Dropped,)) == Published(1, 0)
    await link.close()


async def test_a_proof_that_kills_the_current_connection_shows_only_as_opened(fake: Fake) -> None:
    """A broker may cut the old connection before it accepts the new one."""
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    old = await accept(fake[1])
    await owner.expect(Opened)
    proof = asyncio.create_task(link.prove(Credentials("u", b"new")))
    new = await fake[1].get()
    old.transport.write(b"\xe0\x02\x8e\x00")
    await old.lost.wait()
    assert not link.connected
    new.transport.write(mqtt5.ConnAckPacket(session_present=True).write())
    assert isinstance(await proof, Opened)
    assert await owner.expect(Opened, skipping=()) == Opened(True)
    await link.close()
    assert owner.queue.empty()


async def test_a_proof_replaces_the_connection_and_keeps_the_credentials(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    old = await accept(fake[1])
    await owner.expect(Opened)
    proof = asyncio.create_task(link.prove(Credentials("u", b"new")))
    new = await accept(fake[1])
    assert isinstance(await proof, Opened)
    async with asyncio.timeout(10):
        await old.lost.wait()  # cut by the link
    assert link.connected
    await owner.expect(Opened)
    new.transport.abort()
    await owner.expect(Down)
    again = await accept(fake[1])
    connect, _ = mqtt5.read(memoryview(again.hello))
    assert isinstance(connect, mqtt5.ConnectPacket)
    assert (connect.username, connect.password) == ("u", b"new")
    await link.close()


async def test_close_ends_all_proofs(fake: Fake) -> None:
    link = make_link(fake[0], Owner())
    link.open()
    proofs = [asyncio.create_task(link.prove(Credentials())) for _ in range(3)]
    await fake[1].get()  # the broker never answers
    await link.close()
    assert await asyncio.gather(*proofs) == [Unavailable("closed")] * 3
    assert not link.connected


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
