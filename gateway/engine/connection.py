"""One session on its transports: applies what the session decides, and calls the application.

The application sees connections: `sid`, `generation`, `environ`, `send`, `close`, `admit`. Its callbacks for
one connection come strictly one after the other. One that returns an awaitable is waited for, by the reader
of that device and by nobody else, before the next: so a device that sends faster than its work is done is
not read. It must not wait for anything that the same device has yet to send, nor longer than a heartbeat.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import Any, Final, Protocol, assert_never

from gateway.admission import Refusal
from gateway.engine.codec import MESSAGE, Generation, Packet, decode_frame
from gateway.engine.effects import (
    NOTHING,
    Answer,
    Closed,
    CloseReason,
    Deliver,
    DropProbe,
    Effect,
    Effects,
    Forget,
    Switch,
    Transport,
    Write,
    WriteProbe,
)
from gateway.engine.options import EngineOptions
from gateway.engine.session import Session
from gateway.engine.websocket import FRAMES_PER_TURN, TOO_BIG, WebSocket

logger = logging.getLogger(__name__)

Pending = Awaitable[object] | None

STRANGER_BYTES: Final = 65_536  # of one that nobody has admitted: it says who it is, and no more
PACE_BURST_S: Final = 10.0  # how many seconds' worth a peer may send at once
PACE_WAIT_MAX_S: Final = 5.0  # for one message, however large


class Application(Protocol):
    """What a connection needs of its server."""

    options: EngineOptions
    on_connected: Callable[["Connection"], Pending]
    on_message: Callable[["Connection", str | bytes], Pending]
    on_closed: Callable[["Connection", CloseReason], Pending]
    on_upgraded: Callable[["Connection"], None]
    watch: Callable[["Connection", float], None]
    """Calls `tick` when this deadline of the session has come; that may be a little late, and once too early."""

    def admitted(self, connection: "Connection") -> None:
        """The application knows who it is."""

    def forget(self, connection: "Connection") -> None:
        """No request may find the connection any more."""

    def keep(self, pending: Awaitable[object]) -> None:
        """See to it that `pending` is awaited."""

    def refused(self, reason: Refusal) -> None:
        """A peer was refused something, or slowed down."""


class Connection:
    """One Engine.IO connection of one peer."""

    __slots__ = (
        "_app",
        "_busy",
        "_paid_until",
        "_poll",
        "_probe",
        "_socket",
        "_taken",
        "_told",
        "_wakes_at",
        "environ",
        "peer",
        "posting",
        "read_at",
        "session",
    )

    def __init__(self, app: Application, session: Session, environ: dict[str, Any]) -> None:
        # First what every message needs, for it to be side by side.
        self.session = session
        self.read_at = 0.0  # when the latest packet was read, in monotonic seconds
        self.peer: object = None  # what the application makes of it; the application's to set
        self._socket: WebSocket | None = None  # which carries the session, and takes what is sent
        self._app = app
        self._busy = 0
        self._paid_until = 0.0  # when what the peer sent would have been sent at its rate
        self.environ = environ
        self.posting = False
        self._told = False
        self._wakes_at = inf  # when it will be ticked at the latest
        self._taken = 0
        self._poll: asyncio.Future[None] | None = None
        self._probe: WebSocket | None = None

    # -- for the application ---------------------------------------------------------------------------

    @property
    def sid(self) -> str:
        """The Engine.IO session id."""
        return self.session.sid

    @property
    def generation(self) -> Generation:
        """The generation that was chosen at the handshake."""
        return self.session.generation

    @property
    def transport(self) -> Transport:
        """What carries the session now."""
        return self.session.transport

    def send(self, data: str | bytes) -> None:
        """Write a message, or keep it for the next poll. Never waits; nothing happens once it is closed."""
        socket = self._socket
        if socket is None or not isinstance(data, str):
            self.apply(self.session.send(data))
        elif not socket.write(MESSAGE + data):  # as the session would have it written
            self.close(CloseReason.SLOW)

    def send_shared(self, data: str, frame: bytes) -> None:
        """Send a message that goes to many; `frame` is what `framed` makes of its packet."""
        socket = self._socket
        if socket is None or socket.deflates:
            self.send(data)
        elif not socket.write_framed(frame):
            self.close(CloseReason.SLOW)

    def close(self, reason: CloseReason = CloseReason.SERVER) -> None:
        """End the connection; the first reason counts."""
        self.apply(self.session.close(reason, monotonic()))

    def admit(self) -> None:
        """Stop the clock that closes sessions which nobody vouches for."""
        self.session.admit()
        self._app.admitted(self)
        for socket in (self._socket, self._probe):
            if socket is not None:
                socket.trust()

    # -- for the transports ----------------------------------------------------------------------------

    def open(self, socket: WebSocket | None = None) -> Pending:
        """Send OPEN and introduce the connection to the application; what comes back is to be waited for."""
        self._socket = socket
        self.apply(self.session.open())
        pending = self._call(None)
        return None if pending is None else self.settle(pending)

    def watch_stranger(self, socket: WebSocket) -> None:
        """Bound what comes over a WebSocket until the application admits the connection."""
        socket.trust() if self.session.admitted else socket.allow(STRANGER_BYTES, self.flooded)

    def refused(self, reason: Refusal) -> None:
        """The peer was refused something."""
        self._app.refused(reason)

    def flooded(self) -> None:
        """The peer has said more than a stranger may."""
        self.refused(Refusal.STRANGER_BYTES)
        for socket in (self._socket, self._probe):
            if socket is not None:
                socket.close(TOO_BIG)
        self.close(CloseReason.MALFORMED)

    def receive(self, packet: Packet, now: float) -> Pending:
        """Take a packet from the session's transport; what comes back is to be waited for before the next."""
        self.read_at = now
        pending = self.apply(self.session.receive(packet, now))
        return None if pending is None else self.settle(pending)

    def _receive_message(self, data: str, now: float) -> Pending:
        """As `receive`, without a packet and an effect."""
        self.read_at = now
        pending = self._call(data) if self.session.hears(now) else None
        return None if pending is None else self.settle(pending)

    async def give_way(self, size: int) -> None:
        """Charge the peer for a packet of a body, and let the others have their turn."""
        wait_s = self._charge(size, monotonic())
        self._taken = (self._taken + 1) % FRAMES_PER_TURN
        if wait_s > 0 or not self._taken:
            await asyncio.sleep(wait_s)

    def _charge(self, size: int, now: float) -> float:
        """Charge the peer for what it sent, so much; how long it has to wait, if it sends too fast, else 0."""
        options = self._app.options
        cost_s = max(1 / options.messages_per_s, size / options.bytes_per_s)
        self._paid_until = cost_s + max(now, self._paid_until)
        wait_s = self._paid_until - now - PACE_BURST_S
        if wait_s <= 0:
            return 0.0
        wait_s = min(wait_s, PACE_WAIT_MAX_S)
        self.refused(Refusal.MESSAGE_RATE)
        self.session.hold(wait_s)
        return wait_s

    def hear(self, socket: WebSocket, frame: str | bytes | None) -> Pending:
        """Take a message of a WebSocket, which may be one that probes."""
        now = monotonic()
        pending: Pending = None
        if frame is not None:
            if isinstance(frame, str) and frame.startswith(MESSAGE) and frame.isascii() and socket is self._socket:
                pending = self._receive_message(frame[1:], now)  # in ASCII the generations are one
            else:
                packet = decode_frame(self.session.generation, frame)
                if socket is self._socket:
                    pending = self.receive(packet, now)
                elif socket is self._probe:
                    self.apply(self.session.receive_probe(packet, now))
        wait_s = self._charge(0 if frame is None else len(frame), now)
        return self._held_up(pending, wait_s) if wait_s else pending

    async def _held_up(self, pending: Pending, wait_s: float) -> None:
        if pending is not None:
            await pending
        await asyncio.sleep(wait_s)

    def ended(self, socket: WebSocket, reason: CloseReason) -> None:
        """A WebSocket ended by itself."""
        if socket is self._socket:
            self.close(reason)
        elif socket is self._probe:
            self.apply(self.session.probe_lost())
        else:
            socket.close()

    def keep(self, pending: Awaitable[object]) -> None:
        """See to it that `pending` is awaited."""
        self._app.keep(pending)

    def may_probe(self, *, base64: bool) -> bool:
        """A WebSocket wants to take over; whether it may try."""
        may = self.session.probe(monotonic(), base64=base64)
        self.apply(NOTHING)
        return may

    def probe(self, socket: WebSocket) -> None:
        """`socket`, which the session let in, probes from here on."""
        self._probe = socket
        socket.start(self)
        if not self.session.probing:  # it came too late
            self.apply((DropProbe(),))

    async def parked(self) -> None:
        """Wait until the parked poll has to be answered."""
        if self.session.has_waiting:
            return
        self._poll = asyncio.get_running_loop().create_future()
        try:
            await self._poll
        finally:
            self._poll = None

    def tick(self, now: float) -> None:
        """Do what is due by now."""
        self._wakes_at, deadline = inf, self.session.deadline
        if deadline <= now:
            self.apply(self.session.tick(now))
        elif deadline < inf:
            self._watch(deadline)

    def _watch(self, deadline: float) -> None:
        self._wakes_at = deadline
        self._app.watch(self, deadline)

    # -- effects ---------------------------------------------------------------------------------------

    def apply(self, effects: Effects) -> Pending:
        """Do what the session decided; what comes back is to be given to `settle`."""
        pending: Pending = None
        for effect in effects:
            pending = self._carry_out(effect) or pending
        deadline = self.session.deadline
        if deadline < self._wakes_at:  # one that only moves later is looked at when the old one has come
            self._watch(deadline)
        return pending

    def _carry_out(self, effect: Effect) -> Pending:
        if isinstance(effect, Write):
            if self._socket is not None and not self._socket.write(effect.frame):
                self.close(CloseReason.SLOW)
        elif isinstance(effect, Deliver):
            return self._call(effect.data)
        elif isinstance(effect, Answer):
            self._answer()
        elif isinstance(effect, WriteProbe):
            self._write_probe(effect)
        elif isinstance(effect, Switch):
            self._switch()
        elif isinstance(effect, DropProbe):
            self._drop_probe()
        elif isinstance(effect, Closed):
            self._closed(effect)
        elif isinstance(effect, Forget):
            self._app.forget(self)
        else:
            assert_never(effect)
        return None

    def _answer(self) -> None:
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(None)

    def _write_probe(self, effect: WriteProbe) -> None:
        if self._probe is not None:
            self._probe.write(effect.frame)

    def _switch(self) -> None:
        self._socket, self._probe = self._probe, None
        self._app.on_upgraded(self)

    def _drop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()

    def _closed(self, effect: Closed) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            unreachable = effect.reason in (CloseReason.SLOW, CloseReason.PING_TIMEOUT)
            socket.abort() if unreachable else socket.close()
        self._tell_closed()

    # -- the application's callbacks -------------------------------------------------------------------

    def _call(self, message: str | bytes | None) -> Pending:
        """Hand over a message; None: introduce the connection."""
        pending: Pending = None
        self._busy += 1
        try:
            pending = self._app.on_connected(self) if message is None else self._app.on_message(self, message)
        except Exception:  # noqa: BLE001 - the application's fault ends its connection, not the reader or the wheel
            self._failed()
        if pending is None:
            self._done()
        return pending

    async def settle(self, pending: Pending) -> None:
        """Wait for the application before it is called again for this connection."""
        if pending is None:
            return
        try:
            await pending
        except Exception:  # noqa: BLE001 - as in _call
            self._failed()
        finally:
            self._done()

    def _failed(self) -> None:
        logger.exception("application callback failed", extra={"sid": self.sid})
        self.close(CloseReason.INTERNAL_ERROR)

    def _done(self) -> None:
        self._busy -= 1
        if self.session.closed is not None:
            self._tell_closed()

    def _tell_closed(self) -> None:
        """Tell the application once, when it is not in another callback."""
        reason = self.session.closed
        if reason is None or self._busy or self._told:
            return
        self._told = True
        try:
            pending = self._app.on_closed(self, reason)
        except Exception:  # noqa: BLE001 - as in _call
            self._failed()
        else:
            if pending is not None:
                self._app.keep(pending)
