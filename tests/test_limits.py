"""What all devices of a node share."""

import pytest

from gateway import facts as f
from gateway.bodies import Life
from gateway.catalog import Catalog
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.mqtt.session import MqttSession
from gateway.mqtt.values import Message, Options
from gateway.session import DeviceSession
from gateway.topics import Topics

CATALOG = Catalog()


def session(serial: str, shared: Shared) -> DeviceSession:
    it = DeviceSession(serial, Life("gw-1", ""), Topics("gw/v1"), CATALOG, Limits(), shared, "n")
    it.handle(f.LinkOpened(resumed=False), 0.0)
    return it


def command(id: str, size_bytes: int = 10, delivery: int = 1) -> f.Command:
    answer = f.Answer("gw/v1/devices/AC1/acks/x")
    return f.Command(id, CATALOG["bind_class"], (), answer, 1, 60.0, 10.0, delivery, size_bytes=size_bytes)


def outcomes(effects: list[f.Effect]) -> list[tuple[str, str | None]]:
    return [(e.outcome.status, e.outcome.error) for e in effects if isinstance(e, f.Publish) and e.outcome]


def test_a_node_holds_so_many_commands() -> None:
    """One device with a long queue takes the place of another: the limit is there for the node to survive."""
    shared = Shared(2, 1000)
    one, two = session("AC1", shared), session("AC2", shared)
    assert outcomes(one.handle(command("a"), 0.0)) == [("queued", None)]
    assert outcomes(two.handle(command("b"), 0.0)) == [("queued", None)]
    assert outcomes(one.handle(command("c", delivery=2), 0.0)) == [
        ("rejected", "node full: 2 commands of all devices are open")
    ]
    two.handle(f.Moved(), 0.0)
    assert outcomes(one.handle(command("d", delivery=3), 0.0)) == [("queued", None)]


def test_a_node_holds_so_many_bytes() -> None:
    shared = Shared(10, 1000)
    one, two = session("AC1", shared), session("AC2", shared)
    one.handle(command("a", 600), 0.0)
    (refused,) = outcomes(two.handle(command("b", 600), 0.0))
    assert refused == ("rejected", "node full: open commands of all devices hold over 1000 bytes")
    assert shared.bytes.used == 600


@pytest.mark.parametrize("serial", ["AC1", "AC2"])
def test_events_that_wait_for_the_broker_are_bounded_for_all_devices_together(serial: str) -> None:
    """Whoever emits over the limit loses its own oldest event."""
    waiting = Budget(100)
    sessions = {name: MqttSession(Options(name), waiting) for name in ("AC1", "AC2")}
    for name, it in sessions.items():
        it.publish(Message("t", b"x" * 49, qos=1), token=ord(name[-1]), droppable=True)
    assert waiting.used == 100
    sessions[serial].publish(Message("t", b"y", qos=1), droppable=True)
    assert [len(it.take_events()) for it in sessions.values()] == [name == serial for name in sessions]
    assert waiting.used == 52


def test_what_is_given_up_is_given_back_and_goes_another_way() -> None:
    waiting = Budget(1000)
    it = MqttSession(Options("AC1"), waiting)
    event, presence = Message("event", b"1", qos=1), Message("presence", b"2", qos=1)
    it.publish(event, droppable=True)
    it.publish(presence)
    assert it.leftover() == [event]
    assert waiting.used == 0
    assert it.leftover() == []


def test_turns_come_at_their_pace_and_at_once_where_nobody_waits() -> None:
    pace = Pace(per_s=10)
    assert [pace.turn(5.0) for _ in range(3)] == pytest.approx([5.0, 5.1, 5.2])
    assert pace.turn(7.0) == 7.0
