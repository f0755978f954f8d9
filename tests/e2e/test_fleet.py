"""`Fleet` against a gateway with simulated devices, on a real broker."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.addresses import BrokerUrl
from gateway.brokers import Kind, LocalBroker
from gateway.client import CallOutcome, DeviceEvent, Fleet
from gateway.simulate.fleet import SimulatedFleet, cast
from gateway.simulate.profiles import Behaviour
from tests.e2e.world import WAIT_S, Node, device

CALLS = 5_000
DEVICES = 50
FINAL = {"acked", "nacked", "timeout", "lost", "offline", "expired", "rejected"}
PROMPT, SLOW = Behaviour(), Behaviour(ack_delay_s=(1.0, 2.0))  # an ack comes before the broker goes, or after
NO_SUBSCRIBERS = 0x10


@pytest.fixture(params=["mosquitto"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """The embedded broker forgets its sessions when it stops."""
    chosen: Kind = request.param
    return chosen


def unheard(broker: LocalBroker, topic: str) -> bool:
    """Whether the broker has no subscription for this topic, also none of a session that it keeps."""
    codes: list[int] = []
    url = BrokerUrl.parse(broker.url)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_publish = lambda _, __, ___, code, ____: codes.append(code.value)
    client.connect(url.host, url.port)
    client.publish(topic, qos=1)
    while not codes:
        assert client.loop(WAIT_S) == paho.MQTT_ERR_SUCCESS
    client.disconnect()
    return codes == [NO_SUBSCRIBERS]


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
async def test_calls_at_once_with_a_broker_that_restarts(
    crash: bool, broker: LocalBroker, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call ends, nothing stays behind, and the next calls work.

    Over a restart in good order each command of QoS 1 has its outcome, also when the gateway is back before the fleet.
    A crash loses what the broker has not saved.
    """
    monkeypatch.setattr("gateway.fleet.connection.random.uniform", lambda *_: 3.0)
    devices = cast([f"SIM{n}" for n in range(DEVICES)], (PROMPT, SLOW), lambda _: "key")
    async with SimulatedFleet(node.devices, devices) as plates:
        await plates.online()
        before = asyncio.all_tasks()
        async with Fleet(broker.url, max_inflight=100) as fleet:
            results = await _interrupted(fleet, broker, crash=crash)
            how = Counter((n % 2, _ended(result)) for n, result in enumerate(results))
            assert not len(fleet._calls)
            assert fleet._connection is not None
            assert not fleet._connection._publishing
            await _linked(fleet)
            again = await fleet.call("SIM0", "device_status", qos=1, timeout_s=WAIT_S)
            assert again.status == "acked"
            assert not unheard(broker, fleet._inbox)
        assert asyncio.all_tasks() == before
        assert unheard(broker, fleet._inbox)
    print(sorted(how.items()))
    assert how[0, "acked"]
    assert how[0, "Disconnected"], "the restart was in the middle"
    assert {status for qos, status in how if not qos} <= FINAL | {"NoOutcome", "Disconnected"}
    assert {status for qos, status in how if qos} <= ({"acked"} if not crash else FINAL | {"NoOutcome"})


async def _linked(fleet: Fleet) -> None:
    """Wait until the gateway has every device in the broker again: what comes before finds no subscriber."""
    async with fleet.presence() as devices, asyncio.timeout(WAIT_S):
        if len(devices.online()) < DEVICES:
            async for _ in devices.changes():
                if len(devices.online()) == DEVICES:
                    break


async def _interrupted(fleet: Fleet, broker: LocalBroker, *, crash: bool) -> list[CallOutcome | BaseException]:
    """Call all at once; when one in ten has ended, restart the broker. How each ended."""
    some, count = asyncio.Event(), 0
    number = CALLS // 5 if crash else CALLS  # those that wait in vain do so for all of their timeout

    async def one(n: int) -> CallOutcome:
        nonlocal count
        try:
            serial = f"SIM{n // 2 % DEVICES}"
            return await fleet.call(serial, "device_status", qos=n % 2, timeout_s=5.0 if crash else 60.0)
        finally:
            count += 1
            if count == number // 10:
                some.set()

    calls = [asyncio.create_task(one(n)) for n in range(number)]
    await some.wait()
    await (broker.kill() if crash else broker.stop())
    await broker.start()
    return await asyncio.gather(*calls, return_exceptions=True)


def _ended(result: CallOutcome | BaseException) -> str:
    return result.status if isinstance(result, CallOutcome) else type(result).__name__


async def test_a_handle_an_event_a_question_and_presence(broker: LocalBroker, node: Node) -> None:
    async with AsyncExitStack() as stack:
        fleet = Fleet(broker.url)

        @fleet.answer("what_time")
        async def what_time(question: DeviceEvent) -> dict[str, str]:
            return {"time": "12:00", "zone": question.payload["zone"]}

        await stack.enter_async_context(fleet)
        events = fleet.events("AC1")
        first = asyncio.ensure_future(anext(events))
        async with device(node, "AC1") as plate:
            asked = await plate.client.call("what_time", {"zone": "UTC"}, timeout=int(WAIT_S))
            assert asked == {"time": "12:00", "zone": "UTC"}
            while not first.done():  # it does not say when it has subscribed
                await plate.client.emit("hello", ("a", 1))
                await asyncio.wait({first}, timeout=0.1)
            assert (await first).event in ("hello", "what_time")
            async with fleet.presence() as devices:
                assert devices["AC1"].online
                sent = await fleet.send("AC1", "bind_class", {"id": 1}, ttl_s=30)
                assert (await sent.outcome()).raise_for_status().data == {"ack": True}
                await plate.disconnect()
                async with asyncio.timeout(WAIT_S):
                    async for _, presence in devices.changes():
                        if not presence.online:
                            break
                assert devices.online() == []
            held = await fleet.send("AC1", "bind_class", {"id": 1}, ttl_s=1)
            assert (await held.queued()).status == "queued"
            assert (await held.outcome()).status == "expired"
        await events.aclose()
