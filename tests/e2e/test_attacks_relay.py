"""A WebSocket that one node relays to another is no way around what bounds it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest
from yarl import URL

from gateway.brokers import LocalBroker
from tests.e2e.hostile import PING, PONG, TEXT, RawSocket, bear, counted, frame
from tests.e2e.test_relay import SECRET
from tests.e2e.world import PATH, Device, Node, Service, device, gateway, service

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@pytest.fixture
async def nodes(broker: LocalBroker, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that relay to each other."""

    def running(name: str) -> AbstractAsyncContextManager[Node]:
        port = unused_tcp_port_factory()
        environ = {"GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{port}", "GATEWAY_RELAY_SECRET": SECRET}
        return gateway(broker.url, "--node", name, listen=f"127.0.0.1:{port}", environ=environ)

    async with running("gw-1") as one, running("gw-2") as two:
        yield one, two


@pytest.fixture
async def api(broker: LocalBroker) -> AsyncIterator[Service]:
    async with service(broker.url, sees=("devices/+/acks/#",), socket_options=(NODELAY,)) as client:
        yield client


@pytest.fixture
async def node(nodes: tuple[Node, Node]) -> Node:
    return nodes[1]


@pytest.fixture
async def bystander(node: Node) -> AsyncIterator[Device]:
    async with device(node, "BYSTANDER", transports=["websocket"]) as plate:
        yield plate


async def relayed(owner: Node, other: Node, address: str = "127.0.0.1") -> RawSocket:
    """A session that begins by polling at one node and moves to a WebSocket at another."""
    url = f"{owner.devices}{PATH}/?EIO=4&transport=polling"
    headers = {"X-Forwarded-For": address}
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as response:
        sid = json.loads((await response.text())[1:])["sid"]
    port = URL(other.devices).port
    assert port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET {PATH}/?EIO=4&transport=websocket&sid={sid} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
        writer.close()
        raise ConnectionRefusedError
    peer = RawSocket(reader, writer)
    peer.text("2probe")
    await peer.until("3probe")
    peer.text("5")
    return peer


@pytest.mark.parametrize("message", [frame(PING), frame(PONG), frame(TEXT, "6")], ids=["pings", "pongs", "noops"])
async def test_a_flood_through_another_node(
    nodes: tuple[Node, Node], api: Service, bystander: Device, message: bytes
) -> None:
    one, two = nodes

    async def attack() -> None:
        peer = await relayed(one, two)
        try:
            await peer.flood(message * 10_000)
        finally:
            peer.writer.transport.abort()

    async def seen() -> bool:
        return await counted(two, "gateway_relayed_total", what="websocket") > 0

    await bear(two, api, bystander, attack, seen, peers=3)


async def test_a_device_that_is_relayed_may_say_as_much_as_any_other(nodes: tuple[Node, Node], api: Service) -> None:
    one, two = nodes
    peer = await relayed(one, two)
    peer.text("40")
    await peer.until('40{"sid"')
    peer.text('42["authentication",{"signature":"QUMxOmtleQ=="}]')
    await peer.until('42["auth:ok"')
    for number in range(6):
        peer.text(f'42{number}["","{"x" * 900_000}"]')  # an event without a name is answered at once
        await peer.until(f"43{number}")
    peer.writer.transport.abort()


async def test_upgrades_that_are_relayed_count_for_their_own_address(
    broker: LocalBroker, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Not for that of the node which relays them: from there come the upgrades of everybody."""
    proxy = {"GATEWAY_ADMISSION_TRUSTED_PROXIES": "127.0.0.1", "GATEWAY_ADMISSION_HANDSHAKES_PER_ADDRESS_PER_S": "0.1"}

    def running(name: str, more: Mapping[str, str]) -> AbstractAsyncContextManager[Node]:
        port = unused_tcp_port_factory()
        environ = {"GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{port}", "GATEWAY_RELAY_SECRET": SECRET, **more}
        return gateway(broker.url, "--node", name, listen=f"127.0.0.1:{port}", environ=environ)

    async with running("gw-1", proxy) as one, running("gw-2", {}) as two:
        for number in range(6):  # two handshakes each, of two that an address may have at once
            peer = await relayed(one, two, f"192.0.2.{number}")
            peer.writer.transport.abort()
