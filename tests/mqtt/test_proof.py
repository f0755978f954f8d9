"""Proofs: a connection anew, with other credentials, in place of the current one."""

import asyncio
from collections.abc import Callable

import mqtt5

from gateway.mqtt.values import (
    Closed,
    Credentials,
    Down,
    Opened,
    Received,
    Refused,
    Subscribed,
    Unavailable,
)

from .conftest import Broker, Fake, FakeBroker
from .peers import Owner, accept, make_link, next_of, service


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


def credentials_of(peer: FakeBroker) -> Credentials:
    connect, _ = mqtt5.read(memoryview(peer.hello))
    assert isinstance(connect, mqtt5.ConnectPacket)
    return Credentials(connect.username, connect.password)


def refuse(peer: FakeBroker) -> None:
    peer.transport.write(mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.NOT_AUTHORIZED).write())


async def play(connections: "asyncio.Queue[FakeBroker]", right: Credentials) -> list[Credentials]:
    """Answer each CONNECT as a broker would until it is the right one; return all that were tried."""
    tried: list[Credentials] = []
    while right not in tried:
        peer = await next_of(connections)
        assert connections.empty(), "one attempt at a time"
        tried.append(credentials_of(peer))
        if tried[-1] == right:
            peer.transport.write(mqtt5.ConnAckPacket(session_present=True).write())
        else:
            refuse(peer)
    return tried


async def test_strangers_do_not_hold_up_a_reconnect(fake: Fake) -> None:
    """Wrong keys without a pause, from many sockets, while the link of the device is down."""
    right = Credentials("d-1", b"right")
    owner = Owner()
    link = make_link(fake[0], owner, right)
    link.open()
    device = await accept(fake[1])
    await owner.expect(Opened)

    async def guess(number: int) -> None:
        while True:
            assert isinstance(await link.prove(Credentials("d-1", b"wrong-%d" % number)), Refused)

    strangers = [asyncio.create_task(guess(number)) for number in range(20)]
    device.transport.abort()
    broker = asyncio.create_task(play(fake[1], right))
    await owner.expect(Down)
    await owner.expect(Opened, skipping=())
    assert len(await broker) > 1, "the strangers did try"
    assert link.connected
    for stranger in strangers:
        stranger.cancel()
    await asyncio.wait(strangers)
    await link.close()


async def test_a_reconnect_that_is_due_waits_for_one_stranger_only(fake: Fake) -> None:
    right, owner = Credentials("d-1", b"right"), Owner()
    link = make_link(fake[0], owner, right, uniform=lambda low, high: low)
    link.open()
    first = await next_of(fake[1])
    strangers = [asyncio.create_task(link.prove(Credentials("d-1", b"wrong"))) for _ in range(5)]
    refuse(first)
    assert await play(fake[1], right) == [Credentials("d-1", b"wrong"), right]
    await owner.expect(Opened, skipping=(Refused,))
    for stranger in strangers:
        stranger.cancel()
    await asyncio.wait(strangers)
    await link.close()


async def test_a_wrong_key_while_the_link_is_cut_changes_nothing_but_the_time(fake: Fake) -> None:
    """The loss may be the doing of the new connection, so it is told when that one has been refused."""
    right, owner = Credentials("d-1", b"right"), Owner()
    link = make_link(fake[0], owner, right)
    link.open()
    device = await accept(fake[1])
    await owner.expect(Opened)
    proof = asyncio.create_task(link.prove(Credentials("d-1", b"wrong")))
    stranger = await next_of(fake[1])
    device.transport.abort()
    async with asyncio.timeout(10):
        while link.connected:  # noqa: ASYNC110 - it tells nobody yet
            await asyncio.sleep(0)
    assert owner.queue.empty()
    refuse(stranger)
    assert isinstance(await proof, Refused)
    await owner.expect(Down)
    assert credentials_of(await accept(fake[1])) == right
    await owner.expect(Opened)
    await link.close()


async def test_a_proof_that_waits_is_not_made_when_the_link_has_ended(fake: Fake) -> None:
    """Another node has the device by then: it must not be taken back."""
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    device = await accept(fake[1])
    await owner.expect(Opened)
    first, second = (asyncio.create_task(link.prove(Credentials("d-1", key))) for key in (b"wrong", b"right"))
    stranger = await next_of(fake[1])
    device.transport.write(b"\xe0\x02\x8e\x00")
    await device.lost.wait()
    refuse(stranger)
    assert isinstance(await first, Refused)
    assert (await owner.expect(Closed)).code == 0x8E
    assert isinstance(await second, Unavailable)
    await link.close()
    assert (fake[1].empty(), link.connected) == (True, False)


async def test_a_link_that_would_give_way_waits_for_a_proof(fake: Fake) -> None:
    """Who holds the key says where the device is, rather than a presence of before."""
    asked = asyncio.Queue[asyncio.Future[bool]]()

    async def may_reconnect() -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asked.put_nowait(answer)
        return await answer

    owner = Owner()
    link = make_link(fake[0], owner, may_reconnect=may_reconnect)
    link.open()
    (await accept(fake[1])).transport.close()
    await owner.expect(Down, skipping=(Opened,))
    question = await next_of(asked)
    proof = asyncio.create_task(link.prove(Credentials("d-1", b"right")))
    peer = await next_of(fake[1])
    question.set_result(False)
    await asyncio.sleep(0)
    assert owner.queue.empty()
    peer.transport.write(mqtt5.ConnAckPacket(session_present=True).write())
    assert isinstance(await proof, Opened)
    assert await owner.expect(Opened, skipping=()) == Opened(True)
    assert link.connected
    await link.close()
