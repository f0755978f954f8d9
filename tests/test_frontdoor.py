"""The device protocol on a socket, where it depends on what comes first."""

import asyncio
import base64
from types import SimpleNamespace
from typing import Any, cast

from gateway.admission import Admission
from gateway.auth.base import DeviceKey, Verdict
from gateway.catalog import Args, Catalog
from gateway.devices import Devices
from gateway.frontdoor import FrontDoor
from gateway.metrics import Metrics
from gateway.rooms import RoomPolicy, Rooms
from gateway.sockets import Socket, SocketServer

ATTEMPTS = 3


class Peer:
    """A socket of a device that tries again the moment it is told no, and the gateway behind that denies everybody."""

    def __init__(self, door: FrontDoor) -> None:
        self.door = door
        self.answers: list[str] = []
        self.checked: list[str] = []
        self.done = asyncio.Event()
        self.socket = cast("Socket", SimpleNamespace(number=1, address="192.0.2.1", device=None))
        door.serve(cast("SocketServer", self), cast("Devices", self))

    def authenticate(self) -> None:
        signature = base64.b64encode(f"AC1:key{len(self.answers)}".encode()).decode()
        self.door.emitted(self.socket, "authentication", ({"signature": signature},), None)

    def emit(self, number: int, event: str, args: Args) -> None:
        self.answers.append(event)
        if len(self.answers) == ATTEMPTS:
            self.done.set()
        else:
            self.authenticate()

    async def admit(self, claim: DeviceKey, *_: Any) -> Verdict:
        self.checked.append(claim.key)
        return Verdict.DENIED


async def test_who_is_told_no_is_heard_at_once() -> None:
    """An answer is out before the loop has its next turn, and so may be what the peer says to it."""
    peer = Peer(FrontDoor(Rooms(), RoomPolicy(()), None, Admission(), Metrics(Catalog(), "gw-1")))
    peer.authenticate()
    await asyncio.wait_for(peer.done.wait(), 10)
    assert peer.checked == ["key0", "key1", "key2"]
    assert peer.answers == ["auth:fail"] * ATTEMPTS
