"""The transports of one simulated connection, on aiohttp: polling, WebSocket, and the upgrade from one to the other.

Does what socket.io-client does with a `Wire`, and nothing that a device decides.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from math import inf
from typing import Any, Final

import aiohttp

from gateway.engine.codec import (
    EIO3,
    EIO4,
    PING,
    PONG,
    UPGRADE,
    Malformed,
    Packet,
    decode_frame,
    decode_payload,
    encode_frame,
    encode_payload,
)
from gateway.simulate.profiles import Behaviour, Transport
from gateway.simulate.wire import Ended, Fact, Over, Wire

CONNECT_TIMEOUT_S: Final = 20.0  # socket.io-client's `timeout`; also of an upgrade
GOODBYE_S: Final = 2.0
OCTETS: Final = "application/octet-stream"

_TROUBLE: Final = (aiohttp.ClientError, OSError, Malformed)


class Connection:
    """One connection: `live()` makes it, and returns why it is over.

    Args:
        http: a session without limits, shared by all devices.
        url: the path of socket.io, with a slash at the end.
        behaviour: which client it plays.
        told: called with each fact; it may use `wire`, what that leaves is written afterwards.
    """

    __slots__ = (
        "_ended",
        "_headers",
        "_http",
        "_loop",
        "_paused",
        "_tasks",
        "_timer",
        "_told",
        "_transports",
        "_until",
        "_upgraded",
        "_url",
        "_writing",
        "_ws",
        "generation",
        "wire",
    )

    def __init__(
        self, http: aiohttp.ClientSession, url: str, behaviour: Behaviour, told: Callable[[Fact], None]
    ) -> None:
        self.generation = EIO3 if behaviour.engine == 3 else EIO4
        self.wire = Wire(self.generation)
        self._http = http
        self._url = url
        self._transports = behaviour.transports
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._headers: dict[str, str] = {}  # the cookie of a balancer that keeps a session on one node
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._upgraded: aiohttp.ClientWebSocketResponse | None = None  # it takes over when polling has paused
        self._paused = False  # polling waits for the upgrade
        self._writing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._until = asyncio.timeout(CONNECT_TIMEOUT_S)
        self._ended: Ended | None = None

    @property
    def transport(self) -> Transport:
        """What carries it now."""
        return "polling" if self._ws is None else "websocket"

    async def live(self) -> Ended:
        """Connect, and stay until it is over. Raises nothing but CancelledError."""
        try:
            async with self._until:
                await (self._poll() if self._transports[0] == "polling" else self._connect_websocket())
                self.end("transport-close")
        except TimeoutError:  # of connecting, or by `end`
            self._ended = self._ended or "connect-timeout"
        except aiohttp.WSServerHandshakeError as error:
            self._ended = self._ended or _refusal(error.status)
        except _TROUBLE:
            self._ended = self._ended or ("transport-close" if self.wire.sid else "unreachable")
        finally:
            self._ended = self._ended or "left"
            await self._close()
        return self._ended

    def end(self, reason: Ended) -> None:
        """Have it over: `dropped` cuts the socket, `left` says goodbye first."""
        if self._ended is not None:
            return
        self._ended = reason
        if reason == "left" and self.wire.sid:
            self._paused = False  # what the upgrade holds up goes out by polling
            self.wire.leave()
            self._end_within(GOODBYE_S)
            self.flush()
        else:
            self._end_within(0.0)

    def flush(self) -> None:
        """Have written what waits, by a task if none does so."""
        if not self._writing and self._ended in (None, "left"):
            self._writing = True
            self._start(self._write())

    # -- transports ------------------------------------------------------------------------------------

    async def _connect_websocket(self) -> None:
        await self._ride(await self._http.ws_connect(self._at("websocket"), headers=self._headers))

    async def _ride(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Let a WebSocket carry the session until it closes."""
        self._ws, self._paused = ws, False
        self.flush()
        while (message := await ws.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            self._receive([decode_frame(self.generation, message.data)])
            if not self._writing and self._ended is None:
                self._writing = True
                await self._write()  # an ack needs no task of its own

    async def _poll(self) -> None:
        """Poll until it is over, or a WebSocket takes over."""
        probing = "websocket" not in self._transports
        while self._ended is None and not self._paused:
            self._receive(await self._get())
            self.flush()
            if not probing and self.wire.may_upgrade:
                probing = True
                self._start(self._upgrade())
        ws = self._upgraded
        if ws is not None and self._ended is None:
            while self._writing:  # the last POST must be answered before
                await asyncio.wait(self._tasks)
            await ws.send_str(UPGRADE)
            await self._ride(ws)

    async def _get(self) -> list[Packet]:
        async with self._http.get(self._at("polling"), headers=self._headers) as response:
            body = await response.read()
            if response.status != 200:
                self.end("transport-close" if self.wire.sid else _refusal(response.status))
                return []
            if not self.wire.sid and response.cookies:
                self._headers["Cookie"] = "; ".join(f"{name}={it.value}" for name, it in response.cookies.items())
            return decode_payload(self.generation, body, binary=response.content_type == OCTETS)

    async def _upgrade(self) -> None:
        """Probe a WebSocket beside the polls; when it answers, have the polls pause. Else polling goes on."""
        ws = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                ws = await self._http.ws_connect(self._at("websocket"), headers=self._headers)
                await ws.send_str(f"{PING}probe")
                answer = await ws.receive()
            if answer.data == f"{PONG}probe":
                self._upgraded, self._paused = ws, True
        except (*_TROUBLE, TimeoutError):
            pass
        finally:
            if ws is not None and self._upgraded is None:
                await ws.close()

    async def _write(self) -> None:
        """Write what waits, until nothing does."""
        try:
            while not self._paused and (packets := self.wire.take()):
                if self._ws is None:
                    await self._post(packets)
                    continue
                for packet in packets:
                    await self._send(self._ws, encode_frame(self.generation, packet))
        except _TROUBLE:
            self.end("transport-close")
        finally:
            self._writing = False
            if self._ended == "left":
                self._end_within(0.0)

    async def _send(self, ws: aiohttp.ClientWebSocketResponse, frame: str | bytes) -> None:
        await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))

    async def _post(self, packets: list[Packet]) -> None:
        body = encode_payload(self.generation, packets)
        kind, data = ("text/plain; charset=UTF-8", body.encode()) if isinstance(body, str) else (OCTETS, body)
        headers = {**self._headers, "Content-Type": kind}
        async with self._http.post(self._at("polling"), data=data, headers=headers) as response:
            await response.read()
            if response.status != 200:
                self.end("transport-close")

    def _at(self, transport: str) -> str:
        sid = f"&sid={self.wire.sid}" if self.wire.sid else ""
        return f"{self._url}?EIO={self.generation.revision}&transport={transport}{sid}"

    # -- the session -----------------------------------------------------------------------------------

    def _receive(self, packets: Iterable[Packet]) -> None:
        was_open = bool(self.wire.sid)
        for packet in packets:
            self._tell(self.wire.receive(packet, self._loop.time()))
        if not was_open and self.wire.sid and self._ended is None:
            self._until.reschedule(None)
            self._arm()

    def _tell(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, Over):
                self.end(fact.reason)
            else:
                self._told(fact)

    def _arm(self) -> None:
        """Wake at the deadline of the wire; one that moved on only looks again."""
        if self.wire.deadline < inf and self._ended is None:
            self._timer = self._loop.call_at(self.wire.deadline, self._tick)

    def _tick(self) -> None:
        self._tell(self.wire.tick(self._loop.time()))
        self.flush()
        self._arm()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_within(self, seconds: float) -> None:
        with suppress(RuntimeError):  # it has timed out already, or is not entered any more
            self._until.reschedule(self._loop.time() + seconds)

    async def _close(self) -> None:
        """Close the sockets, and wait for every task."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ended == "dropped":
            self._cut()
        elif self._ended == "left" and self._writing and self._tasks:
            await asyncio.wait(self._tasks, timeout=GOODBYE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ws in {self._ws, self._upgraded} - {None}:
            assert ws is not None
            await ws.close()

    def _cut(self) -> None:
        """Shut the TCP connection down, as a network does that is gone. One that polls just stops."""
        sock = None if self._ws is None else self._ws.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)


def _refusal(status: int) -> Ended:
    return "busy" if status == 503 else "refused"
