"""A fleet of devices in this process, as class plates or as MQTT devices."""

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from tests.bench.broker_peer import PREFIX, MqttPlate, Service
from tests.bench.contenders import Running, Timers
from tests.bench.plate import Plate
from tests.bench.tally import Tally

CONCURRENCY: Final = 50  # devices that connect at a time
ROOM: Final = "bp_student_1"
# What a school's server says of a class: 200 bytes, an event of the catalogue, emitted at once.
COMMAND: Final = "bind_class"
PAYLOAD: Final = b'{"id":1,"name":"Class 1","note":"%s"}' % (b"x" * 165)
EVENTS_FILTER: Final = f"{PREFIX}/devices/+/events/+"


def serial(number: int) -> str:
    """The serial of a device."""
    return f"bench-{number:05}"


def number(topic: str) -> int:
    """The device whose event came on this topic."""
    start = len(f"{PREFIX}/devices/bench-")
    return int(topic[start : start + 5])


class Fleet:
    """Devices that are connected; `open_one` makes one."""

    def __init__(self, running: Running, timers: Timers) -> None:
        self.devices: list[Plate | MqttPlate] = []
        self.tally = Tally()
        self._running = running
        self._make: Callable[[int], Plate | MqttPlate]
        if running.pid is None:
            self._make = lambda n: MqttPlate(serial(n), self.tally, PAYLOAD, timers.ping_interval_s)
        else:
            self._make = lambda n: Plate(serial(n), self.tally, PAYLOAD)

    def __len__(self) -> int:
        return len(self.devices)

    async def connect(self, upto: int) -> None:
        """Connect and authenticate until there are so many; a few at a time."""
        waiting = iter(range(len(self.devices), upto))

        async def some() -> None:
            for n in waiting:
                device = self._make(n)
                await asyncio.get_running_loop().create_connection(lambda d=device: d, "127.0.0.1", self._running.port)  # type: ignore[misc]
                self.devices.append(device)
                await device.ready

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(some())
        self.devices.sort(key=lambda device: device.serial)

    async def join(self) -> None:
        """Bring all devices into the room."""
        for device in self.devices:
            device.join(ROOM)
        for device in self.devices:
            await device.joined

    def close(self) -> None:
        """Let all devices go."""
        self.tally.closing = True
        for device in self.devices:
            device.close()


async def connect_service(broker_url: str) -> Service:
    """The service, connected to the broker."""
    service = Service(EVENTS_FILTER)
    await asyncio.get_running_loop().create_connection(lambda: service, "127.0.0.1", urlsplit(broker_url).port or 1883)
    await service.ready
    return service
