"""The client session: each rule by example, and what must hold for any peer."""

from typing import Any

import mqtt5
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.mqtt.session import (
    SESSION_TAKEN_OVER,
    Closed,
    Credentials,
    Dropped,
    Event,
    Malformed,
    Message,
    MqttSession,
    Opened,
    Options,
    Published,
    Received,
    Subscribed,
    Subscription,
    Will,
    read_connack,
)

# The codec's panic on invalid UTF-8 leaves an unraisable UnicodeDecodeError behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FILTERS = (Subscription("d/commands/#"), Subscription("d/replies/#"))
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
    return packets(session.output(now))


def ids(found: list[Any]) -> list[int]:
    return [p.packet_id for p in found]


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
    assert session.receive(answer) == [Subscribed(("d/commands/#",))]
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


# --- received messages


def test_a_message_arrives_whole() -> None:
    session = connected()
    data = publish(
        3,
        "t",
        b"p",
        message_expiry_interval=9,
        content_type="c",
        response_topic="r",
        correlation_data=b"k",
        user_properties=[("id", "1"), ("id", "2")],
        retain=True,
    )
    (event,) = session.receive(data)
    assert isinstance(event, Received)
    assert event.message == Message("t", b"p", 1, True, 9, "c", "r", b"k", (("id", "1"), ("id", "2")))
    assert session.receive(publish(None, "t", b"q")) == [Received(Message("t", b"q"), None, False)]


def test_pubacks_leave_in_the_order_of_receipt_and_only_when_due() -> None:
    session = connected()
    one, two, three = deliveries(session.receive(publish(5) + publish(9) + publish(1)))
    assert sent(session) == []
    session.puback(two)
    assert sent(session) == []
    session.puback(one)
    assert ids(sent(session)) == [5, 9]
    session.puback(one)
    session.puback(three)
    assert ids(sent(session)) == [1]
    (again,) = deliveries(session.receive(publish(5)))  # a free packet id: a new message
    assert again not in (one, two, three)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_any_order_of_puback_keeps_the_order_of_receipt(order: list[int], flush_after: set[int]) -> None:
    session = connected()
    numbers = deliveries(session.receive(b"".join(publish(100 - n) for n in range(12))))
    left: list[int] = []
    for step, index in enumerate(order):
        session.puback(numbers[index])
        if step in flush_after:
            left += ids(sent(session))
    assert left + ids(sent(session)) == [100 - n for n in range(12)]


def test_a_redelivery_keeps_its_delivery() -> None:
    session = connected()
    one, two, three = deliveries(session.receive(publish(1, "a") + publish(2, "b") + publish(3, "c")))
    session.closed()
    session.puback(two)  # while there is no connection
    assert opened(session, session_present=True) == [Opened(True)]
    again = [publish(n, t, duplicate=True) for n, t in ((1, "a"), (2, "b"), (3, "other"))]
    events = session.receive(b"".join(again))
    assert [(e.message.topic, e.duplicate) for e in events if isinstance(e, Received)] == [("other", True)]
    session.puback(three)  # void: its packet id means another message now
    assert sent(session) == []
    session.puback(one)
    assert ids(sent(session)) == [1, 2]
    session.puback(deliveries(events)[0])
    assert ids(sent(session)) == [3]


def test_a_redelivery_survives_a_connection_that_ended_before_it() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(1)))
    for _ in range(3):
        opened(session, session_present=True)
    assert session.receive(publish(1, duplicate=True)) == []
    session.puback(one)
    assert ids(sent(session)) == [1]


def test_without_dup_it_is_a_new_message() -> None:
    session = connected()
    session.receive(publish(1))
    opened(session, session_present=True)
    assert [e.duplicate for e in session.receive(publish(1)) if isinstance(e, Received)] == [False]


def test_a_puback_that_was_never_written_makes_the_redelivery_settle_at_once() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(1)))
    session.puback(one)
    opened(session, session_present=True)
    assert session.receive(publish(1, duplicate=True)) == []
    assert ids(sent(session)) == [1]


def test_a_lost_session_voids_old_deliveries() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(1)))
    opened(session)
    (new,) = deliveries(session.receive(publish(1, duplicate=True)))
    assert new != one
    session.puback(one)
    assert sent(session) == []
    session.puback(new)
    assert ids(sent(session)) == [1]


# --- publishes


def test_a_publish_arrives_whole_and_ends_with_its_code() -> None:
    session = connected()
    session.publish(Message("t", b"p", 1, True, 9, "c", "r", b"k", (("a", "b"),)), token=4)
    (packet,) = sent(session)
    assert (packet.topic, packet.payload, packet.retain, packet.duplicate) == ("t", b"p", True, False)
    assert (packet.message_expiry_interval, packet.content_type, packet.response_topic) == (9, "c", "r")
    assert (packet.correlation_data, packet.user_properties) == (b"k", [("a", "b")])
    code = mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
    answer = mqtt5.PubAckPacket(packet.packet_id, reason_code=code).write()
    assert session.receive(answer) == [Published(4, 0x10)]
    assert session.receive(answer) == []


def test_the_window_is_the_receive_maximum_of_the_broker() -> None:
    session = MqttSession(Options("d"))
    opened(session, receive_max=2)
    for token in range(5):
        session.publish(Message("t", b"%d" % token, 1), token)
    first = sent(session)
    assert [p.payload for p in first] == [b"0", b"1"]
    assert session.receive(mqtt5.PubAckPacket(first[1].packet_id).write()) == [Published(1, 0)]
    assert [p.payload for p in sent(session)] == [b"2"]


def test_a_resumed_session_resends_first_in_order_with_the_same_ids() -> None:
    session = connected()
    for n in range(3):
        session.publish(Message("t", b"%d" % n, 1), n)
    before = sent(session)
    session.receive(mqtt5.PubAckPacket(before[1].packet_id).write())
    session.closed()
    session.publish(Message("t", b"3", 1), 3)
    opened(session, session_present=True, receive_max=2)
    after = sent(session)
    assert [(p.packet_id, p.payload, p.duplicate) for p in after] == [
        (before[0].packet_id, b"0", True),
        (before[2].packet_id, b"2", True),
    ]
    session.closed()
    opened(session)
    assert [(p.payload, p.duplicate) for p in sent(session)] == [(b"0", False), (b"2", False), (b"3", False)]


def test_over_the_bounds_the_oldest_droppable_goes() -> None:
    session = MqttSession(Options("d", max_waiting=2, max_waiting_bytes=100))
    for token, droppable in enumerate((False, True, True)):
        session.publish(Message("t", b"%d" % token, 1), token, droppable)
    assert session.take_events() == [Dropped(1)]
    session.publish(Message("t", b"x" * 99, 1), 3)
    assert session.take_events() == [Dropped(2)]
    session.publish(Message("t", b"4", 1), 4)  # not droppable: kept
    assert session.take_events() == []
    opened(session)
    assert [p.payload[:1] for p in sent(session)] == [b"0", b"x", b"4"]


def test_what_was_sent_is_never_dropped() -> None:
    session = connected(max_waiting=1)
    session.publish(Message("t", b"0", 1), 0, droppable=True)
    session.output(0)
    session.closed()
    for token in (1, 2):
        session.publish(Message("t", b"%d" % token, 1), token, droppable=True)
    assert session.take_events() == [Dropped(1)]
    opened(session, session_present=True, receive_max=1)
    assert [p.payload for p in sent(session)] == [b"0"]
    opened(session, session_present=True)
    assert [p.payload for p in sent(session)] == [b"0", b"2"]


def test_the_bounds_are_for_what_cannot_be_sent() -> None:
    session = MqttSession(Options("d", max_waiting=2, max_waiting_bytes=10))
    opened(session, receive_max=3)
    for token in range(6):
        session.publish(Message("t", b"x", 1), token, droppable=True)
    assert len(sent(session)) == 3
    assert session.take_events() == [Dropped(3)]
    session.publish(Message("t", bytes(11), 1), 6, droppable=True)
    session.hold()
    assert session.take_events() == [Dropped(4), Dropped(5), Dropped(6)]


def test_qos_0_is_now_or_never() -> None:
    session = MqttSession(Options("d"))
    session.publish(Message("t"), 1)
    session.publish(Message("t"))
    assert session.take_events() == [Dropped(1)]
    opened(session)
    session.publish(Message("t"), 2)
    assert len(sent(session)) == 1
    assert session.take_events() == [Published(2, 0)]
    session.publish(Message("t"), 3)
    session.closed()
    assert session.take_events() == [Dropped(3)]


@pytest.mark.parametrize(
    "message",
    [
        Message("a/+", qos=1),
        Message("", qos=1),
        Message("a\0", qos=1),
        Message("a\x1f", qos=1),
        Message("a\ufffe", qos=1),
        Message("\ud800", qos=1),
        Message("x" * 65_536, qos=1),
        Message("a", qos=1, expiry_s=-1),
        Message("a", qos=1, correlation=bytes(65_536)),
        Message("a", qos=1, response_topic="#"),
        Message("a", qos=1, user_properties=(("k", "\0"),)),
    ],
    ids=range(11),
)
def test_what_mqtt_cannot_carry_fails_alone(message: Message) -> None:
    session = connected()
    session.publish(message, 1)
    session.publish(Message("校园/t", qos=1), 2)
    assert [p.topic for p in sent(session)] == ["校园/t"]
    assert session.take_events() == [Published(1, 0x90)]


def test_a_publish_over_the_maximum_of_the_broker_is_not_sent() -> None:
    session = MqttSession(Options("d"))
    opened(session, max_packet_size=20)
    session.publish(Message("t", bytes(30), 1), 1)
    assert sent(session) == []
    assert session.take_events() == [Published(1, 0x95)]


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
        (b"".join(publish(n + 1) for n in range(4)), 0x93),
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
    ],
    ids=range(15),
)
def test_what_mqtt_forbids_closes_with_its_code(data: bytes, code: int) -> None:
    session = connected(receive_maximum=3, max_packet_bytes=1000)
    assert [e.code for e in session.receive(data) if isinstance(e, Closed)] == [code]
    (goodbye,) = sent(session)
    assert goodbye.reason_code.value == code
    assert session.receive(publish(7)) == []


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


# --- two ends

ROUND = st.tuples(st.integers(0, 5), st.sets(st.integers(0, 4)), st.integers(0, 12), st.integers(0, 5))


@given(st.lists(ROUND, max_size=6))
def test_nothing_is_lost_or_reordered_over_breaking_connections(rounds: list[tuple[int, set[int], int, int]]) -> None:
    """A connection a round: so many messages come, some are acknowledged, so many packets arrive and are answered."""
    session = MqttSession(Options("d"))
    unacked = {n + 1: b"%d" % n for n in range(5)}  # what the broker has no PUBACK for, in order
    received: list[bytes] = []
    arrived: list[bytes] = []
    published: list[int] = []
    pending: dict[bytes, int] = {}
    for n in range(5):
        session.publish(Message("t", b"%d" % n, 1), n)
    for index, (coming, acked, arriving, answered) in enumerate([*rounds, (5, set(range(5)), 99, 99)]):
        opened(session, session_present=index > 0)
        for packet_id, payload in list(unacked.items())[:coming]:
            for event in session.receive(publish(packet_id, "t", payload, duplicate=payload in received)):
                assert isinstance(event, Received)
                assert event.message.payload not in received or event.duplicate
                received.append(payload)
                pending[payload] = event.delivery or 0
        for n in acked & {int(payload) for payload in pending}:
            session.puback(pending[b"%d" % n])
        for packet in sent(session)[:arriving]:
            if isinstance(packet, mqtt5.PubAckPacket):
                assert packet.packet_id == next(iter(unacked))
                del unacked[packet.packet_id]
            elif packet.payload not in arrived:
                arrived.append(packet.payload)
            if isinstance(packet, mqtt5.PublishPacket) and answered:
                answered -= 1
                (done,) = session.receive(mqtt5.PubAckPacket(packet.packet_id or 0).write())
                assert isinstance(done, Published)
                published.append(done.token)
    assert not unacked
    assert list(dict.fromkeys(received)) == arrived == [b"%d" % n for n in range(5)]
    assert sorted(published) == list(range(5))
