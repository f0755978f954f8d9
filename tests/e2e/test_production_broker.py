"""The gateway under the broker that production starts from: its users, its ACL, each auth mode, the whole job."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.brokers import BrokerUnavailable, local_broker
from gateway.client import DeviceEvent, Fleet
from tests.clients.install import missing
from tests.e2e.test_acl import DEPLOY, make_users
from tests.e2e.world import WAIT_S, Device, Node, Service, gateway, service


class Production(msgspec.Struct):
    """A broker that asks for passwords: where it is for each user, and the auth flag of the gateway."""

    url: str
    passwords: dict[str, str]
    auth: str

    def url_of(self, user: str) -> str:
        return self.url.replace("mqtt://", f"mqtt://{user}:{self.passwords[user]}@")


@pytest.fixture(params=["broker", "file"])
async def production(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Production]:
    passwords = make_users(tmp_path, *(["AC1", "AC2"] if request.param == "broker" else []))
    acl = tmp_path / "acl"
    acl.write_text((DEPLOY / "mosquitto" / "acl").read_text("utf-8"), "utf-8")
    if request.param == "file":
        acl.write_text(acl.read_text("utf-8").partition("# --- Auth mode `broker` only")[0], "utf-8")
    acl.chmod(0o600)
    auth = "broker"
    if request.param == "file":
        auth = f"file:{tmp_path / 'keys'}"
        add = [sys.executable, "-m", "gateway", "devices", "add", "--file", str(tmp_path / "keys")]
        for serial in ("AC1", "AC2"):
            environ = os.environ | {"GATEWAY_PEPPER": "pepper"}
            subprocess.run([*add, serial], input="right\n", text=True, env=environ, check=True, timeout=WAIT_S)
    overrides = {"allow_anonymous": "false", "password_file": str(tmp_path / "passwd"), "acl_file": str(acl)}
    try:
        async with local_broker("mosquitto", tmp_path, overrides) as broker:
            yield Production(broker.url, passwords, auth)
    except BrokerUnavailable as problem:
        missing(str(problem))


class World:
    """Nodes, devices and services, which end with the test."""

    def __init__(self, production: Production, stack: AsyncExitStack) -> None:
        self._production = production
        self._stack = stack

    async def node(self, name: str) -> Node:
        environ = {"GATEWAY_PEPPER": "pepper", "GATEWAY_MQTT_WILL_DELAY_S": "0"}
        flags = ("--node", name, "--auth", self._production.auth)
        running = gateway(self._production.url_of("gateway"), *flags, environ=environ)
        return await self._stack.enter_async_context(running)

    async def service(self, user: str) -> Service:
        password = self._production.passwords[user]
        return await self._stack.enter_async_context(service(self._production.url, username=user, password=password))

    async def device(self, node: Node, serial: str) -> Device:
        plate = Device(serial)
        self._stack.push_async_callback(plate.disconnect)
        await plate.connect(node.devices)
        assert await plate.authenticate("right") == "auth:ok"
        return plate

    async def fleet(self, fleet: Fleet) -> Fleet:
        return await self._stack.enter_async_context(fleet)


@pytest.fixture
async def world(production: Production) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(production, stack)


async def test_commands_and_their_outcomes(world: World) -> None:
    node = await world.node("gw-1")
    commander, observer = await world.service("commander"), await world.service("observer")
    plate = await world.device(node, "AC1")
    await observer.presence("AC1", online=True)
    await commander.send("devices/AC1/commands/media_stop", {"stop": True})
    assert (await observer.json("devices/AC1/acks/media_stop"))["status"] == "acked"
    await commander.send("devices/AC1/commands/text_stop", {"stop": True}, ResponseTopic="gw/v1/inbox/me")
    assert (await commander.json("inbox/me"))["status"] == "acked"
    await commander.send("devices/AC1/commands/a/b/c/d")
    assert (await commander.json("devices/AC1/acks/-"))["status"] == "rejected"
    await plate.disconnect()
    await observer.presence("AC1", online=False)
    await commander.send("devices/AC1/commands/bind_class/held", {"id": 1})
    assert (await commander.json("devices/AC1/acks/bind_class/held"))["status"] == "queued"
    again = await world.device(node, "AC1")
    assert await again.expect("bind_class") == ({"id": 1},)
    assert (await commander.json("devices/AC1/acks/bind_class/held"))["status"] == "acked"
    assert (await observer.json("nodes/gw-1/status"))["online"] is True


async def test_events_questions_and_rooms(world: World, production: Production) -> None:
    node = await world.node("gw-1")
    fleet = Fleet(production.url_of("commander"))

    @fleet.answer("what_time")
    async def what_time(question: DeviceEvent) -> dict[str, Any]:
        return {"time": question.payload}

    await world.fleet(fleet)
    plate, observer = await world.device(node, "AC1"), await world.service("observer")
    assert await plate.client.call("what_time", "now", timeout=int(WAIT_S)) == {"time": "now"}
    await plate.client.emit("reading", 7)
    assert await observer.json("devices/AC1/events/reading") == 7
    assert (await fleet.call("AC1", "media_stop", {"stop": True}, qos=1)).status == "acked"
    await plate.expect("media_stop")
    await plate.client.emit("join_room", {"room": "bp_student_1"})
    await plate.expect("join_room:ok")
    await fleet.emit_room("bp_student_1", "memos_update", {"memo_id": 1})
    assert await plate.expect("memos_update") == ({"memo_id": 1},)
    async with fleet.presence() as devices:
        assert devices.online() == ["AC1"]


async def test_remote_debugging_is_the_debuggers_alone(world: World) -> None:
    node = await world.node("gw-1")
    plate = await world.device(node, "AC1")
    commander, debugger = await world.service("commander"), await world.service("debugger")
    await plate.client.emit("join_room", {"room": "AC1"})
    await plate.expect("join_room:ok")
    encrypted = {"encrypted_cmd": "a.b.c"}
    for topic in ("devices/AC1/commands/remote_cmd", "rooms/AC1/events/remote_cmd"):
        for spelling in (topic, topic.replace("_", "%5F")):
            await commander.send(spelling, encrypted)
    assert (await commander.json("devices/AC1/acks/-"))["error"] == "topic: must be written remote_cmd"
    await debugger.send("devices/AC1/commands/enable_remote_cmd", {"room": "AC1"})
    assert await plate.expect("enable_remote_cmd") == ({"room": "AC1"},), "and nothing before it"
    await debugger.send("rooms/AC1/events/remote_cmd", encrypted)
    assert await plate.expect("remote_cmd") == (encrypted,)
    await plate.client.emit("cmd_result", {"result": "secret"})
    for topic in ("devices/AC1/events/cmd_result", "rooms/AC1/events/cmd_result"):
        assert await debugger.json(topic) == {"result": "secret"}
    await plate.client.emit("reading", 7)
    assert await commander.json("devices/AC1/events/#") == 7, "and no result before it"


async def test_takeover_and_a_node_that_comes_back(world: World, production: Production) -> None:
    one, two = await world.node("gw-1"), await world.node("gw-2")
    commander = await world.service("commander")
    old = await world.device(one, "AC1")
    await commander.presence("AC1", online=True)
    plate = await world.device(two, "AC1")
    await asyncio.wait_for(old.gone.wait(), WAIT_S)
    await commander.send("devices/AC1/commands/restart_device", {"restart": True})
    assert (await commander.outcome("devices/AC1/acks/restart_device"))["node"] == "gw-2"
    await two.end(kill=True)  # an event that may repeat would, unless its PUBACK has followed its outcome by now
    while (await commander.presence("AC1", online=False))["reason"] != "gateway-lost":
        pass
    again = await world.node("gw-2")
    if production.auth != "broker":
        await again.logged("adopting devices of an earlier life", count=1)
    await commander.send("devices/AC1/commands/bind_class", {"id": 1})
    back = await world.device(again, "AC1")
    assert await back.expect("bind_class") == ({"id": 1},)
    assert (await commander.outcome("devices/AC1/acks/bind_class"))["status"] == "acked"
    assert plate.gone.is_set()
