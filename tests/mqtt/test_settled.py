"""A PUBACK whose reading by the broker somebody waits for: told once it is sure, over any breaking of connections."""

import mqtt5
import pytest

from gateway.mqtt.session import MqttSession
from gateway.mqtt.values import Event, Message, Opened, Settled

from .packets import connected, deliveries, opened, publish, sent

PINGRESP = mqtt5.PingRespPacket().write()


def confirming(*packet_ids: int) -> tuple[MqttSession, list[int]]:
    """A session that has PUBACKed these, to be confirmed; nothing is written yet."""
    session = connected()
    numbers = deliveries(session.receive(b"".join(publish(packet_id, str(packet_id)) for packet_id in packet_ids)))
    for number in numbers:
        session.puback(number, confirm=True)
    return session, numbers


def kinds(session: MqttSession, now: float = 0.0) -> list[str]:
    return [type(packet).__name__ for packet in sent(session, now)]


def again(packet_id: int) -> bytes:
    return publish(packet_id, str(packet_id), duplicate=True)


def test_a_ping_follows_the_puback_in_one_write_and_its_answer_settles() -> None:
    session, (one,) = confirming(1)
    assert kinds(session) == ["PubAckPacket", "PingReqPacket"]
    assert kinds(session) == []
    assert session.receive(PINGRESP) == [Settled(one)]
    assert kinds(session) == []
    assert session.receive(PINGRESP) == []


def test_nothing_is_asked_where_nobody_waits() -> None:
    session = connected()
    (one,) = deliveries(session.receive(publish(1)))
    session.puback(one)
    assert kinds(session) == ["PubAckPacket"]
    assert session.receive(PINGRESP) == []


def test_a_publish_that_follows_needs_no_ping() -> None:
    session, (one,) = confirming(1)
    session.publish(Message("t", qos=1))
    first, second = sent(session)
    assert (type(first), type(second)) == (mqtt5.PubAckPacket, mqtt5.PublishPacket)
    assert Settled(one) in session.receive(mqtt5.PubAckPacket(second.packet_id).write())


def test_the_answer_to_an_earlier_ping_settles_nothing() -> None:
    session = connected()
    session.tick(60.0)
    assert kinds(session, 60.0) == ["PingReqPacket"]
    (one,) = deliveries(session.receive(publish(1)))
    session.puback(one, confirm=True)
    assert kinds(session, 60.0) == ["PubAckPacket"]
    assert session.receive(PINGRESP) == []
    assert kinds(session, 60.0) == ["PingReqPacket"]
    assert session.receive(PINGRESP) == [Settled(one)]


def test_what_comes_while_a_ping_is_under_way_is_asked_for_after_it() -> None:
    session, (one,) = confirming(1)
    session.output(0)
    (two,) = deliveries(session.receive(publish(2)))
    session.puback(two, confirm=True)
    assert kinds(session) == ["PubAckPacket"]
    assert session.receive(PINGRESP) == [Settled(one)]
    assert kinds(session) == ["PingReqPacket"]
    assert session.receive(PINGRESP) == [Settled(two)]


@pytest.mark.parametrize("written", [True, False])
def test_a_puback_that_was_lost_settles_after_the_redelivery(written: bool) -> None:
    session, (one,) = confirming(1)
    if written:
        session.output(0)
    session.closed()
    assert opened(session, session_present=True) == [Opened(True)]
    assert session.receive(again(1)) == []
    assert kinds(session) == ["PubAckPacket", "PingReqPacket"]
    assert session.receive(PINGRESP) == [Settled(one)]


def test_a_puback_that_was_read_before_the_cut_settles_when_nothing_is_redelivered() -> None:
    session, (one,) = confirming(1)
    session.output(0)
    session.closed()
    opened(session, session_present=True)
    assert kinds(session) == ["PingReqPacket"]
    assert session.receive(PINGRESP) == [Settled(one)]
    assert kinds(session) == []


def test_a_packet_id_in_use_again_settles() -> None:
    session, (one,) = confirming(1)
    session.output(0)
    assert Settled(one) in session.receive(publish(1, "other"))


def test_a_packet_id_in_use_again_after_a_cut_settles() -> None:
    session, (one,) = confirming(1)
    session.closed()
    opened(session, session_present=True)
    events: list[Event] = session.receive(publish(1, "other"))
    assert Settled(one) in events


def test_a_session_that_is_gone_settles_nothing_and_asks_for_nothing() -> None:
    """Opened says so to whoever waits."""
    session, _ = confirming(1, 2)
    session.output(0)
    session.closed()
    assert opened(session, session_present=False) == [Opened(False)]
    assert kinds(session) == []
    assert session.receive(PINGRESP) == []


def test_a_void_delivery_is_settled_at_once() -> None:
    session = connected()
    session.puback(4711, confirm=True)
    assert session.take_events() == [Settled(4711)]


def test_a_silent_broker_is_noticed_by_such_a_ping_too() -> None:
    session, _ = confirming(1)
    session.output(100.0)
    assert session.deadline == 130.0


def test_a_broker_that_sends_more_than_the_maximum_proves_nothing_by_it() -> None:
    session = connected(receive_maximum=2)
    one, two, three = deliveries(session.receive(publish(1) + publish(2) + publish(3)))
    session.puback(one, confirm=True)
    assert kinds(session) == ["PubAckPacket", "PingReqPacket"]
    session.puback(two)
    session.puback(three)
    assert kinds(session) == ["PubAckPacket", "PubAckPacket"]
    assert session.take_events() == []
    assert session.receive(PINGRESP) == [Settled(one)]
