"""MQTT 5 packets off and onto the wire (pure; the codec is `mqtt5`).

The functions translate: values into packets, bytes into packets, the codec's exceptions into `Malformed`.
"""

import re
from collections.abc import Sequence
from typing import Final

import mqtt5

from gateway.mqtt.values import (
    Credentials,
    Message,
    Options,
    Subscription,
    Will,
)

Code = mqtt5.DisconnectReasonCode
LAST_PUBLISH_ID: Final = 0x7FFF  # ids above are for SUBSCRIBE and UNSUBSCRIBE: a pipelined one never collides
TOPIC_NAME_INVALID: Final = 0x90  # PUBACK reasons (3.4.2.1), given without sending
PACKET_TOO_LARGE: Final = 0x95
# Looked up once.
_QOS_0: Final = mqtt5.QoS.AT_MOST_ONCE
_QOS_1: Final = mqtt5.QoS.AT_LEAST_ONCE
_read: Final = mqtt5.read
Publish: Final = mqtt5.PublishPacket
_PUBACK: Final = 0x40  # first byte
_PUBACK_BYTES: Final = 2  # what follows in one without a reason, its packet id: all is well (3.4.2.1)
PINGREQ: Final = b"\xc0\x00"  # 3.12
PINGRESP: Final = b"\xd0\x00"  # 3.13
MAX_PACKET_BYTES: Final = 268_435_455 + 5  # the largest Remaining Length and its header (2.1.4)
_CONNACK: Final = 0x20  # first byte of the only packet that may answer a CONNECT here (3.2.1)
_MAX_CONNACK_BYTES: Final = 65_536
# [MQTT-1.5.4-2] forbids U+0000; 1.5.4 lets a receiver close the connection over controls and non-characters.
# A QoS 1 publish that the broker answers by closing would be resent for ever, so none is ever written.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef" + "".join(chr(p << 16 | 0xFFFE) + chr(p << 16 | 0xFFFF) for p in range(17)) + "]"
)


class Malformed(Exception):
    """The peer sent what MQTT 5 forbids; `code` is the DISCONNECT reason to tell it (4.13)."""

    def __init__(self, reason: str, code: Code = Code.MALFORMED_PACKET) -> None:
        super().__init__(reason)
        self.code: int = code.value


def packet_end(data: bytes, start: int) -> int:
    """Index after the packet at `start`: beyond `data` if it is partial, and then only a lower bound.

    Raises:
        Malformed: the Remaining Length has more than four bytes (1.5.5).

    """
    length, shift, at = 0, 0, start + 1
    while at < len(data):
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at + length
        shift += 7
        if shift == 28:
            raise Malformed("remaining length of more than four bytes")
    return len(data) + 1


def read_packet(packet: bytes) -> mqtt5.Packet:
    """Read exactly one whole packet; Malformed if it is not one."""
    try:
        read, size = _read(packet)  # type: ignore[arg-type]  # it takes any buffer
    except (ValueError, IndexError) as error:  # IndexError: a field claims more than the packet has
        raise Malformed(f"malformed packet: {error}") from error
    except BaseException as error:
        # The codec panics on invalid UTF-8 in some strings, with a BaseException that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise Malformed("malformed packet: the codec gave up") from None
    if size != len(packet):
        raise Malformed("malformed packet: bytes left over")
    return read


def read_connack(buffer: bytes) -> tuple[mqtt5.ConnAckPacket, int] | None:
    """Read the answer to a CONNECT and its size in bytes; None while it is partial.

    Raises:
        Malformed: it is no CONNACK, or too large for one.

    """
    if not buffer:
        return None
    if buffer[0] != _CONNACK:
        raise Malformed("no CONNACK", Code.PROTOCOL_ERROR)
    end = packet_end(buffer, 0)
    if end > _MAX_CONNACK_BYTES:
        raise Malformed("CONNACK too large", Code.PACKET_TOO_LARGE)
    if end > len(buffer):
        return None
    packet = read_packet(buffer[:end])
    assert isinstance(packet, mqtt5.ConnAckPacket)
    return packet, end


def read_message(packet: mqtt5.PublishPacket) -> Message:
    """Take the application message out of a PUBLISH."""
    return Message(
        packet.topic,
        packet.payload,
        packet.qos.value,
        packet.retain,
        packet.message_expiry_interval,
        packet.content_type,
        packet.response_topic,
        packet.correlation_data,
        tuple(packet.user_properties),
    )


def read_puback(data: bytes, start: int, end: int) -> int:
    """Packet id of a PUBACK without a reason; 0: it is another packet, or none that is allowed."""
    if end - start == 4 and data[start] == _PUBACK and data[start + 1] == _PUBACK_BYTES:
        return data[start + 2] << 8 | data[start + 3]
    return 0


def write_puback(packet_id: int) -> bytes:
    """PUBACK of a message that was taken."""
    return (_PUBACK << 24 | _PUBACK_BYTES << 16 | packet_id).to_bytes(4, "big")


def write_publish(message: Message, packet_id: int | None, duplicate: bool) -> bytes | None:
    """PUBLISH at QoS 1 with a `packet_id`, else at QoS 0; None if MQTT cannot carry the message."""
    if not _is_writable(message):
        return None
    qos, properties = _QOS_1 if packet_id else _QOS_0, list(message.user_properties)
    is_plain = not duplicate and not message.retain and message.expiry_s is None and message.response_topic is None
    try:
        if is_plain:  # nearly all are, and each argument costs 0.1 µs
            return Publish(
                message.topic,
                message.payload,
                qos=qos,
                packet_id=packet_id,
                content_type=message.content_type,
                correlation_data=message.correlation,
                user_properties=properties,
            ).write()
        return Publish(
            message.topic,
            message.payload,
            qos=qos,
            retain=message.retain,
            packet_id=packet_id,
            duplicate=duplicate,
            message_expiry_interval=message.expiry_s,
            content_type=message.content_type,
            response_topic=message.response_topic,
            correlation_data=message.correlation,
            user_properties=properties,
        ).write()
    except (ValueError, OverflowError):  # a wildcard, a lone surrogate, a field out of range
        return None


def _is_writable(message: Message) -> bool:
    """Whether the payload fits into a packet, and any broker takes the topics and what the user properties say.

    Content types and the names of user properties are words of the gateway's own, and not looked at.
    """
    if len(message.payload) > MAX_PACKET_BYTES >> 1:  # the codec panics over the limit of a packet
        return False
    text = message.topic if message.response_topic is None else message.topic + message.response_topic
    for _, value in message.user_properties:
        text += value
    return text.isprintable() or not _FORBIDDEN.search(text)


def write_connect(options: Options, credentials: Credentials) -> bytes:
    """CONNECT that continues the session if there is one: Clean Start is always 0."""
    return mqtt5.ConnectPacket(
        options.client_id,
        username=credentials.username,
        password=credentials.password,
        clean_start=False,
        will=_will(options.will) if options.will else None,
        keep_alive=options.keep_alive_s,
        session_expiry_interval=options.session_expiry_s,
        receive_max=options.receive_maximum,
        max_packet_size=options.max_packet_bytes,
    ).write()


def _will(will: Will) -> mqtt5.Will:
    message = will.message
    return mqtt5.Will(
        message.topic,
        payload=message.payload,
        qos=mqtt5.QoS(message.qos),
        retain=message.retain,
        message_expiry_interval=message.expiry_s,
        content_type=message.content_type,
        response_topic=message.response_topic,
        correlation_data=message.correlation,
        will_delay_interval=will.delay_s,
        user_properties=list(message.user_properties),
    )


def write_subscribe(packet_id: int, subscriptions: Sequence[Subscription]) -> bytes:
    """SUBSCRIBE; the retain flag is kept as published."""
    handling = mqtt5.RetainHandling
    filters = [
        mqtt5.TopicFilter(
            s.topic_filter,
            max_qos=mqtt5.QoS(s.qos),
            no_local=s.no_local,
            retain_as_published=True,
            retain_handling=handling.SEND_ALWAYS if s.retained else handling.SEND_NEVER,
        )
        for s in subscriptions
    ]
    return mqtt5.SubscribePacket(packet_id, filters).write()


def write_disconnect(code: int, session_expiry_s: int | None = None) -> bytes:
    """DISCONNECT with a reason code and, if given, another session expiry."""
    return mqtt5.DisconnectPacket(reason_code=Code(code), session_expiry_interval=session_expiry_s).write()
