"""`Fleet` on a real broker, with a gateway played by an independent MQTT client."""

import ast
import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.bodies import NodeStatus, Outcome, Presence
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.client import CallOutcome, DeviceEvent, Disconnected, Fleet, NoOutcome, NotAcked

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
        assert not len(connected._calls)  # no call is left behind


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
    assert outcome == CallOutcome(outcome.id, SERIAL, "device_status", "acked", True, ack, None, 1, True, 1.5, "gw")
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
    with pytest.raises(NoOutcome, match=f"{SERIAL} device_status: no final outcome within 0.05 s$"):
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


async def test_a_lost_connection_fails_what_is_now_or_never(
    broker: LocalBroker, fleet: Fleet, gateway: aiomqtt.Client
) -> None:
    calls = [asyncio.create_task(fleet.call(SERIAL, "device_status", qos=qos, timeout_s=1)) for qos in (0, 1)]
    for _ in calls:
        await received(gateway)
    await broker.kill()
    with pytest.raises(Disconnected):
        await calls[0]
    assert not calls[1].done()
    with pytest.raises(Disconnected):
        await fleet.call(SERIAL, "device_status")
    with pytest.raises(NoOutcome, match="within 1 s, the broker was lost meanwhile"):
        await calls[1]
    with pytest.raises(aiomqtt.MqttError):  # the fixture's client is lost as well
        await received(gateway)


async def test_a_handle_tells_that_it_is_queued_and_how_it_ends(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    sent = await fleet.send(SERIAL, "bind_class", {"id": 1}, ttl_s=60)
    command = await received(gateway)
    assert (command.qos, dict(property_of(command, "UserProperty"))["id"]) == (1, sent.id)
    await answer(gateway, command, "queued", final=False)
    assert (await sent.queued()).status == "queued"
    assert not sent.done
    await answer(gateway, command, "expired")
    outcome = await sent.outcome()
    with pytest.raises(NotAcked, match=f"{SERIAL} bind_class: expired") as refused:
        outcome.raise_for_status()
    assert refused.value.outcome is outcome


async def test_a_handle_that_nobody_awaits_ends(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    sent = await fleet.send(SERIAL, "bind_class", {"id": 1}, ttl_s=60, timeout_s=0.3)
    await asyncio.wait({sent.final})
    assert not len(fleet._calls)


async def test_a_cancelled_call_is_forgotten(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    call = asyncio.create_task(fleet.call(SERIAL, "device_status", qos=1))
    await received(gateway)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not len(fleet._calls)


async def test_many_calls_and_how_each_ended(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    """At most `concurrency` at once: the third is sent when one of two has ended."""

    async def answers() -> None:
        for n in range(3):
            command = await received(gateway)
            if n:
                await answer(gateway, command, "acked" if n == 1 else "offline")

    async with asyncio.TaskGroup() as group:
        group.create_task(answers())
        many = fleet.call_many(["S0", "S1", "S2"], "device_status", concurrency=2, timeout_s=0.5)
        ended = {called.serial: called async for called in many}
    assert {serial: called.status for serial, called in ended.items()} == {
        "S0": "no_outcome",
        "S1": "acked",
        "S2": "offline",
    }
    assert ended["S1"].raise_for_status().serial == "S1"
    with pytest.raises(NoOutcome):
        ended["S0"].raise_for_status()
    with pytest.raises(NotAcked):
        ended["S2"].raise_for_status()


async def test_many_calls_that_are_abandoned_leave_nothing(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    many = fleet.call_many([f"S{n}" for n in range(50)], "device_status", concurrency=10)
    first = asyncio.ensure_future(anext(many))
    await answer(gateway, await received(gateway))
    assert (await first).status == "acked"
    await many.aclose()
    assert not len(fleet._calls)


async def emit(
    gateway: aiomqtt.Client, topic: str, body: bytes, *, args: int | None = None, content_type: str | None = None
) -> None:
    """Publish an event as the gateway does."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if args is not None:
        properties.UserProperty = [("args", str(args))]
    if content_type is not None:
        properties.ContentType = content_type
    await gateway.publish(f"gw/v1/devices/{topic}", body, qos=1, properties=properties)


@pytest.mark.parametrize(
    ("serial", "event", "seen"),
    [(None, None, 5), ("S1", None, 4), (None, "hello/you", 2), ("S1", "hello/you", 1), ("S3", None, 0)],
)
async def test_events_of_devices(
    serial: str | None, event: str | None, seen: int, fleet: Fleet, gateway: aiomqtt.Client
) -> None:
    events: list[DeviceEvent] = []

    everything = [
        ("S1/events/hello%2Fyou", b'{"n":1}', {}),
        ("S2/events/hello%2Fyou/q1", b"", {}),
        ("S1/events/two", b"[1,2]", {"args": 2}),
        ("S1/events/list", b"[1,2]", {}),
        ("S1/events/raw", b"\x00\xff", {"content_type": "application/octet-stream"}),
    ]
    stream = fleet.events(serial, event)
    first = asyncio.ensure_future(anext(stream))
    level, who = (event or "ready").replace("/", "%2F"), serial or "S1"
    while not first.done():  # it does not say when it has subscribed
        await emit(gateway, f"{who}/events/{level}/mark", b"")
        await asyncio.wait({first}, timeout=0.1)
    for topic, body, options in everything:
        await emit(gateway, topic, body, **options)  # type: ignore[arg-type]
    await emit(gateway, "garbage/events/a/b/c", b"")
    await emit(gateway, f"{who}/events/{level}", b"{bad")
    await emit(gateway, f"{who}/events/{level}/end", b"")
    async for found in stream:
        if found.question == "end":
            break
        if found.question != "mark":
            events.append(found)
    await stream.aclose()
    known = [
        DeviceEvent("S1", "hello/you", ({"n": 1},)),
        DeviceEvent("S2", "hello/you", (), "q1"),
        DeviceEvent("S1", "two", (1, 2)),
        DeviceEvent("S1", "list", ([1, 2],)),
        DeviceEvent("S1", "raw", (b"\x00\xff",)),
    ]
    expected = [one for one in known if serial in (None, one.serial) and event in (None, one.event)]
    assert events == expected
    assert len(events) == seen


async def test_closing_the_fleet_ends_its_events(broker: LocalBroker) -> None:
    async with Fleet(broker.url) as fleet:
        ending = asyncio.create_task(anext(aiter(fleet.events()), None))
        await asyncio.sleep(0)
    assert await ending is None


async def test_questions_are_answered(broker: LocalBroker, gateway: aiomqtt.Client) -> None:
    fleet = Fleet(broker.url)

    @fleet.answer("what_time")
    async def what_time(question: DeviceEvent) -> dict[str, Any]:
        return {"time": question.payload["zone"]}

    @fleet.answer("fails")
    async def fails(question: DeviceEvent) -> None:
        raise ValueError("no idea")

    await gateway.subscribe("gw/v1/devices/+/replies/#", qos=1)
    async with fleet:
        await emit(gateway, f"{SERIAL}/events/what_time/q1", b'{"zone":"UTC"}')
        reply = await received(gateway)
        assert (reply.topic.value, reply.payload) == (f"gw/v1/devices/{SERIAL}/replies/what_time/q1", b'{"time":"UTC"}')
        await emit(gateway, f"{SERIAL}/events/fails/q2", b"")
        reply = await received(gateway)
        assert (reply.topic.value, reply.payload) == (
            f"gw/v1/devices/{SERIAL}/replies/fails/q2",
            b'{"ack":false,"error_msg":"no idea"}',
        )
        with pytest.raises(RuntimeError, match="before"):
            fleet.answer("late")


async def test_presence_is_a_live_map(fleet: Fleet, gateway: aiomqtt.Client) -> None:
    await retain(gateway, "devices/S1/presence", Presence(True, "gw-1"))
    await retain(gateway, "devices/S2/presence", Presence(False, "gw-1"))
    await retain(gateway, "devices/S3/presence", b"garbage")
    async with fleet.presence() as devices:
        assert dict(devices) == {"S1": Presence(True, "gw-1"), "S2": Presence(False, "gw-1")}
        assert devices.online() == ["S1"]
        await retain(gateway, "devices/S2/presence", Presence(True, "gw-2"))
        assert await anext(aiter(devices.changes())) == ("S2", Presence(True, "gw-2"))
        assert devices["S2"].node == "gw-2"


def test_it_imports_nothing_of_the_server() -> None:
    """A service that calls devices does not load, or even have to install, what only the server needs."""
    server = ("aiohttp", "socketio", "engineio", "uvloop", "mqtt5", "prometheus_client", "click", "rich")
    script = f"import sys, gateway.client; print([m for m in {server!r} if m in sys.modules])"
    script += "; print(sorted(m for m in sys.modules if m.startswith('gateway.')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy, ours = map(ast.literal_eval, done.stdout.splitlines())
    assert heavy == []
    own = {"gateway.addresses", "gateway.bodies", "gateway.client", "gateway.topics", "gateway.value"}
    assert {name for name in ours if not name.startswith("gateway.fleet")} == own


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
