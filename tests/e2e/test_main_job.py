"""The main job: a device answers a command that came over MQTT."""

import asyncio
import json
from functools import partial
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from gateway.brokers import LocalBroker
from gateway.catalog import EVENTS
from tests.e2e.world import WAIT_S, Node, Service, device, gateway, viewer

# The document's own examples, but none that ended years ago: a command would be expired.
PAYLOADS: dict[str, Any] = {
    name: dict(event.example) | ({"ended_at": "2999-10-25T18:15:17+08:00"} if "ended_at" in event.example else {})
    for name, event in EVENTS.items()
    if event.example is not None
}
DATA: dict[str, Any] = {name: dict(event.ack_example or {"ack": True}) for name, event in EVENTS.items()}


async def test_every_event_of_the_document_is_delivered_and_acked(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        for event in EVENTS:
            plate.answers[event] = partial(DATA.get, event)
            await api.send(f"devices/AC1/commands/{event}", PAYLOADS.get(event))
            args = await plate.expect(event)
            assert args == ((PAYLOADS[event],) if event in PAYLOADS else ()), "empty means no argument at all"
            outcome = await api.json(f"devices/AC1/acks/{event}")
            assert (outcome["status"], outcome["data"]) == ("acked", DATA[event])


async def test_every_event_of_the_document_reaches_services_when_a_device_emits_it(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        for event in EVENTS:
            await plate.client.emit(event, PAYLOADS.get(event))
            message = await api.message(f"devices/AC1/events/{event}")
            assert json.loads(bytes(message.payload) or b"null") == PAYLOADS.get(event), "empty means no argument"


@pytest.mark.parametrize("event", ["device_status", "face_data_count"])
async def test_an_answer_with_data_by_response_topic(node: Node, api: Service, event: str) -> None:
    async with device(node, "AC1") as plate:
        plate.answers[event] = lambda: DATA[event]
        await api.send(
            f"devices/AC1/commands/{event}", qos=0, ResponseTopic="gw/v1/inbox/me", CorrelationData=b"\x00\xff42"
        )
        message = await api.message("inbox/me")
        assert message.properties is not None
        assert message.properties.json()["CorrelationData"] == b"\x00\xff42".hex()  # type: ignore[no-untyped-call]
        outcome = json.loads(bytes(message.payload))
        assert (outcome["status"], outcome["data"], outcome["node"]) == ("acked", DATA[event], "gw-1")


@pytest.mark.parametrize("event", ["device_status", "face_data_count"])
async def test_an_answer_with_data_to_an_mqtt_3_1_1_client(
    broker: LocalBroker, node: Node, api: Service, event: str
) -> None:
    """Topics and JSON alone: the id in the topic is the correlation."""
    loop = asyncio.get_running_loop()
    subscribed: asyncio.Future[None] = loop.create_future()
    answer: asyncio.Future[tuple[str, Any]] = loop.create_future()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)

    def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        loop.call_soon_threadsafe(answer.set_result, (message.topic, json.loads(message.payload)))

    def on_subscribe(*_: object) -> None:
        loop.call_soon_threadsafe(subscribed.set_result, None)

    client.on_connect = lambda c, *_: c.subscribe(f"gw/v1/devices/AC1/acks/{event}/+", 1)
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.connect("127.0.0.1", int(broker.url_v311.rpartition(":")[2]))
    client.loop_start()
    try:
        async with device(node, "AC1") as plate:
            plate.answers[event] = lambda: DATA[event]
            await asyncio.wait_for(subscribed, WAIT_S)
            client.publish(f"gw/v1/devices/AC1/commands/{event}/job-7", qos=1)
            if broker.kind == "embedded":  # its 3.1.1 clients do not get what carries MQTT 5 properties
                outcome = await api.json(f"devices/AC1/acks/{event}/job-7")
            else:
                topic, outcome = await asyncio.wait_for(answer, WAIT_S)
                assert topic == f"gw/v1/devices/AC1/acks/{event}/job-7"
            assert (outcome["id"], outcome["status"], outcome["data"]) == ("job-7", "acked", DATA[event])
    finally:
        client.disconnect()
        client.loop_stop()


async def test_a_command_waits_for_an_absent_device(broker: LocalBroker, node: Node, api: Service) -> None:
    async with device(node, "AC1"):
        await api.presence("AC1", online=True)
    assert (await api.presence("AC1", online=False))["reason"] in ("client", "transport-close")
    await api.send("devices/AC1/commands/device_status/now", qos=0)
    # The embedded broker delivers with the QoS of the subscription, so there it is a command that waits.
    at_once = "offline" if broker.kind == "mosquitto" else "queued"
    assert (await api.json("devices/AC1/acks/device_status/now"))["status"] == at_once
    for number in range(3):
        await api.send(f"devices/AC1/commands/bind_class/{number}", {"id": number})
        assert (await api.json(f"devices/AC1/acks/bind_class/{number}"))["status"] == "queued"
    async with device(node, "AC1") as plate:
        if broker.kind == "embedded":
            await plate.expect("device_status")
        for number in range(3):
            assert await plate.expect("bind_class") == ({"id": number},)
            assert (await api.json(f"devices/AC1/acks/bind_class/{number}"))["status"] == "acked"


async def test_a_command_expires_while_the_device_is_away(node: Node, api: Service) -> None:
    async with device(node, "AC1"):
        pass
    await api.presence("AC1", online=False)
    await api.send("devices/AC1/commands/bind_class", {"id": 1}, MessageExpiryInterval=1)
    assert (await api.json("devices/AC1/acks/bind_class"))["status"] == "queued"
    assert (await api.json("devices/AC1/acks/bind_class"))["status"] == "expired"


async def test_a_device_that_does_not_answer_in_time(node: Node, api: Service) -> None:
    release = asyncio.Event()
    async with device(node, "AC1") as plate:

        async def late(event: str, *_: Any) -> dict[str, bool]:
            await release.wait()
            return {"ack": True}

        plate.client.on("*", late)
        await api.send("devices/AC1/commands/bind_class", {"id": 1}, qos=0, UserProperty=[("ack-timeout-ms", "100")])
        outcome = await api.json("devices/AC1/acks/bind_class")
        assert (outcome["status"], outcome["maybe_delivered"], outcome["final"]) == ("timeout", True, True)
        release.set()
        outcome = await api.json("devices/AC1/acks/bind_class")
        assert (outcome["status"], outcome["late"]) == ("acked", True)


async def test_a_device_that_restarts_instead_of_acking_is_not_restarted_again(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        answered = asyncio.get_running_loop().create_future()

        async def restart(event: str, *_: Any) -> None:
            answered.set_result(event)
            await asyncio.Event().wait()

        plate.client.on("*", restart)
        await api.send("devices/AC1/commands/restart_device", {"restart": True})
        await asyncio.wait_for(answered, WAIT_S)
    assert (await api.json("devices/AC1/acks/restart_device"))["status"] == "lost"
    async with device(node, "AC1") as plate:
        await api.send("devices/AC1/commands/device_status")
        await plate.expect("device_status")


async def test_a_device_event_and_a_question_with_its_reply(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        await plate.client.emit("temperature", {"celsius": 21.5})
        assert await api.json("devices/AC1/events/temperature") == {"celsius": 21.5}
        await plate.client.emit("picture", b"\x00\x01\xff")
        assert bytes((await api.message("devices/AC1/events/picture")).payload) == b"\x00\x01\xff"

        asked = asyncio.create_task(plate.client.call("what_time", {"zone": "中国"}, timeout=int(WAIT_S)))
        question = await api.message("devices/AC1/events/what_time/+")
        assert json.loads(bytes(question.payload)) == {"zone": "中国"}
        id = str(question.topic).rpartition("/")[2]
        await api.send(f"devices/AC1/replies/what_time/{id}", {"time": "九点"})
        assert await asked == {"time": "九点"}


async def test_order_holds_through_the_gateway(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        for number in range(100):
            await api.send(f"devices/AC1/commands/bind_class/{number}", {"id": number}, qos=number % 2)
        assert [(await plate.expect("bind_class"))[0]["id"] for _ in range(100)] == list(range(100))


async def test_the_newest_connection_of_a_serial_wins(node: Node, api: Service) -> None:
    async with device(node, "AC1") as old, device(node, "AC1") as new:
        await asyncio.wait_for(old.gone.wait(), WAIT_S)
        await api.send("devices/AC1/commands/device_status")
        new.answers["device_status"] = lambda: DATA["device_status"]
        await new.expect("device_status")
        assert (await api.json("devices/AC1/acks/device_status"))["status"] in ("acked", "nacked")
    await api.presence("AC1", online=False)


DEBUGGING = (
    '[[rooms.rules]]\nmatch = "bp_student_*"\nallow = "anyone"\n[[rooms.rules]]\nmatch = "AC*"\nallow = "anyone"\n'
)


@pytest.fixture
def open_rooms(tmp_path: Any) -> str:
    path = tmp_path / "rooms.toml"
    path.write_text(DEBUGGING)
    return str(path)


async def test_rooms_span_nodes(broker: LocalBroker, api: Service, open_rooms: str) -> None:
    """A debugging page on one node sees the results of a device on another; the device does not hear itself."""
    async with (
        gateway(broker.url, "--node", "gw-1", config=open_rooms) as one,
        gateway(broker.url, "--node", "gw-2", config=open_rooms) as two,
        device(one, "AC1") as plate,
        viewer(one) as near,
        viewer(two) as far,
    ):
        for socket in (plate, near, far):
            await socket.client.emit("join_room", {"room": "AC1"})
            await socket.expect("join_room:ok")
        await plate.client.emit("cmd_result", {"result": "ok"})
        assert await near.expect("cmd_result") == ({"result": "ok"},)
        assert await far.expect("cmd_result") == ({"result": "ok"},)
        assert await api.json("devices/AC1/events/cmd_result") == {"result": "ok"}

        await api.send("rooms/AC1/events/remote_cmd", {"encrypted_cmd": "a.b.c"})
        for socket in (plate, near, far):
            assert await socket.expect("remote_cmd") == ({"encrypted_cmd": "a.b.c"},)

        await far.client.emit("leave_room", {"room": "AC1"})
        await far.expect("leave_room:ok")
        await far.client.emit("leave_room", {"room": "AC1"})
        assert await far.expect("leave_room:fail") == ({"error_msg": "leave room fail"},)


async def test_a_room_event_reaches_its_members_alone(broker: LocalBroker, api: Service, open_rooms: str) -> None:
    async with (
        gateway(broker.url, config=open_rooms) as node,
        viewer(node) as inside,
        viewer(node) as outside,
    ):
        await inside.client.emit("join_room", {"room": "bp_student_101"})
        await inside.expect("join_room:ok")
        await outside.client.emit("join_room", {"room": "bp_student_102"})
        await outside.expect("join_room:ok")
        await api.send("rooms/bp_student_101/events/memos_update", {"memo_id": 20})
        await api.send("rooms/bp_student_102/events/memos_read", {"memo_ids": [20, 22, 24]})
        assert await inside.expect("memos_update") == ({"memo_id": 20},)
        assert await outside.expect("memos_read") == ({"memo_ids": [20, 22, 24]},)


async def test_the_node_says_how_it_is(node: Node, api: Service) -> None:
    status = await api.json("nodes/gw-1/status")
    assert (status["online"], status["node"]) == (True, "gw-1")
    assert await node.end() == 0
    while (await api.json("nodes/gw-1/status"))["online"]:
        pass


async def test_a_stopping_node_says_so_for_its_devices(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        await api.presence("AC1", online=True)
        assert await node.end() == 0
        assert (await api.presence("AC1", online=False))["reason"] == "shutdown"
        await asyncio.wait_for(plate.gone.wait(), WAIT_S)
