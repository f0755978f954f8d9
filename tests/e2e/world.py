"""What an end-to-end test needs around the gateway: nodes as processes, devices, and services on MQTT."""

import asyncio
import base64
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import aiomqtt
import socketio
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.forked import Forked, fork_gateway

WAIT_S = 20.0  # for what must happen; a machine under load is slow
POLL_S = 0.05  # between looks at what another process says of itself; it has to do it beside its work
PATH = "/socket/socket.io"


class Node:
    """A gateway process; `devices` and `admin` are its URLs."""

    def __init__(self, process: Process | Forked) -> None:
        self.process = process
        self.devices = self.admin = ""
        self.lines: list[dict[str, Any]] = []
        self.said = bytearray()  # all of its stderr, what is no log line too
        self._changed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said += line
            with suppress(ValueError):
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    continue
                async with self._changed:
                    self.lines.append(entry)
                    self._changed.notify_all()

    async def logged(self, message: str, **fields: Any) -> dict[str, Any]:
        """Wait for a log line with these fields and return it."""

        def find() -> dict[str, Any] | None:
            wanted = {"message": message, **fields}
            return next((line for line in self.lines if wanted.items() <= line.items()), None)

        async with self._changed, asyncio.timeout(WAIT_S):
            while (line := find()) is None:
                await self._changed.wait()
        return line

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of this name that have these labels, as `/metrics` has them now."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        found = [s for family in families for s in family.samples if s.name == name]
        assert found, name
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())

    async def end(self, *, kill: bool = False) -> int:
        """Stop the process, or kill it, and return its exit status."""
        with suppress(ProcessLookupError):
            self.process.kill() if kill else self.process.terminate()
        status = await asyncio.wait_for(self.process.wait(), WAIT_S)
        await self._reader
        return status


@asynccontextmanager
async def gateway(
    broker_url: str | None,
    *arguments: str,
    config: str = "",
    environ: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:0",
    errors: Collection[str] = (),
    await_ready: bool = True,
    debug: bool = True,
    forked: bool = True,
) -> AsyncIterator[Node]:
    """Run `gateway serve` on free ports, with open authentication unless told otherwise.

    Without a URL the environment has it. With `debug` Python looks for slips of ours, and is several times slower. No
    error may be logged but those whose message is in `errors`.
    """
    mqtt = () if broker_url is None else ("--mqtt", broker_url)
    flags = ("--listen", listen, "--admin", "127.0.0.1:0", "--log-format", "json", *mqtt)
    auth = () if any(argument == "--auth" for argument in arguments) else ("--auth", "open")
    command = ("serve", *flags, *auth, *arguments, *(("--config", config) if config else ()))
    env = {**os.environ, "GATEWAY_ACCEPT": "anonymous-rooms", **(environ or {})}
    process: Process | Forked
    if forked:
        process = await fork_gateway(command, env, debug=debug)
    else:
        python = (sys.executable, *(("-X", "dev") if debug else ()), "-m", "gateway")
        process = await asyncio.create_subprocess_exec(*python, *command, stderr=PIPE, env=env)
    node = Node(process)
    try:
        started = await node.logged("gateway started")
        node.devices, node.admin = started["devices"], started["admin"]
        if await_ready:
            await node.logged("gateway ready")
        yield node
    finally:
        await node.end(kill=process.returncode is None and sys.exc_info()[0] is not None)
        wrong = [line for line in node.lines if "exception" in line or line["level"] == "error"]
        unexpected = [line for line in wrong if line["message"] not in errors]
        assert not unexpected, unexpected


def workers_of(supervisor: Node, node: str) -> list[int]:
    """The process of a worker, by the name of its node; none while it is not running."""
    pid = supervisor.process.pid
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split():
        with suppress(FileNotFoundError):
            if node in Path(f"/proc/{child}/cmdline").read_text("utf-8").split("\0"):
                found.append(int(child))
    return found


class Device:
    """A real python-socketio client; `received` holds (event, arguments), in order."""

    def __init__(self, serial: str = "", *, http: aiohttp.ClientSession | None = None) -> None:
        """With `http` it comes from where that connects from."""
        self.serial = serial
        self.client = socketio.AsyncClient(reconnection=False, http_session=http, request_timeout=WAIT_S)
        self.received: asyncio.Queue[tuple[str, tuple[Any, ...]]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.answers: dict[str, Callable[[], Any]] = {}
        self.client.on("*", self._event)
        self.client.on("disconnect", lambda *_: self.gone.set())

    def _event(self, event: str, *args: Any) -> Any:
        self.received.put_nowait((event, args))
        return self.answers.get(event, lambda: {"ack": True})()

    async def connect(self, url: str, **options: Any) -> None:
        await self.client.connect(url, socketio_path=PATH, **{"wait_timeout": WAIT_S, **options})

    async def authenticate(self, key: str = "key") -> str:
        """Authenticate and return the answer."""
        signature = base64.b64encode(f"{self.serial}:{key}".encode()).decode()
        await self.client.emit("authentication", {"signature": signature})
        event, _ = await self.next()
        return event

    async def next(self) -> tuple[str, tuple[Any, ...]]:
        return await asyncio.wait_for(self.received.get(), WAIT_S)

    async def expect(self, event: str) -> tuple[Any, ...]:
        """Return the arguments of the next event, which must be this one."""
        name, args = await self.next()
        assert name == event, (name, args)
        return args

    async def disconnect(self) -> None:
        await self.client.disconnect()
        await self.client.eio.disconnect()


@asynccontextmanager
async def device(node: Node, serial: str, key: str = "key", **options: Any) -> AsyncIterator[Device]:
    """A device that is connected and authenticated."""
    plate = Device(serial)
    try:
        await plate.connect(node.devices, **options)
        assert await plate.authenticate(key) == "auth:ok"
        yield plate
    finally:
        await plate.disconnect()


@asynccontextmanager
async def viewer(node: Node) -> AsyncIterator[Device]:
    """A socket that does not authenticate."""
    page = Device()
    try:
        await page.connect(node.devices)
        yield page
    finally:
        await page.disconnect()


class Service:
    """An independent MQTT 5 client; messages wait per topic."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self._messages: list[aiomqtt.Message] = []
        self._changed = asyncio.Condition()

    async def receive(self) -> None:
        async for message in self.client.messages:
            async with self._changed:
                self._messages.append(message)
                self._changed.notify_all()

    async def send(
        self, topic: str, payload: object = None, qos: int = 1, *, retain: bool = False, **fields: Any
    ) -> None:
        """Publish to a topic under the prefix; bytes go out as they are, None as nothing, the rest as JSON."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in fields.items():
            setattr(properties, name, value)
        body = b"" if payload is None else payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.client.publish(f"gw/v1/{topic}", body, qos, retain, properties)

    async def message(self, topic: str) -> aiomqtt.Message:
        """Take the next message on a topic under the prefix (filters allowed), waiting for it."""

        def take() -> aiomqtt.Message | None:
            for index, message in enumerate(self._messages):
                if message.topic.matches(f"gw/v1/{topic}"):
                    return self._messages.pop(index)
            return None

        async with self._changed, asyncio.timeout(WAIT_S):
            while (found := take()) is None:
                await self._changed.wait()
        return found

    async def json(self, topic: str) -> Any:
        return json.loads(bytes((await self.message(topic)).payload))

    async def outcome(self, topic: str) -> dict[str, Any]:
        """Wait for the final outcome on a topic; `queued` may come before it."""
        while True:
            outcome: dict[str, Any] = await self.json(topic)
            if outcome["final"]:
                return outcome

    async def presence(self, serial: str, *, online: bool) -> dict[str, Any]:
        """Wait until a device's presence says so."""
        while True:
            presence: dict[str, Any] = await self.json(f"devices/{serial}/presence")
            if presence["online"] == online:
                return presence


SEEN = ("devices/+/acks/#", "devices/+/events/#", "devices/+/presence", "inbox/#", "nodes/#", "rooms/#")


@asynccontextmanager
async def service(broker_url: str, *, sees: Sequence[str] = SEEN, **options: Any) -> AsyncIterator[Service]:
    """A service that sees all topics but the commands, or those that it is told."""
    url = urlsplit(broker_url)
    assert url.hostname
    async with aiomqtt.Client(url.hostname, url.port or 1883, protocol=aiomqtt.ProtocolVersion.V5, **options) as client:
        it = Service(client)
        receiving = asyncio.create_task(it.receive())
        for topic in sees:
            await client.subscribe(f"gw/v1/{topic}", qos=1)
        yield it
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving


def read_all(terminal: int) -> str:
    """What was written to a terminal until its other side closed."""
    chunks = []
    with suppress(OSError):  # EIO: the other side closed
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    os.close(terminal)
    return b"".join(chunks).decode()
