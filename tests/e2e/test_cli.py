"""The commands of a service against a gateway: what they print, and their exit status."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.brokers import LocalBroker
from tests.e2e.world import WAIT_S, Node, Service, device


async def command(broker: LocalBroker, *words: str) -> tuple[int, list[str], list[str]]:
    """Run `gateway …` and return its exit status and the lines of stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words),
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | {"GATEWAY_MQTT_URL": broker.url},
    )
    out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


async def test_a_call_to_several(broker: LocalBroker, node: Node, tmp_path: Path) -> None:
    async with device(node, "AC1") as first, device(node, "AC2") as second:
        first.answers["device_status"] = second.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        assert await command(broker, "call", "AC1,AC2", "device_status") == (0, ["2 acked"], [])
        status, lines, errors = await command(broker, "call", "--online", "device_status", "--json")
        assert (status, errors) == (0, ["2 acked"])
        assert {(line["serial"], line["status"]) for line in map(json.loads, lines)} == {
            ("AC1", "acked"),
            ("AC2", "acked"),
        }
        await second.disconnect()
        source = tmp_path / "serials"
        source.write_text("AC1\n# gone\nAC2\n")
        done = await command(broker, "call", "--from-file", str(source), "device_status", "--timeout", "5")
        away = "offline" if broker.kind == "mosquitto" else "no_outcome"  # the embedded one makes QoS 1 of QoS 0
        assert (done[0], done[1]) == (1, [f"AC2  {away}", f"1 acked, 1 {away}"])
        status, lines, _ = await command(broker, "presence", "--json")
        assert (status, [json.loads(line)["serial"] for line in lines]) == (0, ["AC1"])
        status, lines, _ = await command(broker, "presence", "--all")
        assert [line.split()[:3] for line in lines] == [["AC1", "online", "gw-1"], ["AC2", "away", "gw-1"]]


async def test_watch_prints_events(broker: LocalBroker, node: Node) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-um", "gateway", "watch", "--serial", "AC1"),
        stdout=PIPE,
        env=os.environ | {"GATEWAY_MQTT_URL": broker.url},
    )
    assert process.stdout is not None
    async with device(node, "AC1") as plate, device(node, "AC2") as other:
        seen = asyncio.create_task(process.stdout.readline())
        while not seen.done():  # it does not say when it has subscribed
            await other.client.emit("hello", {"n": 2})
            await plate.client.emit("hello", {"n": 1})
            await asyncio.wait({seen}, timeout=0.1)
        assert seen.result() == b'AC1  hello {"n":1}\n'
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), WAIT_S)
        assert process.returncode == 0


@pytest.mark.mosquitto_only("the embedded broker keeps what has MQTT 5 properties from MQTT 3.1.1")
async def test_a_service_with_mqtt_3_1_1(broker: LocalBroker, node: Node, api: Service) -> None:
    """Only topics and JSON: a command with its id in the topic, its outcome, and the answer to a question."""
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    subscribed = asyncio.Event()
    host, port = broker.url_v311.removeprefix("mqtt://").split(":")
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)

    def receive(_: paho.Client, __: object, message: paho.MQTTMessage) -> None:
        loop.call_soon_threadsafe(messages.put_nowait, (message.topic, bytes(message.payload)))

    def ready(*_: object) -> None:
        loop.call_soon_threadsafe(subscribed.set)

    client.on_message = receive
    client.on_subscribe = ready
    client.connect(host, int(port))
    client.subscribe([("gw/v1/devices/+/acks/#", 1), ("gw/v1/devices/+/events/#", 1)])
    client.loop_start()
    try:
        await asyncio.wait_for(subscribed.wait(), WAIT_S)
        async with device(node, "AC1") as plate:
            plate.answers["device_status"] = lambda: {"ack": True, "status": "sleep"}
            client.publish("gw/v1/devices/AC1/commands/device_status/my-1", qos=1)
            topic, body = await asyncio.wait_for(messages.get(), WAIT_S)
            outcome = json.loads(body)
            assert topic == "gw/v1/devices/AC1/acks/device_status/my-1"
            assert (outcome["id"], outcome["status"]) == ("my-1", "acked")
            assert outcome["data"] == {"ack": True, "status": "sleep"}
            asking = asyncio.create_task(plate.client.call("what_time", {"zone": "UTC"}, timeout=int(WAIT_S)))
            topic, body = await asyncio.wait_for(messages.get(), WAIT_S)
            assert json.loads(body) == {"zone": "UTC"}
            client.publish(topic.replace("/events/", "/replies/"), json.dumps({"time": "12:00"}), qos=1)
            assert await asking == {"time": "12:00"}
    finally:
        client.disconnect()
        client.loop_stop()
