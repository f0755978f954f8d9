"""Who gets in, by each way of checking keys."""

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from tests.auth.registries import key_service
from tests.clients.install import missing, program
from tests.e2e.world import WAIT_S, Device, Service, device, gateway, service

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


def change(path: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "gateway", "devices", *arguments, "--file", str(path)]
    environ = os.environ | {"GATEWAY_PEPPER": "pepper"}
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=WAIT_S)
    return done.stdout.strip()


async def test_a_device_that_is_removed_or_has_another_key_is_disconnected(
    broker: LocalBroker, api: Service, tmp_path: Path
) -> None:
    """Whether it is connected or away; the others stay."""
    keys = tmp_path / "keys"
    serials = ("AC1", "AC2", "AC3", "AC4")
    for serial in serials:
        add_device(keys, serial, "key")
    async with gateway(broker.url, "--auth", f"file:{keys}", environ={"GATEWAY_PEPPER": "pepper"}) as node:
        async with device(node, "AC3"):
            pass
        await api.presence("AC3", online=False)
        async with device(node, "AC1") as removed, device(node, "AC2") as rotated, device(node, "AC4") as stays:
            for serial in ("AC1", "AC2", "AC4"):
                await api.presence(serial, online=True)
            change(keys, "remove", "AC1")
            new_key = change(keys, "rotate", "AC2")
            change(keys, "remove", "AC3")
            for plate in (removed, rotated):
                await asyncio.wait_for(plate.gone.wait(), WAIT_S)
                assert (await api.presence(plate.serial, online=False))["reason"] == "revoked"
            await node.logged("device revoked", serial="AC3")
            for serial, key, verdict in (("AC1", "key", "fail"), ("AC2", "key", "fail"), ("AC2", new_key, "ok")):
                again = Device(serial)
                await again.connect(node.devices)
                assert await again.authenticate(key) == f"auth:{verdict}"
                await again.disconnect()
            await api.send("devices/AC4/commands/device_status")
            await stays.expect("device_status")
        async with aiohttp.ClientSession() as session, session.get(f"{node.admin}/metrics") as answer:
            counted = [line for line in (await answer.text()).splitlines() if line.startswith("gateway_devices ")]
            assert counted == ["gateway_devices 2.0"], "no parked link is left of the others"


async def test_sighup_reads_the_keys_again_and_a_broken_file_changes_nothing(
    broker: LocalBroker, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    add_device(keys, "AC1", "key")
    good = keys.read_text()
    async with gateway(broker.url, "--auth", f"file:{keys}", environ={"GATEWAY_PEPPER": "pepper"}) as node:
        async with device(node, "AC1") as plate:
            keys.write_text("AC1:broken\n")
            node.process.send_signal(signal.SIGHUP)
            await node.logged("reading files again", files=1)
            warning = await node.logged("file not usable, its last good content counts", level="warning")
            assert "keys:1: expected serial:hash" in warning["problem"]
            async with device(node, "AC1"):
                await asyncio.wait_for(plate.gone.wait(), WAIT_S)
        keys.write_text(good)
        node.process.send_signal(signal.SIGHUP)
        await node.logged("file read again", file=str(keys))


async def test_a_service_of_ones_own_checks_keys(broker: LocalBroker) -> None:
    """While it does not answer, a device waits: it is not told that its key is wrong."""
    async with key_service() as keys:
        keys.keys["AC1"] = "right"
        environ = {
            "GATEWAY_AUTH_URL": keys.url,
            "GATEWAY_AUTH_TOKEN_ENV": "ASKING",
            "ASKING": "s3cret",
            "GATEWAY_MQTT_RECONNECT_MAX_S": "0.5",
            "GATEWAY_AUTH_CACHE_S": "0",
            "GATEWAY_AUTH_NEGATIVE_CACHE_S": "0",
        }
        async with gateway(broker.url, "--auth", "http", environ=environ) as node:
            for serial, key, answer in (("AC1", "wrong", "fail"), ("AC2", "right", "fail"), ("AC1", "right", "ok")):
                plate = Device(serial)
                await plate.connect(node.devices)
                assert await plate.authenticate(key) == f"auth:{answer}"
                await plate.disconnect()
            body, headers = keys.requests[-1]
            assert body == {"serial": "AC1", "key": "right", "address": "127.0.0.1"}
            assert headers["Authorization"] == "Bearer s3cret"
            keys.status = 500
            plate, wrong = Device("AC1"), Device("AC1")
            await plate.connect(node.devices)
            await wrong.connect(node.devices)
            answers = [asyncio.create_task(plate.authenticate("right")), asyncio.create_task(wrong.authenticate("no"))]
            await node.logged("authentication service does not answer: devices wait", problem="status 500")
            keys.status = None
            assert await asyncio.gather(*answers) == ["auth:ok", "auth:fail"]
            assert not [line for line in node.lines if "s3cret" in str(line) or "right" in str(line)]
            await plate.disconnect()
            await wrong.disconnect()


async def test_who_waits_for_an_answer_for_too_long_is_closed_for_that(broker: LocalBroker) -> None:
    environ = {"GATEWAY_AUTH_URL": "http://127.0.0.1:1/", "GATEWAY_DEVICES_AUTH_TIMEOUT_S": "1"}
    async with gateway(broker.url, "--auth", "http", environ=environ) as node:
        plate = Device("AC1")
        await plate.connect(node.devices)
        await plate.client.emit("authentication", {"signature": base64.b64encode(b"AC1:key").decode()})
        await asyncio.wait_for(plate.gone.wait(), WAIT_S)
        assert plate.received.empty(), "no auth:fail"
        async with aiohttp.ClientSession() as session, session.get(f"{node.admin}/metrics") as answer:
            assert 'gateway_closes_total{reason="auth-unavailable"} 1.0' in (await answer.text()).splitlines()
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
