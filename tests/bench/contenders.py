"""Who is measured: how each is started, and what it does not do that the gateway does."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.brokers import free_ports
from tests.bench.results import BASELINE
from tests.bench.usage import tree

HERE: Final = Path(__file__).parent
PEERS: Final = HERE / "peers"
START_S: Final = 30.0
# All devices of the bench come from one address, and come at once.
UNLIMITED: Final = {
    "GATEWAY_ADMISSION_HANDSHAKES_PER_S": "1000000",
    "GATEWAY_ADMISSION_HANDSHAKES_PER_ADDRESS_PER_S": "1000000",
}
INSTALL_S: Final = 300.0
POLL_S: Final = 0.02


class Timers(NamedTuple):
    """Heartbeats of sockets, and of the links where there are any."""

    ping_interval_s: float = 25.0
    keep_alive_s: int = 60


class Contender(NamedTuple):
    """One way to do the job; `command` says how to start it, None that there is nothing to start.

    `keeps` is what it does for a command, for comparison; `folder` is where it starts. What stands in its log when all
    its processes are there is `started`; where that is empty it is enough that the port is open.
    """

    name: str
    title: str
    keeps: str
    command: Callable[[int, str, Timers], tuple[str, ...]] | None
    environ: Callable[[Timers], dict[str, str]] = lambda _: {}
    folder: Path | None = None
    started: str = ""


class Unusable(Exception):
    """A contender cannot be run here; the text says why."""


def _gateway(port: int, mqtt: str, _: Timers) -> tuple[str, ...]:
    listen, admin = f"127.0.0.1:{port}", "127.0.0.1:0"
    flags = ("--listen", listen, "--admin", admin, "--mqtt", mqtt, "--auth", "open", "--node", "bench")
    return (sys.executable, "-m", "gateway", "serve", *flags)


def _workers(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
    return (*_gateway(port, mqtt, timers), "--workers", "2")


def _gateway_environ(timers: Timers) -> dict[str, str]:
    return UNLIMITED | {
        "GATEWAY_DEVICES_PING_INTERVAL_S": str(timers.ping_interval_s),
        "GATEWAY_MQTT_KEEP_ALIVE_S": str(timers.keep_alive_s),
    }


def _node(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
    return ("node", str(PEERS / "bridge.js"), str(port), mqtt, str(timers.ping_interval_s))


def _naive(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
    url = urlsplit(mqtt)
    address = (str(url.hostname), str(url.port), str(timers.ping_interval_s))
    return (sys.executable, str(PEERS / "naive.py"), str(port), *address)


def _bare(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
    url = urlsplit(mqtt)
    address = (str(url.hostname), str(url.port), str(timers.ping_interval_s))
    return (sys.executable, str(PEERS / "bare.py"), str(port), *address)


CONTENDERS: Final = {
    contender.name: contender
    for contender in (
        Contender(
            "gateway",
            "this gateway",
            "a session for each device; PUBACK after the outcome; one final outcome whatever happens",
            _gateway,
            _gateway_environ,
        ),
        Contender(
            "workers",
            "this gateway, --workers 2",
            "as one process",
            _workers,
            _gateway_environ,
            started="workers started",
        ),
        Contender(
            "node",
            "Node, socket.io + mqtt.js",
            "one connection for all devices; PUBACK on receipt: a crash loses what is under way; no presence, no queue",
            _node,
        ),
        Contender(
            "naive",
            "python-socketio + aiomqtt",
            "as Node's; and no bound on what waits for a device",
            _naive,
        ),
        Contender(
            "bare",
            "a link for each device, nothing checked",
            "PUBACK after the outcome is safe; nothing else",
            _bare,
        ),
        Contender(
            "mqtt",
            "no gateway: MQTT devices",
            "the floor: devices that speak MQTT themselves, without Will, presence or a session that outlives them",
            None,
        ),
    )
}


def baseline(checkout: Path) -> Contender:
    """The gateway of another checkout, with the Python and the packages of this one: what did a change bring?"""
    ours = CONTENDERS["gateway"]
    return ours._replace(name=BASELINE, title=f"the gateway of {checkout.name}", folder=checkout.resolve())


def install() -> None:
    """Install the peers of Node from npm, unless they are there. Raises Unusable."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unusable("Node.js and npm are not installed")
    if all((PEERS / "node_modules" / name).exists() for name in ("socket.io", "mqtt")):
        return
    command = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent")
    try:
        subprocess.run(command, cwd=PEERS, check=True, timeout=INSTALL_S, stdout=subprocess.DEVNULL)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
        raise Unusable(f"npm install: {problem}") from None


class Running(NamedTuple):
    """A contender that accepts connections; `pid` is None where there is nothing to run."""

    pid: int | None
    port: int


@asynccontextmanager
async def running(contender: Contender, mqtt: str, timers: Timers, log: Path) -> AsyncIterator[Running]:
    """Run a contender on a free port, its output in `log`. Raises Unusable."""
    if contender.command is None:
        yield Running(None, int(urlsplit(mqtt).port or 1883))
        return
    (port,) = free_ports(1)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *contender.command(port, mqtt, timers),
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **contender.environ(timers)},
            cwd=contender.folder,
        )
    try:
        await _listens(process, port, log, contender.started)
        yield Running(process.pid, port)
    finally:
        for pid in tree(process.pid) if process.returncode is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int, log: Path, started: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                with suppress(OSError):
                    if started not in log.read_text("utf-8", errors="replace"):
                        await asyncio.sleep(POLL_S)
                        continue
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.transport.abort()
                    return
                await asyncio.sleep(POLL_S)
    raise Unusable(f"does not start: {log.read_text(errors='replace')[-500:]}")
