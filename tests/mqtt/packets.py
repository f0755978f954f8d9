"""Packets of the broker's side, and sessions that are given them."""

from typing import Any

import mqtt5

from gateway.mqtt.session import MqttSession
from gateway.mqtt.values import (
    Credentials,
    Event,
    Opened,
    Options,
    Received,
)

ACK = mqtt5.ConnAckPacket
QOS = (mqtt5.QoS.AT_MOST_ONCE, mqtt5.QoS.AT_LEAST_ONCE, mqtt5.QoS.EXACTLY_ONCE)


def packets(data: bytes) -> list[Any]:
    """All packets of a byte string."""
    found: list[Any] = []
    while data:
        packet, size = mqtt5.read(memoryview(data))
        found.append(packet)
        data = data[size:]
    return found


def publish(packet_id: int | None, topic: str = "d/commands/x", payload: bytes = b"", **more: Any) -> bytes:
    qos = QOS[more.pop("qos", 1 if packet_id is not None else 0)]
    return mqtt5.PublishPacket(topic, payload, qos=qos, packet_id=packet_id, **more).write()


def opened(session: MqttSession, now: float = 0.0, **connack: Any) -> list[Event]:
    session.opening(Credentials())
    return session.opened(ACK(**connack), now)


def connected(**options: Any) -> MqttSession:
    session = MqttSession(Options("d", **options))
    assert opened(session) == [Opened(False)]
    return session


def deliveries(events: list[Event]) -> list[int]:
    return [e.delivery for e in events if isinstance(e, Received) and e.delivery is not None]


def sent(session: MqttSession, now: float = 0.0) -> list[Any]:
    asked, written = session.has_output, session.output(now)
    assert asked or not written
    return packets(written)


def ids(found: list[Any]) -> list[int]:
    return [p.packet_id for p in found]
