"""The two flows of PUBLISH and PUBACK (pure): what must still be acknowledged or resent, across connections."""

from collections.abc import Iterable
from typing import Final

import mqtt5

from gateway.limits import Budget
from gateway.mqtt.values import Dropped, Event, Message, Options, Published, Received, Settled
from gateway.mqtt.wire import (
    LAST_PUBLISH_ID,
    MAX_PACKET_BYTES,
    PACKET_TOO_LARGE,
    TOPIC_NAME_INVALID,
    Code,
    Malformed,
    read_message,
    write_puback,
    write_publish,
)

PING: Final = 0  # stands for a PINGREQ where a packet id is asked for
_NONE: Final = -1


class _Delivery:
    """A received QoS 1 message whose PUBACK may not have reached the broker."""

    __slots__ = ("acked", "confirm", "fingerprint", "number", "probe")

    def __init__(self, number: int, fingerprint: int) -> None:
        self.number = number
        self.fingerprint = fingerprint
        self.acked = False
        self.confirm = False  # its owner waits to hear that the broker has read the PUBACK
        self.probe = _NONE  # the packet that was written after its PUBACK, and that the broker answers

    @property
    def packet_id(self) -> int:
        """Its packet id, as long as it is under way."""
        return self.number & 0xFFFF


def _find(deliveries: dict[int, _Delivery] | None, number: int) -> _Delivery | None:
    """The delivery of this number, not another that has its packet id by now."""
    known = deliveries.get(number & 0xFFFF) if deliveries else None
    return known if known is not None and known.number == number else None


class Inbox:
    """Received messages and their PUBACKs. A delivery number is unique and ends in its packet id.

    A PUBACK that was written may be lost with its connection, and the broker then delivers again what its owner is
    done with. So a written one is remembered until the broker has answered a packet that was written after it.
    """

    __slots__ = ("_count", "_events", "_maximum", "_stale", "_written", "confirming", "due", "pending")

    def __init__(self, receive_maximum: int, events: list[Event]) -> None:
        self._maximum = receive_maximum
        self._events = events
        self._count = 0
        self.due = False  # whether `settle` may have something to write
        self.confirming = 0  # how many owners wait to hear of a PUBACK
        self.pending: dict[int, _Delivery] | None = None  # by packet id, in the order of receipt
        self._written: dict[int, _Delivery] | None = None  # their PUBACK was written
        self._stale: dict[int, _Delivery] | None = None  # of an earlier connection, not redelivered yet

    def opened(self, session_present: bool) -> None:
        """Expect redeliveries, or none: without the session the old packet ids mean nothing."""
        if not session_present:
            self._stale = None
            self.confirming = 0

    def closed(self) -> None:
        """Keep what the broker may have no PUBACK for; it never has more than the maximum of them."""
        if self._written or self.pending:
            stale = (self._stale or {}) | (self._written or {}) | (self.pending or {})
            self._bound(stale)
            for delivery in stale.values():
                delivery.probe = _NONE
            self._stale = stale
            self.pending = self._written = None

    def receive(self, packet: mqtt5.PublishPacket) -> None:
        """Surface a message, but not the redelivery of one that its owner has, or is done with."""
        if packet.topic_alias is not None:  # CONNECT allows none [MQTT-3.1.2-26]
            raise Malformed("topic alias", Code.TOPIC_ALIAS_INVALID)
        message = read_message(packet)
        if message.qos == 0:
            self._events.append(Received(message, None, False))
            return
        packet_id = self._check(message, packet.packet_id)
        if self.pending is None:
            self.pending = {}
        if self._written and packet_id in self._written:  # the id is in use again: the PUBACK has arrived
            self._confirm((self._written.pop(packet_id),))
        known, fingerprint = self._stale.pop(packet_id, None) if self._stale else None, message.fingerprint
        if known and packet.duplicate and known.fingerprint == fingerprint:
            self.pending[packet_id] = known
            self.due = self.due or known.acked
            return
        if known:
            self._confirm((known,))
        self._count += 1
        number = self._count << 16 | packet_id
        self.pending[packet_id] = _Delivery(number, fingerprint)
        self._events.append(Received(message, number, packet.duplicate))

    def _check(self, message: Message, packet_id: int | None) -> int:
        """Packet id of a QoS 1 PUBLISH that keeps the rules."""
        if message.qos > 1:
            raise Malformed("QoS 2 was not subscribed", Code.PROTOCOL_ERROR)
        if not packet_id or (self.pending and packet_id in self.pending):  # [MQTT-2.2.1-4]
            raise Malformed("packet id 0 or in use", Code.PROTOCOL_ERROR)
        # More than Receive Maximum [MQTT-3.3.4-9] is taken all the same: mosquitto 2.0.11 forgets what a session that
        # it restored had asked for and sends up to its own max_inflight_messages. To refuse it would never end.
        return packet_id

    def puback(self, delivery: int, *, confirm: bool = False) -> None:
        """Mark a delivery as done; a void one is ignored, but confirmed at once."""
        known = _find(self.pending, delivery)
        if known is not None:
            self.due = True
        else:
            known = _find(self._stale, delivery)
        if known is not None:
            known.acked = True
            if confirm and not known.confirm:
                known.confirm = True
                self.confirming += 1
        elif confirm:
            self._events.append(Settled(delivery))

    def unsettle(self, delivery: int) -> None:
        """Owe the PUBACK of a delivery again: what it follows has to be written again, on another connection."""
        known = _find(self._stale, delivery)
        if known is not None:
            known.acked = False

    def settle(self, out: list[bytes]) -> None:
        """Write the PUBACKs that are due: in the order of receipt [MQTT-4.6.0-2]."""
        pending, due = self.pending or {}, []
        self.due = False
        for delivery in pending.values():
            if not delivery.acked:
                break
            due.append(delivery)
        if not due:
            return
        if self._written is None:
            self._written = {}
        for delivery in due:
            packet_id = delivery.packet_id
            del pending[packet_id]
            self._written[packet_id] = delivery
            out.append(write_puback(packet_id))
        self._bound(self._written)
        self.pending = pending or None

    def _bound(self, deliveries: dict[int, _Delivery]) -> None:
        """Forget the oldest over the maximum: the broker had their PUBACKs, or it could not have sent the others.

        That is not good enough for an owner who waits to hear of it: mosquitto may send more (see `_check`).
        """
        over = len(deliveries) - self._maximum
        if over > 0:
            for packet_id in [id for id, delivery in deliveries.items() if not delivery.confirm][:over]:
                del deliveries[packet_id]

    def probe(self, packet_id: int) -> None:
        """Note that a packet follows which the broker answers: then it has read the PUBACKs before it."""
        if self._written:
            for delivery in self._written.values():
                if delivery.probe == _NONE:
                    delivery.probe = packet_id

    def answered(self, packet_id: int) -> None:
        """Forget the PUBACKs that this packet probed; after a ping there is no redelivery either."""
        if self._written:
            read = [delivery for delivery in self._written.values() if delivery.probe == packet_id]
            for delivery in read:
                del self._written[delivery.packet_id]
            self._confirm(read)
            self._written = self._written or None
        if packet_id == PING and self._stale:
            self._confirm(delivery for delivery in self._stale.values() if delivery.acked)
            self._stale = {id: delivery for id, delivery in self._stale.items() if not delivery.acked} or None

    @property
    def asks(self) -> bool:
        """Whether an owner waits to hear of a PUBACK, and only a PINGREQ can tell."""
        unread = (*(self._written or {}).values(), *(self._stale or {}).values())
        return any(delivery.confirm and delivery.probe == _NONE for delivery in unread)

    def _confirm(self, deliveries: Iterable[_Delivery]) -> None:
        """Tell the owners that the broker has read these PUBACKs."""
        for delivery in deliveries:
            if delivery.confirm:
                self.confirming -= 1
                self._events.append(Settled(delivery.number))


class _Outgoing:
    """A publish that waits, or waits for its PUBACK; with a `packet_id` it was sent before."""

    __slots__ = ("droppable", "message", "packet_id", "sent_at", "settles", "token")

    def __init__(self, message: Message, token: int | None, droppable: bool, settles: int | None) -> None:
        self.message = message
        self.token = token
        self.droppable = droppable
        self.settles = settles
        self.packet_id = 0
        self.sent_at: float | None = None


class Outbox:
    """Publishes that wait or have no PUBACK yet, within the broker's Receive Maximum and our bounds.

    Args:
        inbox: has the deliveries that publishes settle.
    """

    __slots__ = (
        "_events",
        "_in_flight",
        "_inbox",
        "_last_id",
        "_max_packet_bytes",
        "_options",
        "_shared",
        "_waiting_bytes",
        "_window",
        "waiting",
    )

    def __init__(self, options: Options, events: list[Event], shared: Budget | None, inbox: Inbox) -> None:
        self._inbox = inbox
        self._options = options
        self._events = events
        self._shared = shared  # bytes that wait in all outboxes of the node
        self._in_flight: dict[int, _Outgoing] | None = None  # by packet id, in the order sent
        self.waiting: list[_Outgoing] | None = None
        self._waiting_bytes = 0
        self._last_id = 0
        self._max_packet_bytes = MAX_PACKET_BYTES
        self._window = 0

    def opened(self, connack: mqtt5.ConnAckPacket) -> None:
        """Put what has no PUBACK before what waits: to resend [MQTT-4.4.0-1], or as new."""
        self._max_packet_bytes = connack.max_packet_size or MAX_PACKET_BYTES
        self._window = min(connack.receive_max, self._options.receive_maximum, LAST_PUBLISH_ID)
        if self._in_flight:
            self.waiting = [*self._in_flight.values(), *(self.waiting or ())]
            self._hold(sum(o.message.size_bytes for o in self.waiting) - self._waiting_bytes)
            self._in_flight = None
        for outgoing in self.waiting or ():
            if outgoing.settles is not None:
                self._inbox.unsettle(outgoing.settles)
            if not connack.session_present:
                outgoing.packet_id = 0

    def closed(self) -> None:
        """Drop QoS 0: it is now or never."""
        for outgoing in [o for o in self.waiting or () if not o.message.qos]:
            self._remove(outgoing)
            if outgoing.token is not None:
                self._events.append(Dropped(outgoing.token))

    def add(self, message: Message, token: int | None, droppable: bool, settles: int | None) -> None:
        """Queue a publish."""
        if self.waiting is None:
            self.waiting = []
        self.waiting.append(_Outgoing(message, token, droppable, settles))
        self._hold(message.size_bytes)

    def trim(self) -> None:
        """Over the bounds, drop the oldest that may be dropped."""
        while self.waiting and self._is_over() and (victim := self._oldest_droppable()):
            self._remove(victim)
            self._events.append(Dropped(victim.token))

    def leftover(self) -> list[Message]:
        """Give up all publishes; return those that might have been dropped, oldest first."""
        left = [*(self._in_flight or {}).values(), *(self.waiting or ())]
        self._hold(-self._waiting_bytes)
        self._in_flight = self.waiting = None
        return [outgoing.message for outgoing in left if outgoing.droppable]

    def _hold(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self._shared is not None:
            self._shared.used += size_bytes

    def _is_over(self) -> bool:
        options = self._options
        if self._shared is not None and self._shared.is_over:
            return True
        return len(self.waiting or ()) > options.max_waiting or self._waiting_bytes > options.max_waiting_bytes

    def _oldest_droppable(self) -> _Outgoing | None:
        """What was sent is none: it must be sent again [MQTT-4.4.0-1]."""
        return next((o for o in self.waiting or () if o.droppable and not o.packet_id), None)

    def _remove(self, outgoing: _Outgoing) -> None:
        if self.waiting is not None:
            self.waiting.remove(outgoing)
            self._hold(-outgoing.message.size_bytes)

    @property
    def backlog(self) -> int:
        """How many publishes wait to be written."""
        return len(self.waiting or ())

    @property
    def is_empty(self) -> bool:
        """Whether no publish waits or has no PUBACK yet."""
        return not self.waiting and not self._in_flight

    def send(self, out: list[bytes], now: float) -> int:
        """Write, in order, what the window allows [MQTT-3.3.4-7]; packet id of the last QoS 1 publish, 0 for none."""
        waiting, done, last_id = self.waiting or [], 0, 0
        while done < len(waiting):
            outgoing = waiting[done]
            if outgoing.message.qos and len(self._in_flight or ()) >= self._window:
                break
            done += 1
            self._hold(-outgoing.message.size_bytes)
            if packet := self._write(outgoing):
                out.append(packet)
                outgoing.sent_at = now
                if outgoing.settles is not None:
                    self._inbox.puback(outgoing.settles)
                last_id = outgoing.packet_id or last_id
        if done == len(waiting):
            self.waiting = None
        else:
            del waiting[:done]
        return last_id

    def _write(self, outgoing: _Outgoing) -> bytes | None:
        """PUBLISH, now in flight if it is QoS 1; None if it failed at once."""
        message, duplicate = outgoing.message, outgoing.packet_id > 0
        packet_id = (outgoing.packet_id or self._free_id()) if message.qos else None
        packet = write_publish(message, packet_id, duplicate)
        if packet is None:
            self._finish(outgoing, TOPIC_NAME_INVALID)
            return None
        if len(packet) > self._max_packet_bytes:  # [MQTT-3.2.2-15]
            self._finish(outgoing, PACKET_TOO_LARGE)
            return None
        if packet_id is None:
            self._finish(outgoing, 0)
            return packet
        outgoing.packet_id = packet_id
        if self._in_flight is None:
            self._in_flight = {}
        self._in_flight[packet_id] = outgoing
        return packet

    def _free_id(self) -> int:
        while True:  # ends: the window is not larger than the range
            self._last_id = self._last_id % LAST_PUBLISH_ID + 1
            if self._last_id not in (self._in_flight or ()):
                return self._last_id

    def on_puback(self, packet_id: int, code: int) -> None:
        """End a publish; an answer to nothing is ignored."""
        if self._in_flight and (outgoing := self._in_flight.pop(packet_id, None)):
            self._in_flight = self._in_flight or None
            self._finish(outgoing, code)

    def _finish(self, outgoing: _Outgoing, code: int) -> None:
        if outgoing.token is not None or outgoing.message.qos:
            self._events.append(Published(outgoing.token, code, outgoing.sent_at))
