"""Bad input gets a clear answer and costs nobody else anything.

Each test has a bystander: a device that must still get its commands, on the connection that it has.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.brokers import LocalBroker
from tests.e2e.hostile import counts
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway, viewer


@pytest.fixture(autouse=True)
async def bystander(node: Node, api: Service) -> AsyncIterator[None]:
    async with device(node, "BYSTANDER") as plate:
        yield
        plate.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        await api.send("devices/BYSTANDER/commands/device_status", qos=0)
        assert (await api.json("devices/BYSTANDER/acks/device_status"))["status"] == "acked"
        assert not plate.gone.is_set()


def signature(text: str | bytes) -> dict[str, str]:
    return {"signature": base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()}


@pytest.mark.parametrize(
    "argument",
    [
        None,
        17,
        "text",
        [],
        {},
        {"signature": None},
        {"signature": 5},
        {"signature": "kajsldfjnsewjrklwe"},
        {"signature": "%%%"},
        {"signature": "x" * 10_000},
        signature("no-colon"),
        signature("AC1:"),
        signature(":key"),
        signature("a/../b:key"),
        signature("+:key"),
        signature("#:key"),
        signature("$SYS:key"),
        signature("a\0b:key"),
        signature("x" * 65 + ":key"),
        signature("班牌:key"),
        signature(b"\xff\xfe:key"),
        b"\x00\x01",
    ],
    ids=repr,
)
async def test_a_malformed_signature_fails(node: Node, argument: Any) -> None:
    async with viewer(node) as stranger:
        await stranger.client.emit("authentication", argument)
        assert await stranger.expect("auth:fail") == ({"error_msg": "signature not valid."},)
        stranger.serial = "AC1"
        assert await stranger.authenticate() == "auth:ok", "and may try again"


async def test_a_second_authentication_does_not_change_who_it_is(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        assert await plate.authenticate() == "auth:ok"
        plate.serial = "AC2"
        assert await plate.authenticate() == "auth:fail"
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        await plate.expect("media_stop")


@pytest.mark.parametrize(
    "room",
    [None, 5, "", [], {"a": 1}, "other", "AC2", "+", "#", "$SYS", "a\0b", "x" * 10_000],
    ids=lambda room: repr(room)[:20],
)
async def test_a_room_that_may_not_be_joined(node: Node, room: Any) -> None:
    async with device(node, "AC1") as plate:
        await plate.client.emit("join_room", {"room": room})
        ((answer),) = await plate.expect("join_room:fail")
        assert answer["error_msg"]
        for event in ("join_room", "leave_room"):
            await plate.client.emit(event, room)
            await plate.expect(f"{event}:fail")


async def test_an_event_with_a_name_too_long_is_refused_to_its_device(node: Node) -> None:
    async with device(node, "AC1") as plate:
        answer = await plate.client.call("x" * 10_000, {}, timeout=int(WAIT_S))
        assert answer["ack"] is False
        assert "1 to 128 bytes" in answer["error_msg"]


async def test_a_viewer_is_no_device(node: Node) -> None:
    async with viewer(node) as page:
        assert await page.client.call("cmd_result", {}, timeout=int(WAIT_S)) == {
            "ack": False,
            "error_msg": "not authenticated",
        }


@pytest.mark.parametrize(
    ("event", "payload", "error"),
    [
        ("bind_class", b"{", "payload: Input data was truncated"),
        ("bind_class", b"\xff\xfe", "payload: 'utf-8' codec can't decode byte 0xff"),
        ("bind_class", b"", "payload: bind_class needs an argument"),
        ("bind_class", b'{"id": "1"}', "payload: Expected `int`, got `str` - at `$.id`"),
        ("bind_class", b"[]", "payload: Expected `object`, got `array`"),
        ("mystery", b"[" * 100_000, "payload: maximum recursion depth"),
        ("mystery", b"{]", "payload: JSON is malformed"),
        ("device_status", b"{}", "payload: device_status takes no argument"),
        ("a/b/c", b"", "topic: expected devices/{serial}/commands/{event}[/{id}]"),
        ("%ff", b"", "topic: percent-encoding is not UTF-8"),
    ],
)
async def test_a_bad_command_is_rejected_with_the_reason(
    node: Node, api: Service, event: str, payload: bytes, error: str
) -> None:
    async with device(node, "AC1") as plate:
        await api.send(f"devices/AC1/commands/{event}", payload)
        outcome = await api.json("devices/AC1/acks/#")
        assert (outcome["status"], outcome["maybe_delivered"]) == ("rejected", False)
        assert outcome["error"].startswith(error)
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        await plate.expect("media_stop")


async def test_a_command_that_is_too_large_is_rejected(node: Node, api: Service) -> None:
    async with device(node, "AC1"):
        await api.send("devices/AC1/commands/mystery", b'"' + b"x" * 1_000_000 + b'"')
        assert (await api.json("devices/AC1/acks/mystery"))["error"] == "payload: larger than 1000000 bytes"


@pytest.mark.parametrize("topic", ["gw/v1/devices/AC2/presence", "gw/v1/inboxx/me", "other", "$SYS/x", "gw/v1/inbox"])
async def test_a_response_topic_outside_the_allow_list_is_refused(node: Node, api: Service, topic: str) -> None:
    async with device(node, "AC1"):
        if topic == "gw/v1/inbox":
            topic += "/../devices"  # below inbox, whatever it looks like: allowed
        await api.send("devices/AC1/commands/device_status", ResponseTopic=topic)
        if "inbox/" in topic:
            await api.message("inbox/#")
        else:
            outcome = await api.json("devices/AC1/acks/device_status")
            assert (outcome["status"], outcome["error"]) == ("rejected", "Response Topic is not allowed")


async def test_a_device_that_acks_twice_or_something_unknown(node: Node, api: Service) -> None:
    async with device(node, "AC1") as plate:
        await api.send("devices/AC1/commands/media_stop/a", {"stop": True})
        assert (await api.json("devices/AC1/acks/media_stop/a"))["status"] == "acked"
        packet = plate.client.packet_class
        for id in (1, 1, 99, 10**30):
            await plate.client._send_packet(packet(3, data=[{"ack": True}], id=id))
        await api.send("devices/AC1/commands/media_stop/b", {"stop": True})
        outcome = await api.json("devices/AC1/acks/media_stop/#")
        assert (outcome["id"], outcome["status"]) == ("b", "acked")


@pytest.mark.parametrize(
    "frame",
    [
        *("2", "2[]", "2[5]", "2{}", '2["a"', "3[]", "9", "x", "5-[]", "2" * 10_000, '2["a",' + "[" * 50_000),
        *("31", "", '2/other,["a"]'),  # harmless: an ack of nothing, another namespace
    ],
    ids=lambda frame: frame[:12],
)
async def test_a_packet_that_is_none_closes_its_sender_alone(node: Node, frame: str) -> None:
    async with device(node, "AC1", transports=["websocket"]) as plate:
        await plate.client.eio.send(frame)
        if frame not in ("31", "", '2/other,["a"]'):
            await asyncio.wait_for(plate.gone.wait(), WAIT_S)


async def test_an_oversized_message_closes_its_sender_alone(node: Node) -> None:
    async with device(node, "AC1", transports=["websocket"]) as plate:
        await plate.client.emit("big", "x" * 1_100_000)
        await asyncio.wait_for(plate.gone.wait(), WAIT_S)


async def test_a_room_event_that_is_wrong(broker: LocalBroker, api: Service, tmp_path: Path) -> None:
    """It has no sender to tell: it is not emitted, but counted and logged."""
    config = tmp_path / "strict.toml"
    config.write_text('[catalog]\nunknown = "reject"\n')
    async with gateway(broker.url, "--node", "gw-strict", config=str(config)) as strict, device(strict, "AC1") as plate:
        await plate.client.emit("join_room", {"room": "AC1"})
        await plate.expect("join_room:ok")
        for _ in range(5):
            await api.send("rooms/AC1/events/memos_update", {"memo_id": "x"})
            await api.send("rooms/AC1/events/unheard_of", {})
        await api.send("rooms/AC1/events/memos_update", {"memo_id": 20})
        assert await plate.expect("memos_update") == ({"memo_id": 20},)
        line = await strict.logged("unusable room event")
        assert line["problem"] == "payload: Expected `int`, got `str` - at `$.memo_id`"
        await counts(strict, 10, "gateway_ignored_total", what="unusable_room_event")


async def test_junk_never_becomes_a_label(node: Node, api: Service) -> None:
    import aiohttp

    async with device(node, "AC1") as plate, aiohttp.ClientSession() as http:
        await plate.client.emit("junk-event", {})
        await api.message("devices/AC1/events/junk-event")
        async with http.get(f"{node.admin}/metrics") as answer:
            text = await answer.text()
    assert "process_cpu_seconds_total" in text
    assert 'gateway_device_events_total{event="other"} 1.0' in text
    assert "junk" not in text
    assert "AC1" not in text


async def test_the_log_never_holds_a_key(node: Node) -> None:
    secret = "s3cret-key"
    plate = Device("AC1")
    await plate.connect(node.devices)
    assert await plate.authenticate(secret) == "auth:ok"
    await plate.client.emit("authentication", {"signature": base64.b64encode(secret.encode()).decode()})
    await plate.expect("auth:fail")
    await plate.disconnect()
    await node.logged("signature malformed")
    text = repr(node.lines)
    assert "AC1" in text
    assert secret not in text
    assert base64.b64encode(secret.encode()).decode() not in text
