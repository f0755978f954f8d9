"""The topic grammar: no stranger's name ever reaches a topic that is not its own."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from gateway.bodies import Life, Presence
from gateway.topics import (
    MAX_NAME_BYTES,
    RESERVED,
    BadName,
    CommandTopic,
    ReplyTopic,
    RoomTopic,
    Topics,
    decode_level,
    encode_level,
    is_id,
    is_serial,
)

TOPICS = Topics("gw/v1")
ANY_TEXT = st.text(st.characters())  # surrogates too
HOSTILE = ["a/../b", "..", "+", "#", "$SYS", "$share/x/#", "\x00", "a\nb", "\x7f", "\x9f", "%", "%2F", "%zz", "/"]
HOSTILE += ["\ufdd0", "\ufffe", "\U0010ffff", "\ufeff", "\u2028", " ", "班牌", "é" * 64]


def is_text(text: str) -> bool:
    """What mosquitto 2.0 takes as a UTF-8 string (lib/utf8_mosq.c)."""
    for code in map(ord, text):
        if code <= 0x1F or 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF:
            return False
        if code & 0xFFFF in (0xFFFE, 0xFFFF):
            return False
    return True


def is_topic(text: str) -> bool:
    """What mosquitto 2.0 takes as a topic to publish to (lib/util_topic.c); for the rest it closes the connection."""
    return is_text(text) and 0 < len(text.encode()) <= 65_535 and text.count("/") <= 200 and not {"+", "#"} & set(text)


def encoded(name: str) -> str | None:
    try:
        return encode_level(name)
    except BadName:
        return None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("device_status", "device_status"),
        ("class:update", "class:update"),
        ("班牌", "班牌"),
        ("a b", "a b"),
        ("a/../b", "a%2F..%2Fb"),
        ("+", "%2B"),
        ("#", "%23"),
        ("100%", "100%25"),
        ("$SYS", "%24SYS"),
        ("a$b", "a$b"),
        ("a\n", "a%0A"),
        ("\x00", "%00"),
        ("\x85", "%C2%85"),
        ("\ufdd0", "%EF%B7%90"),
        ("\U0010ffff", "%F4%8F%BF%BF"),
    ],
)
def test_encodes_a_name_as_one_level(name: str, level: str) -> None:
    assert encode_level(name) == level
    assert decode_level(level) == name


@pytest.mark.parametrize("name", ["", "x" * 129, "é" * 65, "x" * 10_000, "\x00" * 10_000, "\ud800", "a\udfffb"])
def test_refuses_a_name_that_is_no_level(name: str) -> None:
    with pytest.raises(BadName):
        encode_level(name)


@pytest.mark.parametrize("level", ["", "x" * 129, "%00" * 129, "%FF", "%ED%A0%80", "\ud800", "\ud800%41"])
def test_refuses_a_level_that_is_no_name(level: str) -> None:
    with pytest.raises(BadName):
        decode_level(level)


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("remote%5Fcmd", "remote_cmd"),
        ("%72emote_cmd", "remote_cmd"),
        ("class%3Aupdate", "class:update"),
        ("a%2fb", "a%2Fb"),
        ("100%", "100%25"),
        ("$SYS", "%24SYS"),
        ("%E7%8F%AD", "班"),
    ],
)
def test_a_name_is_written_in_one_way(level: str, written: str) -> None:
    """`commands/remote%5Fcmd` passed brokers that refuse `commands/remote_cmd`, and was taken for it."""
    with pytest.raises(BadName, match=f"^must be written {re.escape(written)}$"):
        decode_level(level)


@given(ANY_TEXT)
@example("$")
@example("%41")
@example("x" * MAX_NAME_BYTES)
def test_decoding_undoes_encoding(name: str) -> None:
    level = encoded(name)
    if level is not None:
        assert decode_level(level) == name


@given(ANY_TEXT)
def test_every_short_text_without_surrogates_has_a_level(name: str) -> None:
    fits = 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES
    is_unicode = not any(0xD800 <= ord(c) <= 0xDFFF for c in name)
    assert (encoded(name) is not None) == (fits and is_unicode)


@given(st.one_of(st.sampled_from(HOSTILE), ANY_TEXT), st.one_of(st.sampled_from(HOSTILE), ANY_TEXT))
@example("$SYS", "x" * MAX_NAME_BYTES)
def test_a_level_is_exactly_one_level_that_brokers_take(room: str, event: str) -> None:
    if encoded(room) is None or encoded(event) is None:
        return
    topic = TOPICS.room(room, event)
    assert is_topic(topic)
    assert is_topic(encode_level(room))
    assert not encode_level(room).startswith("$")
    assert topic_matches_sub(TOPICS.rooms_filter(), topic)
    assert TOPICS.parse(topic) == RoomTopic(room, event)


@given(
    st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    st.sampled_from(HOSTILE),
    st.none() | st.sampled_from(HOSTILE),
)
def test_commands_and_replies_survive_the_round_trip(serial: str, event: str, id: str | None) -> None:
    command = TOPICS.command(serial, event, id)
    assert topic_matches_sub(TOPICS.commands_filter(serial), command)
    assert TOPICS.parse(command) == CommandTopic(serial, event, id)
    reply = TOPICS.reply(serial, event, id or "-")
    assert topic_matches_sub(TOPICS.replies_filter(serial), reply)
    assert TOPICS.parse(reply) == ReplyTopic(serial, event, id or "-")


@pytest.mark.parametrize("event", HOSTILE)
def test_what_a_device_emits_stays_below_its_own_events(event: str) -> None:
    topic = TOPICS.event("s1", event, "a/b")
    assert topic_matches_sub("gw/v1/devices/s1/events/+/+", topic)
    assert is_topic(topic)


def test_builds_the_topics_of_the_contract() -> None:
    assert TOPICS.command("s1", "device_status") == "gw/v1/devices/s1/commands/device_status"
    assert TOPICS.command("s1", "device_status", "7") == "gw/v1/devices/s1/commands/device_status/7"
    assert TOPICS.acks("s1", "device_status") == "gw/v1/devices/s1/acks/device_status"
    assert TOPICS.acks("s1", "device_status", "7") == "gw/v1/devices/s1/acks/device_status/7"
    assert TOPICS.event("s1", "cmd_result") == "gw/v1/devices/s1/events/cmd_result"
    assert TOPICS.reply("s1", "ask", "7") == "gw/v1/devices/s1/replies/ask/7"
    assert TOPICS.presence("s1") == "gw/v1/devices/s1/presence"
    assert TOPICS.room("bp_student_11", "memos_read") == "gw/v1/rooms/bp_student_11/events/memos_read"
    assert TOPICS.node_status("gw-1") == "gw/v1/nodes/gw-1/status"


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "devices/s1/commands",
        "devices/s1/commands/",
        "devices/s1/commands/a/b/c",
        "devices/s1/commands/a/",
        "devices/s1/commands/%FF",
        "devices/s1/acks/a",
        "devices/s1/replies/a",
        "devices/s1/presence",
        "devicesx/s1/commands/a",
        "rooms/r/events",
        "rooms//events/a",
        "rooms/r/events/a/b",
        "nodes/n/status",
        "inbox/x",
    ],
)
def test_says_why_a_topic_cannot_be_read(rest: str) -> None:
    problem = TOPICS.parse(f"gw/v1/{rest}")
    assert isinstance(problem, BadName)
    assert str(problem)


@pytest.mark.parametrize("event", sorted(RESERVED))
def test_nobody_says_to_a_room_what_only_the_gateway_says(event: str) -> None:
    """A service that may tell a room something could disconnect every device in it, or so they believed."""
    assert str(TOPICS.parse(f"gw/v1/rooms/r/events/{event}")) == f"{event} is a reserved name"


@given(ANY_TEXT, st.sampled_from(["", "gw/v1/", "gw/v1/devices/", "gw/v1/devices/s/commands/", "gw/v1/rooms/"]))
@example("\ud800", "gw/v1/devices/s/commands/")
@example("%ud800/events/\ud800", "gw/v1/rooms/")
@example("/" * 10_000, "gw/v1/devices/s/commands/")
@example("%" * 10_000, "gw/v1/devices/s/commands/")
def test_parse_never_raises(rest: str, start: str) -> None:
    assert isinstance(TOPICS.parse(start + rest), CommandTopic | ReplyTopic | RoomTopic | BadName)


@pytest.mark.parametrize("topic", ["gw/v1/inbox", "gw/v1/inbox/", "gw/v1/inbox/x", "gw/v1/inbox/../x", "gw/v1/inbox/$"])
def test_answers_to_response_topics_below_the_inbox(topic: str) -> None:
    """`..` is a level like any other: MQTT has no paths."""
    assert TOPICS.response_allowed(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "gw/v1",
        "gw/v1/inboxx/..",
        "gw/v1/inbox2",
        "gw/v1/Inbox/x",
        "gw/v2/inbox/x",
        "xgw/v1/inbox/x",
        "/gw/v1/inbox/x",
        "gwxv1/inbox/x",
        "gw/v1/devices/s1/commands/restart_device",
        "gw/v1/devices/s1/presence\ngw/v1/inbox/x",
        "gw/v1/inbox\n",
        "\ngw/v1/inbox/x",
        "$SYS/x",
    ],
)
def test_answers_nowhere_else(topic: str) -> None:
    assert not TOPICS.response_allowed(topic)


@pytest.mark.parametrize("end", ["#", "+/x", "\x00", "a\nb", "\x1b", "\ufffe", "\ud800", "/" * 200])
def test_answers_to_no_topic_for_which_a_broker_closes_the_connection(end: str) -> None:
    """A QoS 1 answer would be sent again and again, and cut the device's link each time."""
    assert not TOPICS.response_allowed(f"gw/v1/inbox/{end}")


@given(ANY_TEXT)
@example("x/" * 150)
def test_whatever_it_answers_to_is_a_topic_of_the_inbox(rest: str) -> None:
    topic = f"gw/v1/inbox{rest}"
    if TOPICS.response_allowed(topic):
        assert topic_matches_sub("gw/v1/inbox/#", topic)
        assert is_topic(topic)


@pytest.mark.parametrize(
    ("allowed", "yes", "no"),
    [
        ("+/outcomes", "a/outcomes", "a/b/outcomes"),
        ("a/+/b/#", "a/x/b/c/d", "a/b/c"),
        ("only", "only", "only/x"),
        ("a.b/#", "a.b/x", "axb/x"),
        ("#", "anything/at/all", "\x00"),
    ],
)
def test_the_allow_list_is_made_of_topic_filters(allowed: str, yes: str, no: str) -> None:
    topics = Topics("gw/v1", ("none", allowed))
    assert topics.response_allowed(f"gw/v1/{yes}")
    assert not topics.response_allowed(f"gw/v1/{no}")


@pytest.mark.parametrize("text", ["AC4178234415", "a.b_c-d", "x" * 64, ".."])
def test_serials(text: str) -> None:
    assert is_serial(text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a/b", "+", "#", "$SYS", "a b", "a\n", "é", "a:b", "१", "\x00"])
def test_no_serials(text: str) -> None:
    assert not is_serial(text)


@given(ANY_TEXT)
@example("x" * MAX_NAME_BYTES)
@example("é" * MAX_NAME_BYTES)
@example("a\n")
def test_an_id_fits_into_a_topic_and_a_user_property(text: str) -> None:
    assert is_id(text) == (encoded(text) is not None and is_text(text))


@pytest.mark.parametrize(
    ("theirs", "newer"),
    [
        (Presence(True, "gw-1", "2026-01-02", started="2026-01-01"), False),  # we said so ourselves
        (Presence(True, "gw-1", "2026-01-09", started="2025-12-01"), False),  # an earlier life of ours
        (Presence(True, "gw-1", "2026-01-01", started="2026-01-05"), True),  # a later life: we are displaced
        (Presence(True, "gw-2", "2026-01-03", started="2025-01-01"), True),  # another node spoke later
        (Presence(True, "gw-2", "2026-01-01", started="2026-01-05"), False),  # an owner of the past
        (Presence(False, "gw-2", None), True),  # a Will, which knows no time
    ],
)
def test_of_two_owners_one_has_the_device(theirs: Presence, newer: bool) -> None:
    ours = Presence(True, "gw-1", "2026-01-02", started="2026-01-01")
    assert theirs.is_newer_than(ours, Life("gw-1", "2026-01-01")) is newer


def test_no_long_response_topic_is_remembered() -> None:
    """A service may name 1,024 of 65,535 bytes."""
    topics = Topics("gw/v1")
    assert topics.response_allowed(f"gw/v1/inbox/{'x' * 1000}")
    assert not topics.response_allowed("x" * 1000)
    assert topics.response_allowed("gw/v1/inbox/x")
    remembered: Any = topics._remembers_allowed
    assert remembered.cache_info().currsize == 1
