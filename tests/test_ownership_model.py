"""A model of two nodes, a broker and one device that roams: packets are read in any order, links break, nodes die.

The sessions are the real ones, byte for byte; the broker does what MQTT 5 says of one persistent session.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

import mqtt5
import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway import facts as f
from gateway import is_compiled
from gateway.bodies import Client, Life, Outcome, Presence
from gateway.catalog import Catalog
from gateway.commands import CommandReader, Policy
from gateway.limits import Limits, Shared
from gateway.mqtt.session import MqttSession
from gateway.mqtt.values import (
    Credentials,
    Event,
    Opened,
    Options,
    Published,
    Received,
    Settled,
    Subscribed,
    Subscription,
)
from gateway.mqtt.wire import read_connack
from gateway.session import DeviceSession
from gateway.topics import Topics

CATALOG = Catalog()
TOPICS = Topics("gw/v1")
READER = CommandReader(TOPICS, CATALOG, Policy(), "unnamed")
OPTIONS = Options("AC1", (Subscription(TOPICS.commands_filter("AC1")),), session_expiry_s=60)
NODES = st.sampled_from([0, 1])
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Connection:
    """What was written, each way, and not read yet; once cut, nothing more is read by the broker."""

    def __init__(self) -> None:
        self.up = b""
        self.down = b""
        self.cut = False


class Broker:
    """One persistent session, and what is published to its topics."""

    def __init__(self) -> None:
        self.current: Connection | None = None
        self.subscribed = False
        self.waiting: list[tuple[str, bytes]] = []
        self.in_flight: dict[int, tuple[str, bytes]] = {}
        self.last_id = 0
        self.presence: Presence | None = None
        self.finals: list[Outcome] = []

    def read(self, connection: Connection) -> None:
        data, connection.up = connection.up, b""
        while data and not connection.cut:
            packet, size = mqtt5.read(memoryview(data))
            data = data[size:]
            self._handle(connection, packet)

    def _handle(self, connection: Connection, packet: object) -> None:
        match packet:
            case mqtt5.ConnectPacket():
                if self.current is not None:
                    self.current.cut = True
                self.current = connection
                connection.down += mqtt5.ConnAckPacket(session_present=self.subscribed).write()
                for id, message in self.in_flight.items():
                    self._write(id, message, duplicate=True)
            case mqtt5.SubscribePacket():
                self.subscribed = True
                granted = [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]
                connection.down += mqtt5.SubAckPacket(packet.packet_id, granted).write()
                self._deliver()
            case mqtt5.PublishPacket():
                connection.down += mqtt5.PubAckPacket(packet.packet_id or 0).write()
                self.publish(packet.topic, bytes(packet.payload))
            case mqtt5.PubAckPacket():
                topic, _ = self.in_flight.pop(packet.packet_id, ("", b""))
                _, event, name = topic.rsplit("/", 2) if topic else ("", "", "")
                answered = any(outcome.id == name for outcome in self.finals)
                assert not topic or answered or CATALOG[event].at_most_once, "a PUBACK before the outcome"
            case mqtt5.PingReqPacket():
                connection.down += mqtt5.PingRespPacket().write()

    def publish(self, topic: str, payload: bytes) -> None:
        if topic == TOPICS.presence("AC1"):
            self.presence = msgspec.json.decode(payload, type=Presence)
            return
        outcome = msgspec.json.decode(payload, type=Outcome)
        if outcome.final and not outcome.late:
            self.finals.append(outcome)

    def take(self, topic: str, payload: bytes) -> None:
        self.waiting.append((topic, payload))
        self._deliver()

    def _deliver(self) -> None:
        while self.waiting and self.current is not None and self.subscribed:
            self.last_id += 1
            self.in_flight[self.last_id] = message = self.waiting.pop(0)
            self._write(self.last_id, message, duplicate=False)

    def _write(self, id: int, message: tuple[str, bytes], *, duplicate: bool) -> None:
        assert self.current is not None
        qos = mqtt5.QoS.AT_LEAST_ONCE
        self.current.down += mqtt5.PublishPacket(*message, qos=qos, packet_id=id, duplicate=duplicate).write()


class Owner:
    """What one node has of the device, as `gateway.device` drives it: its session, its link, its socket."""

    def __init__(self, life: Life, model: "OwnershipMachine") -> None:
        self.life = life
        self.model = model
        self.session = DeviceSession("AC1", life, TOPICS, CATALOG, Limits(), Shared(100, 10_000), "n")
        self.mqtt = MqttSession(OPTIONS)
        self.connection: Connection | None = None
        self.open = self.given_up = False
        self.wants_socket: int | None = None
        self.socket: int | None = None
        self.unacked: list[int] = []

    def connect(self) -> None:
        self.connection = Connection()
        self.connection.up += self.mqtt.opening(Credentials())

    def handle(self, fact: f.Fact) -> None:
        for effect in self.session.handle(fact, self.model.now):
            match effect:
                case f.Publish():
                    self.model.said(self.life, effect.outcome)
                    if self.given_up:  # the node's own link says it
                        self.model.broker.publish(effect.message.topic, effect.message.payload)
                    else:
                        self.mqtt.publish(effect.message, effect.token, effect.droppable, effect.settles)
                case f.Puback():
                    self.mqtt.puback(effect.delivery, confirm=effect.confirm)
                case f.Emit():
                    self.unacked.append(effect.emit_id)
                    self.model.emitted(self.life, effect)
                case f.Drop() if effect.socket == self.socket:
                    self.socket = None
        self.flush()

    def flush(self) -> None:
        if self.open and self.connection is not None and self.mqtt.has_output:
            self.connection.up += self.mqtt.output(self.model.now)

    def attach(self) -> None:
        if self.open and self.wants_socket is not None:
            self.socket, self.wants_socket = self.wants_socket, None
            self.unacked.clear()
            self.handle(f.Attached(self.socket, Client(4, "websocket", ""), self.model.at))

    def read(self) -> None:
        """Read what the broker wrote; then notice that the connection was cut."""
        connection = self.connection
        if connection is None:
            return
        data, connection.down = connection.down, b""
        if data and not self.open:
            read = read_connack(data)
            assert read is not None
            connack, size = read
            self.open = True
            self.events(self.mqtt.opened(connack, self.model.now))
            data = data[size:]
        if data:
            self.events(self.mqtt.receive(data))
        if connection.cut:
            self.connection = None
            self.mqtt.closed()
            if self.open:
                self.open = False
                self.handle(f.LinkLost())

    def events(self, events: list[Event]) -> None:
        for event in [*events, *self.mqtt.take_events()]:
            match event:
                case Received():
                    read = READER.read("AC1", event.message, event.delivery, event.duplicate, BEGINNING.timestamp)
                    assert isinstance(read, f.Command)
                    self.handle(read)
                case Settled():
                    self.handle(f.Settled(event.delivery))
                case Published(token=token) if token is not None:
                    self.handle(f.Published(token, event.code))
                case Subscribed():
                    self.attach()
                case Opened():
                    self.handle(f.LinkOpened(event.session_present))
        self.flush()
        if self.mqtt.has_events:
            self.events([])


class OwnershipMachine(RuleBasedStateMachine):
    """One device that comes to either node, and commands for it."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.now = 0.0
        self.lives = 0
        self.owners: list[Owner | None] = [None, None]
        self.commands: dict[str, str] = {}  # id → event
        self.emissions: Counter[str] = Counter()
        self.order: list[tuple[int, Life]] = []  # of the first emissions
        self.finals: dict[tuple[Life, str], set[str]] = {}
        self.sockets = 0
        self.killed = False

    @property
    def at(self) -> str:
        return (BEGINNING + timedelta(seconds=self.now)).isoformat(timespec="milliseconds")

    # what nodes do

    def emitted(self, life: Life, effect: f.Emit) -> None:
        (number,) = (msgspec.json.decode(arg)["id"] for arg in effect.command.args)
        name = str(number)
        self.emissions[name] += 1
        if self.emissions[name] == 1:
            self.order.append((number, life))
        if CATALOG[self.commands[name]].at_most_once:
            assert self.emissions[name] == 1, "emitted twice, and it does harm"

    def said(self, life: Life, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.final and not outcome.late:
            said = self.finals.setdefault((life, outcome.id), set())
            said.add(outcome.status)
            assert len(said) == 1, "one owner, two final outcomes"

    # what happens

    @precondition(lambda self: self.broker.subscribed)
    @rule(event=st.sampled_from(["bind_class", "bind_class", "mystery", "restart_us"]))
    def command(self, event: str) -> None:
        name = str(len(self.commands) + 1)
        self.commands[name] = event
        self.broker.take(TOPICS.command("AC1", event, name), b'{"id":%d}' % len(self.commands))

    @rule(node=NODES)
    def broker_reads(self, node: int) -> None:
        owner = self.owners[node]
        if owner is not None and owner.connection is not None:
            self.broker.read(owner.connection)

    @rule(node=NODES)
    def node_reads(self, node: int) -> None:
        owner = self.owners[node]
        if owner is not None:
            owner.read()

    @rule(node=NODES)
    def come(self, node: int) -> None:
        """The device authenticates at a node; what it had elsewhere stays until that node notices."""
        self.now += 0.01
        self.sockets += 1
        self.reconnect(node)
        owner = self.owners[node]
        if owner is None:
            self.lives += 1
            owner = self.owners[node] = Owner(Life(f"gw-{node}", f"2026-{self.lives:06}"), self)
            owner.connect()
        owner.wants_socket = self.sockets
        owner.attach()

    @rule(node=NODES)
    def go_over(self, node: int) -> None:
        """The device comes to a node, which has it before the other has noticed."""
        self.come(node)
        for _ in range(2):
            self.broker_reads(node)
            self.node_reads(node)

    @rule(node=NODES)
    def reconnect(self, node: int) -> None:
        """A link that was cut connects again, unless another has the device by now.

        Nobody comes between the question and the CONNECT: that takes less than a millisecond, and the README tells.
        """
        owner = self.owners[node]
        if owner is None or owner.connection is not None:
            return
        theirs, ours = self.broker.presence, owner.session.presence or Presence(False, owner.life.node)
        if theirs is not None and theirs.is_newer_than(ours, owner.life):
            owner.given_up = True
            owner.handle(f.Moved())
            self.owners[node] = None
        else:
            owner.connect()
            self.broker_reads(node)

    @rule(node=NODES, which=st.integers(0, 3))
    def ack(self, node: int, which: int) -> None:
        owner = self.owners[node]
        if owner is not None and owner.socket is not None and owner.unacked:
            emit_id = owner.unacked.pop(which % len(owner.unacked))
            owner.handle(f.Acked(owner.socket, emit_id, ({"ack": True},)))

    @rule(node=NODES)
    def lose(self, node: int) -> None:
        owner = self.owners[node]
        if owner is not None and owner.socket is not None:
            self.now += 0.01
            socket, owner.socket = owner.socket, None
            owner.handle(f.Lost(socket, "client", self.at))

    @rule(node=NODES)
    def break_link(self, node: int) -> None:
        owner = self.owners[node]
        if owner is not None and owner.connection is not None:
            self.cut(owner.connection)

    def cut(self, connection: Connection) -> None:
        connection.cut = True
        if self.broker.current is connection:
            self.broker.current = None

    @rule(node=NODES)
    def kill(self, node: int) -> None:
        owner = self.owners[node]
        if owner is not None:
            self.killed = True
            self.owners[node] = None
            if owner.connection is not None:
                self.cut(owner.connection)

    @rule()
    def tick(self) -> None:
        self.now += 4.0
        for owner in self.owners:
            if owner is not None:
                owner.handle(f.Ticked())

    # what always holds

    @invariant()
    def commands_are_first_emitted_in_the_order_of_publication(self) -> None:
        """Also across nodes, but for what must not repeat.

        That may be settled, and not yet emitted, when the device goes to another node and back: nobody else emits it.
        """
        repeatable = [number for number, _ in self.order if not CATALOG[self.commands[str(number)]].at_most_once]
        assert repeatable == sorted(repeatable)
        for life in {life for _, life in self.order}:
            numbers = [number for number, emitter in self.order if emitter == life]
            assert numbers == sorted(numbers)

    def teardown(self) -> None:
        """Come to rest at the first node, which reads everything; the device acks everything."""
        if not self.commands:
            return
        for _ in range(8):
            self.come(0)
            for _ in range(20 + 4 * len(self.commands)):
                for node in (0, 1):
                    self.broker_reads(node)
                    self.node_reads(node)
                self.ack(0, 0)
            self.reconnect(1)  # it asks later than another speaks
        answered = {outcome.id for outcome in self.broker.finals}
        owed = {id for id, event in self.commands.items() if not (self.killed and CATALOG[event].at_most_once)}
        assert owed <= answered, f"no final outcome: {owed - answered}"
        assert not self.broker.in_flight
        assert not self.broker.waiting
        assert self.broker.presence is not None
        assert (self.broker.presence.online, self.broker.presence.node) == (True, "gw-0")


OwnershipMachine.TestCase.settings = settings(
    max_examples=1000 if is_compiled() else 300,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
)
TestOwnership = OwnershipMachine.TestCase
