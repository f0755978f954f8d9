"""PUBLISH is written here; what it is is the codec's to say."""

import mqtt5
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mqtt import Message
from gateway.mqtt.wire import _is_writable, write_publish

PLAIN = st.text(st.characters(min_codepoint=33, exclude_characters="+#", exclude_categories=["C"]), min_size=1)
WILD = PLAIN | st.text(max_size=3) | st.sampled_from(["", "a/+", "#", "x" * 65_535, "é" * 32_768, "\ud800", "\x00"])
BINARY = st.binary(max_size=20) | st.sampled_from([bytes(size) for size in (100, 127, 128, 16_000, 70_000, 2_097_152)])


def messages(text: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    return st.builds(
        Message,
        topic=text,
        payload=BINARY,
        retain=st.booleans(),
        expiry_s=st.none() | st.integers(-1, 1 << 32),
        content_type=st.none() | text,
        response_topic=st.none() | text,
        correlation=st.none() | st.binary(max_size=8) | st.just(bytes(65_536)),
        user_properties=st.lists(st.tuples(text, text), max_size=3).map(tuple),
    )


def of_the_codec(message: Message, packet_id: int | None, duplicate: bool) -> bytes | None:
    try:
        return mqtt5.PublishPacket(
            message.topic,
            message.payload,
            qos=mqtt5.QoS.AT_LEAST_ONCE if packet_id else mqtt5.QoS.AT_MOST_ONCE,
            retain=message.retain,
            packet_id=packet_id,
            duplicate=duplicate,
            message_expiry_interval=message.expiry_s,
            content_type=message.content_type,
            response_topic=message.response_topic,
            correlation_data=message.correlation,
            user_properties=list(message.user_properties),
        ).write()
    except (ValueError, OverflowError):
        return None


@settings(max_examples=500)
@given(messages(PLAIN) | messages(WILD), st.none() | st.integers(1, 65_535), st.booleans())
def test_a_publish_is_what_the_codec_makes_of_it(message: Message, packet_id: int | None, duplicate: bool) -> None:
    again = duplicate and packet_id is not None
    expected = of_the_codec(message, packet_id, again) if _is_writable(message) else None
    assert write_publish(message, packet_id, again) == expected
