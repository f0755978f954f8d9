"""Peers of the broker, on the raw codec: the service that sends commands, and devices that need no gateway."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import mqtt5

from tests.bench.tally import Tally

PREFIX: Final = "gw/v1"
OUTCOME: Final = b'{"status":"acked","data":{"ack":true}}'


class Peer(asyncio.Protocol):
    """One MQTT 5 connection; what it writes in answer to one read leaves in one write."""

    def __init__(self, client_id: str, *filters: str) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client_id = client_id
        self._filters = filters
        self._rest = b""
        self._out: list[bytes] = []
        self._held: deque[bytes] = deque()  # over the broker's Receive Maximum [MQTT-3.3.4-7]
        self._unacked = 0
        self._window = 65_535
        self._last_id = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.say(mqtt5.ConnectPacket(self._client_id, clean_start=True, keep_alive=0, receive_max=65_535).write())
        self.flush()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        view, start = memoryview(data), 0
        while start < len(data):
            try:
                packet, size = mqtt5.read(view[start:])
            except IndexError:  # not whole yet
                break
            start += size
            self._take(packet)
        self._rest = data[start:]
        self.flush()

    def _take(self, packet: Any) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            if packet.packet_id:
                self.say(b"\x40\x02" + packet.packet_id.to_bytes(2))  # PUBACK, 3.4
            self.message(packet)
        elif isinstance(packet, mqtt5.PubAckPacket):
            assert packet.reason_code.value < 0x80, packet.reason_code  # the broker has dropped what we published
            self._unacked -= 1
            if self._held:
                self._send(self._held.popleft())
        elif isinstance(packet, mqtt5.ConnAckPacket):
            assert packet.reason_code.value == 0, packet.reason_code
            self._window = packet.receive_max
            self.subscribe(*self._filters)
        elif isinstance(packet, mqtt5.SubAckPacket):
            self.subscribed()

    def message(self, packet: mqtt5.PublishPacket) -> None:
        """A message came."""

    def subscribed(self) -> None:
        """The broker has answered a SUBSCRIBE."""
        if not self.ready.done():
            self.ready.set_result(None)

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1."""
        wanted = [mqtt5.TopicFilter(topic, max_qos=mqtt5.QoS.AT_LEAST_ONCE) for topic in filters]
        self.say(mqtt5.SubscribePacket(1, wanted).write())

    def publish(self, topic: str, payload: bytes, **properties: Any) -> None:
        """Publish at QoS 1, with the next flush."""
        self._last_id = self._last_id % 65_535 + 1
        packet = mqtt5.PublishPacket(
            topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=self._last_id, **properties
        ).write()
        self._send(packet) if self._unacked < self._window else self._held.append(packet)

    def _send(self, packet: bytes) -> None:
        self._unacked += 1
        self.say(packet)

    def say(self, packet: bytes) -> None:
        """Write a packet with the next flush."""
        self._out.append(packet)

    def flush(self) -> None:
        """Write."""
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        """Be gone."""
        self._transport.abort()


class Service(Peer):
    """Who sends commands and hears of outcomes and events."""

    inbox: Final = f"{PREFIX}/inbox/bench"

    def __init__(self, fleet_filter: str) -> None:
        super().__init__("bench-service", self.inbox, fleet_filter)
        self.on_message: Callable[[mqtt5.PublishPacket], None] = lambda _: None
        self.lost = False

    def message(self, packet: mqtt5.PublishPacket) -> None:
        self.on_message(packet)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class MqttPlate(Peer):
    """A device that speaks MQTT itself: the floor under every gateway. A PINGREQ is its heartbeat."""

    def __init__(self, serial: str, tally: Tally, event: bytes, heartbeat_s: float) -> None:
        self.serial = serial
        super().__init__(serial, f"{PREFIX}/devices/{serial}/commands/#")
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._event = event
        self._events = f"{PREFIX}/devices/{serial}/events/report"
        self._heartbeat_s = heartbeat_s
        self._timer: asyncio.TimerHandle | None = None

    def subscribed(self) -> None:
        if self.ready.done():
            self.joined.set_result(None)
        else:
            super().subscribed()
            self._timer = asyncio.get_running_loop().call_later(self._heartbeat_s, self._heartbeat)

    def message(self, packet: mqtt5.PublishPacket) -> None:
        if packet.response_topic:
            self.publish(packet.response_topic, OUTCOME, correlation_data=packet.correlation_data)
        else:
            self._tally.room_event()

    def emit(self) -> None:
        """Publish an event."""
        self.publish(self._events, self._event)
        self.flush()

    def join(self, room: str) -> None:
        """Subscribe to a room."""
        self.subscribe(f"{PREFIX}/rooms/{room}/events/+")
        self.flush()

    def _heartbeat(self) -> None:
        self._tally.heartbeats += 1
        self._transport.write(b"\xc0\x00")  # PINGREQ, 3.12
        self._timer = asyncio.get_running_loop().call_later(self._heartbeat_s, self._heartbeat)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.gone()
        if self._timer is not None:
            self._timer.cancel()
        for waiting in (self.ready, self.joined):
            if not waiting.done():
                waiting.cancel()
