"""What systemd hears: from the edge itself, and from a node that starts, lives and stops."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.systemd import ServiceManager
from tests.e2e.world import WAIT_S, gateway


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(systemd: socket.socket) -> list[str]:
    """What was said since the last time."""
    said = []
    try:
        while True:
            said.append(systemd.recv(4096).decode())
    except BlockingIOError:
        return said


async def hears(systemd: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    return (await asyncio.wait_for(loop.sock_recv(systemd, 4096), WAIT_S)).decode()


async def test_pings_come_from_the_loop_and_stop_when_it_hangs(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "100000"}
    with ServiceManager(environ) as manager:
        assert heard(systemd) == []
        manager.ready()
        assert heard(systemd) == ["READY=1", "WATCHDOG=1"]
        assert await hears(systemd) == "WATCHDOG=1"
        time.sleep(0.3)  # the loop hangs for three times as long as systemd waits
        assert heard(systemd) == []
        assert await hears(systemd) == "WATCHDOG=1"
        manager.stopping(12.5)
        assert heard(systemd)[-1] == "STOPPING=1\nEXTEND_TIMEOUT_USEC=12500000"
        assert await hears(systemd) == "WATCHDOG=1"  # a drain that hangs is noticed too


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "100", "WATCHDOG_PID": "1"}],
)
async def test_nobody_is_pinged_who_does_not_ask(systemd: socket.socket, watchdog: dict[str, str]) -> None:
    with ServiceManager({"NOTIFY_SOCKET": systemd.getsockname(), **watchdog}) as manager:
        manager.ready()
        assert heard(systemd) == ["READY=1"]


async def test_without_systemd_nothing_is_said() -> None:
    with ServiceManager({"WATCHDOG_USEC": "100", "WATCHDOG_PID": str(os.getpid())}) as manager:
        manager.ready()
        manager.stopping(1)


async def test_an_abstract_socket() -> None:
    name = f"gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        with ServiceManager({"NOTIFY_SOCKET": f"@{name}"}) as manager:
            manager.ready()
        assert listening.recv(4096) == b"READY=1"


async def test_a_socket_that_is_gone_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}) as manager:
        manager.ready()
    assert [record.getMessage() for record in caplog.records] == ["systemd was not told"]


async def test_a_node_that_starts_lives_and_stops(systemd: socket.socket) -> None:
    """It is ready once it listens, although there is no broker yet: the unit's start does not hang on that."""
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "200000", "GATEWAY_DEVICES_DRAIN_S": "3"}
    async with gateway("mqtt://127.0.0.1:1", environ=environ, await_ready=False) as node:
        assert [await hears(systemd) for _ in range(4)] == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
        node.process.send_signal(signal.SIGTERM)
        while (said := await hears(systemd)) == "WATCHDOG=1":
            pass
        assert said == "STOPPING=1\nEXTEND_TIMEOUT_USEC=23000000"
        assert await asyncio.wait_for(node.process.wait(), WAIT_S) == 0
