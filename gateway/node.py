"""The node's own link: room events that come in for all nodes, the status that it keeps, and the relay."""

import logging
from collections.abc import Callable

import msgspec

from gateway import __version__
from gateway.commands import read_args
from gateway.devices import LinkSettings, client_id, now_rfc3339
from gateway.mqtt import (
    Closed,
    Credentials,
    Message,
    Opened,
    Options,
    Received,
    Subscribed,
    Subscription,
    Will,
)
from gateway.mqtt.link import Down, Link, LinkEvent, Refused, Unavailable
from gateway.rooms import Rooms
from gateway.sockets import Socket, SocketServer
from gateway.topics import JSON_TYPE, NodeStatus, RoomTopic, Topics

log = logging.getLogger(__name__)

ORIGIN = "origin"  # user property of a relayed event: node and socket that it came from, which it skips
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
    ) -> None:
        self._name = name
        self._topics = topics
        self._rooms = rooms
        self._devices = devices
        self._started = now_rfc3339()
        self._sockets: SocketServer
        self._trouble: str | None = "connecting to the broker"
        self._link = Link(
            links.address,
            Options(
                client_id=client_id(topics.prefix, f"node:{name}"),  # no serial has a colon
                subscriptions=(Subscription(topics.rooms_filter()),),
                will=Will(self._status(online=False), 0),
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

    async def close(self) -> None:
        """Say offline and disconnect."""
        self.publish(self._status(online=False))
        await self._link.close()

    def publish(self, message: Message) -> None:
        """Publish for the node, or for a device whose own link is gone."""
        self._link.publish(message)
        self._link.flush()

    def relay(self, socket: int, room: str, event: str, message: Message) -> None:
        """Emit an event to the other sockets of a room, on every node: through the broker, also on this one."""
        origin = (ORIGIN, f"{self._name} {socket}")
        self.publish(
            Message(
                self._topics.room(room, event),
                message.payload,
                qos=1,
                content_type=message.content_type,
                user_properties=(*message.user_properties, origin),
            )
        )

    def link_event(self, event: LinkEvent) -> None:
        """Emit what comes for rooms; keep the status and readiness."""
        match event:
            case Received():
                self._room_event(event.message)
                if event.delivery is not None:
                    self._link.puback(event.delivery)
                    self._link.flush()
            case Opened():
                self.publish(self._status(online=True))
            case Subscribed():
                self._subscribed(event)
            case Down() | Unavailable():
                log.warning("broker lost", extra={"reason": event.reason})
                self._trouble = f"no connection to the broker: {event.reason}"
            case Refused():
                log.error("broker refused the node", extra={"code": event.code, "reason": event.reason})
                self._trouble = f"the broker refuses this node: {event.reason} (0x{event.code:02X})"
            case Closed():
                log.error("another node has this name", extra={"node": self._name, "reason": event.reason})
                self._trouble = f"another node is named {self._name}"

    def _subscribed(self, event: Subscribed) -> None:
        if event.refused:
            self._trouble = f"subscription refused: {', '.join(event.refused)}"
            log.error("subscription refused", extra={"filters": event.refused})
        else:
            self._trouble = None
            log.info("gateway ready", extra={"node": self._name})

    def _room_event(self, message: Message) -> None:
        address = self._topics.parse(message.topic)
        args, problem = read_args(message)
        if not isinstance(address, RoomTopic) or problem:
            reason = problem or str(address)
            log.warning("unusable room event", extra={"topic": message.topic[:200], "problem": reason[:200]})
            return
        skipped = dict(message.user_properties).get(ORIGIN)
        sockets = [s for s in self._rooms.members(address.room) if f"{self._name} {s.number}" != skipped]
        if sockets:
            self._sockets.emit_to(sockets, address.event, args)

    def _status(self, *, online: bool) -> Message:
        status = NodeStatus(online, self._name, __version__, self._started, self._devices() if online else 0)
        body = msgspec.json.encode(status)
        return Message(self._topics.node_status(self._name), body, qos=1, retain=True, content_type=JSON_TYPE)
