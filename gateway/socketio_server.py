"""python-socketio on our Engine.IO: all contact with the non-public parts of python-socketio is in this module.

python-socketio keeps packets, namespaces, rooms and acks; `gateway.engine` owns the transports. Here is what lies
between: clients of both generations (implicit connect, socket ids, shapes of CONNECT and of refusals), packets that
are none, attachments, and events and acks handed over without a task each.

tests/test_socketio_server.py fails when an upgrade moves the seam.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import socketio
from socketio import packet as sio

from gateway.admission import Admission
from gateway.engine.codec import MESSAGE
from gateway.engine.connection import Connection, Pending
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.engine.server import EngineServer
from gateway.engine.websocket import framed
from gateway.proxies import Proxies

MAX_ATTACHMENTS: Final = 10
BAD_PACKET: Final = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # python-socketio's, reading
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
_UNIT: Final = re.compile("....")  # a UTF-16 code unit in hexadecimal
_CONNECT: Final = str(sio.CONNECT)  # to `/`, without a word
_PLAIN: Final = re.compile(
    r"([23])([0-9]{0,15})(?=\[)"
)  # an event or an ack of `/` without attachments, up to its list
_EVENTS: Final = (sio.EVENT, sio.BINARY_EVENT)
_ACKS: Final = (sio.ACK, sio.BINARY_ACK)


class Engine(EngineServer):
    """The engine as python-socketio wants it, behind `sio.eio`; ours are `send_text`, `close` and the callbacks."""

    async_mode: Final = "aiohttp"

    def __init__(
        self, options: EngineOptions, admission: Admission | None = None, proxies: Proxies | None = None, **_: object
    ) -> None:
        """Other keywords are what python-socketio means for its own transport, and are ignored."""
        super().__init__(options, admission, proxies)
        self._background: set[asyncio.Future[object]] = set()

    async def shutdown(self) -> None:
        """See `EngineServer`; and cancel what runs in the background."""
        for task in self._background:
            task.cancel()
        await super().shutdown()
        await asyncio.gather(*self._background, return_exceptions=True)

    def on(self, event: str, handler: Callable[..., Pending]) -> None:
        """Set a callback in the manner of python-engineio: it gets the sid, and may be a coroutine."""
        if event == "connect":
            self.on_connected = lambda connection: handler(connection.sid, connection.environ)
        elif event == "message":
            self.on_message = lambda connection, data: handler(connection.sid, data)
        else:
            self.on_closed = lambda connection, reason: handler(connection.sid, str(reason))

    async def send(self, sid: str, data: str | bytes) -> None:
        """`send_text`, for those who await."""
        self.send_text(sid, data)

    async def send_packet(self, sid: str, packet: Any) -> None:
        """Send a message that comes as an `engineio.packet.Packet`."""
        self.send_text(sid, packet.data)

    async def disconnect(self, sid: str | None = None) -> None:
        """Close one connection, or all."""
        for one in [sid] if sid is not None else [connection.sid for connection in self.connections]:
            self.close(one)

    def transport(self, sid: str) -> str:
        """`polling` or `websocket`. Raises KeyError for a sid that is not connected."""
        return str(self._connections[sid].transport)

    async def get_session(self, sid: str) -> dict[str, Any]:
        """What the application keeps with a connection. Raises KeyError for a sid that is not connected."""
        return self._connections[sid].user_session

    def create_event(self) -> asyncio.Event:
        """For `sio.call`."""
        return asyncio.Event()

    def start_background_task(
        self, target: Callable[..., Awaitable[object]], *args: object, **kwargs: object
    ) -> asyncio.Future[object]:
        """Run a coroutine function beside everything else; `shutdown` cancels it."""
        task = asyncio.ensure_future(target(*args, **kwargs))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def sleep(self, seconds: float = 0) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)


class Json:
    """The JSON module of our packets: ASCII, so that every client reads it, and `msgspec.Raw` passes through."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        """Encode; Engine.IO 3 counts characters, so all of them are ASCII."""
        return to_ascii(msgspec.json.encode(value))

    @staticmethod
    def loads(text: str, **_: Any) -> Any:
        """Decode. Raises ValueError."""
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as problem:
            raise ValueError(str(problem)) from None


class Packet(sio.Packet):  # type: ignore[misc]
    """A Socket.IO packet; on a class of ours, because python-socketio's `json` option is one for the process."""

    json = Json


class Manager(socketio.AsyncManager):  # type: ignore[misc]
    """Rooms, left without a look at all rooms; and the socket ids that Engine.IO 3 clients work out themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._joined: dict[tuple[str, str], set[str | None]] = {}  # namespace, sid → its rooms

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Register a socket: the engine's id for `/` and `/ns#id` elsewhere, or a new one for Engine.IO 4."""
        connection = self.server.eio.get(eio_sid)
        if connection is None or self.sid_from_eio_sid(eio_sid, namespace) is not None:
            return None
        if connection.generation.revision == 4:
            sid: str | None = await super().pre_connect(eio_sid, namespace)
            return sid
        sid = eio_sid if namespace == "/" else f"{namespace}#{eio_sid}"
        self.basic_enter_room(sid, namespace, None, eio_sid=eio_sid)
        self.basic_enter_room(sid, namespace, sid, eio_sid=eio_sid)
        self.pending_connect.setdefault(namespace, []).append(sid)
        return sid

    def basic_enter_room(self, sid: str, namespace: str, room: str | None, eio_sid: str | None = None) -> None:
        """See BaseManager."""
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        self._joined.setdefault((namespace, sid), set()).add(room)

    def basic_leave_room(self, sid: str, namespace: str, room: str | None) -> None:
        """See BaseManager."""
        super().basic_leave_room(sid, namespace, room)
        self._joined.get((namespace, sid), set()).discard(room)

    def basic_disconnect(self, sid: str, namespace: str, **_: Any) -> None:
        """Leave everything; the original looks into every room, which makes a mass disconnect quadratic."""
        for room in self._joined.pop((namespace, sid), ()):
            super().basic_leave_room(sid, namespace, room)
        self.callbacks.pop(sid, None)
        for pending in (self.pending_connect, self.pending_disconnect):
            sids = pending.get(namespace, [])
            if sid in sids:
                sids.remove(sid)
            if not sids:
                pending.pop(namespace, None)


class Server(socketio.AsyncServer):  # type: ignore[misc]
    """A Socket.IO server for clients from 1.0 to 4.x; handlers of one client run one after the other."""

    def __init__(self, options: EngineOptions, **more: Any) -> None:
        super().__init__(
            client_manager=Manager(),
            serializer=Packet,
            async_handlers=False,
            always_connect=True,
            options=options,
            **more,
        )
        self.eio.on_message = self._message

    # what a subclass may take over

    def event(self, connection: Connection, namespace: str | None, id: int | None, data: list[Any]) -> Pending:
        """The peer emitted; `data` begins with the event's name."""
        pending: Pending = self._handle_event(connection.sid, namespace, id, data)
        return pending

    def ack(self, connection: Connection, namespace: str | None, id: int, data: list[Any]) -> Pending:
        """The peer acked."""
        pending: Pending = self._handle_ack(connection.sid, namespace, id, data)
        return pending

    def join(self, connection: Connection, namespace: str, auth: Any) -> Pending:
        """The peer asks to join a namespace; to have joined is enough for its connection to stay."""
        return self._handle_connect(connection.sid, namespace, auth)

    def leave(self, connection: Connection, namespace: str) -> Pending:
        """The peer leaves a namespace."""
        pending: Pending = self._handle_disconnect(connection.sid, namespace, str(CloseReason.CLIENT))
        return pending

    # what is between python-socketio and the engine

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    def _message(self, connection: Connection, data: str | bytes) -> Pending:
        try:
            if isinstance(data, str) and connection.sid not in self._binary_packet:
                if data == _CONNECT:
                    return self.join(connection, "/", None)
                if plain := _PLAIN.match(data):
                    kind, id = plain.groups()
                    return self._dispatch(
                        connection, int(kind), None, int(id) if id else None, Json.loads(data[plain.end() :])
                    )
            packet = self._assemble(connection, data)
            if packet is None:
                return None
            if packet.packet_type == sio.CONNECT:
                return self.join(connection, packet.namespace or "/", _auth(connection, packet, data))
            return self._dispatch(connection, packet.packet_type, packet.namespace, packet.id, packet.data)
        except BAD_PACKET:
            connection.close(CloseReason.MALFORMED)
            return None

    def _dispatch(self, connection: Connection, kind: int, namespace: str | None, id: int | None, data: Any) -> Pending:
        if kind in _EVENTS:
            if not (isinstance(data, list) and data and isinstance(data[0], str)):
                raise ValueError("an event needs a name")
            return self.event(connection, namespace, id, data)
        if kind in _ACKS:
            if not isinstance(data, list) or id is None:
                raise ValueError("an ack needs an id and a list")
            return self.ack(connection, namespace, id, data)
        if kind == sio.DISCONNECT:
            return self.leave(connection, namespace or "/")
        raise ValueError("not for a server")

    def _assemble(self, connection: Connection, data: str | bytes) -> Packet | None:
        """Return the packet that is whole with this message; None while attachments are missing."""
        packet: Packet | None = self._binary_packet.get(connection.sid)
        if isinstance(data, bytes):
            if packet is None:
                raise ValueError("an attachment that nobody announced")
            if sum(map(len, packet.attachments)) + len(data) > self.eio.options.max_payload_bytes:
                raise ValueError("attachments over maxPayload")
            if not packet.add_attachment(data):
                return None
            del self._binary_packet[connection.sid]
            return packet
        if packet is not None:
            raise ValueError("text instead of an attachment")
        packet = self.packet_class(encoded_packet=data)
        if packet.attachment_count == 0:
            return packet
        if packet.attachment_count > MAX_ATTACHMENTS:
            raise ValueError("too many attachments")
        if sorted(_placeholders(packet.data)) != list(range(packet.attachment_count)):
            raise ValueError("each attachment has one place")  # in many places, a small packet becomes a huge one
        self._binary_packet[connection.sid] = packet
        return None

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        await super()._handle_eio_connect(eio_sid, environ)
        if self._revision(eio_sid) == 3:  # connected to `/` without asking
            await self._handle_connect(eio_sid, "/", None)

    async def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        await super()._handle_connect(eio_sid, namespace, data)
        connection = self.eio.get(eio_sid)
        if connection is not None and self.manager.sid_from_eio_sid(eio_sid, namespace or "/") is not None:
            connection.admit()

    async def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        self._binary_packet.pop(eio_sid, None)
        await super()._handle_eio_disconnect(eio_sid, reason)

    async def _send_packet(self, eio_sid: str, pkt: Packet) -> None:
        self.write(eio_sid, pkt)

    def write(self, eio_sid: str, packet: Packet) -> None:
        """Send a packet, now or with the next poll; nothing happens if the connection is closed."""
        is_3 = self._revision(eio_sid) == 3
        if packet.packet_type == sio.CONNECT and is_3:
            packet.data = None
        elif packet.packet_type == sio.CONNECT_ERROR:
            message = packet.data["message"] if isinstance(packet.data, dict) else packet.data
            message = "Invalid namespace" if message == "Unable to connect" else message
            packet.data = message if is_3 else {"message": message}
        connection = self.eio.get(eio_sid)
        if connection is not None:
            send(connection, packet.encode())

    def _revision(self, eio_sid: str) -> int | None:
        connection = self.eio.get(eio_sid)
        return connection.generation.revision if connection is not None else None


def encode(kind: int, data: list[Any], id: int | None = None) -> str | list[str | bytes]:
    """An event or an ack of `/` as `Packet.encode` returns it; JSON that passes through has no bytes to look for."""
    for part in data:
        if not isinstance(part, (str, msgspec.Raw)):
            encoded: str | list[str | bytes] = Packet(kind, data=data, id=id).encode()
            return encoded
    return f"{kind}{'' if id is None else id}{Json.dumps(data)}"


def send(connection: Connection, encoded: str | list[str | bytes]) -> None:
    """Send a packet that was encoded, now or with the next poll; nothing happens if the connection is closed."""
    for part in (encoded,) if isinstance(encoded, str) else encoded:
        connection.send(part)


def send_to(connections: Iterable[Connection], encoded: str | list[str | bytes]) -> None:
    """Send a packet that was encoded to many."""
    if not isinstance(encoded, str):
        for connection in connections:
            send(connection, encoded)
        return
    frame = framed(MESSAGE + encoded)  # to either generation
    for connection in connections:
        connection.send_shared(encoded, frame)


def to_ascii(json: bytes) -> str:
    r"""Return JSON with every character beyond ASCII as `\uXXXX`: then characters, UTF-16 units and bytes agree."""
    text = json.decode()
    if text.isascii():
        return text
    return _BEYOND_ASCII.sub(lambda run: _UNIT.sub(r"\\u\g<0>", run[0].encode("utf-16-be").hex()), text)


def _placeholders(data: Any) -> Iterator[int]:
    """Where attachments belong, in the data of a packet whose attachments have not come yet."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict) and value.get("_placeholder"):
            yield value["num"]
        elif isinstance(value, dict):
            waiting.extend(value.values())


def _auth(connection: Connection, packet: Packet, data: str | bytes) -> Any:
    """What a client says of itself as it joins a namespace: clients of Engine.IO 3 do so in a query."""
    if connection.generation.revision == 4 or isinstance(data, bytes):
        return packet.data
    return dict(parse_qsl(data.partition("?")[2].partition(",")[0]))
