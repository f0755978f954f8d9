"""One Engine.IO session as a state machine (pure).

Facts go in as calls, what must be done comes out as effects, time is an argument (monotonic seconds). The
session knows which transport carries it, what waits for a poll, who owes whom a heartbeat, and why it ended;
it knows no socket, no request and no application.

A session opens on long polling or on a WebSocket, may move from the former to the latter once, and closes
once, with one `CloseReason`. The effects of a call must be applied in order, before the next call.
"""

from math import inf
from typing import Final

from gateway.engine.codec import (
    CLOSE,
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    PONG,
    UPGRADE,
    Generation,
    Packet,
    encode_frame,
    encode_payload,
)
from gateway.engine.effects import (
    NOTHING,
    ORDERLY,
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

NOOP_EVERY_S: Final = 0.1  # engine.io lib/socket.ts: how often a parked poll is released during a probe
LINGER_S: Final = 30.0  # engine.io lib/transports/polling.ts: how long CLOSE waits for a poll to carry it
TICK_LATE_S: Final = 0.05  # a device is not charged for a tick that comes later than this, nor paid for one within
WEBSOCKET: Final = Transport.WEBSOCKET  # looked up once: a member of an enumeration costs as much as two calls
PACKET_BYTES: Final = 64  # what a waiting packet costs beside its data: bounds the number of empty ones


class Session:
    """The state of one session. `closed` is None until it is the reason why it ended."""

    __slots__ = (
        "_admit_by",
        "_awaits_pong",
        "_base64",
        "_buffer",
        "_buffered_bytes",
        "_forget_at",
        "_heartbeat_at",
        "_noop_at",
        "_options",
        "_parked",
        "_probe_base64",
        "_probe_by",
        "closed",
        "generation",
        "sid",
        "transport",
    )

    def __init__(
        self,
        sid: str,
        generation: Generation,
        transport: Transport,
        options: EngineOptions,
        now: float,
        *,
        base64: bool = False,
    ) -> None:
        """`sid`: without what JSON escapes. `base64`: the client cannot take binary over this transport."""
        self.sid = sid
        self.generation = generation
        self.transport = transport
        self.closed: CloseReason | None = None
        self._options = options
        self._base64 = base64
        self._probe_base64 = False
        self._buffer: list[Packet] = []
        self._buffered_bytes = 0
        self._parked = False
        self._awaits_pong = False
        self._heartbeat_at = now + self._silence_s
        self._admit_by = now + options.admission_timeout_s
        self._probe_by = self._noop_at = self._forget_at = inf

    # -- what the edge asks ----------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` has to be called next; inf: never."""
        if self._admit_by == self._probe_by == self._noop_at == self._forget_at == inf:  # as a rule
            return self._heartbeat_at
        return min(self._heartbeat_at, self._admit_by, self._probe_by, self._noop_at, self._forget_at)

    @property
    def admitted(self) -> bool:
        """Whether the application has admitted the session."""
        return self._admit_by == inf

    @property
    def probing(self) -> bool:
        """Whether a WebSocket probes."""
        return self._probe_by < inf

    @property
    def has_waiting(self) -> bool:
        """Whether a poll would be answered at once."""
        return bool(self._buffer)

    # -- what the application does ---------------------------------------------------------------------

    def open(self) -> Effects:
        """Send the OPEN packet. Comes first."""
        options = self._options
        upgrades = '"websocket"' if self.transport is Transport.POLLING else ""
        handshake = (
            f'{{"sid":"{self.sid}","upgrades":[{upgrades}],"pingInterval":{round(options.ping_interval_s * 1000)},'
            f'"pingTimeout":{round(options.ping_timeout_s * 1000)},"maxPayload":{options.max_payload_bytes}}}'
        )
        return self._push(Packet(OPEN, handshake))

    def admit(self) -> None:
        """The application knows who this is: the session may stay."""
        if self.closed is None:
            self._admit_by = inf

    def send(self, data: str | bytes) -> Effects:
        """Send a message, or keep it for the next poll; over the limit the session closes as slow."""
        return self._push(Packet(MESSAGE, data))

    def close(self, reason: CloseReason, now: float) -> Effects:
        """End the session; only the first reason counts."""
        if self.closed is None and reason in ORDERLY and self.transport is Transport.POLLING and not self._parked:
            self._forget_at = now + LINGER_S  # the next poll brings CLOSE
        return self._end(reason)

    def _end(self, reason: CloseReason) -> Effects:
        if self.closed is not None:
            return NOTHING
        self.closed = reason
        effects: list[Effect] = [DropProbe()] if self.probing else []
        effects.append(Closed(reason))
        self._heartbeat_at = self._admit_by = self._probe_by = self._noop_at = inf
        if reason is CloseReason.SLOW:
            self._buffer.clear()
        if self.transport is Transport.POLLING:
            self._buffer.append(Packet(NOOP if reason is CloseReason.CLIENT else CLOSE))
        if self._parked:
            effects.append(Answer())
        if self._forget_at == inf:
            effects.append(Forget())
        return effects

    def _push(self, packet: Packet) -> Effects:
        if self.closed is not None:
            return NOTHING
        if self.transport is WEBSOCKET:
            return (Write(encode_frame(self.generation, packet, base64=self._base64)),)
        if self._buffered_bytes > self._options.max_buffer_bytes:
            return self._end(CloseReason.SLOW)
        self._buffer.append(packet)
        self._buffered_bytes += PACKET_BYTES + len(packet.data)
        return (Answer(),) if self._parked else NOTHING

    def hold(self, for_s: float) -> None:
        """The peer is not read for a while: its heartbeat may be that much later."""
        if self.closed is None and (self._awaits_pong or self.generation.client_pings):
            self._heartbeat_at += for_s

    # -- what the peer does ----------------------------------------------------------------------------

    def hears(self, now: float) -> bool:
        """Something has come over the transport that carries the session; whether it may mean anything.

        Of a message it is all that has to be asked before it is handed to the application.
        """
        if self.closed is not None:
            return False
        if self.generation.client_pings:
            self._heartbeat_at = now + self._silence_s  # whatever it says, it is alive
        return True

    def receive(self, packet: Packet, now: float) -> Effects:
        """A packet has come over the transport that carries the session."""
        if not self.hears(now):
            return NOTHING
        kind = packet.kind
        if kind == MESSAGE:
            return (Deliver(packet.data),)
        if kind == CLOSE:
            return self.close(CloseReason.CLIENT, now)
        if kind not in (PING, PONG):
            return NOTHING  # OPEN, UPGRADE and NOOP say nothing here
        if (kind == PING) is not self.generation.client_pings:
            return self.close(CloseReason.MALFORMED, now)
        if kind == PING:
            return self._beat(PONG)
        self._awaits_pong = False
        self._heartbeat_at = now + self._options.ping_interval_s
        return NOTHING

    def park(self, now: float) -> tuple[bool, Effects]:
        """A poll has come. Whether it may wait to be answered; else it is refused.

        Of two polls at a time both end, and the session with them.
        """
        if self.transport is not Transport.POLLING:
            return False, NOTHING
        if self._parked:
            return False, self.close(CloseReason.TRANSPORT_ERROR, now)
        if self.closed is not None and self._forget_at == inf:
            return False, NOTHING
        self._parked = True
        return True, NOTHING

    def take(self, *, base64: bool = False) -> tuple[str | bytes, Effects]:
        """The body for the parked poll, which is answered with it."""
        body = encode_payload(
            self.generation,
            self._buffer,
            base64=base64 or self._base64,
            binary_over_bytes=self._options.binary_payload_over_bytes,
        )
        self._buffer = []
        self._buffered_bytes = 0
        self._parked = False
        lingers, self._forget_at = self._forget_at < inf, inf
        return body, (Forget(),) if lingers else NOTHING

    # -- the upgrade -----------------------------------------------------------------------------------

    def probe(self, now: float, *, base64: bool = False) -> bool:
        """A WebSocket wants to take over. Whether it may try."""
        if self.closed is not None or self.probing or self.transport is WEBSOCKET:
            return False
        self._probe_by = now + self._options.upgrade_timeout_s
        self._probe_base64 = base64
        return True

    def receive_probe(self, packet: Packet, now: float) -> Effects:
        """A packet has come over the WebSocket that probes."""
        if not self.probing:
            return NOTHING
        if packet.kind == PING and packet.data == "probe":
            self._noop_at = now + NOOP_EVERY_S
            return (WriteProbe(PONG + "probe"),)
        return self._switch(now) if packet.kind == UPGRADE else self.probe_lost()

    def probe_lost(self) -> Effects:
        """The WebSocket that probes is gone, silent or mad: polling goes on."""
        if not self.probing:
            return NOTHING
        self._probe_by = self._noop_at = inf
        return (DropProbe(),)

    def _switch(self, now: float) -> Effects:
        waiting, self._buffer, self._buffered_bytes = self._buffer, [], 0
        self.transport = WEBSOCKET
        self._base64 = self._probe_base64
        self._probe_by = self._noop_at = inf
        if self.generation.client_pings:
            self._heartbeat_at = now + self._silence_s
        effects: list[Effect] = [Switch()]
        for packet in waiting:
            effects.extend(self._push(packet))
        if self._parked:
            self._buffer.append(Packet(NOOP))
            effects.append(Answer())
        return effects

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Do what is due. Calling it early does nothing."""
        if self._forget_at <= now:
            self._forget_at = inf
            return (Forget(),)
        if self._admit_by <= now:
            return self.close(CloseReason.UNAUTHENTICATED, now)
        effects: list[Effect] = []
        if self._probe_by <= now:
            effects.extend(self.probe_lost())
        if self._noop_at <= now:
            effects.extend(self._release(now))
        if self._heartbeat_at <= now:
            effects.extend(self._heartbeat(now))
        return effects

    def _release(self, now: float) -> Effects:
        """End the poll that is parked during a probe, so that the client can pause polling."""
        self._noop_at = now + NOOP_EVERY_S
        return self._push(Packet(NOOP)) if self._parked and not self._buffer else NOTHING

    def _heartbeat(self, now: float) -> Effects:
        if self.generation.client_pings or self._awaits_pong:
            return self.close(CloseReason.PING_TIMEOUT, now)
        self._awaits_pong = True
        self._heartbeat_at = max(self._heartbeat_at, now - TICK_LATE_S) + self._options.ping_timeout_s
        return self._beat(PING)

    def _beat(self, kind: str) -> Effects:
        return (Write(kind),) if self.transport is WEBSOCKET else self._push(Packet(kind))

    @property
    def _silence_s(self) -> float:
        """How long until the first heartbeat is due: the client's at the latest, or ours."""
        options = self._options
        return options.ping_interval_s + (options.ping_timeout_s if self.generation.client_pings else 0.0)
