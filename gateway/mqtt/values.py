"""What a link of MQTT 5 says and hears: the values that cross between `session`, `link` and their owner. Pure."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from gateway.value import Value

FAILURE: Final = 0x80  # reason codes from here on are failures (2.4)


class Message(Value):
    """An application message, either way. `qos` is 0 or 1; `expiry_s` counts from its publication."""

    __slots__ = (
        "content_type",
        "correlation",
        "expiry_s",
        "payload",
        "qos",
        "response_topic",
        "retain",
        "topic",
        "user_properties",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        expiry_s: int | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.topic: Final = topic
        self.payload: Final = payload
        self.qos: Final = qos
        self.retain: Final = retain
        self.expiry_s: Final = expiry_s
        self.content_type: Final = content_type
        self.response_topic: Final = response_topic
        self.correlation: Final = correlation
        self.user_properties: Final = user_properties

    @property
    def size_bytes(self) -> int:
        """About what it costs to keep."""
        return len(self.topic) + len(self.payload)

    @property
    def fingerprint(self) -> int:
        """Hash of what no broker alters between two deliveries of one publication, unlike the remaining expiry."""
        return hash((self.topic, self.payload, self.correlation, self.response_topic, self.user_properties))


class Will(Value):
    """What the broker publishes `delay_s` after the connection ended without a DISCONNECT."""

    __slots__ = ("delay_s", "message")

    def __init__(self, message: Message, delay_s: int = 0) -> None:
        self.message: Final = message
        self.delay_s: Final = delay_s


class Subscription(Value):
    """A topic filter and its options; `retained` asks for the retained messages at each SUBSCRIBE."""

    __slots__ = ("no_local", "qos", "retained", "topic_filter")

    def __init__(self, topic_filter: str, qos: int = 1, retained: bool = False, no_local: bool = False) -> None:
        self.topic_filter: Final = topic_filter
        self.qos: Final = qos
        self.retained: Final = retained
        self.no_local: Final = no_local


class Options(Value):
    """What one session asks of the broker, and its bounds. A `keep_alive_s` of 0 turns keep-alive off.

    `receive_maximum` bounds the unacknowledged QoS 1 publishes each way (at most 32,767). `max_waiting` and
    `max_waiting_bytes` bound the publishes not yet written. `max_packet_bytes` bounds a received packet.
    """

    __slots__ = (
        "client_id",
        "keep_alive_s",
        "max_packet_bytes",
        "max_waiting",
        "max_waiting_bytes",
        "receive_maximum",
        "session_expiry_s",
        "subscriptions",
        "will",
    )

    def __init__(
        self,
        client_id: str,
        subscriptions: tuple[Subscription, ...] = (),
        will: Will | None = None,
        keep_alive_s: int = 60,
        session_expiry_s: int = 0,
        receive_maximum: int = 128,
        max_waiting: int = 1000,
        max_waiting_bytes: int = 1 << 20,
        max_packet_bytes: int = 1 << 22,
    ) -> None:
        self.client_id: Final = client_id
        self.subscriptions: Final = subscriptions
        self.will: Final = will
        self.keep_alive_s: Final = keep_alive_s
        self.session_expiry_s: Final = session_expiry_s
        self.receive_maximum: Final = receive_maximum
        self.max_waiting: Final = max_waiting
        self.max_waiting_bytes: Final = max_waiting_bytes
        self.max_packet_bytes: Final = max_packet_bytes


class Credentials(Value):
    """User name and password of a CONNECT; the password never shows in a repr."""

    __slots__ = ("password", "username")

    def __init__(self, username: str | None = None, password: bytes | None = None) -> None:
        self.username: Final = username
        self.password: Final = password

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class Opened(Value):
    """The broker accepted a connection; it kept the session if `session_present`."""

    __slots__ = ("session_present",)

    def __init__(self, session_present: bool) -> None:
        self.session_present: Final = session_present


class Subscribed(Value):
    """The broker answered a SUBSCRIBE for `filters`, and granted all but `refused`.

    Retained messages may come before or after it: that there is none is told by nothing.
    """

    __slots__ = ("filters", "refused")

    def __init__(self, filters: tuple[str, ...], refused: tuple[str, ...]) -> None:
        self.filters: Final = filters
        self.refused: Final = refused


class Received(Value):
    """A message came; if QoS 1, `delivery` is what `puback()` takes: unique in the life of the session."""

    __slots__ = ("delivery", "duplicate", "message")

    def __init__(self, message: Message, delivery: int | None, duplicate: bool) -> None:
        self.message: Final = message
        self.delivery: Final = delivery
        self.duplicate: Final = duplicate


class Settled(Value):
    """The broker has read the PUBACK of a delivery for which that was asked: it never delivers it again."""

    __slots__ = ("delivery",)

    def __init__(self, delivery: int) -> None:
        self.delivery: Final = delivery


class Published(Value):
    """A publish is done: `code` 0, 0x10 (nobody subscribes), or 0x80 and above (failed).

    `sent_at` is when it was written, the last time; None if it never was.
    """

    __slots__ = ("code", "sent_at", "token")

    def __init__(self, token: int | None, code: int, sent_at: float | None = None) -> None:
        self.token: Final = token
        self.code: Final = code
        self.sent_at: Final = sent_at


class Dropped(Value):
    """A publish was given up: the buffer was full, or it was QoS 0 and there is no connection."""

    __slots__ = ("token",)

    def __init__(self, token: int | None) -> None:
        self.token: Final = token


class Closed(Value):
    """The connection is over; `code` is the DISCONNECT reason of either side, None if none was given."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int | None, reason: str) -> None:
        self.code: Final = code
        self.reason: Final = reason


Event: TypeAlias = Opened | Subscribed | Received | Settled | Published | Dropped | Closed


class Down(Value):
    """The connection was lost and the link reconnects; `code` is the DISCONNECT reason, None without one."""

    __slots__ = ("code", "reason")

    def __init__(self, reason: str, code: int | None = None) -> None:
        self.reason: Final = reason
        self.code: Final = code


class Refused(Value):
    """The broker refused a CONNECT with this CONNACK reason code."""

    __slots__ = ("code", "reason")

    def __init__(self, code: int, reason: str) -> None:
        self.code: Final = code
        self.reason: Final = reason


class Unavailable(Value):
    """No broker answered a CONNECT."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason: Final = reason


Verdict: TypeAlias = Opened | Refused | Unavailable
LinkEvent: TypeAlias = Event | Down | Refused | Unavailable


class LinkOwner(Protocol):
    """Who a link works for."""

    def link_event(self, event: LinkEvent) -> None:
        """Take an event, in order and never from within a call to the link.

        `Closed` says that the link has stopped; after `Down`, `Refused` and `Unavailable` it goes on trying.
        """


class Backoff(Value):
    """Full jitter between 0 and a ceiling that doubles from `min_s` to `max_s`."""

    __slots__ = ("max_s", "min_s")

    def __init__(self, min_s: float, max_s: float) -> None:
        self.min_s: Final = min_s
        self.max_s: Final = max_s

    def delay_s(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """How long to wait after so many failures in a row."""
        return uniform(0.0, min(self.max_s, self.min_s * 2 ** min(failures, 30)))
