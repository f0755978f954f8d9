"""DeviceSession by example: one test per row of the promise table (README, "Outcomes") and per trap."""

from collections import deque
from typing import Any

import msgspec
import pytest

from gateway import facts as f
from gateway.bodies import Client, Life
from gateway.catalog import Args, Catalog, Event
from gateway.limits import Limits, Shared
from gateway.outcomes import REMEMBERED
from gateway.session import DeviceSession, encode_args
from gateway.topics import Topics

CATALOG = Catalog()
CLIENT = Client(4, "websocket", "127.0.0.1")
COUNTED = (f.Hold, f.Queue, f.Conclude, f.HandOver, f.Abandon)
OK: Args = ({"ack": True},)
AT = "2026-01-01T00:00:00.000+00:00"


class World:
    """A session with a clock, and what it wanted done."""

    def __init__(self, catalog: Catalog = CATALOG, **limits: Any) -> None:
        self.shared = Shared(1000, 10_000)
        life = Life("gw-1", "2026-01-01")
        self.session = DeviceSession("AC1", life, Topics("gw/v1"), catalog, Limits(**limits), self.shared, "n")
        self.now = 1000.0
        self.reads_pubacks = True  # the broker, at once, where that is to be confirmed
        self.effects: list[f.Effect] = []
        self.notes: list[f.Effect] = []  # what is only counted
        self.ids = 0

    def tell(self, *facts: f.Fact) -> list[f.Effect]:
        self.effects, self.notes = [], []
        told = deque(facts)
        while told:
            effects = self.session.handle(told.popleft(), self.now)
            self.effects += [e for e in effects if not isinstance(e, COUNTED)]
            self.notes += [e for e in effects if isinstance(e, COUNTED)]
            if self.reads_pubacks:
                told.extendleft(f.Settled(e.delivery) for e in effects if isinstance(e, f.Puback) and e.confirm)
        return self.effects

    def attach(self, socket: int = 1, *, held: bool = False) -> list[f.Effect]:
        return self.tell(f.Attached(socket, CLIENT, AT, held))

    def lose(self, socket: int = 1, reason: str = "client") -> list[f.Effect]:
        return self.tell(f.Lost(socket, reason, AT))

    def send(self, event: str = "bind_class", qos: int = 1, lifetime_s: float = 60, **fields: Any) -> list[f.Effect]:
        self.ids += 1
        fields = {"delivery": self.ids if qos else None, "ack_timeout_s": 10.0, "id": f"c{self.ids}"} | fields
        answer = f.Answer("gw/v1/devices/AC1/acks/x", "gw/v1/inbox/me", b"corr")
        return self.tell(
            f.Command(event=CATALOG[event], args=(), answer=answer, qos=qos, lifetime_s=lifetime_s, **fields)
        )

    def ack(self, emit_id: int, args: Args = OK, socket: int = 1) -> list[f.Effect]:
        return self.tell(f.Acked(socket, emit_id, args))

    def after(self, seconds: float) -> list[f.Effect]:
        self.now += seconds
        return self.tell(f.Ticked())

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [
            (effect.outcome.id, effect.outcome.status)
            for effect in self.effects
            if isinstance(effect, f.Publish) and effect.outcome is not None
        ]

    @property
    def emits(self) -> list[int]:
        return [effect.emit_id for effect in self.effects if isinstance(effect, f.Emit)]

    @property
    def pubacks(self) -> list[int]:
        return [effect.delivery for effect in self.effects if isinstance(effect, f.Puback)]

    @property
    def settled(self) -> list[int]:
        return [publish.settles for publish in self.publishes() if publish.settles is not None]

    def publishes(self) -> list[f.Publish]:
        return [effect for effect in self.effects if isinstance(effect, f.Publish)]

    def token(self) -> int:
        (publish,) = self.publishes()
        assert publish.token is not None
        return publish.token


@pytest.fixture
def world() -> World:
    world = World()
    world.tell(f.LinkOpened(resumed=False))
    return world


def test_a_command_is_emitted_acked_and_settled_in_that_order(world: World) -> None:
    world.attach()
    world.send()
    assert world.emits == [1]
    assert not world.pubacks
    world.ack(1)
    assert world.outcomes == [("c1", "acked")]
    assert world.settled == [1]
    token = world.token()
    assert world.tell(f.Published(token)) == []
    assert world.session.open_commands == 0
    assert world.session.deadline is None


def test_the_outcome_carries_what_a_service_correlates_by(world: World) -> None:
    world.attach()
    world.send("device_status")
    world.now += 0.25
    world.ack(1, ({"ack": True, "status": "on"},))
    (publish,) = world.publishes()
    assert publish.message.topic == "gw/v1/inbox/me"
    assert publish.message.correlation == b"corr"
    assert publish.message.user_properties == (("id", "c1"), ("status", "acked"))
    assert msgspec.json.decode(publish.message.payload) == {
        "id": "c1",
        "serial": "AC1",
        "event": "device_status",
        "status": "acked",
        "final": True,
        "data": {"ack": True, "status": "on"},
        "error": None,
        "attempts": 1,
        "maybe_delivered": True,
        "latency_ms": 250.0,
        "node": "gw-1",
        "late": False,
    }


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (({"ack": True},), "acked"),
        (({"ack": True, "more": 1},), "acked"),
        (('{"ack": true}',), "acked"),
        (({"ack": False},), "nacked"),
        ((), "nacked"),
        ((b"\x00\xff",), "nacked"),
        (("\ud800",), "nacked"),
        (({"ack": True}, 2), "nacked"),
    ],
)
def test_an_ack_decides_between_acked_and_nacked(world: World, args: Args, status: str) -> None:
    world.attach()
    world.send()
    world.ack(1, args)
    assert world.outcomes == [("c1", status)]


def test_an_ack_that_cannot_be_written_as_json_still_ends_in_an_outcome(world: World) -> None:
    world.attach()
    world.send("an event of ours")
    world.ack(1, ({"text": "\ud800"},))
    assert world.outcomes == [("c1", "acked")]


def test_qos_0_to_an_absent_device_is_offline_at_once(world: World) -> None:
    world.send(qos=0)
    assert world.outcomes == [("c1", "offline")]


def test_qos_1_to_an_absent_device_is_held_and_delivered_in_order(world: World) -> None:
    world.send()
    assert world.outcomes == [("c1", "queued")]
    world.send()
    assert world.outcomes == [("c2", "queued")]
    emits = [effect for effect in world.attach() if isinstance(effect, f.Emit)]
    assert [effect.emit_id for effect in emits] == [1, 2]
    world.ack(2)
    assert world.outcomes == [("c2", "acked")]


def test_a_held_command_expires(world: World) -> None:
    world.send(lifetime_s=60)
    assert world.session.deadline == world.now + 60
    world.after(60)
    assert world.outcomes == [("c1", "expired")]
    assert world.settled == [1]
    world.attach()
    assert not world.emits


def test_a_command_whose_time_is_over_is_expired_at_once(world: World) -> None:
    world.attach()
    world.send(lifetime_s=-3600)
    assert world.outcomes == [("c1", "expired")]
    assert not world.emits


def test_qos_0_times_out_after_one_emission(world: World) -> None:
    world.attach()
    world.send(qos=0, lifetime_s=10)
    world.after(10)
    assert world.outcomes == [("c1", "timeout")]


def test_qos_1_is_emitted_up_to_max_attempts(world: World) -> None:
    world.attach()
    world.send()
    assert world.emits == [1]
    world.after(10)
    assert world.emits == [2]
    world.after(10)
    assert world.emits == [3]
    world.after(10)
    assert world.outcomes == [("c1", "timeout")]
    assert world.session.deadline is None


def test_an_ack_of_an_earlier_attempt_counts(world: World) -> None:
    world.attach()
    world.send()
    world.after(10)
    world.ack(1)
    assert world.outcomes == [("c1", "acked")]
    world.ack(2)
    assert world.effects == [f.Ignore("unknown_ack")]


def test_an_outcome_that_the_broker_refuses_is_said_again_without_what_it_may_refuse(world: World) -> None:
    world.attach()
    world.send()
    world.ack(1, ({"ack": True, "huge": "x" * 1000},))
    world.tell(f.Published(world.token(), 0x95, sent=False))
    assert world.settled == [1], "the first has settled nothing"
    assert not world.pubacks
    (again,) = world.publishes()
    assert again.message.topic == "gw/v1/devices/AC1/acks/x"
    assert again.outcome is not None
    assert (again.outcome.status, again.outcome.data) == ("acked", None)
    assert again.outcome.error == "the broker refused the outcome with 0x95"
    assert again.token is not None
    world.tell(f.Published(again.token, 0x87))
    assert world.pubacks == [], "it is not tried for ever"

    world.send()
    world.ack(2)
    for _ in range(2):
        world.tell(f.Published(world.token(), 0x95, sent=False))
    assert world.pubacks == [2], "nor delivered again for ever"


def test_a_new_owner_answers_a_command_whose_outcome_could_not_be_sent(world: World) -> None:
    world.attach()
    world.send()
    world.ack(1)
    world.tell(f.Published(world.token(), 0x95, sent=False))
    world.tell(f.Moved())
    assert world.outcomes == []


def test_nobody_else_answers_a_command_whose_outcome_was_sent_and_refused(world: World) -> None:
    world.attach()
    world.send()
    world.ack(1)
    world.tell(f.Published(world.token(), 0x97))
    assert world.settled == [], "the first has settled it"
    world.tell(f.Moved())
    assert world.outcomes == [("c1", "acked")]


def test_all_attempts_acked_late_are_one_late_outcome(world: World) -> None:
    world.attach()
    world.send()
    for _ in range(3):
        world.after(10)
    world.ack(2)
    assert [effect.outcome.late for effect in world.publishes() if effect.outcome] == [True]
    for emit_id in (1, 3):
        world.ack(emit_id)
        assert world.effects == [f.Ignore("unknown_ack")]


def test_a_late_ack_is_published_once_more(world: World) -> None:
    world.attach()
    world.send(qos=0)
    world.after(10)
    world.ack(1)
    (publish,) = world.publishes()
    assert publish.outcome is not None
    assert (publish.outcome.status, publish.outcome.late) == ("acked", True)
    world.ack(1)
    assert world.effects == [f.Ignore("unknown_ack")]


def test_acking_twice_or_out_of_thin_air_changes_nothing(world: World) -> None:
    world.attach()
    world.send()
    world.ack(1)
    for emit_id in (1, 99, -1, 0):
        world.ack(emit_id)
        assert world.effects == [f.Ignore("unknown_ack")]


def test_a_lost_socket_ends_what_must_not_repeat_and_keeps_the_rest(world: World) -> None:
    world.attach()
    world.send("restart_device")
    world.send("bind_class")
    world.send("bind_class", qos=0)
    world.lose()
    assert world.outcomes == [("c1", "lost"), ("c3", "lost"), ("c2", "queued")]
    world.attach(2)
    assert world.emits == [4]
    world.ack(4, socket=2)
    assert world.outcomes == [("c2", "acked")]


def test_what_was_emitted_before_is_emitted_before_what_waited(world: World) -> None:
    world.attach()
    world.send()
    world.lose()
    world.send()
    world.attach(2)
    world.ack(2, socket=2)
    assert world.outcomes == [("c1", "acked")]


def test_losing_the_socket_each_time_uses_up_the_attempts(world: World) -> None:
    world.send()
    for socket in (1, 2, 3):
        world.attach(socket)
        world.lose(socket)
    assert world.outcomes == [("c1", "timeout")]


def test_a_harmful_event_is_settled_before_it_is_emitted(world: World) -> None:
    world.attach()
    world.send("restart_device")
    assert [type(effect) for effect in world.effects] == [f.Puback, f.Emit]


def test_a_harmful_event_waits_until_the_broker_has_read_its_puback(world: World) -> None:
    """A node that takes the device over before that would be given it, too."""
    world.attach()
    world.reads_pubacks = False
    world.send("restart_device")
    assert world.effects == [f.Puback(1, confirm=True)], "and it is not said to be queued"
    world.send("bind_class")
    assert (world.emits, world.outcomes) == ([], [("c2", "queued")])
    world.tell(f.Settled(1))
    assert world.emits == [1, 2]
    assert world.tell(f.Settled(1)) == []


def test_a_puback_may_be_read_while_an_earlier_command_has_come_back(world: World) -> None:
    world.attach()
    world.reads_pubacks = False
    world.send("bind_class")
    world.tell(f.LinkLost())
    world.tell(f.LinkOpened(resumed=False))
    world.send("restart_device")
    assert world.pubacks == [2]
    world.lose()
    world.tell(f.Settled(2))
    world.attach(2)
    assert world.emits == [2, 3]


def test_a_broker_that_has_forgotten_delivers_nothing_again(world: World) -> None:
    world.attach()
    world.reads_pubacks = False
    world.send("restart_device")
    world.tell(f.LinkLost())
    world.tell(f.LinkOpened(resumed=True))
    assert not world.emits, "the PUBACK may have been lost with the link"
    world.tell(f.LinkLost())
    world.tell(f.LinkOpened(resumed=False))
    assert world.emits == [1]


def test_what_nobody_else_may_be_given_is_lost_with_a_takeover_and_not_emitted(world: World) -> None:
    world.attach()
    world.reads_pubacks = False
    world.send("restart_device")
    world.tell(f.Moved())
    assert (world.emits, world.outcomes) == ([], [("c1", "lost")])


def test_a_device_that_leaves_before_the_broker_has_read_the_puback(world: World) -> None:
    world.attach()
    world.reads_pubacks = False
    world.send("restart_device")
    world.lose()
    assert world.outcomes == [("c1", "queued")]
    world.tell(f.Settled(1))
    assert world.emits == []
    world.attach(2)
    assert world.emits == [1]
    world.send("purge_face_data", lifetime_s=5)
    world.ack(1, socket=2)
    world.after(5)
    assert world.outcomes == [("c2", "expired")], "its PUBACK is not read for 5 s"


def test_a_harmful_event_waits_until_the_earlier_commands_are_settled(world: World) -> None:
    """PUBACKs go in order: what must be settled before its emission waits for what is not settled yet."""
    world.attach()
    world.send("bind_class")
    world.send("restart_device")
    assert world.outcomes == [("c2", "queued")]
    world.send("bind_class")
    assert world.outcomes == [("c3", "queued")], "and holds up what comes after it"
    world.ack(1)
    assert not world.emits
    token = world.token()
    world.tell(f.Published(token))
    assert world.pubacks == [2]
    assert world.emits == [2, 3]


def test_a_harmful_event_waits_for_the_link(world: World) -> None:
    """Emitted while no PUBACK can leave, it would be delivered and emitted again."""
    world.attach()
    world.tell(f.LinkLost())
    world.send("restart_device")
    assert not world.emits
    world.tell(f.LinkOpened(resumed=True))
    assert world.pubacks == [1]
    assert world.emits == [1]


def test_an_unlisted_event_counts_as_harmful(world: World) -> None:
    world.attach()
    world.send("mystery")
    world.lose()
    assert world.outcomes == [("c1", "lost")]


def test_a_refused_command_is_rejected_and_settled(world: World) -> None:
    world.attach()
    world.send(refusal="payload: no")
    (publish,) = world.publishes()
    assert publish.outcome is not None
    assert (publish.outcome.status, publish.outcome.error) == ("rejected", "payload: no")
    assert world.settled == [1]


def test_a_full_queue_rejects() -> None:
    world = World(max_commands=2)
    for _ in range(3):
        world.send()
    assert world.outcomes == [("c3", "rejected")]
    assert world.session.open_commands == 2


def test_a_device_that_comes_back_is_not_drowned_in_what_was_held() -> None:
    """The node itself would close it as slow for what it piled up."""
    world = World(max_emitted_bytes=1000)
    for _ in range(4):
        world.send(size_bytes=600)
    world.send(size_bytes=5000)
    world.attach()
    assert world.emits == [1]
    for emit_id in range(1, 5):
        world.ack(emit_id)
        assert world.emits == [emit_id + 1]
    world.ack(5)
    assert world.session.open_commands == 0
    world.send(size_bytes=600)
    world.lose()
    world.attach(2)
    assert world.emits == [7], "what a lost socket had counts no longer"


def test_a_redelivered_command_whose_outcome_is_known_is_answered_from_memory(world: World) -> None:
    world.attach()
    world.send(id="same")
    world.ack(1)
    world.send(id="same", duplicate=True, delivery=77)
    assert not world.emits
    (publish,) = world.publishes()
    assert b'"acked"' in publish.message.payload
    assert world.settled == [77]


def test_one_id_of_two_events_names_two_commands(world: World) -> None:
    """The broker may say that it delivers again what was lost on the way."""
    world.attach()
    world.send("bind_class", id="same")
    world.send("text_stop", id="same", duplicate=True, delivery=77)
    assert world.emits == [2]
    world.ack(1)
    world.ack(2)
    world.send("media_stop", id="same", duplicate=True, delivery=78)
    assert world.emits == [3]


def test_what_the_gateway_named_is_not_remembered_for_nobody_can_deliver_it_again(world: World) -> None:
    world.attach()
    world.send(id="gw-1", is_named=False)
    world.ack(1)
    assert not world.session._deliveries._outcomes._answered
    world.send(id="gw-2", is_named=False, duplicate=True, delivery=77)
    assert world.emits == [2]


def test_a_redelivered_command_that_is_open_is_not_emitted_again(world: World) -> None:
    world.attach()
    world.send("bind_class", id="same")
    world.send("bind_class", id="same", duplicate=True, delivery=77)
    assert world.effects == []
    world.ack(1)
    assert world.outcomes == [("same", "acked")]
    assert world.settled == [77]
    assert world.session.open_commands == 0


def test_what_was_emitted_and_must_not_repeat_is_settled_at_once_when_it_comes_again(world: World) -> None:
    """A PUBACK that the broker forgot brings it back, to whoever has the device by the time of its outcome."""
    world.attach()
    world.send("restart_device", id="same")
    world.send("restart_device", id="same", duplicate=True, delivery=77)
    assert world.effects == [f.Puback(77)]
    world.ack(1)
    assert world.outcomes == [("same", "acked")]


def test_a_harmful_event_that_comes_again_before_its_emission_waits_for_the_new_puback(world: World) -> None:
    world.attach()
    world.reads_pubacks = False
    world.send("restart_device", id="same")
    world.send("restart_device", id="same", duplicate=True, delivery=77)
    assert world.effects == [f.Puback(77, confirm=True)]
    world.tell(f.Settled(1))
    assert not world.emits
    world.tell(f.Settled(77))
    assert world.emits == [1]


def test_memory_of_outcomes_is_bounded(world: World) -> None:
    world.attach()
    for number in range(REMEMBERED + 1):
        world.send(id=f"k{number}")
        world.ack(number + 1)
    world.send(id="k0", duplicate=True)
    assert world.emits, "forgotten, so emitted again"


def test_a_session_that_was_not_resumed_owes_no_pubacks(world: World) -> None:
    world.attach()
    world.send()
    world.tell(f.LinkLost())
    world.tell(f.LinkOpened(resumed=False))
    world.ack(1)
    assert world.outcomes == [("c1", "acked")]
    assert world.settled == []


def test_timers_of_finished_commands_do_not_pile_up(world: World) -> None:
    world.attach()
    for number in range(1, 5001):
        world.send(qos=0)
        world.ack(number)
    assert len(world.session._deliveries._timers) <= REMEMBERED + 2


def test_the_newest_socket_wins_and_the_old_goodbye_changes_nothing(world: World) -> None:
    world.attach(1)
    world.attach(2)
    assert f.Drop(1, "replaced") in world.effects
    world.lose(1)
    assert world.effects == [f.Ignore("stale_socket")]
    assert world.session.socket == 2
    world.ack(1, socket=1)
    assert world.effects == [f.Ignore("stale_socket")]


def presence(effects: list[f.Effect]) -> list[Any]:
    return [
        msgspec.json.decode(effect.message.payload)
        for effect in effects
        if isinstance(effect, f.Publish) and effect.message.topic == "gw/v1/devices/AC1/presence"
    ]


def test_presence_follows_the_socket(world: World) -> None:
    (here,) = presence(world.attach())
    assert here == {
        "online": True,
        "node": "gw-1",
        "since": AT,
        "reason": None,
        "client": {"engine": 4, "transport": "websocket", "address": "127.0.0.1"},
        "started": "2026-01-01",
    }
    (gone,) = presence(world.lose(reason="ping-timeout"))
    assert (gone["online"], gone["reason"]) == (False, "ping-timeout")


def test_presence_is_said_again_when_the_link_is_back(world: World) -> None:
    world.attach()
    world.tell(f.LinkLost())
    assert presence(world.lose()) == []
    (gone,) = presence(world.tell(f.LinkOpened(resumed=True)))
    assert gone["online"] is False


def test_a_takeover_drops_the_socket_and_leaves_the_answers_to_the_new_owner(world: World) -> None:
    world.attach()
    world.send("bind_class")
    world.send("bind_class", qos=0)
    world.tell(f.Moved())
    assert f.Drop(1, "replaced") in world.effects
    assert world.outcomes == [("c2", "lost")]
    assert world.session.open_commands == 0
    assert world.session.deadline is None
    assert presence(world.effects) == []


@pytest.mark.parametrize(("in_broker", "said"), [(True, [("c1", "expired")]), (False, [])])
def test_what_had_expired_when_the_device_moved_is_answered_by_the_old_owner(
    world: World, in_broker: bool, said: list[tuple[str, str]]
) -> None:
    """The broker does not deliver it to the new one; but it does where it knows of no expiry."""
    world.send(lifetime_s=5, expires_in_broker=in_broker)
    world.send(lifetime_s=8, expires_in_broker=in_broker)
    world.after(5)
    assert world.outcomes == [("c1", "expired")]
    world.tell(f.LinkLost())
    world.after(3)
    assert world.outcomes == [("c2", "expired")], "which the new owner has, too"
    world.tell(f.Moved())
    assert world.outcomes == said
    world.tell(f.Moved())
    assert world.outcomes == []


def test_a_device_whose_turn_has_not_come_gets_nothing(world: World) -> None:
    world.send("bind_class")
    world.attach(held=True)
    world.send("bind_class", qos=0)
    assert (world.emits, world.outcomes) == ([], [("c2", "queued")])
    world.tell(f.Released())
    assert world.emits == [1, 2]


def test_an_outcome_that_may_not_have_left_with_the_link_is_said_again(world: World) -> None:
    """The link was cut, and another node has the device: nobody else would say it."""
    world.attach()
    world.send("restart_device")
    world.send("bind_class", qos=0)
    world.send("bind_class")
    world.tell(f.LinkLost())
    world.lose()
    assert world.outcomes == [("c1", "lost"), ("c2", "lost"), ("c3", "queued")]
    world.tell(f.Moved())
    assert world.outcomes == [("c1", "lost"), ("c2", "lost")]
    assert all(publish.token is None for publish in world.publishes())


def test_a_device_event_goes_to_its_own_topic(world: World) -> None:
    world.attach()
    world.tell(f.Emitted(1, "hello", ({"a": 1},)))
    (publish,) = world.publishes()
    assert publish.message.topic == "gw/v1/devices/AC1/events/hello"
    assert publish.message.payload == b'{"a":1}'
    assert publish.droppable


@pytest.mark.parametrize("event", ["", "x" * 10_000, "\ud800"])
def test_an_event_that_cannot_be_a_topic_is_refused_to_the_device(world: World, event: str) -> None:
    world.attach()
    world.tell(f.Emitted(1, event, (), ack_id=5))
    assert world.effects[1:] == [f.Ignore("bad_event")]
    (reply,) = (effect for effect in world.effects if isinstance(effect, f.Reply))
    assert (reply.ack_id, reply.args[0]["ack"]) == (5, False)


@pytest.mark.parametrize(
    ("event", "level"), [("a/../b", "a%2F..%2Fb"), ("+", "%2B"), ("#", "%23"), ("$SYS", "%24SYS"), ("a\0b", "a%00b")]
)
def test_a_hostile_event_name_stays_one_level(world: World, event: str, level: str) -> None:
    world.attach()
    world.tell(f.Emitted(1, event, ()))
    assert world.publishes()[0].message.topic == f"gw/v1/devices/AC1/events/{level}"


def test_a_question_is_answered_by_its_reply_once(world: World) -> None:
    world.attach()
    world.tell(f.Emitted(1, "ask", (), ack_id=7))
    message = world.publishes()[0].message
    question = message.topic.rsplit("/", 1)[1]
    assert message.response_topic == f"gw/v1/devices/AC1/replies/ask/{question}"
    assert message.correlation == question.encode()
    asked_at = world.now
    world.now += 1
    world.tell(f.Replied(question, ({"yes": 1},), delivery=9))
    assert world.effects == [f.Puback(9), f.Reply(1, 7, ({"yes": 1},), asked_at)]
    world.tell(f.Replied(question, ()))
    assert world.effects == [f.Ignore("unknown_reply")]


def test_a_question_is_forgotten_with_its_socket_and_with_time(world: World) -> None:
    world.attach()
    world.tell(f.Emitted(1, "ask", (), ack_id=7))
    world.attach(2)
    world.tell(f.Replied("n0", ()))
    assert world.effects == [f.Ignore("unknown_reply")]
    world.tell(f.Emitted(2, "ask", (), ack_id=8))
    assert world.session.deadline == world.now + 30
    world.after(30)
    assert world.effects == [f.Ignore("unanswered_question")]
    assert world.session.deadline is None


def test_questions_are_bounded() -> None:
    world = World(max_questions=1)
    world.attach()
    world.tell(f.Emitted(1, "ask", (), ack_id=1))
    world.tell(f.Emitted(1, "ask", (), ack_id=2))
    assert world.publishes() == []
    assert [effect.ack_id for effect in world.effects if isinstance(effect, f.Reply)] == [2]


def test_the_result_of_a_remote_command_is_relayed_to_the_room_of_the_serial(world: World) -> None:
    world.attach()
    world.tell(f.Emitted(1, "cmd_result", ({"result": "ok"},)))
    (relay,) = (effect for effect in world.effects if isinstance(effect, f.Relay))
    assert (relay.socket, relay.room, relay.event, relay.message.payload) == (
        1,
        "AC1",
        "cmd_result",
        b'{"result":"ok"}',
    )


@pytest.mark.parametrize(
    ("args", "encoded"),
    [
        ((), (b"", "application/json", ())),
        (({"a": 1},), (b'{"a":1}', "application/json", ())),
        ((b"\x00\xff",), (b"\x00\xff", "application/octet-stream", ())),
        ((1, "二"), ('[1,"二"]'.encode(), "application/json", (("args", "2"),))),
    ],
)
def test_arguments_as_payload(args: Args, encoded: tuple[bytes, str, tuple[tuple[str, str], ...]]) -> None:
    assert encode_args(args) == encoded


def test_refuses_events_that_the_catalogue_does_not_list_where_it_is_told_to() -> None:
    world = World(Catalog([Event("door", "", "", from_device=True)], rejects_unknown=True))
    world.attach()
    problem = "event: not in the catalogue, and catalog.unknown is reject"
    refused = ({"ack": False, "error_msg": problem},)
    assert world.tell(f.Emitted(1, "hello", (), ack_id=5)) == [f.Reply(1, 5, refused), f.Ignore("bad_event")]
    assert world.tell(f.Emitted(1, "hello", ())) == [f.Ignore("bad_event")]
    assert [type(effect) for effect in world.tell(f.Emitted(1, "door", ()))] == [f.Publish]


def test_relays_only_events_of_devices_that_go_to_a_room() -> None:
    own = [Event(name, "", "", from_device=True, room=name == "door") for name in ("door", "window")]
    world = World(Catalog(own))
    world.attach()
    assert [type(effect) for effect in world.tell(f.Emitted(1, "door", ()))] == [f.Publish, f.Relay]
    assert [type(effect) for effect in world.tell(f.Emitted(1, "window", ()))] == [f.Publish]
