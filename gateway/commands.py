"""From MQTT messages to commands, replies and room events: properties, limits, payloads. Pure.

Never raises on what a service publishes: what is not acceptable becomes a command with a refusal, so that its
sender is told. A reply or a room event has no sender who could be: what is wrong with it is returned.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.catalog import Args, Catalog, Event, ended_at
from gateway.facts import Answer, Command, Replied
from gateway.mqtt.values import Message
from gateway.topics import BINARY_TYPE, MAX_NAME_BYTES, CommandTopic, ReplyTopic, RoomTopic, Topics, is_id
from gateway.value import Value

MAX_ACK_TIMEOUT_MS: Final = 3_600_000  # a command holds memory and an order until it is done
# W3C Trace Context, 3.2: version (ff is none), trace id and parent id (all zeros are none), flags
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MALFORMED_EVENT: Final = "-"  # the topic level of an outcome whose event cannot be named


@dataclass(frozen=True)
class Policy:
    """What a command gets that does not say otherwise, and its largest payload."""

    ack_timeout_s: float = 10.0
    lifetime_s: float = 3600.0
    max_payload_bytes: int = 1_000_000


class RoomEvent(Value):
    """What is to be emitted to every socket of a room."""

    __slots__ = ("args", "event", "room")

    def __init__(self, room: str, event: str, args: Args) -> None:
        self.room: Final = room
        self.event: Final = event
        self.args: Final = args


class CommandReader:
    """Turns the messages on a device's link into facts.

    Args:
        process: names this process in the ids of commands that have none.
    """

    __slots__ = ("_catalog", "_named", "_policy", "_process", "_topics")

    def __init__(self, topics: Topics, catalog: Catalog, policy: Policy, process: str) -> None:
        self._topics = topics
        self._catalog = catalog
        self._policy = policy
        self._process = process
        self._named = 0

    def read(
        self, serial: str, message: Message, delivery: int | None, duplicate: bool, clock: Callable[[], float]
    ) -> Command | Replied | str:
        """Return the fact that a message on the link of `serial` is, or why a reply is unusable.

        Args:
            clock: tells Unix time, for commands that say when they end.
        """
        address = self._topics.parse(message.topic)
        if isinstance(address, ReplyTopic):
            return _reply(address.id, message, delivery)
        name, id, bad_topic = _MALFORMED_EVENT, None, None
        if isinstance(address, CommandTopic):
            name, id = address.event, address.id
        else:
            bad_topic = f"topic: {address}"
        event = self._catalog[name]
        args, payload, bad_payload = self._payload(event, message)
        timeout_s, bad_timeout = self._ack_timeout_s(event, _property(message, "ack-timeout-ms"))
        given = _property(message, "id") if id is None else id
        named, bad_id = self._id(given)
        acks = self._topics.acks(serial, name, id)
        answer, bad_answer = self._answer(acks, message, _property(message, "traceparent"))
        return Command(
            id=named,
            event=event,
            args=args,
            answer=answer,
            qos=message.qos,
            lifetime_s=self._lifetime_s(event, message, payload, timeout_s, clock),
            ack_timeout_s=timeout_s,
            delivery=delivery,
            duplicate=duplicate,
            refusal=bad_topic or self._catalog.refusal(name) or bad_payload or bad_timeout or bad_id or bad_answer,
            size_bytes=len(message.payload),
            expires_in_broker=message.expiry_s is not None,
            is_named=named is given,
        )

    def _new_id(self) -> str:
        self._named += 1
        return f"{self._process}-{self._named}"

    def _id(self, id: str | None) -> tuple[str, str | None]:
        if id is None:
            return self._new_id(), None
        if not is_id(id):
            return self._new_id(), f"id: expected 1 to {MAX_NAME_BYTES} bytes without control characters"
        return id, None

    def _answer(self, acks: str, message: Message, traceparent: str | None) -> tuple[Answer, str | None]:
        if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
            traceparent = None
        topic, problem = message.response_topic, None
        if topic is not None and not self._topics.response_allowed(topic):
            topic, problem = None, "Response Topic is not allowed"
        return Answer(acks, topic, message.correlation, traceparent), problem

    def _ack_timeout_s(self, event: Event, text: str | None) -> tuple[float, str | None]:
        usual = self._policy.ack_timeout_s if event.ack_timeout_s is None else event.ack_timeout_s
        if text is None:
            return usual, None
        if text.isascii() and text.isdecimal() and len(text) <= 7 and 0 < int(text) <= MAX_ACK_TIMEOUT_MS:
            return int(text) / 1000, None
        return usual, f"user property ack-timeout-ms: expected 1 to {MAX_ACK_TIMEOUT_MS}"

    def _payload(self, event: Event, message: Message) -> tuple[Args, object, str | None]:
        if len(message.payload) > self._policy.max_payload_bytes:
            return (), None, f"payload: larger than {self._policy.max_payload_bytes} bytes"
        if message.content_type == BINARY_TYPE:
            if event.name in self._catalog:
                return (), None, f"payload: {event.name} takes JSON, not {BINARY_TYPE}"
            return (message.payload,), None, None
        payload, problem = event.read_payload(message.payload)
        if problem is not None:
            return (), None, f"payload: {problem}"
        return (msgspec.Raw(message.payload),) if message.payload else (), payload, None

    def _lifetime_s(
        self, event: Event, message: Message, payload: object, ack_timeout_s: float, clock: Callable[[], float]
    ) -> float:
        """Message Expiry, else `ended_at`, the event's, the default; QoS 0 lives one ack timeout (README, Outcomes)."""
        if message.qos == 0:
            return ack_timeout_s
        if message.expiry_s is not None:
            return float(message.expiry_s)
        ends = ended_at(payload) if event.may_end else None
        if ends is not None:
            return ends.timestamp() - clock()
        return self._policy.lifetime_s if event.lifetime_s is None else event.lifetime_s


def _reply(id: str, message: Message, delivery: int | None) -> Replied | str:
    args, problem = read_args(message)
    return f"reply: {problem}" if problem else Replied(id, args, delivery)


def read_room_event(message: Message, topics: Topics, catalog: Catalog) -> RoomEvent | str:
    """Return what a message asks to be emitted to a room, or why it is not.

    Payloads are checked as those of commands are, but for events that devices emit, which the gateway relays.
    """
    address = topics.parse(message.topic)
    if not isinstance(address, RoomTopic):
        return f"topic: {address}"
    problem = catalog.refusal(address.event)
    if problem is None and address.event in catalog:
        problem = _room_payload(catalog[address.event], message)
    if problem is not None:
        return problem
    args, problem = read_args(message)
    return RoomEvent(address.room, address.event, args) if problem is None else f"payload: {problem}"


def _room_payload(event: Event, message: Message) -> str | None:
    """What is wrong with the payload of a catalogued event."""
    if event.from_device:
        return None
    if message.content_type == BINARY_TYPE or _property(message, "args") is not None:
        return f"payload: {event.name} takes one argument at most, as JSON"
    _, problem = event.read_payload(message.payload)
    return problem and f"payload: {problem}"


def read_args(message: Message) -> tuple[Args, str | None]:
    """Return a message's payload as event arguments, its JSON untouched, or what is wrong with it.

    The inverse of `encode_args`: with the user property `args` the payload is a JSON array of the arguments.
    """
    payload = message.payload
    if message.content_type == BINARY_TYPE:
        return (payload,), None
    if not payload:
        return (), None
    try:
        payload.decode()
        if _property(message, "args") is not None:
            return tuple(msgspec.json.decode(payload, type=list[msgspec.Raw])), None
        return (msgspec.json.decode(payload, type=msgspec.Raw).copy(),), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        return (), str(problem)


def _property(message: Message, name: str) -> str | None:
    for key, value in message.user_properties:
        if key == name:
            return value
    return None
