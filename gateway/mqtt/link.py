"""The transport of one session: connects, proves itself, reconnects, and hands events to its owner in order.

Every connection attempt proves itself by its CONNACK and is then promoted in place of the current one; the callbacks of
any other connection touch nothing. One attempt is made at a time, and one that fails changes nothing. Tasks exist only
while the link connects or waits to. What a message means, and whether a lost session is worth a fight, is the owner's.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import mqtt5

from gateway.addresses import BrokerUrl
from gateway.alarms import Alarms
from gateway.limits import Budget
from gateway.mqtt.connection import DETACHED, Connection, connect_transport
from gateway.mqtt.session import SESSION_TAKEN_OVER, MqttSession
from gateway.mqtt.values import (
    Backoff,
    Closed,
    Credentials,
    Down,
    Event,
    LinkOwner,
    Message,
    Opened,
    Options,
    Subscription,
    Unavailable,
    Verdict,
)

log = logging.getLogger(__name__)

TOGETHER_S: Final = 0.25  # links that are due within it wake at one time, and wake the broker once


class Link:
    """One MQTT session kept connected; its calls are for the thread of the event loop.

    Args:
        may_reconnect: asked before every attempt after a cut without a reason, which is also how some brokers tell of
            a takeover; False ends the link with Closed, an exception means True. It bounds its own time, and is
            cancelled by `close()` and a `prove()` that the broker accepts.
        alarms: what wakes it, from `link_alarms()`: one for all links.
        waiting_bytes: see `MqttSession`.
    """

    __slots__ = (
        "_address", "_alarms", "_attempting", "_backoff", "_connect_timeout_s", "_credentials", "_current",
        "_cut_without_reason", "_drained", "_ended", "_failures", "_held", "_may_reconnect", "_owner", "_proofs",
        "_session", "_task", "_tls", "_uniform", "_wanted", "read_at",
    )  # fmt: skip

    def __init__(
        self,
        address: BrokerUrl,
        options: Options,
        credentials: Credentials,
        owner: LinkOwner,
        *,
        alarms: "Alarms[Link]",
        backoff: Backoff,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
        may_reconnect: Callable[[], Awaitable[bool]] | None = None,
        waiting_bytes: Budget | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        # First what every message needs, for it to be side by side.
        self._session = MqttSession(options, waiting_bytes)
        self._current: Connection | None = None
        self._owner = owner
        self.read_at = 0.0  # when the latest bytes came, in monotonic seconds
        self._drained: asyncio.Future[None] | None = None  # `close()` waits for the last PUBACK
        self._address = address
        self._tls = tls
        self._credentials = credentials
        self._alarms = alarms
        self._backoff = backoff
        self._connect_timeout_s = connect_timeout_s
        self._may_reconnect = may_reconnect
        self._uniform = uniform
        self._wanted = False  # whether to reconnect
        self._ended = False  # no attempt may begin before the next `open()`
        self._failures = 0  # attempts since the last Opened
        self._cut_without_reason = False  # how the last connection ended
        self._task: asyncio.Task[Any] | None = None  # connects, or waits to
        self._attempting: asyncio.Task[Verdict] | None = None  # the one connection that proves itself
        self._proofs: asyncio.Lock | None = None  # in the order of `prove()`
        self._held: Closed | None = None  # loss of the current connection while another proves itself

    # --- connecting

    @property
    def connected(self) -> bool:
        """Whether a connection is current."""
        return self._current is not None

    @property
    def backlog(self) -> int:
        """How many publishes wait to be written, because the broker is away or does not keep up."""
        return self._session.backlog

    def open(self) -> None:
        """Connect, and reconnect after each loss, until `close()` or the event Closed."""
        self._wanted, self._ended = True, False
        if self._attempting is not None:
            self._reconnect(wait=False)
        elif self._current is None and self._task is None:
            self._task = first = self._begin(self._credentials)
            first.add_done_callback(self._first_ended)

    async def prove(self, credentials: Credentials) -> Verdict:
        """Connect anew with the same client id; Opened if the broker accepted the credentials.

        Then it replaces the current connection (the owner sees but its Opened) and the credentials are kept. Otherwise
        nothing has changed: a reconnect is never put off by more than the one attempt that is under way.
        """
        if self._proofs is None:
            self._proofs = asyncio.Lock()
        async with self._proofs:
            return await self._attempt(credentials)

    async def close(self, *, session_expiry_s: int | None = None, timeout_s: float = 5.0) -> None:
        """Stop, once the broker has all publishes: say goodbye, with another session expiry if given.

        The owner is told what happens until the goodbye, and may answer it; it is not told of the goodbye. A loss
        ends it, without a reconnect. The broker has `timeout_s` for its PUBACKs and as long again to close the
        connection after the goodbye. May be called again at any time; of several at once the first goodbye counts.
        """
        if ending := self._end():
            await asyncio.wait(ending)
        connection = self._current
        if connection is None:
            return
        try:
            await self._drain(connection, timeout_s)
        finally:  # a caller that is cancelled has said goodbye, too
            if connection is self._current:
                self._leave()
                self._session.disconnect(session_expiry_s=session_expiry_s)
                connection.finish(self._session.output(monotonic()))
        await connection.finished(timeout_s)

    def _end(self) -> set[asyncio.Task[Any]]:
        """Connect no more; return the tasks that end."""
        self._wanted, self._ended, self._held = False, True, None
        ending = {task for task in (self._task, self._attempting) if task is not None}
        for task in ending:
            task.cancel()
        return ending

    async def _drain(self, connection: Connection, timeout_s: float) -> None:
        """Wait until the broker has all publishes, or the connection is not current any more."""
        self.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while connection is self._current and not self._session.all_published:
                    self._drained = self._drained or asyncio.get_running_loop().create_future()
                    await asyncio.wait({self._drained})

    async def _connect(self, *, wait: bool) -> None:
        """Try until the broker accepts, or `may_reconnect` says no; wait before the first try, or not."""
        while True:
            if wait:
                await asyncio.sleep(self._backoff.delay_s(self._failures, self._uniform))
                if self._cut_without_reason and not await self._ask():
                    if self._attempting is not None:
                        await asyncio.wait({self._attempting})  # if it is accepted, this task is cancelled
                    self._stop(Closed(None, "gave way"))
                    return
            verdict = await self._attempt(self._credentials)
            if isinstance(verdict, Opened):
                return
            wait = True
            self._failures += 1
            self._owner.link_event(verdict)

    async def _ask(self) -> bool:
        try:
            return self._may_reconnect is None or await self._may_reconnect()
        except Exception:
            log.exception("who owns the session cannot be told: it is ours until we hear otherwise")
            return True

    async def _attempt(self, credentials: Credentials) -> Verdict:
        """Make a new connection when no other is being made: of two that are accepted the later kills the earlier."""
        while self._attempting is not None:
            await asyncio.wait({self._attempting})
        if self._ended:
            return DETACHED
        attempt = self._begin(credentials)
        await asyncio.wait({attempt})
        return DETACHED if attempt.cancelled() else attempt.result()

    def _begin(self, credentials: Credentials) -> asyncio.Task[Verdict]:
        """Make a new connection; no other is being made."""
        attempt = asyncio.get_running_loop().create_task(self._try(credentials))
        self._attempting = attempt
        attempt.add_done_callback(self._attempted)
        return attempt

    def _first_ended(self, attempt: asyncio.Task[Verdict]) -> None:
        """Try again, if the attempt of `open()` came to nothing, and nobody wants it to end."""
        if attempt is self._task:  # which it is no more once it is promoted
            self._task = None
            if self._wanted and not attempt.cancelled():
                self._failures += 1
                self._owner.link_event(attempt.result())
                self._reconnect()

    async def _try(self, credentials: Credentials) -> Verdict:
        """Let one new connection prove itself; it is current when the verdict is Opened, else closed."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        verdict: asyncio.Future[Verdict] = loop.create_future()
        connection, reason = Connection(self, verdict), "closed"
        timer = loop.call_later(self._connect_timeout_s, connection.expire, task)  # asyncio.timeout costs five of it
        try:
            await connect_transport(self._address, self._tls, connection)
            connection.write(self._session.opening(credentials))
            await verdict
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name
            reason = str(error)
        except asyncio.CancelledError:
            if not connection.expired or task is None or task.uncancel():
                raise  # it is not only late
        finally:
            timer.cancel()
            if connection is not self._current:  # a promotion may be faster than a timeout or a cancellation
                connection.detach(Unavailable(reason))
        if isinstance(verdict.result(), Opened):
            self._credentials, self._wanted = credentials, True
        return verdict.result()

    def _attempted(self, attempt: asyncio.Task[Verdict]) -> None:
        """Tell what the attempt kept back, unless it succeeded."""
        if attempt is self._attempting:
            self._attempting = None
            held, self._held = self._held, None
            if held is not None and not attempt.cancelled():
                self._tell_loss(held)

    def _done(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            self._task = None
        if not task.cancelled():
            task.result()

    def _reconnect(self, *, wait: bool = True) -> None:
        if self._wanted and self._current is None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._connect(wait=wait))
            self._task.add_done_callback(self._done)

    # --- the current connection

    def promote(self, connection: Connection, connack: mqtt5.ConnAckPacket, rest: bytes) -> None:
        """Make a connection current that has proved itself; the one before ends unnoticed."""
        task, self._task = self._task, None
        if task is not None and task is not self._attempting:  # it has what it waits for, whoever made the attempt
            task.cancel()
        old = self._leave()
        if old is not None:
            old.detach()
        self._current = connection
        self._held, self._failures, self._cut_without_reason = None, 0, False
        self._deliver(self._session.opened(connack, monotonic()))
        self.received(connection, rest)
        self._arm()

    def _leave(self) -> Connection | None:
        """Have no current connection any more; the one it was."""
        connection, self._current = self._current, None
        self._alarms.cancel(self)
        self._end_drain()
        return connection

    def _end_drain(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set_result(None)

    def received(self, connection: Connection, data: bytes) -> None:
        """Bytes came on a connection."""
        if connection is self._current:
            self.read_at = monotonic()
            if events := self._session.receive(data):
                self._deliver(events)
            self.flush(self.read_at)

    def cut(self, connection: Connection, reason: str) -> None:
        """Note the end of a transport; only that of the current one matters."""
        if connection is self._current:
            self._session.closed()
            self._lost(Closed(None, reason))
            self.flush()

    def _lost(self, event: Closed) -> None:
        """Drop the current connection, whose session is closed, after its last words."""
        connection = self._leave()
        if connection is None:
            return
        connection.write(self._session.output(monotonic()))
        connection.detach() if connection.paused else connection.drop()  # it may never read again
        if self._attempting is not None:
            self._held = event  # most likely its doing: the broker lets the new connection kill this one
        else:
            self._tell_loss(event)

    def _tell_loss(self, event: Closed) -> None:
        if event.code == SESSION_TAKEN_OVER:
            self._stop(event)
        else:
            self._cut_without_reason = event.code is None
            self._owner.link_event(Down(event.reason, event.code))
            self._reconnect()

    def _stop(self, event: Closed) -> None:
        self._wanted, self._ended = False, True
        self._owner.link_event(event)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Closed):
                self._lost(event)
            else:
                self._owner.link_event(event)

    def _arm(self) -> None:
        """Wake soon after the deadline of the session; as that only moves later, no write needs to re-arm."""
        deadline = self._session.deadline
        if deadline is not None:
            self._alarms.set(self, deadline)

    def tick(self, now: float) -> None:
        """Keep the connection alive, if it is time to."""
        deadline = self._session.deadline
        if deadline is not None and deadline > now:  # something was written since
            self._alarms.set(self, deadline)
            return
        self._deliver(self._session.tick(now))
        self.flush()
        self._arm()

    # --- messages: written by flush(), several in one write

    def flush(self, now: float | None = None) -> None:
        """Write what is due, `now` if it is known; the link does so itself after the events of each read."""
        session, connection = self._session, self._current
        if session.has_output:
            transport = None if connection is None else connection.ready
            if transport is None:
                session.hold()
            elif data := session.output(monotonic() if now is None else now):
                transport.write(data)
        if session.has_events:
            asyncio.get_running_loop().call_soon(self._deliver_later)  # the owner is on the stack
        elif self._drained is not None and session.all_published:
            self._end_drain()

    def _deliver_later(self) -> None:
        self._deliver(self._session.take_events())
        self.flush()

    def publish(
        self, message: Message, token: int | None = None, droppable: bool = False, settles: int | None = None
    ) -> None:
        """See `MqttSession.publish`."""
        self._session.publish(message, token, droppable, settles)

    def leftover(self) -> list[Message]:
        """See `MqttSession.leftover`; for a link that has stopped or was closed."""
        return self._session.leftover()

    def puback(self, delivery: int, *, confirm: bool = False) -> None:
        """See `MqttSession.puback`."""
        self._session.puback(delivery, confirm=confirm)

    def subscribe(self, subscription: Subscription) -> None:
        """See `MqttSession.subscribe`."""
        self._session.subscribe(subscription)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `MqttSession.unsubscribe`."""
        self._session.unsubscribe(topic_filter)


def link_alarms() -> Alarms[Link]:
    """What wakes the links of a node."""
    return Alarms(Link.tick, TOGETHER_S)
