"""`Fleet` on a real broker, with a gateway played by an independent MQTT client."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.client import Disconnected, Fleet, NoOutcome
from gateway.topics import NodeStatus, Outcome, Presence

SERIAL = "AC4178234415"


@pytest.fixture(params=["mosquitto", "embedded"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalBroker]:
    try:
        async with local_broker(request.param, tmp_path) as running:
            yield running
    except BrokerUnavailable as missing:
        if os.environ.get("GATEWAY_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(missing))


@pytest.fixture
async def gateway(broker: LocalBroker) -> AsyncIterator[aiomqtt.Client]:
    """Receives every command and room event, and answers nothing by itself."""
    url = BrokerUrl.parse(broker.url)
    async with aiomqtt.Client(url.host, url.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("gw/v1/devices/+/commands/#", qos=1)
        await client.subscribe("gw/v1/rooms/#", qos=1)
        yield client


@pytest.fixture
async def fleet(broker: LocalBroker) -> AsyncIterator[Fleet]:
    async with Fleet(broker.url) as connected:
        yield connected
        assert not connected._calls  # no call is left behind


async def received(gateway: aiomqtt.Client) -> aiomqtt.Message:
    return await anext(aiter(gateway.messages))


async def answer(gateway: aiomqtt.Client, command: aiomqtt.Message, status: str = "acked", **fields: Any) -> None:
    """Publish an outcome where the command asks for it."""
    _, _, _, serial, _, event = command.topic.value.split("/")
    id = dict(property_of(command, "UserProperty"))["id"]
    outcome = Outcome(id, serial, event, status, **{"final": True, **fields})
    await send(gateway, command, msgspec.json.encode(outcome))


async def send(gateway: aiomqtt.Client, command: aiomqtt.Message, body: bytes) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.CorrelationData = property_of(command, "CorrelationData")
    await gateway.publish(property_of(command, "ResponseTopic"), body, qos=1, properties=properties)


def property_of(message: aiomqtt.Message, name: str) -> Any:
    return getattr(message.properties, name, None)


async def test_a_call_returns_the_final_outcome(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(fleet.call(SERIAL, "device_status"))
        command = await received(gateway)
        ack = {"ack": True, "status": "on"}
        await answer(gateway, command, data=ack, attempts=1, maybe_delivered=True, latency_ms=1.5, node="gw")
    outcome = call.result()
    assert outcome == Outcome(outcome.id, SERIAL, "device_status", "acked", True, ack, None, 1, True, 1.5, "gw")
    assert outcome.id


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (None, b"", None),
        ({"id": 1, "name": "初三1班"}, '{"id":1,"name":"初三1班"}'.encode(), "application/json"),
        (False, b"false", "application/json"),
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
    ],
)
async def test_the_command_on_the_wire(
    payload: object, body: bytes, content_type: str | None, fleet: Fleet, gateway: aiomqtt.Client
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fleet.call(SERIAL, "class/update", payload, qos=1, ttl_s=1.2))
        command = await received(gateway)
        await answer(gateway, command)
    assert command.topic.value == f"gw/v1/devices/{SERIAL}/commands/class%2Fupdate"
    assert command.qos == 1
    assert command.payload == body
    assert property_of(command, "ContentType") == content_type
    assert 1 <= property_of(command, "MessageExpiryInterval") <= 2
    assert property_of(command, "ResponseTopic").startswith("gw/v1/inbox/fleet-")


async def test_queued_is_told_and_is_not_the_end(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    told: list[Outcome] = []
    async with asyncio.TaskGroup() as group:
        call = group.create_task(fleet.call(SERIAL, "media_stop", {"stop": True}, on_queued=told.append))
        command = await received(gateway)
        await answer(gateway, command, "queued", final=False)
        await answer(gateway, command, "expired")
    assert [outcome.status for outcome in told] == ["queued"]
    assert call.result().status == "expired"


async def test_each_call_gets_its_own_outcome(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(fleet.call(f"SN{n}", "device_status", qos=n % 2)) for n in range(50)]
        for command in reversed([await received(gateway) for _ in calls]):
            await answer(gateway, command)
    assert [call.result().serial for call in calls] == [f"SN{n}" for n in range(50)]


async def test_a_call_without_outcome_ends(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    with pytest.raises(NoOutcome, match=f"{SERIAL} device_status"):
        await fleet.call(SERIAL, "device_status", timeout_s=0.05)
    late = await received(gateway)
    await answer(gateway, late)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(fleet.call(SERIAL, "device_status"))
        await answer(gateway, await received(gateway), "offline")
    assert call.result().status == "offline"


async def retain(gateway: aiomqtt.Client, topic: str, body: msgspec.Struct | bytes) -> None:
    await gateway.publish(
        f"gw/v1/{topic}", body if isinstance(body, bytes) else msgspec.json.encode(body), 1, retain=True
    )


async def test_why_a_device_is_silent(fleet: Fleet, gateway: aiomqtt.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer waited 15 s for a device that never was there, and was told to look for a gateway."""
    monkeypatch.setattr("gateway.client.LOOK_S", 0.3)
    nobody = "is any gateway running with prefix gw/v1?"
    assert await fleet.why_silent(SERIAL) == nobody
    await retain(gateway, "nodes/gw-0/status", NodeStatus(False, "gw-0"))
    await retain(gateway, f"devices/{SERIAL}/presence", Presence(True, "gw-0"))
    assert await fleet.why_silent(SERIAL) == nobody
    await retain(gateway, "nodes/gw-1/status", NodeStatus(True, "gw-1"))
    await retain(gateway, "nodes/gw-2/status", b"garbage")
    assert await fleet.why_silent("AC2") == "AC2 never connected to a gateway with prefix gw/v1"
    await retain(gateway, f"devices/{SERIAL}/presence", Presence(True, "gw-1"))
    assert await fleet.why_silent(SERIAL) == f"{SERIAL} is connected to gw-1, and may still answer"
    await retain(gateway, f"devices/{SERIAL}/presence", Presence(False, "gw-1", "2026-01-31T12:00:00Z"))
    assert await fleet.why_silent(SERIAL) == f"{SERIAL} is away since 2026-01-31T12:00:00Z"


async def test_why_a_device_is_silent_without_a_broker(broker: LocalBroker, fleet: Fleet) -> None:
    await broker.stop()
    with pytest.raises(Disconnected, match=broker.url):
        await fleet.why_silent(SERIAL)


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[]", b"{}", b'{"final":true}', b"null"])
async def test_garbage_in_the_inbox_is_left_aside(garbage: bytes, fleet: Fleet, gateway: aiomqtt.Client) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(fleet.call(SERIAL, "device_status"))
        command = await received(gateway)
        await gateway.publish(property_of(command, "ResponseTopic"), garbage, qos=1)
        await send(gateway, command, garbage)
        await answer(gateway, command)
    assert call.result().status == "acked"


async def test_a_lost_connection_fails_every_call(broker: LocalBroker, fleet: Fleet, gateway: aiomqtt.Client) -> None:
    calls = [asyncio.create_task(fleet.call(SERIAL, "device_status", qos=qos)) for qos in (0, 1)]
    for _ in calls:
        await received(gateway)
    await broker.kill()
    for call in calls:
        with pytest.raises(Disconnected):
            await call
    with pytest.raises(Disconnected):
        await fleet.call(SERIAL, "device_status")
    with pytest.raises(aiomqtt.MqttError):  # the fixture's client is lost as well
        await received(gateway)


async def test_closing_the_fleet_fails_its_calls(broker: LocalBroker, gateway: aiomqtt.Client) -> None:
    async with Fleet(broker.url) as fleet:
        call = asyncio.create_task(fleet.call(SERIAL, "device_status"))
        await received(gateway)
    with pytest.raises(Disconnected, match="closed"):
        await call


async def test_a_broker_that_is_not_there_is_said_at_once(broker: LocalBroker) -> None:
    await broker.stop()
    with pytest.raises(Disconnected, match=broker.url):
        await Fleet(broker.url).__aenter__()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="mqtt://"):
        Fleet("http://127.0.0.1:1883")


@pytest.mark.parametrize("serial", ["", "a/b", "+", "#", "a\0", "x" * 65])
async def test_a_serial_is_one_topic_level(serial: str, fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="not a serial"):
        await fleet.call(serial, "device_status")


async def test_emits_to_a_room(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    await fleet.emit_room("bp_student_11", "memos_update", {"memo_id": 20}, qos=1)
    event = await received(gateway)
    assert event.topic.value == "gw/v1/rooms/bp_student_11/events/memos_update"
    assert event.payload == b'{"memo_id":20}'
