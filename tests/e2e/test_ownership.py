"""Who has a device: one node, one socket, one key; whatever else happens."""

import asyncio
import base64
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import aiohttp
import pytest

from gateway import devices
from gateway.auth.base import OpenAuthenticator
from gateway.bodies import Presence
from gateway.brokers import LocalBroker
from gateway.limits import Pace
from gateway.mqtt.values import Credentials
from tests.clients.install import HERE, installed, program
from tests.e2e.cutter import Cutter
from tests.e2e.test_auth import registry
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway, service
from tests.test_device import Peers, surroundings

__all__ = ["registry"]


@pytest.fixture
def kind() -> str:
    """The embedded broker knows no takeover."""
    return "mosquitto"


@pytest.fixture
async def nodes(broker: LocalBroker) -> AsyncIterator[tuple[Node, Node]]:
    async with gateway(broker.url, "--node", "gw-1") as one, gateway(broker.url, "--node", "gw-2") as two:
        yield one, two


async def test_a_device_that_roams_is_taken_over_for_good(nodes: tuple[Node, Node], api: Service) -> None:
    """mosquitto 2.0.11 tells the loser nothing: it must ask who has the device before it connects again."""
    one, two = nodes
    async with device(one, "AC1"):
        await api.presence("AC1", online=True)
    await api.presence("AC1", online=False)
    async with device(two, "AC1") as plate:
        assert (await api.presence("AC1", online=True))["node"] == "gw-2"
        await one.logged("device moved", serial="AC1")
        await api.send("devices/AC1/commands/media_stop", {"stop": True}, qos=0)
        await plate.expect("media_stop")
        outcome = await api.json("devices/AC1/acks/media_stop")
        assert (outcome["status"], outcome["node"]) == ("acked", "gw-2")
        assert not plate.gone.is_set()
    assert [line for line in two.lines if line["message"] == "device moved"] == []


async def test_the_loser_closes_its_socket(nodes: tuple[Node, Node], api: Service) -> None:
    one, two = nodes
    async with device(one, "AC1") as old:
        await api.presence("AC1", online=True)
        async with device(two, "AC1") as new:
            await asyncio.wait_for(old.gone.wait(), WAIT_S)
            await one.logged("device gone", serial="AC1", reason="replaced")
            await api.send("devices/AC1/commands/media_stop", {"stop": True})
            await new.expect("media_stop")
            assert (await api.outcome("devices/AC1/acks/media_stop"))["node"] == "gw-2"
            assert not new.gone.is_set()


async def test_a_command_in_flight_goes_over_with_the_device(nodes: tuple[Node, Node], api: Service) -> None:
    """The new owner gets what the old one had not settled; one final outcome, from the new owner."""
    one, two = nodes
    async with device(one, "AC1") as old:
        reached = asyncio.Event()

        async def silent(event: str, *_: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        old.client.on("*", silent)
        await api.send("devices/AC1/commands/bind_class/job", {"id": 1})
        await asyncio.wait_for(reached.wait(), WAIT_S)
        async with device(two, "AC1") as new:
            assert await new.expect("bind_class") == ({"id": 1},)
            outcome = await api.outcome("devices/AC1/acks/bind_class/job")
            assert (outcome["status"], outcome["node"]) == ("acked", "gw-2")
            await asyncio.wait_for(old.gone.wait(), WAIT_S)


async def test_a_broker_that_restarts_leaves_devices_where_they_are(
    broker: LocalBroker, nodes: tuple[Node, Node]
) -> None:
    """The same bare cut as in a takeover, for every link at once."""
    one, two = nodes
    async with device(one, "AC1") as here, device(two, "AC2") as there:
        await broker.stop()
        await one.logged("broker lost")
        await broker.start()
        async with service(broker.url) as api:
            for plate, serial in ((here, "AC1"), (there, "AC2")):
                await api.send(f"devices/{serial}/commands/media_stop", {"stop": True})
                await plate.expect("media_stop")
                assert (await api.outcome(f"devices/{serial}/acks/media_stop"))["status"] == "acked"
                assert not plate.gone.is_set()


async def test_a_device_that_comes_elsewhere_while_it_is_adopted_stays_there(
    broker: LocalBroker, api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link that adopts it cuts the other's; its presence, which is heard a moment later, settles it."""
    monkeypatch.setattr(devices, "HEARD_WITHIN_S", 2.0)
    async with gateway(broker.url, "--node", "gw-2") as two, device(two, "AC1") as plate:
        await api.presence("AC1", online=True)
        around = surroundings(Peers().sockets, Pace(1.0), int(broker.url.rpartition(":")[2]))
        adopter = devices.Devices(around, OpenAuthenticator(), Credentials(), 2)
        orphans = dict.fromkeys(("AC1", "AC2"), Presence(False, "gw-1", reason="gateway-lost"))
        adopting = asyncio.create_task(adopter.adopt(orphans))
        while len(adopter) < 2:  # noqa: ASYNC110 - it tells nobody how far it is
            await asyncio.sleep(0)
        for orphan in adopter:
            assert await orphan.ready()
        del orphans["AC1"]
        await adopting
        assert [adopted.serial for adopted in adopter] == ["AC2"]
        assert (await api.presence("AC2", online=False))["node"] == "gw-1"
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        await plate.expect("media_stop")
        assert (await api.outcome("devices/AC1/acks/media_stop"))["node"] == "gw-2"
        assert not plate.gone.is_set()
        await adopter.drain(0)


async def test_a_wrong_key_never_gets_in_with_a_right_one(registry: LocalBroker) -> None:
    """Sockets with wrong keys wait for the same link as the one with the right key."""
    own = registry.url.replace("mqtt://", "mqtt://gateway:g@")
    async with gateway(own, "--auth", "broker") as node:
        await registry.stop()
        await node.logged("broker lost")
        plates = [Device("AC1") for _ in range(6)]
        for plate in plates:
            await plate.connect(node.devices)
        keys = ["wrong", "wrong", "right", "wrong", "wrong", "wrong"]
        waiting = [asyncio.create_task(plate.authenticate(key)) for plate, key in zip(plates, keys, strict=True)]
        await registry.start()
        answers = await asyncio.gather(*waiting)
        assert dict(zip(keys, answers, strict=True)) == {"wrong": "auth:fail", "right": "auth:ok"}
        assert [answer for key, answer in zip(keys, answers, strict=True) if key == "wrong"] == ["auth:fail"] * 5
        for plate in plates:
            await plate.disconnect()


async def test_an_authentication_that_is_abandoned_leaves_nothing(broker: LocalBroker) -> None:
    async with gateway(broker.url) as node:
        await broker.stop()
        await node.logged("broker lost")
        for number in range(20):
            plate = Device(f"AC{number}")
            await plate.connect(node.devices)
            signature = base64.b64encode(f"AC{number}:key".encode()).decode()
            await plate.client.call("ask", {}, timeout=int(WAIT_S))  # the next one is read after this
            await plate.client.emit("authentication", {"signature": signature})
            await plate.client.call("ask", {}, timeout=int(WAIT_S))
            await plate.disconnect()
        async with asyncio.timeout(WAIT_S):
            while await node.metric("gateway_devices") or await node.metric("gateway_sockets"):
                pass
        await broker.start()


async def test_javascript_devices_come_back_after_a_restart(broker: LocalBroker, api: Service) -> None:
    """socket.io-client gives up for good when the *server* disconnects it, so it must look like a lost transport."""
    installed("sio48")
    signature = base64.b64encode(b"AC1:key").decode()
    async with gateway(broker.url) as node:
        port = node.devices.rpartition(":")[2]
        process = await asyncio.create_subprocess_exec(
            program("node"), "page.js", "device.js", node.devices, signature, cwd=HERE, stdin=PIPE, stdout=PIPE
        )
        try:
            await api.presence("AC1", online=True)
            assert await node.end() == 0
            assert (await api.presence("AC1", online=False))["reason"] == "shutdown"
            async with gateway(broker.url, listen=f"127.0.0.1:{port}"):
                await api.presence("AC1", online=True)
        finally:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("commands", [1, 20, 140])
async def test_a_node_that_stops_answers_for_what_it_had(broker: LocalBroker, api: Service, commands: int) -> None:
    """Commands that no device acked any more end in `lost`, and the Will is not needed."""
    async with gateway(broker.url, environ={"GATEWAY_DEVICES_DRAIN_S": "0.5"}) as node, device(node, "AC1") as plate:
        await api.presence("AC1", online=True)

        async def silent(event: str, *_: object) -> None:
            await asyncio.Event().wait()

        plate.client.on("*", silent)
        for number in range(commands):
            await api.send(f"devices/AC1/commands/media_stop/{number}", {"stop": True}, qos=0)
        await api.send("devices/AC1/commands/text_stop/last", {"stop": True}, qos=1)
        async with asyncio.timeout(WAIT_S):
            while not await node.metric("gateway_commands_total", event="text_stop"):
                pass
        assert await node.end() == 0
        statuses = {(await api.outcome(f"devices/AC1/acks/media_stop/{n}"))["status"] for n in range(commands)}
        assert statuses == {"lost"}
        assert (await api.presence("AC1", online=False))["reason"] == "shutdown"


async def test_of_two_processes_with_one_name_the_later_has_it(broker: LocalBroker, api: Service) -> None:
    """mosquitto 2.0.11 lets them take the node's session from each other for ever."""
    displaced = "displaced by another node of this name"
    async with gateway(broker.url, "--node", "gw-1", errors=[displaced]) as one, device(one, "AC1") as plate:
        await api.presence("AC1", online=True)
        async with gateway(broker.url, "--node", "gw-1") as two:
            await one.logged(displaced)
            async with aiohttp.ClientSession() as http, http.get(f"{one.admin}/readyz") as answer:
                assert answer.status == 503
                assert "started later" in await answer.text()
            await asyncio.wait_for(plate.gone.wait(), WAIT_S)
            async with device(two, "AC1") as again:
                await api.send("devices/AC1/commands/media_stop", {"stop": True})
                await again.expect("media_stop")
                assert (await api.outcome("devices/AC1/acks/media_stop"))["status"] == "acked"
            refused = Device("AC2")
            await refused.connect(one.devices)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(refused.authenticate(), 0.5)
            await asyncio.wait_for(refused.gone.wait(), WAIT_S)


async def test_a_device_that_comes_back_at_once_is_not_given_what_it_had_elsewhere(registry: LocalBroker) -> None:
    """The broker decides who gets in, so that the way back is faster than the question who has the device."""
    own, service_url = (registry.url.replace("mqtt://", f"mqtt://{user}@") for user in ("gateway:g", "commander:s"))
    async with (
        service(service_url, username="commander", password="s") as api,
        gateway(own, "--auth", "broker", "--node", "gw-1") as one,
        gateway(own, "--auth", "broker", "--node", "gw-2") as two,
        device(one, "AC1", key="right") as old,
    ):
        reached = asyncio.Event()

        async def silent(event: str, *_: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        old.client.on("*", silent)
        await api.send("devices/AC1/commands/bind_class/job", {"id": 1})
        await asyncio.wait_for(reached.wait(), WAIT_S)
        async with device(two, "AC1", key="right") as new:
            assert await new.expect("bind_class") == ({"id": 1},)
            assert (await api.outcome("devices/AC1/acks/bind_class/job"))["node"] == "gw-2"
        while True:  # the first time it is sent away
            back = Device("AC1")
            await back.connect(one.devices)
            answer = asyncio.create_task(back.authenticate("right"))
            gone = asyncio.create_task(back.gone.wait())
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
            if answer.done():
                break
            answer.cancel()
        assert answer.result() == "auth:ok"
        await api.send("devices/AC1/commands/media_stop/mark", {"stop": True})
        assert (await back.next())[0] == "media_stop"
        assert (await api.outcome("devices/AC1/acks/media_stop/mark"))["node"] == "gw-1"
        gone.cancel()
        await back.disconnect()


async def test_events_that_wait_at_the_old_owner_are_not_lost(broker: LocalBroker, api: Service) -> None:
    async with Cutter(int(broker.url.rpartition(":")[2])) as cutter:  # noqa: SIM117 - the others need its URL
        async with gateway(cutter.url, "--node", "gw-1") as one, gateway(broker.url, "--node", "gw-2") as two:
            async with device(one, "AC1") as old:
                await api.presence("AC1", online=True)
                await cutter.down()
                await one.logged("broker lost")
                await old.client.emit("reading", 1)
                assert await old.client.call("", timeout=20), "what came before has been taken"
                async with device(two, "AC1"):
                    await api.presence("AC1", online=True)
                    await cutter.up()
                    assert await api.json("devices/AC1/events/reading") == 1
                    await asyncio.wait_for(old.gone.wait(), WAIT_S)


async def test_a_node_takes_so_many_devices(broker: LocalBroker) -> None:
    async with gateway(broker.url, environ={"GATEWAY_DEVICES_MAX_DEVICES": "1"}) as node, device(node, "AC1") as plate:
        late = Device("AC2")
        await late.connect(node.devices)
        signature = base64.b64encode(b"AC2:key").decode()
        await late.client.emit("authentication", {"signature": signature})
        await asyncio.wait_for(late.gone.wait(), WAIT_S)
        await node.logged("no place for a device", serial="AC2")
        assert await node.metric("gateway_closes_total", reason="overloaded") == 1
        async with aiohttp.ClientSession() as http, http.get(f"{node.admin}/readyz") as answer:
            assert answer.status == 503
            assert "devices.max_devices" in await answer.text()
        again = Device("AC1")
        await again.connect(node.devices)
        assert await again.authenticate() == "auth:ok", "it has its place"
        await asyncio.wait_for(plate.gone.wait(), WAIT_S)
        await again.disconnect()
