"""One WebSocket on aiohttp: whole frames out at once, messages in one by one.

aiohttp does the handshake, reads, and answers the close frame. All else is written here, straight to the
transport: `send_str` is a coroutine, and what it would wait for is exactly what must not be waited for. The
transport's own buffer holds what the kernel does not take, and its high-water mark is the limit.
"""

import asyncio
import struct
import zlib
from collections.abc import Callable
from typing import Final

from aiohttp import WSMsgType, web

from gateway.engine.codec import to_utf8
from gateway.engine.effects import CloseReason
from gateway.engine.options import EngineOptions
from gateway.engine.peers import Peer

CLOSE_WAIT_S: Final = 1.0  # for the peer's half of a closing handshake that aiohttp began
FLUSH_WAIT_S: Final = 10.0  # for a peer to take what was written before a close
GOODBYE: Final = 1000  # RFC 6455 7.4.1
TOO_BIG: Final = 1009
SYNC_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692 7.2.1: not sent
_TEXT, _BINARY, _CLOSE, _PONG, _FIN, _DEFLATED = 0x1, 0x2, 0x8, 0xA, 0x80, 0x40


def encode_header(opcode: int, length: int, *, deflated: bool = False) -> bytes:
    """The header of an unmasked, unfragmented frame (RFC 6455 5.2)."""
    first = _FIN | opcode | (_DEFLATED if deflated else 0)
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)


class WebSocket:
    """A WebSocket that has been accepted. Writes never wait and never raise."""

    __slots__ = ("_deflate_over_bytes", "_protocol", "_transport", "response")

    def __init__(self, response: web.WebSocketResponse, request: web.Request, options: EngineOptions) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("gone before it was accepted")
        transport.set_write_buffer_limits(high=options.max_buffer_bytes)
        self.response = response
        self._protocol = request.protocol
        self._transport = transport
        self._deflate_over_bytes = options.deflate_websockets_over_bytes if response.compress else None

    @classmethod
    async def accept(cls, request: web.Request, options: EngineOptions, cookie: str | None = None) -> "WebSocket":
        """Shake hands.

        Raises:
            aiohttp.web.HTTPException: the request is no WebSocket handshake.
            ConnectionError: the peer left.
        """
        if not request.headers.get("Sec-WebSocket-Key", "").isascii():
            raise web.HTTPBadRequest(text="bad key")
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        response = web.WebSocketResponse(
            timeout=CLOSE_WAIT_S,
            autoping=False,  # aiohttp would answer any number of pings before anybody else has a turn
            protocols=[name.strip() for name in offered.split(",")],
            compress=options.deflate_websockets_over_bytes is not None,
            max_msg_size=options.max_payload_bytes + 1,  # aiohttp refuses what is as long as this
        )
        if cookie is not None:
            response.headers["Set-Cookie"] = cookie
        await response.prepare(request)
        return cls(response, request, options)

    async def read(self) -> str | bytes | CloseReason | None:
        """The next message, why there is none, or None: a control frame, which has been answered."""
        message = await self.response.receive()
        if message.type is WSMsgType.PING or message.type is WSMsgType.PONG:
            if message.type is WSMsgType.PING and not self._protocol.writing_paused:
                self._send(encode_header(_PONG, len(message.data)) + message.data)
            return None
        if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
            data: str | bytes = message.data
            return data
        if message.type is WSMsgType.CLOSE:
            return CloseReason.CLIENT
        if message.type is WSMsgType.ERROR and not isinstance(message.data, ConnectionError):
            return CloseReason.MALFORMED
        return CloseReason.TRANSPORT_ERROR

    def write(self, frame: str | bytes) -> bool:
        """Send a message; whether the peer keeps up. What is over the limit is not written."""
        if self._protocol.writing_paused:
            return False
        data, opcode = (to_utf8(frame), _TEXT) if isinstance(frame, str) else (frame, _BINARY)
        deflated = self._deflate_over_bytes is not None and len(data) > self._deflate_over_bytes
        if deflated:
            data = self._deflate(data)
        self._send(encode_header(opcode, len(data), deflated=deflated) + data)
        return True

    def allow(self, most_bytes: int, flooded: Callable[[], None]) -> None:
        """Let the peer send so much, until `trust`; with more, `flooded` is called."""
        if isinstance(self._protocol, Peer):
            self._protocol.allow(most_bytes, flooded)

    def trust(self) -> None:
        """Let the peer send what it likes."""
        if isinstance(self._protocol, Peer):
            self._protocol.trust()

    def close(self, code: int = GOODBYE) -> None:
        """Send what waits and a close frame, then close; a peer that does not take it is cut off."""
        self._send(encode_header(_CLOSE, 2) + struct.pack("!H", code))
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_WAIT_S, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        """Cut the peer off: what waits for it is dropped."""
        self._transport.abort()

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop raises when it is
            self._transport.write(data)

    def _deflate(self, data: bytes) -> bytes:
        """One message on its own: a compressor kept per socket would cost more memory than all the rest."""
        compressor = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=-int(self.response.compress))
        return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(SYNC_TAIL)
