"""The state machine of one session, its deadlines and its promises."""

import ast
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import gateway.engine
from gateway.engine.codec import (
    CLOSE,
    EIO3,
    EIO4,
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    PONG,
    UPGRADE,
    Generation,
    Packet,
    decode_frame,
    decode_payload,
)
from gateway.engine.effects import (
    Answer,
    Closed,
    CloseReason,
    Deliver,
    DropProbe,
    Effect,
    Effects,
    Forget,
    Switch,
    Transport,
    Write,
    WriteProbe,
)
from gateway.engine.options import EngineOptions
from gateway.engine.session import LINGER_S, NOOP_EVERY_S, Session

OPTIONS = EngineOptions(ping_interval_s=25.0, ping_timeout_s=20.0, max_buffer_bytes=1000)
GENERATIONS = pytest.mark.parametrize("generation", [EIO3, EIO4], ids=["3", "4"])


def polling(generation: Generation = EIO4, options: EngineOptions = OPTIONS) -> Session:
    """A session on polling, opened at 0 and admitted, whose OPEN has been taken."""
    session = Session("sid", generation, Transport.POLLING, options, 0.0)
    session.open()
    session.admit()
    assert session.park(0.0) == (True, ())
    taken(session)
    return session


def on_websocket(generation: Generation = EIO4) -> Session:
    session = Session("sid", generation, Transport.WEBSOCKET, OPTIONS, 0.0)
    session.open()
    session.admit()
    return session


def taken(session: Session) -> list[Packet]:
    body, _ = session.take()
    raw = body if isinstance(body, bytes) else body.encode()
    return decode_payload(session.generation, raw, binary=isinstance(body, bytes))


@pytest.mark.parametrize("name", ["codec", "session", "effects", "options"])
def test_core_imports_neither_clock_nor_loop_nor_chance(name: str) -> None:
    (package,) = gateway.engine.__path__
    tree = ast.parse((Path(package) / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"asyncio", "time", "random", "logging", "secrets", "aiohttp"}


# -- heartbeats -------------------------------------------------------------------------------------------


def test_eio4_server_pings_and_waits_for_the_pong() -> None:
    session = on_websocket()
    assert session.deadline == 25.0
    assert session.tick(24.9) == []
    assert session.tick(25.0) == [Write("2")]
    assert session.deadline == 45.0
    assert session.receive(Packet(MESSAGE, "I am alive"), 40.0) == (Deliver("I am alive"),)
    assert session.deadline == 45.0  # which is no pong
    session.receive(Packet(PONG), 44.0)
    assert session.deadline == 69.0
    session.tick(69.0)
    assert session.tick(89.0) == [Closed(CloseReason.PING_TIMEOUT), Forget()]


def test_eio4_who_is_not_read_may_answer_later() -> None:
    """The pong of a device that is slowed down stands behind what it sent before."""
    session = on_websocket()
    session.hold(5.0)
    assert session.deadline == 25.0, "we ping as ever"
    session.tick(25.0)
    session.hold(5.0)
    session.hold(1.0)
    assert session.deadline == 51.0
    session.close(CloseReason.SERVER, 30.0)
    session.hold(5.0)
    assert session.deadline == math.inf


def test_a_late_tick_is_not_charged_to_the_device() -> None:
    session = on_websocket()
    session.tick(60.0)  # the loop was busy for 35 seconds
    assert 79.9 < session.deadline <= 80.0


def test_eio3_answers_pings_and_closes_on_silence() -> None:
    session = on_websocket(EIO3)
    assert session.deadline == 45.0
    assert session.receive(Packet(PING), 40.0) == (Write("3"),)
    assert session.deadline == 85.0
    session.receive(Packet(MESSAGE, "I am alive"), 80.0)  # whatever it says counts
    assert session.tick(124.9) == []
    assert session.tick(125.0) == [Closed(CloseReason.PING_TIMEOUT), Forget()]


# -- what waits -------------------------------------------------------------------------------------------


@GENERATIONS
def test_what_waits_for_a_poll_is_bounded_in_bytes(generation: Generation) -> None:
    session = polling(generation)
    effects: Effects = ()
    sent = 0
    while not effects:
        effects = session.send("x" * 100)
        sent += 1
    assert effects == [Closed(CloseReason.SLOW), Forget()]
    assert sent * 100 < 1000 + 2 * 164
    assert session.send("more") == ()


def test_empty_messages_cost_something_too() -> None:
    session = polling()
    assert any(session.send("") for _ in range(1000))
    assert session.closed is CloseReason.SLOW


def test_a_burst_leaves_in_one_poll() -> None:
    session = polling()
    session.park(1.0)
    assert session.send("1") == (Answer(),)
    session.send("2")
    assert taken(session) == [Packet(MESSAGE, "1"), Packet(MESSAGE, "2")]


# -- the upgrade ------------------------------------------------------------------------------------------


def test_a_probe_releases_the_parked_poll_again_and_again() -> None:
    session = polling()
    session.park(1.0)
    assert session.probe(1.0)
    assert session.receive_probe(Packet(PING, "probe"), 1.0) == (WriteProbe("3probe"),)
    assert session.deadline == 1.0 + NOOP_EVERY_S
    for _ in range(3):
        assert session.tick(session.deadline) == [Answer()]
        assert taken(session) == [Packet(NOOP)]
        session.park(session.deadline)
    assert session.receive_probe(Packet(UPGRADE), 2.0) == [Switch(), Answer()]
    assert taken(session) == [Packet(NOOP)]
    assert session.transport is Transport.WEBSOCKET
    assert session.deadline == 25.0
    assert session.send("hello") == (Write("4hello"),)


def test_a_silent_probe_times_out_and_polling_goes_on() -> None:
    session = polling()
    session.probe(1.0)
    assert not session.probe(2.0)
    assert session.tick(11.0) == [DropProbe()]
    session.send("still here")
    assert session.park(12.0) == (True, ())
    assert taken(session) == [Packet(MESSAGE, "still here")]
    assert session.probe(13.0)


def test_closing_takes_the_probe_along() -> None:
    session = polling()
    session.probe(1.0)
    assert session.close(CloseReason.MALFORMED, 1.0) == [
        DropProbe(),
        Closed(CloseReason.MALFORMED),
        Forget(),
    ]


# -- the end ----------------------------------------------------------------------------------------------


def test_an_orderly_close_waits_for_the_next_poll() -> None:
    session = polling()
    session.send("bye")
    assert session.close(CloseReason.REPLACED, 5.0) == [Closed(CloseReason.REPLACED)]
    assert session.close(CloseReason.CLIENT, 6.0) == ()
    assert session.park(7.0) == (True, ())
    assert taken(session) == [Packet(MESSAGE, "bye"), Packet(CLOSE)]
    assert session.park(8.0) == (False, ())
    assert session.deadline == float("inf")


def test_an_orderly_close_does_not_wait_for_ever() -> None:
    session = polling()
    session.close(CloseReason.SHUTDOWN, 5.0)
    assert session.tick(5.0 + LINGER_S) == (Forget(),)


def test_who_is_not_admitted_is_closed() -> None:
    options = msgspec.structs.replace(OPTIONS, admission_timeout_s=3.0)
    session = Session("sid", EIO4, Transport.WEBSOCKET, options, 0.0)
    assert session.tick(2.9) == []
    assert session.tick(3.0) == [Closed(CloseReason.UNAUTHENTICATED), Forget()]


# -- anything, in any order -------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Messages leave in order, once, by the transport of the moment; one end; nothing after it."""

    @initialize(generation=st.sampled_from([EIO3, EIO4]), transport=st.sampled_from(list(Transport)))
    def open(self, generation: Generation, transport: Transport) -> None:
        self.now = 0.0
        self.session = Session("sid", generation, transport, OPTIONS, self.now)
        self.effects: list[Effect] = []
        self.sent: list[str] = []
        self.received: list[str] = []
        self.parked = self.forgotten = False
        self.apply(self.session.open())

    def apply(self, effects: Effects) -> None:
        for effect in effects:
            assert not self.forgotten or isinstance(effect, Answer)
            self.effects.append(effect)
            match effect:
                case Write(frame=frame):
                    assert self.session.transport is Transport.WEBSOCKET
                    self.note(decode_frame(self.session.generation, frame))
                case Answer():
                    assert self.parked
                    self.take()
                case Forget():
                    self.forgotten = True

    def note(self, packet: Packet) -> None:
        if packet.kind == MESSAGE:
            self.received.append(str(packet.data))
        assert packet.kind != OPEN or not self.received

    def take(self) -> None:
        self.parked = False
        body, effects = self.session.take()
        raw = body if isinstance(body, bytes) else body.encode()
        for packet in decode_payload(self.session.generation, raw, binary=isinstance(body, bytes)):
            self.note(packet)
        self.apply(effects)

    @rule()
    def admit(self) -> None:
        self.session.admit()

    @rule(size=st.sampled_from([1, 300]))
    def send(self, size: int) -> None:
        message = str(len(self.sent)).ljust(size, ".")
        if self.session.closed is None:
            self.sent.append(message)
        self.apply(self.session.send(message))

    @rule()
    def poll(self) -> None:
        may_wait, effects = self.session.park(self.now)
        self.parked = self.parked or may_wait
        self.apply(effects)
        if self.parked and self.session.has_waiting:
            self.take()

    @rule(kind=st.sampled_from([OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP]))
    def receive(self, kind: str) -> None:
        self.apply(self.session.receive(Packet(kind, "x"), self.now))

    @rule()
    def probe(self) -> None:
        self.session.probe(self.now)

    @precondition(lambda self: self.session.probing)
    @rule(packet=st.sampled_from([Packet(PING, "probe"), Packet(UPGRADE), Packet(MESSAGE, "x")]))
    def receive_probe(self, packet: Packet) -> None:
        self.apply(self.session.receive_probe(packet, self.now))

    @rule(reason=st.sampled_from(list(CloseReason)))
    def close(self, reason: CloseReason) -> None:
        self.apply(self.session.close(reason, self.now))

    @precondition(lambda self: self.session.deadline < float("inf"))
    @rule()
    def wait(self) -> None:
        self.now = max(self.now, self.session.deadline)
        self.apply(self.session.tick(self.now))
        assert self.session.deadline > self.now

    @rule()
    def tick_early(self) -> None:
        if self.session.deadline > self.now:
            assert not self.session.tick(self.now)

    @invariant()
    def promises(self) -> None:
        ends = [effect for effect in self.effects if isinstance(effect, Closed)]
        assert len(ends) == (self.session.closed is not None)
        assert self.received == self.sent[: len(self.received)]
        assert (self.session.deadline == float("inf")) == (self.forgotten and self.session.closed is not None)
        if self.session.transport is Transport.WEBSOCKET:
            assert self.received == self.sent
        elif self.session.closed is None:
            assert sum(map(len, self.sent[len(self.received) :])) <= OPTIONS.max_buffer_bytes + 300


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
