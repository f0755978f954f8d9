"""Many simulated devices in one process: what they share, when each connects first, and how they all leave."""

import asyncio
import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from types import TracebackType
from typing import Final, Self

import aiohttp

from gateway.simulate.device import SimulatedDevice, World
from gateway.simulate.profiles import Backoff, Behaviour
from gateway.simulate.tally import Summary, Tally

PATH: Final = "/socket/socket.io"
LEAVE_S: Final = 10.0  # for all goodbyes together


class SimulatedFleet:
    """Devices that live while it is entered.

    Entering it returns at once; `online()` waits for them.

    Args:
        url: the gateway, as `http://HOST:PORT`.
        devices: who they are; each may be in one fleet.
        path: the URL path of socket.io.
        connects_per_s: how many connect for the first time in a second, None: all at once.
        seed: of everything that is random.
        backoff: when to connect again.
        tls: how an `https` gateway is verified, None: by the system's authorities.
        tell: called with a line for a person for each change of a state and each event; slow, for few devices.
    """

    def __init__(
        self,
        url: str,
        devices: Sequence[SimulatedDevice],
        *,
        path: str = PATH,
        connects_per_s: float | None = None,
        seed: int | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008  (it is frozen)
        tls: ssl.SSLContext | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.devices = devices
        self.tally = Tally(len(devices))
        self._url = f"{url.rstrip('/')}{path.rstrip('/')}/"
        self._connects_per_s = connects_per_s
        self._random = random.Random(seed)  # noqa: S311  (of behaviour, not of secrets)
        self._backoff = backoff
        self._tls = tls
        self._tell = tell
        self._all_online = asyncio.Event()
        self._lives: list[asyncio.Task[None]] = []
        self._life: asyncio.Task[None]

    @property
    def life(self) -> asyncio.Task[None]:
        """Ends only when a device failed in a way that it must not, with its exception."""
        return self._life

    async def __aenter__(self) -> Self:
        """Begin to connect them."""
        self._life = asyncio.create_task(self._live(), name="simulated fleet")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let every device say goodbye, and end."""
        for device in self.devices:
            device.leave()
        leaving = [life for device, life in zip(self.devices, self._lives, strict=False) if device.connected]
        try:
            if leaving and not self._life.done():
                await asyncio.wait(leaving, timeout=LEAVE_S)
        finally:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life

    async def online(self) -> None:
        """Wait until every device is authenticated, all at the same time. Raises what `life` ends with."""
        waiting = asyncio.create_task(self._all_online.wait())
        try:
            await asyncio.wait({waiting, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if self._life.done():
                self._life.result()
        finally:
            waiting.cancel()

    def drop(self) -> None:
        """Cut every connection at once: they all come back, as after a fault of the network."""
        for device in self.devices:
            device.drop()

    def summary(self) -> Summary:
        """What became of them, and how they are connected now."""
        return self.tally.summary(Counter(filter(None, (device.client for device in self.devices))))

    async def _live(self) -> None:
        """Start one life after the other, at the pace that is wanted, and let them go on."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        async with (
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            world = World(http, self._url, self.tally, self._random, self._backoff, self._tell, self._changed)
            for number, device in enumerate(self.devices):
                if self._connects_per_s is not None:
                    await asyncio.sleep(began + number / self._connects_per_s - loop.time())
                self._lives.append(group.create_task(device.run(world), name=f"device {device.serial}"))

    def _changed(self) -> None:
        if self.tally.online == len(self.devices):
            self._all_online.set()
        else:
            self._all_online.clear()


def cast(serials: Sequence[str], profile: Sequence[Behaviour], key: Callable[[str], str]) -> list[SimulatedDevice]:
    """A device for each serial; they take the behaviours of the profile in turn."""
    pairs = zip(serials, cycle(profile), strict=False)
    return [SimulatedDevice(serial, key=key(serial), behaviour=behaviour) for serial, behaviour in pairs]
