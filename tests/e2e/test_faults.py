"""What survives a fault: nothing but the broker is shared state."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import mqtt5
import pytest

from gateway.brokers import LocalBroker
from tests.e2e.conftest import EMBEDDED_CANNOT
from tests.e2e.cutter import Cutter
from tests.e2e.world import PATH, Device, Node, Service, device, gateway, service


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


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_a_node_adopts_the_devices_of_its_earlier_life(broker: LocalBroker, api: Service) -> None:
    """After a crash somebody answers for a device that stays away: its commands are queued, and expire."""
    environ = {"GATEWAY_MQTT_WILL_DELAY_S": "60"}
    async with gateway(broker.url, "--node", "gw-1", environ=environ) as node:
        plate = Device("AC1")
        await plate.connect(node.devices)
        assert await plate.authenticate() == "auth:ok"
        await api.presence("AC1", online=True)
        await node.end(kill=True)
        await plate.disconnect()
    async with gateway(broker.url, "--node", "gw-1", environ=environ) as node:
        await node.logged("adopting devices of an earlier life", count=1)
        assert (await api.presence("AC1", online=False))["reason"] == "gateway-lost"
        await api.send("devices/AC1/commands/bind_class/a", {"id": 1}, MessageExpiryInterval=1)
        assert (await api.outcome("devices/AC1/acks/bind_class/a"))["status"] == "expired"
        await api.send("devices/AC1/commands/bind_class/b", {"id": 2})
        assert (await api.json("devices/AC1/acks/bind_class/b"))["status"] == "queued"
        async with device(node, "AC1") as plate:
            assert await plate.expect("bind_class") == ({"id": 2},)
            assert (await api.json("devices/AC1/acks/bind_class/b"))["status"] == "acked"


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_a_node_adopts_only_what_was_its_own_and_is_not_over(broker: LocalBroker, api: Service) -> None:
    for serial, owner, since in (
        ("OLD", "gw-1", "2020-01-01T00:00:00.000+00:00"),
        ("OTHER", "gw-2", "2999-01-01T00:00:00.000+00:00"),
        ("MINE", "gw-1", "2999-01-01T00:00:00.000+00:00"),
        ("WILL", "gw-1", None),
    ):
        gone = {"online": False, "node": owner, "since": since, "reason": "client"}
        await api.send(f"devices/{serial}/presence", gone, retain=True)
    async with gateway(broker.url, "--node", "gw-1") as node:
        await node.logged("adopting devices of an earlier life", count=2)
        while (presence := await api.json("devices/WILL/presence"))["since"] is None:
            pass
        assert presence["reason"] == "gateway-lost", "since when is known from now on"
        assert await node.metric("gateway_devices", presence="away") == 2


@pytest.mark.mosquitto_only("it is told to the node by what stands between, which knows mosquitto's port")
@pytest.mark.parametrize("code", ["QUOTA_EXCEEDED", "SERVER_BUSY", "SERVER_UNAVAILABLE", "NOT_AUTHORIZED"])
async def test_a_broker_that_refuses(broker: LocalBroker, api: Service, code: str) -> None:
    """Readiness says why; devices stay, and one that authenticates meanwhile waits instead of being told to fail."""
    refused = "broker refused the node"
    environ = {"GATEWAY_MQTT_RECONNECT_MIN_S": "0.01", "GATEWAY_MQTT_RECONNECT_MAX_S": "0.1"}
    async with Cutter(int(broker.url.rpartition(":")[2])) as cutter:  # noqa: SIM117 - the others need its URL
        async with gateway(cutter.url, environ=environ, errors=[refused]) as node, device(node, "AC1") as plate:
            reason = getattr(mqtt5.ConnAckReasonCode, code)
            cutter.refuse_with = reason
            await cutter.cut()
            line = await node.logged(refused)
            assert line["code"] == reason.value
            async with aiohttp.ClientSession() as http, http.get(f"{node.admin}/readyz") as answer:
                assert answer.status == 503
                assert f"0x{reason.value:02X}" in await answer.text()
            late = Device("AC2")
            await late.connect(node.devices)
            waiting = asyncio.create_task(late.authenticate())
            before = cutter.refusals
            while cutter.refusals < before + 10:
                assert await plate.client.call("", timeout=20)
            assert not waiting.done()
            cutter.refuse_with = None
            assert await waiting == "auth:ok"
            await api.send("devices/AC1/commands/media_stop", {"stop": True})
            await plate.expect("media_stop")
            assert (await api.outcome("devices/AC1/acks/media_stop"))["status"] == "acked"
            await late.disconnect()


@asynccontextmanager
async def draining(node: Node, api: Service) -> AsyncIterator[asyncio.Event]:
    """A node that was told to stop while a device has a command, which it acks when the event is set."""
    async with device(node, "AC1") as plate:
        release = asyncio.Event()

        async def slow(event: str, *_: object) -> dict[str, bool]:
            await release.wait()
            return {"ack": True}

        plate.client.on("*", slow)
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        async with asyncio.timeout(20):
            while not await node.metric("gateway_commands_total", event="media_stop"):
                pass
        node.process.terminate()
        async with asyncio.timeout(20):
            while await listens(node):
                pass
        yield release


async def test_a_second_signal_ends_it_at_once(node: Node, api: Service) -> None:
    async with draining(node, api):
        node.process.terminate()
        assert await node.process.wait() == 1


async def test_what_is_under_way_is_finished_before_a_node_stops(node: Node, api: Service) -> None:
    async with draining(node, api) as release:
        release.set()
        assert (await api.outcome("devices/AC1/acks/media_stop"))["status"] == "acked"
        assert await asyncio.wait_for(node.process.wait(), 20) == 0
        assert (await api.presence("AC1", online=False))["reason"] == "shutdown"


async def listens(node: Node) -> bool:
    """Whether the node still accepts devices."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(node.devices.rpartition(":")[2]))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_a_device_that_stops_reading_is_closed_as_slow(broker: LocalBroker, api: Service) -> None:
    """What waits for it is bounded, its presence says why it is gone, and others are not held up.

    Commands alone never do that: no more of them are emitted than half of what may wait.
    """
    async with (
        gateway(broker.url) as node,
        device(node, "AC2") as other,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{node.devices}{PATH}/?EIO=4&transport=websocket") as socket,
    ):
        await socket.send_str("40")
        signature = base64.b64encode(b"AC1:key").decode()
        await socket.send_str(f'42["authentication",{{"signature":"{signature}"}}]')
        while not (await socket.receive_str(timeout=20)).startswith('42["auth:ok"'):
            pass
        await socket.send_str('42["join_room",{"room":"bp_student_1"}]')
        assert (await socket.receive_str(timeout=20)).startswith('42["join_room:ok"')
        connection = socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.pause_reading()
        for number in range(200):
            await api.send("rooms/bp_student_1/events/large", "x" * 100_000, qos=0)
            if number % 50 == 0:
                await api.send("devices/AC2/commands/media_stop", {"stop": True}, qos=0)
                await other.expect("media_stop")
        assert (await api.presence("AC1", online=False))["reason"] == "slow"
        connection.transport.abort()


async def test_a_device_that_floods_is_not_read_until_the_broker_has_caught_up(
    broker: LocalBroker, api: Service
) -> None:
    """Nothing it emitted is dropped, and nothing piles up in the node."""
    async with gateway(broker.url) as node, device(node, "AC1", transports=["websocket"]) as plate:
        for number in range(3000):
            await plate.client.emit("reading", number)
        read = [await api.json("devices/AC1/events/reading") for _ in range(3000)]
        assert read == list(range(3000))
        assert await node.metric("gateway_dropped_events_total") == 0
        assert not plate.gone.is_set()


@pytest.mark.mosquitto_only("it is stopped by a signal to the process, which only mosquitto takes so")
async def test_a_broker_that_pauses(broker: LocalBroker, node: Node, api: Service) -> None:
    """Sockets stay, events wait, and a device that authenticates meanwhile is answered afterwards."""
    async with device(node, "AC1") as plate:
        await api.send("devices/AC1/commands/bind_class/before", {"id": 1})
        await plate.expect("bind_class")
        await api.outcome("devices/AC1/acks/bind_class/before")
        assert broker._process is not None
        broker._process.send_signal(signal.SIGSTOP)
        await plate.client.emit("reading", 1)
        late = Device("AC2")
        await late.connect(node.devices)
        waiting = asyncio.create_task(late.authenticate())
        assert await plate.client.call("", timeout=20), "the gateway goes on: a bad event is refused at once"
        broker._process.send_signal(signal.SIGCONT)
        assert await waiting == "auth:ok"
        assert await api.json("devices/AC1/events/reading") == 1
        await late.disconnect()
        assert not plate.gone.is_set()


@pytest.mark.mosquitto_only(EMBEDDED_CANNOT)
async def test_connections_that_break_in_the_middle_of_a_packet(broker: LocalBroker, api: Service) -> None:
    """A proxy cuts every connection after a number of bytes that falls anywhere; commands still end once, in order."""
    async with Cutter(int(broker.url.rpartition(":")[2])) as cutter:
        environ = {"GATEWAY_MQTT_RECONNECT_MIN_S": "0.05", "GATEWAY_MQTT_RECONNECT_MAX_S": "0.1"}
        async with gateway(cutter.url, environ=environ) as node, device(node, "AC1") as plate:
            for cut in range(3):
                cutter.cut_after_bytes = 3000 + 777 * cut
                for number in range(20):
                    name = f"{cut}-{number}"
                    await api.send(
                        f"devices/AC1/commands/bind_class/{name}", {"id": 20 * cut + number, "name": "x" * 300}
                    )
                statuses = {(await api.outcome(f"devices/AC1/acks/bind_class/{cut}-{n}"))["status"] for n in range(20)}
                assert statuses == {"acked"}
            assert cutter.cuts == 3
            got: list[int] = []
            while len(set(got)) < 60:
                got.append((await plate.expect("bind_class"))[0]["id"])
            assert list(dict.fromkeys(got)) == list(range(60))
            assert not plate.gone.is_set()
