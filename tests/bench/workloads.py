"""What is done to a contender: commands in a closed or an open loop, events, and events for a room."""

import asyncio
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Final

import mqtt5

from tests.bench.broker_peer import PREFIX, Service
from tests.bench.fleet import COMMAND, PAYLOAD, ROOM, Fleet, number, serial

DRAIN_S: Final = 15.0  # for what is still under way
PACE_S: Final = 0.001  # a timer of the event loop is no finer
MAX_UNDER_WAY: Final = 2_000  # in an open loop: who is that far behind will not catch up
ROOM_TOPIC: Final = f"{PREFIX}/rooms/{ROOM}/events/memos_update"
ROOM_PAYLOAD: Final = b'{"memo_id":1,"note":"%s"}' % (b"x" * 177)


class Stuck(Exception):
    """A contender does not answer any more."""


class Commands:
    """Commands to the devices in turn, and their outcomes.

    Attributes:
        done: outcomes that came; `wrong` are those that are not `acked`.
        latencies_s: from the write of a command to the outcome.
    """

    def __init__(self, service: Service, devices: int) -> None:
        self.done = self.wrong = self.skipped = 0
        self.latencies_s: list[float] = []
        self._service = service
        self._topics: Iterator[str] = cycle(
            [f"{PREFIX}/devices/{serial(n)}/commands/{COMMAND}" for n in range(devices)]
        )
        self._under_way: dict[bytes, float] = {}
        self._count = 0
        self._refill = False
        service.on_message = self._outcome

    def _send(self) -> None:
        self._count += 1
        correlation = self._count.to_bytes(4)
        self._under_way[correlation] = time.perf_counter()
        self._service.publish(
            next(self._topics), PAYLOAD, response_topic=self._service.inbox, correlation_data=correlation
        )

    def _outcome(self, packet: mqtt5.PublishPacket) -> None:
        sent = self._under_way.pop(packet.correlation_data or b"", None)
        if sent is None:
            return
        self.latencies_s.append(time.perf_counter() - sent)
        self.done += 1
        if b'"acked"' not in packet.payload:
            self.wrong += 1
        if self._refill:
            self._send()

    def saturate(self, window: int) -> None:
        """Keep so many commands under way until `finish`."""
        self._refill = True
        for _ in range(window):
            self._send()
        self._service.flush()

    async def pace(self, per_s: float, seconds: float) -> None:
        """Send so many a second, whatever comes back; a command over MAX_UNDER_WAY is skipped, and counted."""
        start, sent = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            due = int(passed * per_s) - sent
            sent += due
            room = min(due, MAX_UNDER_WAY - len(self._under_way))
            self.skipped += due - room
            for _ in range(room):
                self._send()
            self._service.flush()
            await asyncio.sleep(PACE_S)

    async def finish(self) -> None:
        """Send nothing more, and wait for what is under way. Raises Stuck."""
        self._refill = False
        until = time.perf_counter() + DRAIN_S
        while self._under_way:
            if time.perf_counter() > until:
                raise Stuck(f"{len(self._under_way)} commands without an outcome")
            await asyncio.sleep(PACE_S)


class Events:
    """Events of devices; the one whose event comes is followed by the next."""

    def __init__(self, service: Service, fleet: Fleet) -> None:
        self.done = 0
        self._fleet = fleet
        self._next = cycle(fleet.devices)
        self._waiting = 0
        self._refill = True
        service.on_message = self._came

    def _came(self, packet: mqtt5.PublishPacket) -> None:
        assert number(packet.topic) < len(self._fleet)
        self.done += 1
        if self._refill:
            next(self._next).emit()
        else:
            self._waiting -= 1

    def saturate(self, window: int) -> None:
        """Keep so many events under way until `finish`."""
        self._waiting = window
        for _ in range(window):
            next(self._next).emit()

    async def finish(self) -> None:
        """Emit nothing more, and wait for what is under way. Raises Stuck."""
        self._refill = False
        until = time.perf_counter() + DRAIN_S
        while self._waiting:
            if time.perf_counter() > until:
                raise Stuck(f"{self._waiting} events did not come, after {self.done} that did")
            await asyncio.sleep(PACE_S)


async def room_events(service: Service, fleet: Fleet, seconds: float) -> list[float]:
    """Publish to the room of the whole fleet, again as soon as all have it; how long each took, in seconds."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        start = time.perf_counter()
        reached = fleet.tally.room_events(len(fleet))
        service.publish(ROOM_TOPIC, ROOM_PAYLOAD)
        service.flush()
        try:
            await asyncio.wait_for(reached, DRAIN_S)
        except TimeoutError:
            raise Stuck("an event for a room did not reach everybody") from None
        took.append(time.perf_counter() - start)
    return took
