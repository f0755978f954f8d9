"""Brokers of one test: a mosquitto that keeps its state over a restart, and one that the test plays."""

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gateway.brokers import free_ports

_START_TIMEOUT_S = 10.0


class Broker:
    """A mosquitto on a free port of 127.0.0.1 and a unix socket, with persistence."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self._log = directory / "mosquitto.log"
        self._passwords = directory / "passwords"
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_path = directory / "mqtt.sock"
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self, passwords: dict[str, str] | None = None, *settings: str) -> None:
        access = "allow_anonymous true"
        if passwords is not None:
            self._passwords.write_text("".join(f"{user}:{password}\n" for user, password in passwords.items()))
            tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
            subprocess.run([tool, "-U", str(self._passwords)], check=True)
            access = f"allow_anonymous false\npassword_file {self._passwords}"
        config = self._directory / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nlistener 0 {self.socket_path}\n{access}\n"
            f"persistence true\npersistence_location {self._directory}/\nset_tcp_nodelay true\n"
            f"log_dest stderr\nuser root\n" + "".join(f"{setting}\n" for setting in settings)
        )
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([self._binary, "-c", str(config)], stderr=log)
        self._wait_until_it_listens()

    def _wait_until_it_listens(self) -> None:
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while " running" not in self._log.read_text():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up_at, self._log.read_text()
            os.sched_yield()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Start a broker, with a password file or open to anyone, and with more lines of configuration."""
    binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(binary).exists():
        if os.environ.get("GATEWAY_TEST_REQUIRE_ALL") == "1":
            pytest.fail("mosquitto is not installed")
        pytest.skip("mosquitto is not installed")
    brokers: list[Broker] = []

    def start(passwords: dict[str, str] | None = None, *settings: str) -> Broker:
        brokers.append(Broker(binary, tmp_path))
        brokers[-1].start(passwords, *settings)
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def broker(start_broker: Callable[..., Broker]) -> Broker:
    """A broker open to anyone."""
    return start_broker()


class FakeBroker(asyncio.Protocol):
    """The broker's end of a connection, played by the test."""

    def __init__(self, connections: "asyncio.Queue[FakeBroker]") -> None:
        self._connections = connections
        self.read = asyncio.Queue[bytes]()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data[0] == 0x10:
            self.hello = data
            self._connections.put_nowait(self)
        else:
            self.read.put_nowait(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


Fake = tuple[str, "asyncio.Queue[FakeBroker]"]


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    """URL and connections of a fake broker."""
    connections = asyncio.Queue[FakeBroker]()
    peers: list[FakeBroker] = []

    def peer() -> FakeBroker:
        peers.append(FakeBroker(connections))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0)
    yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    server.close()
    for one in peers:
        one.transport.abort()
        await one.lost.wait()
