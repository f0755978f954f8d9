"""Every event of the catalogue through a gateway, in its direction, with the examples of the document."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from gateway.brokers import LocalBroker
from gateway.catalog import EVENTS, Event
from gateway.client import Fleet
from gateway.simulate.device import SimulatedDevice
from gateway.simulate.fleet import SimulatedFleet
from gateway.simulate.profiles import UPGRADE, Behaviour, Report
from tests.e2e.world import WAIT_S, Node, Service

SERIAL = "AC4178234415"  # of the document's examples


@pytest.fixture(params=["mosquitto"])
def kind(request: pytest.FixtureRequest) -> str:
    """The embedded broker makes QoS 1 of QoS 0, and then what the examples show ended in 2016."""
    return str(request.param)


both = pytest.mark.parametrize("engine", [3, 4], ids=["EIO3", "EIO4"])


def example(event: Event) -> Any:
    """The payload that the document shows; None where there is no argument."""
    return None if event.payload is None else dict(event.example)


class Plate:
    """A simulated device that keeps what it was told."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    @asynccontextmanager
    async def connected(self, url: str, behaviour: Behaviour) -> AsyncIterator[None]:
        device = SimulatedDevice(SERIAL, behaviour=behaviour)
        async with SimulatedFleet(url, [device], tell=self._lines.put_nowait) as plates:
            await plates.online()
            await self.expect("online")
            yield

    async def expect(self, event: str) -> list[Any]:
        """The arguments of the next event, which must be this one."""
        line = await asyncio.wait_for(self._lines.get(), WAIT_S)
        serial, _, rest = line.partition("  ")
        name, _, argument = rest.partition(" ")
        assert (serial, name) == (SERIAL, event)
        return [json.loads(argument)] if argument else []


@both
async def test_from_a_service_to_a_device_and_its_ack(engine: Literal[3, 4], broker: LocalBroker, node: Node) -> None:
    plate = Plate()
    async with Fleet(broker.url) as fleet, plate.connected(node.devices, Behaviour(engine, UPGRADE)):
        for event in EVENTS.values():
            if event.room:
                continue
            outcome = await fleet.call(SERIAL, event.name, example(event), timeout_s=WAIT_S)
            assert (outcome.status, outcome.data) == ("acked", dict(event.ack_example or {})), event.name
            assert await plate.expect(event.name) == ([] if event.payload is None else [example(event)])
            if event.name in ("enable_remote_cmd", "disable_remote_cmd"):  # it does so, too
                await plate.expect("join_room:ok" if event.name.startswith("enable") else "leave_room:ok")


@both
async def test_from_a_service_to_a_room(engine: Literal[3, 4], broker: LocalBroker, node: Node) -> None:
    plate = Plate()
    async with Fleet(broker.url) as fleet, plate.connected(node.devices, Behaviour(engine, UPGRADE)):
        await fleet.call(SERIAL, "enable_remote_cmd", {"room": SERIAL}, timeout_s=WAIT_S)
        await plate.expect("enable_remote_cmd")
        await plate.expect("join_room:ok")
        for event in EVENTS.values():
            if event.room and not event.from_device:
                await fleet.emit_room(SERIAL, event.name, example(event))
                assert await plate.expect(event.name) == [example(event)]


@both
async def test_from_a_device_to_services(engine: Literal[3, 4], api: Service, node: Node) -> None:
    """And to the room of its serial, where the document has it so."""
    emitted = [event for event in EVENTS.values() if event.from_device]
    reports = tuple(Report(event.name, example(event), 0.2) for event in emitted)
    async with Plate().connected(node.devices, Behaviour(engine, UPGRADE, reports=reports)):
        for event in emitted:
            assert await api.json(f"devices/{SERIAL}/events/{event.name}") == example(event)
            if event.room:
                assert await api.json(f"rooms/{SERIAL}/events/{event.name}") == example(event)
