"""What happens to a DeviceSession (facts) and what it wants done (effects). Pure data.

A `socket` is a number that names one Socket.IO connection of this process, a `delivery` one inbound
QoS 1 message of the link, a `token` one outbound message whose PUBACK somebody waits for.
"""

from typing import Literal

import msgspec

from gateway.bodies import Client, Outcome
from gateway.catalog import Args, Event
from gateway.mqtt import Message


class Answer(msgspec.Struct, frozen=True):
    """Where a command's outcomes go, and what they carry back; without a Response Topic they go to `acks`.

    `traceparent` is a valid one (W3C Trace Context, 3.2).
    """

    acks: str
    response_topic: str | None = None
    correlation: bytes | None = None
    traceparent: str | None = None

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


class Command(msgspec.Struct, frozen=True):
    """A service published a command; `refusal` is set when it can only be rejected.

    `lifetime_s` counts from now, and with `expires_in_broker` the broker does not deliver it any more after that;
    `duplicate` says that the broker has delivered it before; `size_bytes` is its payload.
    """

    id: str
    event: Event
    args: Args
    answer: Answer
    qos: int
    lifetime_s: float
    ack_timeout_s: float
    delivery: int | None = None
    duplicate: bool = False
    refusal: str | None = None
    size_bytes: int = 0
    expires_in_broker: bool = False


class Replied(msgspec.Struct, frozen=True):
    """A service answered the question `id`; the arguments become the device's ack."""

    id: str
    args: Args
    delivery: int | None = None


class Attached(msgspec.Struct, frozen=True):
    """An authenticated socket is now the device; `at` is RFC 3339.

    `held`: nothing is emitted before Released, because too many devices come back at once.
    """

    socket: int
    client: Client
    at: str
    held: bool = False


class Adopted(msgspec.Struct, frozen=True):
    """An earlier life of this node had the device, and nothing has come of it yet; `at` is RFC 3339."""

    at: str


class Lost(msgspec.Struct, frozen=True):
    """A socket is gone; `reason` is a close reason, `at` is RFC 3339."""

    socket: int
    reason: str
    at: str


class Acked(msgspec.Struct, frozen=True):
    """A device acked the emission `emit_id`."""

    socket: int
    emit_id: int
    args: Args


class Emitted(msgspec.Struct, frozen=True):
    """A device emitted an event; with `ack_id` it waits for a reply."""

    socket: int
    event: str
    args: Args
    ack_id: int | None = None


class LinkOpened(msgspec.Struct, frozen=True):
    """The broker accepted the link; `resumed` when it still had the session."""

    resumed: bool


class LinkLost(msgspec.Struct, frozen=True):
    """The link is down for now."""


class Moved(msgspec.Struct, frozen=True):
    """The session was taken over: another node owns the device."""


class Settled(msgspec.Struct, frozen=True):
    """The broker has read the PUBACK of a delivery: nobody gets it again."""

    delivery: int


class Released(msgspec.Struct, frozen=True):
    """The turn of a device that was attached `held` has come."""


class Published(msgspec.Struct, frozen=True):
    """The broker has the message `token`, or refuses it with a `code` of 0x80 and above."""

    token: int
    code: int = 0


class Ticked(msgspec.Struct, frozen=True):
    """The deadline was reached."""


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


class Emit(msgspec.Struct, frozen=True):
    """Emit a command's event to the socket and ask for the ack `emit_id`; `attempt` counts from 1."""

    socket: int
    command: Command
    emit_id: int
    attempt: int


class Reply(msgspec.Struct, frozen=True):
    """Answer the device's own event; `asked_at` is when it came, where a service answers."""

    socket: int
    ack_id: int
    args: Args
    asked_at: float | None = None


class Publish(msgspec.Struct, frozen=True):
    """Publish through the device's link; `droppable` may be dropped while the broker is away for too long.

    `outcome` is what the message says, where it is one.
    """

    message: Message
    token: int | None = None
    droppable: bool = False
    outcome: Outcome | None = None


class Relay(msgspec.Struct, frozen=True):
    """Emit an event, as the message has it, to the other sockets of a room, on every node."""

    socket: int
    room: str
    event: str
    message: Message


class Puback(msgspec.Struct, frozen=True):
    """The broker need not deliver this again; with `confirm`, Settled is to tell when it surely does not."""

    delivery: int
    confirm: bool = False


class Drop(msgspec.Struct, frozen=True):
    """Close the socket."""

    socket: int
    reason: str


Ignored = Literal["bad_event", "stale_socket", "unanswered_question", "unknown_ack", "unknown_reply"]


class Ignore(msgspec.Struct, frozen=True):
    """A peer did something that has no meaning here; to be counted."""

    what: Ignored


class Hold(msgspec.Struct, frozen=True):
    """A command has to wait, not yet or no longer emitted; to be counted."""

    command: Command


class Queue(msgspec.Struct, frozen=True):
    """The sender of a command is told that it is queued; to be counted."""

    command: Command


class Conclude(msgspec.Struct, frozen=True):
    """A command has its final outcome, or a late one; to be counted.

    `received_at`: when it came; `online`: whether the device was there then; `emitted_at`: when what the device acked
    was emitted.
    """

    command: Command
    outcome: Outcome
    received_at: float
    online: bool
    emitted_at: float | None


class HandOver(msgspec.Struct, frozen=True):
    """A command ends here without an outcome: the broker delivers it to the next owner of the device; to be counted."""

    command: Command


class Abandon(msgspec.Struct, frozen=True):
    """The broker refused a final outcome for good: nobody hears of it; to be counted."""


Note = Ignore | Hold | Queue | Conclude | HandOver | Abandon  # nothing is to be done for these
Effect = Emit | Reply | Publish | Relay | Puback | Drop | Note
