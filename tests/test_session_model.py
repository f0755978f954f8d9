"""A model of DeviceSession under any order of facts: what it must never do, and what must hold at rest."""

from collections import Counter
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import facts as f
from gateway import is_compiled
from gateway.bodies import Client, Life
from gateway.catalog import Catalog
from gateway.limits import Limits, Shared
from gateway.session import DeviceSession
from gateway.topics import Topics

CATALOG = Catalog()
LIMITS = Limits(max_attempts=3, max_commands=6, max_questions=2, reply_timeout_s=30.0)
EVENTS = st.sampled_from(["bind_class", "bind_class", "device_status", "restart_device", "mystery"])
ACKS: list[Any] = [{"ack": True}, {"ack": True, "status": "on"}, {"ack": False}, None, "x", b"\x00", [1], "\ud800"]


class SessionMachine(RuleBasedStateMachine):
    """The world around one session: a broker that redelivers, sockets that come and go, a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Shared(10_000, 10_000)
        self.session = DeviceSession("AC1", Life("gw-1", ""), Topics("gw/v1"), CATALOG, LIMITS, self.shared, "n")
        self.now = 0.0
        self.sockets = 0
        self.socket: int | None = None
        self.link_open = False
        self.moved = False
        self.commands: dict[str, f.Command] = {}
        self.finals: Counter[str] = Counter()
        self.emitted: dict[int, str] = {}  # emit id → command
        self.on_socket: list[str] = []  # commands in the order of their first emission on this socket
        self.attempts: Counter[str] = Counter()
        self.settled: Counter[int] = Counter()
        self.broker_has: set[int] = set()  # deliveries that the broker remembers: it has read no PUBACK for them
        self.unread: set[int] = set()  # deliveries whose PUBACK was sent, and is to be confirmed
        self.held = False  # the socket waits for its turn
        self.waiting: dict[int, int | None] = {}  # token → delivery that it settles
        self.unconfirmed: dict[str, str] = {}  # final outcomes that the broker has not answered for
        self.refused: Counter[str] = Counter()
        self.outcome_of: dict[int, str] = {}
        self.said_online: bool | None = None
        self.questions: list[str] = []

    # what the session wants done

    def tell(self, fact: f.Fact) -> None:
        for effect in self.session.handle(fact, self.now):
            match effect:
                case f.Emit():
                    self.see_emit(effect)
                case f.Publish():
                    self.see_publish(effect)
                case f.Puback():
                    self.see_puback(effect.delivery, confirm=effect.confirm)
                case f.Drop():
                    assert effect.socket != self.socket or self.moved
                case f.Reply():
                    assert effect.socket == self.socket

    def see_emit(self, effect: f.Emit) -> None:
        assert effect.socket == self.socket, "emitted to a socket that is not the device"
        assert effect.emit_id not in self.emitted, "an ack id was used twice"
        assert not self.held, "emitted before its turn"
        command = effect.command
        self.emitted[effect.emit_id] = command.id
        self.attempts[command.id] += 1
        assert not self.finals[command.id], "emitted after its final outcome"
        if command.qos == 0 or command.event.at_most_once:
            assert self.attempts[command.id] == 1, "emitted twice, and it does harm"
            assert command.delivery not in self.broker_has, "emitted while the broker would deliver it again"
        assert self.attempts[command.id] <= LIMITS.max_attempts
        if command.id not in self.on_socket:
            self.on_socket.append(command.id)

    def see_publish(self, effect: f.Publish) -> None:
        outcome = effect.outcome
        if effect.message.retain:
            assert self.link_open
            self.said_online = msgspec.json.decode(effect.message.payload)["online"]
        if effect.token is not None:
            assert effect.token not in self.waiting
            if outcome is not None:
                self.unconfirmed[outcome.id] = outcome.status
            self.waiting[effect.token] = effect.settles
            if outcome is not None:
                self.outcome_of[effect.token] = outcome.id
        again = outcome is not None and (outcome.error or "").startswith("the broker refused")
        if effect.token is None and self.moved and outcome is not None and outcome.id in self.unconfirmed:
            assert outcome.status == self.unconfirmed.pop(outcome.id), "said again, and not the same"
            return
        if outcome is not None and outcome.final and not outcome.late and not again:
            self.finals[outcome.id] += 1
            assert self.finals[outcome.id] == 1, "two final outcomes"
            assert outcome.maybe_delivered == bool(self.attempts[outcome.id])
            assert not (self.moved and self.commands[outcome.id].delivery in self.broker_has), (
                "the new owner's to answer"
            )

    def see_puback(self, delivery: int, *, confirm: bool) -> None:
        self.settled[delivery] += 1
        assert self.settled[delivery] == 1, "settled twice"
        assert delivery in self.broker_has, "settled what the broker has forgotten"
        command = self.commands[f"c{delivery}"]
        if command.event.at_most_once and not self.finals[command.id]:
            assert self.link_open, "emitted while no PUBACK can leave"
            assert delivery == min(self.broker_has - self.unread), "emitted while its PUBACK waits for an earlier one"
        else:
            assert self.refused[command.id] == 2, "settled without its outcome"
        if confirm:
            self.unread.add(delivery)
        else:
            self.broker_has.remove(delivery)

    # what happens

    @initialize(resumed=st.booleans())
    def open(self, resumed: bool) -> None:
        self.link_open = True
        self.tell(f.LinkOpened(resumed))

    @precondition(lambda self: not self.moved and self.link_open)
    @rule(
        event=EVENTS,
        qos=st.sampled_from([1, 1, 0]),
        lifetime_s=st.sampled_from([3600.0, 3600.0, 3600.0, 15.0, 1.0, -5.0]),
        ack_timeout_s=st.sampled_from([10.0, 10.0, 0.5]),
        refused=st.sampled_from([False] * 7 + [True]),
    )
    def command(self, event: str, qos: int, lifetime_s: float, ack_timeout_s: float, refused: bool) -> None:
        number = len(self.commands) + 1
        command = f.Command(
            id=f"c{number}",
            event=CATALOG[event],
            args=(number,),
            answer=f.Answer("gw/v1/devices/AC1/acks/x", "gw/v1/inbox/x"),
            qos=qos,
            lifetime_s=ack_timeout_s if qos == 0 else lifetime_s,
            ack_timeout_s=ack_timeout_s,
            delivery=number if qos else None,
            refusal="no" if refused else None,
        )
        self.commands[command.id] = command
        if qos:
            self.broker_has.add(number)
        self.tell(command)

    @precondition(lambda self: not self.moved)
    @rule(held=st.sampled_from([False, False, True]))
    def attach(self, held: bool) -> None:
        self.sockets += 1
        self.socket, self.held = self.sockets, held
        self.on_socket.clear()
        self.tell(f.Attached(self.socket, Client(4, "websocket", ""), "", held))

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.held = False
        self.tell(f.Released())

    @precondition(lambda self: self.link_open and self.unread)
    @rule()
    def read_puback(self) -> None:
        delivery = self.unread.pop()
        self.broker_has.remove(delivery)
        self.tell(f.Settled(delivery))

    @rule(stale=st.booleans())
    def lose(self, stale: bool) -> None:
        socket = self.sockets - 1 if stale else self.sockets
        if socket == self.socket:
            self.socket = None
        self.tell(f.Lost(socket, "client", ""))

    @rule(data=st.data(), args=st.sampled_from(ACKS), stale=st.sampled_from([False, False, True]))
    def ack(self, data: st.DataObject, args: object, stale: bool) -> None:
        emit_id = data.draw(st.sampled_from([*self.emitted, 10_000]))
        self.tell(f.Acked(self.sockets - stale, emit_id, (args,)))

    @precondition(lambda self: self.link_open and self.waiting)
    @rule(data=st.data(), refused=st.sampled_from([False] * 9 + [True]))
    def published(self, data: st.DataObject, refused: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.waiting)))
        outcome = self.outcome_of.get(token)
        if refused and outcome is not None and self.refused[outcome] < 2:
            self.refused[outcome] += 1
            delivery = self.waiting.pop(token)
            sent = data.draw(st.booleans())
            if sent:  # the broker reads the PUBACK all the same
                self.broker_has -= {delivery}
            self.tell(f.Published(token, 0x97, sent))
        else:
            self.confirm(token)

    def confirm(self, token: int) -> None:
        self.broker_has -= {self.waiting.pop(token)}
        self.unconfirmed.pop(self.outcome_of.get(token, ""), None)
        self.tell(f.Published(token))

    @rule()
    def let_an_ack_time_out(self) -> None:
        self.tick(10.0)

    @rule(seconds=st.sampled_from([0.1, 0.5, 10.0, 61.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.tell(f.Ticked())

    @precondition(lambda self: self.link_open)
    @rule(resumed=st.booleans())
    def link_breaks(self, resumed: bool) -> None:
        self.link_lost()
        self.link_opened(resumed)

    @precondition(lambda self: self.link_open)
    @rule()
    def link_lost(self) -> None:
        self.link_open = False
        self.tell(f.LinkLost())

    @precondition(lambda self: not self.link_open and not self.moved)
    @rule(resumed=st.booleans())
    def link_opened(self, resumed: bool) -> None:
        self.link_open = True
        if not resumed:
            self.broker_has.clear()
            self.unread.clear()
        self.tell(f.LinkOpened(resumed))

    @rule(event=st.sampled_from(["hello", "cmd_result", "", "+", "\ud800"]), ack_id=st.sampled_from([None, 1]))
    def device_event(self, event: str, ack_id: int | None) -> None:
        self.tell(f.Emitted(self.sockets, event, ({"a": 1},), ack_id))

    @rule(number=st.integers(0, 5))
    def reply(self, number: int) -> None:
        self.tell(f.Replied(f"n{number:x}", ()))

    @precondition(lambda self: len(self.commands) > 5 and not self.moved)  # at the end: nothing much follows
    @rule()
    def moved_away(self) -> None:
        self.moved, self.link_open = True, False
        self.broker_has -= self.unread  # whether it has read them, nobody knows: the old owner answers
        self.tell(f.Moved())
        self.socket = None

    # what always holds

    @invariant()
    def open_commands_are_those_without_a_final_outcome(self) -> None:
        if not self.moved:
            assert self.session.open_commands == len(self.commands) - sum(self.finals.values())
        assert self.session.open_commands <= LIMITS.max_commands
        assert self.shared.commands.used == self.session.open_commands

    @invariant()
    def commands_are_emitted_in_the_order_of_receipt(self) -> None:
        order = [int(name[1:]) for name in self.on_socket]
        assert order == sorted(order)

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        if self.socket is not None and self.link_open and not self.waiting and not self.unread and not self.held:
            left = [name for name in self.commands if not self.finals[name]]
            assert not left or any(name in self.on_socket for name in left)

    @invariant()
    def the_session_knows_its_socket(self) -> None:
        assert self.session.socket == self.socket

    def teardown(self) -> None:
        """Come to rest: the broker answers everything and time passes until nothing waits for it."""
        if self.moved:
            assert self.session.deadline is None
            for name, command in self.commands.items():
                owed = command.delivery is None or command.delivery not in self.broker_has
                assert self.finals[name] == 1 or not owed, "nobody answers this command"
            return
        if not self.link_open:
            self.link_opened(resumed=True)
        while self.waiting or self.unread or self.held or self.session.deadline is not None:
            if self.held:
                self.release()
            while self.unread:
                self.read_puback()
            for token in tuple(self.waiting):
                self.confirm(token)
            deadline = self.session.deadline
            if deadline is not None:
                assert deadline >= self.now or not self.waiting
                self.now = max(self.now, deadline)
                self.tell(f.Ticked())
        assert all(self.finals[name] == 1 for name in self.commands), "a command without a final outcome"
        assert not self.broker_has, "a command that the broker will deliver again"
        if self.sockets:
            assert self.said_online == (self.socket is not None)


SessionMachine.TestCase.settings = settings(
    max_examples=500 if is_compiled() else 200, stateful_step_count=50, deadline=None, derandomize=True, print_blob=True
)
TestSession = SessionMachine.TestCase
