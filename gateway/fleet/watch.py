"""What devices say: their events, typed, and a map of who is connected that follows the broker."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import aiomqtt
import msgspec

from gateway.bodies import Presence
from gateway.fleet.connection import Connection
from gateway.topics import BINARY_TYPE, BadName, Topics, decode_level

SETTLE_S: Final = 0.5  # without a retained message; MQTT has no end mark
MAX_CHANGES_QUEUED: Final = 10_000  # of presence, that nobody has read; the map has them all the same

_PRESENCE = msgspec.json.Decoder(Presence)


class DeviceEvent(msgspec.Struct, frozen=True):
    """An event that a device emitted, with its arguments; `question` is an id if it waits for an ack."""

    serial: str
    event: str
    args: tuple[Any, ...] = ()
    question: str | None = None

    @property
    def payload(self) -> Any:
        """The first argument, None if there is none."""
        return self.args[0] if self.args else None


def read_event(topics: Topics, message: aiomqtt.Message) -> DeviceEvent | None:
    """What an event message says; None if it is not one of the gateway's."""
    start = f"{topics.prefix}/devices/"
    levels = message.topic.value.removeprefix(start).split("/")
    body = message.payload if isinstance(message.payload, bytes) else b""
    properties = message.properties
    try:
        match levels:
            case [serial, "events", event, *question] if len(question) <= 1:
                args = _arguments(body, properties)
                return DeviceEvent(serial, decode_level(event), args, decode_level(question[0]) if question else None)
    except (BadName, msgspec.DecodeError):
        pass
    return None


def _arguments(body: bytes, properties: Any) -> tuple[Any, ...]:
    if getattr(properties, "ContentType", None) == BINARY_TYPE:
        return (body,)
    if not body:
        return ()
    decoded = msgspec.json.decode(body)
    several = "args" in dict(getattr(properties, "UserProperty", ())) and isinstance(decoded, list)
    return tuple(decoded) if several else (decoded,)


class PresenceMap(Mapping[str, Presence]):
    """Who is connected, by serial, kept up to date while it is entered; a connection of its own.

    Entering it returns once the broker has sent what it retains. Raises Disconnected.
    """

    def __init__(self, topics: Topics, connect: Callable[[list[str], Callable[[aiomqtt.Message], None]], Connection]):
        self._topics = topics
        self._devices: dict[str, Presence] = {}
        self._changes: asyncio.Queue[str] = asyncio.Queue(MAX_CHANGES_QUEUED)
        self._retained = asyncio.Event()
        self._settled = False
        self._connection = connect([topics.presence("+")], self._receive)

    def __getitem__(self, serial: str) -> Presence:
        return self._devices[serial]

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    def online(self) -> list[str]:
        """The serials of the devices that are connected."""
        return [serial for serial, presence in self._devices.items() if presence.online]

    async def changes(self) -> AsyncIterator[tuple[str, Presence]]:
        """Each change from now on, as serial and presence; to be read by one task, without end."""
        while True:
            serial = await self._changes.get()
            if serial in self._devices:
                yield serial, self._devices[serial]

    async def __aenter__(self) -> Self:
        """Connect, and wait for what the broker retains."""
        await self._connection.__aenter__()
        try:
            while await self._more():
                pass
        except BaseException:
            await self._connection.__aexit__(None, None, None)
            raise
        self._settled = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect; the map stays as it is."""
        await self._connection.__aexit__(kind, error, traceback)

    async def _more(self) -> bool:
        self._retained.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                return await self._retained.wait()
        return False

    def _receive(self, message: aiomqtt.Message) -> None:
        serial = self._topics.presence_of(message.topic.value)
        if serial is None or not isinstance(message.payload, bytes):
            return
        self._retained.set()
        if not message.payload:  # [MQTT-3.3.1-6] no longer retained
            self._devices.pop(serial, None)
            return
        with suppress(msgspec.DecodeError):
            presence = _PRESENCE.decode(message.payload)
            changed = self._devices.get(serial) != presence
            self._devices[serial] = presence
            if changed and self._settled:
                with suppress(asyncio.QueueFull):
                    self._changes.put_nowait(serial)
