"""Those who live through the chaos: devices, a service, and nodes that go down and come up again.

Each writes down what happened to it; what that means is judged in `chaos_tally`.
"""

import asyncio
import base64
import json
import math
import random
import socket
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import aiomqtt
import msgspec
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.e2e.world import PATH, WAIT_S, Node, gateway

HARMFUL: Final = "restart_device"
ABSENCES_S: Final = (0.0, 0.1, 0.5, 3.0)  # of a device that lost its connection
SESSION_S: Final = 3600  # the service's own session: the broker keeps its outcomes while it is away


class Outcome(msgspec.Struct, frozen=True):
    """An outcome as the service received it; `life` counts the starts of the node."""

    at: float
    status: str
    final: bool
    late: bool
    node: str
    life: int


class Reception(msgspec.Struct, frozen=True):
    """A command as a device received it; `stay` counts the device's connections."""

    id: int
    at: float
    node: str
    life: int
    stay: int


class Stay(msgspec.Struct):
    """A connection of a device to a node, and when that welcomed it as the device, if ever."""

    at: float
    node: str
    life: int
    welcomed_at: float = math.inf


class Command(msgspec.Struct):
    """A command, and what became of it; ids grow in the order of publication."""

    id: int
    serial: str
    event: str
    qos: int
    expiry_s: int | None
    published_at: float
    confirmed_at: float | None = None  # when its PUBACK came
    receptions: list[Reception] = msgspec.field(default_factory=list)
    outcomes: list[Outcome] = msgspec.field(default_factory=list)

    @property
    def at_most_once(self) -> bool:
        return not self.qos or self.event == HARMFUL

    @property
    def finals(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.final and not outcome.late]


class Box:
    """A machine that runs a node of this name, one life after another."""

    def __init__(
        self, name: str, broker_url: str, environ: dict[str, str], *, port: int = 0, admin_port: int = 0
    ) -> None:
        """Each life listens on the same ports, if they are given."""
        self.name = name
        self.node: Node | None = None
        self.life = 0
        self._broker_url = broker_url
        self._flags = ("--node", name, "--admin", f"127.0.0.1:{admin_port}")
        self._listen = f"127.0.0.1:{port}"
        self._environ = environ
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        context = gateway(self._broker_url, *self._flags, listen=self._listen, environ=self._environ)
        self.life += 1  # it may be heard of before it is known to have started
        self.node = await self._stack.enter_async_context(context)

    async def end(self, *, kill: bool = False) -> None:
        """End this life; that its log has no errors is asserted."""
        node, self.node = self.node, None
        if node is not None:
            status = await node.end(kill=kill)
            assert kill or status == 0, status
        await self._stack.aclose()

    async def __aexit__(self, *exception: Any) -> None:
        await self.end(kill=exception[0] is not None)

    async def __aenter__(self) -> Self:
        return self

    @property
    def rss_bytes(self) -> int:
        if self.node is None:
            return 0
        with suppress(OSError, ValueError):  # it may have just been killed
            status = Path(f"/proc/{self.node.process.pid}/status").read_text("utf-8")
            return int(status.partition("VmRSS:")[2].split()[0]) * 1024
        return 0


class Plate:
    """A device on a raw WebSocket of Engine.IO 4 that always comes back, to any node that lives.

    Attributes:
        home: where it is authenticated; None while it is not.
        received: the ids of commands, in the order of receipt.
        stays: every connection.
        orderly: it acks everything at once.
    """

    def __init__(
        self, serial: str, http: aiohttp.ClientSession, boxes: list[Box], service: "Dispatcher", seed: str
    ) -> None:
        self.serial = serial
        self.home: Box | None = None
        self.received: list[int] = []
        self.stays: list[Stay] = []
        self.resets = self.hops = 0
        self.orderly = False
        self._http = http
        self._boxes = boxes
        self._service = service
        self._random = random.Random(f"{seed} {serial}")
        self._next: Box | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._stale: aiohttp.ClientWebSocketResponse | None = None  # half open: not read, and not closed
        self._stay: asyncio.Task[None] | None = None
        self._acks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Connect again and again until cancelled."""
        try:
            while True:
                self._stay = asyncio.create_task(self._connect())
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await asyncio.wait({self._stay})
                    if not self._stay.cancelled():
                        self._stay.result()
                self._away()
                if self._next is None:
                    await asyncio.sleep(self._random.choice(ABSENCES_S))
        finally:
            for task in (*self._acks, *([self._stay] if self._stay else [])):
                task.cancel()
                with suppress(asyncio.CancelledError, aiohttp.ClientError, OSError, TimeoutError):
                    await task
            await self._close(self._socket)
            await self._close(self._stale)

    def reset(self) -> None:
        """Cut the TCP connection without any goodbye."""
        if self._socket is not None and self.home is not None:
            self.resets += 1
            _cut(self._socket)

    def hop(self) -> None:
        """Go to another node: with a goodbye, with a cut, or leaving the old connection half open behind."""
        others = [box for box in self._boxes if box.node is not None and box is not self.home]
        if self.home is None or self._socket is None or self._stay is None or self._stale is not None or not others:
            return
        self.hops += 1
        self._next = self._random.choice(others)
        match self._random.choice(("goodbye", "cut", "half open")):
            case "goodbye":
                self._spawn(self._close(self._socket))
            case "cut":
                _cut(self._socket)
            case _:
                self._stale, self._socket = self._socket, None
                self._stay.cancel()

    def _away(self) -> None:
        self.home = None
        if self._socket is not None:
            self._spawn(self._close(self._socket))
            self._socket = None

    async def _connect(self) -> None:
        box, self._next = self._next, None
        if box is None or box.node is None:
            living = [box for box in self._boxes if box.node is not None]
            if not living:
                return
            box = self._random.choice(living)
        assert box.node is not None
        url = f"{box.node.devices}{PATH}/?EIO=4&transport=websocket"
        async with asyncio.timeout(WAIT_S) as patience:
            self._socket = web = await self._http.ws_connect(url, autoping=False)
            async for frame in web:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    await self._frame(web, frame.data, box, patience)

    async def _frame(
        self, web: aiohttp.ClientWebSocketResponse, text: str, box: Box, patience: asyncio.Timeout
    ) -> None:
        if text.startswith("0"):
            await web.send_str("40")
        elif text.startswith("40"):
            self.stays.append(Stay(time.monotonic(), box.name, box.life))
            signature = base64.b64encode(f"{self.serial}:key".encode()).decode()
            await web.send_str(f"42{json.dumps(['authentication', {'signature': signature}])}")
        elif text == "2":
            await web.send_str("3")
        elif text.startswith("42[") and json.loads(text[2:])[0] == "auth:ok":
            patience.reschedule(None)
            self._welcomed(box)
        elif text.startswith("42") and not text.startswith("42["):
            ack_id, bracket, body = text[2:].partition("[")
            id = json.loads(bracket + body)[1]["id"]
            self._service.received(Reception(id, time.monotonic(), box.name, box.life, len(self.stays)))
            self.received.append(id)
            await self._answer(web, f'43{ack_id}[{{"ack":true}}]')

    def _welcomed(self, box: Box) -> None:
        self.home = box
        self.stays[-1].welcomed_at = time.monotonic()
        self._service.stir.set()
        if self._stale is not None:
            self._spawn(self._close(self._stale))
            self._stale = None

    async def _answer(self, web: aiohttp.ClientWebSocketResponse, ack: str) -> None:
        delay_s = ack_delay_s(self._random, orderly=self.orderly)
        if delay_s == 0:
            await web.send_str(ack)
        elif delay_s is not None:
            self._spawn(self._ack_later(web, ack, delay_s))

    async def _ack_later(self, web: aiohttp.ClientWebSocketResponse, ack: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with suppress(aiohttp.ClientError, OSError):
            await web.send_str(ack)

    async def _close(self, web: aiohttp.ClientWebSocketResponse | None) -> None:
        if web is not None:
            with suppress(aiohttp.ClientError, OSError):
                await web.close()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._acks.add(task)
        task.add_done_callback(self._acks.discard)


class Dispatcher:
    """A service that sends commands and hears of outcomes, and carries on when the broker is back.

    It never publishes a command twice: a PUBACK that did not come leaves the command unconfirmed.
    """

    def __init__(self, broker_url: str, boxes: list[Box]) -> None:
        self.commands: dict[int, Command] = {}
        self.last: dict[str, Command] = {}  # of each device
        self.now_or_never: dict[tuple[str, int], set[int]] = {}  # QoS 0 without an outcome, by serial and stay
        self.connected = asyncio.Event()
        self.stir = asyncio.Event()  # set whenever something happened
        self._url = urlsplit(broker_url)
        self._boxes = {box.name: box for box in boxes}
        self._client: aiomqtt.Client | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            with suppress(aiomqtt.MqttError):
                async with connection(self._url.geturl(), "dispatcher") as client:
                    await client.subscribe("gw/v1/devices/+/acks/#", qos=1)
                    self._client = client
                    self.connected.set()
                    await self._listen(client)
            await asyncio.sleep(0.1)

    async def _listen(self, client: aiomqtt.Client) -> None:
        try:
            async for message in client.messages:
                self._outcome(json.loads(bytes(message.payload)))
        finally:
            self._client = None
            self.connected.clear()
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    def send(self, serial: str, event: str, argument: dict[str, Any], qos: int, expiry_s: int | None = None) -> None:
        """Publish a command, or nothing while the broker is away."""
        if self._client is not None:
            command = Command(len(self.commands), serial, event, qos, expiry_s, time.monotonic())
            self.commands[command.id] = self.last[serial] = command
            task = asyncio.create_task(self._publish(self._client, command, argument))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _publish(self, client: aiomqtt.Client, command: Command, argument: dict[str, Any]) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if command.expiry_s is not None:
            properties.MessageExpiryInterval = command.expiry_s
        topic = f"gw/v1/devices/{command.serial}/commands/{command.event}/{command.id}"
        body = json.dumps({**argument, "id": command.id})
        with suppress(aiomqtt.MqttError):
            await client.publish(topic, body, command.qos, properties=properties, timeout=math.inf)
            command.confirmed_at = time.monotonic()

    def received(self, reception: Reception) -> None:
        """A device received a command."""
        command = self.commands[reception.id]
        command.receptions.append(reception)
        if not command.qos:
            self.now_or_never.setdefault((command.serial, reception.stay), set()).add(command.id)
        self.stir.set()

    def _outcome(self, body: dict[str, Any]) -> None:
        box = self._boxes[body["node"]]
        outcome = Outcome(time.monotonic(), body["status"], body["final"], body["late"], box.name, box.life)
        command = self.commands[int(body["id"])]
        command.outcomes.append(outcome)
        if outcome.final and not command.qos and command.receptions:
            self.now_or_never[command.serial, command.receptions[-1].stay].discard(command.id)
        self.stir.set()


def ack_delay_s(dice: random.Random, *, orderly: bool) -> float | None:
    """When a device acks: at once (0), as it does always if it is orderly, slowly, after the timeout, or never."""
    kind = 0.0 if orderly else dice.random()
    if kind < 0.85:
        return 0.0
    if kind < 0.95:
        return dice.uniform(0.1, 1.0)
    return dice.uniform(2.5, 4.0) if kind < 0.98 else None


def connection(url: str, identifier: str) -> aiomqtt.Client:
    """A client of the broker whose session stays when it goes."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = SESSION_S
    where = urlsplit(url)
    assert where.hostname
    client = aiomqtt.Client(
        where.hostname,
        where.port or 1883,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=False,
        properties=properties,
        socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
    )
    client.pending_calls_threshold = 1000  # it warns of each call above
    return client


def _cut(web: aiohttp.ClientWebSocketResponse) -> None:
    """Reset the TCP connection; aiohttp shows no way to."""
    transport = web._writer.transport
    if transport is not None:
        transport.abort()
