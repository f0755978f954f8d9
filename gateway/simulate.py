"""A device to try and test the gateway with: a real socket.io connection that follows the device protocol.

It authenticates, acks each event as `device-protocol.zh.md` says, enters and leaves rooms when it is told
to, and connects again for ever. How well it behaves is data.
"""

import asyncio
import base64
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self

import aiohttp
import msgspec
import socketio
from socketio.exceptions import SocketIOError

State = Literal["connecting", "online", "away", "refused"]

ACK: Final = {"ack": True}
ACKS: Final[Mapping[str, Any]] = {
    "device_status": {"ack": True, "status": "on"},
    "face_data_count": {"ack": True, "count": 56},
}
"""What an event is acked with that asks for data; every other event gets ACK."""

CONNECT_TIMEOUT_S: Final = 10.0
RECONNECT_S: Final = 1.0  # after a connection that could not be made, was refused or was lost


class Flapping(msgspec.Struct, frozen=True):
    """Goes away after `online_s`, and comes back after `away_s`, again and again."""

    online_s: float
    away_s: float


class Report(msgspec.Struct, frozen=True):
    """An event that the device emits every `every_s` while it is online."""

    event: str
    payload: Any
    every_s: float


class Behaviour(msgspec.Struct, frozen=True):
    """How a device behaves; the default acks at once and stays."""

    ack_delay_s: float = 0.0
    flapping: Flapping | None = None
    report: Report | None = None
    transports: tuple[str, ...] = ("websocket",)  # or ("polling", "websocket"), as browsers do


class SimulatedDevice:
    """One device. `async with` connects it and waits until it is authenticated; `run` is its whole life.

    Args:
        url: the gateway, as `http://HOST:PORT`.
        serial: who it is; with `key` it makes the signature.
        path: the URL path of socket.io.
    """

    def __init__(
        self,
        url: str,
        serial: str,
        *,
        key: str = "demo",
        behaviour: Behaviour = Behaviour(),  # noqa: B008  (it is frozen)
        path: str = "/socket/socket.io",
    ) -> None:
        self.url = url
        self.path = path
        self.serial = serial
        self.signature = base64.b64encode(f"{serial}:{key}".encode()).decode()
        self.behaviour = behaviour
        self.state: State = "connecting"
        self.online = asyncio.Event()  # set while it is authenticated
        self.received: Counter[str] = Counter()  # events that the gateway pushed
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start a task that lives, and return once authenticated; a device that is refused tries for ever."""
        self._life = asyncio.create_task(self.run(), name=f"device {self.serial}")
        try:
            await self.online.wait()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect, and end the task."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life

    async def run(self) -> None:
        """Connect, behave, and connect again, until cancelled."""
        flapping = self.behaviour.flapping
        async with aiohttp.ClientSession() as http:
            while True:
                self.state = "connecting"
                went_by_itself = await _Connection(self, http).live()
                await asyncio.sleep(flapping.away_s if flapping and went_by_itself else RECONNECT_S)


class _Connection:
    """One socket.io connection of a device, from the handshake to the last ack."""

    def __init__(self, device: SimulatedDevice, http: aiohttp.ClientSession) -> None:
        self._device = device
        self._behaviour = device.behaviour
        self._gone = asyncio.Event()
        self._answering: set[asyncio.Task[Any]] = set()
        # It connects once: what happens after that is the device's to decide, and so are signals.
        self._sio = socketio.AsyncClient(reconnection=False, handle_sigint=False, http_session=http)
        self._sio.on("auth:ok", self._accepted)
        self._sio.on("auth:fail", self._refused)
        self._sio.on("disconnect", self._disconnected)
        self._sio.on("*", self._answer)

    async def live(self) -> bool:
        """Connect, authenticate and stay; return whether it was the device that left."""
        flapping = self._behaviour.flapping
        try:
            await self._connect()
            async with asyncio.timeout(flapping.online_s if flapping else None):
                await self._stay()
        except SocketIOError:  # not reachable, or lost while it emitted
            return False
        except TimeoutError:
            return True
        finally:
            await self._close()
        return False

    async def _connect(self) -> None:
        await self._sio.connect(
            self._device.url,
            transports=list(self._behaviour.transports),
            socketio_path=self._device.path,
            wait_timeout=CONNECT_TIMEOUT_S,
        )
        await self._sio.emit("authentication", {"signature": self._device.signature})

    async def _stay(self) -> None:
        """Report now and then, until the connection is gone."""
        report = self._behaviour.report
        while not await self._gone_within(report.every_s if report else None):
            if report and self._device.online.is_set():
                await self._sio.emit(report.event, report.payload)

    async def _close(self) -> None:
        """Disconnect, and wait for every task of this connection."""
        self._disconnected()
        await self._sio.disconnect()
        await self._sio.eio.wait()
        await asyncio.gather(*self._answering)

    async def _answer(self, event: str, *args: Any) -> Any:
        """Do what the event says, and return the ack that it is owed, late if the device is slow."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        self._device.received[event] += 1
        if self._behaviour.ack_delay_s:
            await self._gone_within(self._behaviour.ack_delay_s)
        with suppress(SocketIOError):  # the connection is gone
            await self._obey(event, *args)
        return ACKS.get(event, ACK)

    async def _obey(self, event: str, *args: Any) -> None:
        """Remote debugging, as the document says: enter and leave the room, and report a result."""
        match event, args:
            case "enable_remote_cmd", [{"room": str(room)}]:
                await self._sio.emit("join_room", {"room": room})
            case "disable_remote_cmd", [{"room": str(room)}]:
                await self._sio.emit("leave_room", {"room": room})
            case "remote_cmd", _:
                await self._sio.emit("cmd_result", {"result": "ok"})

    async def _gone_within(self, seconds: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        return self._gone.is_set()

    def _accepted(self) -> None:
        self._device.state = "online"
        self._device.online.set()

    def _refused(self, reason: Any = None) -> None:
        self._disconnected(reason)
        self._device.state = "refused"

    def _disconnected(self, reason: Any = None) -> None:
        if self._device.state != "refused":
            self._device.state = "away"
        self._device.online.clear()
        self._gone.set()
