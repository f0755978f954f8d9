"""A WebSocket is taken from aiohttp at its handshake: what came with it is not lost, and nothing is left behind."""

import asyncio
import struct

import pytest
from yarl import URL

from gateway.engine.connection import Connection
from gateway.engine.effects import CloseReason
from gateway.engine.websocket import FRAMES_PER_TURN

from .harness import Bench, Peer, raw_websocket


def masked(opcode: int, body: bytes = b"") -> bytes:
    """A frame of a client, with a mask that changes nothing."""
    return bytes([0x80 | opcode, 0x80 | len(body), 0, 0, 0, 0]) + body


async def handshake(url: str, eio: str, more: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Shake hands, with frames right behind the request that nobody has accepted yet."""
    parts = URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    request = (
        f"GET {parts.path}?EIO={eio}&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    writer.write(request.encode() + more)
    return reader, writer


@pytest.mark.parametrize("count", [1, FRAMES_PER_TURN, 10 * FRAMES_PER_TURN])
async def test_frames_that_come_with_the_handshake_are_taken_in_order(calm: Bench, eio: str, count: int) -> None:
    frames = [masked(1, f"4{number}".encode()) for number in range(count)]
    split = len(frames[-1]) // 2
    _, writer = await handshake(calm.url, eio, b"".join(frames)[:-split])
    await calm.until("messages", count - 1)
    writer.write(frames[-1][-split:] + masked(1, b"4last"))
    await calm.until("messages", count + 1)
    assert calm.messages == [*map(str, range(count)), "last"]
    writer.close()


async def test_the_accept_key_is_that_of_the_rfc(calm: Bench, eio: str) -> None:
    reader, writer = await handshake(calm.url, eio)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head  # RFC 6455 1.3
    writer.close()


@pytest.mark.parametrize(
    ("bad", "code"), [(b"\xf1\x80\0\0\0\0", 1002), (masked(1, b"\xff"), 1007), (b"\x03\x80\0\0\0\0", 1002)]
)
@pytest.mark.parametrize("when", ["with the handshake", "later"])
async def test_what_is_no_frame_ends_it_with_the_code_that_says_why(
    calm: Bench, eio: str, bad: bytes, code: int, when: str
) -> None:
    reader, writer = await handshake(calm.url, eio, bad if when == "with the handshake" else b"")
    if when == "later":
        await reader.readuntil(b"}")
        writer.write(bad)
    assert (await reader.read()).endswith(b"\x88\x02" + struct.pack("!H", code))
    await calm.until("reasons")
    assert list(calm.reasons.values()) == [[CloseReason.MALFORMED]]
    writer.close()


async def test_messages_before_a_goodbye_are_taken_first(calm: Bench, eio: str) -> None:
    """However many they are, and though the first holds up the rest."""
    count = 3 * FRAMES_PER_TURN
    release = asyncio.Event()

    async def slowly(connection: Connection, data: str | bytes) -> None:
        await release.wait()
        calm._message(connection, data)

    calm.engine.on_message = slowly
    _, writer = await raw_websocket(calm.url, eio)
    goodbye = masked(8, struct.pack("!H", 1000))
    writer.write(b"".join(masked(1, b"4%d" % number) for number in range(count)) + goodbye)
    release.set()
    await calm.until("reasons")
    assert calm.messages == [str(number) for number in range(count)]
    assert list(calm.reasons.values()) == [[CloseReason.CLIENT]]
    writer.close()


async def test_a_peer_that_leaves_ends_the_callback_that_holds_it_up(calm: Bench, peer: Peer) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def never(_: object, __: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    calm.engine.on_message = never
    socket, _ = await peer.open_websocket()
    await socket.send_str("4x")
    await begun.wait()
    assert socket._response.connection is not None
    assert socket._response.connection.transport is not None
    socket._response.connection.transport.abort()
    assert await calm.closed(peer.sid) is CloseReason.TRANSPORT_ERROR
    assert ended.is_set()


async def test_a_device_that_is_idle_has_no_task(calm: Bench, peer: Peer) -> None:
    before = len(asyncio.all_tasks())
    sockets = [(await Peer(calm.url, peer.http, peer.eio).open_websocket())[0] for _ in range(10)]
    for socket in sockets:
        await socket.send_str("4x")
        assert await socket.receive_str() == "4x"
    ours = len(asyncio.all_tasks()) - before
    assert ours < len(sockets)  # the clients' own may have one
    for socket in sockets:
        await socket.close()
