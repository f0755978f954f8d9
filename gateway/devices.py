"""The devices of this node: each drives one DeviceSession between its link and its socket.

Facts from both are handed to the session, its effects are carried out in order, and one timer is kept at its
deadline. A link outlives its socket: a device that is away stays here, parked.
"""

import asyncio
import logging
import secrets
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from gateway import facts as f
from gateway.addresses import BrokerUrl
from gateway.auth import Authenticator, DeviceKey, Verdict
from gateway.commands import CommandReader
from gateway.delivery import Limits
from gateway.engine.effects import CloseReason
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
from gateway.mqtt.link import Backoff, Down, Link, LinkEvent, Refused, Unavailable
from gateway.session import DeviceSession
from gateway.sockets import Socket, SocketServer
from gateway.topics import JSON_TYPE, Presence, Topics

log = logging.getLogger(__name__)

WRONG_KEY: Final = frozenset({0x86, 0x87})  # CONNACK: bad user name or password, not authorized (3.2.2.2)


class LinkSettings(msgspec.Struct, frozen=True):
    """How links are made; times in seconds."""

    address: BrokerUrl
    tls: ssl.SSLContext | None
    backoff: Backoff
    connect_timeout_s: float
    keep_alive_s: int
    session_s: int
    receive_maximum: int
    will_delay_s: int


class NodeLink(Protocol):
    """What a device needs of its node."""

    def relay(self, socket: int, room: str, event: str, message: Message) -> None:
        """Emit to the other sockets of a room, on every node."""

    def publish(self, message: Message) -> None:
        """Publish for a device whose own link is gone."""


class Surroundings(msgspec.Struct, frozen=True):
    """What all devices of a node share."""

    node: str
    topics: Topics
    reader: CommandReader
    limits: Limits
    links: LinkSettings
    sockets: SocketServer
    node_link: NodeLink
    metrics: Metrics


class Device:
    """One device: its session, its link and the timer between them."""

    __slots__ = (
        "_around", "_change", "_gone", "_loop", "_park", "_ready", "_refused", "_session",
        "_timer", "link", "serial",
    )  # fmt: skip

    def __init__(
        self, serial: str, credentials: Credentials, around: Surroundings, gone: Callable[["Device"], None]
    ) -> None:
        self.serial = serial
        self._around = around
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._session = DeviceSession(serial, around.node, around.topics, around.limits, secrets.token_hex(4))
        self._timer: asyncio.TimerHandle | None = None
        self._park: asyncio.TimerHandle | None = None
        self._change: asyncio.Future[None] | None = None  # resolved when one of the next two, or the link, changes
        self._ready = False  # commands reach us: the broker granted the subscriptions
        self._refused: Refused | None = None
        links = around.links
        self.link: Link | None = Link(
            links.address,
            _link_options(serial, around),
            credentials,
            self,
            backoff=links.backoff,
            connect_timeout_s=links.connect_timeout_s,
            tls=links.tls,
        )

    @property
    def online(self) -> bool:
        """Whether a socket is attached."""
        return self._session.socket is not None

    async def open(self) -> Verdict:
        """Open the link and wait until it can serve the device, for as long as the broker is away."""
        if self.link is not None:
            self.link.open()
        while self.link is not None:
            if self._ready:
                return Verdict.ACCEPTED
            if self._refused is not None and self._refused.code in WRONG_KEY:
                return Verdict.DENIED
            if self._change is None:
                self._change = self._loop.create_future()
            await asyncio.wait({self._change})
        return Verdict.UNAVAILABLE

    def handle(self, fact: f.Fact) -> None:
        """Hand a fact to the session and carry out what it wants."""
        effects = self._session.handle(fact, self._loop.time())
        self._around.metrics.observe(fact, effects)
        for effect in effects:
            self._carry_out(effect)
        if effects and self.link is not None:
            self.link.flush()
        self._arm()

    def link_event(self, event: LinkEvent) -> None:
        """Turn what the link says into facts."""
        match event:
            case Received():
                self._received(event)
            case Published():
                if event.code >= 0x80:
                    log.warning("publish refused", extra={"serial": self.serial, "code": event.code})
                self.handle(f.Published(event.token))
            case Opened():
                self._refused = None
                self.handle(f.LinkOpened(event.session_present))
            case Subscribed():
                if event.refused:
                    log.error("subscription refused", extra={"serial": self.serial, "filters": event.refused})
                self._ready = not event.refused
                self._changed()
            case Down():
                log.info("link lost", extra={"serial": self.serial, "reason": event.reason})
                self._ready = False
                self.handle(f.LinkLost())
            case Refused():
                log.warning("link refused", extra={"serial": self.serial, "code": event.code, "reason": event.reason})
                self._refused = event
                self._changed()
            case Closed():
                self._move(event)
            case Dropped():
                log.warning("event dropped: the broker is away for too long", extra={"serial": self.serial})
            case Unavailable():
                log.debug("broker unavailable: %s", event.reason)

    def attach(self, socket: Socket) -> None:
        """This socket is the device from now on."""
        if self._park is not None:
            self._park.cancel()
            self._park = None
        self.handle(f.Attached(socket.number, socket.client, now_rfc3339()))

    def lost(self, socket: Socket, reason: str) -> None:
        """A socket that was the device, and may still be, is gone."""
        self.handle(f.Lost(socket.number, reason, now_rfc3339()))
        if not self.online and self._park is None:
            self._park = self._loop.call_later(self._around.links.session_s, self._give_up_parked)

    async def close(self) -> None:
        """Close the link so that the broker keeps the session."""
        for timer in (self._timer, self._park):
            if timer is not None:
                timer.cancel()
        self._timer = self._park = None
        link, self.link = self.link, None
        self._changed()
        if link is not None:
            await link.close()

    def _received(self, event: Received) -> None:
        now = datetime.now(UTC)
        read = self._around.reader.read(self.serial, event.message, event.delivery, event.duplicate, now)
        if not isinstance(read, str):
            self.handle(read)
            return
        log.warning("unusable message", extra={"serial": self.serial, "problem": read[:200]})
        if event.delivery is not None and self.link is not None:
            self.link.puback(event.delivery)
            self.link.flush()

    def _carry_out(self, effect: f.Effect) -> None:
        match effect:
            case f.Emit():
                self._around.sockets.emit(effect.socket, effect.event, effect.args, effect.emit_id)
            case f.Publish() if self.link is not None:
                self.link.publish(effect.message, effect.token, effect.droppable)
            case f.Publish():
                self._around.node_link.publish(effect.message)
            case f.Puback() if self.link is not None:
                self.link.puback(effect.delivery)
            case f.Reply():
                self._around.sockets.reply(effect.socket, effect.ack_id, effect.args)
            case f.Relay():
                self._around.node_link.relay(effect.socket, effect.room, effect.event, effect.message)
            case f.Drop():
                self._around.sockets.close(effect.socket, CloseReason(effect.reason))
            case f.Ignore():
                log.debug("ignored: %s", effect.what)

    def _arm(self) -> None:
        """Keep one timer at the session's deadline; a timer that is early only looks again."""
        deadline = self._session.deadline
        if deadline is None or (self._timer is not None and self._timer.when() <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.handle(f.Ticked())

    def _move(self, event: Closed) -> None:
        log.info("device moved", extra={"serial": self.serial, "code": event.code, "reason": event.reason})
        self.link = None
        self._changed()
        self.handle(f.Moved())
        self._gone(self)

    def _give_up_parked(self) -> None:
        self._park = None
        if not self.online:
            self._gone(self)

    def _changed(self) -> None:
        change, self._change = self._change, None
        if change is not None and not change.done():
            change.set_result(None)


class Devices:
    """Every device whose link is on this node; admits sockets as devices.

    Args:
        authenticator: checks keys before a link is opened; None where the broker does, by the link's CONNECT.
        credentials: the gateway's own, for links of devices that an authenticator has checked.
    """

    def __init__(self, around: Surroundings, authenticator: Authenticator | None, credentials: Credentials) -> None:
        self._around = around
        self._authenticator = authenticator
        self._credentials = credentials
        self._devices: dict[str, Device] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(tuple(self._devices.values()))

    async def admit(self, claim: DeviceKey, accepted: Callable[[], None]) -> Device | Verdict:
        """Check a claim and open the device's link; return the device, ready to be attached, or the verdict.

        While the broker, or who else must say yes, is away, it waits: a device is not told that its key is wrong.

        Args:
            accepted: called when the key is known to be right, and only the broker is still waited for.
        """
        if self._authenticator is not None:
            verdict = await self._authenticator.check(claim)
            if verdict is not Verdict.ACCEPTED:
                return verdict
            accepted()
            return await self._open(claim.serial, self._credentials)
        return await self._prove(claim)

    async def close(self) -> None:
        """Close every link so that the broker keeps the sessions."""
        await asyncio.gather(*(device.close() for device in self), *self._closing)
        self._devices.clear()

    async def _open(self, serial: str, credentials: Credentials) -> Device | Verdict:
        device = self._devices.get(serial)
        if device is None:
            device = self._devices[serial] = Device(serial, credentials, self._around, self._forget)
        verdict = await device.open()
        if verdict is Verdict.ACCEPTED:
            return device
        if not device.online:
            self._forget(device)
        return verdict

    async def _prove(self, claim: DeviceKey) -> Device | Verdict:
        """Let the broker check the key, by a CONNECT as the device, also when the device has a link already."""
        credentials = Credentials(claim.serial, claim.key.encode())
        known = self._devices.get(claim.serial)
        if known is None or known.link is None:
            return await self._open(claim.serial, credentials)
        while True:
            match await known.link.prove(credentials):
                case Opened():
                    return await self._open(claim.serial, credentials)
                case Refused(code=code) if code in WRONG_KEY:
                    return Verdict.DENIED
                case _ if known.link is None:
                    return Verdict.UNAVAILABLE
                case _:
                    await asyncio.sleep(self._around.links.backoff.max_s * secrets.randbelow(1000) / 1000)

    def _forget(self, device: Device) -> None:
        """Drop a device that moved or was away for too long, unless another has its place."""
        if self._devices.get(device.serial) is device:
            del self._devices[device.serial]
        task = asyncio.create_task(device.close(), name=f"close-{device.serial}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _link_options(serial: str, around: Surroundings) -> Options:
    topics, links = around.topics, around.links
    gone = Presence(online=False, node=around.node, reason="gateway-lost")
    will = Message(topics.presence(serial), msgspec.json.encode(gone), qos=1, retain=True, content_type=JSON_TYPE)
    return Options(
        client_id=client_id(topics.prefix, serial),
        subscriptions=(
            Subscription(topics.commands_filter(serial)),
            Subscription(topics.replies_filter(serial)),
        ),
        will=Will(will, links.will_delay_s),
        keep_alive_s=links.keep_alive_s,
        session_expiry_s=links.session_s,
        receive_maximum=links.receive_maximum,
    )


def client_id(prefix: str, name: str) -> str:
    """Return the MQTT client id of a device, by which the broker knows its one owner."""
    return f"{prefix.replace('/', '-')}:{name}"


def now_rfc3339() -> str:
    """Return the time of day, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
