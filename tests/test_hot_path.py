"""What one command, one event and one idle device may cost, in things that can be counted on any machine.

Seconds are for `python -m tests.bench`. Here a real gateway in this process serves raw devices, on a real broker.
The numbers are exact: who makes the road shorter lowers them.
"""

import asyncio
import gc
import sys
import tracemalloc
from asyncio.selector_events import _SelectorSocketTransport as Transport  # type: ignore[attr-defined]
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType, SimpleNamespace
from typing import Any

import aiohttp
import mqtt5
import msgspec
import pytest
import socketio

import gateway
from gateway import edge_metrics, instruments, session_metrics
from gateway.alarms import Alarms
from gateway.app import Gateway
from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.config import resolve
from gateway.engine.connection import Connection as Socket
from gateway.engine.websocket import WebSocket
from gateway.mqtt.connection import Connection
from gateway.mqtt.link import Link
from tests.bench.contenders import UNLIMITED, Running, Timers
from tests.bench.fleet import CONCURRENCY, PAYLOAD, Fleet, connect_service
from tests.bench.workloads import ROOM_PAYLOAD, Commands, Events, room_events
from tests.clients.install import missing

COMMANDS = 100
GATEWAY = str(Path(gateway.__file__).parent)
CALLS = 176  # of functions of the gateway for a command, properties and constructors among them
COUNTING = {module.__file__ for module in (session_metrics, edge_metrics, instruments)}
HEARTBEAT_CALLS = 32  # of functions: the look at the deadline, PING, PONG, the look whether it has come
KEEP_ALIVE_CALLS = 34  # PINGREQ, PINGRESP, the look whether it has come
IDLE_BYTES = 11_500  # of gateway, aiohttp and socketio for one idle device; the transports and the kernel's come on top
SLACK_BLOCKS = COMMANDS // 2  # what the machinery around may keep: less than one block a command
WAIT_S = 20.0
NEVER_S = 3600


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    try:
        async with local_broker("mosquitto", tmp_path) as running:
            yield running
    except BrokerUnavailable as problem:
        missing(str(problem))


class World:
    """A gateway in this process, its devices and a service."""

    def __init__(self, node: Gateway, service: Any) -> None:
        self.fleet = Fleet(Running(1, int(node.device_url.rpartition(":")[2])), Timers())
        self.service = service
        self.devices = node._devices
        self.instruments = node._devices._around.metrics.instruments

    async def commands(self, count: int) -> None:
        """Send commands, a few at a time, and wait for their outcomes."""
        commands = Commands(self.service, len(self.fleet))
        for _ in range(count // len(self.fleet)):
            commands.saturate(len(self.fleet))
            await commands.finish()
        assert (commands.done, commands.wrong) == (count, 0)

    def count(self) -> None:
        """Have the histograms count what waits."""
        list(self.instruments.collect())

    async def answered(self) -> None:
        """Wait until the broker has answered for all that was published: it may hand outcomes on before."""
        for device in self.devices:
            link = device.link
            assert link is not None
            assert link._current is not None
            await link._drain(link._current, WAIT_S)

    async def events(self, count: int) -> None:
        """Let devices emit events, and wait until the service has them."""
        events = Events(self.service, self.fleet)
        for _ in range(count // len(self.fleet)):
            events._refill = False
            events.saturate(len(self.fleet))
            await events.finish()
        assert events.done == count


@pytest.fixture
async def world(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world in which nothing happens but what a test does: no heartbeat, no beat, no status, no look for orphans."""
    monkeypatch.setattr("gateway.pulse.BEAT_S", NEVER_S)
    monkeypatch.setattr("gateway.node.STATUS_EVERY_S", NEVER_S)
    monkeypatch.setattr("gateway.node.CENSUS_PAUSE_S", 0.05)
    quiet: dict[str, Any] = {"devices.ping_interval_s": NEVER_S, "mqtt.keep_alive_s": NEVER_S}
    listen = {"devices.listen": "127.0.0.1:0", "admin.listen": "127.0.0.1:0"}
    node = Gateway(resolve({}, UNLIMITED, {"auth.mode": "open", "mqtt.url": broker.url} | listen | quiet))
    await node.start()
    await asyncio.wait({task for task in asyncio.all_tasks() if task.get_name() == "adopt"})
    world = World(node, await connect_service(broker.url))
    yield world
    world.fleet.close()
    world.service.close()
    await node.stop()


class Counts(Counter[str]):
    """What is counted while a test runs its workload."""

    def begin(self) -> None:
        """Count from here on."""
        asyncio.get_running_loop().set_task_factory(self.task)  # type: ignore[arg-type]
        self.clear()

    def task(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **more: Any) -> Any:
        self["tasks"] += 1
        return asyncio.Task(coroutine, loop=loop, **more)

    def written(self, transport: Any, data: bytes) -> None:
        """Note a write of the gateway: to a device, or to the broker, and then which packets it holds."""
        protocol = transport.get_protocol()
        if isinstance(protocol, WebSocket):
            self["writes to devices"] += 1
        elif isinstance(protocol, Connection):
            self["writes to the broker"] += 1
            while data:
                packet, size = mqtt5.read(memoryview(data))
                self[type(packet).__name__] += 1
                data = data[size:]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts tasks, writes, MQTT packets and what is encoded and decoded as JSON."""
    counts = Counts()
    write, encode, decode = Transport.write, msgspec.json.encode, msgspec.json.decode

    def counting_write(self: Any, data: bytes) -> None:
        counts.written(self, data)
        write(self, data)

    def counting_encode(*args: Any, **more: Any) -> bytes:
        counts["encoded"] += 1
        return encode(*args, **more)

    def counting_decode(*args: Any, **more: Any) -> Any:
        counts["decoded"] += 1
        return decode(*args, **more)

    monkeypatch.setattr(Transport, "write", counting_write)
    monkeypatch.setattr(msgspec.json, "encode", counting_encode)
    monkeypatch.setattr(msgspec.json, "decode", counting_decode)
    return counts


async def test_a_command_takes_no_task_and_one_write_each_way(world: World, counts: Counts) -> None:
    await world.fleet.connect(10)
    await world.commands(20)
    counts.begin()
    await world.commands(COMMANDS)
    assert counts == {
        "writes to devices": COMMANDS,
        "writes to the broker": COMMANDS,  # the outcome with the PUBACK of the command
        "PublishPacket": COMMANDS,
        "PubAckPacket": COMMANDS,
        "encoded": COMMANDS,  # the outcome; the event for the device has the payload as it is
        "decoded": COMMANDS,  # the ack; the payload is checked by a decoder of its type, and passed on as it is
    }


@pytest.mark.skipif(gateway.is_compiled(), reason="compiled functions are no calls of Python")
async def test_a_command_takes_176_calls_of_which_metrics_take_ten(world: World) -> None:
    """Three steps of its session, and the PUBACK of its outcome; what they observe is counted later."""
    await world.fleet.connect(10)
    await world.commands(20)
    await world.answered()
    calls: Counter[str] = Counter()
    every = 0

    def count(frame: FrameType, what: str, _: object) -> None:
        nonlocal every
        if what == "call" and frame.f_code.co_filename.startswith(GATEWAY):
            every += 1
            if frame.f_code.co_filename in COUNTING:
                calls[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        await world.commands(COMMANDS)
        await world.answered()
    finally:
        sys.setprofile(None)
    assert calls == {
        "SessionMetrics.observe": 3 * COMMANDS,
        "SessionMetrics.done": 2 * COMMANDS,
        "LinkMetrics.published": COMMANDS,
        "Histogram.observe": 4 * COMMANDS,
    }
    assert every <= CALLS * COMMANDS


async def test_a_connect_takes_two_tasks_three_writes_to_the_device_and_two_to_the_broker(
    world: World, counts: Counts
) -> None:
    await world.fleet.connect(1)
    counts.begin()
    await world.fleet.connect(11)
    assert counts["writes to devices"] == 3 * 10  # the answer to the handshake with OPEN; CONNECT; auth:ok
    assert counts["writes to the broker"] == 2 * 10  # CONNECT with SUBSCRIBE; presence
    assert counts["ConnectPacket"] == counts["SubscribePacket"] == counts["PublishPacket"] == 10
    assert counts["tasks"] == CONCURRENCY + 3 * 10  # the fleet's; asyncio accepts, one authenticates, one links


async def test_an_event_of_a_device_takes_no_task_and_one_write(world: World, counts: Counts) -> None:
    await world.fleet.connect(10)
    await world.events(20)
    counts.begin()
    await world.events(COMMANDS)
    assert counts == {
        "writes to the broker": COMMANDS,
        "PublishPacket": COMMANDS,
        "encoded": COMMANDS,
        "decoded": COMMANDS,
    }


async def test_an_event_for_a_room_is_encoded_once_and_written_once_for_each(world: World, counts: Counts) -> None:
    await world.fleet.connect(10)
    await world.fleet.join()
    await room_events(world.service, world.fleet, 0.0)  # the first of its name has that encoded
    counts.begin()
    with calls() as made:
        (_,) = await room_events(world.service, world.fleet, 0.0)
    assert counts["writes to devices"] == 10
    assert counts["encoded"] == 0  # it has the payload as it is
    assert gateway.is_compiled() or made["encode_event"] == made["framed"] == 1
    assert counts["PubAckPacket"] == 1


def blocks() -> int:
    """Blocks of memory that Python has allocated, without garbage."""
    gc.collect()
    return sys.getallocatedblocks()


async def test_commands_that_are_done_leave_nothing(world: World) -> None:
    """What is remembered is bounded: once that is full, more commands take no more memory."""
    await world.fleet.connect(1)
    await world.commands(3 * COMMANDS)
    world.count()
    before = blocks()
    await world.commands(COMMANDS)
    world.count()
    assert blocks() - before < SLACK_BLOCKS


async def test_an_idle_device_takes_no_task_and_little_memory(world: World) -> None:
    """Its link wakes for its keep-alive; heartbeats of sockets are on one wheel for all."""
    await world.fleet.connect(10)
    gc.collect()
    tracemalloc.start()
    try:
        before = idle()
        await world.fleet.connect(60)
        await world.commands(60)  # what a first command makes, and keeps for the next
        world.count()
        gc.collect()
        taken = SimpleNamespace(**{name: (value - before[name]) / 50 for name, value in idle().items()})
        taken.bytes = allocated((gateway, aiohttp, socketio)) / 50
    finally:
        tracemalloc.stop()
    assert taken.tasks == 0
    assert taken.timers < 2  # one of a command that is done may still stand
    assert taken.bytes < IDLE_BYTES


async def test_heartbeats_and_keep_alives_are_cheap(world: World) -> None:
    """One timer is there for all sockets and one for all links, and what they do takes few calls of functions."""
    await world.fleet.connect(10)
    sockets, links = alarms(Socket), alarms(Link)
    assert (len(sockets), len(links)) == (10, 11)  # the node has a link of its own
    await until(lambda: all(link._session.all_published for link in links))
    with calls() as made:
        for socket in sockets:
            socket.session._heartbeat_at = monotonic()
            socket.tick(monotonic())
        await until(lambda: not any(socket.session._awaits_pong for socket in sockets))
        for socket in sockets:
            socket.tick(monotonic())
    assert each(made, 10) <= HEARTBEAT_CALLS, made
    with calls() as made:
        for link in links:
            link._session._sent_at -= NEVER_S
            link.tick(monotonic())
        await until(lambda: all(link._session._pinged_at is None for link in links))
        for link in links:
            link.tick(monotonic())
    assert each(made, 11) <= KEEP_ALIVE_CALLS, made


def each(made: Counter[str], count: int) -> float:
    """How many calls were made for each of so many, beside those that are made once for all."""
    return sum(calls for calls in made.values() if calls >= count) / count


def alarms(kind: type[Any]) -> list[Any]:
    """What the one timer for all items of a kind is set for."""
    loop: Any = asyncio.get_running_loop()
    owners = [getattr(timer._callback, "__self__", None) for timer in loop._scheduled if not timer.cancelled()]
    (items,) = [
        list(owner._wheel._due)
        for owner in owners
        if isinstance(owner, Alarms) and any(isinstance(item, kind) for item in owner._wheel._due)
    ]
    return items


async def until(done: Callable[[], bool]) -> None:
    """Let the event loop turn until something is done."""
    async with asyncio.timeout(WAIT_S):
        while not done():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


@contextmanager
def calls() -> Iterator[Counter[str]]:
    """Counts the calls of our functions by their names."""
    made: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(GATEWAY):
            made[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        yield made
    finally:
        sys.setprofile(None)


def idle() -> dict[str, int]:
    """How many tasks there are, and timers that are set."""
    loop: Any = asyncio.get_running_loop()
    return {"tasks": len(asyncio.all_tasks()), "timers": sum(not timer.cancelled() for timer in loop._scheduled)}


def allocated(packages: Iterable[Any]) -> int:
    """Bytes that were allocated by lines of some packages since tracemalloc started, and are still there."""
    patterns = [f"{Path(package.__file__).parent}/*" for package in packages]
    filters = [tracemalloc.Filter(True, pattern) for pattern in patterns]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(filters).traces)


def test_the_payload_has_the_size_that_the_bench_names() -> None:
    assert len(PAYLOAD) == len(ROOM_PAYLOAD) == 200
