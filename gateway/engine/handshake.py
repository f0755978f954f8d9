"""The handshake of a WebSocket: what is read of it, and how it is answered.

Nearly every device begins with one that comes alone and whole. That one never gets to aiohttp, whose request, task and
response would cost more than all the rest of it. Any other is checked by the same rules once aiohttp has read it, and
its connection is then taken from aiohttp: so no idle device holds a request, a parser of requests and a task.
"""

import asyncio
import base64
import hashlib
from typing import Any, Final, Protocol

from aiohttp import EMPTY_PAYLOAD, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WS_KEY, HttpRequestParser, ws_ext_gen, ws_ext_parse
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy, MultiMapping
from yarl import URL

from gateway.engine.options import EngineOptions
from gateway.engine.websocket import WebSocket

MAX_HEADERS: Final = 100
KEY_BYTES: Final = 16  # RFC 6455 4.1
VERSIONS: Final = ("13", "8", "7")
_BUFFER_BYTES: Final = 65_536  # of bodies, which no handshake has
_SHA1: Final = hashlib.sha1(usedforsecurity=False)  # to be copied: OpenSSL looks for it anew each time; RFC 6455 1.3

Answered = tuple[int, bytes]  # the window of permessage-deflate, 0 for none, and the head of the response


class Head(Protocol):
    """What a request says before its body: a `web.Request`, or a `Handshake`."""

    @property
    def method(self) -> str:
        """In capitals."""

    @property
    def path(self) -> str:
        """Decoded, without the query."""

    @property
    def path_qs(self) -> str:
        """As it came, with the query."""

    @property
    def query(self) -> MultiMapping[str]:
        """Decoded."""

    @property
    def query_string(self) -> str:
        """Decoded."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """By name, whatever its case."""

    @property
    def host(self) -> str:
        """What the client calls us."""

    @property
    def scheme(self) -> str:
        """`http` or `https`."""

    @property
    def remote(self) -> str | None:
        """The other end of the connection; None if it is gone."""


class Handshake:
    """A request for a WebSocket, read without a `web.Request`, of which it has what a `Head` has."""

    __slots__ = ("_url", "frames", "headers", "host", "method", "remote", "scheme")

    def __init__(self, message: Any, frames: bytes, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        self._url: URL = message.url
        self.frames = frames  # what came after it
        self.headers: CIMultiDictProxy[str] = message.headers
        self.host: str = message.headers[hdrs.HOST]
        self.method: str = message.method
        self.remote: str | None = peer[0] if isinstance(peer, tuple) else peer
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"

    @property
    def raw_path(self) -> str:
        """As it came, without the query."""
        return self._url.raw_path

    @property
    def path(self) -> str:
        """See `Head`."""
        return self._url.path

    @property
    def path_qs(self) -> str:
        """See `Head`."""
        return str(self._url)

    @property
    def query(self) -> MultiMapping[str]:
        """See `Head`."""
        return self._url.query

    @property
    def query_string(self) -> str:
        """See `Head`."""
        return self._url.query_string


def read(said: bytes, transport: asyncio.Transport) -> Handshake | None:
    """Read what a connection has said first, if it is a whole handshake of a WebSocket for a new session."""
    line = said.partition(b"\r\n")[0]
    if not line.startswith(b"GET /") or b"transport=websocket" not in line or b"sid=" in line:
        return None  # most likely; aiohttp reads it
    loop = asyncio.get_running_loop()
    base = BaseProtocol(loop)
    parser: Any  # its messages are said to be tuples, which those of aiohttp's compiled parser are not
    parser = HttpRequestParser(base, loop, _BUFFER_BYTES, max_headers=MAX_HEADERS, auto_decompress=False)
    try:
        messages, upgraded, frames = parser.feed_data(said)
    except HttpProcessingError:
        return None
    if not upgraded or len(messages) != 1:
        return None
    message, body = messages[0]
    if body is not EMPTY_PAYLOAD or hdrs.HOST not in message.headers or hdrs.EXPECT in message.headers:
        return None
    return Handshake(message, frames, transport)


def answer(head: Head, options: EngineOptions, cookie: str | None = None) -> Answered | None:
    """What answers a handshake; None if it is none."""
    headers = head.headers
    key = headers.get(hdrs.SEC_WEBSOCKET_KEY, "")
    if not (_asks(headers) and headers.get(hdrs.SEC_WEBSOCKET_VERSION) in VERSIONS and _is_key(key)):
        return None
    digest = _SHA1.copy()
    digest.update(key.encode() + WS_KEY)
    accept = base64.b64encode(digest.digest()).decode()
    more, compress = "", 0
    if options.deflate_websockets_over_bytes is not None:
        compress, no_takeover = _deflation(headers)
        if compress:
            more += f"{hdrs.SEC_WEBSOCKET_EXTENSIONS}: {ws_ext_gen(compress, True, no_takeover)}\r\n"
    if protocol := _first_protocol(headers):
        more += f"{hdrs.SEC_WEBSOCKET_PROTOCOL}: {protocol}\r\n"
    if cookie is not None:
        more += f"{hdrs.SET_COOKIE}: {cookie}\r\n"
    lines = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade"
    return compress, f"{lines}\r\n{hdrs.SEC_WEBSOCKET_ACCEPT}: {accept}\r\n{more}\r\n".encode()


def establish(
    handshake: Handshake, transport: asyncio.Transport, options: EngineOptions, answered: Answered
) -> WebSocket:
    """Go on as a WebSocket, on a connection that nobody else has."""
    socket = WebSocket(transport, options, *answered)
    if handshake.frames and socket.parser is not None:
        socket.parser.feed_data(handshake.frames)
    transport.set_protocol(socket)
    return socket


def accept(request: web.Request, options: EngineOptions, cookie: str | None = None) -> WebSocket | None:
    """Shake hands with a request of aiohttp's, and have the connection; None if it is none, or its peer left.

    The request's handler then has to return without waiting for anything: to aiohttp the peer is gone.
    """
    transport, answered = request.transport, answer(request, options, cookie)
    if transport is None or answered is None:
        return None
    socket = WebSocket(transport, options, *answered)
    _take_over(request, socket)
    return socket


def asks_for_websocket(headers: CIMultiDictProxy[str]) -> bool:
    """Whether a request wants to go on as a WebSocket."""
    return headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


def _asks(headers: CIMultiDictProxy[str]) -> bool:
    connection = ",".join(headers.getall(hdrs.CONNECTION, ()))
    return asks_for_websocket(headers) and "upgrade" in [token.strip().lower() for token in connection.split(",")]


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text)) == KEY_BYTES
    except ValueError:  # it is no Base64, or beyond ASCII
        return False


def _deflation(headers: CIMultiDictProxy[str]) -> tuple[int, bool]:
    """The window that permessage-deflate is to have, 0 for none, and whether each message is to be for itself."""
    try:
        return ws_ext_parse(headers.get(hdrs.SEC_WEBSOCKET_EXTENSIONS), isserver=True)
    except ValueError:  # a number of more digits than `int` takes
        return 0, False


def _first_protocol(headers: CIMultiDictProxy[str]) -> str:
    """The first subprotocol that is offered, whatever it is; empty if none is."""
    offered = headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")
    return next((name for text in offered if (name := text.strip()) and name.isascii()), "")


def _take_over(request: web.Request, socket: WebSocket) -> None:
    """Let a WebSocket have the connection of its handshake: aiohttp believes it lost, and ends what it had for it."""
    protocol, transport = request.protocol, request.transport
    assert transport is not None
    assert socket.parser is not None
    protocol.set_parser(socket.parser)  # with what came after the handshake
    protocol.transport = None  # else aiohttp would close it
    protocol.connection_lost(None)
    transport.set_protocol(socket)
