"""The handshake of a WebSocket. aiohttp checks it; the connection is then taken from aiohttp.

So an idle device holds no request, no parser of requests and no task, which is half of what it would cost.
"""

import base64
import hashlib

from aiohttp import hdrs, web
from aiohttp.http import WS_KEY, ws_ext_gen, ws_ext_parse

from gateway.engine.options import EngineOptions
from gateway.engine.websocket import WebSocket


def accept(request: web.Request, options: EngineOptions, cookie: str | None = None) -> WebSocket | None:
    """Shake hands, and have the connection; None if the request is no handshake, or its peer left.

    The request's handler then has to return without waiting for anything: to aiohttp the peer is gone.
    """
    transport = request.transport
    head, compress = _answer(request, options, cookie)
    if transport is None or head is None:
        return None
    socket = WebSocket(transport, options, compress, head)
    _take_over(request, socket)
    return socket


def _answer(request: web.Request, options: EngineOptions, cookie: str | None) -> tuple[bytes | None, int]:
    """The head of the response to a handshake, None if it is none, and the window of permessage-deflate, 0 for none."""
    key = request.headers.get(hdrs.SEC_WEBSOCKET_KEY, "")
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")
    check = web.WebSocketResponse(protocols=[name.strip() for name in offered if name.isascii()])
    ready = check.can_prepare(request) if key.isascii() else None
    if not ready:
        return None, 0
    accept = base64.b64encode(hashlib.sha1(key.encode() + WS_KEY).digest()).decode()  # noqa: S324 - RFC 6455 1.3
    headers = {hdrs.UPGRADE: "websocket", hdrs.CONNECTION: "Upgrade", hdrs.SEC_WEBSOCKET_ACCEPT: accept}
    compress = 0
    if options.deflate_websockets_over_bytes is not None:
        extensions = request.headers.get(hdrs.SEC_WEBSOCKET_EXTENSIONS)
        compress, no_takeover = ws_ext_parse(extensions, isserver=True)
        if compress:
            headers[hdrs.SEC_WEBSOCKET_EXTENSIONS] = ws_ext_gen(compress, True, no_takeover)
    if ready.protocol:
        headers[hdrs.SEC_WEBSOCKET_PROTOCOL] = ready.protocol
    if cookie is not None:
        headers[hdrs.SET_COOKIE] = cookie
    lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode(), compress


def _take_over(request: web.Request, socket: WebSocket) -> None:
    """Let a WebSocket have the connection of its handshake: aiohttp believes it lost, and ends what it had for it."""
    protocol, transport = request.protocol, request.transport
    assert transport is not None
    assert socket.parser is not None
    protocol.set_parser(socket.parser)  # with what came after the handshake
    protocol.transport = None  # else aiohttp would close it
    protocol.connection_lost(None)
    transport.set_protocol(socket)
