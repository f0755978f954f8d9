"""The Socket.IO side: all contact with python-socketio, of which non-public parts are used.

python-socketio keeps packets and namespaces. What the stock server cannot do is overridden here: events and acks
are handed over in order, with their ack ids, without a task each; writes are synchronous.
tests/test_sockets.py fails when an upgrade changes the seam.
"""

import asyncio
import logging
from itertools import count
from typing import Any, Protocol

import engineio.packet
import msgspec
import socketio
import socketio.packet
from aiohttp import web

from gateway.catalog import Args
from gateway.topics import Client

log = logging.getLogger(__name__)

NAMESPACE = "/"
_REASONS = {  # python-engineio's words → the close reasons of the contract
    "client disconnect": "client",
    "server disconnect": "server",
    "ping timeout": "ping-timeout",
    "transport close": "transport-close",
    "transport error": "transport-error",
}


class Socket:
    """One Socket.IO connection; `number` names it within this process."""

    __slots__ = ("client", "closing", "device", "engine_sid", "number", "rooms", "sid")

    def __init__(self, number: int, sid: str, engine_sid: str, client: Client) -> None:
        self.number = number
        self.sid = sid
        self.engine_sid = engine_sid
        self.client = client
        self.rooms: set[str] | None = None
        self.closing: str | None = None  # the reason that we gave
        self.device: object = None  # who it authenticated as; the owner's to set


class SocketOwner(Protocol):
    """Who is told what happens on sockets; called synchronously, in order."""

    def connected(self, socket: Socket) -> None:
        """A socket joined the namespace."""

    def emitted(self, socket: Socket, event: str, args: Args, ack_id: int | None) -> None:
        """The peer emitted an event; with `ack_id` it waits for an ack."""

    def acked(self, socket: Socket, emit_id: int, args: Args) -> None:
        """The peer acked an emission, or claims to."""

    def closed(self, socket: Socket, reason: str) -> None:
        """The socket is gone; said once."""


class SocketOptions(msgspec.Struct, frozen=True):
    """How devices connect."""

    path: str
    ping_interval_s: float
    ping_timeout_s: float
    max_payload_bytes: int
    origins: tuple[str, ...]


class _Json:
    """The JSON module of our packets: passes `msgspec.Raw` through."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return msgspec.json.encode(value).decode()

    @staticmethod
    def loads(text: str, **_: Any) -> Any:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as problem:
            raise ValueError(str(problem)) from None


class _Packet(socketio.packet.Packet):  # type: ignore[misc]
    json = _Json  # on a class of ours: python-socketio's `json` argument would change every packet of the process


class _Server(socketio.AsyncServer):  # type: ignore[misc]
    """python-socketio's server with events and acks handed to `SocketServer`."""

    def __init__(self, sockets: "SocketServer", **options: Any) -> None:
        super().__init__(serializer=_Packet, async_mode="aiohttp", async_handlers=False, **options)
        self._sockets = sockets

    async def _handle_eio_message(self, eio_sid: str, data: Any) -> None:
        try:
            await super()._handle_eio_message(eio_sid, data)
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            RecursionError,
        ) as problem:  # a packet that is none
            self._sockets.malformed(eio_sid, problem)

    async def _handle_event(self, eio_sid: str, namespace: str | None, id: Any, data: Any) -> None:
        if not (isinstance(data, list) and data and isinstance(data[0], str)):
            raise ValueError("an event needs a name")
        self._sockets.emitted(self._sid(eio_sid, namespace), data[0], tuple(data[1:]), id)

    async def _handle_ack(self, eio_sid: str, namespace: str | None, id: Any, data: Any) -> None:
        if not isinstance(data, list) or id is None:
            raise ValueError("an ack needs an id and a list")
        self._sockets.acked(self._sid(eio_sid, namespace), id, tuple(data))

    def _sid(self, eio_sid: str, namespace: str | None) -> str | None:
        sid: str | None = self.manager.sid_from_eio_sid(eio_sid, namespace or NAMESPACE)
        return sid


class SocketServer:
    """The sockets of this node.

    Args:
        owner: told what happens on them.
    """

    def __init__(self, owner: SocketOwner, options: SocketOptions) -> None:
        self._owner = owner
        self._path = options.path
        self._numbers = count(1)
        self._by_number: dict[int, Socket] = {}
        self._by_sid: dict[str, Socket] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._server = _Server(
            self,
            ping_interval=options.ping_interval_s,
            ping_timeout=options.ping_timeout_s,
            max_http_buffer_size=options.max_payload_bytes,
            cors_allowed_origins=list(options.origins) or None,
            logger=logging.getLogger(f"{__name__}.socketio"),
            engineio_logger=logging.getLogger(f"{__name__}.engineio"),
        )
        for noisy in ("socketio", "engineio"):  # they log payloads at INFO
            logging.getLogger(f"{__name__}.{noisy}").setLevel(logging.WARNING)
        self._server.on("connect", self._connected)
        self._server.on("disconnect", self._disconnected)

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Socket:
        """Return an open socket. Raises KeyError."""
        return self._by_number[number]

    def attach(self, app: web.Application) -> None:
        """Serve devices from this application."""
        self._server.attach(app, socketio_path=self._path.strip("/"))

    def emit(self, number: int, event: str, args: Args = (), emit_id: int | None = None) -> None:
        """Emit an event; with `emit_id` the peer is asked for an ack. Nothing happens if the socket is gone."""
        socket = self._by_number.get(number)
        if socket is not None:
            self._send(socket, _Packet(socketio.packet.EVENT, data=[event, *args], id=emit_id))

    def emit_to(self, sockets: "list[Socket]", event: str, args: Args) -> None:
        """Emit an event to many sockets, encoded once."""
        encoded = _Packet(socketio.packet.EVENT, data=[event, *args]).encode()
        for socket in sockets:
            self._write(socket, encoded)

    def reply(self, number: int, ack_id: int, args: Args) -> None:
        """Ack the peer's own event. Nothing happens if the socket is gone."""
        socket = self._by_number.get(number)
        if socket is not None:
            self._send(socket, _Packet(socketio.packet.ACK, data=list(args), id=ack_id))

    def close(self, number: int, reason: str) -> None:
        """Close a socket; its owner hears this reason."""
        socket = self._by_number.get(number)
        if socket is None or socket.closing is not None:
            return
        socket.closing = reason
        task = asyncio.create_task(self._server.disconnect(socket.sid), name=f"close-{socket.number}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def shutdown(self) -> None:
        """Close every socket and stop."""
        for number in tuple(self._by_number):
            self.close(number, "shutdown")
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._server.shutdown()

    def malformed(self, engine_sid: str, problem: Exception) -> None:
        """Close the connection that sent something that is no packet."""
        log.warning("malformed packet", extra={"problem": str(problem)[:200]})
        sid = self._server.manager.sid_from_eio_sid(engine_sid, NAMESPACE)
        socket = self._by_sid.get(sid or "")
        if socket is not None:
            self.close(socket.number, "malformed")

    def emitted(self, sid: str | None, event: str, args: Args, ack_id: int | None) -> None:
        """An event came in for a socket, if it is still there."""
        socket = self._by_sid.get(sid or "")
        if socket is not None and socket.closing is None:
            self._owner.emitted(socket, event, args, ack_id)

    def acked(self, sid: str | None, emit_id: int, args: Args) -> None:
        """An ack came in for a socket, if it is still there."""
        socket = self._by_sid.get(sid or "")
        if socket is not None and socket.closing is None:
            self._owner.acked(socket, emit_id, args)

    async def _connected(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        engine_sid = self._server.manager.eio_sid_from_sid(sid, NAMESPACE)
        request: web.Request = environ["aiohttp.request"]
        client = Client(4, self._server.transport(sid), request.remote or "")
        socket = Socket(next(self._numbers), sid, engine_sid, client)
        self._by_number[socket.number] = self._by_sid[sid] = socket
        self._owner.connected(socket)

    async def _disconnected(self, sid: str, reason: str = "") -> None:
        socket = self._by_sid.pop(sid, None)
        if socket is None:
            return
        del self._by_number[socket.number]
        self._owner.closed(socket, socket.closing or _REASONS.get(reason, "transport-error"))

    def _send(self, socket: Socket, packet: _Packet) -> None:
        self._write(socket, packet.encode())

    def _write(self, socket: Socket, encoded: str | list[str | bytes]) -> None:
        engine = self._server.eio.sockets.get(socket.engine_sid)
        if engine is None or engine.closed or engine.closing:
            return
        for part in [encoded] if isinstance(encoded, str) else encoded:
            engine.queue.put_nowait(engineio.packet.Packet(engineio.packet.MESSAGE, data=part))
