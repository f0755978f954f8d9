"""The node's own link: room events that come in for all nodes, the status that it keeps, and the relay."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

import msgspec

from gateway import __version__
from gateway.commands import read_args
from gateway.device import LinkSettings, client_id, now_rfc3339
from gateway.metrics import Metrics
from gateway.mqtt import (
    Closed,
    Credentials,
    Dropped,
    Message,
    Opened,
    Options,
    Published,
    Received,
    Subscribed,
    Subscription,
    Will,
)
from gateway.mqtt.link import Down, Link, LinkEvent, Refused, Unavailable
from gateway.rooms import Rooms
from gateway.sockets import Socket, SocketServer
from gateway.topics import JSON_TYPE, NodeStatus, Presence, RoomTopic, Topics

log = logging.getLogger(__name__)

ORIGIN = "origin"  # user property of a relayed event: node and socket that it came from, which it skips
CENSUS_PAUSE_S = 1.0  # longer than a broker pauses between retained messages
PRESENCE_WAIT_S = 2.0  # a retained message comes at once if there is one
STATUS_EVERY_S = 30.0
ROOM_SESSION_S = 60  # room events that come while the link is down for a moment are not missed


class Node:
    """One node as the broker sees it.

    Args:
        devices: how many devices are here, for the status.
    """

    def __init__(
        self,
        name: str,
        topics: Topics,
        links: LinkSettings,
        credentials: Credentials,
        rooms: Rooms[Socket],
        devices: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._name = name
        self._topics = topics
        self._rooms = rooms
        self._devices = devices
        self._metrics = metrics
        self._started = now_rfc3339()
        self._sockets: SocketServer
        self._trouble: str | None = "connecting to the broker"
        self._displaced = False
        self._up = asyncio.Event()  # the broker is there and has granted what we need
        self._asked: dict[str, asyncio.Future[Presence | None]] = {}  # presence topic → who waits for its message
        self._census: list[str] | None = None  # serials found so far, while they are looked for
        self._said: NodeStatus | None = None
        self._refresh: asyncio.TimerHandle | None = None
        self._link = Link(
            links.address,
            Options(
                client_id=client_id(topics.prefix, f"node:{name}"),  # no serial has a colon
                subscriptions=(Subscription(topics.rooms_filter()),),
                will=Will(self._message(NodeStatus(False, name)), 0),
                keep_alive_s=links.keep_alive_s,
                session_expiry_s=ROOM_SESSION_S,
                receive_maximum=links.receive_maximum,
            ),
            credentials,
            self,
            backoff=links.backoff,
            connect_timeout_s=links.connect_timeout_s,
            tls=links.tls,
        )

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
        if self._refresh is not None:
            self._refresh.cancel()
        self.publish(self._message(NodeStatus(False, self._name)))
        await self._link.close()

    def publish(self, message: Message) -> None:
        """Publish for the node, or for a device whose own link is gone."""
        self._publish(message, droppable=False)

    def _publish(self, message: Message, *, droppable: bool) -> None:
        if not self._displaced:
            self._link.publish(message, droppable=droppable)
            self._link.flush()

    async def presence(self, serial: str) -> Presence | None:
        """Ask the broker for a device's retained presence, when it is there; None if there is none."""
        await self._up.wait()
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

    async def orphans(self) -> list[str]:
        """Ask the broker for the devices whose retained presence names this node: what an earlier life left."""
        await self._up.wait()
        every = self._topics.presence("+")
        census: list[str] = []
        self._census = census
        self._link.subscribe(Subscription(every, qos=0, retained=True))  # no window holds them up
        self._link.flush()
        counted = -1
        while counted < len(census):  # retained messages come in one go; a pause says that it is over
            counted = len(census)
            await asyncio.sleep(CENSUS_PAUSE_S)
        self._census = None
        self._link.unsubscribe(every)
        self._link.flush()
        return census

    def relay(self, socket: int, room: str, event: str, message: Message) -> None:
        """Emit an event to the other sockets of a room, on every node: through the broker, also on this one."""
        origin = (ORIGIN, f"{self._name} {socket}")
        relayed = Message(
            self._topics.room(room, event),
            message.payload,
            qos=1,
            content_type=message.content_type,
            user_properties=(*message.user_properties, origin),
        )
        self._publish(relayed, droppable=True)

    def link_event(self, event: LinkEvent) -> None:
        """Emit what comes for rooms; keep the status and readiness."""
        match event:
            case Received():
                self._received(event.message)
                if event.delivery is not None:
                    self._link.puback(event.delivery)
                    self._link.flush()
            case Opened():
                self._metrics.links.opened(resumed=event.session_present)
                self._say_online()
            case Subscribed():
                self._subscribed(event)
            case Published():
                took_s = None if event.sent_at is None else monotonic() - event.sent_at
                self._metrics.links.published(event.code, took_s)
            case Dropped():
                self._metrics.links.dropped["room"].n += 1
            case Down() | Unavailable():
                self._metrics.links.failed("lost" if isinstance(event, Down) else "unavailable")
                self._up.clear()
                log.warning("broker lost", extra={"reason": event.reason})
                self._trouble = f"no connection to the broker: {event.reason}"
            case Refused():
                self._metrics.links.failed("refused")
                log.error("broker refused the node", extra={"code": event.code, "reason": event.reason})
                self._trouble = f"the broker refuses this node: {event.reason} (0x{event.code:02X})"
            case Closed():
                self._displaced = True
                log.error("another node has this name", extra={"node": self._name, "reason": event.reason})
                self._trouble = f"another node is named {self._name}"

    def _subscribed(self, event: Subscribed) -> None:
        if event.refused:
            self._trouble = f"subscription refused: {', '.join(event.refused)}"
            log.error("subscription refused", extra={"filters": event.refused})
        elif self._trouble is not None:
            self._trouble = None
            log.info("gateway ready", extra={"node": self._name})
            self._up.set()

    def _received(self, message: Message) -> None:
        serial = self._topics.presence_of(message.topic)
        if serial is None:
            self._room_event(message)
            return
        presence = _presence(message.payload)
        asked = self._asked.get(message.topic)
        if asked is not None and not asked.done():
            asked.set_result(presence)
        if self._census is not None and presence is not None and presence.node == self._name:
            self._census.append(serial)

    def _room_event(self, message: Message) -> None:
        address = self._topics.parse(message.topic)
        args, problem = read_args(message)
        if not isinstance(address, RoomTopic) or problem:
            reason = problem or str(address)
            self._metrics.sessions.ignored["unusable_room_event"].n += 1
            log.warning("unusable room event", extra={"topic": message.topic[:200], "problem": reason[:200]})
            return
        skipped = dict(message.user_properties).get(ORIGIN)
        sockets = [s for s in self._rooms.members(address.room) if f"{self._name} {s.number}" != skipped]
        if sockets:
            self._sockets.emit_to(sockets, address.event, args)
        self._metrics.rooms.emitted(address.event, len(sockets), monotonic() - self._link.read_at)

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
        return NodeStatus(True, self._name, __version__, self._started, self._devices(), sockets)

    def _message(self, status: NodeStatus) -> Message:
        body = msgspec.json.encode(status)
        return Message(self._topics.node_status(self._name), body, qos=1, retain=True, content_type=JSON_TYPE)


def _presence(payload: bytes) -> Presence | None:
    try:
        return msgspec.json.decode(payload, type=Presence)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
