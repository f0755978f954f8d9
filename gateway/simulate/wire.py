"""The device's side of one socket.io connection, of either generation, as a state machine (pure).

Engine.IO packets go in, facts come out; packets to send wait in `take()`; time is an argument (monotonic seconds).
Which transport carries them, and the upgrade, are the business of `gateway.simulate.connection`.
"""

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

import msgspec

from gateway.engine.codec import CLOSE, MESSAGE, PING, PONG, Generation, Malformed, Packet
from gateway.simulate import packets
from gateway.simulate.packets import SocketPacket

Ended = Literal[
    "refused",  # the handshake or the namespace was answered with an error
    "busy",  # the handshake was answered 503: too many at once
    "unreachable",
    "connect-timeout",
    "ping-timeout",
    "transport-close",
    "server-close",
    "server-disconnect",
    "malformed",
    "dropped",  # by ourselves, without a goodbye
    "left",
]
"""Why a connection is over; a closed set."""


class Connected(msgspec.Struct, frozen=True):
    """The namespace `/` is ours: events may be emitted."""


class Received(msgspec.Struct, frozen=True):
    """An event came; with an `id` the server waits for an ack."""

    event: str
    args: tuple[Any, ...]
    id: int | None


class Answered(msgspec.Struct, frozen=True):
    """The ack of an event that was emitted with this id."""

    id: int
    args: tuple[Any, ...]


class Over(msgspec.Struct, frozen=True):
    """The server ended it, or is silent."""

    reason: Ended


Fact = Connected | Received | Answered | Over
NOTHING: tuple[Fact, ...] = ()


class _Handshake(msgspec.Struct, frozen=True):
    sid: str
    ping_interval_ms: float = msgspec.field(name="pingInterval")
    ping_timeout_ms: float = msgspec.field(name="pingTimeout")
    upgrades: tuple[str, ...] = ()


class Wire:
    """One connection. Never raises on what the server sends; what is wrong ends it.

    Attributes:
        sid: the engine's session id, empty until the server has told it.
        may_upgrade: the server offers a WebSocket to a session that polls.
        over: why it ended, or None.
    """

    __slots__ = (
        "_attachments",
        "_generation",
        "_interval_s",
        "_next_id",
        "_out",
        "_partial",
        "_ping_at",
        "_silent_at",
        "_timeout_s",
        "may_upgrade",
        "over",
        "sid",
    )

    def __init__(self, generation: Generation) -> None:
        self.sid = ""
        self.may_upgrade = False
        self.over: Ended | None = None
        self._generation = generation
        self._interval_s = self._timeout_s = 0.0
        self._ping_at = self._silent_at = inf
        self._next_id = 0
        self._out: list[Packet] = []
        self._partial: SocketPacket | None = None  # waits for its attachments
        self._attachments: list[bytes] = []

    # -- what the device does --------------------------------------------------------------------------

    def emit(self, event: str, *args: Any) -> None:
        """Emit an event."""
        self._out.append(Packet(MESSAGE, packets.encode_event(event, args)))

    def ask(self, event: str, *args: Any) -> int:
        """Emit an event and ask for its ack; return the id that `Answered` will have."""
        self._next_id += 1
        self._out.append(Packet(MESSAGE, packets.encode_event(event, args, self._next_id)))
        return self._next_id

    def ack(self, id: int, *args: Any) -> None:
        """Ack an event that came with this id."""
        self._out.append(Packet(MESSAGE, packets.encode_ack(id, args)))

    def leave(self) -> None:
        """Say goodbye."""
        self._out += (Packet(MESSAGE, packets.DISCONNECT), Packet(CLOSE))

    def take(self) -> list[Packet]:
        """The packets to send now, in order; they are not returned again."""
        out, self._out = self._out, []
        return out

    # -- what the server does --------------------------------------------------------------------------

    def receive(self, packet: Packet, now: float) -> Sequence[Fact]:
        """Take a packet."""
        if self.over is not None:
            return NOTHING
        try:
            return self._receive(packet, now)
        except Malformed:
            return self._end("malformed")

    def _receive(self, packet: Packet, now: float) -> Sequence[Fact]:
        if self.sid:
            self._silent_at = now + self._interval_s + self._timeout_s  # whatever it says, it is alive
        match packet.kind:
            case "4":
                return self._message(packet.data)
            case "2" if not self._generation.client_pings:
                self._out.append(Packet(PONG, packet.data))
            case "3" if self._generation.client_pings:
                self._ping_at = now + self._interval_s
            case "0" if not self.sid:
                self._open(str(packet.data), now)
            case "1":
                return self._end("server-close")
        return NOTHING

    def _open(self, text: str, now: float) -> None:
        try:
            handshake = msgspec.json.decode(text, type=_Handshake)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise Malformed("bad handshake") from error
        self.sid = handshake.sid
        self.may_upgrade = "websocket" in handshake.upgrades
        self._interval_s, self._timeout_s = handshake.ping_interval_ms / 1000, handshake.ping_timeout_ms / 1000
        self._silent_at = now + self._interval_s + self._timeout_s
        if self._generation.client_pings:
            self._ping_at = now + self._interval_s
        else:  # the namespace of an Engine.IO 3 client is implicit
            self._out.append(Packet(MESSAGE, packets.CONNECT))

    def _message(self, data: str | bytes) -> Sequence[Fact]:
        if isinstance(data, bytes):
            return self._attach(data)
        if self._partial is not None:
            raise Malformed("text where an attachment was announced")
        packet = packets.decode(data)
        if packet.attachments:
            self._partial = packet
            return NOTHING
        return self._handle(packet)

    def _attach(self, data: bytes) -> Sequence[Fact]:
        partial = self._partial
        if partial is None:
            raise Malformed("an attachment of nothing")
        self._attachments.append(data)
        if len(self._attachments) < partial.attachments:
            return NOTHING
        attachments, self._attachments, self._partial = self._attachments, [], None
        return self._handle(partial._replace(data=packets.fill(partial.data, attachments)))

    def _handle(self, packet: SocketPacket) -> Sequence[Fact]:
        match packet.kind:
            case packets.EVENT | packets.BINARY_EVENT:
                return (Received(packet.data[0], tuple(packet.data[1:]), packet.id),)
            case packets.ACK | packets.BINARY_ACK if packet.id is not None:
                return (Answered(packet.id, tuple(packet.data)),)
            case packets.CONNECT:
                return (Connected(),)
            case packets.DISCONNECT:
                return self._end("server-disconnect")
        return self._end("refused")

    def _end(self, reason: Ended) -> Sequence[Fact]:
        self.over = reason
        self._ping_at = self._silent_at = inf
        return (Over(reason),)

    # -- time ------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `tick` has to be called next; inf: never."""
        return min(self._ping_at, self._silent_at)

    def tick(self, now: float) -> Sequence[Fact]:
        """Send the ping that is due, or end in silence. Calling it early does nothing."""
        if self._silent_at <= now:
            return self._end("ping-timeout")
        if self._ping_at <= now:
            self._ping_at = inf
            self._silent_at = now + self._timeout_s
            self._out.append(Packet(PING))
        return NOTHING
