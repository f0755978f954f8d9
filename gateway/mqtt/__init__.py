"""What a link of MQTT 5 says and hears: the values that cross between `session`, `link` and their owner.

wire: codec and the two QoS 1 flows (pure); session: the client session (pure); link: its asyncio transport.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from msgspec import Struct


class Message(Struct, frozen=True, gc=False):
    """An application message, either way. `qos` is 0 or 1; `expiry_s` counts from its publication."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    expiry_s: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        """About what it costs to keep."""
        return len(self.topic) + len(self.payload)

    @property
    def fingerprint(self) -> int:
        """Hash of what no broker alters between two deliveries of one publication, unlike the remaining expiry."""
        return hash((self.topic, self.payload, self.correlation, self.response_topic, self.user_properties))


class Will(Struct, frozen=True, gc=False):
    """What the broker publishes `delay_s` after the connection ended without a DISCONNECT."""

    message: Message
    delay_s: int = 0


class Subscription(Struct, frozen=True, gc=False):
    """A topic filter and its options; `retained` asks for the retained messages at each SUBSCRIBE."""

    topic_filter: str
    qos: int = 1
    retained: bool = False
    no_local: bool = False


class Options(Struct, frozen=True):
    """What one session asks of the broker, and its bounds. A `keep_alive_s` of 0 turns keep-alive off.

    `receive_maximum` bounds the unacknowledged QoS 1 publishes each way (at most 32,767). `max_waiting` and
    `max_waiting_bytes` bound the publishes not yet written. `max_packet_bytes` bounds a received packet.
    """

    client_id: str
    subscriptions: tuple[Subscription, ...] = ()
    will: Will | None = None
    keep_alive_s: int = 60
    session_expiry_s: int = 0
    receive_maximum: int = 128
    max_waiting: int = 1000
    max_waiting_bytes: int = 1 << 20
    max_packet_bytes: int = 1 << 22


class Credentials(Struct, frozen=True, gc=False):
    """User name and password of a CONNECT; the password never shows in a repr."""

    username: str | None = None
    password: bytes | None = None

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class Opened(Struct, frozen=True, gc=False):
    """The broker accepted a connection; it kept the session if `session_present`."""

    session_present: bool


class Subscribed(Struct, frozen=True, gc=False):
    """The broker answered a SUBSCRIBE for `filters`, and granted all but `refused`.

    Retained messages may come before or after it: that there is none is told by nothing.
    """

    filters: tuple[str, ...]
    refused: tuple[str, ...]


class Received(Struct, frozen=True, gc=False):
    """A message came; if QoS 1, `delivery` is what `puback()` takes: unique in the life of the session."""

    message: Message
    delivery: int | None
    duplicate: bool


class Settled(Struct, frozen=True, gc=False):
    """The broker has read the PUBACK of a delivery for which that was asked: it never delivers it again."""

    delivery: int


class Published(Struct, frozen=True, gc=False):
    """A publish is done: `code` 0, 0x10 (nobody subscribes), or 0x80 and above (failed).

    `sent_at` is when it was written, the last time; None if it never was.
    """

    token: int | None
    code: int
    sent_at: float | None = None


class Dropped(Struct, frozen=True, gc=False):
    """A publish was given up: the buffer was full, or it was QoS 0 and there is no connection."""

    token: int | None


class Closed(Struct, frozen=True, gc=False):
    """The connection is over; `code` is the DISCONNECT reason of either side, None if none was given."""

    code: int | None
    reason: str


Event: TypeAlias = Opened | Subscribed | Received | Settled | Published | Dropped | Closed


class Down(Struct, frozen=True, gc=False):
    """The connection was lost and the link reconnects; `code` is the DISCONNECT reason, None without one."""

    reason: str
    code: int | None = None


class Refused(Struct, frozen=True, gc=False):
    """The broker refused a CONNECT with this CONNACK reason code."""

    code: int
    reason: str


class Unavailable(Struct, frozen=True, gc=False):
    """No broker answered a CONNECT."""

    reason: str


Verdict: TypeAlias = Opened | Refused | Unavailable
LinkEvent: TypeAlias = Event | Down | Refused | Unavailable


class LinkOwner(Protocol):
    """Who a link works for."""

    def link_event(self, event: LinkEvent) -> None:
        """Take an event, in order and never from within a call to the link but `abort()`.

        `Closed` says that the link has stopped; after `Down`, `Refused` and `Unavailable` it goes on trying.
        """


class Backoff(Struct, frozen=True, gc=False):
    """Full jitter between 0 and a ceiling that doubles from `min_s` to `max_s`."""

    min_s: float
    max_s: float

    def delay_s(self, failures: int, uniform: Callable[[float, float], float]) -> float:
        """How long to wait after so many failures in a row."""
        return uniform(0.0, min(self.max_s, self.min_s * 2 ** min(failures, 30)))
