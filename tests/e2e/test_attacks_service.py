"""A hostile service: what it publishes reaches no other device, stops no link and costs its own commands only."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.brokers import LocalBroker
from gateway.topics import RESERVED
from tests.e2e.hostile import counted, counts, serve, unharmed
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway, service

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@pytest.fixture
def kind() -> str:
    """The embedded broker passes on what it should refuse."""
    return "mosquitto"


@pytest.fixture
async def api(broker: LocalBroker) -> AsyncIterator[Service]:
    sees = ("devices/+/acks/#", "inbox/#")
    async with service(broker.url, sees=sees, socket_options=(NODELAY,)) as client:
        yield client


@pytest.fixture
async def bystander(node: Node) -> AsyncIterator[Device]:
    async with device(node, "BYSTANDER", transports=["websocket"]) as plate:
        yield plate


@pytest.fixture
async def victim(node: Node) -> AsyncIterator[Device]:
    async with device(node, "AC1", transports=["websocket"]) as plate:
        await plate.client.emit("join_room", {"room": "AC1"})
        await plate.expect("join_room:ok")
        yield plate


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def text(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def publish(topic: bytes, properties: bytes, payload: bytes, qos: int) -> bytes:
    """A PUBLISH, whatever is in it."""
    body = text(topic) + (b"\0\1" if qos else b"") + varint(len(properties)) + properties + payload
    return bytes([0x30 | qos << 1]) + varint(len(body)) + body


def user(key: bytes, value: bytes) -> bytes:
    return b"\x26" + text(key) + text(value)


CONNECT = b"\x10\x0d" + text(b"MQTT") + b"\x05\x02\x00\x3c\x00" + text(b"")
NONCHARACTER = "\ufdd0".encode()
TOPICS = {  # what is put behind a topic
    "invalid UTF-8": b"/\xff",
    "half a surrogate pair": b"/\xed\xa0\x80",
    "U+0000": b"/a\0b",
    "a control": b"/a\x01b",
    "a non-character": b"/" + NONCHARACTER,
    "a wildcard": b"/a+b",
    "no name": b"/",
    "a long name": b"/" + b"x" * 60_000,
    "many levels": b"/x" * 150,
    "percent": b"/%",
}
PROPERTIES = {
    "Content Type of invalid UTF-8": b"\x03" + text(b"\xff"),
    "two Content Types": (b"\x03" + text(b"a")) * 2,
    "no Content Type": b"\x03" + text(b""),
    "a long Content Type": b"\x03" + text(b"x" * 65_535),
    "Response Topic of invalid UTF-8": b"\x08" + text(b"gw/v1/inbox/\xff"),
    "Response Topic with a non-character": b"\x08" + text(b"gw/v1/inbox/" + NONCHARACTER),
    "Response Topic with a wildcard": b"\x08" + text(b"gw/v1/inbox/+"),
    "Response Topic of many levels": b"\x08" + text(b"gw/v1/inbox" + b"/x" * 180),
    "a long Response Topic": b"\x08" + text(b"gw/v1/inbox/" + b"x" * 65_500),
    "no Response Topic": b"\x08" + text(b""),
    "Correlation Data": b"\x09" + text(b"\xff" * 65_535),
    "id of invalid UTF-8": user(b"id", b"\xff"),
    "id with U+0000": user(b"id", b"a\0b"),
    "id with a non-character": user(b"id", NONCHARACTER),
    "a long id": user(b"id", b"x" * 65_535),
    "an id like a topic": user(b"id", b"a/../#"),
    "a long ack-timeout-ms": user(b"ack-timeout-ms", b"9" * 60_000),
    "ack-timeout-ms in other digits": user(b"ack-timeout-ms", "１２".encode()),
    "a long traceparent": user(b"traceparent", b"0" * 60_000),
    "args": user(b"args", b"99999"),
    "ten thousand properties": user(b"k", b"v") * 10_000,
    "half a megabyte of properties": user(b"k" * 30_000, b"v" * 65_000) * 5,
    "no expiry": b"\x02\0\0\0\0",
    "an expiry of 136 years": b"\x02\xff\xff\xff\xff",
    "a bad payload format": b"\x01\x02",
    "an alias": b"\x23\x00\x01",
    "a subscription id": b"\x0b\x01",
    "an unknown property": b"\x7f\x01",
    "half a property": b"\x26\x00",
}
ADDRESSES = (
    (b"gw/v1/devices/AC1/commands/media_stop", b'{"stop":true}'),
    (b"gw/v1/rooms/AC1/events/hello", b"1"),
    (b"gw/v1/devices/AC1/replies/question/7", b"\xff"),
)


async def throw(broker: LocalBroker, *packets: bytes) -> None:
    """Publish each on a connection of its own, which the broker may cut for it, and wait until it has read it."""
    port = int(broker.url.rpartition(":")[2])
    for packet in packets:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CONNECT + packet + b"\xe0\x00")
        assert (await reader.read(1)) == b"\x20"
        with suppress(ConnectionError):
            while await reader.read(65_536):  # to its end: the broker has read the DISCONNECT, or cut before
                pass
        writer.close()


@pytest.mark.parametrize("qos", [0, 1])
async def test_no_publish_stops_a_link(
    broker: LocalBroker, node: Node, api: Service, bystander: Device, victim: Device, qos: int
) -> None:
    """A QoS 1 message that a link cannot read would come again after each reconnect, for ever."""
    for address, payload in ADDRESSES:
        await throw(broker, *(publish(address + end, b"", payload, qos) for end in TOPICS.values()))
        await throw(broker, *(publish(address, properties, payload, qos) for properties in PROPERTIES.values()))
        await serve(api, bystander, 2)
        await api.send("devices/AC1/commands/text_stop/after", {"stop": True})
        assert (await api.outcome("devices/AC1/acks/text_stop/after"))["status"] == "acked"
    assert not victim.gone.is_set()
    assert await counted(node, "gateway_outcomes_total", status="rejected") >= 10
    assert not [line for line in node.lines if line["message"] == "broker lost"]


async def test_malformed_commands_are_rejected_each(
    node: Node, api: Service, bystander: Device, victim: Device
) -> None:
    bad: list[tuple[str, bytes]] = [
        ("media_stop", b"{"),
        ("media_stop", b"\xff\xfe"),
        ("media_stop", b""),
        ("media_stop", b"[" * 100_000),
        ("media_stop", b"[" * 100_000 + b"]" * 100_000),
        ("media_stop", b"9" * 900_000),
        ("media_stop", b'{"stop":true,' + b",".join(b'"%d":0' % n for n in range(100_000))),
        ("bind_class", b'{"id":' + b"9" * 100_000 + b"}"),
        ("remote%5Fcmd", b'{"encrypted_cmd":"a"}'),
        ("%72estart_device", b'{"restart":true}'),
        *((event.replace("/", "%2F"), b"") for event in sorted(RESERVED)),
    ]
    async with unharmed(node, api, bystander, "gateway_outcomes_total", len(bad), status="rejected"):
        for event, payload in bad:
            await api.send(f"devices/AC1/commands/{event}", payload)
            outcome = await api.outcome("devices/AC1/acks/#")
            assert (outcome["status"], outcome["maybe_delivered"]) == ("rejected", False), (event, payload[:20])
            assert outcome["error"]
    assert victim.received.empty()


async def test_a_room_hears_nothing_that_only_the_gateway_says(api: Service, bystander: Device, victim: Device) -> None:
    for number, event in enumerate((*sorted(RESERVED), "remote%5Fcmd", "$SYS", "a%2fb")):
        await api.send(f"rooms/AC1/events/{event}", {})
        await api.send("rooms/AC1/events/hello", number)
        assert await victim.expect("hello") == (number,), event
    assert victim.received.empty()
    assert not victim.gone.is_set()


async def test_nobody_answers_the_question_of_another_device(
    node: Node, api: Service, bystander: Device, victim: Device, broker: LocalBroker
) -> None:
    """The id of a question is good for its own device, once; guesses are counted."""
    async with service(broker.url, sees=("devices/+/events/#",)) as listener:
        asking = asyncio.create_task(victim.client.call("question", {}, timeout=int(WAIT_S)))
        asked = await listener.message("devices/AC1/events/question/+")
        id = str(asked.topic).rpartition("/")[2]
        for topic in (
            f"devices/BYSTANDER/replies/question/{id}",
            *(f"devices/AC1/replies/question/{n}" for n in range(50)),
        ):
            await api.send(topic, {"forged": True})
        await counts(node, 51, "gateway_ignored_total", what="unknown_reply")
        await api.send(f"devices/AC1/replies/question/{id}", {"true": 1})
        await api.send(f"devices/AC1/replies/question/{id}", {"too": "late"})
        assert await asking == {"true": 1}
        await counts(node, 52, "gateway_ignored_total", what="unknown_reply")
    await serve(api, bystander, 4)


async def test_what_is_held_for_one_device_is_bounded(node: Node, api: Service, bystander: Device) -> None:
    """Of commands, and of bytes; more are rejected, and the next device has room."""
    before = await counted(node, "process_resident_memory_bytes")
    async with device(node, "SILENT") as plate:

        async def silent(*_: object) -> None:
            await asyncio.Event().wait()

        plate.client.on("*", silent)
        for number in range(300):
            await api.send(f"devices/SILENT/commands/media_stop/{number}", {"stop": True}, qos=0)
        rejected = [await api.outcome("devices/SILENT/acks/media_stop/+") for _ in range(300 - 256)]
        assert {outcome["status"] for outcome in rejected} == {"rejected"}
        assert "queue full" in rejected[0]["error"]
        await serve(api, bystander, 4)
    async with device(node, "AWAY2"):
        pass
    for number in range(20):
        await api.send(f"devices/AWAY2/commands/hoard/{number}", json.dumps("x" * 900_000).encode())
    rejected = [await api.outcome("devices/AWAY2/acks/hoard/+") for _ in range(20 - 9)]
    assert {outcome["status"] for outcome in rejected} == {"rejected"}
    await serve(api, bystander, 4)
    assert await counted(node, "gateway_outcomes_total", status="rejected") == 44 + 11
    assert await counted(node, "process_resident_memory_bytes") - before < 48 << 20


async def test_a_retained_command_is_carried_out_once(broker: LocalBroker, api: Service, tmp_path: Path) -> None:
    """The broker hands what is retained to each new subscriber: not to us, or a device would restart for ever."""
    restart: dict[str, Any] = {"restart": True}
    async with gateway(broker.url, "--node", "gw-1") as node, device(node, "AC1") as plate:
        await plate.client.emit("join_room", {"room": "AC1"})
        await plate.expect("join_room:ok")
        await api.send("devices/AC1/commands/restart_device/once", restart, retain=True)
        assert await plate.expect("restart_device") == (restart,)
        assert (await api.outcome("devices/AC1/acks/restart_device/once"))["status"] == "acked"
        await api.send("rooms/AC1/events/hello", 1, retain=True)
        assert await plate.expect("hello") == (1,)
        await api.send("devices/AC2/commands/restart_device/before", restart, retain=True)
    for name in ("gw-1", "gw-2"):
        async with gateway(broker.url, "--node", name) as node:
            for serial in ("AC1", "AC2"):
                async with device(node, serial) as plate:
                    await plate.client.emit("join_room", {"room": serial})
                    await plate.expect("join_room:ok")
                    await api.send(f"rooms/{serial}/events/end")
                    await api.send(f"devices/{serial}/commands/media_stop/end", {"stop": True})
                    assert {(await plate.next())[0] for _ in range(2)} == {"end", "media_stop"}, "and nothing before"


async def test_the_gateway_publishes_nowhere_else_for_a_service(
    node: Node, api: Service, bystander: Device, victim: Device, broker: LocalBroker
) -> None:
    """Its user may command every device, keep every presence and speak for every node: a Response Topic may not."""
    targets = (
        "gw/v1/devices/BYSTANDER/commands/restart_device",
        "gw/v1/devices/BYSTANDER/replies/question/1",
        "gw/v1/devices/BYSTANDER/presence",
        "gw/v1/devices/AC1/events/cmd_result",
        "gw/v1/rooms/BYSTANDER/events/cmd_result",
        "gw/v1/nodes/gw-1/status",
        "gw/v1/inbox2/x",
        "gw/v1/inbox",
        "$SYS/x",
        "$share/x/gw/v1/inbox/x",
    )
    refused = unharmed(node, api, bystander, "gateway_outcomes_total", len(targets) - 1, status="rejected")
    async with service(broker.url, sees=("#",)) as listener, refused:
        for target in targets:
            await api.send("devices/AC1/commands/text_stop/x", {"stop": True}, ResponseTopic=target)
            outcome = await api.outcome("devices/AC1/acks/text_stop/x" if target != "gw/v1/inbox" else "inbox/#")
            if target != "gw/v1/inbox":  # the parent of inbox/#: nothing else is there
                assert (outcome["status"], outcome["error"]) == ("rejected", "Response Topic is not allowed")
        await api.send("devices/AC1/commands/text_stop/end", {"stop": True})
        outcomes: set[str] = set()
        while "gw/v1/devices/AC1/acks/text_stop/end" not in outcomes:
            message = await listener.message("#")
            if b'"maybe_delivered"' in bytes(message.payload):
                outcomes.add(str(message.topic))
    assert outcomes == {f"gw/v1/devices/AC1/acks/text_stop/{id}" for id in ("x", "end")} | {"gw/v1/inbox"}


@pytest.mark.parametrize("name", ["AC1", "node:gw-1"])
async def test_a_stolen_session_comes_back(
    broker: LocalBroker, node: Node, api: Service, bystander: Device, victim: Device, name: str
) -> None:
    """mosquitto binds no client id to a user, so whoever may connect may cut a link: that one, for a moment.

    What is published meanwhile can be lost: see SECURITY.md.
    """
    stolen = b"\x10" + bytes([13 + 6 + len(name)]) + CONNECT[2:-2] + text(f"gw-v1:{name}".encode())
    for theft in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.rpartition(":")[2]))
        writer.write(stolen)
        assert (await reader.readexactly(2))[0] == 0x20
        await serve(api, bystander, 2)
        writer.close()
        heard: set[str] = set()
        while not heard >= {"hello", "media_stop"}:
            await api.send("rooms/AC1/events/hello")
            await api.send(f"devices/AC1/commands/media_stop/{theft}", {"stop": True})
            with suppress(TimeoutError):
                heard.add((await asyncio.wait_for(victim.received.get(), 0.5))[0])
    assert not victim.gone.is_set()
