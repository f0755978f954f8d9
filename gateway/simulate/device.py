"""The life of one simulated device: connects, authenticates, follows the device protocol, and connects again.

It acks as the examples of the catalogue do. How well it behaves is data.
"""

import asyncio
import base64
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import aiohttp
import msgspec

from gateway.catalog import EVENTS
from gateway.simulate.connection import Connection
from gateway.simulate.profiles import Backoff, Behaviour, Report
from gateway.simulate.tally import Tally
from gateway.simulate.wire import Answered, Connected, Ended, Fact, Received

State = Literal["connecting", "online", "away", "refused"]

ACK: Final = {"ack": True}
ACKS: Final[Mapping[str, Any]] = {event.name: {**event.ack_example} for event in EVENTS.values() if event.ack_example}
"""What an event is acked with; one that is not in the catalogue gets ACK."""


class World(msgspec.Struct, frozen=True):
    """What the devices of a fleet share."""

    http: aiohttp.ClientSession
    url: str
    tally: Tally
    random: random.Random
    backoff: Backoff
    tell: Callable[[str], None] | None  # for each change of a state and each event, a line for a person
    changed: Callable[[], None]  # a device has come or gone


class SimulatedDevice:
    """One device.

    Args:
        serial: who it is; with `key` it makes the signature.

    Attributes:
        state: `refused` when the gateway did not take the key; it tries again for ever.
    """

    __slots__ = ("_began", "_connection", "_leaving", "_seen", "_told", "_world", "behaviour", "key", "serial", "state")

    def __init__(self, serial: str, *, key: str = "demo", behaviour: Behaviour = Behaviour()) -> None:  # noqa: B008  (it is frozen)
        self.serial = serial
        self.key = key
        self.behaviour = behaviour
        self.state: State = "connecting"
        self._world: World
        self._connection: Connection | None = None
        self._began = 0.0
        self._seen = False  # it was online at some time
        self._leaving = False
        self._told = ""

    @property
    def connected(self) -> bool:
        """Whether it has a connection, or is about to have one."""
        return self._connection is not None

    @property
    def client(self) -> str | None:
        """Generation and present transport of a device that is online, such as `EIO3 polling`; None if it is not."""
        if self._connection is None or self.state != "online":
            return None
        return f"EIO{self.behaviour.engine} {self._connection.transport}"

    async def run(self, world: World) -> None:
        """Connect, behave, and connect again, until it leaves."""
        self._world = world
        failures = 0
        while not self._leaving:
            ended, was_online = await self._live()
            failures = 0 if was_online else failures + 1
            if not self._leaving:
                await asyncio.sleep(self._pause_s(ended, failures))
                world.tally.reconnects += not self._leaving

    def drop(self) -> None:
        """Cut the connection without a goodbye."""
        if self._connection is not None:
            self._connection.end("dropped")

    def leave(self) -> None:
        """Say goodbye, and do not come back."""
        self._leaving = True
        if self._connection is not None:
            self._connection.end("left")

    async def _live(self) -> tuple[Ended, bool]:
        """Make one connection; return why it ended, and whether it was ever authenticated."""
        world = self._world
        self._become("connecting")
        self._began = asyncio.get_running_loop().time()
        self._connection = Connection(world.http, world.url, self.behaviour, self._take)
        world.tally.connections += 1
        ended: Ended = "left"
        try:
            ended = await self._connection.live()
        finally:
            self._connection = None
            was_online = self.state == "online"
            world.tally.online -= was_online
            world.tally.ended[ended] += 1
            if self.state != "refused":
                self._become("away", ended)
            world.changed()
        return ended, was_online

    def _pause_s(self, ended: Ended, failures: int) -> float:
        flapping = self.behaviour.flapping
        if ended == "dropped" and flapping is not None and flapping.away_s is not None:
            return flapping.away_s
        return self._world.backoff.delay_s(failures, self._world.random.uniform)

    # -- what the gateway says -------------------------------------------------------------------------

    def _take(self, fact: Fact) -> None:
        connection = self._connection
        assert connection is not None  # who else tells
        match fact:
            case Connected():
                signature = base64.b64encode(f"{self.serial}:{self.key}".encode()).decode()
                connection.wire.emit("authentication", {"signature": signature})
            case Received(event="auth:ok"):
                self._accepted(connection)
            case Received(event="auth:fail"):
                self._world.tally.auth_fail += 1
                reason = fact.args[0] if fact.args else None
                self._become("refused", reason.get("error_msg") if isinstance(reason, dict) else reason)
                connection.end("left")
            case Received():
                self._receive(connection, fact)
            case Answered():
                self._world.tally.answered += 1
                self._tell("answered", fact.args)

    def _accepted(self, connection: Connection) -> None:
        if self.state == "online":
            return
        loop, tally = asyncio.get_running_loop(), self._world.tally
        tally.auth_ok += 1
        tally.online += 1
        tally.authenticated += not self._seen
        tally.connect_s.append(loop.time() - self._began)
        self._seen = True
        self._become("online")
        self._world.changed()
        flapping = self.behaviour.flapping
        if flapping is not None:
            loop.call_later(flapping.online_s * self._world.random.uniform(0.5, 1.5), self._flap, connection)
        for report in self.behaviour.reports:
            self._plan(connection, report, self._world.random.uniform(0.0, report.every_s))

    def _receive(self, connection: Connection, event: Received) -> None:
        """Do what the event says, and ack it if it asks for that, late if the device is slow."""
        self._world.tally.received[event.event] += 1
        self._tell(event.event, event.args)
        self._obey(connection, event)
        if event.id is None:
            return
        low, high = self.behaviour.ack_delay_s
        if high:
            delay_s = self._world.random.uniform(low, high)
            asyncio.get_running_loop().call_later(delay_s, self._ack, connection, event.event, event.id, True)
        else:
            self._ack(connection, event.event, event.id, late=False)

    def _ack(self, connection: Connection, event: str, id: int, late: bool) -> None:
        if connection is self._connection:
            connection.wire.ack(id, ACKS.get(event, ACK))
            self._world.tally.acked[event] += 1
            if late:
                connection.flush()

    def _obey(self, connection: Connection, event: Received) -> None:
        """Remote debugging, as the document says: enter and leave the room, and report a result."""
        match event.event, event.args:
            case "enable_remote_cmd", ({"room": str(room)},):
                connection.wire.emit("join_room", {"room": room})
            case "disable_remote_cmd", ({"room": str(room)},):
                connection.wire.emit("leave_room", {"room": room})
            case "remote_cmd", _:
                connection.wire.emit("cmd_result", {"result": "ok"})
                self._world.tally.emitted["cmd_result"] += 1

    # -- what it does by itself ------------------------------------------------------------------------

    def _flap(self, connection: Connection) -> None:
        if connection is self._connection:
            self.drop()

    def _plan(self, connection: Connection, report: Report, pause_s: float) -> None:
        asyncio.get_running_loop().call_later(pause_s, self._report, connection, report)

    def _report(self, connection: Connection, report: Report) -> None:
        if connection is not self._connection or self.state != "online":
            return
        tally = self._world.tally
        tally.emitted[report.event] += 1
        if report.asks:
            tally.asked += 1
            connection.wire.ask(report.event, report.payload)
        else:
            connection.wire.emit(report.event, report.payload)
        connection.flush()
        self._plan(connection, report, report.every_s * self._world.random.uniform(0.5, 1.5))

    # -- what a person is told -------------------------------------------------------------------------

    def _become(self, state: State, why: Any = None) -> None:
        """Change state; nobody is told of a connection that fails again as it failed before."""
        self.state = state
        if self._world.tell is None or state == "connecting":
            return
        told = f"{self.serial}  {state}{f': {why}' if why and why != 'left' else ''}"
        if told != self._told:
            self._told = told
            self._world.tell(told)

    def _tell(self, event: str, args: tuple[Any, ...]) -> None:
        if self._world.tell is not None:
            self._world.tell(
                " ".join((f"{self.serial}  {event}", *(msgspec.json.encode(arg).decode() for arg in args)))
            )
