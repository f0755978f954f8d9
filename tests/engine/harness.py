"""A real server on a free port, and a raw peer that knows nothing of the code under test."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.addresses import Listen
from gateway.admission import Admission, AdmissionLimits, Refusal
from gateway.engine.connection import Connection
from gateway.engine.effects import CloseReason
from gateway.engine.faults import PeerFaults
from gateway.engine.options import EngineOptions
from gateway.engine.peers import PeerLimits
from gateway.engine.server import EngineServer
from gateway.listener import Listener
from gateway.proxies import Proxies

FAST = EngineOptions(ping_interval_s=0.3, ping_timeout_s=0.2)
CALM = EngineOptions(ping_interval_s=60.0, ping_timeout_s=60.0)


class Bench:
    """An echo server that notes what its application is told."""

    def __init__(self, options: EngineOptions, admission: Admission, proxies: Proxies) -> None:
        self.engine = EngineServer(options, admission, proxies)
        self.engine.on_refused = self._refused
        self.engine.on_connected = self._connected
        self.engine.on_message = self._message
        self.engine.on_closed = self._closed
        self.url = ""
        self.echo = True
        self.connections: dict[str, Connection] = {}
        self.messages: list[str | bytes] = []
        self.reasons: dict[str, list[CloseReason]] = {}
        self.refusals: list[Refusal] = []
        self._changed = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()

    async def until(self, wanted: str, count: int = 1) -> None:
        """Wait until so many `messages`, `reasons` or `refusals` have been noted."""
        async with self._changed, asyncio.timeout(10):
            await self._changed.wait_for(lambda: len(getattr(self, wanted)) >= count)

    async def closed(self, sid: str) -> CloseReason:
        """Wait until the application has been told that the session is over, once, and why."""
        async with self._changed, asyncio.timeout(10):
            await self._changed.wait_for(lambda: sid in self.reasons)
        (reason,) = self.reasons[sid]
        return reason

    async def parked(self, sid: str) -> None:
        """Wait until a poll of the session is parked."""
        async with asyncio.timeout(10):
            while not self.connections[sid].session._parked:  # noqa: ASYNC110 - the server has no such event
                await asyncio.sleep(0)

    def _connected(self, connection: Connection) -> None:
        self.connections[connection.sid] = connection
        connection.admit()

    def _message(self, connection: Connection, data: str | bytes) -> None:
        self.messages.append(data)
        self._note()
        if self.echo:
            connection.send(data)

    def _closed(self, connection: Connection, reason: CloseReason) -> None:
        self.reasons.setdefault(connection.sid, []).append(reason)
        self._note()

    def _refused(self, reason: Refusal) -> None:
        self.refusals.append(reason)
        self._note()

    def _note(self) -> None:
        task = asyncio.ensure_future(self._notify())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def serving(
    engine: EngineServer,
    *,
    cancelling: bool = True,
    path: str = "engine.io",
    limits: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
) -> AsyncIterator[str]:
    """Serve `engine` on a free port; gives the URL of its path. Without `cancelling` as plain aiohttp would."""
    logger, peer_faults = logging.getLogger("aiohttp.server"), PeerFaults()
    logger.addFilter(peer_faults)
    app = web.Application()
    engine.attach(app, path)
    listener = Listener("test", Listen("127.0.0.1", 0), app, engine.refused, take=engine.take, limits=limits)
    runner = web.AppRunner(app, handler_cancellation=False, auto_decompress=False, shutdown_timeout=1.0)
    try:
        if cancelling:
            await listener.start()
            url = listener.url
        else:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield f"{url}/{path}/"
    finally:
        await engine.shutdown()
        await listener.close()
        await runner.cleanup()
        logger.removeFilter(peer_faults)


@asynccontextmanager
async def bench(
    options: EngineOptions = CALM,
    *,
    cancelling: bool = True,
    admission: AdmissionLimits = AdmissionLimits(),  # noqa: B008 - it is frozen
    proxies: Proxies | None = None,
    limits: PeerLimits = PeerLimits(),  # noqa: B008
) -> AsyncIterator[Bench]:
    """An echo server that runs."""
    server = Bench(options, Admission(admission), proxies or Proxies())
    async with serving(server.engine, cancelling=cancelling, limits=limits) as server.url:
        yield server


class Peer:
    """A client of one generation at the level of HTTP requests and WebSocket messages."""

    def __init__(self, url: str, http: aiohttp.ClientSession, eio: str) -> None:
        self.url = url
        self.http = http
        self.eio = eio
        self.sid = ""

    def payload(self, *packets: str) -> str:
        """Text packets as one body."""
        if self.eio == "4":
            return "\x1e".join(packets)
        return "".join(f"{len(packet.encode('utf-16-le')) // 2}:{packet}" for packet in packets)

    def query(self, transport: str, **more: str) -> dict[str, str]:
        """The query of a request of this session."""
        return {"EIO": self.eio, "transport": transport} | ({"sid": self.sid} if self.sid else {}) | more

    async def open(self, **more: str) -> dict[str, Any]:
        """Shake hands over polling; gives what the server announces."""
        status, body = await self.get(**more)
        assert status == 200, body
        handshake: dict[str, Any] = json.loads(body[body.index("{") : body.index("}") + 1])
        self.sid = handshake["sid"]
        return handshake

    async def get(self, **more: str) -> tuple[int, str]:
        """Poll."""
        async with self.http.get(self.url, params=self.query("polling", **more)) as response:
            return response.status, await response.text()

    async def get_bytes(self, **more: str) -> tuple[str, bytes]:
        """Poll for a binary body; gives its content type too."""
        async with self.http.get(self.url, params=self.query("polling", **more)) as response:
            return response.content_type, await response.read()

    async def post(self, body: str | bytes, content_type: str = "text/plain", **more: str) -> tuple[int, str]:
        """Post a body as it is."""
        headers = {"Content-Type": content_type}
        query = self.query("polling", **more)
        async with self.http.post(self.url, params=query, data=body, headers=headers) as response:
            return response.status, await response.text()

    async def send(self, *packets: str) -> None:
        """Post packets that the server has to like."""
        assert await self.post(self.payload(*packets)) == (200, "ok")

    async def websocket(self, **more: str) -> aiohttp.ClientWebSocketResponse:
        """Connect a WebSocket to the session, or for a new one."""
        return await self.http.ws_connect(self.url, params=self.query("websocket", **more), max_msg_size=0)

    async def open_websocket(self, **more: str) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
        """Shake hands over a WebSocket."""
        socket = await self.websocket(**more)
        text = await socket.receive_str()
        assert text.startswith("0")
        handshake: dict[str, Any] = json.loads(text[1:])
        self.sid = handshake["sid"]
        return socket, handshake

    async def upgrade(self) -> aiohttp.ClientWebSocketResponse:
        """Move the session to a WebSocket, as clients do."""
        socket = await self.websocket()
        await socket.send_str("2probe")
        assert await socket.receive_str() == "3probe"
        await socket.send_str("5")
        return socket


async def gone(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Wait until the server has closed the WebSocket; what else it says is passed over."""
    async with asyncio.timeout(10):
        while (await socket.receive()).type not in (
            aiohttp.WSMsgType.CLOSE,
            aiohttp.WSMsgType.CLOSED,
            aiohttp.WSMsgType.CLOSING,
            aiohttp.WSMsgType.ERROR,
        ):
            pass


async def raw_websocket(url: str, eio: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket of which nobody reads more than the handshake."""
    parts = URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    writer.write(
        f"GET {parts.path}?EIO={eio}&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await reader.readuntil(b"maxPayload")
    return reader, writer
