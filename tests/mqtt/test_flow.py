"""The two flows in a session: what is acknowledged, resent and remembered, across connections."""

from typing import Any

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.session import MqttSession
from gateway.mqtt.values import (
    Dropped,
    Message,
    Opened,
    Options,
    Published,
    Received,
)

from .packets import connected, deliveries, ids, opened, publish, sent

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


def test_the_puback_of_what_a_publish_settles_follows_it_in_the_same_write() -> None:
    session = connected()
    one, two = deliveries(session.receive(publish(5) + publish(9)))
    session.publish(Message("answer", b"2", 1), 2, settles=two)
    assert [packet.topic for packet in sent(session)] == ["answer"], "two waits for one"
    session.publish(Message("answer", b"1", 1), 1, settles=one)
    answer, *pubacks = sent(session)
    assert answer.payload == b"1"
    assert ids(pubacks) == [5, 9]


def test_nothing_is_settled_by_a_publish_that_waits_for_the_window() -> None:
    session = MqttSession(Options("d"))
    opened(session, receive_max=1)
    (one,) = deliveries(session.receive(publish(5)))
    session.publish(Message("other", qos=1), 1)
    session.publish(Message("answer", qos=1), 2, settles=one)
    (other,) = sent(session)
    session.receive(mqtt5.PubAckPacket(other.packet_id).write())
    answer, puback = sent(session)
    assert (answer.topic, puback.packet_id) == ("answer", 5)


def test_nothing_is_settled_by_a_publish_that_is_too_large() -> None:
    session = MqttSession(Options("d"))
    opened(session, max_packet_size=100)
    (one,) = deliveries(session.receive(publish(5)))
    session.publish(Message("answer", b"x" * 200, 1), 1, settles=one)
    assert sent(session) == []
    assert session.take_events() == [Published(1, 0x95, None)]
    session.publish(Message("answer", b"x", 1), 2, settles=one)
    assert [type(packet) for packet in sent(session)] == [mqtt5.PublishPacket, mqtt5.PubAckPacket]


def test_what_a_publish_has_settled_is_not_surfaced_again_after_a_cut() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(5)))
    session.publish(Message("answer", qos=1), 1, settles=one)
    assert len(sent(session)) == 2, "and the broker reads neither"
    session.closed()
    opened(session, session_present=True)
    (answer,) = sent(session)
    assert (answer.topic, answer.duplicate) == ("answer", True)
    assert session.receive(publish(5, duplicate=True)) == []
    assert ids(sent(session)) == [5]


def test_a_redelivery_that_is_read_first_after_a_cut_waits_for_the_publish_that_settles_it() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(5)))
    session.publish(Message("other", qos=1), 1)
    session.publish(Message("answer", qos=1), 2, settles=one)
    assert len(sent(session)) == 3
    session.closed()
    opened(session, session_present=True, receive_max=1)
    session.receive(publish(5, duplicate=True))
    (other,) = sent(session)
    session.receive(mqtt5.PubAckPacket(other.packet_id).write())
    answer, puback = sent(session)
    assert (other.topic, answer.topic, puback.packet_id) == ("other", "answer", 5)


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


def test_a_redelivery_that_is_not_done_does_not_hold_back_the_puback_of_one_before_it() -> None:
    session = connected()
    one, _ = deliveries(session.receive(publish(1) + publish(2)))
    session.puback(one)
    opened(session, session_present=True)
    session.receive(publish(1, duplicate=True) + publish(2, duplicate=True))
    assert ids(sent(session)) == [1]


def acked_and_cut(*topics: str, **options: Any) -> MqttSession:
    """A session whose PUBACKs were written on a connection that is gone: packet ids 1, 2 … for the topics."""
    session = connected(**options)
    for number in deliveries(session.receive(b"".join(publish(n + 1, t) for n, t in enumerate(topics)))):
        session.puback(number)
    assert ids(sent(session)) == [n + 1 for n in range(len(topics))]
    session.closed()
    return session


def test_a_puback_that_was_lost_with_its_connection_is_written_again_in_silence() -> None:
    session = acked_and_cut("a", "b")
    for _ in range(2):  # the second time that one is lost
        opened(session, session_present=True)
        again = publish(1, "a", duplicate=True, message_expiry_interval=7) + publish(2, "b", duplicate=True)
        (new,) = deliveries(session.receive(again + publish(3)))
        assert ids(sent(session)) == [1, 2]
        assert session.receive(publish(4, qos=1)) != []
        session.puback(new)
        assert ids(sent(session)) == [3]


def test_a_written_puback_is_for_its_publication_only() -> None:
    session = acked_and_cut("a", "b", "c")
    opened(session, session_present=True)
    again = publish(1, "other", duplicate=True) + publish(2, "b")
    assert [e.message.topic for e in session.receive(again) if isinstance(e, Received)] == ["other", "b"]
    opened(session)  # not resumed
    assert len(deliveries(session.receive(publish(3, "c", duplicate=True)))) == 1


def test_a_packet_id_in_use_again_means_that_its_puback_arrived() -> None:
    session = connected()
    session.puback(*deliveries(session.receive(publish(1, "a"))))
    session.output(0)
    (other,) = deliveries(session.receive(publish(1, "b")))
    opened(session, session_present=True)
    (again,) = deliveries(session.receive(publish(1, "a", duplicate=True)))
    assert again != other


def test_a_puback_is_forgotten_when_the_broker_answered_what_followed_it() -> None:
    session = connected()
    one, two, three = deliveries(session.receive(publish(1) + publish(2) + publish(3)))
    session.puback(one)
    session.publish(Message("t", qos=1))
    *_, first = sent(session)
    session.puback(two)
    session.publish(Message("t", qos=1))
    session.output(0)
    session.receive(mqtt5.PubAckPacket(first.packet_id).write())  # it has read the first PUBACK
    session.puback(three)
    session.output(0)
    opened(session, session_present=True)
    again = b"".join(publish(n, duplicate=True) for n in (1, 2, 3))
    assert [number & 0xFFFF for number in deliveries(session.receive(again))] == [1]


def test_a_ping_forgets_all_pubacks_before_it() -> None:
    session = acked_and_cut("a", "b")
    opened(session, session_present=True)
    assert session.receive(publish(1, "a", duplicate=True)) == []
    session.output(0)
    session.tick(60)
    session.output(60)
    session.receive(mqtt5.PingRespPacket().write())
    opened(session, session_present=True)
    again = publish(1, "a", duplicate=True) + publish(2, "b", duplicate=True)
    assert len(deliveries(session.receive(again))) == 2


def test_as_many_written_pubacks_are_remembered_as_can_be_lost() -> None:
    session = connected(receive_maximum=2)
    for packet_id in (1, 2, 3):
        session.puback(*deliveries(session.receive(publish(packet_id))))
        session.output(0)
    opened(session, session_present=True)
    assert session.receive(publish(2, duplicate=True) + publish(3, duplicate=True)) == []
    assert ids(sent(session)) == [2, 3]
    assert len(deliveries(session.receive(publish(1, duplicate=True)))) == 1


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
    assert session.receive(answer) == [Published(4, 0x10, 0.0)]
    assert session.receive(answer) == []


def test_the_window_is_the_receive_maximum_of_the_broker() -> None:
    session = MqttSession(Options("d"))
    opened(session, receive_max=2)
    for token in range(5):
        session.publish(Message("t", b"%d" % token, 1), token)
    first = sent(session)
    assert [p.payload for p in first] == [b"0", b"1"]
    assert session.receive(mqtt5.PubAckPacket(first[1].packet_id).write()) == [Published(1, 0, 0.0)]
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


# --- two ends


ROUND = st.tuples(st.integers(0, 5), st.sets(st.integers(0, 4)), st.integers(0, 12), st.integers(0, 5))


@given(st.lists(ROUND, max_size=6))
def test_nothing_is_lost_or_reordered_over_breaking_connections(rounds: list[tuple[int, set[int], int, int]]) -> None:
    """A connection a round: so many messages come, some are acknowledged, so many packets arrive and are answered.

    What was acknowledged in writing never comes again, whether the broker got the PUBACK or not.
    """
    session = MqttSession(Options("d"))
    unacked = {n + 1: b"%d" % n for n in range(5)}  # what the broker has no PUBACK for, in order
    received: list[bytes] = []
    settled: set[int] = set()  # packet ids of written PUBACKs
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
                assert packet_id not in settled
                received.append(payload)
                pending[payload] = event.delivery or 0
        for n in acked & {int(payload) for payload in pending}:
            session.puback(pending[b"%d" % n])
        written = sent(session)
        settled |= {p.packet_id for p in written if isinstance(p, mqtt5.PubAckPacket)}
        for packet in written[:arriving]:
            if isinstance(packet, mqtt5.PubAckPacket):
                assert packet.packet_id == next(iter(unacked))
                del unacked[packet.packet_id]
            elif packet.payload not in arrived:
                arrived.append(packet.payload)
            if isinstance(packet, mqtt5.PublishPacket) and answered:
                answered -= 1
                (done,) = session.receive(mqtt5.PubAckPacket(packet.packet_id or 0).write())
                assert isinstance(done, Published)
                assert done.token is not None
                published.append(done.token)
    assert not unacked
    assert list(dict.fromkeys(received)) == arrived == [b"%d" % n for n in range(5)]
    assert sorted(published) == list(range(5))
