"""Bytes that no client would send, against a running server: never a 500, never a traceback, nobody left over."""

import asyncio
import logging
import random
import struct

import aiohttp
import pytest
from yarl import URL

from gateway.engine.server import EngineServer

from .echo import Echo
from .harness import CALM, Bench, Peer, serving

ROUNDS = 300
PARTS = [
    "EIO=3", "EIO=4", "EIO=2", "EIO", "EIO=%ff", "transport=polling", "transport=websocket", "transport=",
    "sid=", "sid=x", "sid={sid}", "sid=%00", "b64=1", "b64=%", "j=0", "j=../", "t=%E4%B8", "a[]=1", "=&=", "%",
]  # fmt: skip
HEADERS = [
    "Upgrade: websocket", "Connection: Upgrade", "Connection: close", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Version: 99", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: \xe9\xff",
    "Sec-WebSocket-Key: =", "Sec-WebSocket-Protocol: \xff, a", "Sec-WebSocket-Extensions: permessage-deflate;;=",
    "Content-Type: application/octet-stream", "Content-Type: \xff;=", "Content-Encoding: gzip",
    "Content-Encoding: br", "Transfer-Encoding: chunked", "Content-Length: 5", "Content-Length: 99999999",
    "Expect: 100-continue", "Accept-Encoding: gzip", "Origin: https://x", "Origin: \xff", "Cookie: \xff=\xfe",
]  # fmt: skip
BODIES = [
    b"", b"4hello", b"6:4hello", b"1:2", b"3", b"abc", b"b\xc2\x80", b"\x00\x06\xff4hello", b"\xff" * 50,
    b"9999999999:4", b"d=1:2", b"d=%", b"4" * 3000, b"5\r\n4hell\r\n0\r\n\r\n", b"\x1f\x8b\x08garbage", b"41",
    b"451-[", b"42" + b"[" * 2000, b"0:" * 1000, "4中文😀".encode(), b"\x1e" * 20,
]  # fmt: skip


def request(rng: random.Random, sid: str) -> bytes:
    method = rng.choice(["GET", "GET", "POST", "POST", "PUT", "OPTIONS", "HEAD", "DELETE", "BREW"])
    query = "&".join(rng.choice(PARTS) for _ in range(rng.randrange(5))).replace("{sid}", sid)
    path = rng.choice(["/socket.io/", "/socket.io", "/socket.io//", "/socket.io/../socket.io/"])
    headers = "".join(f"{rng.choice(HEADERS)}\r\n" for _ in range(rng.randrange(6)))
    body = rng.choice(BODIES)
    if rng.random() < 0.7 and "Content-Length" not in headers and "chunked" not in headers:
        headers += f"Content-Length: {len(body)}\r\n"
    head = f"{method} {path}?{query} HTTP/1.{rng.randrange(2)}\r\nHost: x\r\n{headers}\r\n"
    return mutated(rng, head.encode("latin-1") + body)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Every third time a few bytes are others, or missing."""
    if rng.random() > 0.3:
        return data
    changed = bytearray(data)
    for _ in range(rng.randrange(4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.3 else changed)


def frame(rng: random.Random) -> bytes:
    """A masked frame of some opcode, whose length is now and then a lie."""
    body = rng.choice(BODIES)[:125]
    opcode = rng.choice([0x80, 0x81, 0x81, 0x81, 0x82, 0x82, 0x01, 0x02, 0x88, 0x89, 0x8A, 0x83, 0xC1, 0xF1])
    length = len(body) if rng.random() < 0.9 else rng.randrange(126)
    return mutated(rng, struct.pack("!BB", opcode, 0x80 | length) + b"\0\0\0\0" + body)


async def exchange(url: str, data: bytes, *, answered: bool = False) -> bytes:
    """Send, read until the server ends it or has nothing more to say, and hang up; if `answered` it says something."""
    parts = URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    answer = b""
    try:
        writer.write(data)
        if answered:
            async with asyncio.timeout(20):
                answer = await reader.read(65_536)
        async with asyncio.timeout(0.05):
            while chunk := await reader.read(65_536):
                answer += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


@pytest.fixture
def engine() -> EngineServer:
    return Echo(CALM).engine


@pytest.mark.parametrize("seed", range(4))
async def test_raw_requests(
    engine: EngineServer, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    rng = random.Random(seed)
    async with serving(engine, path="socket.io") as url:
        for _ in range(ROUNDS // 4):
            peer = Peer(url, http, rng.choice("34"))
            await peer.open()
            answers = [await exchange(url, request(rng, peer.sid)) for _ in range(4)]
            assert not [answer for answer in answers if answer[9:10] == b"5"]
    check_log(caplog)


@pytest.mark.parametrize("seed", range(4))
async def test_raw_frames(engine: EngineServer, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    rng = random.Random(seed)
    async with serving(engine, path="socket.io") as url:
        for _ in range(ROUNDS):
            handshake = (
                f"GET /socket.io/?EIO={rng.choice('34')}&transport=websocket HTTP/1.1\r\nHost: x\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            frames = b"".join(frame(rng) for _ in range(rng.randrange(1, 8)))
            assert (await exchange(url, handshake.encode() + frames, answered=True)).startswith(b"HTTP/1.1 101")
        async with aiohttp.ClientSession() as http:
            while engine.connections:  # everyone who left is gone
                await http.get(url)
    check_log(caplog)


async def test_memory_is_given_back(calm: Bench, http: aiohttp.ClientSession) -> None:
    """What garbage leaves behind is nothing."""
    rng = random.Random(7)
    for _ in range(ROUNDS):
        peer = Peer(calm.url, http, rng.choice("34"))
        await peer.open()
        await peer.post(b"\xff" + rng.randbytes(20))
    assert len(calm.engine.connections) == 0
    assert len(calm.engine._alarms) == 0


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert not any(record.exc_info for record in caplog.records)
