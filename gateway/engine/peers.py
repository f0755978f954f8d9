"""The TCP connections of one HTTP port: bounded in number, in time and in what they may say before they are known.

aiohttp bounds a header and a line; it bounds neither a head that never ends, nor the time that a head takes, nor
how many connections wait with one. What happens within a request is bounded by who serves it.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from gateway.admission import Refusal
from gateway.alarms import Alarms
from gateway.crowd import Crowd
from gateway.engine.handshake import MAX_HEADERS
from gateway.proxies import Proxies, plain

log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 32_768  # of a request: what nginx takes, and more than browsers send; aiohttp keeps it
IDLE_S: Final = 75.0  # between two requests: longer than the pause between two heartbeats of a client that polls
LINGER_S: Final = 2.0  # how long the rest of a refused body is read, so that the peer gets the answer
HANDSHAKE_S: Final = 10.0  # of TLS; asyncio would give a minute
GRAIN_S: Final = 0.5  # how late a deadline may be noticed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Taker = Callable[[asyncio.Transport, bytes], bool]


class PeerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Of connections that wait for a request, or for their peer to take a response."""

    head_s: float = 20.0
    """For a request to have come whole, but for its body."""
    max_waiting: int = 10_000
    max_waiting_per_address: int = 1000
    max_request_bytes: int = 1_000_000
    """Of a request that is being served, with all that comes after it before it is answered."""


class Caller(asyncio.Protocol):
    """One TCP connection that has said nothing yet, perhaps not even shaken hands for TLS."""

    __slots__ = ("_peers", "_transport", "address", "due", "handshake")

    def __init__(self, peers: "Peers", address: str = "") -> None:
        self.due = 0.0
        self.address = address
        self.handshake: asyncio.Task[Any] | None = None  # of TLS, while it is under way
        self._peers = peers
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self.address = _address(transport.get_extra_info("peername"))
        if self.handshake is not None:
            self._peers.leave(self)  # it waits for a request now
        self._peers.wait(self, self._peers.limits.head_s)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        assert self._transport is not None
        if self._peers.take(self._transport, data):
            self._peers.leave(self)
        else:
            self._peers.serve(self, self._transport, data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._peers.leave(self)

    def turn_out(self, reason: Refusal, status: str) -> None:
        """Close the connection, which waits."""
        self._peers.refused(reason)
        if self._transport is not None:
            _refuse(self._transport, status)
        elif self.handshake is not None:
            self.handshake.cancel()

    def close(self) -> None:
        """Close the connection without a word."""
        if self._transport is not None:
            self._transport.close()


class Peer(web.RequestHandler):
    """One TCP connection that speaks to aiohttp, until it becomes a WebSocket."""

    __slots__ = ("_left_bytes", "_peers", "_requests", "address", "due")

    def __init__(self, peers: "Peers", **handling: Any) -> None:
        super().__init__(peers.server, **handling)
        self.due = 0.0
        self.address = ""
        self._peers = peers
        self._requests = 0
        self._left_bytes: int | None = MAX_HEAD_BYTES  # that may still come; None: not counted, or it has to go

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.address = _address(self.peername)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self._left_bytes is None:
            return
        if self._request_count > self._requests:  # aiohttp's: heads that have come whole
            self._serve()
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._left_bytes = None
            self._turn_out_large()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._peers.leave(self)
        super().connection_lost(exc)

    # what happens to requests

    def begin(self) -> None:
        """A request is being served."""
        self._peers.leave(self)
        self._serve()

    def end(self) -> None:
        """Its response is made, and has still to be taken by the peer."""
        self._left_bytes = MAX_HEAD_BYTES
        if self.transport is not None and not self.transport.is_closing():
            self._peers.wait(self, IDLE_S)

    def _serve(self) -> None:
        self._requests = self._request_count
        self._left_bytes = self._peers.limits.max_request_bytes + MAX_HEAD_BYTES

    def trust(self) -> None:
        """Count no more what comes: another node minds how much that is."""
        self._left_bytes = None

    # who has to go

    @property
    def _has_begun(self) -> bool:
        """Whether an answer would be one to something: its first request, or a part of another."""
        return not self._requests or (self._left_bytes or 0) < MAX_HEAD_BYTES

    def turn_out(self, reason: Refusal, status: str) -> None:
        """Close the connection, which waits; who does not take its last response is cut off."""
        transport = self.transport
        if transport is None:
            return
        unsent = bool(transport.get_write_buffer_size())
        if self._has_begun or unsent:
            self._peers.refused(reason)
        if unsent:
            transport.abort()
        elif self._has_begun:
            _refuse(transport, status)
        self.force_close()

    def _turn_out_large(self) -> None:
        self._peers.leave(self)
        self.turn_out(Refusal.LARGE_REQUEST, "431 Request Header Fields Too Large")


class Peers:
    """The connections of one port; calling it makes one, as `loop.create_server` wants it.

    Args:
        server: of a runner of an application that has the middleware `watched`.
        take: asked to have each connection, with what it says first, before it becomes the application's.
        proxies: whose connections are not counted by address; they carry the requests of many.
        refused: told of everyone who had to go before it was served.
    """

    def __init__(
        self, server: web.Server, take: Taker, limits: PeerLimits, proxies: Proxies, refused: Callable[[Refusal], None]
    ) -> None:
        self.server = server
        self.take = take
        self.limits = limits
        self.refused = refused
        self._proxies = proxies
        self._loop = asyncio.get_running_loop()
        self._waiting: Crowd[Waiting] = Crowd(limits.max_waiting, limits.max_waiting_per_address)
        self._handshakes: set[asyncio.Task[Any]] = set()
        self._alarms: Alarms[Waiting] = Alarms(self._due, GRAIN_S)

    def __call__(self) -> Caller:
        """A connection that is about to be made."""
        return Caller(self)

    def serve(self, caller: Caller, transport: asyncio.Transport, said: bytes) -> None:
        """Let aiohttp have a connection, and what it has said of a request: for the rest it waits in the same place."""
        peer = Peer(
            self,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,  # no client compresses what it posts, and 65 KB of a stranger's would become 64 MB
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            tcp_keepalive=False,  # it is on: see `Listener`
        )
        transport.set_protocol(peer)
        peer.connection_made(transport)
        peer.due = caller.due
        self._alarms.cancel(caller)
        self._alarms.set(peer, peer.due)
        self._waiting.replace(caller, peer)
        peer.data_received(said)

    @property
    def waiting(self) -> int:
        """How many wait for a request."""
        return len(self._waiting)

    def wait(self, peer: "Waiting", for_s: float) -> None:
        """Give a connection a while to send its next request; the one that has waited longest may have to go."""
        peer.due = self._loop.time() + for_s
        self._alarms.set(peer, peer.due)
        if not peer.address or self._proxies.trusts(peer.address):
            return
        crowded_out = self._waiting.enter(peer, peer.address)
        if crowded_out is not None:
            self.leave(crowded_out)
            crowded_out.turn_out(Refusal.CROWDED_OUT, "503 Service Unavailable")

    def leave(self, peer: "Waiting") -> None:
        """A connection does not wait any more."""
        self._alarms.cancel(peer)
        self._waiting.leave(peer)

    def shake(self, connection: socket.socket, address: str, tls: ssl.SSLContext) -> None:
        """Have a TLS handshake on a connection that has just come; it is one of those that wait."""
        peer = Caller(self, address)
        peer.handshake = task = self._loop.create_task(self._handshake(peer, connection, tls), name="handshake")
        task.add_done_callback(partial(self._shaken, peer, connection))
        self._handshakes.add(task)
        self.wait(peer, min(HANDSHAKE_S, self.limits.head_s))

    async def close(self) -> None:
        """Watch no more, and end the handshakes under way, and the connections that have said nothing."""
        for peer in self._alarms:
            if isinstance(peer, Caller):
                peer.close()
        self._alarms.stop()
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    async def _handshake(self, peer: Caller, connection: socket.socket, tls: ssl.SSLContext) -> None:
        await self._loop.connect_accepted_socket(lambda: peer, connection, ssl=tls)

    def _shaken(self, peer: Caller, connection: socket.socket, task: asyncio.Task[Any]) -> None:
        """The handshake is done, or came to nothing."""
        self._handshakes.discard(task)
        peer.handshake = None
        problem = None if task.cancelled() else task.exception()
        if task.cancelled() or problem is not None:
            self.leave(peer)
            connection.close()
        if problem is not None and not isinstance(problem, OSError):  # what a peer can do wrong is one
            log.error("handshake failed", exc_info=problem)

    def _due(self, peer: "Waiting", now: float) -> None:
        if peer.due > now:
            self._alarms.set(peer, peer.due)
        else:
            self.leave(peer)
            peer.turn_out(Refusal.SLOW_REQUEST, "408 Request Timeout")


Waiting = Caller | Peer


class Arrival(asyncio.Protocol):
    """A TCP connection that has just come, to be given over for its TLS handshake.

    asyncio tells of a connection when its handshake is done: those that never end would be seen by nobody.
    """

    def __init__(self, peers: Peers, tls: ssl.SSLContext) -> None:
        self._peers = peers
        self._tls = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection out of the transport, which has not read from it yet."""
        taken_from = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        try:
            connection = socket.socket(fileno=os.dup(taken_from.get_extra_info("socket").fileno()))
        except OSError as problem:
            log.warning("connection not taken", extra={"problem": str(problem)})
        else:
            connection.setblocking(False)
            self._peers.shake(connection, _address(taken_from.get_extra_info("peername")), self._tls)
        taken_from.abort()


@web.middleware
async def watched(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection when a request is being served."""
    peer = request.protocol
    if not isinstance(peer, Peer):
        return await handler(request)
    peer.begin()
    try:
        return await handler(request)
    finally:
        peer.end()


def _refuse(transport: asyncio.Transport, status: str) -> None:
    """Answer what is no whole request, and close."""
    if not transport.is_closing():  # uvloop raises when it is
        transport.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        transport.close()


def _address(name: object) -> str:
    """Empty on a unix socket, where another worker relays the requests of many."""
    return plain(name[0]) if isinstance(name, tuple) else ""
