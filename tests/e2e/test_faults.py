"""What survives a fault: nothing but the broker is shared state."""

import asyncio

import pytest

from gateway.brokers import LocalBroker
from tests.e2e.conftest import EMBEDDED_CANNOT
from tests.e2e.world import Device, Node, Service, device, gateway, service


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_kill_9_of_the_gateway(broker: LocalBroker, api: Service) -> None:
    """The Will says offline; a QoS 1 command published meanwhile is delivered when the device is back."""
    plate = Device("AC1")
    async with gateway(broker.url, "--node", "gw-1", environ={"GATEWAY_MQTT_WILL_DELAY_S": "1"}) as node:
        await plate.connect(node.devices)
        assert await plate.authenticate() == "auth:ok"
        await api.presence("AC1", online=True)
        await node.end(kill=True)
    await plate.disconnect()
    gone = await api.presence("AC1", online=False)
    assert (gone["node"], gone["reason"]) == ("gw-1", "gateway-lost")
    await api.send("devices/AC1/commands/bind_class/meanwhile", {"id": 7})
    async with gateway(broker.url, "--node", "gw-1") as node, device(node, "AC1") as plate:
        assert await plate.expect("bind_class") == ({"id": 7},)
        outcome = await api.outcome("devices/AC1/acks/bind_class/meanwhile")
        assert (outcome["status"], outcome["id"]) == ("acked", "meanwhile")
        await api.presence("AC1", online=True)


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_a_command_in_flight_at_the_crash_is_delivered_again(broker: LocalBroker, api: Service) -> None:
    plate = Device("AC1")
    async with gateway(broker.url) as node:
        await plate.connect(node.devices)
        assert await plate.authenticate() == "auth:ok"
        got = asyncio.Event()

        async def silent(event: str, *_: object) -> None:
            got.set()
            await asyncio.Event().wait()

        plate.client.on("*", silent)
        await api.send("devices/AC1/commands/bind_class/once-more", {"id": 7})
        await got.wait()
        await node.end(kill=True)
    await plate.disconnect()
    async with gateway(broker.url) as node, device(node, "AC1") as again:
        assert await again.expect("bind_class") == ({"id": 7},)
        assert (await api.outcome("devices/AC1/acks/bind_class/once-more"))["status"] == "acked"


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_a_broker_that_restarts(broker: LocalBroker, node: Node) -> None:
    """Sockets stay, links reconnect, presence is right again, and a device that comes meanwhile waits."""
    async with device(node, "AC1") as plate:
        await broker.stop()
        await node.logged("broker lost")
        late = Device("AC2")
        await late.connect(node.devices)
        waiting = asyncio.create_task(late.authenticate())
        await broker.start()
        assert await waiting == "auth:ok"
        async with service(broker.url) as api:
            await api.presence("AC1", online=True)
            await api.send("devices/AC1/commands/bind_class", {"id": 1})
            await plate.expect("bind_class")
            assert (await api.json("devices/AC1/acks/bind_class"))["status"] == "acked"
        await late.disconnect()


async def test_a_socket_that_just_dies(node: Node, api: Service) -> None:
    """No goodbye of Socket.IO: the transport is gone, presence says so, the link is kept."""
    async with device(node, "AC1") as plate:
        await api.presence("AC1", online=True)
        plate.client.eio.ws._writer.transport.abort()
        assert (await api.presence("AC1", online=False))["reason"] in ("transport-close", "transport-error")
        await api.send("devices/AC1/commands/bind_class", {"id": 1})
        assert (await api.json("devices/AC1/acks/bind_class"))["status"] == "queued"
