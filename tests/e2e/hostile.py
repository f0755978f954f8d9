"""What an attack needs: peers that write what they like, a bystander that must be served, and what is counted."""

import asyncio
import base64
import json
import re
import struct
import threading
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from select import select
from typing import Any, Final, Self

import aiohttp
from yarl import URL

from tests.e2e.world import PATH, POLL_S, WAIT_S, Device, Node, Service

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
ROUNDS: Final = 40  # commands of a bystander during an attack
FLAT_BYTES: Final = 64 << 20  # more memory than an attack may cost a node; without its bounds each costs more


def frame(opcode: int, payload: bytes | str = b"") -> bytes:
    """A WebSocket frame of a client, with a mask that changes nothing."""
    data = payload.encode() if isinstance(payload, str) else payload
    if len(data) < 126:
        size = bytes([0x80 | len(data)])
    elif len(data) < 65_536:
        size = b"\xfe" + struct.pack("!H", len(data))
    else:
        size = b"\xff" + struct.pack("!Q", len(data))
    return bytes([0x80 | opcode]) + size + b"\0\0\0\0" + data


class RawSocket:
    """A WebSocket of Engine.IO 4 whose peer writes bytes."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, node: Node, serial: str | None = None, *, source: str = "127.0.0.1") -> AsyncIterator[Self]:
        """Connect, join the namespace, and authenticate if there is a serial."""
        async with cls.connect(node, source=source) as peer:
            peer.text("40")
            await peer.until('40{"sid"')
            if serial is not None:
                assert await peer.authenticate(serial) == "auth:ok"
            yield peer

    @classmethod
    @asynccontextmanager
    async def connect(cls, node: Node, *, source: str = "127.0.0.1") -> AsyncIterator[Self]:
        """Connect from an address of this machine, and be in no namespace."""
        url = URL(node.devices)
        assert url.port
        reader, writer = await asyncio.open_connection(url.host, url.port, local_addr=(source, 0))
        try:
            writer.write(
                f"GET {PATH}/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
                raise ConnectionRefusedError
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def authenticate(self, serial: str, key: str = "key") -> str:
        """Claim to be a device; the event that answers."""
        self.claim(serial, key)
        answer: str = json.loads((await self.until('42["auth:')).removeprefix("42"))[0]
        return answer

    def claim(self, serial: str, key: str) -> None:
        """Claim to be a device, and wait for nothing."""
        signature = base64.b64encode(f"{serial}:{key}".encode()).decode()
        self.text(f'42["authentication",{{"signature":"{signature}"}}]')

    def text(self, message: str) -> None:
        """Write one message."""
        self.writer.write(frame(TEXT, message))

    async def read(self) -> tuple[int, bytes]:
        """The next frame. Raises IncompleteReadError, ConnectionError."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0xF, await self.reader.readexactly(size)

    async def until(self, start: str) -> str:
        """The first message that begins so."""
        async with asyncio.timeout(WAIT_S):
            while True:
                opcode, data = await self.read()
                if opcode == TEXT and data.startswith(start.encode()):
                    return data.decode()

    async def end(self, within_s: float | None = WAIT_S) -> int | None:
        """Wait until the gateway has closed the connection; the code that it gave, if any."""
        async with asyncio.timeout(within_s):
            try:
                while True:
                    opcode, data = await self.read()
                    if opcode == CLOSE:
                        return int.from_bytes(data[:2])
            except (IncompleteReadError, ConnectionError):
                return None

    async def flood(self, chunk: bytes) -> None:
        """Write this for as long as the connection lasts, from a thread that waits for nobody; read what comes."""
        stop = threading.Event()
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, chunk, stop)
        try:
            await self.end(None)
        finally:
            stop.set()
            await writing

    def _write(self, chunk: bytes, stop: threading.Event) -> None:
        with self.writer.get_extra_info("socket").dup() as connection, suppress(OSError):
            left = memoryview(chunk)
            while not stop.is_set():
                if select([], [connection], [], 0.05)[1]:
                    left = left[connection.send(left) :] or memoryview(chunk)


async def samples(node: Node) -> dict[str, float]:
    """Every metric of a node, by its name and labels."""
    async with aiohttp.ClientSession() as http, http.get(f"{node.admin}/metrics") as response:
        assert response.status == 200
        lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def counted(node: Node, metric: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    wanted = {f'{name}="{value}"' for name, value in labels.items()}
    series = ((name, value) for name, value in (await samples(node)).items() if name.partition("{")[0] == metric)
    return sum(value for name, value in series if wanted <= set(re.findall(r'\w+="[^"]*"', name)))


async def counts(node: Node, at_least: float, metric: str, **labels: str) -> None:
    """Wait until a metric says so many."""
    async with asyncio.timeout(WAIT_S):
        while await counted(node, metric, **labels) < at_least:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_S)


async def serve(api: Service, plate: Device, rounds: int = ROUNDS) -> None:
    """Each of a bystander's commands is acked at its first attempt, on the connection that it has."""
    topic = f"devices/{plate.serial}"
    for number in range(rounds):
        await api.send(f"{topic}/commands/media_stop/{number}", {"stop": True}, qos=number % 2)
        outcome = await api.outcome(f"{topic}/acks/media_stop/{number}")
        assert (outcome["status"], outcome["attempts"]) == ("acked", 1)
        await plate.expect("media_stop")
    assert not plate.gone.is_set()


@asynccontextmanager
async def unharmed(
    node: Node, api: Service, plate: Device, metric: str, at_least: float = 1, **labels: str
) -> AsyncIterator[None]:
    """An attack that is counted so often, and costs a bystander nothing and the node no memory to speak of."""
    before, memory = await counted(node, metric, **labels), await counted(node, "process_resident_memory_bytes")
    yield
    await counts(node, before + at_least, metric, **labels)
    await serve(api, plate, 4)
    grown = await counted(node, "process_resident_memory_bytes") - memory
    assert grown < FLAT_BYTES, grown


async def bear(
    node: Node,
    api: Service,
    plate: Device,
    attack: Callable[[], Coroutine[Any, Any, None]],
    until: Callable[[], Coroutine[Any, Any, bool]],
    peers: int = 5,
) -> None:
    """Serve a bystander while so many peers attack, each again and again, until it has been counted.

    It costs the node no memory to speak of.
    """
    before = await counted(node, "process_resident_memory_bytes")
    begun = asyncio.Event()

    async def again() -> None:
        while True:
            begun.set()
            with suppress(ConnectionError, IncompleteReadError):
                await attack()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(again()) for _ in range(peers)]
    try:
        await begun.wait()
        await serve(api, plate)
        async with asyncio.timeout(WAIT_S):
            while not await until():
                assert not any(task.done() for task in tasks), "the attack goes on"
                await asyncio.sleep(POLL_S)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
    grown = await counted(node, "process_resident_memory_bytes") - before
    assert grown < FLAT_BYTES, grown
