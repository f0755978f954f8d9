"""One connection of a simulated device, without any I/O: what it sends, what it tells, and when it gives up."""

import json
from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.codec import EIO3, EIO4, KINDS, Generation, Packet
from gateway.simulate.wire import Answered, Connected, Fact, Over, Received, Wire

HANDSHAKE = json.dumps({"sid": "abc", "upgrades": ["websocket"], "pingInterval": 25000, "pingTimeout": 20000})

both = pytest.mark.parametrize("generation", [EIO3, EIO4], ids=["EIO3", "EIO4"])


def opened(generation: Generation) -> Wire:
    wire = Wire(generation)
    assert not wire.receive(Packet("0", HANDSHAKE), 0.0)
    wire.take()
    return wire


def text(wire: Wire, data: str, now: float = 1.0) -> Sequence[Fact]:
    return wire.receive(Packet("4", data), now)


def test_engine_io_3_is_in_its_namespace_without_asking() -> None:
    wire = Wire(EIO3)
    wire.receive(Packet("0", HANDSHAKE), 0.0)
    assert wire.take() == []
    assert text(wire, "0") == (Connected(),)


def test_engine_io_4_asks_for_its_namespace() -> None:
    wire = Wire(EIO4)
    wire.receive(Packet("0", HANDSHAKE), 0.0)
    assert wire.take() == [Packet("4", "0")]
    assert text(wire, '0{"sid":"x"}') == (Connected(),)


@both
def test_the_handshake_says_who_it_is_and_whether_it_may_upgrade(generation: Generation) -> None:
    wire = opened(generation)
    assert (wire.sid, wire.may_upgrade) == ("abc", True)


@both
def test_events_acks_and_questions(generation: Generation) -> None:
    wire = opened(generation)
    assert text(wire, '27["device_status"]') == (Received("device_status", (), 7),)
    wire.ack(7, {"ack": True})
    wire.emit("cmd_result", {"result": "ok"})
    assert wire.ask("question", 1) == 1
    assert wire.take() == [
        Packet("4", '37[{"ack":true}]'),
        Packet("4", '2["cmd_result",{"result":"ok"}]'),
        Packet("4", '21["question",1]'),
    ]
    assert wire.take() == []
    assert text(wire, '31[{"ok":true}]') == (Answered(1, ({"ok": True},)),)


@both
def test_a_binary_event_waits_for_its_attachments(generation: Generation) -> None:
    wire = opened(generation)
    placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
    assert not text(wire, f'52-["picture",{placeholders}]')
    assert not wire.receive(Packet("4", b"\x00"), 1.0)
    assert wire.receive(Packet("4", b"\xff"), 1.0) == (Received("picture", (b"\x00", b"\xff"), None),)


def test_engine_io_4_answers_pings_and_notices_silence() -> None:
    wire = opened(EIO4)
    assert wire.deadline == 45.0
    assert not wire.receive(Packet("2"), 25.0)
    assert wire.take() == [Packet("3")]
    assert wire.deadline == 70.0
    assert not wire.tick(69.9)
    assert wire.tick(70.0) == (Over("ping-timeout"),)
    assert (wire.over, wire.deadline) == ("ping-timeout", inf)


def test_engine_io_3_pings_and_notices_that_nobody_answers() -> None:
    wire = opened(EIO3)
    assert wire.deadline == 25.0
    assert not wire.tick(25.0)
    assert wire.take() == [Packet("2")]
    assert not wire.receive(Packet("3"), 26.0)
    assert wire.deadline == 51.0
    assert not wire.tick(51.0)
    assert wire.deadline == 71.0
    assert wire.tick(71.0) == (Over("ping-timeout"),)


@both
@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Packet("1"), "server-close"),
        (Packet("4", "1"), "server-disconnect"),
        (Packet("4", '4{"message":"no"}'), "refused"),
        (Packet("4", "{"), "malformed"),
        (Packet("4", b"nothing announced it"), "malformed"),
    ],
)
def test_the_server_ends_it(generation: Generation, packet: Packet, reason: str) -> None:
    wire = opened(generation)
    assert wire.receive(packet, 1.0) == (Over(reason),)  # type: ignore[arg-type]
    assert not wire.receive(Packet("4", '2["late"]'), 2.0)


@pytest.mark.parametrize("handshake", ["", "{}", "[]", '{"sid":1}', '{"sid":"a","pingInterval":"x"}', "\ud800"])
def test_a_bad_handshake(handshake: str) -> None:
    assert Wire(EIO4).receive(Packet("0", handshake), 0.0) == (Over("malformed"),)


def test_text_where_an_attachment_was_announced() -> None:
    wire = opened(EIO4)
    assert not text(wire, '51-["a",{"_placeholder":true,"num":0}]')
    assert text(wire, '2["b"]') == (Over("malformed"),)


@both
def test_a_goodbye(generation: Generation) -> None:
    wire = opened(generation)
    wire.leave()
    assert wire.take() == [Packet("4", "1"), Packet("1")]


packets = st.builds(Packet, st.sampled_from(KINDS), st.text() | st.sampled_from([HANDSHAKE, '2["a"]', '51-["a"]']))
binary = st.builds(Packet, st.just("4"), st.binary())


@given(st.sampled_from([EIO3, EIO4]), st.lists(packets | binary))
def test_whatever_comes_it_ends_at_most_once(generation: Generation, received: list[Packet]) -> None:
    wire = Wire(generation)
    facts: list[Fact] = []
    for now, packet in enumerate(received):
        facts += [*wire.receive(packet, now), *wire.tick(now)]
    assert sum(isinstance(fact, Over) for fact in facts) == (wire.over is not None)
