"""Two nodes behind a real nginx are restarted one after the other, under load: nothing is lost."""

import asyncio
import base64
import os
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import socketio

from gateway.brokers import LocalBroker
from tests.clients.install import program
from tests.e2e.world import PATH, WAIT_S, Service, gateway

DEVICES = 8
COMMANDS = 40  # to each device
NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream nodes {{
        server 127.0.0.1:{one} max_fails=0;
        server 127.0.0.1:{two} max_fails=0;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://nodes;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


@pytest.fixture
def kind() -> str:
    """The embedded broker loses sessions."""
    return "mosquitto"


@asynccontextmanager
async def nginx(directory: Path, port: int, one: int, two: int) -> AsyncIterator[str]:
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, one=one, two=two))
    process = await asyncio.create_subprocess_exec(
        program("nginx"), "-c", str(config), "-e", str(directory / "error.log"), stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(WAIT_S):
            while not await accepts(port):
                assert process.returncode is None, (directory / "error.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        await asyncio.sleep(0.01)
        return False
    writer.close()
    await writer.wait_closed()
    return True


class Plate:
    """A device that reconnects by itself, as real ones do, and remembers what it got."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.got: list[int] = []
        self.client = socketio.AsyncClient(reconnection_delay=0.1, reconnection_delay_max=0.5, randomization_factor=0.5)
        self.client.on("connect", self._connected)
        self.client.on("bind_class", self._bind)
        self.here = asyncio.Event()
        self.client.on("auth:ok", self.here.set)

    async def _connected(self) -> None:
        signature = base64.b64encode(f"{self.serial}:key".encode()).decode()
        await self.client.emit("authentication", {"signature": signature})

    def _bind(self, data: dict[str, int]) -> dict[str, bool]:
        self.got.append(data["id"])
        return {"ack": True}


async def test_nothing_is_lost(
    broker: LocalBroker, api: Service, tmp_path: Path, unused_tcp_port_factory: object
) -> None:
    assert callable(unused_tcp_port_factory)
    proxy, *ports = (unused_tcp_port_factory() for _ in range(3))
    environ = os.environ | {"GATEWAY_DEVICES_DRAIN_S": "2"}
    plates = [Plate(f"AC{number}") for number in range(DEVICES)]
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, port in zip(("gw-1", "gw-2"), ports, strict=True):
            node = gateway(broker.url, "--node", name, listen=f"127.0.0.1:{port}", environ=environ)
            nodes[name] = await stack.enter_async_context(node)
        url = await stack.enter_async_context(nginx(tmp_path, proxy, *ports))
        for plate in plates:
            await plate.client.connect(url, socketio_path=PATH, transports=["websocket"], retry=True)
            await asyncio.wait_for(plate.here.wait(), WAIT_S)
        sending = asyncio.create_task(send(api))
        for name, port in zip(("gw-1", "gw-2"), ports, strict=True):
            await api.outcome("devices/AC0/acks/#")  # some traffic between the restarts
            assert await nodes[name].end() == 0
            again = gateway(broker.url, "--node", name, listen=f"127.0.0.1:{port}", environ=environ)
            await stack.enter_async_context(again)
        await sending
        outcomes: dict[str, str] = {}
        while len(outcomes) < DEVICES * COMMANDS - 2:
            outcome = await api.outcome("devices/+/acks/bind_class/+")
            outcomes[outcome["id"]] = outcome["status"]
        for plate in plates:
            await plate.client.disconnect()
            await plate.client.shutdown()
    assert set(outcomes.values()) == {"acked"}
    for plate in plates:
        assert sorted(set(plate.got)) == list(range(COMMANDS)), "a command was lost"
        first = list(dict.fromkeys(plate.got))
        assert first == sorted(first), "out of order"


async def send(api: Service) -> None:
    """Commands to every device, from before the first restart to after the last."""
    for number in range(COMMANDS):
        for device in range(DEVICES):
            await api.send(f"devices/AC{device}/commands/bind_class/{device}-{number}", {"id": number})
        await asyncio.sleep(0.2)
