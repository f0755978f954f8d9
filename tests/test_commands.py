"""What services publish becomes commands and replies, or a refusal that reaches the one who sent it."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.catalog import EVENTS, Catalog, Event
from gateway.commands import MAX_ACK_TIMEOUT_MS, CommandReader, Policy, RoomEvent, read_args, read_room_event
from gateway.facts import Answer, Command, Replied
from gateway.mqtt.values import Message
from gateway.schemas import Schema
from gateway.session import encode_args
from gateway.topics import BINARY_TYPE, JSON_TYPE, Topics, is_id

NOW = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
POLICY = Policy(ack_timeout_s=10.0, lifetime_s=3600.0, max_payload_bytes=1000)
TOPICS = Topics("gw/v1")
COMMANDS = "gw/v1/devices/s1/commands/"
ACKS = "gw/v1/devices/s1/acks/"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def reader() -> CommandReader:
    return CommandReader(Topics("gw/v1"), Catalog(), POLICY, "new")


def read(topic: str, payload: bytes = b"", qos: int = 1, **properties: Any) -> Command:
    """Read what is published below the commands of the device s1."""
    command = reader().read("s1", Message(COMMANDS + topic, payload, qos, **properties), 7, False, lambda: NOW)
    assert isinstance(command, Command)
    return command


def with_user(*properties: tuple[str, str]) -> Command:
    return read("device_status", user_properties=properties)


def json_of(command: Command) -> list[object]:
    return [bytes(arg) if isinstance(arg, msgspec.Raw) else arg for arg in command.args]


def test_a_command() -> None:
    message = Message(COMMANDS + "media_stop", b'{ "stop": true }', qos=1)
    command = reader().read("s1", message, 7, True, lambda: NOW)
    assert isinstance(command, Command)
    assert command.event is EVENTS["media_stop"]
    assert json_of(command) == [b'{ "stop": true }']  # as it came, white space and all
    assert command.id == "new-1"
    assert command.answer == Answer(ACKS + "media_stop")
    assert (command.qos, command.delivery, command.duplicate, command.refusal) == (1, 7, True, None)
    assert (command.lifetime_s, command.ack_timeout_s) == (3600.0, 10.0)


LAMP = Event("blink", "", "", Schema({"required": ["n"]}), ack=None, lifetime_s=60.0, ack_timeout_s=2.0)


def of_own(event: str, payload: bytes, qos: int = 1, **properties: Any) -> Command:
    """Read a command of a deployment that has one event of its own, and takes no others."""
    reading = CommandReader(Topics("gw/v1"), Catalog([LAMP], rejects_unknown=True), POLICY, "new")
    command = reading.read("s1", Message(COMMANDS + event, payload, qos, **properties), 7, False, lambda: NOW)
    assert isinstance(command, Command)
    return command


def test_an_event_has_a_policy_of_its_own() -> None:
    command = of_own("blink", b'{"n": 1}')
    assert (command.refusal, command.lifetime_s, command.ack_timeout_s) == (None, 60.0, 2.0)
    assert of_own("blink", b'{"n": 1}', qos=0).lifetime_s == 2.0
    said = of_own("blink", b'{"n": 1}', expiry_s=5, user_properties=(("ack-timeout-ms", "9000"),))
    assert (said.lifetime_s, said.ack_timeout_s) == (5.0, 9.0)
    assert of_own("blink", b'{"n": 1, "ended_at": "2026-01-01T00:00:30Z"}').lifetime_s == 30.0


def test_refuses_what_the_schema_of_an_own_event_does_not_allow() -> None:
    assert of_own("blink", b"{}").refusal == 'payload: "n" is a required property'
    assert of_own("blink", b"").refusal == "payload: blink needs an argument"


def test_refuses_events_that_the_catalogue_does_not_list_where_it_is_told_to() -> None:
    refusal = "event: not in the catalogue, and catalog.unknown is reject"
    assert of_own("explode", b"").refusal == refusal
    assert of_own("media_stop", b'{"stop": true}').refusal is None


def test_an_empty_payload_is_no_argument() -> None:
    assert read("device_status").args == ()
    assert read("never_heard_of").args == ()


@pytest.mark.parametrize(
    ("topic", "refusal"),
    [
        ("a/b/c", "topic: expected devices/{serial}/commands/{event}[/{id}] or …/replies/{event}/{id}"),
        ("", "topic: must be 1 to 128 bytes, is 0"),
        ("a/", "topic: must be 1 to 128 bytes, is 0"),
        ("x" * 129, "topic: must be 1 to 128 bytes, is 129"),
        ("%FF", "topic: percent-encoding is not UTF-8"),
        ("a/%FF", "topic: percent-encoding is not UTF-8"),
    ],
)
def test_refuses_a_malformed_topic_and_says_so_where_the_device_answers(topic: str, refusal: str) -> None:
    command = read(topic, b"{")
    assert command.refusal == refusal
    assert command.answer.topic == ACKS + "-"
    assert read(topic, response_topic="gw/v1/inbox/a").answer.topic == "gw/v1/inbox/a"


@pytest.mark.parametrize(
    ("event", "payload", "properties", "refusal"),
    [
        ("media_stop", b"", {}, "payload: media_stop needs an argument"),
        ("media_stop", b'{"stop": 1}', {}, "payload: Expected `bool`, got `int` - at `$.stop`"),
        ("device_status", b"{}", {}, "payload: device_status takes no argument"),
        ("x", b"1 2", {}, "payload: JSON is malformed: trailing characters (byte 3)"),
        (
            "x",
            b'"\xff"',
            {},
            "payload: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte",
        ),
        ("x", b"[" * 500 + b"]" * 500, {}, None),
        ("x", b"1" * 1000, {}, None),
        ("x", b"1" * 1001, {}, "payload: larger than 1000 bytes"),
        ("x", b"1" * 1001, {"content_type": BINARY_TYPE}, "payload: larger than 1000 bytes"),
        ("media_stop", b"\x00", {"content_type": BINARY_TYPE}, f"payload: media_stop takes JSON, not {BINARY_TYPE}"),
        ("x", b"", {"response_topic": "gw/v1/devices/s2/commands/x"}, "Response Topic is not allowed"),
        ("x", b"", {"response_topic": "gw/v1/inbox/#"}, "Response Topic is not allowed"),
        ("x", b"", {"response_topic": ""}, "Response Topic is not allowed"),
        (
            "x",
            b"",
            {"user_properties": (("ack-timeout-ms", "0"),)},
            "user property ack-timeout-ms: expected 1 to 3600000",
        ),
        ("x/a%0Ab", b"", {}, "id: expected 1 to 128 bytes without control characters"),
        ("x", b"", {"user_properties": (("id", ""),)}, "id: expected 1 to 128 bytes without control characters"),
    ],
)
def test_refusals(event: str, payload: bytes, properties: dict[str, Any], refusal: str | None) -> None:
    command = read(event, payload, **properties)
    assert command.refusal == refusal
    assert command.delivery == 7
    assert is_id(command.id)


def test_json_that_is_too_deep_is_refused() -> None:
    deep = CommandReader(Topics("gw/v1"), Catalog(), Policy(), "new")
    for event, payload in (("x", b"[" * 100_000), ("media_stop", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")):
        command = deep.read("s1", Message(COMMANDS + event, payload), None, False, lambda: NOW)
        assert isinstance(command, Command)
        assert command.refusal is not None
        assert command.refusal.startswith("payload: ")


def test_a_refusal_goes_to_the_response_topic_with_the_correlation() -> None:
    """Whatever is wrong, a sender that waits on its inbox is told there."""
    answer = Answer(ACKS + "media_stop", "gw/v1/inbox/a", b"\x00\xff", TRACEPARENT)
    asked: dict[str, Any] = {"response_topic": answer.topic, "correlation": answer.correlation}
    for topic, payload, bad in (
        ("a/b/c", b"", ()),
        ("x", b"{", ()),
        ("x", b"", (("id", "\x00"),)),
        ("x", b"", (("ack-timeout-ms", "soon"),)),
    ):
        command = read(topic, payload, user_properties=(("traceparent", TRACEPARENT), *bad), **asked)
        assert command.refusal
        got = command.answer
        assert Answer(answer.acks, got.response_topic, got.correlation, got.traceparent) == answer


def test_a_response_topic_that_is_not_allowed_is_not_used() -> None:
    command = read("x", response_topic="gw/v1/devices/s2/commands/restart_device", correlation=b"c")
    assert command.answer == Answer(ACKS + "x", None, b"c")


def test_an_id_comes_from_the_topic_else_from_the_property_else_is_made() -> None:
    assert read("x/a%2Fb", user_properties=(("id", "no"),)).id == "a/b"
    assert read("x/a%2Fb").answer.topic == ACKS + "x/a%2Fb"
    assert with_user(("id", "mine"), ("id", "second")).id == "mine"
    assert with_user(("id", "mine")).answer.topic == ACKS + "device_status"
    assert with_user(("Id", "mine")).id == "new-1"
    assert with_user(("id", "mine")).is_named
    assert not with_user(("Id", "mine")).is_named


@pytest.mark.parametrize("id", ["", "x" * 129, "é" * 65, "a\nb", "\x00", "\x85", "\ufffe", "\ud800"])
def test_an_id_that_an_outcome_cannot_carry_is_replaced(id: str) -> None:
    """As a user property of a QoS 1 publish it would make brokers close the device's link, again and again."""
    command = with_user(("id", id))
    assert (command.id, command.is_named) == ("new-1", False)
    assert command.refusal is not None
    assert command.refusal.startswith("id: ")


@pytest.mark.parametrize(("text", "seconds"), [("1", 0.001), ("0500", 0.5), ("3600000", 3600.0)])
def test_ack_timeout(text: str, seconds: float) -> None:
    command = with_user(("ack-timeout-ms", text))
    assert (command.ack_timeout_s, command.refusal) == (seconds, None)


@pytest.mark.parametrize("text", ["", "0", "-1", "+1", "1.5", "1e3", " 1", "1_000", "3600001", "9" * 5000, "١", "²"])
def test_no_ack_timeout(text: str) -> None:
    assert with_user(("ack-timeout-ms", text)).refusal == (
        f"user property ack-timeout-ms: expected 1 to {MAX_ACK_TIMEOUT_MS}"
    )


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        (TRACEPARENT, TRACEPARENT),
        (TRACEPARENT.upper(), None),
        (TRACEPARENT + "\n", None),
        (TRACEPARENT + "-more", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_traceparent_is_passed_on_or_dropped(text: str, passed_on: str | None) -> None:
    command = with_user(("traceparent", text))
    assert (command.answer.traceparent, command.refusal) == (passed_on, None)


def test_a_binary_argument() -> None:
    command = read("x", b"\x00\xff", content_type=BINARY_TYPE)
    assert (command.args, command.refusal) == ((b"\x00\xff",), None)
    assert json_of(read("x", b"1", content_type=JSON_TYPE)) == [b"1"]
    assert json_of(read("x", b"1", content_type="text/plain")) == [b"1"]


ENDS = b'{"notifications": [], "ended_at": "2026-01-01T08:01:00+08:00"}'  # a minute from now
ENDED = b'{"notifications": [], "ended_at": "2016-10-25T18:15:17+08:00"}'
ENDS_SOMEWHERE = b'{"notifications": [], "ended_at": "2026-01-01T00:01:00"}'


@pytest.mark.parametrize(
    ("qos", "expiry_s", "payload", "lifetime_s"),
    [
        (1, 5, ENDS, 5.0),
        (1, 0, ENDS, 0.0),
        (1, None, ENDS, 60.0),
        (1, None, ENDS_SOMEWHERE, 3600.0),
        (0, None, ENDS, 0.5),
        (0, 5, ENDS, 0.5),
    ],
)
def test_lifetime(qos: int, expiry_s: int | None, payload: bytes, lifetime_s: float) -> None:
    timeout = (("ack-timeout-ms", "500"),)
    command = read("text_notifications", payload, qos, expiry_s=expiry_s, user_properties=timeout)
    assert (command.lifetime_s, command.refusal) == (lifetime_s, None)


def test_what_has_ended_has_no_lifetime_left() -> None:
    assert read("text_notifications", ENDED).lifetime_s < 0
    later = reader().read("s1", Message(COMMANDS + "text_notifications", ENDS, 1), 7, False, lambda: NOW + 120)
    assert isinstance(later, Command)
    assert later.lifetime_s == -60.0


def test_ended_at_of_an_unlisted_event_means_nothing() -> None:
    assert read("x", ENDED).lifetime_s == 3600.0


def test_replies() -> None:
    replies = "gw/v1/devices/s1/replies/ask/q%2F1"
    assert reader().read("s1", Message(replies), 7, False, lambda: NOW) == Replied("q/1", (), 7)
    binary = Message(replies, b"\xff", content_type=BINARY_TYPE)
    assert reader().read("s1", binary, None, False, lambda: NOW) == Replied("q/1", (b"\xff",))
    reply = reader().read("s1", Message(replies, b'{"a": 1}'), 7, False, lambda: NOW)
    assert isinstance(reply, Replied)
    assert [bytes(arg) for arg in reply.args if isinstance(arg, msgspec.Raw)] == [b'{"a": 1}']
    for payload in (b"{", b'"\xff"', b"[" * 100_000):
        problem = reader().read("s1", Message(replies, payload), 7, False, lambda: NOW)
        assert isinstance(problem, str)
        assert problem.startswith("reply: ")


LEVELS = st.sampled_from(
    ["", "gw/v1/devices/s1/", "commands", "replies", "media_stop", "x", "/", "%", "%00", "%FF", "+", "-"]
)
PROPERTIES = st.tuples(
    st.sampled_from(["id", "ack-timeout-ms", "traceparent", "x"]),
    st.text(st.characters()) | st.integers().map(str),
)
PAYLOADS = st.sampled_from([ENDS, ENDED, ENDS_SOMEWHERE, b"", b"{", b"[" * 900]) | st.binary()
TEXTS = st.text(st.characters())
MESSAGES = st.builds(
    Message,
    topic=st.lists(LEVELS).map("".join) | TEXTS.map(lambda text: COMMANDS + text),
    payload=PAYLOADS,
    qos=st.sampled_from([0, 1]),
    expiry_s=st.none() | st.integers(0, 0xFFFFFFFF),
    content_type=st.none() | st.just(BINARY_TYPE) | TEXTS,
    response_topic=st.none() | TEXTS | TEXTS.map(lambda text: f"gw/v1/inbox/{text}"),
    correlation=st.none() | st.binary(),
    user_properties=st.lists(PROPERTIES, max_size=3).map(tuple),
)


@given(MESSAGES)
@example(Message(COMMANDS + "\ud800", b"\xff", 1))
@example(Message(COMMANDS + "text_notifications", b'{"notifications":[],"ended_at":"0001-01-01T00:00+23:59"}', 1))
@example(Message(COMMANDS + "text_notifications", b'{"notifications":[],"ended_at":"9999-12-31T23:59-23:59"}', 1))
def test_no_message_makes_it_raise(message: Message) -> None:
    result = reader().read("s1", message, 7, False, lambda: NOW)
    if not isinstance(result, Command):
        return
    assert is_id(result.id)
    assert 0 < result.ack_timeout_s <= MAX_ACK_TIMEOUT_MS / 1000
    assert result.answer.topic.startswith((ACKS, "gw/v1/inbox/"))
    assert result.delivery == 7


@given(MESSAGES)
def test_reading_arguments_never_raises(message: Message) -> None:
    args, problem = read_args(message)
    assert not (args and problem)


@given(st.lists(st.none() | st.integers(-9, 9) | st.text("ab二", max_size=3) | st.binary(max_size=3), max_size=4))
def test_arguments_survive_the_way_through_a_room(args: list[Any]) -> None:
    """What a device emits with several arguments reaches the sockets of a room as several."""
    if len(args) != 1:
        args = [argument for argument in args if not isinstance(argument, bytes)]
    payload, content_type, properties = encode_args(tuple(args))
    read, problem = read_args(Message("x", payload, content_type=content_type, user_properties=properties))
    assert problem is None
    assert [one if isinstance(one, bytes) else msgspec.json.decode(one) for one in read] == args


STRICT = Catalog(
    [
        Event("blink", "", "", Schema({"required": ["n"]}), room=True),
        Event("blinked", "", "", Schema({"required": ["n"]}), room=True, from_device=True),
    ],
    rejects_unknown=True,
)


def room_event(event: str, payload: bytes = b"", catalog: Catalog = STRICT, **properties: Any) -> RoomEvent | str:
    return read_room_event(Message(f"gw/v1/rooms/r/events/{event}", payload, 0, **properties), TOPICS, catalog)


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: event.name)
def test_each_event_may_go_to_a_room(event: Event) -> None:
    """With the document's example, also where the document sends it to devices only."""
    payload = b"" if event.payload is None else msgspec.json.encode(dict(event.example))
    read = room_event(event.name, payload)
    assert isinstance(read, RoomEvent)
    assert (read.room, read.event, len(read.args)) == ("r", event.name, event.payload is not None)
    assert bytes(read.args[0] if read.args else b"") == payload


@pytest.mark.parametrize(
    ("event", "payload", "properties", "problem"),
    [
        ("memos_update", b'{"memo_id":"x"}', {}, "payload: Expected `int`, got `str` - at `$.memo_id`"),
        ("memos_update", b"", {}, "payload: memos_update needs an argument"),
        ("memos_update", b"{bad", {}, "payload: JSON is malformed"),
        ("memos_update", b"\x00", {"content_type": BINARY_TYPE}, "payload: memos_update takes one argument"),
        ("memos_update", b'[{"memo_id":1}]', {"user_properties": (("args", "1"),)}, "payload: memos_update takes one"),
        ("purge_face_data", b"{}", {}, "payload: purge_face_data takes no argument"),
        ("blink", b"{}", {}, "payload: "),
        ("wink", b"{}", {}, "event: not in the catalogue"),
        ("%", b"{}", {}, "topic: "),
    ],
)
def test_a_room_event_that_is_not_emitted(event: str, payload: bytes, properties: dict[str, Any], problem: str) -> None:
    read = room_event(event, payload, **properties)
    assert isinstance(read, str)
    assert read.startswith(problem)


def test_what_a_device_said_is_relayed_as_it_is() -> None:
    """Its payload is only described: the pages that watch it shall see it, whatever it is."""
    read = room_event("blinked", b"[1,2]", user_properties=(("args", "2"),))
    assert isinstance(read, RoomEvent)
    assert len(read.args) == 2
    assert isinstance(room_event("blinked", b"\x00", content_type=BINARY_TYPE), RoomEvent)


def test_an_unlisted_event_passes_unless_that_is_refused() -> None:
    assert room_event("wink", b"1", Catalog()) == RoomEvent("r", "wink", (msgspec.Raw(b"1"),))
    assert room_event("wink", b"\x00", Catalog(), content_type=BINARY_TYPE) == RoomEvent("r", "wink", (b"\x00",))


@given(MESSAGES)
def test_no_room_event_makes_it_raise(message: Message) -> None:
    read_room_event(message, TOPICS, STRICT)
    topic = message.topic.replace(COMMANDS, "gw/v1/rooms/r/events/")
    content_type, properties = message.content_type, message.user_properties
    moved = Message(topic, message.payload, content_type=content_type, user_properties=properties)
    read_room_event(moved, TOPICS, Catalog())
