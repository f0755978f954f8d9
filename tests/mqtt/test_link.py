"""The link on a real broker, and on one that the test plays."""

import asyncio
import ssl
import time
from collections.abc import Callable

import pytest
import uvloop

from gateway.mqtt.values import (
    Backoff,
    Closed,
    Credentials,
    Down,
    Dropped,
    Message,
    Opened,
    Published,
    Received,
    Refused,
    Subscribed,
    Subscription,
    Unavailable,
)

from .conftest import Broker, Fake
from .peers import Owner, Proxy, accept, cut, make_link, next_of, service


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
    published = await owner.expect(Published)
    assert (published.token, published.code) == (1, 0)
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
        cut(link)
        link.puback(second.delivery)
        assert (await owner.expect(Opened, skipping=(Down,))).session_present
        link.puback(first.delivery)
        link.flush()
        await client.publish("d/1/commands/x", b"3", qos=1)
        third = await owner.expect(Received)
        assert (third.message.payload, third.duplicate) == (b"3", False)
        cut(link)
        await owner.expect(Opened, skipping=(Subscribed, Down))
        await client.publish("d/1/commands/x", b"4", qos=1)
        assert (await owner.expect(Received)).message.payload == b"4"  # 1 and 2 were acknowledged, 3 is known
    await link.close()


async def test_a_puback_that_is_lost_with_its_connection_repeats_nothing(broker: Broker) -> None:
    proxy, owner = Proxy(broker), Owner()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    link = make_link(f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", owner)
    link.open()
    await owner.expect(Subscribed, skipping=(Opened,))
    async with service(broker) as client:
        for payload in (b"1", b"2"):
            await client.publish("d/1/commands/x", payload, qos=1)
            received = await owner.expect(Received)
            assert (received.message.payload, received.duplicate) == (payload, False)
            proxy.lose_puback = True
            link.puback(received.delivery or 0)
            link.flush()
            await owner.expect(Down)
            assert await owner.expect(Opened) == Opened(session_present=True)
        assert not proxy.lose_puback
        await client.publish("d/1/commands/x", b"3", qos=1)
        assert (await owner.expect(Received)).message.payload == b"3"
    await link.close()
    server.close()
    assert owner.queue.empty()


async def test_a_retained_message_is_looked_up_by_a_subscription(broker: Broker) -> None:
    owner = Owner()
    link = make_link(broker.url, owner)
    link.open()
    assert (await owner.expect(Subscribed, skipping=(Opened,))).filters == ("d/1/commands/#",)
    async with service(broker) as client:
        await client.publish("d/1/presence", b"here", qos=1, retain=True)
        for _ in range(2):
            link.subscribe(Subscription("d/1/presence", retained=True))
            link.flush()
            events = [await owner.expect(object, skipping=()), await owner.expect(object, skipping=())]
            assert Subscribed(("d/1/presence",), ()) in events
            (found,) = [e for e in events if isinstance(e, Received)]
            assert (found.message.payload, found.message.retain) == (b"here", True)
            link.puback(found.delivery or 0)
            link.unsubscribe("d/1/presence")
            link.flush()
        link.subscribe(Subscription("d/2/presence", retained=True))  # nothing is there
        link.flush()
        assert await owner.expect(Subscribed, skipping=()) == Subscribed(("d/2/presence",), ())
        await client.publish("d/1/presence", b"gone", qos=1, retain=True)  # no subscription any more
        await client.publish("d/2/presence", b"came", qos=1)
        assert (await owner.expect(Received, skipping=())).message.payload == b"came"
    await link.close()


async def test_a_refused_link_keeps_trying_until_closed(start_broker: Callable[..., Broker]) -> None:
    broker = start_broker({"d-1": "key"})
    owner = Owner()
    link = make_link(broker.url, owner, Credentials("d-1", b"wrong"))
    link.open()
    for _ in range(3):
        assert (await owner.expect(Refused)).code >= 0x80
    await link.close()
    assert not link.connected


async def test_a_broker_that_does_not_answer_is_left_in_time(fake: Fake) -> None:
    owner = Owner()
    link = make_link(fake[0], owner, connect_timeout_s=0.05)
    link.open()
    for _ in range(2):
        peer = await next_of(fake[1])
        assert await owner.expect(Unavailable) == Unavailable("no answer in time")
        async with asyncio.timeout(10):
            await peer.lost.wait()
    await link.close()


async def test_a_connection_that_is_not_made_in_time_is_given_up(fake: Fake) -> None:
    """Its broker never shakes hands for TLS."""
    owner = Owner()
    link = make_link(fake[0], owner, connect_timeout_s=0.05, tls=ssl.create_default_context())
    link.open()
    for _ in range(2):
        assert await owner.expect(Unavailable) == Unavailable("no answer in time")
    await link.close()
    assert not link.connected


@pytest.mark.parametrize("turns", range(4))
async def test_an_attempt_that_is_late_as_its_connection_is_made_is_followed_by_another(fake: Fake, turns: int) -> None:
    """Both are found in one turn of the event loop, which was held up while it connected."""
    owner = Owner()
    link = make_link(fake[0], owner, connect_timeout_s=0.1)
    link.open()
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(0.2)
    assert await owner.expect(Unavailable) == Unavailable("no answer in time")
    await next_of(fake[1])
    await link.close()


async def test_a_taken_over_link_asks_before_it_reconnects(broker: Broker) -> None:
    answers = iter([False])
    owner, other = Owner(), Owner()

    async def may_reconnect() -> bool:
        return next(answers)

    link = make_link(broker.url, owner, may_reconnect=may_reconnect, subscriptions=())
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


async def test_nobody_listens(unused_tcp_port: int) -> None:
    owner = Owner()
    link = make_link(f"mqtt://127.0.0.1:{unused_tcp_port}", owner)
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
    link = make_link(fake[0], owner, may_reconnect=may_reconnect, subscriptions=())
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


async def test_the_question_may_fail_or_be_cut_short(fake: Fake) -> None:
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
    (await next_of(asked)).set_exception(ValueError("the store is away"))
    (await next_of(fake[1])).transport.close()  # before a CONNACK
    await owner.expect(Unavailable, skipping=())
    question = await next_of(asked)  # again before each attempt
    proof = asyncio.create_task(link.prove(Credentials()))
    peer = await accept(fake[1])
    assert isinstance(await proof, Opened)
    assert question.cancelled()
    peer.transport.close()
    await owner.expect(Down, skipping=(Opened,))
    question = await next_of(asked)
    await link.close()
    assert (question.cancelled(), link.connected, owner.queue.empty(), fake[1].empty()) == (True, False, True, True)


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
