"""A hostile device: whatever it calls itself, its rooms and its events, it stays among its own topics and rooms."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.brokers import LocalBroker
from gateway.topics import RESERVED
from tests.e2e.hostile import RawSocket, counted, counts, serve, unharmed
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway, service, viewer

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
NAMES = [
    *("a/../b", "..", "+", "#", "$SYS", "$share/x/#", "a\0b", "a\nb", "\x7f", "%", "%2F", "/", "//", " ", "班牌"),
    *("/../BYSTANDER/events/x", "devices/BYSTANDER/presence", "\ufdd0", "\ufffe", "\U0010ffff", "é" * 64),
    *("commands/restart_device", "presence", "authentication/x", "gw/v1/nodes/gw-1/status"),
]
NO_NAMES = ("", "x" * 129, "é" * 65, "x" * 10_000)
"""What is no name of an event, and is refused."""
NO_SERIALS = (
    "a/../b",
    "+",
    "#",
    "$SYS",
    "a\0b",
    "",
    " AC1",
    "AC1 ",
    "AC1\n",
    "x" * 65,
    "班牌",
    "ＡＣ１",
    "AC1/commands",
)


@pytest.fixture
def kind() -> str:
    """The embedded broker lets everything through."""
    return "mosquitto"


@pytest.fixture
async def api(broker: LocalBroker) -> AsyncIterator[Service]:
    """Sees all that is published, below the prefix and beside it."""
    async with service(broker.url, sees=(), socket_options=(NODELAY,)) as client:
        await client.client.subscribe("#")
        yield client


@pytest.fixture
async def bystander(node: Node) -> AsyncIterator[Device]:
    async with device(node, "BYSTANDER", transports=["websocket"]) as plate:
        await plate.client.emit("join_room", {"room": "BYSTANDER"})
        await plate.expect("join_room:ok")
        yield plate


async def until_quiet(plate: Device, api: Service) -> set[str]:
    """Every topic, wherever, that was published to until a last event of this device came, both ways that it goes."""
    await plate.client.emit("cmd_result", "the end")
    for topic in ("devices/{}/events/cmd_result", "rooms/{}/events/cmd_result"):
        while await api.json(topic.format(plate.serial)) != "the end":
            pass
    topics = {str(message.topic) for message in api._messages}
    api._messages.clear()
    return topics


async def test_its_names_stay_below_its_own_topics(api: Service, node: Node, bystander: Device) -> None:
    assert await until_quiet(bystander, api)
    async with (
        unharmed(node, api, bystander, "gateway_ignored_total", 2 * len(NO_NAMES), what="bad_event"),
        unharmed(node, api, bystander, "gateway_room_joins_total", len((*NAMES, *NO_NAMES)), outcome="refused"),
        device(node, "AC1", transports=["websocket"]) as plate,
    ):
        for name in (*NAMES, *NO_NAMES):
            await plate.client.emit(name, {"room": name})
            await plate.client._send_packet(plate.client.packet_class(2, data=[name, name], id=1))
            for event in ("join_room", "leave_room"):
                await plate.client.emit(event, {"room": name})
            await plate.client.emit("cmd_result", {"room": name, "event": name, "topic": name})
        topics = await until_quiet(plate, api)
    own = ("gw/v1/devices/AC1/events/", "gw/v1/rooms/AC1/events/cmd_result", "gw/v1/devices/AC1/presence")
    assert not {topic for topic in topics if not topic.startswith(own)}
    events = {topic.split("/")[5] for topic in topics if "/events/" in topic} - {"cmd_result"}
    assert len(events) == len(NAMES), "each name has one level, and each level one name"
    assert not {level for level in events if set("+#/") & set(level) or level.startswith("$")}


async def test_a_serial_that_is_none_gets_nowhere(api: Service, node: Node, bystander: Device) -> None:
    async with (
        unharmed(node, api, bystander, "gateway_refusals_total", len(NO_SERIALS), reason="malformed-signature"),
        viewer(node) as stranger,
    ):
        for serial in NO_SERIALS:
            stranger.serial = serial
            assert await stranger.authenticate() == "auth:fail", serial
            answer = await stranger.client.call("reading", 1, timeout=int(WAIT_S))
            assert answer == {"ack": False, "error_msg": "not authenticated"}
    assert await counted(node, "gateway_devices") == 1
    topics = await until_quiet(bystander, api)
    own = ("gw/v1/devices/BYSTANDER/", "gw/v1/rooms/BYSTANDER/", "gw/v1/nodes/gw-1/")
    assert not {topic for topic in topics if not topic.startswith(own)}


async def test_it_cannot_say_what_only_the_gateway_says(api: Service, node: Node, bystander: Device) -> None:
    assert await until_quiet(bystander, api)
    async with (
        unharmed(node, api, bystander, "gateway_ignored_total", len(RESERVED), what="bad_event"),
        RawSocket.open(node, "AC1") as peer,
    ):
        for number, event in enumerate(sorted(RESERVED)):
            peer.text(f'42{number}["{event}",{{}}]')
            assert '"error_msg":' in await peer.until(f'43{number}[{{"ack":false')
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        asked = await peer.until("42")
        peer.text(f'43{asked[2 : asked.index("[")]}[{{"ack":true}}]')
        await api.outcome("devices/AC1/acks/media_stop")
    assert not {topic for topic in await until_quiet(bystander, api) if topic.startswith("gw/v1/devices/AC1/events/")}


async def test_its_results_reach_its_own_room_only(api: Service, node: Node, bystander: Device) -> None:
    """Neither by joining another's room, nor by naming it in what it says."""
    assert await until_quiet(bystander, api)
    others = ("BYSTANDER", "bystander", "BYSTANDER ", "devices/BYSTANDER", "wxa_student_1", "", "*", "{serial}")
    async with (
        unharmed(node, api, bystander, "gateway_room_joins_total", len(others), outcome="refused"),
        device(node, "AC1", transports=["websocket"]) as plate,
    ):
        for room in others:
            await plate.client.emit("join_room", {"room": room})
            await plate.expect("join_room:fail")
        forged: dict[str, Any] = {"room": "BYSTANDER", "serial": "BYSTANDER", "result": "forged"}
        await plate.client.emit("cmd_result", (forged, {"room": "BYSTANDER"}))
        for event in ("remote_cmd", "memos_update", "enable_remote_cmd", "presence", "acks", "commands"):
            await plate.client.emit(event, forged)
        topics = await until_quiet(plate, api)
        assert not {topic for topic in topics if not topic.startswith(("gw/v1/devices/AC1/", "gw/v1/rooms/AC1/"))}
    await api.send("rooms/BYSTANDER/events/hello", 1)
    assert await bystander.expect("hello") == (1,)
    assert bystander.received.empty()


async def test_it_cannot_be_another_once_it_is_one(api: Service, node: Node, bystander: Device) -> None:
    """Nor answer for it: an ack counts for the commands of its own socket."""
    async with device(node, "AC1", transports=["websocket"]) as plate:
        plate.serial = "BYSTANDER"
        assert await plate.authenticate() == "auth:fail"
        blocked = asyncio.Event()

        async def slow(*_: object) -> dict[str, bool]:
            await blocked.wait()
            return {"ack": True}

        bystander.client.on("bind_class", slow)
        await api.send("devices/BYSTANDER/commands/bind_class/job", {"id": 1})
        for id in range(100):
            await plate.client._send_packet(plate.client.packet_class(3, data=[{"ack": True, "forged": 1}], id=id))
        await counts(node, 100, "gateway_ignored_total", what="unknown_ack")
        blocked.set()
        outcome = await api.outcome("devices/BYSTANDER/acks/bind_class/job")
        assert (outcome["status"], outcome["data"]) == ("acked", {"ack": True})


async def test_a_clone_on_the_same_node(api: Service, node: Node, bystander: Device) -> None:
    """Two boxes with one serial and key: the newest has it, each change is counted, and the log names the serial."""
    swaps = 8
    boxes: list[Device] = []
    try:
        for number in range(swaps + 1):
            box = Device("CLONED")
            await box.connect(node.devices, transports=["websocket"])
            assert await box.authenticate() == "auth:ok"
            if boxes:
                await asyncio.wait_for(boxes[-1].gone.wait(), WAIT_S)
            boxes.append(box)
            await api.send(f"devices/CLONED/commands/media_stop/{number}", {"stop": True})
            assert (await api.outcome(f"devices/CLONED/acks/media_stop/{number}"))["status"] == "acked"
            await box.expect("media_stop")
        await counts(node, swaps, "gateway_closes_total", reason="replaced")
        await node.logged("device gone", serial="CLONED", reason="replaced")
        assert await counted(node, "gateway_devices") == 2, "one link, whatever the number of boxes"
        await serve(api, bystander, 4)
        assert [box.gone.is_set() for box in boxes] == [True] * swaps + [False]
    finally:
        for box in boxes:
            await box.disconnect()


async def test_a_clone_on_another_node(broker: LocalBroker, api: Service, node: Node, bystander: Device) -> None:
    """It goes back and forth until the nodes make it wait, and say so; one node at a time has it."""
    async with gateway(broker.url, "--node", "gw-2") as other:
        boxes: list[Device] = []
        try:
            async with asyncio.timeout(3 * WAIT_S):
                while not any("flaps" in line["message"] for line in (*node.lines, *other.lines)):
                    box = Device("CLONED")
                    boxes.append(box)
                    await box.connect((node, other)[len(boxes) % 2].devices, transports=["websocket"])
                    assert await box.authenticate() == "auth:ok"
                    if len(boxes) > 1:
                        await boxes[-2].gone.wait()
            assert len(boxes) >= 6
            flapping = next(line for line in (*node.lines, *other.lines) if "flaps" in line["message"])
            assert flapping["serial"] == "CLONED"
            moves = [await counted(one, "gateway_takeovers_total") for one in (node, other)]
            assert sum(moves) == len(boxes) - 1
            await serve(api, bystander, 4)
        finally:
            for box in boxes:
                await box.disconnect()


@pytest.mark.parametrize("data", [b"\xff" * 900_000, "x" * 900_000, {"ack": True, "x": ["\ud7ff"] * 100_000}])
async def test_an_ack_that_is_huge_ends_its_command(api: Service, node: Node, bystander: Device, data: Any) -> None:
    """What the broker would refuse is left out of the outcome: the command still has one."""
    async with device(node, "AC1", transports=["websocket"]) as plate:
        plate.answers["media_stop"] = lambda: data
        await api.send("devices/AC1/commands/media_stop/huge", {"stop": True})
        message = await api.message("devices/AC1/acks/media_stop/huge")
        outcome = json.loads(bytes(message.payload))
        assert outcome["final"]
        assert outcome["status"] in ("acked", "nacked")
        plate.answers.clear()
        await api.send("devices/AC1/commands/media_stop/next", {"stop": True})
        assert (await api.outcome("devices/AC1/acks/media_stop/next"))["status"] == "acked"
    await serve(api, bystander, 2)


ACKS = (
    '["\\ud800"]',
    '[{"ack":true,"\\udfff":"\\ud800"}]',
    "[" * 900 + "]" * 900,
    "[{" + ",".join(f'"{number}":0' for number in range(60_000)) + "}]",
    '[{"ack":true,"n":' + "9" * 100_000 + "}]",
    '[{"ack":true,"n":1e999}]',
    "[]",
    "[1,2,3,4,5,6,7,8,9,10]",
    '["\\u0000"]',
)


async def test_an_ack_of_any_json_ends_its_command(api: Service, node: Node, bystander: Device) -> None:
    """Or its sender is closed, and the command with it."""
    for number, ack in enumerate(ACKS):
        async with RawSocket.open(node, f"AC{number}") as peer:
            await api.send(f"devices/AC{number}/commands/media_stop/odd", {"stop": True}, qos=0)
            asked = await peer.until("42")
            peer.text(f"43{asked[2 : asked.index('[')]}{ack}")
            outcome = await api.outcome(f"devices/AC{number}/acks/media_stop/odd")
            assert outcome["status"] in ("acked", "nacked", "lost"), ack[:20]
    await serve(api, bystander, 2)
    assert await counted(node, "gateway_closes_total", reason="internal-error") == 0
