"""Requests of sessions that another node has: relayed there, so that a balancer may send them anywhere.

Clients of Socket.IO 1 and 2 begin with long polling, and each poll may come to another node. A session id names the
node that has it; every node says in its retained status at which address the others reach it. What a node relays bears
a signature of the secret that all nodes share, and is never relayed again. A node that does not answer is gone: the
client is told that its session is unknown, and begins anew.

Workers behind one port are nodes that reach each other by unix sockets. What another host relays to that port may come
to any of them, so that alone is relayed once more, to the right one; what comes by a unix socket never is.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Final

from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    TCPConnector,
    UnixConnector,
    WSMessage,
    WSMsgType,
    web,
)

from gateway.engine.handshake import Head
from gateway.engine.peers import Peer as Connected
from gateway.engine.websocket import FRAMES_PER_TURN

log = logging.getLogger(__name__)

SIGNATURE: Final = "X-Gateway-Relay"
FRESH_S: Final = 30.0  # clocks of nodes may differ by as much, and a signature is good for as long
CONNECT_S: Final = 2.0  # a node that takes longer is as good as gone
KEPT_REQUEST: Final = ("Accept-Encoding", "Content-Type", "Host", "Origin", "Sec-WebSocket-Protocol", "User-Agent")
KEPT_RESPONSE: Final = ("Cache-Control", "Content-Encoding", "Content-Type")
MIN_SECRET_BYTES: Final = 32  # RFC 2104, 3: no shorter than the hash
_TAG_CHARS: Final = 10
_SIBLING_URL: Final = "http://worker"  # a name for the request; the connection goes to a unix socket


class Relay:
    """What one node relays to others, and takes from them.

    Args:
        node: the name of this one.
        secret: what all nodes share.
        peers: URLs of the nodes that are there, by tag; see `tag_of`.
        siblings: unix sockets of the other workers behind the same port, by tag.
        max_requests: polls and WebSockets under way; over it a session is answered as unknown.
        max_bytes: of one message or body.
        poll_s: how long a poll may take.
        relayed: told what became of each request.
    """

    def __init__(
        self,
        node: str,
        secret: bytes,
        peers: Mapping[str, str],
        *,
        max_requests: int,
        max_bytes: int,
        poll_s: float,
        relayed: Callable[[str], None],
        siblings: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self._tag = tag_of(node)
        self._secret = secret
        self._peers = peers
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._poll_s = poll_s
        self._relayed = relayed
        self._siblings = siblings
        self._under_way = 0
        self._closed = False
        self._clients: dict[Path | None, ClientSession] = {}  # by the unix socket that one connects to

    def new_sid(self) -> str:
        """A session id that nobody can guess, and that names this node."""
        return f"{self._tag}.{secrets.token_urlsafe(15)}"

    def is_forged(self, request: Head) -> bool:
        """Whether a request claims to come from another node, and does not."""
        claim = request.headers.get(SIGNATURE)
        if claim is None:
            return False
        at, _, signature = claim.partition(" ")
        if not (at.isascii() and at.isdecimal() and len(at) < 20) or abs(time.time() - int(at)) > FRESH_S:
            return True
        return not hmac.compare_digest(_bytes(signature), self._sign(at, request).encode())

    async def serve(self, request: web.Request, sid: str) -> web.StreamResponse | None:
        """The answer of the node that has the session; None where no other node can have it."""
        tag, dot, _ = sid.rpartition(".")
        if not dot or tag == self._tag or _came_by_unix_socket(request):
            return None
        sibling = self._siblings.get(tag)
        if sibling is None and SIGNATURE in request.headers:
            return None
        url = _SIBLING_URL if sibling is not None else self._peers.get(tag)
        if url is None or self._closed:
            self._relayed("gone")
            return None
        if self._under_way >= self._max_requests:
            self._relayed("full")
            return None
        self._under_way += 1
        try:
            return await self._pass_on(request, self._client(sibling), f"{url}{request.path_qs}")
        except (ClientError, TimeoutError, ConnectionError) as problem:
            log.debug("relay to %s failed: %s", sibling or url, type(problem).__name__)
            self._relayed("failed")
            return None
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Drop the connections to other nodes; what still comes on a connection to us is answered as unknown."""
        self._closed = True
        for client in self._clients.values():
            await client.close()

    def _client(self, sibling: Path | None) -> ClientSession:
        """What connects to one worker, or to the nodes at their URLs."""
        client = self._clients.get(sibling)
        if client is None:
            connect = TCPConnector if sibling is None else partial(UnixConnector, str(sibling))
            connector = connect(limit=0, keepalive_timeout=self._poll_s)
            client = self._clients[sibling] = ClientSession(connector=connector, auto_decompress=False)
        return client

    async def _pass_on(self, request: web.Request, client: ClientSession, url: str) -> web.StreamResponse:
        at = str(int(time.time()))
        headers = {name: request.headers[name] for name in KEPT_REQUEST if name in request.headers}
        headers[SIGNATURE] = f"{at} {self._sign(at, request)}"
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._tunnel(client, request, url, headers)
        return await self._request(client, request, url, headers)

    async def _request(
        self, client: ClientSession, request: web.Request, url: str, headers: Mapping[str, str]
    ) -> web.Response:
        limit = ClientTimeout(total=self._poll_s, sock_connect=CONNECT_S)
        body = request.content if request.can_read_body else None
        async with client.request(
            request.method, url, headers=headers, data=body, timeout=limit, allow_redirects=False
        ) as answer:
            self._relayed("poll")
            kept = {name: answer.headers[name] for name in KEPT_RESPONSE if name in answer.headers}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    async def _tunnel(
        self, client: ClientSession, request: web.Request, url: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        async with asyncio.timeout(self._poll_s):
            inner = await client.ws_connect(url, headers=headers, max_msg_size=0, autoclose=False)
        async with inner:
            outer = web.WebSocketResponse(
                max_msg_size=self._max_bytes + 1, compress=False, autoclose=False, autoping=False
            )
            await outer.prepare(request)
            if isinstance(request.protocol, Connected):
                request.protocol.trust()  # the node that has the session minds how much a stranger says
            self._relayed("websocket")
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(outer, inner))
                group.create_task(_pump(inner, outer))
            return outer

    def _sign(self, at: str, request: Head) -> str:
        signed = f"{at} {request.method} {request.path_qs}"
        return hmac.new(self._secret, _bytes(signed), hashlib.sha256).hexdigest()


def _bytes(text: str) -> bytes:
    """What a peer sent, which need not be UTF-8: aiohttp has surrogates for such bytes."""
    return text.encode(errors="surrogateescape")


def _came_by_unix_socket(request: web.Request) -> bool:
    transport = request.transport
    return transport is not None and isinstance(transport.get_extra_info("sockname"), str)  # otherwise it is a tuple


Peer = web.WebSocketResponse | ClientWebSocketResponse


async def _pump(source: Peer, sink: Peer) -> None:
    """Hand messages on until one side ends; then end the other."""
    with suppress(ConnectionError, RuntimeError):  # RuntimeError: it is closing
        for taken in count(1):
            if not await _hand_on(await source.receive(), source, sink):
                break
            if taken % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)  # neither of the awaited need have waited
    await source.close()
    await sink.close()


async def _hand_on(message: WSMessage, source: Peer, sink: Peer) -> bool:
    """Pass a message to the other side, or answer a ping; False when it is the end."""
    match message.type:
        case WSMsgType.TEXT:
            await sink.send_str(message.data)
        case WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        case WSMsgType.PING:
            await source.pong(message.data)
        case WSMsgType.PONG:
            pass
        case _:
            return False
    return True


def tag_of(node: str) -> str:
    """What names a node in a session id: nothing that a client could make use of."""
    return hashlib.sha256(node.encode()).hexdigest()[:_TAG_CHARS]
