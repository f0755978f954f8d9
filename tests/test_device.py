"""What a device's edge adds to its session: here, turns."""

from dataclasses import replace
from typing import Any

from gateway import facts as f
from gateway.addresses import BrokerUrl
from gateway.admission import Admission
from gateway.bodies import Life, Presence
from gateway.catalog import Catalog
from gateway.commands import CommandReader, Policy
from gateway.device import Device
from gateway.engine.codec import EIO4, SEPARATOR
from gateway.engine.connection import Connection
from gateway.engine.effects import Transport
from gateway.engine.options import EngineOptions
from gateway.engine.session import Session
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.metrics import Metrics
from gateway.mqtt.link import link_alarms
from gateway.mqtt.values import Backoff, Credentials, Message
from gateway.proxies import Proxies
from gateway.sockets import Socket, SocketServer
from gateway.surroundings import LinkSettings, Surroundings
from gateway.topics import Topics

CATALOG = Catalog()
TOPICS = Topics("gw/v1")


class Quiet:
    """A node that nobody listens to."""

    displaced = False

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class Peers:
    """The sockets of devices that poll: what is emitted to one waits for its poll."""

    def __init__(self) -> None:
        self.sockets = SocketServer(Quiet(), EngineOptions(), "socket.io", Admission(), Proxies())
        self.here: list[Socket] = []

    def connect(self) -> Socket:
        """A socket that has joined."""
        session = Session(f"sid{len(self.here)}", EIO4, Transport.POLLING, EngineOptions(), 0.0)
        connection = Connection(self.sockets._server.engine, session, {})
        self.sockets.join(connection, None)
        session.park(0.0)
        session.take()  # that it has joined
        socket = connection.peer
        assert isinstance(socket, Socket)
        self.here.append(socket)
        return socket

    def emitted(self) -> list[tuple[int, str]]:
        """What was emitted since the last time, and to whom."""
        found = []
        for socket in self.here:
            session = socket.connection.session
            if session.has_waiting:
                session.park(0.0)
                body, _ = session.take()
                found += [
                    (socket.number, packet[packet.index('["') + 2 : packet.index('"]')])
                    for packet in str(body).split(SEPARATOR)
                ]
        return found


def surroundings(sockets: SocketServer, replays: Pace, port: int = 1) -> Surroundings:
    """Those of a node gw-1 whose broker is at a port of this machine."""
    links = LinkSettings(
        BrokerUrl(host="127.0.0.1", port=port), link_alarms(), None, Backoff(1, 1), 1.0, 60, 60, 128, 5
    )
    return Surroundings(
        life=Life("gw-1", "2026"),
        topics=TOPICS,
        catalog=CATALOG,
        reader=CommandReader(TOPICS, CATALOG, Policy(), "id"),
        limits=Limits(),
        shared=Shared(100, 100),
        waiting_bytes=Budget(100),
        replays=replays,
        links=links,
        sockets=sockets,
        node_link=Quiet(),
        metrics=Metrics(),
    )


def make(sockets: SocketServer, replays: Pace) -> Device:
    return Device("AC1", Credentials(), surroundings(sockets, replays), lambda _: None)


def hold(device: Device) -> None:
    device.handle(f.Command("a", CATALOG["bind_class"], (), f.Answer("gw/v1/x"), 1, 60.0, 10.0, 1))


async def test_held_commands_wait_for_their_turn_where_others_come_first() -> None:
    peers, pace = Peers(), Pace(per_s=0.001)
    first, second, idle = (make(peers.sockets, pace) for _ in range(3))
    hold(first)
    hold(second)
    first.attach(peers.connect())
    assert peers.emitted() == [(1, "bind_class")]
    second.attach(peers.connect())
    assert peers.emitted() == []
    idle.attach(peers.connect())
    hold(idle)
    assert peers.emitted() == [(3, "bind_class")], "it had nothing to wait for"
    second._release(99)
    assert peers.emitted() == [], "the turn of a socket that is gone"
    second._release(2)
    assert peers.emitted() == [(2, "bind_class")]
    for device in (first, second, idle):
        await device.close()


async def test_a_link_that_was_cut_gives_way_to_who_speaks_for_the_device() -> None:
    """By the retained presence, which is asked for after a second or two."""

    class Elsewhere(Quiet):
        async def presence(self, serial: str) -> Presence:
            return Presence(True, "gw-2", since="2026-01-01T00:00:00.000+00:00", started="2026")

    peers = Peers()
    around = surroundings(peers.sockets, Pace(per_s=1.0))
    around = replace(around, node_link=Elsewhere())
    device = Device("AC1", Credentials(), around, lambda _: None)
    assert not await device._may_reconnect()


async def test_an_outcome_that_is_refused_while_the_link_closes_is_said_once_more_by_the_node() -> None:
    class Node(Quiet):
        def __init__(self) -> None:
            self.said: list[str] = []

        def publish(self, message: Message, *, droppable: bool = False) -> None:
            self.said.append(message.topic)

    peers, node = Peers(), Node()
    around = replace(surroundings(peers.sockets, Pace(per_s=1.0)), node_link=node)
    device = Device("AC1", Credentials(), around, lambda _: None)
    device.attach(peers.connect())
    hold(device)
    device.handle(f.Acked(1, 1, ({"ack": True},)))
    link, device.link = device.link, None
    assert link is not None
    device.handle(f.Published(1, 0x87))
    device._hand_over(link)
    assert node.said == ["gw/v1/x"]
    await link.close()
