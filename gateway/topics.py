"""The MQTT contract: the grammar of topics. Pure.

Serials, rooms and event names come from strangers. A serial is checked; a room or event name is
percent-encoded into exactly one topic level, so that nothing reaches a topic that is not its own.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final
from urllib.parse import quote, unquote

from gateway.value import Value

MAX_NAME_BYTES: Final = 128  # of a room, event or id before encoding: keeps topics short and memory bounded
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"

LEVEL: Final = r"[^+#/\s\x00-\x1f\x7f]+"  # a regex: one topic level that needs no quoting anywhere
PREFIX: Final = rf"(?!\$){LEVEL}(/{LEVEL})*"  # where the topics of a gateway may begin

# What Socket.IO clients tell themselves, and what only the gateway says: from anybody else it would be believed.
RESERVED: Final = frozenset(
    {
        *("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"),
        *("auth:ok", "auth:fail", "join_room:ok", "join_room:fail", "leave_room:ok", "leave_room:fail"),
    }
)

_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A name that is itself the level that stands for it; nearly all are.
_PLAIN = re.compile(rf"[A-Za-z0-9._:@=-]{{1,{MAX_NAME_BYTES}}}")
_NONCHARACTERS = "".join(f"{chr(p * 0x10000 + 0xFFFE)}{chr(p * 0x10000 + 0xFFFF)}" for p in range(17))
# [MQTT-1.5.4] A text must not hold U+0000 and should not hold controls or non-characters; brokers close for it.
_FORBIDDEN = rf"\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}"
_ENCODED = re.compile(rf"[{_FORBIDDEN}/+#%]|\A\$")
_NO_TEXT = re.compile(f"[{_FORBIDDEN}]")
_NO_TOPIC = re.compile(f"[{_FORBIDDEN}+#]")
_REMEMBERED: Final = 1024  # names of events with their levels, and Response Topics
_MAX_REMEMBERED_CHARS: Final = 256  # of a Response Topic, which may have 65,535
_MAX_LEVELS: Final = 100  # of a Response Topic: EMQX takes 128 levels, mosquitto closes the connection above 201


class BadName(ValueError):
    """A room, event or id that cannot be one topic level; the text says why."""


class CommandTopic(Value):
    """`devices/{serial}/commands/{event}[/{id}]`, decoded."""

    __slots__ = ("event", "id", "serial")

    def __init__(self, serial: str, event: str, id: str | None) -> None:
        self.serial: Final = serial
        self.event: Final = event
        self.id: Final = id


class ReplyTopic(Value):
    """`devices/{serial}/replies/{event}/{id}`, decoded."""

    __slots__ = ("event", "id", "serial")

    def __init__(self, serial: str, event: str, id: str) -> None:
        self.serial: Final = serial
        self.event: Final = event
        self.id: Final = id


class RoomTopic(Value):
    """`rooms/{room}/events/{event}`, decoded."""

    __slots__ = ("event", "room")

    def __init__(self, room: str, event: str) -> None:
        self.room: Final = room
        self.event: Final = event


def is_serial(text: str) -> bool:
    """Whether `text` may name a device."""
    return _SERIAL.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether `text` may be the id of a command, which goes into topics and user properties."""
    return 0 < len(text) <= MAX_NAME_BYTES and not _NO_TEXT.search(text) and len(text.encode()) <= MAX_NAME_BYTES


def encode_level(name: str) -> str:
    """Return `name` as exactly one topic level.

    Raises:
        BadName: it is empty, longer than MAX_NAME_BYTES in UTF-8, or not text that UTF-8 can hold.
    """
    if _PLAIN.fullmatch(name):
        return name
    return _ENCODED.sub(lambda match: quote(match[0], safe=""), _checked(name))


def decode_level(level: str) -> str:
    """Return the name that a topic level stands for; the inverse of `encode_level`.

    A name is written in one way only: a broker that refuses `commands/remote_cmd` to somebody knows no other spelling.

    Raises:
        BadName: it is empty, too long, its percent-encoding is not UTF-8, or it is not what `encode_level` writes.
    """
    if _PLAIN.fullmatch(level):
        return level
    try:
        name = _checked(unquote(level, errors="strict"))
    except UnicodeDecodeError:
        raise BadName("percent-encoding is not UTF-8") from None
    if (written := encode_level(name)) != level:
        raise BadName(f"must be written {written}")
    return name


# Of events, which come again and again; ids do not.
_event_level = lru_cache(_REMEMBERED)(encode_level)
_event_of = lru_cache(_REMEMBERED)(decode_level)


def _checked(name: str) -> str:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadName("not valid Unicode") from None
    if not 0 < size <= MAX_NAME_BYTES:
        raise BadName(f"must be 1 to {MAX_NAME_BYTES} bytes, is {size}")
    return name


class Topics:
    """Builds and reads the topics under one prefix."""

    __slots__ = ("_devices", "_is_allowed", "_nodes", "_remembers_allowed", "_rooms", "prefix")

    def __init__(self, prefix: str, response_topics: tuple[str, ...] = ("inbox/#",)) -> None:
        self.prefix = prefix
        self._devices = f"{prefix}/devices/"
        self._rooms = f"{prefix}/rooms/"
        self._nodes = f"{prefix}/nodes/"
        allowed = tuple(_filter_pattern(f"{prefix}/{topic_filter}") for topic_filter in response_topics)
        self._is_allowed: Callable[[str], bool] = partial(_response_allowed, allowed)
        self._remembers_allowed: Callable[[str], bool] = lru_cache(_REMEMBERED)(self._is_allowed)

    def command(self, serial: str, event: str, id: str | None = None) -> str:
        """Where a service publishes a command. Raises BadName."""
        return self._device(serial, "commands", event, id)

    def commands_filter(self, serial: str) -> str:
        """Matches every command of a device, also those with a malformed topic, which are owed a refusal."""
        return f"{self._devices}{serial}/commands/#"

    def replies_filter(self, serial: str) -> str:
        """Matches every reply to a device's events."""
        return f"{self._devices}{serial}/replies/+/+"

    def acks(self, serial: str, event: str, id: str | None = None) -> str:
        """Where outcomes go that have no Response Topic. Raises BadName."""
        return self._device(serial, "acks", event, id)

    def event(self, serial: str, event: str, id: str | None = None) -> str:
        """Where a device's event goes; with `id` when the device waits for a reply. Raises BadName."""
        return self._device(serial, "events", event, id)

    def reply(self, serial: str, event: str, id: str) -> str:
        """Where a service answers a device's event. Raises BadName."""
        return self._device(serial, "replies", event, id)

    def presence(self, serial: str) -> str:
        """A device's retained presence."""
        return f"{self._devices}{serial}/presence"

    def presence_of(self, topic: str) -> str | None:
        """Return the serial of a presence topic; None for any other topic."""
        if topic.startswith(self._devices) and topic.endswith("/presence"):
            serial = topic[len(self._devices) : -len("/presence")]
            return serial if is_serial(serial) else None
        return None

    def room(self, room: str, event: str) -> str:
        """Where an event for every socket of a room goes. Raises BadName."""
        return f"{self._rooms}{encode_level(room)}/events/{encode_level(event)}"

    def rooms_filter(self) -> str:
        """Matches the events of all rooms."""
        return f"{self._rooms}+/events/+"

    def node_status(self, node: str) -> str:
        """A node's retained status."""
        return f"{self._nodes}{node}/status"

    def node_of(self, topic: str) -> str | None:
        """Return the name of the node whose status topic this is; None for any other topic."""
        if topic.startswith(self._nodes) and topic.endswith("/status"):
            return topic[len(self._nodes) : -len("/status")]
        return None

    def response_allowed(self, topic: str) -> bool:
        """Whether the gateway, which publishes with its own rights, may and can answer to this Response Topic."""
        return self._remembers_allowed(topic) if len(topic) <= _MAX_REMEMBERED_CHARS else self._is_allowed(topic)

    def parse(self, topic: str) -> CommandTopic | ReplyTopic | RoomTopic | BadName:
        """Read a topic that a service published to; what cannot be read is returned as the reason."""
        try:
            if topic.startswith(self._devices):
                return _parse_device(topic[len(self._devices) :].split("/"))
            if topic.startswith(self._rooms):
                return _parse_room(topic[len(self._rooms) :].split("/"))
        except BadName as problem:
            return problem
        return BadName("not a topic of this gateway")

    def _device(self, serial: str, kind: str, event: str, id: str | None) -> str:
        topic = f"{self._devices}{serial}/{kind}/{_event_level(event)}"
        return topic if id is None else f"{topic}/{encode_level(id)}"


def _response_allowed(allowed: tuple[re.Pattern[str], ...], topic: str) -> bool:
    for pattern in allowed:
        if pattern.fullmatch(topic):
            return topic.count("/") < _MAX_LEVELS and not _NO_TOPIC.search(topic)
    return False


def _parse_device(levels: list[str]) -> CommandTopic | ReplyTopic | BadName:
    if len(levels) in (3, 4):
        serial, kind, event, id = levels[0], levels[1], levels[2], levels[3] if len(levels) == 4 else None
        if kind == "commands":
            return CommandTopic(serial, _event_of(event), None if id is None else decode_level(id))
        if kind == "replies" and id is not None:
            return ReplyTopic(serial, _event_of(event), decode_level(id))
    return BadName("expected devices/{serial}/commands/{event}[/{id}] or …/replies/{event}/{id}")


def _parse_room(levels: list[str]) -> RoomTopic | BadName:
    if len(levels) != 3 or levels[1] != "events":
        return BadName("expected rooms/{room}/events/{event}")
    room, _, event = levels
    if event in RESERVED:
        return BadName(f"{event} is a reserved name")
    return RoomTopic(decode_level(room), decode_level(event))


def _filter_pattern(topic_filter: str) -> re.Pattern[str]:
    # [MQTT-4.7.1] `+` is one level, a last `#` is the parent and everything below it.
    pattern = re.escape(topic_filter).replace(r"\+", "[^/]+")
    pattern = re.sub(r"/\\#\Z", "(?:/.*)?", pattern)
    return re.compile(pattern)
