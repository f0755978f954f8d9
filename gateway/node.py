"""The node's own link: room events that come in for all nodes, the status that it keeps, and the relay."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TypeVar

import msgspec

from gateway import __version__
from gateway.bodies import Life, NodeStatus, Presence
from gateway.catalog import Catalog
from gateway.commands import read_room_event
from gateway.metrics import Metrics
from gateway.mqtt.link import Link
from gateway.mqtt.values import (
    Closed,
    Credentials,
    Down,
    LinkEvent,
    Message,
    Opened,
    Options,
    Published,
    Received,
    Refused,
    Subscribed,
    Subscription,
    Unavailable,
    Will,
)
from gateway.relay import tag_of
from gateway.rooms import Rooms
from gateway.sockets import Socket, SocketServer
from gateway.surroundings import OWNER_SPEAKS_MAX_S, OWNER_SPEAKS_MIN_S, LinkSettings, client_id, rfc3339
from gateway.topics import JSON_TYPE, Topics

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)

ORIGIN = "origin"  # user property of a relayed event: node and socket that it came from, which it skips
CENSUS_PAUSE_S = 1.0  # longer than a broker pauses between retained messages
PRESENCE_WAIT_S = 2.0  # a retained message comes at once if there is one
STATUS_EVERY_S = 5.0  # a newcomer who asks at once should not be told of a fleet that is not there
ROOM_SESSION_S = 60  # room events that come while the link is down for a moment are not missed


class Node:
    """One node as the broker sees it.

    Of two processes with one name the later started has it; the other is displaced.

    Args:
        devices: how many devices are here, for the status.
        catalog: what the events that services emit to rooms have to be.
        relay: URL at which other nodes reach this one; empty if they do not.
    """

    def __init__(
        self,
        life: Life,
        topics: Topics,
        links: LinkSettings,
        credentials: Credentials,
        rooms: Rooms[Socket],
        devices: Callable[[], int],
        metrics: Metrics,
        catalog: Catalog,
        relay: str = "",
    ) -> None:
        self._life = life
        self._topics = topics
        self._rooms = rooms
        self._devices = devices
        self._metrics = metrics
        self._catalog = catalog
        self._relay = relay
        self.relays: dict[str, str] = {}  # where the other nodes are, by the tag of their names
        self._session_s = links.session_s
        self._sockets: SocketServer
        self._trouble: str | None = "connecting to the broker"
        self._displaced = False
        self._up = asyncio.Event()  # the broker is there and has granted what we need
        self._asked: dict[str, asyncio.Future[Presence | None]] = {}  # presence topic → who waits for its message
        self._orphans: dict[str, Presence] | None = None  # what an earlier life left, while that is looked for
        self._said: NodeStatus | None = None
        self._refresh: asyncio.TimerHandle | None = None
        self._reopen: asyncio.TimerHandle | None = None
        self._link = Link(
            links.address,
            Options(
                client_id=client_id(topics.prefix, f"node:{life.node}"),  # no serial has a colon
                subscriptions=(
                    Subscription(topics.rooms_filter()),
                    Subscription(topics.node_status("+"), retained=True),  # another process may have our name
                ),
                will=Will(self._message(self._offline()), links.will_delay_s),
                keep_alive_s=links.keep_alive_s,
                session_expiry_s=ROOM_SESSION_S,
                receive_maximum=links.receive_maximum,
            ),
            credentials,
            self,
            alarms=links.alarms,
            backoff=links.backoff,
            connect_timeout_s=links.connect_timeout_s,
            tls=links.tls,
            may_reconnect=self._may_reconnect,
        )

    @property
    def displaced(self) -> bool:
        """Whether a process that started later has the name of this node."""
        return self._displaced

    @property
    def trouble(self) -> str | None:
        """Why the broker cannot be used; None when it can."""
        return self._trouble

    def open(self, sockets: SocketServer) -> None:
        """Connect, and emit room events to these sockets."""
        self._sockets = sockets
        self._link.open()
        self._keep_status()

    async def close(self) -> None:
        """Say offline and disconnect."""
        for timer in (self._refresh, self._reopen):
            if timer is not None:
                timer.cancel()
        self.publish(self._message(self._offline()))
        await self._link.close()

    def publish(self, message: Message, *, droppable: bool = False) -> None:
        """Publish for the node, or for a device whose own link is gone."""
        if not self._displaced:
            self._link.publish(message, droppable=droppable)
            self._link.flush()

    async def presence(self, serial: str) -> Presence | None:
        """Ask the broker for a device's retained presence, when it is there; None if there is none."""
        await self._up.wait()
        if self._displaced:
            return None
        topic = self._topics.presence(serial)
        asked = self._asked.get(topic)
        if asked is None:
            asked = self._asked[topic] = asyncio.get_running_loop().create_future()
            self._link.subscribe(Subscription(topic, qos=0, retained=True))
            self._link.flush()
        try:
            async with asyncio.timeout(PRESENCE_WAIT_S):
                return await asyncio.shield(asked)
        except TimeoutError:
            return None
        finally:
            if self._asked.pop(topic, None) is not None:
                self._link.unsubscribe(topic)
                self._link.flush()

    @asynccontextmanager
    async def orphans(self) -> AsyncIterator[dict[str, Presence]]:
        """Ask the broker what an earlier life of this node left: devices whose retained presence names it, by serial.

        Those that another takes while this is open are removed; those are not in it whose session is over.
        """
        await self._up.wait()
        every = self._topics.presence("+")
        orphans: dict[str, Presence] = {}
        self._orphans = orphans
        self._link.subscribe(Subscription(every, qos=0, retained=True))  # no window holds them up
        self._link.flush()
        try:
            counted = -1
            while counted < len(orphans):  # retained messages come in one go; a pause says that it is over
                counted = len(orphans)
                await asyncio.sleep(CENSUS_PAUSE_S)
            yield orphans
        finally:
            self._orphans = None
            self._link.unsubscribe(every)
            self._link.flush()

    def relay(self, socket: int, room: str, event: str, message: Message) -> None:
        """Emit an event to the other sockets of a room, on every node: through the broker, also on this one."""
        origin = (ORIGIN, f"{self._life.node} {socket}")
        relayed = Message(
            self._topics.room(room, event),
            message.payload,
            qos=1,
            content_type=message.content_type,
            user_properties=(*message.user_properties, origin),
        )
        self.publish(relayed, droppable=True)

    def link_event(self, event: LinkEvent) -> None:
        """Emit what comes for rooms; keep the status and readiness."""
        if isinstance(event, Published):
            self._metrics.links.published(event, self._link.read_at)
            return
        self._metrics.links.observe(event, "room")
        match event:
            case Received():
                self._received(event.message)
                if event.delivery is not None:
                    self._link.puback(event.delivery)
                    self._link.flush()
            case Opened() if not self._displaced:
                self._say_online()
            case Subscribed():
                self._subscribed(event)
            case Down() | Unavailable() if not self._displaced:
                self._up.clear()
                log.warning("broker lost", extra={"reason": event.reason})
                self._trouble = f"no connection to the broker: {event.reason}"
            case Refused() if not self._displaced:
                log.error("broker refused the node", extra={"code": event.code, "reason": event.reason})
                self._trouble = f"the broker refuses this node: {event.reason} (0x{event.code:02X})"
            case Closed() if not self._displaced:
                self._up.clear()
                log.warning("broker lost", extra={"reason": event.reason})
                self._trouble = f"the node's session was taken over: {event.reason}"
                # By another process of this name, or by whoever used its client id: the retained status tells.
                wait_s = random.uniform(OWNER_SPEAKS_MIN_S, OWNER_SPEAKS_MAX_S)  # noqa: S311 - spread, not secret
                self._reopen = asyncio.get_running_loop().call_later(wait_s, self._link.open)

    def _subscribed(self, event: Subscribed) -> None:
        if self._displaced:
            return
        if event.refused:
            self._trouble = f"subscription refused: {', '.join(event.refused)}"
            log.error("subscription refused", extra={"filters": event.refused})
        elif self._trouble is not None:
            self._trouble = None
            log.info("gateway ready", extra={"node": self._life.node})
            self._up.set()

    def _received(self, message: Message) -> None:
        serial = self._topics.presence_of(message.topic)
        if serial is not None:
            self._presence(serial, message)
        elif (node := self._topics.node_of(message.topic)) is not None:
            self._node_status(node, _read(message.payload, NodeStatus) or NodeStatus(False, node))
        else:
            self._room_event(message)

    def _node_status(self, node: str, status: NodeStatus) -> None:
        if node == self._life.node:
            if status.online and status.started > self._life.started:
                self._displace()
        elif status.online and status.relay:
            self.relays[tag_of(node)] = status.relay
        else:
            self.relays.pop(tag_of(node), None)

    def _presence(self, serial: str, message: Message) -> None:
        presence = _read(message.payload, Presence)
        asked = self._asked.get(message.topic)
        if asked is not None and not asked.done():
            asked.set_result(presence)
        if self._orphans is None or presence is None:
            return
        self._orphans.pop(serial, None)
        of_earlier_life = presence.node == self._life.node and presence.started != self._life.started
        oldest = rfc3339(datetime.now(UTC) - timedelta(seconds=self._session_s))
        if of_earlier_life and (presence.since or oldest) >= oldest:
            self._orphans[serial] = presence

    def _displace(self) -> None:
        """Leave the name to a process that started later: two that fight for it would never end."""
        if not self._displaced:
            self._displaced = True
            self._trouble = f"another node is named {self._life.node}, and started later"
            log.error("displaced by another node of this name", extra={"node": self._life.node})
            self._up.set()  # who waits to ask has nothing to ask any more

    async def _may_reconnect(self) -> bool:
        return not self._displaced

    def _room_event(self, message: Message) -> None:
        event = read_room_event(message, self._topics, self._catalog)
        if isinstance(event, str):
            self._metrics.sessions.ignored["unusable_room_event"].n += 1
            log.warning("unusable room event", extra={"topic": message.topic[:200], "problem": event[:200]})
            return
        skipped = dict(message.user_properties).get(ORIGIN)
        sockets = [s for s in self._rooms.members(event.room) if f"{self._life.node} {s.number}" != skipped]
        if sockets:
            self._sockets.emit_to(sockets, event.event, event.args)
        self._metrics.rooms.emitted(event.event, len(sockets), monotonic() - self._link.read_at)

    def _keep_status(self) -> None:
        """Publish the status again where its numbers have changed, now and every STATUS_EVERY_S."""
        self._refresh = asyncio.get_running_loop().call_later(STATUS_EVERY_S, self._keep_status)
        if self._link.connected and self._now() != self._said:
            self._say_online()

    def _say_online(self) -> None:
        self._said = self._now()
        self.publish(self._message(self._said))

    def _now(self) -> NodeStatus:
        sockets = len(self._sockets)
        life = self._life
        return NodeStatus(True, life.node, __version__, life.started, self._devices(), sockets, self._relay)

    def _offline(self) -> NodeStatus:
        return NodeStatus(False, self._life.node, __version__, self._life.started)

    def _message(self, status: NodeStatus) -> Message:
        body = msgspec.json.encode(status)
        return Message(self._topics.node_status(self._life.node), body, qos=1, retain=True, content_type=JSON_TYPE)


def _read(payload: bytes, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
