"""Floods of those who are nobody: each is told why it is refused, and devices come in and are served meanwhile."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from itertools import count

import pytest
from yarl import URL

from gateway.brokers import LocalBroker
from tests.e2e.hostile import TEXT, RawSocket, bear, counted, counts, frame, serve
from tests.e2e.world import PATH, WAIT_S, Device, Node, Service, device, gateway

REFUSALS = "gateway_refusals_total"
ATTACKER = "127.0.0.2"
HANDSHAKE = f"GET {PATH}/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
Start = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@pytest.fixture
def start(broker: LocalBroker) -> Start:
    """Start a node with settings of admission."""

    def start(**settings: object) -> AbstractAsyncContextManager[Node]:
        return gateway(
            broker.url, environ={f"GATEWAY_ADMISSION_{name.upper()}": str(v) for name, v in settings.items()}
        )

    return start


@asynccontextmanager
async def dial(node: Node, source: str = ATTACKER) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    url = URL(node.devices)
    reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: StreamReader) -> tuple[int, str, bytes]:
    """Status, head and body of one response."""
    async with asyncio.timeout(WAIT_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
        return int(head.split()[1]), head, await reader.readexactly(int(length.partition(":")[2]))


def newcomers(node: Node) -> Callable[[], AbstractAsyncContextManager[Device]]:
    """A new device from elsewhere, each time."""
    numbers = count()
    return lambda: device(node, f"NEW{next(numbers)}", transports=["websocket"])


async def test_a_flood_of_handshakes(start: Start, api: Service) -> None:
    async with start(handshakes_per_address_per_s=5) as node, device(node, "BYSTANDER") as bystander:
        come = newcomers(node)

        async def attack() -> None:
            async with dial(node) as (reader, writer):
                writer.write(HANDSHAKE.encode())
                status, head, body = await answer(reader)
                if status == 503:
                    assert json.loads(body) == {"code": 6, "message": "Too many handshakes"}
                    assert "Retry-After: 1\r\n" in head
                    assert await reader.read() == b"", "and the connection is closed"

        async def seen() -> bool:
            async with come():
                return await counted(node, REFUSALS, reason="address-handshake-rate") > 200

        await bear(node, api, bystander, attack, seen)


async def test_a_flood_of_upgrades(start: Start, api: Service) -> None:
    """One session is enough to try, again and again."""
    async with start(handshakes_per_address_per_s=5) as node, device(node, "BYSTANDER") as bystander:
        come = newcomers(node)
        async with dial(node) as (reader, writer):
            writer.write(HANDSHAKE.encode())
            _, _, body = await answer(reader)
            sid = json.loads(body[1:])["sid"]

            async def attack() -> None:
                async with dial(node) as (reader, writer):
                    writer.write(
                        f"GET {PATH}/?EIO=4&transport=websocket&sid={sid} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
                    )
                    async with asyncio.timeout(WAIT_S):
                        assert (await reader.readline()).split()[1] in (b"101", b"400", b"503")

            async def seen() -> bool:
                async with come():
                    return await counted(node, REFUSALS, reason="address-handshake-rate") > 100

            await bear(node, api, bystander, attack, seen)


@pytest.mark.parametrize(
    ("peers", "timeout_s", "reason", "status"),
    [(80, 60, "crowded-out", b"HTTP/1.1 503"), (30, 1, "slow-request", b"HTTP/1.1 408")],
)
async def test_heads_that_drip(
    start: Start, api: Service, peers: int, timeout_s: int, reason: str, status: bytes
) -> None:
    """Connections whose heads never end: more than there are places, or so few that each has its time."""
    limits = {"request_timeout_s": timeout_s, "max_unauthenticated_per_address": 50}
    async with start(**limits) as node, device(node, "BYSTANDER") as bystander:
        come = newcomers(node)

        async def attack() -> None:
            async with dial(node) as (reader, writer):
                writer.write(f"GET {PATH}/ HTTP/1.1\r\nHost: x\r\n".encode())
                end = asyncio.ensure_future(reader.read())
                try:
                    while not end.done():
                        writer.write(b"X: y\r\n")
                        await asyncio.wait({end}, timeout=0.1)
                    assert end.result().startswith(status)
                finally:
                    end.cancel()

        async def seen() -> bool:
            async with come():
                return await counted(node, REFUSALS, reason=reason) > 50

        await bear(node, api, bystander, attack, seen, peers=peers)


async def test_posts_that_drip(start: Start, api: Service) -> None:
    async with start(request_timeout_s=1) as node, device(node, "BYSTANDER", transports=["polling"]) as bystander:
        come = newcomers(node)

        async def attack() -> None:
            async with dial(node) as (reader, writer):
                writer.write(HANDSHAKE.encode())
                _, _, body = await answer(reader)
                sid = json.loads(body[1:])["sid"]
                writer.write(
                    f"POST {PATH}/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: x\r\n"
                    "Content-Length: 1000\r\n\r\n".encode()
                )
                end = asyncio.ensure_future(answer(reader))
                try:
                    while not end.done():
                        writer.write(b"4")
                        await asyncio.wait({end}, timeout=0.1)
                    status, _, body = end.result()
                finally:
                    end.cancel()
                assert (status, json.loads(body)) == (408, {"code": 7, "message": "Request took too long"})

        async def seen() -> bool:
            async with come():
                return await counted(node, REFUSALS, reason="slow-request") > 20

        await bear(node, api, bystander, attack, seen, peers=30)


async def test_strangers_that_say_nothing(start: Start, api: Service) -> None:
    """They take all places from few addresses; who comes from elsewhere gets one of theirs, each time."""
    limits = {"max_unauthenticated": 60, "max_unauthenticated_per_address": 20}
    async with start(**limits) as node, device(node, "BYSTANDER") as bystander:
        come, sources = newcomers(node), count()

        async def attack() -> None:
            async with RawSocket.open(node, source=f"127.0.2.{next(sources) % 6 + 1}") as peer:
                await peer.end(None)

        async def seen() -> bool:
            async with come():
                return await counted(node, "gateway_closes_total", reason="unauthenticated") >= 3

        await bear(node, api, bystander, attack, seen, peers=100)
        assert await counted(node, REFUSALS, reason="strangers") > 50, "their own addresses have as many as any"
        assert await counted(node, REFUSALS, reason="crowded-out") >= 3


async def test_when_every_address_has_one_stranger_the_next_is_told_to_come_again(start: Start) -> None:
    async with start(max_unauthenticated=5) as node, AsyncExitStack() as stack:
        for n in range(1, 6):
            await stack.enter_async_context(RawSocket.open(node, source=f"127.0.3.{n}"))
        async with dial(node) as (reader, writer):
            writer.write(HANDSHAKE.encode())
            status, head, _ = await answer(reader)
            assert (status, "Retry-After: 5\r\n" in head) == (503, True)
        assert await counted(node, REFUSALS, reason="strangers") == 1


async def test_a_stranger_that_says_too_much(start: Start) -> None:
    async with start() as node, RawSocket.open(node) as peer:
        peer.writer.write(frame(TEXT, '42["hello","' + "x" * 70_000 + '"]'))
        assert await peer.end() == 1009
        await counts(node, 1, "gateway_closes_total", reason="malformed")
        assert await counted(node, REFUSALS, reason="stranger-bytes") == 1


async def test_viewers_over_their_number_are_told(start: Start, broker: LocalBroker) -> None:
    environ = {"GATEWAY_ADMISSION_MAX_VIEWERS_PER_ADDRESS": "2", "GATEWAY_ADMISSION_MAX_VIEWERS": "3"}
    rules = '[{match = "*", allow = "anyone"}]'
    async with gateway(broker.url, environ=environ | {"GATEWAY_ROOMS_RULES": rules}) as node:
        async with AsyncExitStack() as stack:
            answers = []
            for source in (ATTACKER, ATTACKER, ATTACKER, "127.0.0.3", "127.0.0.4"):
                peer = await stack.enter_async_context(RawSocket.open(node, source=source))
                peer.text('42["join_room",{"room":"AC1"}]')
                answers.append(await peer.until('42["join_room:'))
            full = '42["join_room:fail",{"error_msg":"too many viewers, try again later"}]'
            assert answers == ['42["join_room:ok"]'] * 2 + [full] + ['42["join_room:ok"]', full]
            for reason in ("viewers", "address-viewers"):
                assert await counted(node, REFUSALS, reason=reason) == 1
        await counts(node, 5, "gateway_closes_total")
        async with RawSocket.open(node, source=ATTACKER) as peer:
            peer.text('42["join_room",{"room":"AC1"}]')
            await peer.until('42["join_room:ok"')


async def test_a_device_that_sends_too_fast_is_slowed_and_stays(start: Start, api: Service) -> None:
    async with (
        start(messages_per_s=50) as node,  # 500 at once
        device(node, "BYSTANDER") as bystander,
        RawSocket.open(node, "HOSTILE") as peer,
    ):
        peer.writer.write(frame(TEXT, '42["reading",1]') * 5000)
        await counts(node, 1, REFUSALS, reason="message-rate")
        await serve(api, bystander)
        assert await counted(node, "gateway_device_events_total") < 3000
        assert await counted(node, "gateway_closes_total") == 0


async def test_clients_behind_a_trusted_proxy_are_told_apart(start: Start, api: Service) -> None:
    """Their own addresses are limited, logged and announced; a stranger that claims one is not believed."""
    async with start(trusted_proxies="127.0.0.9", handshakes_per_address_per_s=0.1) as node:  # two at once
        for n in range(1, 4):
            for _ in range(2):
                async with dial(node, "127.0.0.9") as (reader, writer):
                    forwarded = f"X-Forwarded-For: 192.0.2.9, 198.51.100.{n}\r\n\r\n"
                    writer.write(HANDSHAKE.removesuffix("\r\n").encode() + forwarded.encode())
                    assert (await answer(reader))[0] == 200
        async with dial(node, "127.0.0.9") as (reader, writer):
            writer.write(HANDSHAKE.removesuffix("\r\n").encode() + b"X-Forwarded-For: 198.51.100.1\r\n\r\n")
            assert (await answer(reader))[0] == 503
        plate = Device("AC1")
        await plate.connect(node.devices, headers={"X-Forwarded-For": "198.51.100.1"}, transports=["websocket"])
        assert await plate.authenticate() == "auth:ok"
        assert (await api.presence("AC1", online=True))["client"]["address"] == "127.0.0.1"
        await node.logged("device here", address="127.0.0.1")
        await plate.disconnect()
