"""A class plate as cheap as it gets: Engine.IO 4 on a WebSocket, its frames written by hand.

It authenticates, acks every command, answers pings and joins rooms. Everything else it counts.
"""

import asyncio
import base64
import os
import struct
from typing import Final, cast

from tests.bench.tally import Tally

ACK: Final = b'[{"ack":true}]'
ROOM_EVENT: Final = b'42["memos_update"'
_TEXT, _CLOSE, _FIN = 0x1, 0x8, 0x80


def frame(text: bytes) -> bytes:
    """A text message of a client (RFC 6455 5.2). The mask is of zeros, which is one, and costs the server the same."""
    size = len(text)
    if size < 126:
        return bytes((_FIN | _TEXT, 0x80 | size, 0, 0, 0, 0)) + text
    return struct.pack("!BBHI", _FIN | _TEXT, 0x80 | 126, size, 0) + text


def frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole messages at the beginning of what a server sent, and the rest."""
    found, at, end = [], 0, len(data)
    while end - at >= 2:
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[start : start + 2]), start + 2
        elif size == 127:
            size, start = int.from_bytes(data[start : start + 8]), start + 8
        if start + size > end:
            break
        if data[at] & 0x0F != _CLOSE:
            found.append(data[start : start + size])
        at = start + size
    return found, data[at:]


class Plate(asyncio.Protocol):
    """One device; `ready` is done when it is authenticated, `joined` when it is in its room."""

    def __init__(self, serial: str, tally: Tally, event: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.serial = serial
        self.ready: asyncio.Future[None] = loop.create_future()
        self.joined: asyncio.Future[None] = loop.create_future()
        self._tally = tally
        self._event = frame(b'42["report",' + event + b"]")
        self._rest = b""
        self._upgraded = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            "GET /socket/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.gone()
        for waiting in (self.ready, self.joined):
            if not waiting.done():
                waiting.cancel()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self._upgraded:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded = True
        messages, self._rest = frames(data)
        answers = [answer for message in messages if (answer := self._answer(message))]
        if answers:
            self._transport.write(b"".join(answers))

    def _answer(self, message: bytes) -> bytes:
        """What is written back: commands first, for they are what is measured."""
        if message.startswith(b"42"):
            ack_id = message[2 : message.index(b"[")]
            if ack_id:
                return frame(b"43" + ack_id + ACK)
            self._told(message)
        elif message == b"2":
            self._tally.heartbeats += 1
            return frame(b"3")
        elif message.startswith(b"40"):
            signature = base64.b64encode(f"{self.serial}:key".encode()).decode()
            return frame(f'42["authentication",{{"signature":"{signature}"}}]'.encode())
        elif message.startswith(b"0"):
            return frame(b"40")
        return b""

    def _told(self, message: bytes) -> None:
        if message.startswith(ROOM_EVENT):
            self._tally.room_event()
        elif message == b'42["auth:ok"]':
            self.ready.set_result(None)
        elif message == b'42["join_room:ok"]':
            self.joined.set_result(None)
        else:
            self._transport.abort()

    def emit(self) -> None:
        """Emit an event that the bridge is to publish."""
        self._transport.write(self._event)

    def join(self, room: str) -> None:
        """Ask to be let into a room."""
        self._transport.write(frame(f'42["join_room",{{"room":"{room}"}}]'.encode()))

    def close(self) -> None:
        """Be gone."""
        self._transport.abort()
