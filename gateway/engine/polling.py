"""HTTP long polling on aiohttp: polls, POSTs, and the shape of every response."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final, TypeAlias

from aiohttp import web

from gateway.admission import Refusal
from gateway.engine.codec import Malformed, decode_jsonp, decode_payload, encode_jsonp, to_utf8
from gateway.engine.connection import STRANGER_BYTES, Connection
from gateway.engine.effects import CloseReason, Transport
from gateway.engine.options import EngineOptions

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

UNKNOWN_TRANSPORT: Final = (0, "Transport unknown")
UNKNOWN_SID: Final = (1, "Session ID unknown")
BAD_METHOD: Final = (2, "Bad handshake method")
BAD_REQUEST: Final = (3, "Bad request")
FORBIDDEN: Final = (4, "Forbidden")
UNSUPPORTED_VERSION: Final = (5, "Unsupported protocol version")
UNAVAILABLE: Final = (6, "Too many handshakes")  # ours, as the next; the others are those of engine.io lib/server.ts
TOO_SLOW: Final = (7, "Request took too long")

_STATUS: Final = {FORBIDDEN: 403, UNAVAILABLE: 503, TOO_SLOW: 408}


class _TooLarge(Malformed):
    """A body is over its limit."""


def handler(serve: Handler) -> Handler:
    """A coroutine function that serves: aiohttp does not know one that is compiled."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await serve(request)

    return handle


def refuse(error: tuple[int, str]) -> web.Response:
    """The response to a request that is not served, as the reference server words it."""
    code, message = error
    return web.json_response({"code": code, "message": message}, status=_STATUS.get(error, 400))


async def answer_poll(request: web.Request, connection: Connection, options: EngineOptions) -> web.Response:
    """Wait for something to send, and send it."""
    session = connection.session
    may_wait, effects = session.park(asyncio.get_running_loop().time())
    connection.apply(effects)
    if not may_wait:
        return refuse(BAD_REQUEST)
    try:
        await connection.parked()
    except asyncio.CancelledError:  # the client dropped the poll, where the runner says so at once
        connection.close(CloseReason.TRANSPORT_ERROR)
        raise
    if request.transport is None:  # it dropped it before there was anything to send
        connection.close(CloseReason.TRANSPORT_ERROR)
    jsonp = jsonp_index(request, connection)
    body, effects = session.take(base64=jsonp is not None)
    connection.apply(effects)
    return _payload_response(request, body, jsonp, options)


def jsonp_index(request: web.Request, connection: Connection) -> str | None:
    """Which callback of the page gets the body, if the client polls by JSONP."""
    return request.query.get("j") if connection.generation.jsonp else None


def _payload_response(
    request: web.Request, body: str | bytes, jsonp: str | None, options: EngineOptions
) -> web.Response:
    if isinstance(body, bytes):
        data, content_type = body, "application/octet-stream"
    elif jsonp is not None:
        data, content_type = to_utf8(encode_jsonp(jsonp, body)), "text/javascript; charset=UTF-8"
    else:
        data, content_type = to_utf8(body), "text/plain; charset=UTF-8"
    response = web.Response(body=data, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
    over_bytes = options.compress_polls_over_bytes
    if over_bytes is not None and len(data) > over_bytes and _accepts_gzip(request):
        response.enable_compression(web.ContentCoding.gzip)
    return response


def _accepts_gzip(request: web.Request) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "").lower()


async def take_post(request: web.Request, connection: Connection, options: EngineOptions) -> web.Response:
    """Receive the packets of a POST, one after the other; a bad one ends the session."""
    session = connection.session
    if session.closed is not None or session.transport is not Transport.POLLING:
        return refuse(BAD_REQUEST)
    if connection.posting:  # two at a time have no order
        connection.close(CloseReason.TRANSPORT_ERROR)
        return refuse(BAD_REQUEST)
    connection.posting = True
    try:
        await _receive_all(request, connection, options)
    except (Malformed, web.RequestPayloadError):
        connection.close(CloseReason.MALFORMED)
        return refuse(BAD_REQUEST)
    except (ConnectionError, TimeoutError, asyncio.CancelledError) as error:
        connection.close(CloseReason.TRANSPORT_ERROR)
        if isinstance(error, asyncio.CancelledError):
            raise
        return refuse(TOO_SLOW if isinstance(error, TimeoutError) else BAD_REQUEST)
    finally:
        connection.posting = False
    return web.Response(text="ok", content_type="text/html")  # text/plain makes some browsers offer a download


async def _receive_all(request: web.Request, connection: Connection, options: EngineOptions) -> None:
    if connection.session.admitted:
        # A device that is still busy with one POST cannot answer a heartbeat: that bounds the body in time.
        within_s, limit_bytes = options.ping_interval_s + options.ping_timeout_s, options.max_payload_bytes
    else:
        within_s, limit_bytes = options.request_timeout_s, min(options.max_payload_bytes, STRANGER_BYTES)
    try:
        async with asyncio.timeout(within_s):
            body = await _read_body(request, limit_bytes)
    except TimeoutError:
        connection.refused(Refusal.SLOW_REQUEST)
        raise
    except _TooLarge:
        if not connection.session.admitted:
            connection.refused(Refusal.STRANGER_BYTES)
        raise
    if connection.session.closed is not None:
        raise ConnectionResetError("closed meanwhile")
    content_type = request.headers.get("Content-Type", "")  # aiohttp takes a missing one for binary
    binary = content_type.partition(";")[0].strip().lower() == "application/octet-stream"
    if not binary and jsonp_index(request, connection) is not None:
        body = decode_jsonp(body)
    for packet in decode_payload(connection.generation, body, binary=binary):
        pending = connection.receive(packet, monotonic())
        if pending is not None:
            await pending
        await connection.give_way(len(packet.data))
        if connection.session.closed is CloseReason.MALFORMED:
            raise Malformed("said the session")


async def _read_body(request: web.Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit_bytes:
            raise _TooLarge
    return bytes(body)
