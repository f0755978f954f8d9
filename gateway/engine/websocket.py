"""One WebSocket: whole frames out at once, messages in one by one, as they come.

aiohttp parses frames. Writes go straight to the transport: its own buffer holds what the kernel does not take, and its
high-water mark is the limit. Messages are handed over as they are parsed; where that has to wait, a task takes over
until it has caught up, and the peer is not read meanwhile.
"""

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import WebSocketError, WSMessage, WSMsgType
from aiohttp.http import WebSocketReader, WSMessageTextBytes

from gateway.engine.codec import PING, PONG, Malformed, to_utf8
from gateway.engine.effects import CloseReason
from gateway.engine.inbox import Inbox
from gateway.engine.options import EngineOptions

FLUSH_WAIT_S: Final = 10.0  # for a peer to take what was written before a close
GOODBYE: Final = 1000  # RFC 6455 7.4.1
TOO_BIG: Final = 1009
SYNC_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692 7.2.1: not sent
# What has come at once, up to 256 KB, may be 40,000 frames: then one peer holds up all others.
FRAMES_PER_TURN: Final = 8  # a quarter of a millisecond
# Looked up once: a member of an enumeration costs as much as two calls.
MESSAGE_TEXT: Final = WSMsgType.TEXT
MESSAGE_BINARY: Final = WSMsgType.BINARY
_TEXT, _BINARY, _CLOSE, _PONG, _FIN, _DEFLATED = 0x1, 0x2, 0x8, 0xA, 0x80, 0x40


def encode_header(opcode: int, length: int, *, deflated: bool = False) -> bytes:
    """The header of an unmasked, unfragmented frame (RFC 6455 5.2)."""
    first = _FIN | opcode | (_DEFLATED if deflated else 0)
    if length < 126:
        return (first << 8 | length).to_bytes(2, "big")
    if length < 65_536:
        return (first << 24 | 126 << 16 | length).to_bytes(4, "big")
    return (first << 72 | 127 << 64 | length).to_bytes(10, "big")


def framed(text: str) -> bytes:
    """A message as it is on the wire, for every WebSocket that does not deflate."""
    data = to_utf8(text)
    return encode_header(_TEXT, len(data)) + data


HEARTBEATS: Final[dict[str | bytes, bytes]] = {kind: framed(kind) for kind in (PING, PONG)}  # the same for all


class Hearer(Protocol):
    """Who a WebSocket works for."""

    def hear(self, socket: "WebSocket", frame: str | bytes | None) -> Awaitable[object] | None:
        """A message came, or with None a control frame; what comes back is waited for before the next.

        Raises:
            Malformed: it is no packet.
        """

    def ended(self, socket: "WebSocket", reason: CloseReason) -> None:
        """No more messages come; said once."""

    def keep(self, pending: Awaitable[object]) -> None:
        """See to it that `pending` is awaited."""


class WebSocket(asyncio.Protocol):
    """A WebSocket that has been accepted. Writes never wait and never raise; `parser` is None once it has ended.

    `head` answers the handshake: it leaves with the first message, or when the WebSocket starts.
    """

    __slots__ = (
        "_behind", "_code", "_compress", "_deflate_over_bytes", "_flooded", "_head", "_hearer", "_inbox", "_left_bytes",
        "_reading_paused", "_stalled", "_transport", "_turn", "parser",
    )  # fmt: skip

    def __init__(self, transport: asyncio.Transport, options: EngineOptions, compress: int, head: bytes) -> None:
        transport.set_write_buffer_limits(high=options.max_buffer_bytes)
        inbox = Inbox(self, asyncio.get_running_loop())
        max_bytes = options.max_payload_bytes + 1  # aiohttp refuses what is as long as this
        # First what every message needs, for it to be side by side.
        self._left_bytes: int | None = None  # that may still come; None: as many as it likes
        self.parser: WebSocketReader | None = WebSocketReader(inbox, max_bytes, bool(compress), True)
        self._turn = 0  # frames that were taken in this turn of the event loop
        self._behind: asyncio.Task[None] | None = None
        self._hearer: Hearer | None = None
        self._stalled = False  # the transport's buffer is full
        self._deflate_over_bytes = options.deflate_websockets_over_bytes if compress else None
        self._head = head
        self._transport = transport
        self._inbox: Inbox | None = inbox
        self._compress = compress
        self._reading_paused = False
        self._code = GOODBYE
        self._flooded: Callable[[], None] | None = None

    # -- messages in -----------------------------------------------------------------------------------

    def start(self, hearer: Hearer, pending: Awaitable[object] | None = None) -> None:
        """Hand messages over from now on; what came before waits for `pending`."""
        self._hearer = hearer
        if self._head:
            self.send(b"")
        if self.parser is None:  # what came with the handshake was no WebSocket frame, or the peer has left
            self._end(CloseReason.MALFORMED)
            if pending is not None:
                hearer.keep(pending)
        elif pending is not None or (self._inbox is not None and self._inbox.waits):
            self._fall_behind(pending)

    def allow(self, most_bytes: int, flooded: Callable[[], None]) -> None:
        """Let the peer send so much, until `trust`; with more, `flooded` is called, once."""
        self._left_bytes, self._flooded = most_bytes, flooded

    def trust(self) -> None:
        """Let the peer send what it likes."""
        self._left_bytes = self._flooded = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes < 0 and self._flooded is not None:
                flooded = self._flooded
                self.trust()
                flooded()
        parser, self._turn = self.parser, 0
        if parser is None:
            return
        parser.feed_data(data)
        if self._turn < FRAMES_PER_TURN:  # else some may have been kept
            return
        if self._behind is None and self._hearer is not None and self._inbox is not None and self._inbox.waits:
            self._fall_behind(None)

    def take(self, message: WSMessage) -> bool:
        """A message was parsed; False if it has to be kept."""
        if self._behind is not None or self._hearer is None or self._turn >= FRAMES_PER_TURN:
            return False
        self._turn += 1
        pending = self._hear(message)
        if pending is not None:
            self._fall_behind(pending)
        return True

    def _hear(self, message: WSMessage | WSMessageTextBytes) -> Awaitable[object] | None:
        hearer, kind = self._hearer, message.type
        if hearer is None:
            return None
        try:
            if kind is MESSAGE_TEXT or kind is MESSAGE_BINARY:
                return hearer.hear(self, message.data)
            if kind is WSMsgType.CLOSE:
                self._end(CloseReason.CLIENT)
                return None
            if kind is WSMsgType.PING and not self._stalled:
                self.send(encode_header(_PONG, len(message.data)) + message.data)
            return hearer.hear(self, None)
        except Malformed:
            self._end(CloseReason.MALFORMED)
            return None

    def _fall_behind(self, pending: Awaitable[object] | None) -> None:
        """Go on when `pending` is done, in a task of its own."""
        assert self._hearer is not None
        self._behind = asyncio.get_running_loop().create_task(self._catch_up(pending))
        self._hearer.keep(self._behind)

    async def _catch_up(self, pending: Awaitable[object] | None) -> None:
        """Take what waits, a few frames in each turn of the event loop."""
        while True:
            await (asyncio.sleep(0) if pending is None else pending)
            pending, self._turn = None, 0
            while pending is None and self._turn < FRAMES_PER_TURN:
                if self._inbox is None or not self._inbox.waits:
                    self._behind = None
                    return
                self._turn += 1
                pending = self._hear(await self._inbox.read())

    # -- the end ---------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """What came is no WebSocket frame."""
        self._code = error.code if isinstance(error, WebSocketError) else self._code
        self._end(CloseReason.MALFORMED)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end(CloseReason.TRANSPORT_ERROR)

    def _end(self, reason: CloseReason) -> None:
        hearer, self._hearer = self._hearer, None
        behind, self._behind = self._behind, None
        self._inbox = self.parser = None
        if behind is not None and behind is not asyncio.current_task():
            behind.cancel()
        if hearer is not None:
            hearer.ended(self, reason)

    # -- messages out ----------------------------------------------------------------------------------

    def write(self, frame: str | bytes) -> bool:
        """Send a message; whether the peer keeps up. What is over the limit is not written."""
        if self._stalled:
            return False
        beat = HEARTBEATS.get(frame) if len(frame) == 1 else None
        if beat is not None:
            self.send(beat)
            return True
        data, opcode = (to_utf8(frame), _TEXT) if isinstance(frame, str) else (frame, _BINARY)
        deflated = self._deflate_over_bytes is not None and len(data) > self._deflate_over_bytes
        if deflated:
            data = self._deflate(data)
        self.send(encode_header(opcode, len(data), deflated=deflated) + data)
        return True

    def write_framed(self, frame: bytes) -> bool:
        """Send what `framed` returned; as `write`."""
        if not self._stalled:
            self.send(frame)
        return not self._stalled

    @property
    def deflates(self) -> bool:
        """Whether messages may have to be deflated."""
        return self._deflate_over_bytes is not None

    def close(self, code: int | None = None) -> None:
        """Send what waits and a close frame, then close; a peer that does not take it is cut off."""
        self.send(encode_header(_CLOSE, 2) + struct.pack("!H", code or self._code))
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_WAIT_S, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        """Cut the peer off: what waits for it is dropped."""
        self._transport.abort()

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self._head:
            data, self._head = self._head + data, b""
        if not self._transport.is_closing():  # uvloop raises when it is
            self._transport.write(data)

    def _deflate(self, data: bytes) -> bytes:
        """One message on its own: a compressor kept per socket would cost more memory than all the rest."""
        compressor = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=-self._compress)
        return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(SYNC_TAIL)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stalled = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stalled = False

    def pause_reading(self) -> None:
        """Too much waits to be taken."""
        self._reading_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Most of it was taken."""
        self._reading_paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
