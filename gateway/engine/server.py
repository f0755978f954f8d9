"""The Engine.IO server: both generations behind one URL of an aiohttp application.

Decides which request belongs to which session and who may come in; polls, WebSockets and sessions have
modules of their own.

    server = EngineServer(EngineOptions())
    server.on_connected = lambda connection: connection.admit()
    server.on_message = lambda connection, data: connection.send(data)
    server.on_closed = lambda connection, reason: None
    server.attach(app, "/socket/socket.io")

Run it under `web.AppRunner(app, handler_cancellation=True)`: polls that a client drops are then noticed at
once, otherwise when there is something to send. Where `take` is offered each connection first, as `Peers` does,
most devices come in without a request of aiohttp.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from time import monotonic
from typing import Final, Protocol

from aiohttp import web

from gateway.admission import CROWDED, Admission, Refusal, Refused
from gateway.alarms import Alarms
from gateway.engine import polling
from gateway.engine.codec import Generation, generation_of
from gateway.engine.connection import Connection, Pending
from gateway.engine.effects import CloseReason, Transport
from gateway.engine.handshake import Head, accept, answer, asks_for_websocket, establish, read
from gateway.engine.headers import cookie_of, cors, environ_of, preflight
from gateway.engine.options import EngineOptions
from gateway.engine.session import Session
from gateway.engine.websocket import WebSocket
from gateway.proxies import Proxies

logger = logging.getLogger(__name__)

GRAIN_S: Final = 0.05  # how late a heartbeat may be
GRAINS_PER_INTERVAL: Final = 32  # and at most this part of an interval below a second or two


class Relay(Protocol):
    """Other servers behind the same balancer, which may have the session of a request that comes here."""

    def new_sid(self) -> str:
        """An id that nobody can guess, and that names this server."""

    def is_forged(self, request: Head) -> bool:
        """Whether a request claims to come from another server, and does not."""

    async def serve(self, request: web.Request, sid: str) -> web.StreamResponse | None:
        """The answer of the server that has the session; None where no other can have it."""


class EngineServer:
    """Engine.IO 3 and 4 on aiohttp. Used from one event loop."""

    def __init__(
        self,
        options: EngineOptions | None = None,
        admission: Admission | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.admission = admission or Admission()
        self.on_connected: Callable[[Connection], Pending] = _ignore
        self.on_message: Callable[[Connection, str | bytes], Pending] = _ignore
        self.on_closed: Callable[[Connection, CloseReason], Pending] = _ignore
        self.relay: Relay | None = None
        self.on_upgraded: Callable[[Connection], None] = _ignore
        self.on_refused: Callable[[Refusal], None] = _ignore
        self._proxies = proxies or Proxies()
        self._paths: tuple[str, ...] = ()
        self._warned = False
        self._connections: dict[str, Connection] = {}
        self._callbacks: set[asyncio.Future[object]] = set()
        grain_s = min(GRAIN_S, self.options.ping_interval_s / GRAINS_PER_INTERVAL)
        self._alarms: Alarms[Connection] = Alarms(Connection.tick, grain_s)
        self.watch: Callable[[Connection, float], None] = self._alarms.set
        self._closing = False

    # -- for the application ---------------------------------------------------------------------------

    @property
    def connections(self) -> Collection[Connection]:
        """A live view of every connection; one that closed may linger until a poll has taken its last word."""
        return self._connections.values()

    def close(self, sid: str, reason: CloseReason = CloseReason.SERVER) -> None:
        """Close a connection, if it is open."""
        connection = self._connections.get(sid)
        if connection is not None:
            connection.close(reason)

    def attach(self, app: web.Application, path: str = "engine.io") -> None:
        """Serve `path`, with and without a slash at its end."""
        path = "/" + path.strip("/")
        self._paths = path, path + "/"
        app.on_response_prepare.append(_without_version)
        for each in self._paths:
            app.router.add_route("*", each, polling.handler(self.handle_request))

    async def shutdown(self) -> None:
        """Close every connection, refuse new ones, and wait for the application's callbacks."""
        self._closing = True
        for connection in list(self.connections):
            connection.close(CloseReason.SHUTDOWN)
        self._alarms.stop()
        await asyncio.gather(*self._callbacks, return_exceptions=True)

    # -- requests --------------------------------------------------------------------------------------

    def take(self, transport: asyncio.Transport, said: bytes) -> bool:
        """Have a connection that begins with the handshake of a WebSocket that may be; False, and nothing was done.

        Whoever says anything else, or has to be told no, says it to aiohttp: see `handle_request`.
        """
        head = read(said, transport)
        if head is None or head.raw_path not in self._paths or self._closing or self._objection(head) is not None:
            return False
        generation = self._generation(head)
        if generation is None or head.query.get("transport") != Transport.WEBSOCKET or "sid" in head.query:
            return False
        sid, address = self.generate_id(), self._address(head)
        answered = answer(head, self.options, cookie_of(self.options.cookie, sid))
        strangers = self.admission.strangers
        if answered is None or strangers.refuses(address) or self.admission.handshake(address, monotonic()) is not None:
            return False
        try:
            placed = self._place(sid, address)
            assert placed is None  # as was asked before
            self._open_websocket(head, generation, sid, address, establish(head, transport, self.options, answered))
        finally:
            self._vacate(sid)
        return True

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Serve one HTTP request or WebSocket."""
        origin = request.headers.get("Origin")
        objection = self._objection(request)
        if objection is not None:
            self.on_refused(objection)
            response: web.StreamResponse = polling.refuse(polling.FORBIDDEN)
        elif request.method == "OPTIONS":
            response = web.Response(status=204, headers=preflight(request))
        else:
            response = await self._serve(request)
        if origin is not None and objection is not Refusal.ORIGIN and not response.prepared:
            response.headers.update(cors(origin))
        return response

    def _objection(self, head: Head) -> Refusal | None:
        """Why a request is not even looked at: pages of other origins than those listed, and the server's own, which
        other clients name too; and what claims to come from another node.
        """
        origin, origins = head.headers.get("Origin"), self.options.origins
        listed = origin is None or origin in origins or "*" in origins
        if origin is not None and not listed and origin.partition("://")[2] != head.host:
            return Refusal.ORIGIN
        return Refusal.FORGED_RELAY if self.relay is not None and self.relay.is_forged(head) else None

    def _generation(self, head: Head) -> Generation | None:
        return generation_of(head.query.get("EIO"), missing_is_3=self.options.missing_eio_is_3)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        transport = request.query.get("transport")
        if transport not in (Transport.POLLING, Transport.WEBSOCKET):
            return polling.refuse(polling.UNKNOWN_TRANSPORT)
        upgrade = asks_for_websocket(request.headers)
        sid = request.query.get("sid")
        if not sid and request.method != "GET":
            return polling.refuse(polling.BAD_METHOD)
        if upgrade is not (transport == Transport.WEBSOCKET):
            return polling.refuse(polling.BAD_REQUEST)
        if not sid:
            return await self._handshake(request, Transport(transport))
        connection = self._connections.get(sid)
        if connection is not None:
            connection.tick(monotonic())  # so that a session is never found alive past its deadline
        if connection is None or sid not in self._connections:
            relayed = None if self.relay is None else await self.relay.serve(request, sid)
            return relayed or polling.refuse(polling.UNKNOWN_SID)
        return await self._continue(request, connection, upgrade=upgrade)

    async def _continue(self, request: web.Request, connection: Connection, *, upgrade: bool) -> web.StreamResponse:
        if request.method == "GET":
            if upgrade:
                return await self._upgrade(request, connection)
            return await polling.answer_poll(request, connection, self.options)
        if request.method == "POST":
            return await polling.take_post(request, connection, self.options)
        return polling.refuse(polling.BAD_REQUEST)

    async def _handshake(self, request: web.Request, transport: Transport) -> web.StreamResponse:
        generation = self._generation(request)
        if generation is None:
            return polling.refuse(polling.UNSUPPORTED_VERSION)
        if self._closing:
            return polling.refuse(polling.UNAVAILABLE)
        sid, address = self.generate_id(), self._address(request)
        refused = self.admission.handshake(address, monotonic()) or self._place(sid, address)
        if refused is not None:
            return self._turn_away(request, refused)
        try:
            return await self._welcome(request, generation, transport, sid, address)
        finally:
            self._vacate(sid)

    async def _welcome(
        self, request: web.Request, generation: Generation, transport: Transport, sid: str, address: str
    ) -> web.StreamResponse:
        cookie = cookie_of(self.options.cookie, sid)
        if transport is Transport.POLLING:
            connection = self._add(sid, generation, transport, request, address)
            await _introduced(connection)
            response = await polling.answer_poll(request, connection, self.options)
            if cookie is not None:
                response.headers["Set-Cookie"] = cookie
            return response
        socket = accept(request, self.options, cookie)
        if socket is None:
            return polling.refuse(polling.BAD_REQUEST)
        self._open_websocket(request, generation, sid, address, socket)
        return web.Response()  # which nobody sends

    def _open_websocket(self, head: Head, generation: Generation, sid: str, address: str, socket: WebSocket) -> None:
        """Begin a session on a WebSocket that has been accepted."""
        connection = self._add(sid, generation, Transport.WEBSOCKET, head, address)
        connection.watch_stranger(socket)
        socket.start(connection, connection.open(socket))

    def _place(self, sid: str, address: str) -> Refused | None:
        """Find a place among the strangers, if need be that of another; None, or why there is none."""
        crowded_out = self.admission.strangers.enter(sid, address)
        if crowded_out == sid:
            return Refused(Refusal.STRANGERS, CROWDED)
        if crowded_out is not None:
            self.on_refused(Refusal.CROWDED_OUT)
            self.close(crowded_out, CloseReason.UNAUTHENTICATED)
        return None

    def _vacate(self, sid: str) -> None:
        """Keep no place among the strangers for a session that never began, or is over."""
        if sid not in self._connections:
            self.admission.strangers.leave(sid)

    def _turn_away(self, request: web.Request, refused: Refused) -> web.Response:
        """Refuse a handshake for a while, so that the client backs off."""
        self.on_refused(refused.reason)
        if "X-Forwarded-For" in request.headers and not self._warned and not self._proxies.trusts(request.remote or ""):
            self._warned = True
            logger.warning("requests refused that a proxy forwarded which is not trusted: all its clients count as one")
        response = polling.refuse(polling.UNAVAILABLE)
        response.headers["Retry-After"] = str(refused.retry_after_s)
        response.force_close()
        return response

    def _address(self, head: Head) -> str:
        return self._proxies.client(head.remote or "", head.headers.getall("X-Forwarded-For", ()))

    async def _upgrade(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        # The request may come from another node, which relays those of many.
        refused = self.admission.handshake(str(connection.environ["REMOTE_ADDR"]), monotonic())
        if refused is not None:
            return self._turn_away(request, refused)
        may_probe = connection.may_probe(base64=bool(request.query.get("b64")))
        socket = accept(request, self.options)
        if socket is None:
            if may_probe:
                connection.apply(connection.session.probe_lost())
            return polling.refuse(polling.BAD_REQUEST)
        if may_probe:
            connection.watch_stranger(socket)
            connection.probe(socket)
        else:
            socket.close()  # as the reference server does: clients take a refusal for a broken network
        return web.Response()  # which nobody sends

    def _add(self, sid: str, generation: Generation, transport: Transport, head: Head, address: str) -> Connection:
        base64 = bool(head.query.get("b64"))
        session = Session(sid, generation, transport, self.options, monotonic(), base64=base64)
        connection = self._connections[sid] = Connection(self, session, environ_of(head, address))
        return connection

    # -- for connections -------------------------------------------------------------------------------

    def admitted(self, connection: Connection) -> None:
        """The application knows who it is: it is no stranger any more."""
        self.admission.strangers.leave(connection.sid)

    def refused(self, reason: Refusal) -> None:
        """A peer was refused something."""
        self.on_refused(reason)

    def forget(self, connection: Connection) -> None:
        """No request may find the connection any more."""
        self._connections.pop(connection.sid, None)
        self.admission.strangers.leave(connection.sid)
        self._alarms.cancel(connection)

    def keep(self, pending: Awaitable[object]) -> None:
        """Run what a callback has begun; `shutdown` waits for it."""
        task = asyncio.ensure_future(pending)
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)

    def generate_id(self) -> str:
        """A new id that nobody can guess."""
        if self.relay is not None:
            return self.relay.new_sid()
        return secrets.token_urlsafe(15)


async def _introduced(connection: Connection) -> None:
    """Wait until the application knows a connection that polls."""
    pending = connection.open()
    if pending is None:
        return
    try:
        await pending
    except asyncio.CancelledError:  # the peer left meanwhile
        connection.close(CloseReason.TRANSPORT_ERROR)
        raise


async def _without_version(_request: web.Request, response: web.StreamResponse) -> None:
    """Strangers need not know which aiohttp and Python answer."""
    response.headers.pop("Server", None)


def _ignore(*_: object) -> None:
    """Nobody asked for this callback."""
