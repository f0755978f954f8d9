"""What happens to a DeviceSession (facts) and what it wants done (effects). Pure data.

A `socket` is a number that names one Socket.IO connection of this process, a `delivery` one inbound
QoS 1 message of the link, a `token` one outbound message whose PUBACK somebody waits for.
"""

from typing import Final, Literal

from gateway.bodies import Client, Outcome
from gateway.catalog import Args, Event
from gateway.mqtt.values import Message
from gateway.value import Value


class Answer(Value):
    """Where a command's outcomes go, and what they carry back; without a Response Topic they go to `acks`.

    `traceparent` is a valid one (W3C Trace Context, 3.2).
    """

    __slots__ = ("acks", "correlation", "response_topic", "traceparent")

    def __init__(
        self,
        acks: str,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        traceparent: str | None = None,
    ) -> None:
        self.acks: Final = acks
        self.response_topic: Final = response_topic
        self.correlation: Final = correlation
        self.traceparent: Final = traceparent

    @property
    def topic(self) -> str:
        """The topic of the outcomes."""
        return self.acks if self.response_topic is None else self.response_topic

    @property
    def trace_id(self) -> str:
        """The trace that the command belongs to; empty without one."""
        return self.traceparent[3:35] if self.traceparent else ""

    @property
    def is_sampled(self) -> bool:
        """Whether its trace is recorded, as far as the sender knows (W3C Trace Context, 3.2.2.5.1)."""
        return self.traceparent is not None and int(self.traceparent[53:], 16) & 1 == 1


class Command(Value):
    """A service published a command; `refusal` is set when it can only be rejected.

    `lifetime_s` counts from now, and with `expires_in_broker` the broker does not deliver it any more after that;
    `duplicate` says that the broker has delivered it before; `size_bytes` is its payload. `is_named`: the id is its
    sender's, and the same when it is delivered again.
    """

    __slots__ = (
        "ack_timeout_s",
        "answer",
        "args",
        "delivery",
        "duplicate",
        "event",
        "expires_in_broker",
        "id",
        "is_named",
        "lifetime_s",
        "qos",
        "refusal",
        "size_bytes",
    )

    def __init__(
        self,
        id: str,
        event: Event,
        args: Args,
        answer: Answer,
        qos: int,
        lifetime_s: float,
        ack_timeout_s: float,
        delivery: int | None = None,
        duplicate: bool = False,
        refusal: str | None = None,
        size_bytes: int = 0,
        expires_in_broker: bool = False,
        is_named: bool = True,
    ) -> None:
        self.id: Final = id
        self.event: Final = event
        self.args: Final = args
        self.answer: Final = answer
        self.qos: Final = qos
        self.lifetime_s: Final = lifetime_s
        self.ack_timeout_s: Final = ack_timeout_s
        self.delivery: Final = delivery
        self.duplicate: Final = duplicate
        self.refusal: Final = refusal
        self.size_bytes: Final = size_bytes
        self.expires_in_broker: Final = expires_in_broker
        self.is_named: Final = is_named


class Replied(Value):
    """A service answered the question `id`; the arguments become the device's ack."""

    __slots__ = ("args", "delivery", "id")

    def __init__(self, id: str, args: Args, delivery: int | None = None) -> None:
        self.id: Final = id
        self.args: Final = args
        self.delivery: Final = delivery


class Attached(Value):
    """An authenticated socket is now the device; `at` is RFC 3339.

    `held`: nothing is emitted before Released, because too many devices come back at once.
    """

    __slots__ = ("at", "client", "held", "socket")

    def __init__(self, socket: int, client: Client, at: str, held: bool = False) -> None:
        self.socket: Final = socket
        self.client: Final = client
        self.at: Final = at
        self.held: Final = held


class Adopted(Value):
    """An earlier life of this node had the device, and nothing has come of it yet; `at` is RFC 3339."""

    __slots__ = ("at",)

    def __init__(self, at: str) -> None:
        self.at: Final = at


class Lost(Value):
    """A socket is gone; `reason` is a close reason, `at` is RFC 3339."""

    __slots__ = ("at", "reason", "socket")

    def __init__(self, socket: int, reason: str, at: str) -> None:
        self.socket: Final = socket
        self.reason: Final = reason
        self.at: Final = at


class Acked(Value):
    """A device acked the emission `emit_id`."""

    __slots__ = ("args", "emit_id", "socket")

    def __init__(self, socket: int, emit_id: int, args: Args) -> None:
        self.socket: Final = socket
        self.emit_id: Final = emit_id
        self.args: Final = args


class Emitted(Value):
    """A device emitted an event; with `ack_id` it waits for a reply."""

    __slots__ = ("ack_id", "args", "event", "socket")

    def __init__(self, socket: int, event: str, args: Args, ack_id: int | None = None) -> None:
        self.socket: Final = socket
        self.event: Final = event
        self.args: Final = args
        self.ack_id: Final = ack_id


class LinkOpened(Value):
    """The broker accepted the link; `resumed` when it still had the session."""

    __slots__ = ("resumed",)

    def __init__(self, resumed: bool) -> None:
        self.resumed: Final = resumed


class LinkLost(Value):
    """The link is down for now."""

    __slots__ = ()


class Moved(Value):
    """The session was taken over: another node owns the device."""

    __slots__ = ()


class Settled(Value):
    """The broker has read the PUBACK of a delivery: nobody gets it again."""

    __slots__ = ("delivery",)

    def __init__(self, delivery: int) -> None:
        self.delivery: Final = delivery


class Released(Value):
    """The turn of a device that was attached `held` has come."""

    __slots__ = ()


class Published(Value):
    """The broker has the message `token`, or refuses it with a `code` of 0x80 and above, or it was not even `sent`."""

    __slots__ = ("code", "sent", "token")

    def __init__(self, token: int, code: int = 0, sent: bool = True) -> None:
        self.token: Final = token
        self.code: Final = code
        self.sent: Final = sent


class Ticked(Value):
    """The deadline was reached."""

    __slots__ = ()


Fact = (
    Command
    | Replied
    | Attached
    | Released
    | Adopted
    | Lost
    | Acked
    | Emitted
    | LinkOpened
    | LinkLost
    | Moved
    | Settled
    | Published
    | Ticked
)


class Emit(Value):
    """Emit a command's event to the socket and ask for the ack `emit_id`; `attempt` counts from 1."""

    __slots__ = ("attempt", "command", "emit_id", "socket")

    def __init__(self, socket: int, command: Command, emit_id: int, attempt: int) -> None:
        self.socket: Final = socket
        self.command: Final = command
        self.emit_id: Final = emit_id
        self.attempt: Final = attempt


class Reply(Value):
    """Answer the device's own event; `asked_at` is when it came, where a service answers."""

    __slots__ = ("ack_id", "args", "asked_at", "socket")

    def __init__(self, socket: int, ack_id: int, args: Args, asked_at: float | None = None) -> None:
        self.socket: Final = socket
        self.ack_id: Final = ack_id
        self.args: Final = args
        self.asked_at: Final = asked_at


class Publish(Value):
    """Publish through the device's link; `droppable` may be dropped while the broker is away for too long.

    `outcome` is what the message says, where it is one; `settles` the delivery whose PUBACK follows it.
    """

    __slots__ = ("droppable", "message", "outcome", "settles", "token")

    def __init__(
        self,
        message: Message,
        token: int | None = None,
        droppable: bool = False,
        outcome: Outcome | None = None,
        settles: int | None = None,
    ) -> None:
        self.message: Final = message
        self.token: Final = token
        self.droppable: Final = droppable
        self.outcome: Final = outcome
        self.settles: Final = settles


class Relay(Value):
    """Emit an event, as the message has it, to the other sockets of a room, on every node."""

    __slots__ = ("event", "message", "room", "socket")

    def __init__(self, socket: int, room: str, event: str, message: Message) -> None:
        self.socket: Final = socket
        self.room: Final = room
        self.event: Final = event
        self.message: Final = message


class Puback(Value):
    """The broker need not deliver this again; with `confirm`, Settled is to tell when it surely does not."""

    __slots__ = ("confirm", "delivery")

    def __init__(self, delivery: int, confirm: bool = False) -> None:
        self.delivery: Final = delivery
        self.confirm: Final = confirm


class Drop(Value):
    """Close the socket."""

    __slots__ = ("reason", "socket")

    def __init__(self, socket: int, reason: str) -> None:
        self.socket: Final = socket
        self.reason: Final = reason


Ignored = Literal["bad_event", "stale_socket", "unanswered_question", "unknown_ack", "unknown_reply"]


class Ignore(Value):
    """A peer did something that has no meaning here; to be counted."""

    __slots__ = ("what",)

    def __init__(self, what: Ignored) -> None:
        self.what: Final = what


class Hold(Value):
    """A command has to wait, not yet or no longer emitted; to be counted."""

    __slots__ = ("command",)

    def __init__(self, command: Command) -> None:
        self.command: Final = command


class Queue(Value):
    """The sender of a command is told that it is queued; to be counted."""

    __slots__ = ("command",)

    def __init__(self, command: Command) -> None:
        self.command: Final = command


class Conclude(Value):
    """A command has its final outcome, or a late one; to be counted.

    `received_at`: when it came; `online`: whether the device was there then; `emitted_at`: when what the device acked
    was emitted.
    """

    __slots__ = ("command", "emitted_at", "online", "outcome", "received_at")

    def __init__(
        self, command: Command, outcome: Outcome, received_at: float, online: bool, emitted_at: float | None
    ) -> None:
        self.command: Final = command
        self.outcome: Final = outcome
        self.received_at: Final = received_at
        self.online: Final = online
        self.emitted_at: Final = emitted_at


class HandOver(Value):
    """A command ends here without an outcome: the broker delivers it to the next owner of the device; to be counted."""

    __slots__ = ("command",)

    def __init__(self, command: Command) -> None:
        self.command: Final = command


class Abandon(Value):
    """The broker refused a final outcome for good: nobody hears of it; to be counted."""

    __slots__ = ()


Note = Ignore | Hold | Queue | Conclude | HandOver | Abandon  # nothing is to be done for these
Effect = Emit | Reply | Publish | Relay | Puback | Drop | Note
