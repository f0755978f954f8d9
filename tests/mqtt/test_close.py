"""The end of a link: what the broker has by then, and what the owner is told."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass

import mqtt5
import pytest

from gateway.mqtt.link import Link
from gateway.mqtt.values import (
    Credentials,
    Down,
    LinkEvent,
    Message,
    Opened,
    Published,
    Received,
    Subscribed,
    Unavailable,
    Will,
)

from .conftest import Broker, Fake
from .peers import Owner, accept, cut, make_link, next_of, read_publishes, service


async def test_the_will_fires_on_a_cut_but_not_on_close(broker: Broker) -> None:
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
        cut(link)
        messages = aiter(client.messages)
        assert [(await anext(messages)).payload, (await anext(messages)).payload] == [b"closing", b"offline"]
    await link.close()


@pytest.mark.parametrize("settings", [(), ("max_inflight_messages 5",)], ids=["default", "small window"])
async def test_close_loses_no_publish(start_broker: Callable[..., Broker], settings: tuple[str, ...]) -> None:
    broker = start_broker(None, *settings)
    link = make_link(broker.url, owner := Owner(), will=Will(Message("d/1/presence", b"lost", 1, retain=True)))
    async with service(broker) as client:
        await client.subscribe("d/1/#", qos=1)
        link.open()
        await owner.expect(Opened)
        for n in range(300):
            link.publish(Message("d/1/acks/x", b"%d" % n, 1), token=n)
        link.publish(Message("d/1/presence", b"offline", 1, retain=True), token=300)
        await asyncio.gather(link.close(), link.close())
        await client.publish("d/1/end", b"end", qos=1)
        messages = aiter(client.messages)
        async with asyncio.timeout(10):
            payloads = [(await anext(messages)).payload for _ in range(302)]
    assert payloads == [b"%d" % n for n in range(300)] + [b"offline", b"end"]
    assert [(await owner.expect(Published)).token for _ in range(301)] == list(range(301))
    assert owner.queue.empty()


async def test_the_owner_settles_commands_while_the_link_closes(broker: Broker) -> None:
    """A command is acknowledged once its outcome is published: of those that have one, none comes again."""

    @dataclass
    class Settling(Owner):
        link: Link | None = None

        def link_event(self, event: LinkEvent) -> None:
            super().link_event(event)
            if isinstance(event, Published):
                assert self.link is not None
                assert event.token is not None
                self.link.puback(event.token)

    owner = Settling()
    owner.link = link = make_link(broker.url, owner)
    link.open()
    await owner.expect(Subscribed, skipping=(Opened,))
    async with service(broker) as client:
        for n in range(50):
            await client.publish("d/1/commands/x", b"%d" % n, qos=1)
    for _ in range(19):
        received = await owner.expect(Received)
        link.publish(Message("d/1/acks/x", qos=1), received.delivery)
    await link.close()
    again = make_link(broker.url, other := Owner())
    again.open()
    assert await other.expect(Opened) == Opened(session_present=True)
    assert (await other.expect(Received)).message.payload == b"19"
    await again.close()


async def test_close_waits_for_the_pubacks_and_serves_the_owner_meanwhile(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    await owner.expect(Opened)
    link.publish(Message("t", b"1", 1), token=1)
    closing = asyncio.create_task(link.close(session_expiry_s=0))
    (first,) = read_publishes(await next_of(peer.read))
    peer.transport.write(mqtt5.PublishPacket("c", b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=9).write())
    received = await owner.expect(Received)
    link.publish(Message("t", b"2", 1), token=2)  # an answer
    link.puback(received.delivery or 0)
    peer.transport.write(mqtt5.PubAckPacket(first.packet_id or 0).write())
    assert (await owner.expect(Published)).token == 1
    data = await next_of(peer.read)
    (second,) = read_publishes(data)
    assert data[0] == 0x40
    assert link.connected
    peer.transport.write(mqtt5.PubAckPacket(second.packet_id or 0).write())
    assert (await owner.expect(Published)).token == 2
    assert await next_of(peer.read) == mqtt5.DisconnectPacket(session_expiry_interval=0).write()
    await closing
    assert (link.connected, owner.queue.empty(), fake[1].empty()) == (False, True, True)


async def test_close_ends_with_the_connection_and_makes_no_other(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    await owner.expect(Opened)
    link.publish(Message("t", qos=1))
    closing = asyncio.create_task(link.close(timeout_s=60))
    await next_of(peer.read)
    peer.transport.abort()
    await owner.expect(Down)
    await closing
    assert (link.connected, owner.queue.empty(), fake[1].empty()) == (False, True, True)


async def test_close_gives_up_on_a_broker_that_never_answers(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner)
    link.open()
    peer = await accept(fake[1])
    await owner.expect(Opened)
    link.publish(Message("t", qos=1))
    await link.close(timeout_s=0.01)
    assert not link.connected
    await peer.lost.wait()
    data = b"".join(peer.read.get_nowait() for _ in range(peer.read.qsize()))
    assert data.endswith(mqtt5.DisconnectPacket().write())


async def test_close_ends_all_proofs(fake: Fake) -> None:
    link = make_link(fake[0], Owner())
    link.open()
    proofs = [asyncio.create_task(link.prove(Credentials())) for _ in range(3)]
    await next_of(fake[1])  # the broker never answers
    await link.close()
    assert await asyncio.gather(*proofs) == [Unavailable("closed")] * 3
    assert not link.connected


def test_the_loop_may_end_before_the_link(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        make_link(f"mqtt://127.0.0.1:{unused_tcp_port}", owner := Owner()).open()
        await owner.expect(Unavailable)

    asyncio.run(main())
    gc.collect()
    assert caplog.messages == []
