"""What a fleet of devices has seen, and where a measurement waits for it."""

import asyncio


class Tally:
    """Counts for all devices of a fleet.

    Attributes:
        room: events without an ack that reached devices.
        heartbeats: pings that devices answered, or sent where that is theirs to do.
        lost: connections that ended although nobody here ended them.
    """

    def __init__(self) -> None:
        self.room = self.heartbeats = self.lost = 0
        self.closing = False
        self._room_target = 0
        self._reached: asyncio.Future[None] | None = None

    def room_event(self) -> None:
        """A device got an event of a room."""
        self.room += 1
        if self._reached is not None and self.room >= self._room_target:
            self._reached.set_result(None)
            self._reached = None

    def room_events(self, count: int) -> "asyncio.Future[None]":
        """What is done when so many more events of rooms have come."""
        self._room_target = self.room + count
        self._reached = asyncio.get_running_loop().create_future()
        return self._reached

    def gone(self) -> None:
        """A connection ended."""
        if not self.closing:
            self.lost += 1
