"""The world of a chaos test: its machines and devices, and what is done to them.

The same seed makes the same decisions, though not at the same microsecond.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any, Final

from gateway.brokers import LocalBroker
from tests.e2e.chaos import HARMFUL, Box, Dispatcher, Plate, connection
from tests.e2e.chaos_proxied import ProxiedPlate

COMMANDED_EVERY_S: Final = 2.0  # each device, on average
DISTURBED_EVERY_S: Final = 14.0  # the same


AnyPlate = Plate | ProxiedPlate


class World:
    """Everybody, and what was done to them."""

    def __init__(
        self, broker: LocalBroker, boxes: Sequence[Box], service: Dispatcher, plates: Sequence[AnyPlate], seed: str
    ) -> None:
        self.broker = broker
        self.boxes = boxes
        self.service = service
        self.plates = plates
        self.seed = seed
        self.random = random.Random(seed)
        self.broker_kills: list[float] = []
        self.node_kills: list[float] = []
        self.ends: list[tuple[float, str, int]] = []  # of nodes' lives: when they were killed or told to stop
        self.rss_bytes: list[int] = []
        self.restless: Sequence[AnyPlate] = plates
        self.unknown: Sequence[AnyPlate] = plates

    async def command(self) -> None:
        """Send commands at a steady rate."""
        rest_of = self.random.random
        while True:
            serial = self.random.choice(self.plates).serial
            if rest_of() < 0.3:
                self.service.send(serial, "media_stop", {"stop": True}, 0)
            elif rest_of() < 0.15:
                self.service.send(serial, HARMFUL, {"restart": True}, 1)
            else:
                self.service.send(serial, "bind_class", {}, 1, 1 if rest_of() < 0.1 else None)
            await asyncio.sleep(COMMANDED_EVERY_S / len(self.plates))

    async def disturb_devices(self) -> None:
        """Break connections, and let devices roam."""
        while True:
            await asyncio.sleep(DISTURBED_EVERY_S * self.random.uniform(0.3, 1.7) / len(self.plates))
            plate = self.random.choice(self.plates)
            plate.reset() if self.random.random() < 0.5 else plate.hop()

    async def disturb_machines(self, until: float) -> None:
        """One fault after the other, each kind in each round; everything is up again when it returns."""
        while True:
            for fault in self.random.sample(FAULTS, len(FAULTS)):
                await asyncio.sleep(self.random.uniform(1, 3))
                if time.monotonic() >= until:
                    return
                await asyncio.gather(*(work(self) for work in fault))

    async def drain_then_kill(self) -> None:
        """Each node is away once: one was told to stop, the other dies; both are up again when it returns."""
        for box, kill in zip(self.random.sample(self.boxes, 2), (False, True), strict=True):
            await asyncio.sleep(self.random.uniform(3, 4))
            await self._restart(box, kill=kill)
        await asyncio.sleep(self.random.uniform(3, 4))

    async def kill_broker(self) -> None:
        self.broker_kills.append(time.monotonic())
        await self.broker.kill()
        await asyncio.sleep(self.random.uniform(0.2, 2))
        await self.broker.start()

    async def kill_node(self) -> None:
        await self._restart(self.random.choice(self.boxes), kill=True)

    async def stop_node(self) -> None:
        await self._restart(self.random.choice(self.boxes), kill=False)

    async def _restart(self, box: Box, *, kill: bool) -> None:
        now = time.monotonic()
        self.ends.append((now, box.name, box.life))
        if kill:
            self.node_kills.append(now)
        await box.end(kill=kill)
        await asyncio.sleep(self.random.uniform(0, 2))
        await box.start()

    async def weigh(self) -> None:
        """Note how large the larger node is."""
        while True:
            self.rss_bytes.append(max(box.rss_bytes for box in self.boxes))
            await asyncio.sleep(1)

    async def all_at_home(self) -> None:
        """Return when every device is connected."""
        while not all(plate.home for plate in self.plates):
            await self._stir()

    async def rest(self) -> None:
        """Return when every device has acked a last command, which waits for all before it.

        Its event must not repeat: it is emitted when the broker has an outcome of every earlier command of QoS 1. Of
        those of QoS 0 one that was received since it connected has its outcome, too.
        """
        first = len(self.service.commands)
        for plate in self.plates:
            plate.orderly = True
        while True:
            self.restless = [plate for plate in self.plates if not self._rests(plate, first)]
            if not self.restless:
                return
            await self._stir()

    def _rests(self, plate: AnyPlate, first: int) -> bool:
        command = self.service.last.get(plate.serial)
        if command is None or command.id < first or (command.finals and command.finals[0].status != "acked"):
            self.service.send(plate.serial, HARMFUL, {"restart": True}, 1)
            return False
        return bool(command.finals) and not self.service.now_or_never.get((plate.serial, len(plate.stays)))

    async def _stir(self) -> None:
        self.service.stir.clear()
        await self.service.stir.wait()

    async def presences(self) -> None:
        """Return when the retained presence of every device says where it is."""
        seen: dict[str, dict[str, Any]] = {}
        async with connection(self.broker.url, "auditor") as client:
            await client.subscribe("gw/v1/devices/+/presence", qos=1)
            async for message in client.messages:
                seen[str(message.topic).split("/")[3]] = json.loads(bytes(message.payload))
                self.unknown = [plate for plate in self.plates if not _is_where(seen.get(plate.serial), plate)]
                if not self.unknown:
                    return


def _is_where(presence: dict[str, Any] | None, plate: AnyPlate) -> bool:
    if plate.home is None or presence is None:
        return False
    return bool(presence["online"]) and presence["node"] == plate.home.name


FAULTS: Final = (
    (World.kill_broker,),
    (World.kill_node,),
    (World.stop_node,),
    (World.kill_broker, World.kill_node),
    (World.kill_broker, World.stop_node),
)
