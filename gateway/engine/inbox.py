"""Where aiohttp's parser puts the messages of a WebSocket; its base class is compiled, so this cannot be."""

import asyncio
from typing import Any, Final, Protocol

from aiohttp._websocket.reader import WebSocketDataQueue  # the parser takes no other sink

KEPT_BYTES: Final = 65_536  # of messages that wait, before the peer is not read


class Taker(Protocol):
    """Who takes the messages."""

    def take(self, message: Any) -> bool:
        """A message was parsed; False if it has to be kept."""

    def fail(self, error: BaseException) -> None:
        """What came is no WebSocket frame."""


class Inbox(WebSocketDataQueue):
    """Where the parser puts messages: handed over at once, or kept for the task that catches up."""

    __slots__ = ("socket",)

    def __init__(self, socket: Taker, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(socket, KEPT_BYTES, loop=loop)  # type: ignore[arg-type]  # it asks for reading to be paused
        self.socket = socket

    @property
    def waits(self) -> bool:
        """Whether a message does."""
        return bool(self._buffer)

    def feed_data(self, data: Any, size: int) -> None:
        """A message was parsed."""
        if not self.socket.take(data):
            super().feed_data(data, size)

    def feed_eof(self) -> None:
        """aiohttp's own connection is over, not this."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """What came is no WebSocket frame."""
        self.socket.fail(exc)
