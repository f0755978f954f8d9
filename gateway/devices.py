"""The devices of this node: who has a link here, and how a socket becomes one of them."""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Final

from gateway.auth.base import Authenticator, DeviceKey, Verdict
from gateway.auth.broker import BrokerAuthenticator
from gateway.bodies import Presence
from gateway.device import Device
from gateway.engine.effects import CloseReason
from gateway.mqtt.values import Credentials
from gateway.surroundings import Surroundings

log = logging.getLogger(__name__)

FLAP_MOVES: Final = 3  # moves within the window that are no roaming any more
FLAP_WINDOW_S: Final = 60.0
FLAP_WAIT_MAX_S: Final = 30.0
FLAPS_REMEMBERED: Final = 1024
ADOPT_PAUSE_S: Final = 0.002  # 500 links a second: a broker that starts has more to do
HEARD_WITHIN_S: Final = 0.5  # a presence that the broker had before it had our CONNECT; the other asks in 1 to 2 s
DRAIN_PAUSE_S: Final = 0.005  # at most 200 devices a second look for another node


class Devices:
    """Every device whose link is on this node; admits sockets as devices.

    Args:
        authenticator: checks keys before a link is opened; None where the broker does, by the link's CONNECT.
        credentials: the gateway's own, for links of devices that an authenticator has checked.
        max_devices: how many links there may be.
    """

    def __init__(
        self, around: Surroundings, authenticator: Authenticator | None, credentials: Credentials, max_devices: int
    ) -> None:
        self._around = around
        self._max_devices = max_devices
        self._authenticator = authenticator
        self._credentials = credentials
        self._devices: dict[str, Device] = {}
        self._flaps = Flaps()
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(tuple(self._devices.values()))

    async def admit(self, claim: DeviceKey, accepted: Callable[[], None], welcome: Callable[[Device], None]) -> Verdict:
        """Check a claim, open the device's link, and welcome the one who made the claim.

        While nobody can say whether the key is right, or the broker is away, it waits: a device is not told that its
        key is wrong. So the verdict is never UNAVAILABLE.

        Args:
            accepted: called when the key is known to be right, though the broker may still be waited for.
            welcome: called with the device when commands reach it; is to attach a socket.
        """
        if delay_s := self._flaps.delay_s(claim.serial, asyncio.get_running_loop().time()):
            await asyncio.sleep(delay_s)
        checker = self._authenticator
        if checker is not None:
            verdict = await self._ask(checker, claim)
            if verdict is not Verdict.ACCEPTED:
                return verdict
        if claim.serial not in self._devices and self.full:
            return Verdict.FULL
        if self._around.node_link.displaced:
            return Verdict.MOVED
        device = self._claimed(claim)  # at once: whoever is revoked from here on is found
        try:
            if checker is None:
                verdict = await self._ask(BrokerAuthenticator(device), claim)
                if verdict is not Verdict.ACCEPTED:
                    return verdict
            accepted()
            device.open()
            if not await device.ready():
                return Verdict.MOVED
            if device.online:
                self._count_move(claim.serial)
            welcome(device)
            return Verdict.ACCEPTED
        finally:
            self._unclaimed(device)

    def revoke(self, serials: Iterable[str]) -> None:
        """Disconnect the devices whose key is no good any more, and drop their links; the broker keeps the sessions."""
        for serial in serials:
            device = self._devices.pop(serial, None)
            if device is not None:
                log.info("device revoked", extra={"serial": serial})
                self._let_go(device.drain(0.0, CloseReason.REVOKED), serial)

    @property
    def full(self) -> bool:
        """Whether there is no place for another device."""
        return len(self._devices) >= self._max_devices

    @property
    def adopts(self) -> bool:
        """Whether links can be opened for devices that are away: not where only they have the keys."""
        return self._authenticator is not None

    async def adopt(self, orphans: dict[str, Presence]) -> None:
        """Park the links of devices that an earlier life of this node had, paced; of none whose key is gone.

        Args:
            orphans: by serial; those that come to another node meanwhile are removed from it.
        """
        loop = asyncio.get_running_loop()
        for serial in tuple(orphans):
            presence = orphans.get(serial)
            known = self._authenticator is not None and self._authenticator.knows(serial)
            if presence is not None and known and serial not in self._devices and not self.full:
                device = self._devices[serial] = Device(serial, self._credentials, self._around, self._forget)
                device.adopt()
                loop.call_later(HEARD_WITHIN_S, self._adopted, device, orphans)
                await asyncio.sleep(ADOPT_PAUSE_S)
        await asyncio.sleep(HEARD_WITHIN_S)

    def _adopted(self, device: Device, orphans: dict[str, Presence]) -> None:
        """Say that a device is here, or let it go in silence if it had come to another node before its link was opened.

        That has cut the other's link, whose node has the device again when it sees that nobody else speaks for it.
        """
        presence = orphans.get(device.serial)
        if device.link is None or not device.silent:
            return
        if presence is not None:
            device.adopted(presence)
        else:
            log.info("not adopted: another node has it", extra={"serial": device.serial})
            self._forget(device)

    async def drain(self, drain_s: float) -> None:
        """Let every device go, spread over time, each when its acks are in; the broker keeps the sessions."""
        loop = asyncio.get_running_loop()
        until = loop.time() + drain_s
        devices = tuple(self)
        pause_s = min(drain_s / (len(devices) or 1), DRAIN_PAUSE_S)
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(device.drain(until), name=f"drain-{device.serial}")
                await asyncio.sleep(pause_s)
        await asyncio.gather(*self._closing)
        self._devices.clear()

    def _claimed(self, claim: DeviceKey) -> Device:
        """Have a device to admit to, until `_unclaimed`."""
        device = self._devices.get(claim.serial)
        if device is None:
            credentials = self._credentials
            if self._authenticator is None:
                credentials = Credentials(claim.serial, claim.key.encode())
            device = self._devices[claim.serial] = Device(claim.serial, credentials, self._around, self._forget)
        device.claims += 1
        return device

    def _unclaimed(self, device: Device) -> None:
        """Forget a device that nothing came of with its last claim."""
        device.claims -= 1
        if not device.claims and not device.used:
            self._forget(device)

    async def _ask(self, checker: Authenticator, claim: DeviceKey) -> Verdict:
        """Ask until there is an answer; who gives up cancels it."""
        failures = 0
        while (verdict := await checker.check(claim)) is Verdict.UNAVAILABLE:
            await asyncio.sleep(self._around.links.backoff.delay_s(failures, random.uniform))
            failures += 1
        return verdict

    def _forget(self, device: Device) -> None:
        """Drop a device that moved or was away for too long, unless another has its place."""
        if device.link is None:
            self._count_move(device.serial)
        if self._devices.get(device.serial) is device:
            del self._devices[device.serial]
        self._let_go(device.close(), device.serial)

    def _count_move(self, serial: str) -> None:
        """A device went from one socket that lives to another, here or elsewhere."""
        moves = self._flaps.moved(serial, asyncio.get_running_loop().time())
        if moves >= FLAP_MOVES:
            self._around.metrics.sockets.flaps.n += 1
            log.warning("device flaps", extra={"serial": serial, "moves": moves})

    def _let_go(self, closing: Coroutine[None, None, None], serial: str) -> None:
        task = asyncio.create_task(closing, name=f"close-{serial}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class Flaps:
    """Devices that go back and forth between nodes, such as two boxes with one serial. Pure; `now` in seconds."""

    def __init__(self) -> None:
        self._moves: OrderedDict[str, tuple[int, float]] = OrderedDict()  # serial → how often of late, when last

    def moved(self, serial: str, now: float) -> int:
        """A device went to another node; return how often it did so of late."""
        count, last = self._moves.pop(serial, (0, now))
        count = count + 1 if now - last < FLAP_WINDOW_S else 1
        self._moves[serial] = count, now
        if len(self._moves) > FLAPS_REMEMBERED:
            self._moves.popitem(last=False)
        return count

    def delay_s(self, serial: str, now: float) -> float:
        """How long a device has to wait before it is admitted; longer with each move in a row."""
        count, last = self._moves.get(serial, (0, now))
        if count < FLAP_MOVES or now - last >= FLAP_WINDOW_S:
            return 0.0
        return min(FLAP_WAIT_MAX_S, 2.0 ** (count - FLAP_MOVES))
