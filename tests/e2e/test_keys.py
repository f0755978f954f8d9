"""Keys that change while a gateway runs, in a file and in a service of one's own."""

import asyncio
import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.brokers import LocalBroker
from tests.auth.registries import key_service
from tests.e2e.hostile import counted
from tests.e2e.test_auth import add_device
from tests.e2e.world import WAIT_S, Device, Service, device, gateway


@pytest.fixture
def kind() -> str:
    """The broker makes no difference here."""
    return "mosquitto"


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
        assert await counted(node, "gateway_devices") == 2, "no parked link is left of the others"


async def test_a_node_does_not_take_up_devices_that_were_removed_meanwhile(
    broker: LocalBroker, api: Service, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    flags = ("--node", "gw-1", "--auth", f"file:{keys}")
    for serial in ("AC1", "AC2"):
        add_device(keys, serial, "key")
    async with gateway(broker.url, *flags, environ={"GATEWAY_PEPPER": "pepper"}) as node:
        async with device(node, "AC1"), device(node, "AC2"):
            pass
        for serial in ("AC1", "AC2"):
            await api.presence(serial, online=False)
    change(keys, "remove", "AC1")
    async with gateway(broker.url, *flags, environ={"GATEWAY_PEPPER": "pepper"}) as node:
        await node.logged("adopting devices of an earlier life", count=2)
        await api.send("devices/AC2/commands/bind_class", {"id": 1})
        assert (await api.json("devices/AC2/acks/bind_class"))["status"] == "queued"
        assert await counted(node, "gateway_devices") == 1


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
        assert await counted(node, "gateway_closes_total", reason="auth-unavailable") == 1
        await plate.disconnect()
