"""Socket.IO on our Engine.IO, for clients of both generations: what comes in is read, what goes out is encoded.

The packet takes attachments out of data and puts them back; who has joined, rooms and acks are of those who use this.
Here is what lies between: implicit connect, shapes of CONNECT and of refusals, packets that are none, limits on
attachments, and events and acks handed over without a task each.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec
from msgspec import DecodeError, Raw

from gateway.admission import Admission
from gateway.catalog import Args
from gateway.engine.codec import MESSAGE
from gateway.engine.connection import Connection, Pending
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.engine.server import EngineServer
from gateway.engine.websocket import framed
from gateway.proxies import Proxies
from gateway.socketio_packet import (
    ACK,
    BINARY_ACK,
    BINARY_EVENT,
    CONNECT,
    CONNECT_ERROR,
    DISCONNECT,
    EVENT,
    Json,
    Packet,
    to_ascii,
)

NAMESPACE: Final = "/"
UNABLE: Final = "Invalid namespace"  # there is no such namespace, or the peer is in it
MAX_ATTACHMENTS: Final = 10
# Of python-socketio and msgspec, reading.
BAD_PACKET: Final = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DecodeError)
_CONNECT: Final = "0"  # to `/`, without a word
_EVENT: Final = "2"  # EVENT and ACK, as they are written
_ACK: Final = "3"
_MAX_DIGITS: Final = 15  # of an id
_NAMES: Final = 1024  # of events that are remembered

Said = tuple[int, str | None, int | None, Any]  # kind, namespace, id, and its list, or who joins


class Namespace(Protocol):
    """Who is in the one namespace that there is, `/`; called synchronously, in order."""

    def join(self, connection: Connection, auth: object) -> None:
        """A peer asks to join, and may say who it is: `accept` or `refuse` it."""

    def leave(self, connection: Connection) -> None:
        """A peer leaves."""

    def emitted(self, connection: Connection, event: str, args: Args, ack_id: int | None) -> Pending:
        """A peer emitted; with `ack_id` it waits for an ack. What is returned holds up its reading."""

    def acked(self, connection: Connection, emit_id: int, args: Args) -> None:
        """A peer acked."""

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """A connection is over, whether it had joined or not."""


class Server:
    """Reads what Socket.IO clients from 1.0 to 4.x say, and hands it over without a task but for the end of one."""

    def __init__(self, namespace: Namespace, options: EngineOptions, admission: Admission, proxies: Proxies) -> None:
        self.engine = EngineServer(options, admission, proxies)
        self.engine.on_connected = self._opened
        self.engine.on_message = self._message
        self.engine.on_closed = self._closed
        self._namespace = namespace
        self._binary_packet: dict[str, Packet] = {}  # engine sid → what waits for its attachments

    def _opened(self, connection: Connection) -> None:
        if connection.generation.revision == 3:  # connected to `/` without asking
            self._namespace.join(connection, None)

    async def _closed(self, connection: Connection, reason: CloseReason) -> None:
        """Comes later, in a task: whoever closes a connection is in the middle of something."""
        self._binary_packet.pop(connection.sid, None)
        self._namespace.closed(connection, reason)

    def _message(self, connection: Connection, data: str | bytes) -> Pending:
        try:
            said = self._read(connection, data)
        except BAD_PACKET:
            connection.close(CloseReason.MALFORMED)
            return None
        if said is None:
            return None
        kind, namespace, id, args = said
        if namespace is not None and namespace != NAMESPACE:  # nobody has joined another
            if kind == CONNECT:
                refuse(connection, UNABLE, namespace)
        elif kind in (EVENT, BINARY_EVENT):
            return self._namespace.emitted(connection, args[0], tuple(args[1:]), id)
        elif kind in (ACK, BINARY_ACK):
            assert id is not None
            self._namespace.acked(connection, id, tuple(args))
        elif kind == CONNECT:
            self._namespace.join(connection, args)
        else:
            self._namespace.leave(connection)
        return None

    def _read(self, connection: Connection, data: str | bytes) -> Said | None:
        """What is whole with this message and means something; None while attachments are missing.

        Raises:
            BAD_PACKET: it means nothing.
        """
        list_at = 0
        if isinstance(data, str) and not (self._binary_packet and connection.sid in self._binary_packet):
            if data == _CONNECT:
                return CONNECT, None, None, None
            list_at = plain(data)
        if isinstance(data, str) and list_at:
            kind = EVENT if data[0] == _EVENT else ACK
            namespace, id = None, int(data[1:list_at]) if list_at > 1 else None
            args = msgspec.json.decode(data[list_at:])
        else:
            packet = self._assemble(connection, data)
            if packet is None:
                return None
            kind, namespace, id, args = packet.packet_type, packet.namespace, packet.id, packet.data
            if kind == CONNECT:
                return kind, namespace, None, _auth(connection, packet, data)
        if kind in (EVENT, BINARY_EVENT):
            if not (isinstance(args, list) and args and isinstance(args[0], str)):
                raise ValueError("an event needs a name")
        elif kind in (ACK, BINARY_ACK):
            if not isinstance(args, list) or id is None:
                raise ValueError("an ack needs an id and a list")
        elif kind != DISCONNECT:
            raise ValueError("not for a server")
        return kind, namespace, id, args

    def _assemble(self, connection: Connection, data: str | bytes) -> Packet | None:
        """Return the packet that is whole with this message; None while attachments are missing."""
        packet = self._binary_packet.get(connection.sid)
        if isinstance(data, bytes):
            if packet is None:
                raise ValueError("an attachment that nobody announced")
            if sum(map(len, packet.attachments)) + len(data) > self.engine.options.max_payload_bytes:
                raise ValueError("attachments over maxPayload")
            if not packet.add_attachment(data):
                return None
            del self._binary_packet[connection.sid]
            return packet
        if packet is not None:
            raise ValueError("text instead of an attachment")
        packet = Packet(encoded_packet=data)
        if packet.attachment_count == 0:
            return packet
        if packet.attachment_count > MAX_ATTACHMENTS:
            raise ValueError("too many attachments")
        if sorted(_placeholders(packet.data)) != list(range(packet.attachment_count)):
            raise ValueError("each attachment has one place")  # in many places, a small packet becomes a huge one
        self._binary_packet[connection.sid] = packet
        return None


def accept(connection: Connection, new_sid: Callable[[], str]) -> None:
    """Tell a peer that it has joined; clients of Engine.IO 3 take the id of the connection for their own."""
    is_3 = connection.generation.revision == 3
    connection.send(_CONNECT if is_3 else f'{_CONNECT}{{"sid":"{new_sid()}"}}')


def refuse(connection: Connection, problem: str, namespace: str = NAMESPACE) -> None:
    """Tell a peer that it has not joined, and why."""
    data = problem if connection.generation.revision == 3 else {"message": problem}
    send(connection, Packet(CONNECT_ERROR, data=data, namespace=namespace).encode())


def plain(text: str) -> int:
    """Where the list begins of an event or an ack of `/` without attachments; 0: it is another packet."""
    at = text.find("[", 1, _MAX_DIGITS + 2) if text[:1] in (_EVENT, _ACK) else -1
    if at <= 1:
        return max(at, 0)
    id = text[1:at]
    return at if id.isdigit() and id.isascii() else 0


def encode_event(name: str, args: Args, id: int | None = None) -> str | list[str | bytes]:
    """An event of `/` as `Packet.encode` returns it, made without an encoder for what a service says as a rule."""
    if len(args) == 1 and isinstance(args[0], Raw):
        text = str(args[0], "utf-8")
        if not text.isascii():
            text = to_ascii(text)
        return f"{_EVENT}{'' if id is None else id}[{_quoted(name)},{text}]"
    return encode(EVENT, [name, *args], id)


@lru_cache(_NAMES)
def _quoted(name: str) -> str:
    """The name of an event as JSON, in ASCII."""
    return to_ascii(msgspec.json.encode(name).decode())


def encode(kind: int, data: list[Any], id: int | None = None) -> str | list[str | bytes]:
    """An event or an ack of `/` as `Packet.encode` returns it; JSON that passes through has no bytes to look for."""
    for part in data:
        if not isinstance(part, (str, Raw)):
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
