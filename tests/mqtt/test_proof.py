"""Proofs: a connection anew, with other credentials, in place of the current one."""

import asyncio
from collections.abc import Callable

import mqtt5

from gateway.mqtt import (
    Credentials,
    Down,
    Opened,
    Received,
    Refused,
    Subscribed,
)

from .conftest import Broker, Fake
from .peers import Owner, accept, make_link, service


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
