"""Devices that know but the address of a proxy: the balancer decides to which node each of their requests goes."""

import asyncio
import base64
import random
import time
from collections.abc import Mapping
from typing import Final

import aiohttp

from gateway.simulate.connection import Connection
from gateway.simulate.profiles import MODERN, MODERN_UPGRADE, OLD_POLLING, OLD_UPGRADE, POLLING, Behaviour
from gateway.simulate.wire import Connected, Fact, Received
from tests.e2e.chaos import ABSENCES_S, Box, Dispatcher, Reception, Stay, ack_delay_s

CLIENTS: Final = (MODERN, OLD_POLLING, OLD_UPGRADE, Behaviour(transports=POLLING), MODERN_UPGRADE)
ACK: Final = {"ack": True}


class ProxiedPlate:
    """A device of some generation, on some transport, that always comes back to the proxy.

    Its session id tells at which node it is. The attributes are those of `Plate`.
    """

    def __init__(
        self,
        serial: str,
        http: aiohttp.ClientSession,
        url: str,
        behaviour: Behaviour,
        boxes: Mapping[str, Box],
        service: Dispatcher,
        seed: str,
    ) -> None:
        """`boxes` are by the tag that session ids of their nodes begin with; `url` ends in a slash."""
        self.serial = serial
        self.home: Box | None = None
        self.received: list[int] = []
        self.stays: list[Stay] = []
        self.resets = self.hops = 0
        self.orderly = False
        self._http = http
        self._url = url
        self._behaviour = behaviour
        self._boxes = boxes
        self._service = service
        self._random = random.Random(f"{seed} {serial}")
        self._connection: Connection
        self._box: Box  # that of the connection
        self._at_once = False

    async def run(self) -> None:
        """Connect again and again until cancelled."""
        while True:
            self._connection = Connection(self._http, self._url, self._behaviour, self._take)
            await self._connection.live()
            self.home = None
            absence_s = self._random.choice(ABSENCES_S)
            await asyncio.sleep(0 if self._at_once else absence_s)
            self._at_once = False

    def reset(self) -> None:
        """Go without any goodbye."""
        if self.home is not None:
            self.resets += 1
            self._connection.end("dropped")

    def hop(self) -> None:
        """Go, and come back at once, with a goodbye or without: the proxy sends it to either node."""
        if self.home is not None:
            self.hops += 1
            self._at_once = True
            self._connection.end(self._random.choice(("left", "dropped")))

    def _take(self, fact: Fact) -> None:
        match fact:
            case Connected():
                self._box = self._boxes[self._connection.wire.sid.partition(".")[0]]
                self.stays.append(Stay(time.monotonic(), self._box.name, self._box.life))
                signature = base64.b64encode(f"{self.serial}:key".encode()).decode()
                self._connection.wire.emit("authentication", {"signature": signature})
            case Received(event="auth:ok"):
                self.home = self._box
                self.stays[-1].welcomed_at = time.monotonic()
                self._service.stir.set()
            case Received(id=int(ack_id), args=({"id": int(id)},)):
                box = self._box
                self._service.received(Reception(id, time.monotonic(), box.name, box.life, len(self.stays)))
                self.received.append(id)
                self._answer(ack_id)

    def _answer(self, ack_id: int) -> None:
        delay_s = ack_delay_s(self._random, orderly=self.orderly)
        if delay_s == 0:
            self._connection.wire.ack(ack_id, ACK)
        elif delay_s is not None:
            asyncio.get_running_loop().call_later(delay_s, self._ack_later, self._connection, ack_id)

    def _ack_later(self, connection: Connection, ack_id: int) -> None:
        if connection is self._connection:
            connection.wire.ack(ack_id, ACK)
            connection.flush()
