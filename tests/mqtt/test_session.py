"""The client session: each rule by example, and what must hold for any peer."""

import mqtt5
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.mqtt.session import SESSION_TAKEN_OVER, MqttSession
from gateway.mqtt.values import (
    Closed,
    Credentials,
    Event,
    Message,
    Opened,
    Options,
    Received,
    Subscribed,
    Subscription,
    Will,
)
from gateway.mqtt.wire import Malformed, read_connack

from .packets import ACK, connected, deliveries, ids, opened, packets, publish, sent

# The codec's panic on invalid UTF-8 leaves an unraisable UnicodeDecodeError behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


FILTERS = (Subscription("d/commands/#"), Subscription("d/replies/#"))

# --- opening


def test_opening_is_connect_and_subscribe_in_one_write() -> None:
    will = Will(Message("d/presence", b"off", 1, retain=True, expiry_s=9, user_properties=(("a", "b"),)), delay_s=5)
    session = MqttSession(Options("d", FILTERS, will, 30, 600, receive_maximum=7))
    connect, subscribe = packets(session.opening(Credentials("u", b"p")))
    assert (connect.client_id, connect.username, connect.password) == ("d", "u", b"p")
    assert (connect.clean_start, connect.keep_alive, connect.session_expiry_interval) == (False, 30, 600)
    assert connect.receive_max == 7
    assert (connect.will.topic, connect.will.payload, connect.will.will_delay_interval) == ("d/presence", b"off", 5)
    assert connect.will.retain
    assert [f.pattern for f in subscribe.topic_filters] == ["d/commands/#", "d/replies/#"]
    assert {str(f.retain_handling) for f in subscribe.topic_filters} == {str(mqtt5.RetainHandling.SEND_NEVER)}


def test_the_password_never_shows() -> None:
    assert "secret" not in repr(Credentials("u", b"secret"))


def test_many_subscriptions_go_in_several_packets() -> None:
    session = MqttSession(Options("d", tuple(Subscription(f"r/{n}") for n in range(600))))
    found = packets(session.opening(Credentials()))[1:]
    assert [len(p.topic_filters) for p in found] == [256, 256, 88]
    assert len(set(ids(found))) == 3


def test_suback_names_what_was_refused() -> None:
    session = MqttSession(Options("d", FILTERS))
    packet_id = packets(session.opening(Credentials()))[1].packet_id
    session.opened(ACK(), 0)
    codes = mqtt5.SubAckReasonCode
    answer = mqtt5.SubAckPacket(packet_id, [codes.NOT_AUTHORIZED, codes.GRANTED_QOS_AT_LEAST_ONCE]).write()
    assert session.receive(answer) == [Subscribed(("d/commands/#", "d/replies/#"), ("d/commands/#",))]
    assert session.receive(answer) == []  # an answer to nothing


def test_a_suback_with_too_few_codes_is_a_protocol_error() -> None:
    session = MqttSession(Options("d", FILTERS))
    packet_id = packets(session.opening(Credentials()))[1].packet_id
    session.opened(ACK(), 0)
    answer = mqtt5.SubAckPacket(packet_id, [mqtt5.SubAckReasonCode.NOT_AUTHORIZED]).write()
    assert [e.code for e in session.receive(answer) if isinstance(e, Closed)] == [0x82]


def test_subscriptions_are_a_desired_state() -> None:
    session = connected(subscriptions=FILTERS)
    session.subscribe(Subscription("r/1", qos=0, retained=True, no_local=True))
    session.unsubscribe("d/replies/#")
    subscribe, unsubscribe = sent(session)
    assert [f.pattern for f in subscribe.topic_filters] == ["r/1"]
    assert unsubscribe.patterns == ["d/replies/#"]
    session.closed()
    again = packets(session.opening(Credentials()))[1]
    assert [f.pattern for f in again.topic_filters] == ["d/commands/#", "r/1"]
    session.subscribe(Subscription("r/2"))  # too late for the CONNECT
    session.opened(ACK(session_present=True), 0)
    subscribe, unsubscribe = sent(session)
    assert [f.pattern for f in subscribe.topic_filters] == ["r/2"]
    assert unsubscribe.patterns == ["d/replies/#"]  # never answered
    assert len({again.packet_id, subscribe.packet_id, unsubscribe.packet_id}) == 3
    done = mqtt5.UnsubAckPacket(unsubscribe.packet_id, [mqtt5.UnsubAckReasonCode.SUCCESS]).write()
    assert session.receive(done) == []
    opened(session, session_present=True)
    assert sent(session) == []


# --- CONNACK


def test_read_connack_needs_every_byte() -> None:
    data = ACK(session_present=True, reason_str="x" * 200, server_keep_alive=9).write()
    for size in range(len(data)):
        assert read_connack(data[:size]) is None
    answer = read_connack(data + b"rest")
    assert answer is not None
    assert (answer[0].server_keep_alive, answer[1]) == (9, len(data))


@pytest.mark.parametrize(
    "data", [b"\x30\x00", b"\x00", b"\x20\xff\xff\xff\xff", b"\x20\xff\xff\x7f", b"\x20\x03\x00\x01\x00", b"\x20\x00"]
)
def test_read_connack_raises_on_anything_else(data: bytes) -> None:
    with pytest.raises(Malformed):
        read_connack(data)


# --- keep-alive and the end


def test_keep_alive_pings_after_silence_and_closes_without_an_answer() -> None:
    session = connected(keep_alive_s=60)
    session.publish(Message("t"))
    session.output(10)
    assert session.deadline == 70
    assert session.tick(69) == []
    assert sent(session, 69) == []
    assert session.tick(70) == []
    assert isinstance(sent(session, 70)[0], mqtt5.PingReqPacket)
    assert session.deadline == 100
    assert session.receive(mqtt5.PingRespPacket().write()) == []
    assert session.deadline == 130
    session.tick(130)
    session.output(130)
    assert [type(e) for e in session.tick(160)] == [Closed]
    assert session.deadline is None
    assert session.receive(publish(1)) == []


def test_the_keep_alive_of_the_broker_overrides() -> None:
    session = MqttSession(Options("d", keep_alive_s=60))
    opened(session, now=5, server_keep_alive=10)
    assert session.deadline == 15
    opened(session, now=5, server_keep_alive=0)
    assert session.deadline is None


def test_disconnect_says_goodbye_last() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(1)))
    session.publish(Message("t", qos=1))
    session.puback(one)
    session.disconnect(session_expiry_s=0)
    *before, goodbye = sent(session)
    assert [type(p) for p in before] == [mqtt5.PubAckPacket, mqtt5.PublishPacket]
    assert (goodbye.reason_code.value, goodbye.session_expiry_interval) == (0, 0)
    assert sent(session) == []


def test_a_takeover_is_recognisable() -> None:
    session = connected()
    code = mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
    assert session.receive(mqtt5.DisconnectPacket(reason_code=code, reason_str="you know").write()) == [
        Closed(SESSION_TAKEN_OVER, "you know")
    ]
    assert session.receive(publish(1)) == []
    assert session.output(0) == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (publish(1, qos=2), 0x82),
        (publish(0), 0x82),
        (publish(1) + publish(1), 0x82),
        (publish(None, topic_alias=1), 0x94),
        (ACK().write(), 0x82),
        (mqtt5.PingReqPacket().write(), 0x82),
        (mqtt5.AuthPacket().write(), 0x82),
        (b"\x00\x00", 0x81),
        (b"\x30\xff\xff\xff\xff\x01", 0x81),
        (b"\x32\x03\x00\x09a", 0x81),  # a field longer than its packet
        (b"\x32\x03\x00\x09a" + bytes(20), 0x81),
        (b"\xe0\x02\x85\x00", 0x81),
        (b"\x32\x06\x00\x01\xff\x00\x01\x00", 0x81),  # invalid UTF-8: the codec panics
        (b"\x30\xff\xff\x7f", 0x95),
        (b"\x40\x81\x00\x01", 0x81),  # a PUBACK as long as one without a reason, that says otherwise
    ],
    ids=range(15),
)
def test_what_mqtt_forbids_closes_with_its_code(data: bytes, code: int) -> None:
    session = connected(receive_maximum=3, max_packet_bytes=1000)
    assert [e.code for e in session.receive(data) if isinstance(e, Closed)] == [code]
    (goodbye,) = sent(session)
    assert goodbye.reason_code.value == code
    assert session.receive(publish(7)) == []


def test_a_broker_that_forgot_our_receive_maximum_is_borne_with() -> None:
    """mosquitto 2.0.11 forgets that of a session it restored: to hang up would bring the same messages for ever."""
    session = connected(receive_maximum=3)
    events = session.receive(b"".join(publish(n + 1) for n in range(10)))
    assert [type(event) for event in events] == [Received] * 10


# --- any bytes


STREAM = (
    publish(1, "t", b"x" * 200, user_properties=[("id", "1")])
    + publish(None, "t", b"y")
    + mqtt5.PubAckPacket(7).write()
    + mqtt5.SubAckPacket(0x8000, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE] * 2).write()
    + mqtt5.PingRespPacket().write()
    + publish(2, "u", b"z")
)


def test_any_cut_of_the_stream_gives_the_same_events() -> None:
    def events(*parts: bytes) -> list[Event]:
        session = connected(subscriptions=FILTERS)
        return [event for part in parts for event in session.receive(part)]

    whole = events(STREAM)
    assert len(whole) == 4
    for cut in range(len(STREAM)):
        assert events(STREAM[:cut], STREAM[cut:]) == whole
    assert events(*(STREAM[n : n + 1] for n in range(len(STREAM)))) == whole


def check(data: bytes) -> None:
    """A session survives the bytes, closes at most once, and goes on with the next connection."""
    session = connected(subscriptions=FILTERS)
    session.publish(Message("t", qos=1), 1)
    session.output(0)
    events = session.receive(data)
    assert sum(isinstance(e, Closed) for e in events) <= 1
    for number in deliveries(events):
        session.puback(number)
    session.output(1)
    assert Opened(True) in opened(session, session_present=True)


@given(st.binary(max_size=200))
@example(b"\x32\x06\x00\x01\xff\x00\x01\x00")
def test_survives_any_bytes(data: bytes) -> None:
    check(data)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)), max_size=6))
def test_survives_any_mutation(changes: list[tuple[int, int]]) -> None:
    data = bytearray(STREAM)
    for index, byte in changes:
        data[index] = byte
    check(bytes(data))


@given(st.binary(max_size=80))
@example(b"\x20\x0a\x00\x00\x07\x1f\x00\x04\xff\xff\xff\xff")
def test_read_connack_survives_any_bytes(data: bytes) -> None:
    try:
        read_connack(b"\x20" + data)
        read_connack(data)
    except Malformed:
        pass
