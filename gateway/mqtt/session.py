"""The client side of one MQTT 5 session that outlives its connections (pure: bytes and time in, events out).

It decides what is sent when: PUBACKs in the order of receipt, publishes within the broker's Receive Maximum,
what is resent after a reconnect, and keep-alive. State becomes bytes only in `output()`, so what was never
written is never taken for sent. It does not decide when to connect, nor what a message means.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import mqtt5

from gateway.limits import Budget
from gateway.mqtt.flow import PING, Inbox, Outbox
from gateway.mqtt.values import (
    FAILURE,
    Closed,
    Credentials,
    Dropped,
    Event,
    Message,
    Opened,
    Options,
    Subscribed,
    Subscription,
)
from gateway.mqtt.wire import (
    LAST_PUBLISH_ID,
    PINGREQ,
    PINGRESP,
    Code,
    Malformed,
    Publish,
    packet_end,
    read_packet,
    read_puback,
    write_connect,
    write_disconnect,
    write_subscribe,
)

SESSION_TAKEN_OVER: Final = 0x8E  # DISCONNECT reason: another connection uses the client id (3.14.2.1)
_FILTERS_PER_SUBSCRIBE: Final = 256  # brokers bound the size of a packet


class MqttSession:
    """One client session. Containers exist only while they hold something: most sessions are idle.

    Args:
        waiting_bytes: what waits in the sessions of all devices, to be kept within its limit.
    """

    __slots__ = (
        "_acks",
        "_asked",
        "_connected",
        "_desired",
        "_events",
        "_inbox",
        "_keep_alive_s",
        "_last_control_id",
        "_options",
        "_out",
        "_outbox",
        "_partial",
        "_partial_needs",
        "_pinged_at",
        "_sent_at",
        "_unwanted",
    )

    def __init__(self, options: Options, waiting_bytes: Budget | None = None) -> None:
        # First what every packet needs, for it to be side by side.
        self._connected = False
        self._partial: bytearray | None = None  # the beginning of a packet
        self._events: list[Event] = []
        self._inbox = Inbox(options.receive_maximum, self._events)
        self._outbox = Outbox(options, self._events, waiting_bytes, self._inbox)
        self._options = options
        self._out: list[bytes] = []
        self._sent_at = 0.0
        self._pinged_at: float | None = None
        self._keep_alive_s = options.keep_alive_s  # of the connection
        self._partial_needs = 0  # how long it must be before it is worth a look
        # subscriptions, all None while nothing is out of the ordinary
        self._desired: dict[str, Subscription] | None = None  # by topic filter; None = those of the options
        self._asked: tuple[Subscription, ...] = ()  # what the last opening() subscribed
        self._acks: dict[int, tuple[str, ...]] | None = None  # packet id -> topic filters without answer
        self._unwanted: dict[str, int] | None = None  # topic filter -> packet id of its UNSUBSCRIBE, 0 = unsent
        self._last_control_id = LAST_PUBLISH_ID

    # --- the connection

    def opening(self, credentials: Credentials) -> bytes:
        """CONNECT and SUBSCRIBE in one write; a connection that is current goes on meanwhile."""
        self._asked = tuple(self._desired.values()) if self._desired is not None else self._options.subscriptions
        packets = [write_connect(self._options, credentials)]
        packets += (write_subscribe(packet_id, group) for packet_id, group in self._asked_groups())
        return b"".join(packets)

    def opened(self, connack: mqtt5.ConnAckPacket, now: float) -> list[Event]:
        """Make the connection of the last `opening()` current: its CONNACK accepted it."""
        self.closed()
        self._connected = True
        self._sent_at = now
        self._keep_alive_s = self._options.keep_alive_s
        if connack.server_keep_alive is not None:
            self._keep_alive_s = connack.server_keep_alive  # [MQTT-3.2.2-21]
        self._inbox.opened(connack.session_present)
        self._outbox.opened(connack)
        self._events.append(Opened(connack.session_present))
        self._reconcile()
        return self.take_events()

    def closed(self) -> None:
        """Forget the connection, keep the session: the transport is gone."""
        self._connected = False
        self._acks = self._partial = self._pinged_at = None
        self._out.clear()
        self._inbox.closed()
        self._outbox.closed()

    def disconnect(self, code: int = 0, session_expiry_s: int | None = None) -> None:
        """Say goodbye after all that may be sent; a no-op without a connection."""
        if self._connected:
            self._flow(self._sent_at)  # no PUBACK comes to be timed
            farewell = [*self._out, write_disconnect(code, session_expiry_s)]
            self.closed()
            self._out += farewell

    @property
    def deadline(self) -> float | None:
        """When `tick()` has something to do; it only ever moves later but in `opened()` and `tick()`."""
        if not self._connected or not self._keep_alive_s:
            return None
        if self._pinged_at is not None:
            return self._pinged_at + self._keep_alive_s / 2
        return self._sent_at + self._keep_alive_s

    def tick(self, now: float) -> list[Event]:
        """Keep alive: PINGREQ when nothing was sent for a while, Closed when no PINGRESP came."""
        deadline = self.deadline
        if deadline is not None and now >= deadline:
            if self._pinged_at is None:
                self._ping(now)
            else:
                self.closed()
                self._events.append(Closed(None, "no PINGRESP in time"))
        return self.take_events()

    # --- bytes and events

    @property
    def has_output(self) -> bool:
        """Whether there is anything for `output()` to do, or for `hold()`."""
        return bool(self._outbox.waiting or self._out or self._inbox.due or self._inbox.confirming)

    def output(self, now: float) -> bytes:
        """Bytes to write now, all packets in one; the caller writes them or closes."""
        if self._connected:
            self._flow(now)
            # Of two pings under way the first would answer for both.
            if self._inbox.confirming and self._pinged_at is None and self._inbox.asks:
                self._ping(now)
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._sent_at = now
        return data

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        self._out.append(PINGREQ)
        self._inbox.probe(PING)

    def _flow(self, now: float) -> None:
        if self._inbox.due:  # before the publishes, the last of which then probes these PUBACKs
            self._inbox.settle(self._out)
        if self._outbox.waiting:
            if last_id := self._outbox.send(self._out, now):
                self._inbox.probe(last_id)
            self._outbox.trim()
            if self._inbox.due:  # what the publishes settle
                self._inbox.settle(self._out)

    def hold(self) -> None:
        """Keep the bounds although nothing can be written now: instead of `output()`."""
        self._outbox.trim()

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes of the current connection; ignored when there is none. Never raises on what they are."""
        if data == PINGRESP and self._partial is None and self._connected:  # all that comes to a link that is idle
            self._on_pingresp()
        elif self._connected:
            try:
                self._feed(data)
            except Malformed as error:  # [MQTT-4.13.1-1]
                self.closed()
                self._out.append(write_disconnect(error.code))
                self._events.append(Closed(error.code, str(error)))
        return self.take_events()

    @property
    def backlog(self) -> int:
        """How many publishes wait to be written, because the broker is away or does not keep up."""
        return self._outbox.backlog

    def leftover(self) -> list[Message]:
        """Give up all publishes; return those that might have been dropped, oldest first."""
        return self._outbox.leftover()

    @property
    def all_published(self) -> bool:
        """Whether no publish waits or has no PUBACK yet, and all that is told."""
        return self._outbox.is_empty and not self._events

    @property
    def has_events(self) -> bool:
        """Whether `take_events()` has any: `publish()` and `output()` leave theirs there."""
        return bool(self._events)

    def take_events(self) -> list[Event]:
        """Events not yet returned, oldest first."""
        events = self._events.copy()
        self._events.clear()
        return events

    def _feed(self, data: bytes) -> None:
        """Handle the whole packets of the stream, keep the rest; each byte is looked at once."""
        if self._partial is not None:
            self._partial += data
            if len(self._partial) < self._partial_needs:
                return
            data, self._partial = bytes(self._partial), None
        start, size = 0, len(data)
        while start < size:
            end = packet_end(data, start)
            if end - start > self._options.max_packet_bytes:
                raise Malformed("packet too large", Code.PACKET_TOO_LARGE)
            if end > size:
                self._partial_needs = end - start
                self._partial = bytearray(memoryview(data)[start:])
                return
            if packet_id := read_puback(data, start, end):
                self._on_puback(packet_id, 0)
            else:
                self._handle(read_packet(data[start:end]))
            if not self._connected:
                return
            start = end

    def _handle(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, Publish):  # looked up once, where a pattern of a class looks it up each time
            self._inbox.receive(packet)
            return
        match packet:
            case mqtt5.PubAckPacket():
                self._on_puback(packet.packet_id, packet.reason_code.value)
            case mqtt5.PingRespPacket():
                self._on_pingresp()
            case mqtt5.SubAckPacket() | mqtt5.UnsubAckPacket():
                self._on_suback(packet)
            case mqtt5.DisconnectPacket():
                self.closed()
                self._events.append(Closed(packet.reason_code.value, packet.reason_str or packet.reason_code.name))
            case _:
                raise Malformed(f"unexpected {type(packet).__name__}", Code.PROTOCOL_ERROR)

    def _on_puback(self, packet_id: int, code: int) -> None:
        self._inbox.answered(packet_id)
        self._outbox.on_puback(packet_id, code)

    def _on_pingresp(self) -> None:
        self._pinged_at = None
        self._inbox.answered(PING)

    # --- messages

    def puback(self, delivery: int, *, confirm: bool = False) -> None:
        """Acknowledge a delivery; its PUBACK leaves after all earlier ones. Void deliveries are ignored.

        With `confirm` the event Settled follows, once the broker is known to have read it, or to have forgotten the
        delivery; not if it has forgotten the session: Opened says so.
        """
        self._inbox.puback(delivery, confirm=confirm)

    def publish(
        self, message: Message, token: int | None = None, droppable: bool = False, settles: int | None = None
    ) -> None:
        """Queue a publish; it ends in one Published or Dropped, without a token only if it is QoS 1.

        It `settles` a delivery as `puback()` does, once it is written: the broker reads it before that PUBACK.
        If more than the bounds then waits without a connection, or after `output()`, the oldest droppable are
        dropped. Others are kept: their owner bounds them. QoS 0 is never kept for a later connection.
        """
        if message.qos or self._connected:
            self._outbox.add(message, token, droppable, settles)
            if not self._connected:
                self._outbox.trim()
        elif token is not None:
            self._events.append(Dropped(token))

    # --- subscriptions

    def subscribe(self, subscription: Subscription) -> None:
        """Want a subscription, from now on and after each reconnect."""
        self._edit_desired()[subscription.topic_filter] = subscription
        if self._unwanted:
            self._unwanted.pop(subscription.topic_filter, None)
        if self._connected:
            self._send_subscribe([subscription])

    def unsubscribe(self, topic_filter: str) -> None:
        """Want a subscription no longer."""
        self._edit_desired().pop(topic_filter, None)
        self._unwanted = (self._unwanted or {}) | {topic_filter: 0}
        if self._connected:
            self._send_unsubscribe([topic_filter])

    def _edit_desired(self) -> dict[str, Subscription]:
        if self._desired is None:
            self._desired = {s.topic_filter: s for s in self._options.subscriptions}
        return self._desired

    def _asked_groups(self) -> Iterator[tuple[int, Sequence[Subscription]]]:
        """Packet id and subscriptions of each SUBSCRIBE that goes with a CONNECT."""
        groups = range(0, len(self._asked), _FILTERS_PER_SUBSCRIBE)
        for packet_id, start in enumerate(groups, LAST_PUBLISH_ID + 1):
            yield packet_id, self._asked[start : start + _FILTERS_PER_SUBSCRIBE]

    def _reconcile(self) -> None:
        """Await the SUBACKs of the opening and send what changed since, or was not answered before."""
        self._last_control_id = LAST_PUBLISH_ID
        for packet_id, group in self._asked_groups():
            self._await_suback(packet_id, [s.topic_filter for s in group])
        if self._desired is not None:
            asked = set(self._asked)
            self._send_subscribe([s for s in self._desired.values() if s not in asked])
        self._send_unsubscribe(list(self._unwanted or ()))
        self._asked = ()

    def _send_subscribe(self, subscriptions: Sequence[Subscription]) -> None:
        if subscriptions:
            packet_id = self._free_control_id()
            self._await_suback(packet_id, [s.topic_filter for s in subscriptions])
            self._out.append(write_subscribe(packet_id, subscriptions))

    def _send_unsubscribe(self, topic_filters: Sequence[str]) -> None:
        if topic_filters and self._unwanted is not None:
            packet_id = self._free_control_id()
            self._unwanted.update(dict.fromkeys(topic_filters, packet_id))
            self._await_suback(packet_id, topic_filters)
            self._out.append(mqtt5.UnsubscribePacket(packet_id, list(topic_filters)).write())

    def _await_suback(self, packet_id: int, topic_filters: Sequence[str]) -> None:
        self._last_control_id = packet_id
        if self._acks is None:
            self._acks = {}
        self._acks[packet_id] = tuple(topic_filters)

    def _free_control_id(self) -> int:
        packet_id = self._last_control_id
        while True:
            packet_id = packet_id + 1 if packet_id < 0xFFFF else LAST_PUBLISH_ID + 1
            if packet_id not in (self._acks or ()):
                return packet_id

    def _on_suback(self, packet: mqtt5.SubAckPacket | mqtt5.UnsubAckPacket) -> None:
        """Note the answer to a SUBSCRIBE or UNSUBSCRIBE; an answer to nothing is ignored."""
        filters = self._acks.pop(packet.packet_id, None) if self._acks else None
        if filters is None:
            return
        self._acks = self._acks or None
        if len(filters) != len(packet.reason_codes):  # [MQTT-3.8.4-6]
            raise Malformed("not one reason code per topic filter", Code.PROTOCOL_ERROR)
        if isinstance(packet, mqtt5.SubAckPacket):
            codes = zip(filters, packet.reason_codes, strict=True)
            self._events.append(Subscribed(filters, tuple(name for name, code in codes if code.value >= FAILURE)))
        elif self._unwanted:
            unwanted = {name: sent for name, sent in self._unwanted.items() if sent != packet.packet_id}
            self._unwanted = unwanted or None
