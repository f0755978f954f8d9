"""What a device's edge adds to its session: here, turns."""

from typing import Any

from gateway import facts as f
from gateway.addresses import BrokerUrl
from gateway.bodies import Client, Life
from gateway.catalog import Catalog
from gateway.commands import CommandReader, Policy
from gateway.device import Device
from gateway.limits import Budget, Limits, Pace, Shared
from gateway.metrics import Metrics
from gateway.mqtt import Backoff, Credentials
from gateway.mqtt.link import link_alarms
from gateway.surroundings import LinkSettings, Surroundings
from gateway.topics import Topics

CATALOG = Catalog()
TOPICS = Topics("gw/v1")


class Sockets:
    """Takes note of what is emitted."""

    def __init__(self) -> None:
        self.emitted: list[tuple[int, str]] = []

    def emit(self, socket: int, event: str, args: Any = (), emit_id: int | None = None) -> None:
        self.emitted.append((socket, event))

    def close(self, socket: int, reason: str) -> None:
        pass


class Socket:
    """An authenticated socket."""

    client = Client(4, "websocket", "127.0.0.1")

    def __init__(self, number: int) -> None:
        self.number = number


class Quiet:
    """A node that nobody listens to."""

    displaced = False

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


def surroundings(sockets: Sockets, replays: Pace, port: int = 1) -> Surroundings:
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
        sockets=sockets,  # type: ignore[arg-type]
        node_link=Quiet(),
        metrics=Metrics(),
    )


def make(sockets: Sockets, replays: Pace) -> Device:
    return Device("AC1", Credentials(), surroundings(sockets, replays), lambda _: None)


def hold(device: Device) -> None:
    device.handle(f.Command("a", CATALOG["bind_class"], (), f.Answer("gw/v1/x"), 1, 60.0, 10.0, 1))


async def test_held_commands_wait_for_their_turn_where_others_come_first() -> None:
    sockets, pace = Sockets(), Pace(per_s=0.001)
    first, second, idle = (make(sockets, pace) for _ in range(3))
    hold(first)
    hold(second)
    first.attach(Socket(1))  # type: ignore[arg-type]
    assert sockets.emitted == [(1, "bind_class")]
    second.attach(Socket(2))  # type: ignore[arg-type]
    assert sockets.emitted == [(1, "bind_class")]
    idle.attach(Socket(3))  # type: ignore[arg-type]
    hold(idle)
    assert sockets.emitted[1:] == [(3, "bind_class")], "it had nothing to wait for"
    second._release(99)
    assert len(sockets.emitted) == 2, "the turn of a socket that is gone"
    second._release(2)
    assert sockets.emitted[2:] == [(2, "bind_class")]
    for device in (first, second, idle):
        await device.close()
