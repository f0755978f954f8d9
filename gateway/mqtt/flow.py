"""The two flows of PUBLISH and PUBACK (pure): what must still be acknowledged or resent, across connections."""

from collections import deque
from itertools import islice

import mqtt5

from gateway.mqtt import Dropped, Event, Message, Options, Published, Received
from gateway.mqtt.wire import (
    LAST_PUBLISH_ID,
    MAX_PACKET_BYTES,
    PACKET_TOO_LARGE,
    TOPIC_NAME_INVALID,
    Code,
    Malformed,
    read_message,
    write_publish,
)


class _Delivery:
    """A received QoS 1 message whose PUBACK has not left."""

    __slots__ = ("acked", "message", "number")

    def __init__(self, number: int, message: Message) -> None:
        self.number = number
        self.message = message
        self.acked = False


class Inbox:
    """Received messages and their PUBACKs. A delivery number is unique and ends in its packet id."""

    __slots__ = ("_count", "_events", "_maximum", "_pending", "_stale")

    def __init__(self, receive_maximum: int, events: list[Event]) -> None:
        self._maximum = receive_maximum
        self._events = events
        self._count = 0
        self._pending: dict[int, _Delivery] | None = None  # by packet id, in the order of receipt
        self._stale: dict[int, _Delivery] | None = None  # of an earlier connection, not redelivered yet

    def opened(self, session_present: bool) -> None:
        """Expect redeliveries, or none: without the session the old packet ids mean nothing."""
        if not session_present:
            self._stale = None

    def closed(self) -> None:
        """Keep what has no PUBACK for its redelivery; a broker never has more than the maximum of them."""
        if self._pending:
            stale = (self._stale or {}) | self._pending
            self._stale = dict(islice(stale.items(), max(0, len(stale) - self._maximum), None))
            self._pending = None

    def receive(self, packet: mqtt5.PublishPacket) -> None:
        """Surface a message, but not the redelivery of one that its owner still has."""
        if packet.topic_alias is not None:  # CONNECT allows none [MQTT-3.1.2-26]
            raise Malformed("topic alias", Code.TOPIC_ALIAS_INVALID)
        message = read_message(packet)
        if message.qos == 0:
            self._events.append(Received(message, None, False))
            return
        packet_id = self._check(packet)
        if self._pending is None:
            self._pending = {}
        known = self._stale.pop(packet_id, None) if self._stale else None
        if known and packet.duplicate and known.message.same_publication(message):
            self._pending[packet_id] = known
            return
        self._count += 1
        number = self._count << 16 | packet_id
        self._pending[packet_id] = _Delivery(number, message)
        self._events.append(Received(message, number, packet.duplicate))

    def _check(self, packet: mqtt5.PublishPacket) -> int:
        """Packet id of a QoS 1 PUBLISH that keeps the rules."""
        packet_id, pending = packet.packet_id, self._pending or ()
        if packet.qos == mqtt5.QoS.EXACTLY_ONCE:
            raise Malformed("QoS 2 was not subscribed", Code.PROTOCOL_ERROR)
        if not packet_id or packet_id in pending:  # [MQTT-2.2.1-4]
            raise Malformed("packet id 0 or in use", Code.PROTOCOL_ERROR)
        if len(pending) >= self._maximum:  # [MQTT-3.3.4-9]
            raise Malformed("receive maximum exceeded", Code.RECEIVE_MAX_EXCEEDED)
        return packet_id

    def puback(self, delivery: int) -> None:
        """Mark a delivery as done; a void one is ignored."""
        packet_id = delivery & 0xFFFF
        for deliveries in (self._pending, self._stale):
            if deliveries and (known := deliveries.get(packet_id)) and known.number == delivery:
                known.acked = True
                return

    def settle(self, out: list[bytes]) -> None:
        """Write the PUBACKs that are due: in the order of receipt [MQTT-4.6.0-2]."""
        pending = self._pending
        if not pending:
            return
        due = []
        for packet_id, delivery in pending.items():
            if not delivery.acked:
                break
            due.append(packet_id)
        for packet_id in due:
            del pending[packet_id]
            out.append(mqtt5.PubAckPacket(packet_id).write())
        self._pending = pending or None


class _Outgoing:
    """A publish that waits, or waits for its PUBACK; with a `packet_id` it was sent before."""

    __slots__ = ("droppable", "message", "packet_id", "token")

    def __init__(self, message: Message, token: int | None, droppable: bool) -> None:
        self.message = message
        self.token = token
        self.droppable = droppable
        self.packet_id = 0


class Outbox:
    """Publishes that wait or have no PUBACK yet, within the broker's Receive Maximum and our bounds."""

    __slots__ = (
        "_events",
        "_in_flight",
        "_last_id",
        "_max_packet_bytes",
        "_options",
        "_waiting",
        "_waiting_bytes",
        "_window",
    )

    def __init__(self, options: Options, events: list[Event]) -> None:
        self._options = options
        self._events = events
        self._in_flight: dict[int, _Outgoing] | None = None  # by packet id, in the order sent
        self._waiting: deque[_Outgoing] | None = None
        self._waiting_bytes = 0
        self._last_id = 0
        self._max_packet_bytes = MAX_PACKET_BYTES
        self._window = 0

    def opened(self, connack: mqtt5.ConnAckPacket) -> None:
        """Put what has no PUBACK before what waits: to resend [MQTT-4.4.0-1], or as new."""
        self._max_packet_bytes = connack.max_packet_size or MAX_PACKET_BYTES
        self._window = min(connack.receive_max, self._options.receive_maximum, LAST_PUBLISH_ID)
        if self._in_flight:
            self._waiting = deque([*self._in_flight.values(), *(self._waiting or ())])
            self._waiting_bytes = sum(o.message.size_bytes for o in self._waiting)
            self._in_flight = None
        if not connack.session_present:
            for outgoing in self._waiting or ():
                outgoing.packet_id = 0

    def closed(self) -> None:
        """Drop QoS 0: it is now or never."""
        for outgoing in [o for o in self._waiting or () if not o.message.qos]:
            self._remove(outgoing)
            if outgoing.token is not None:
                self._events.append(Dropped(outgoing.token))

    def add(self, message: Message, token: int | None, droppable: bool) -> None:
        """Queue a publish."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(_Outgoing(message, token, droppable))
        self._waiting_bytes += message.size_bytes

    def trim(self) -> None:
        """Over the bounds, drop the oldest that may be dropped."""
        while self._is_over() and (victim := self._oldest_droppable()):
            self._remove(victim)
            self._events.append(Dropped(victim.token))

    def _is_over(self) -> bool:
        options = self._options
        return len(self._waiting or ()) > options.max_waiting or self._waiting_bytes > options.max_waiting_bytes

    def _oldest_droppable(self) -> _Outgoing | None:
        """What was sent is none: it must be sent again [MQTT-4.4.0-1]."""
        return next((o for o in self._waiting or () if o.droppable and not o.packet_id), None)

    def _remove(self, outgoing: _Outgoing) -> None:
        if self._waiting is not None:
            self._waiting.remove(outgoing)
            self._waiting_bytes -= outgoing.message.size_bytes

    def send(self, out: list[bytes]) -> None:
        """Write, in order, what the window allows [MQTT-3.3.4-7]."""
        waiting = self._waiting
        while waiting and not (waiting[0].message.qos and len(self._in_flight or ()) >= self._window):
            outgoing = waiting.popleft()
            self._waiting_bytes -= outgoing.message.size_bytes
            if packet := self._write(outgoing):
                out.append(packet)
        self._waiting = waiting or None

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

    def on_puback(self, packet: mqtt5.PubAckPacket) -> None:
        """End a publish; an answer to nothing is ignored."""
        if self._in_flight and (outgoing := self._in_flight.pop(packet.packet_id, None)):
            self._in_flight = self._in_flight or None
            self._finish(outgoing, packet.reason_code.value)

    def _finish(self, outgoing: _Outgoing, code: int) -> None:
        if outgoing.token is not None:
            self._events.append(Published(outgoing.token, code))
