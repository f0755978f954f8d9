"""DeviceSession: the state machine that owns one link and at most one socket. Pure; time is an argument.

Facts go in, effects come out, to be carried out in order. Commands are the business of `gateway.delivery`; here are
sockets coming and going, presence, the device's own events and the replies to them.
"""

from collections import OrderedDict

import msgspec

from gateway import facts as f
from gateway.bodies import Client, Life, Presence
from gateway.catalog import Args, Catalog
from gateway.delivery import Deliveries
from gateway.limits import Limits, Shared
from gateway.mqtt.values import Message
from gateway.topics import BINARY_TYPE, JSON_TYPE, BadName, Topics


class DeviceSession:
    """One device: `handle` facts, carry out the effects, send `Ticked` at `deadline`.

    Args:
        life: of the node.
        shared: what it holds is counted here, too.
        nonce: makes the ids of this session's questions unlike those of any other.
    """

    __slots__ = (
        "_catalog", "_confirmed", "_deliveries", "_effects", "_life", "_limits", "_link_open", "_next_question",
        "_nonce", "_presence", "_presence_token", "_questions", "_serial", "_socket", "_topics",
    )  # fmt: skip

    def __init__(
        self, serial: str, life: Life, topics: Topics, catalog: Catalog, limits: Limits, shared: Shared, nonce: str
    ) -> None:
        self._serial = serial
        self._life = life
        self._topics = topics
        self._catalog = catalog
        self._limits = limits
        self._nonce = nonce
        self._effects: list[f.Effect] = []
        self._deliveries = Deliveries(serial, life.node, limits, shared, self._effects)
        self._socket: int | None = None
        self._link_open = False
        self._presence: Presence | None = None
        self._confirmed: Presence | None = None  # the broker has it
        self._presence_token = 0  # of the last that was published: 0 and below, where those of outcomes are above
        self._questions: OrderedDict[str, tuple[int, float]] = OrderedDict()  # id → ack id, deadline
        self._next_question = 0

    @property
    def socket(self) -> int | None:
        """The attached socket; None while the device is away."""
        return self._socket

    @property
    def presence(self) -> Presence | None:
        """The last word on the device that the broker has of us."""
        return self._confirmed

    @property
    def announced(self) -> bool:
        """Whether anything was said of the device."""
        return self._presence is not None

    @property
    def open_commands(self) -> int:
        """How many commands have no final outcome yet."""
        return len(self._deliveries)

    @property
    def in_flight(self) -> int:
        """How many commands were emitted and wait for their ack."""
        return self._deliveries.in_flight

    @property
    def deadline(self) -> float | None:
        """When `Ticked` is due; None when nothing waits for time."""
        deadline = self._deliveries.deadline
        if not self._questions:
            return deadline
        asked_until = next(iter(self._questions.values()))[1]
        return asked_until if deadline is None else min(deadline, asked_until)

    @property
    def soonest(self) -> float:
        """A time no later than `deadline`, known at once: until then there is no need to look; inf: never."""
        if not self._questions:
            return self._deliveries.soonest
        return min(self._deliveries.soonest, next(iter(self._questions.values()))[1])

    def handle(self, fact: f.Fact, now: float) -> list[f.Effect]:
        """Take one fact at `now` (monotonic seconds); return what must be done, in order."""
        if isinstance(fact, f.Command):
            self._deliveries.command(fact, now)
        elif isinstance(fact, f.Acked) and fact.socket == self._socket:
            self._deliveries.acked(fact.emit_id, fact.args, now)
        elif isinstance(fact, f.Settled):
            self._deliveries.settled(fact.delivery, now)
        elif isinstance(fact, f.Published):
            self._published(fact, now)
        elif isinstance(fact, f.Emitted) and fact.socket == self._socket:
            self._device_event(fact, now)
        elif isinstance(fact, f.Replied):
            self._replied(fact)
        elif isinstance(fact, f.Ticked):
            self._tick(now)
        elif isinstance(fact, f.Attached):
            self._attach(fact, now)
        elif isinstance(fact, f.Released):
            self._deliveries.release(now)
        elif isinstance(fact, f.Adopted):
            self._adopt(fact.at)
        elif isinstance(fact, f.Lost) and fact.socket == self._socket:
            self._lose(fact, now)
        elif isinstance(fact, f.LinkOpened):
            self._open_link(fact.resumed, now)
        elif isinstance(fact, f.LinkLost):
            self._link_open = False
            self._deliveries.link_lost(now)
        elif isinstance(fact, f.Moved):
            self._move(now)
        else:  # of a socket that is no longer the device: compare and delete
            self._effects.append(f.Ignore("stale_socket"))
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def _attach(self, fact: f.Attached, now: float) -> None:
        if self._socket is not None:
            self._effects.append(f.Drop(self._socket, "replaced"))
            self._questions.clear()
            self._deliveries.detach(now)
        self._socket = fact.socket
        self._announce(fact.at, client=fact.client)
        self._deliveries.attach(fact.socket, now, held=fact.held)

    def _adopt(self, at: str) -> None:
        if self._socket is None:
            self._announce(at, reason="gateway-lost")

    def _lose(self, fact: f.Lost, now: float) -> None:
        self._socket = None
        self._questions.clear()
        self._deliveries.detach(now)
        self._announce(fact.at, reason=fact.reason)

    def _open_link(self, resumed: bool, now: float) -> None:
        self._link_open = True
        self._publish_presence()  # meanwhile the Will may have said otherwise
        self._deliveries.link_opened(resumed, now)

    def _move(self, now: float) -> None:
        if self._socket is not None:
            self._effects.append(f.Drop(self._socket, "replaced"))
        self._socket = None
        self._link_open = False
        self._presence = None  # the new owner's to say
        self._questions.clear()
        self._deliveries.give_up(now)

    def _tick(self, now: float) -> None:
        while self._questions and next(iter(self._questions.values()))[1] <= now:
            self._questions.popitem(last=False)
            self._effects.append(f.Ignore("unanswered_question"))
        self._deliveries.tick(now)

    def _published(self, fact: f.Published, now: float) -> None:
        if fact.token > 0:
            self._deliveries.published(fact, now)
        elif fact.token == self._presence_token:
            self._confirmed = self._presence

    def _announce(self, at: str, *, client: Client | None = None, reason: str | None = None) -> None:
        """Say that the device is here since `at`, or gone for a reason."""
        life = self._life
        self._presence = Presence(client is not None, life.node, at, reason, client, life.started)
        self._publish_presence()

    def _publish_presence(self) -> None:
        """Publish presence; while the link is down only the last word is kept, to be said when it opens."""
        if not self._link_open or self._presence is None:
            return
        self._presence_token -= 1
        topic = self._topics.presence(self._serial)
        body = msgspec.json.encode(self._presence)
        message = Message(topic, body, qos=1, retain=True, content_type=JSON_TYPE)
        self._effects.append(f.Publish(message, self._presence_token))

    def _device_event(self, fact: f.Emitted, now: float) -> None:
        if fact.ack_id is not None and len(self._questions) >= self._limits.max_questions:
            self._refuse(fact, "too many unanswered events")
            return
        unknown = self._catalog.refusal(fact.event)
        if unknown is not None:
            self._refuse(fact, unknown)
            return
        try:
            self._publish_event(fact, now)
        except BadName as problem:
            self._refuse(fact, f"event name: {problem}")
        except (UnicodeEncodeError, RecursionError):
            self._refuse(fact, "cannot be written as JSON")

    def _publish_event(self, fact: f.Emitted, now: float) -> None:
        question = None if fact.ack_id is None else f"{self._nonce}{self._next_question:x}"
        payload, content_type, properties = encode_args(fact.args)
        message = Message(
            topic=self._topics.event(self._serial, fact.event, question),
            payload=payload,
            qos=1,
            content_type=content_type,
            response_topic=None if question is None else self._topics.reply(self._serial, fact.event, question),
            correlation=None if question is None else question.encode(),
            user_properties=properties,
        )
        if question is not None and fact.ack_id is not None:
            self._next_question += 1
            self._questions[question] = (fact.ack_id, now + self._limits.reply_timeout_s)
        self._effects.append(f.Publish(message, droppable=True))
        if self._catalog.is_relayed(fact.event):
            self._effects.append(f.Relay(fact.socket, self._serial, fact.event, message))

    def _refuse(self, fact: f.Emitted, problem: str) -> None:
        if fact.ack_id is not None:
            self._effects.append(f.Reply(fact.socket, fact.ack_id, refusal(problem)))
        self._effects.append(f.Ignore("bad_event"))

    def _replied(self, fact: f.Replied) -> None:
        if fact.delivery is not None:
            self._effects.append(f.Puback(fact.delivery))
        question = self._questions.pop(fact.id, None)
        if question is None or self._socket is None:
            self._effects.append(f.Ignore("unknown_reply"))
        else:
            ack_id, until = question
            asked_at = until - self._limits.reply_timeout_s
            self._effects.append(f.Reply(self._socket, ack_id, fact.args, asked_at))


def refusal(problem: str) -> Args:
    """Return the ack of a device's event that the gateway cannot take."""
    return ({"ack": False, "error_msg": problem},)


def encode_args(args: Args) -> tuple[bytes, str, tuple[tuple[str, str], ...]]:
    """Return event arguments as payload, content type and user properties.

    None: empty. One: its JSON, or its bytes. Several: a JSON array, and the user property `args` with their number
    (bytes within JSON are base64).

    Raises:
        UnicodeEncodeError, RecursionError: they cannot be written as JSON.
    """
    match args:
        case ():
            return b"", JSON_TYPE, ()
        case (bytes() as binary,):
            return binary, BINARY_TYPE, ()
        case (one,):
            return msgspec.json.encode(one), JSON_TYPE, ()
    return msgspec.json.encode(args), JSON_TYPE, (("args", str(len(args))),)
