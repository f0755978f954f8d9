"""One transport to the broker: it proves itself by its CONNACK, then serves its link until it is detached."""

import asyncio
import ssl
from contextlib import suppress
from typing import Any, Protocol, cast

import mqtt5

from gateway.addresses import BrokerUrl
from gateway.mqtt.values import FAILURE, Opened, Refused, Unavailable, Verdict
from gateway.mqtt.wire import Malformed, read_connack

DETACHED = Unavailable("closed")


class ConnectionOwner(Protocol):
    """The link of a connection; called in order, and never after `detach()` or `drop()`."""

    def promote(self, connection: "Connection", connack: mqtt5.ConnAckPacket, rest: bytes) -> None:
        """The broker accepted it; `rest` came with the CONNACK."""

    def received(self, connection: "Connection", data: bytes) -> None:
        """Bytes came after the CONNACK."""

    def cut(self, connection: "Connection", reason: str) -> None:
        """It was lost after the CONNACK."""

    def flush(self) -> None:
        """It can be written to again."""


class Connection(asyncio.Protocol):
    """One transport to the broker: it proves itself, then serves as the current one until it is detached."""

    __slots__ = ("_answer", "_closed", "_link", "_verdict", "expired", "paused", "transport")

    def __init__(self, link: ConnectionOwner, verdict: "asyncio.Future[Verdict]") -> None:
        self._link: ConnectionOwner | None = link
        self._answer = b""
        self._verdict: asyncio.Future[Verdict] | None = verdict  # None once decided
        self._closed: asyncio.Future[None] | None = None  # somebody waits for the end
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.expired = False  # the attempt was cancelled because it was late

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`; the loop has set TCP_NODELAY."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._link is None:
            return
        if self._verdict is None:
            self._link.received(self, data)
            return
        self._answer += data
        try:
            answer = read_connack(self._answer)
        except Malformed as error:
            self.detach(Unavailable(str(error)))
        else:
            if answer is not None:
                self._prove(self._link, *answer)

    def _prove(self, link: ConnectionOwner, connack: mqtt5.ConnAckPacket, size: int) -> None:
        """Be refused or promoted, as the CONNACK says."""
        code, rest, self._answer = connack.reason_code, self._answer[size:], b""
        if code.value >= FAILURE:
            self.detach(Refused(code.value, connack.reason_str or code.name))
            return
        self._decide(Opened(connack.session_present))
        link.promote(self, connack, rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        link, self._link, reason = self._link, None, str(exc or "closed by the broker")
        if self._closed is not None:
            self._closed.set_result(None)
        if self._verdict is not None:
            self._decide(Unavailable(reason))
        elif link is not None:
            link.cut(self, reason)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.paused = False
        if self._link is not None:
            self._link.flush()

    @property
    def ready(self) -> asyncio.Transport | None:
        """The transport, if bytes given to it leave soon; uvloop raises on a closed one."""
        transport = self.transport
        return None if transport is None or self.paused or transport.is_closing() else transport

    def write(self, data: bytes) -> None:
        """Write, if the transport still can."""
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def finish(self, data: bytes) -> None:
        """Write the last bytes and let the broker close: one that closes first loses what it has not read."""
        self._closed = asyncio.get_running_loop().create_future()
        self.write(data)
        if self.transport is not None and not self.transport.is_closing() and self.transport.can_write_eof():
            with suppress(OSError):  # it was reset, and the loop has not told yet
                self.transport.write_eof()

    async def finished(self, timeout_s: float) -> None:
        """Wait until the broker has closed after `finish()`, then cut if it has not; at once without `finish()`."""
        try:
            if self._closed is not None:
                await asyncio.wait({self._closed}, timeout=timeout_s)
        finally:
            self.detach()

    def detach(self, verdict: Verdict = DETACHED) -> None:
        """Cut the transport at once; no callback has an effect from here on."""
        self._link = None
        self._decide(verdict)
        if self.transport is not None:
            self.transport.abort()

    def drop(self) -> None:
        """Close after all that was written has left; no callback has an effect from here on."""
        self._link = None
        if self.transport is not None:
            self.transport.close()

    def expire(self, attempt: "asyncio.Task[Any] | None") -> None:
        """End a connection that has not proved itself in time; the attempt, too, where it is not even connected."""
        if self._verdict is not None:
            self.detach(Unavailable("no answer in time"))
            if self.transport is None and attempt is not None:
                self.expired = True
                attempt.cancel()

    def _decide(self, verdict: Verdict) -> None:
        decided, self._verdict = self._verdict, None
        if decided is not None and not decided.done():  # the attempt may have been cancelled
            decided.set_result(verdict)


async def connect_transport(address: BrokerUrl, tls: ssl.SSLContext | None, connection: Connection) -> None:
    """Connect to the broker over TCP, TLS or a unix socket. Raises OSError."""
    loop = asyncio.get_running_loop()
    if address.unix_path:
        await loop.create_unix_connection(lambda: connection, address.unix_path)
    else:
        await loop.create_connection(lambda: connection, address.host, address.port, ssl=tls)
