"""One device: drives its DeviceSession between its link and its socket.

Facts from both are handed to the session, its effects are carried out in order, and one timer is kept at its
deadline. A link outlives its socket: a device that is away stays, parked.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from functools import lru_cache
from math import inf
from time import monotonic, time
from typing import Final

import msgspec

from gateway import facts as f
from gateway.alarms import TIMER_GRAIN_S
from gateway.bodies import Life, Presence
from gateway.engine.effects import CloseReason
from gateway.mqtt.link import Link
from gateway.mqtt.values import (
    FAILURE,
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
    Settled,
    Subscribed,
    Subscription,
    Unavailable,
    Will,
)
from gateway.session import DeviceSession
from gateway.sockets import Socket
from gateway.surroundings import OWNER_SPEAKS_MAX_S, OWNER_SPEAKS_MIN_S, Surroundings, client_id, now_rfc3339
from gateway.topics import JSON_TYPE

log = logging.getLogger(__name__)

FLOOD_EVENTS: Final = 100  # events that wait for the broker before the device is not read any more
CATCH_UP_S: Final = 10.0
CLAIM_LOOK_S: Final = 10.0  # until a device that would leave, but is being admitted, is looked at again
CATCH_UP_LOOK_S: Final = 0.01


class Device:
    """One device: its session, its link and the timer between them.

    Attributes:
        claims: how many sockets are being admitted to it.
        used: a socket was attached at some time.
    """

    __slots__ = (
        "_around", "_changes", "_gone", "_loop", "_park", "_ready", "_session", "_timer", "_timer_at", "claims", "link",
        "serial", "used",
    )  # fmt: skip

    def __init__(
        self, serial: str, credentials: Credentials, around: Surroundings, gone: Callable[["Device"], None]
    ) -> None:
        # First what every message needs, for it to be side by side.
        self._session = DeviceSession(
            serial, around.life, around.topics, around.catalog, around.limits, around.shared, secrets.token_hex(4)
        )
        self._around = around
        self.serial = serial
        self._timer_at = inf  # uvloop's handles do not say, where the time has passed
        self._changes: tuple[asyncio.Future[None], ...] = ()  # who waits for something to change
        links = around.links
        self.link: Link | None = Link(
            links.address,
            _link_options(serial, around),
            credentials,
            self,
            alarms=links.alarms,
            backoff=links.backoff,
            connect_timeout_s=links.connect_timeout_s,
            tls=links.tls,
            may_reconnect=self._may_reconnect,
            waiting_bytes=around.waiting_bytes,
        )
        self.claims = 0
        self.used = False
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._park: asyncio.TimerHandle | None = None
        self._ready = False  # commands reach us: the broker granted the subscriptions

    @property
    def online(self) -> bool:
        """Whether a socket is attached."""
        return self._session.socket is not None

    async def ready(self) -> bool:
        """Wait, for as long as the broker is away, until the link serves the device; False if it is gone for good."""
        while self.link is not None and not self._ready:
            await self._next_change()
        return self.link is not None

    def handle(self, fact: f.Fact, read_at: float | None = None, *, flush: bool = True) -> None:
        """Hand a fact to the session and carry out what it wants; `read_at`: when it was read, if it was.

        Without `flush` the link writes what is for the broker: it does so after the events of each read.
        """
        now = monotonic() if read_at is None else read_at
        effects = self._session.handle(fact, now)
        counted = self._around.metrics.sessions
        stage = counted.observe(fact, effects, now)
        for observer in self._around.observers:
            observer.observe(self.serial, fact, effects, now)
        for effect in effects:
            if not isinstance(effect, f.Conclude):  # which only says what became of a command
                self._carry_out(effect)
        # The link takes the time from there: a look at the clock costs 0.3 µs in between all else.
        done_at = counted.done(stage, read_at) if stage is not None and read_at is not None else None
        if flush and effects and self.link is not None:
            self.link.flush(done_at)
        if self._changes and not self._session.in_flight:
            self._changed()  # somebody waits: for the link, or for the last ack
        self._arm()

    def link_event(self, event: LinkEvent) -> None:
        """Turn what the link says into facts."""
        if isinstance(event, Received):
            self._received(event)
        elif isinstance(event, Published):
            self._published(event)
        elif isinstance(event, Settled):
            self.handle(f.Settled(event.delivery), flush=False)
        else:
            self._around.metrics.links.observe(event, "device")
            self._changed_link(event)

    def _published(self, event: Published) -> None:
        sent = event.sent_at is not None
        answered = sent and not event.code  # by the broker, in what was just read
        read_at = self.link.read_at if answered and self.link is not None else monotonic()
        self._around.metrics.links.published(event, read_at)
        if event.token is None:
            return
        if event.code >= FAILURE:
            log.warning("publish refused by the broker", extra={"serial": self.serial, "code": event.code})
        self.handle(f.Published(event.token, event.code, sent), read_at, flush=False)

    def _changed_link(self, event: LinkEvent) -> None:
        match event:
            case Opened():
                self.handle(f.LinkOpened(event.session_present))
            case Subscribed():
                if event.refused:
                    log.error("subscription refused", extra={"serial": self.serial, "filters": event.refused})
                self._serve(not event.refused)
                self._changed()
            case Down():
                log.debug("link of %s lost: %s", self.serial, event.reason)
                self._serve(False)
                self.handle(f.LinkLost())
            case Closed():
                self._move(event)
            case Refused() | Unavailable():
                log.debug("link of %s: %s", self.serial, event.reason)  # the node says so for all

    def open(self) -> None:
        """Begin to connect the link, if it is not."""
        if self.link is not None:
            self.link.open()

    def attach(self, socket: Socket) -> None:
        """This socket is the device from now on."""
        self.used = True
        if self._park is not None:
            self._park.cancel()
            self._park = None
        now = self._loop.time()
        turn = self._around.replays.turn(now) if self._session.open_commands else now
        self.handle(f.Attached(socket.number, socket.client, now_rfc3339(), held=turn > now))
        if turn > now:
            self._loop.call_at(turn, self._release, socket.number)

    def lost(self, socket: Socket, reason: str) -> None:
        """A socket that was the device, and may still be, is gone."""
        self.handle(f.Lost(socket.number, reason, now_rfc3339()))
        if not self.online and self._park is None and self.link is not None:
            self._park = self._loop.call_later(self._around.links.session_s, self._leave)

    def adopt(self) -> None:
        """An earlier life of this node had the device: hold its commands as if it had just gone away."""
        self.used = True
        self._park = self._loop.call_later(self._around.links.session_s, self._leave)
        self.open()

    def adopted(self, presence: Presence) -> None:
        """Nobody else had it when it was adopted: say that it is away where `presence`, the last word, does not."""
        if presence.online or presence.since is None:  # the Will is not sent for a session that goes on
            self.handle(f.Adopted(now_rfc3339()))

    @property
    def silent(self) -> bool:
        """Whether nothing has been said of the device in this life of the node, and nobody is being admitted to it."""
        return not self._session.announced and not self.claims

    @property
    def floods(self) -> bool:
        """Whether the device emits faster than a broker that is there takes it."""
        return self.link is not None and self.link.connected and self.link.backlog > FLOOD_EVENTS

    async def catch_up(self) -> None:
        """Wait until the broker has taken what the device emitted, or seems to have stopped taking anything."""
        until = self._loop.time() + CATCH_UP_S
        while self.floods and self._loop.time() < until:  # noqa: ASYNC110 - the link tells nobody of its backlog
            await asyncio.sleep(CATCH_UP_LOOK_S)

    async def drain(self, until: float, reason: CloseReason = CloseReason.SHUTDOWN) -> None:
        """Wait for the acks under way, no longer than `until` (loop time); then let socket and link go."""
        while self._session.in_flight and self._loop.time() < until and self.link is not None:
            await asyncio.wait({self._next_change()}, timeout=until - self._loop.time())
        socket = self._session.socket
        if socket is not None:
            self._around.sockets.close(socket, reason)
            self.handle(f.Lost(socket, reason, now_rfc3339()))
        await self.close()

    async def close(self) -> None:
        """Close the link so that the broker keeps the session; what has not left with it is the node's to say."""
        for timer in (self._timer, self._park):
            if timer is not None:
                timer.cancel()
        self._timer = self._park = None
        link, self.link = self.link, None
        self._serve(False)
        self._changed()
        if link is not None:
            await link.close()
            self._hand_over(link)

    def _serve(self, ready: bool) -> None:
        """Note whether commands reach us."""
        self._around.metrics.links.serving.n += ready - self._ready
        self._ready = ready

    def _hand_over(self, link: Link) -> None:
        """Let the node say what has not left with the link: outcomes that nobody else will say, and events."""
        self.handle(f.Moved())
        for message in link.leftover():
            self._around.node_link.publish(message, droppable=True)

    def _release(self, socket: int) -> None:
        if self._session.socket == socket:
            self.handle(f.Released())

    def _received(self, event: Received) -> None:
        if self.link is None:  # it is being closed: the next owner gets this again
            return
        read = self._around.reader.read(self.serial, event.message, event.delivery, event.duplicate, time)
        if not isinstance(read, str):
            self.handle(read, self.link.read_at, flush=False)
            return
        self._around.metrics.sessions.ignored["unusable_reply"].n += 1
        log.warning("unusable message", extra={"serial": self.serial, "problem": read[:200]})
        if event.delivery is not None:
            self.link.puback(event.delivery)

    def _carry_out(self, effect: f.Effect) -> None:
        """Do what an effect says; those that are only to be counted ask for nothing."""
        if isinstance(effect, f.Emit):
            command = effect.command
            self._around.sockets.emit(effect.socket, command.event.name, command.args, effect.emit_id)
        elif isinstance(effect, f.Publish) and self.link is not None:
            self.link.publish(effect.message, effect.token, effect.droppable, effect.settles)
        elif isinstance(effect, f.Publish):
            self._around.node_link.publish(effect.message)
            if effect.token is not None:  # it is the node's from here on
                self.handle(f.Published(effect.token))
        elif isinstance(effect, f.Puback) and self.link is not None:
            self.link.puback(effect.delivery, confirm=effect.confirm)
        elif isinstance(effect, f.Reply):
            self._around.sockets.reply(effect.socket, effect.ack_id, effect.args)
        elif isinstance(effect, f.Relay):
            self._around.node_link.relay(effect.socket, effect.room, effect.event, effect.message)
        elif isinstance(effect, f.Drop):
            self._around.sockets.close(effect.socket, CloseReason(effect.reason))
        elif isinstance(effect, f.Ignore):
            log.debug("ignored: %s", effect.what)

    def _arm(self) -> None:
        """Keep one timer at the session's deadline, or before it: one that is early only looks again."""
        soonest = self._session.soonest
        if soonest >= self._timer_at or self.link is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = soonest
        self._timer = self._loop.call_at(soonest + TIMER_GRAIN_S, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, inf
        self.handle(f.Ticked())

    def _move(self, event: Closed) -> None:
        log.info("device moved", extra={"serial": self.serial, "code": event.code, "reason": event.reason})
        self._around.metrics.sockets.takeovers.n += 1
        link, self.link = self.link, None
        self._serve(False)
        self._changed()
        if link is not None:
            self._hand_over(link)
        self._gone(self)

    def _leave(self) -> None:
        """The device has been away for too long; what is open is still answered before its link goes."""
        self._park = None
        deadline = self._session.deadline
        if deadline is not None:
            self._park = self._loop.call_at(deadline + 1.0, self._leave)
        elif self.claims:
            self._park = self._loop.call_later(CLAIM_LOOK_S, self._leave)
        elif not self.online:
            self._gone(self)

    async def give_way(self) -> bool:
        """If the link is down and another has the device by now, let it go; whether that is so.

        Its commands, of which the other may have carried out some, must not meet the sessions that come back.
        """
        link = self.link
        if link is None or link.connected or not self.used or await self._is_ours():
            return self.link is None
        await link.close()
        if self.link is link:
            self._move(Closed(None, "gave way"))
        return True

    async def _may_reconnect(self) -> bool:
        """Whether a link that was cut without a reason may be opened again: not if another node has the device now."""
        await asyncio.sleep(random.uniform(OWNER_SPEAKS_MIN_S, OWNER_SPEAKS_MAX_S))  # noqa: S311 - spread, not secret
        return await self._is_ours()

    async def _is_ours(self) -> bool:
        around = self._around
        theirs = await around.node_link.presence(self.serial)
        ours = self._session.presence or Presence(False, around.life.node)
        return not around.node_link.displaced and (theirs is None or not theirs.is_newer_than(ours, around.life))

    def _next_change(self) -> asyncio.Future[None]:
        """Resolved when something may have changed; the caller's own, who may cancel it."""
        change: asyncio.Future[None] = self._loop.create_future()
        self._changes = (*(other for other in self._changes if not other.done()), change)
        return change

    def _changed(self) -> None:
        changes, self._changes = self._changes, ()
        for change in changes:
            if not change.done():
                change.set_result(None)


@lru_cache(maxsize=1)
def _gone(life: Life) -> bytes:
    """What the broker is to say of a device when the node is gone: the same for all."""
    return msgspec.json.encode(Presence(False, life.node, reason="gateway-lost", started=life.started))


def _link_options(serial: str, around: Surroundings) -> Options:
    topics, links = around.topics, around.links
    will = Message(topics.presence(serial), _gone(around.life), qos=1, retain=True, content_type=JSON_TYPE)
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
