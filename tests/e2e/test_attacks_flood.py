"""Floods of small, huge and malformed messages: their sender is slowed or closed, and counted; others are served."""

import asyncio
import socket
from collections.abc import AsyncIterator
from itertools import count

import pytest

from gateway.brokers import LocalBroker
from tests.e2e.hostile import BINARY, PING, PONG, TEXT, RawSocket, bear, counted, frame, serve, unharmed
from tests.e2e.world import Device, Node, Service, device, gateway, service

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@pytest.fixture
def kind() -> str:
    """The embedded broker is no broker to be attacked."""
    return "mosquitto"


@pytest.fixture
async def node(broker: LocalBroker) -> AsyncIterator[Node]:
    async with gateway(broker.url, environ={"GATEWAY_DEVICES_AUTH_TIMEOUT_S": "1"}) as running:
        yield running


@pytest.fixture
async def api(broker: LocalBroker) -> AsyncIterator[Service]:
    """A service that sees nothing of the attacks."""
    sees = ("devices/BYSTANDER/acks/#",)
    async with service(broker.url, sees=sees, socket_options=(NODELAY,)) as client:
        yield client


@pytest.fixture
async def bystander(node: Node) -> AsyncIterator[Device]:
    async with device(node, "BYSTANDER", transports=["websocket"]) as plate:
        yield plate


@pytest.mark.parametrize(
    "message",
    [frame(TEXT, "3"), frame(TEXT, "6"), frame(TEXT, '42["join_room",1]'), frame(PING), frame(PONG)],
    ids=["pongs", "noops", "bad joins", "WebSocket pings", "WebSocket pongs"],
)
async def test_a_stranger_that_floods(node: Node, api: Service, bystander: Device, message: bytes) -> None:
    """One such socket kept a node from all of its devices, and from the clock that should have closed it."""

    async def attack() -> None:
        async with RawSocket.open(node) as peer:
            await peer.flood(message * (65_536 // len(message)))

    async def closed() -> bool:
        how = ("unauthenticated", "malformed")
        return sum([await counted(node, "gateway_closes_total", reason=reason) for reason in how]) > 0

    await bear(node, api, bystander, attack, closed)


@pytest.mark.parametrize(
    ("message", "metric", "labels"),
    [
        (frame(TEXT, '42["reading",1]'), "gateway_device_events_total", {"event": "other"}),
        (frame(TEXT, '42["cmd_result",1]'), "gateway_device_events_total", {"event": "cmd_result"}),
        (frame(TEXT, '420["question"]'), "gateway_ignored_total", {"what": "bad_event"}),
        (frame(TEXT, "43999[]"), "gateway_ignored_total", {"what": "unknown_ack"}),
        (frame(TEXT, '42["disconnect"]'), "gateway_ignored_total", {"what": "bad_event"}),
    ],
    ids=["events", "room events", "questions", "acks", "reserved names"],
)
async def test_a_device_that_floods(
    node: Node, api: Service, bystander: Device, message: bytes, metric: str, labels: dict[str, str]
) -> None:
    serials = count()

    async def attack() -> None:
        async with RawSocket.open(node, f"HOSTILE{next(serials)}") as peer:
            await peer.flood(message * 1000)

    async def seen() -> bool:
        return await counted(node, metric, **labels) > 100

    await bear(node, api, bystander, attack, seen)


def event(name: str, text: str) -> str:
    return f'42["{name}",{text}]'


MANY_KEYS = "{" + ",".join(f'"{number}":0' for number in range(100_000)) + "}"
HUGE = frame(TEXT, '451-["picture",{"_placeholder":true,"num":0}]') + frame(BINARY, b"x" * 900_000)


@pytest.mark.parametrize(
    "messages",
    [
        HUGE,
        frame(TEXT, event("keys", MANY_KEYS)),
        frame(TEXT, event("list", "[" + "0," * 400_000 + "0]")),
        frame(TEXT, event("number", "9" * 900_000)),
        frame(TEXT, event("text", '"' + "\\u4e2d" * 150_000 + '"')),
        frame(TEXT, event("deep", "[" * 900 + "]" * 900)),
    ],
    ids=["attachments", "keys", "items", "digits", "escapes", "depth"],
)
async def test_a_device_that_sends_as_much_as_it_may(
    node: Node, api: Service, bystander: Device, messages: bytes
) -> None:
    serials = count()

    async def attack() -> None:
        async with RawSocket.open(node, f"HOSTILE{next(serials)}") as peer:
            await peer.flood(messages)

    async def seen() -> bool:
        events = await counted(node, "gateway_device_events_total")
        return events + await counted(node, "gateway_closes_total", reason="malformed") > 3

    await bear(node, api, bystander, attack, seen, peers=3)


MALFORMED = {
    "deep JSON": frame(TEXT, event("a", "[" * 400_000)),
    "deep JSON that ends": frame(TEXT, event("a", "[" * 400_000 + "]" * 400_000)),
    "invalid UTF-8": frame(TEXT, b'42["a","\xff\xfe"]'),
    "half a surrogate pair in UTF-8": frame(TEXT, b'42["a","\xed\xa0\x80"]'),
    "too large": frame(TEXT, event("a", '"' + "x" * 1_000_001 + '"')),
    "a frame that claims to be": bytes([0x81, 0xFF]) + b"\x7f" + b"\xff" * 7 + b"\0\0\0\0",
    "attachments that nobody announced": frame(BINARY, b"x" * 900_000),
    "eleven attachments": frame(TEXT, "4511-" + event("a", ",".join(['{"_placeholder":true,"num":0}'] * 11))[2:]),
    "a million attachments": frame(TEXT, '451000000-["a",{"_placeholder":true,"num":0}]'),
    "one attachment in many places": frame(
        TEXT, "451-" + event("a", ",".join(['{"_placeholder":true,"num":0}'] * 1000))[2:]
    ),
    "attachments over the limit": frame(TEXT, '452-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    + frame(BINARY, b"x" * 900_000) * 2,
    "an id of a million digits": frame(TEXT, "42" + "9" * 900_000 + '["a"]'),
    "a namespace of a million bytes": frame(TEXT, "42/" + "x" * 900_000),
    "keys without values": frame(TEXT, event("a", "{" + '"k",' * 100_000 + "}")),
    "a frame with reserved bits": bytes([0xF1, 0x80, 0, 0, 0, 0]),
    "a ping of 126 bytes": frame(PING, b"x" * 126),
}


async def test_what_is_malformed_closes_its_sender(node: Node, api: Service, bystander: Device) -> None:
    """Again and again; each is closed with a close frame, and counted."""
    async with unharmed(node, api, bystander, "gateway_closes_total", 5 * len(MALFORMED), reason="malformed"):
        for name, messages in MALFORMED.items():
            for number in range(5):
                async with RawSocket.open(node, f"HOSTILE{number}") as peer:
                    peer.writer.write(messages)
                    assert await peer.end() is not None, name
            await serve(api, bystander, 2)
    assert await counted(node, "gateway_closes_total", reason="internal-error") == 0


async def test_attachments_that_never_come_are_held_within_bounds(node: Node, api: Service, bystander: Device) -> None:
    """Each of twenty devices has sent nine tenths of the most that it may: that is what it can cost, and no more."""
    before = await counted(node, "process_resident_memory_bytes")
    announced = frame(TEXT, '452-["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')

    async def held(serial: str, done: asyncio.Event) -> None:
        async with RawSocket.open(node, serial) as peer:
            peer.writer.write(announced + frame(BINARY, b"x" * 900_000) + frame(PING, b"read"))
            while (await peer.read()) != (PONG, b"read"):
                pass
            done.set()
            await asyncio.Event().wait()

    done = [asyncio.Event() for _ in range(20)]
    tasks = [asyncio.create_task(held(f"HOSTILE{number}", one)) for number, one in enumerate(done)]
    await asyncio.gather(*(asyncio.wait_for(one.wait(), 20) for one in done))
    await serve(api, bystander)
    assert await counted(node, "process_resident_memory_bytes") - before < 2.5 * 20 * 900_000 + (16 << 20)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
