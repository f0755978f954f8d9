"""Who gets in, by each way of checking keys."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from tests.clients.install import missing, program
from tests.e2e.world import WAIT_S, Device, device, gateway, service

ACL = Path(__file__).parents[2] / "deploy" / "mosquitto" / "acl"


def add_device(path: Path, serial: str, key: str) -> None:
    command = [sys.executable, "-m", "gateway", "devices", "add", "--file", str(path), serial]
    environ = os.environ | {"GATEWAY_PEPPER": "pepper"}
    subprocess.run(command, input=f"{key}\n", text=True, env=environ, check=True, timeout=WAIT_S)


async def test_a_file_of_hashed_keys(broker: LocalBroker, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    add_device(keys, "AC1", "right")
    add_device(keys, "AC2", "other")
    assert "right" not in keys.read_text()
    async with gateway(broker.url, "--auth", f"file:{keys}", environ={"GATEWAY_PEPPER": "pepper"}) as node:
        for serial, key, answer in (
            ("AC1", "wrong", "auth:fail"),
            ("AC3", "right", "auth:fail"),
            ("AC1", "other", "auth:fail"),
            ("AC1", "right", "auth:ok"),
        ):
            plate = Device(serial)
            await plate.connect(node.devices)
            assert await plate.authenticate(key) == answer
            await plate.disconnect()


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    """A mosquitto whose password file is the registry of devices, with the project's own ACL."""
    passwords, acl = tmp_path / "passwd", tmp_path / "acl"
    shutil.copy(ACL, acl)
    passwords.touch(mode=0o600)
    acl.chmod(0o600)
    for user, key in (("gateway", "g"), ("commander", "s"), ("AC1", "right"), ("AC2", "other")):
        command = [program("mosquitto_passwd"), "-b", str(passwords), user, key]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S)
    overrides = {"allow_anonymous": "false", "password_file": str(passwords), "acl_file": str(acl)}
    try:
        async with local_broker("mosquitto", tmp_path, overrides) as broker:
            yield broker
    except BrokerUnavailable as problem:
        missing(str(problem))


async def test_the_broker_checks_keys(registry: LocalBroker) -> None:
    """Each connection proves its key by a CONNECT of its own, also while the device has a link."""
    own = registry.url.replace("mqtt://", "mqtt://gateway:g@")
    async with (
        gateway(own, "--auth", "broker") as node,
        service(registry.url, username="commander", password="s") as api,
    ):
        wrong = Device("AC1")
        await wrong.connect(node.devices)
        assert await wrong.authenticate("wrong") == "auth:fail"
        assert await wrong.authenticate("other") == "auth:fail"

        first = Device("AC1")
        await first.connect(node.devices)
        assert await first.authenticate("right") == "auth:ok"
        await api.presence("AC1", online=True)

        assert await wrong.authenticate("wrong") == "auth:fail", "with a link there, the key still counts"
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        await first.expect("media_stop")
        assert (await api.json("devices/AC1/acks/media_stop"))["status"] == "acked"

        second = Device("AC1")
        await second.connect(node.devices)
        assert await second.authenticate("right") == "auth:ok"
        await asyncio.wait_for(first.gone.wait(), WAIT_S)
        await api.send("devices/AC1/commands/text_stop", {"stop": True})
        await second.expect("text_stop")
        await second.disconnect()
        await api.presence("AC1", online=False)
        await api.send("devices/AC1/commands/bind_class", {"id": 1})
        assert (await api.json("devices/AC1/acks/bind_class"))["status"] == "queued"

        third = Device("AC1")
        await third.connect(node.devices)
        assert await third.authenticate("right") == "auth:ok"
        await third.expect("bind_class")
        assert (await api.outcome("devices/AC1/acks/bind_class"))["status"] == "acked"
        for plate in (wrong, first, third):
            await plate.disconnect()


async def test_a_device_waits_for_the_broker_instead_of_failing(registry: LocalBroker) -> None:
    own = registry.url.replace("mqtt://", "mqtt://gateway:g@")
    async with gateway(own, "--auth", "broker") as node:
        await registry.stop()
        await node.logged("broker lost")
        plate, wrong = Device("AC1"), Device("AC2")
        await plate.connect(node.devices)
        await wrong.connect(node.devices)
        answers = [asyncio.create_task(plate.authenticate("right")), asyncio.create_task(wrong.authenticate("no"))]
        await registry.start()
        assert await asyncio.gather(*answers) == ["auth:ok", "auth:fail"]
        await plate.disconnect()
        await wrong.disconnect()


async def test_strangers_with_wrong_keys_do_not_keep_a_device_from_its_link(registry: LocalBroker) -> None:
    """They know the serial, and try without a pause; the broker restarts, and the device's link comes back."""
    own = registry.url.replace("mqtt://", "mqtt://gateway:g@")
    tried: asyncio.Queue[str] = asyncio.Queue()

    async def guess(stranger: Device) -> None:
        while True:
            tried.put_nowait(await stranger.authenticate("wrong"))

    async with gateway(own, "--auth", "broker") as node:
        plate, strangers = Device("AC1"), [Device("AC1") for _ in range(5)]
        for one in (plate, *strangers):
            await one.connect(node.devices)
        assert await plate.authenticate("right") == "auth:ok"
        guesses = [asyncio.create_task(guess(stranger)) for stranger in strangers]
        await tried.get()
        await registry.stop()
        await node.logged("broker lost")
        await registry.start()
        async with service(registry.url, username="commander", password="s") as api:
            await api.send("devices/AC1/commands/media_stop", {"stop": True})
            await plate.expect("media_stop")
            assert (await api.outcome("devices/AC1/acks/media_stop"))["status"] == "acked"
        assert not plate.gone.is_set()
        for task in guesses:
            task.cancel()
        await asyncio.wait(guesses)
        assert {tried.get_nowait() for _ in range(tried.qsize())} == {"auth:fail"}
        for one in (plate, *strangers):
            await one.disconnect()


async def test_a_broker_that_refuses_the_node_is_said_clearly(registry: LocalBroker) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    process = await asyncio.create_subprocess_exec(
        *command, "--mqtt", registry.url, "--log-format", "json", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            async for line in process.stderr:
                if b"broker refused the node" in line:
                    assert b"NOT_AUTHORIZED" in line.upper().replace(b" ", b"_")
                    break
            else:
                pytest.fail("never said")
    finally:
        process.terminate()
        await process.wait()


async def test_a_room_needs_no_key_but_a_rule(broker: LocalBroker) -> None:
    async with gateway(broker.url) as node, device(node, "AC1") as plate:
        for room, answer in (("AC1", "ok"), ("bp_student_11", "ok"), ("AC2", "fail"), ("wxa_student_11", "fail")):
            await plate.client.emit("join_room", {"room": room})
            await plate.expect(f"join_room:{answer}")
