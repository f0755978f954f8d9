"""`Fleet` against a gateway with simulated devices, on a real broker."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.brokers import BrokerUnavailable, Kind, local_broker
from gateway.client import CallOutcome, DeviceEvent, Disconnected, Fleet, NoOutcome
from gateway.simulate import Behaviour, SimulatedDevice
from tests.clients.install import missing
from tests.e2e.world import WAIT_S, device, gateway

CALLS = 5_000
DEVICES = 50
FINAL = {"acked", "nacked", "timeout", "lost", "offline", "expired", "rejected"}


@pytest.fixture(params=["mosquitto"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """The embedded broker forgets its sessions when it stops."""
    return "mosquitto"


async def test_calls_at_once_with_a_broker_that_restarts(kind: Kind, tmp_path: Path) -> None:
    """Each call ends, with an outcome or a clear exception, nothing stays behind, and the next calls work."""
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(local_broker(kind, tmp_path))
        except BrokerUnavailable as problem:
            missing(str(problem))
        node = await stack.enter_async_context(gateway(broker.url, "--node", "gw-1"))
        plates = [
            SimulatedDevice(node.devices, f"SIM{n}", behaviour=Behaviour(ack_delay_s=0.05)) for n in range(DEVICES)
        ]
        await asyncio.gather(*(stack.enter_async_context(plate) for plate in plates))
        fleet = await stack.enter_async_context(Fleet(broker.url, max_inflight=200))
        before = asyncio.all_tasks()
        ended = asyncio.Event()
        count = 0

        async def one(n: int) -> CallOutcome:
            nonlocal count
            try:
                return await fleet.call(f"SIM{n % DEVICES}", "device_status", qos=n % 2, timeout_s=30)
            finally:
                count += 1
                if count == CALLS // 10:
                    ended.set()

        calls = [asyncio.create_task(one(n)) for n in range(CALLS)]
        await ended.wait()
        await broker.stop()
        await broker.start()
        results = await asyncio.gather(*calls, return_exceptions=True)
        how = Counter(
            (n % 2, result.status if isinstance(result, CallOutcome) else type(result).__name__)
            for n, result in enumerate(results)
        )
        print(sorted(how.items()))
        assert all(isinstance(result, (CallOutcome, NoOutcome, Disconnected)) for result in results), how
        assert {status for _, status in how} <= FINAL | {"NoOutcome", "Disconnected"}
        assert how[0, "Disconnected"]  # the restart was in the middle
        assert not how[1, "Disconnected"]
        assert not len(fleet._calls)
        assert not {task for task in asyncio.all_tasks() - before if task.get_name().startswith("publish")}
        assert (await fleet.call("SIM0", "device_status", qos=1, timeout_s=WAIT_S)).status == "acked"


async def test_a_handle_an_event_a_question_and_presence(kind: Kind, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(local_broker(kind, tmp_path))
        except BrokerUnavailable as problem:
            missing(str(problem))
        node = await stack.enter_async_context(gateway(broker.url, "--node", "gw-1"))
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
