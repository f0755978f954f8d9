"""The Socket.IO side: every socket of this node, what its peer says, and what is said to it.

Events and acks are handed to one owner, in order and with their ack ids, without a task each; writes are synchronous
and never wait.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Protocol

from aiohttp import web

from gateway.admission import Admission, Refusal
from gateway.bodies import Client
from gateway.catalog import Args
from gateway.engine.connection import Connection, Pending
from gateway.engine.effects import CloseReason
from gateway.engine.faults import PeerFaults
from gateway.engine.options import EngineOptions
from gateway.engine.server import Relay
from gateway.instruments import Count
from gateway.proxies import Proxies
from gateway.rooms import Grant
from gateway.socketio_packet import ACK
from gateway.socketio_server import UNABLE, Server, accept, encode, encode_event, refuse, send, send_to

log = logging.getLogger(__name__)


class Socket:
    """One Socket.IO connection; `number` names it within this process."""

    __slots__ = ("address", "connection", "counted", "device", "grant", "number", "rooms", "views")

    def __init__(self, number: int, connection: Connection) -> None:
        self.number = number
        self.connection = connection
        self.address = str(connection.environ.get("REMOTE_ADDR", ""))
        self.rooms: set[str] | None = None
        self.device: object = None  # who it authenticated as; the owner's to set
        self.counted: Count | None = None  # where its owner counts it
        self.grant: Grant | None = None  # what the token of its peer allows; the owner's to set
        self.views = False  # it counts as a viewer; the owner's to set

    @property
    def is_open(self) -> bool:
        """Whether anything can still be said to it."""
        return self.connection.session.closed is None

    @property
    def read_at(self) -> float:
        """When its latest packet was read, in monotonic seconds."""
        return self.connection.read_at

    @property
    def client(self) -> Client:
        """How it is connected, now."""
        return Client(self.connection.generation.revision, str(self.connection.transport), self.address)


class SocketOwner(Protocol):
    """Who is told what happens on sockets; called synchronously, in order."""

    def introduced(self, socket: Socket, auth: object) -> str | None:
        """A peer wants to join the namespace, and may say who it is; a text refuses it, and is told to the peer.

        It comes before `connected`, and again for clients that say so once they have joined.
        """

    def connected(self, socket: Socket) -> None:
        """A socket joined the namespace, and was told so."""

    def emitted(self, socket: Socket, event: str, args: Args, ack_id: int | None) -> Pending:
        """The peer emitted an event; with `ack_id` it waits for an ack. What is returned holds up its reading."""

    def acked(self, socket: Socket, emit_id: int, args: Args) -> None:
        """The peer acked an emission, or claims to."""

    def upgraded(self, socket: Socket) -> None:
        """It went from polling to a WebSocket."""

    def closed(self, socket: Socket, reason: CloseReason) -> None:
        """The socket is gone; said once."""

    def refused(self, reason: Refusal) -> None:
        """A peer was refused something before it was a socket, or was slowed down."""


class SocketServer:
    """The sockets of this node.

    Args:
        owner: told what happens on them.
        path: where devices connect, with and without a slash at its end.
        admission: how many strangers may come, and how fast.
        proxies: who is believed about where a client is.
        relay: to the nodes that may have what is not here.
    """

    def __init__(
        self,
        owner: SocketOwner,
        options: EngineOptions,
        path: str,
        admission: Admission,
        proxies: Proxies,
        relay: Relay | None = None,
    ) -> None:
        self._owner = owner
        self._path = path
        self._numbers = count(1)
        self._by_number: dict[int, Socket] = {}
        self._server = Server(self, options, admission, proxies)
        self._server.engine.on_refused = owner.refused
        self._server.engine.relay = relay
        self._server.engine.on_upgraded = self._upgraded

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Socket]:
        return iter(tuple(self._by_number.values()))

    def attach(self, app: web.Application) -> None:
        """Serve devices from this application, which must be run with `handler_cancellation`."""
        self._server.engine.attach(app, self._path)
        logging.getLogger("aiohttp.server").addFilter(PeerFaults())

    def take(self, transport: asyncio.Transport, said: bytes) -> bool:
        """Have a connection of the port that it is attached to: see `EngineServer.take`."""
        return self._server.engine.take(transport, said)

    def admit(self, number: int) -> None:
        """The peer is somebody: its socket may stay."""
        socket = self._by_number.get(number)
        if socket is not None:
            socket.connection.admit()

    def emit(self, number: int, event: str, args: Args = (), emit_id: int | None = None) -> None:
        """Emit an event; with `emit_id` the peer is asked for an ack. Nothing happens if the socket is gone."""
        socket = self._by_number.get(number)
        if socket is not None:
            send(socket.connection, encode_event(event, args, emit_id))

    def emit_to(self, sockets: Iterable[Socket], event: str, args: Args) -> None:
        """Emit an event to many sockets, encoded once."""
        send_to((socket.connection for socket in sockets), encode_event(event, args))

    def reply(self, number: int, ack_id: int, args: Args) -> None:
        """Ack the peer's own event. Nothing happens if the socket is gone."""
        socket = self._by_number.get(number)
        if socket is not None:
            send(socket.connection, encode(ACK, list(args), ack_id))

    def close(self, number: int, reason: CloseReason) -> None:
        """Close a socket; its owner hears this reason, at once or when its turn is over."""
        socket = self._by_number.get(number)
        if socket is not None:
            socket.connection.close(reason)

    async def shutdown(self) -> None:
        """Close every socket, refuse new ones, and return when all owners were told."""
        await self._server.engine.shutdown()

    def emitted(self, connection: Connection, event: str, args: Args, ack_id: int | None) -> Pending:
        """An event came in; one before the socket joined has no meaning."""
        socket = connection.peer
        return self._owner.emitted(socket, event, args, ack_id) if isinstance(socket, Socket) else None

    def acked(self, connection: Connection, emit_id: int, args: Args) -> None:
        """An ack came in."""
        socket = connection.peer
        if isinstance(socket, Socket):
            self._owner.acked(socket, emit_id, args)

    def join(self, connection: Connection, auth: object) -> None:
        """A peer asks to join the namespace.

        Engine.IO 3 has joined before it can say anything: when it asks, and says who it is, that only introduces it.
        """
        known = connection.peer
        if known is not None and not (auth and connection.generation.revision == 3):
            refuse(connection, UNABLE)
            return
        socket = known if isinstance(known, Socket) else Socket(next(self._numbers), connection)
        problem = self._owner.introduced(socket, auth)
        if problem is not None:
            refuse(connection, problem)
            return
        self._by_number[socket.number] = connection.peer = socket
        accept(connection, self._server.engine.generate_id)
        if known is None:
            self._owner.connected(socket)

    def leave(self, connection: Connection) -> None:
        """A peer leaves the only namespace that there is."""
        if connection.peer is not None:
            connection.close(CloseReason.CLIENT)

    def _upgraded(self, connection: Connection) -> None:
        socket = connection.peer
        if isinstance(socket, Socket):
            self._owner.upgraded(socket)

    def closed(self, connection: Connection, reason: CloseReason) -> None:
        """A connection is over."""
        socket, connection.peer = connection.peer, None
        if isinstance(socket, Socket):
            del self._by_number[socket.number]
            self._owner.closed(socket, reason)
