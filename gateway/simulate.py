"""A device to try and test the gateway with: a real socket.io connection that follows the device protocol.

It authenticates, acks each event as `device-protocol.zh.md` says, enters and leaves rooms when it is told
to, and connects again for ever. How well it behaves is data.
"""

import asyncio
import base64
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
        tell: called with a line for a person for each change of its state and each event that it gets.
    """

    def __init__(
        self,
        url: str,
        serial: str,
        *,
        key: str = "demo",
        behaviour: Behaviour = Behaviour(),  # noqa: B008  (it is frozen)
        path: str = "/socket/socket.io",
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = url
        self.path = path
        self.serial = serial
        self.signature = base64.b64encode(f"{serial}:{key}".encode()).decode()
        self.behaviour = behaviour
        self.state: State = "connecting"
        self.online = asyncio.Event()  # set while it is authenticated
        self.received: Counter[str] = Counter()  # events that the gateway pushed
        self.tell = tell
        self._told = ""
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
                self.become("connecting")
                went_by_itself = await _Connection(self, http).live()
                await asyncio.sleep(flapping.away_s if flapping and went_by_itself else RECONNECT_S)

    def become(self, state: State, why: Any = None) -> None:
        """Change state; nobody is told of a connection that fails again as it failed before."""
        self.state = state
        told = f"{self.serial}  {state}{f': {why}' if why else ''}"
        if state != "connecting" and told != self._told:
            self._told = told
            self.tell(told)


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
        except SocketIOError as problem:  # not reachable, or lost while it emitted
            self._disconnected(problem)
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
        self._device.tell(" ".join((f"{self._device.serial}  {event}", *map(_shown, args))))
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
        self._device.online.set()
        self._device.become("online")

    def _refused(self, reason: Any = None) -> None:
        self._device.become("refused", reason["error_msg"] if isinstance(reason, dict) else reason)
        self._disconnected()

    def _disconnected(self, reason: Any = None) -> None:
        self._device.online.clear()
        if not self._gone.is_set() and self._device.state != "refused":
            self._device.become("away", reason)
        self._gone.set()


async def simulate(devices: Iterable[SimulatedDevice]) -> None:
    """Let devices live until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        lives = [group.create_task(device.run(), name=f"device {device.serial}") for device in devices]
        await stop.wait()
        for life in lives:
            life.cancel()


def _shown(argument: Any) -> str:
    return msgspec.json.encode(argument).decode()
