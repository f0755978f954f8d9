"""What all devices of a node share, and what the broker knows them by."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from gateway import facts as f
from gateway.addresses import BrokerUrl
from gateway.alarms import Alarms
from gateway.bodies import Life, Presence
from gateway.catalog import Catalog
from gateway.commands import CommandReader
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.metrics import Metrics
from gateway.mqtt.link import Link
from gateway.mqtt.values import Backoff, Message
from gateway.sockets import SocketServer
from gateway.topics import Topics

# A node that takes a device over publishes its presence at once; who asks waits for that.
OWNER_SPEAKS_MIN_S: Final = 1.0
OWNER_SPEAKS_MAX_S: Final = 2.0


@dataclass(frozen=True)
class LinkSettings:
    """How links are made; times in seconds."""

    address: BrokerUrl
    alarms: Alarms[Link]
    tls: ssl.SSLContext | None
    backoff: Backoff
    connect_timeout_s: float
    keep_alive_s: int
    session_s: int
    receive_maximum: int
    will_delay_s: int


class NodeLink(Protocol):
    """What a device needs of its node."""

    @property
    def displaced(self) -> bool:
        """Whether a later life of the node has begun: it has all devices then."""

    def relay(self, socket: int, room: str, event: str, message: Message) -> None:
        """Emit to the other sockets of a room, on every node."""

    def publish(self, message: Message, *, droppable: bool = False) -> None:
        """Publish for a device whose own link is gone."""

    async def presence(self, serial: str) -> Presence | None:
        """Ask the broker for a device's retained presence; None if there is none, or no answer."""


class Observer(Protocol):
    """Who is told of every step of every session, beside the metrics."""

    def observe(self, serial: str, fact: f.Fact, effects: list[f.Effect], now: float) -> None:
        """Take note of a fact and its effects, before they are carried out; `now` is in monotonic seconds."""


@dataclass(frozen=True)
class Surroundings:
    """What all devices of a node share."""

    life: Life
    topics: Topics
    catalog: Catalog
    reader: CommandReader
    limits: Limits
    shared: Shared
    waiting_bytes: Budget
    replays: Pace
    links: LinkSettings
    sockets: SocketServer
    node_link: NodeLink
    metrics: Metrics
    observers: tuple[Observer, ...] = ()


def client_id(prefix: str, name: str) -> str:
    """Return the MQTT client id of a device, by which the broker knows its one owner."""
    return f"{prefix.replace('/', '-')}:{name}"


def now_rfc3339() -> str:
    """Return the time of day, UTC, to the millisecond."""
    return rfc3339(datetime.now(UTC))


def rfc3339(at: datetime) -> str:
    """Return a UTC time to the millisecond; such texts are in the order of their times."""
    return at.isoformat(timespec="milliseconds")
