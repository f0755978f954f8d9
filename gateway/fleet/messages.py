"""What a service says as an MQTT message."""

from typing import Any

import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.topics import BINARY_TYPE, JSON_TYPE


def message_of(payload: Any) -> tuple[bytes, Properties]:
    """The body of a message, and its properties with the Content Type that fits."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if payload is None:
        return b"", properties
    if isinstance(payload, bytes):
        properties.ContentType = BINARY_TYPE
        return payload, properties
    properties.ContentType = JSON_TYPE
    return msgspec.json.encode(payload), properties
