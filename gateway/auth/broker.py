"""Devices that the broker knows: each proves its key by the CONNECT of its own link."""

from typing import Final, Protocol

from gateway.auth.base import DeviceKey, Verdict
from gateway.mqtt import values as mqtt

WRONG_KEY: Final = frozenset({0x86, 0x87})  # CONNACK: bad user name or password, not authorized (3.2.2.2)


class Link(Protocol):
    """What proves a key: see `gateway.mqtt.link.Link`."""

    async def prove(self, credentials: mqtt.Credentials) -> mqtt.Verdict:
        """Connect with these credentials, in place of a connection that there is."""


class Linked(Protocol):
    """A device, whose link is None when it has gone to another node."""

    async def give_way(self) -> bool:
        """Whether the device has gone, or goes now, because another node has it while its link is down."""

    @property
    def link(self) -> Link | None:
        """The link that the device has, or will have when a key is accepted."""


class BrokerAuthenticator:
    """Lets the broker check the keys of one device; a key that is accepted has opened its link."""

    def __init__(self, device: Linked) -> None:
        self._device = device

    async def check(self, claim: DeviceKey) -> Verdict:
        """Connect as the device. Any answer but a clear one (3.2.2.2) is none: a busy broker is no wrong key."""
        gone, link = await self._device.give_way(), self._device.link
        if gone or link is None:
            return Verdict.MOVED
        match await link.prove(mqtt.Credentials(claim.serial, claim.key.encode())):
            case mqtt.Opened():
                return Verdict.ACCEPTED
            case mqtt.Refused(code=code) if code in WRONG_KEY:
                return Verdict.DENIED
        return Verdict.UNAVAILABLE

    def knows(self, serial: str) -> bool:
        """Take it so: the broker is only asked about keys."""
        return True

    async def close(self) -> None:
        """Hold nothing: the link is the device's."""
