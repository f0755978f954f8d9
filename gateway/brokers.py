"""A broker of one's own on 127.0.0.1, for the demo and the tests.

Decides which broker there is, and how it is configured and started. mosquitto runs from the project's own
`mosquitto.conf`; the embedded broker (rumqttd, by `iotcore`) forgets everything when it stops.
"""

import asyncio
import errno
import json
import os
import secrets
import shutil
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

Kind = Literal["mosquitto", "embedded"]

START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 10.0  # mosquitto saves its database before it exits
_PORTS: Final = range(10_000, 32_768)  # systems give higher ones to connections, which may come before the broker
_POLL_S: Final = 0.02  # between attempts to connect to a broker that starts
_LOG_TAIL_BYTES: Final = 2000
_SBIN: Final = "/usr/sbin:/usr/local/sbin"  # distributions put mosquitto there, outside a user's PATH


class BrokerUnavailable(Exception):
    """The broker is not installed, or does not start; the text says why, with the end of its log."""


class Launch(msgspec.Struct, frozen=True):
    """How to start one broker: its command line, and where it then listens."""

    kind: Kind
    version: str
    argv: tuple[str, ...]
    port: int
    port_v311: int


class LocalBroker:
    """A broker process that can be stopped, killed and started again on the same port and directory.

    Attributes:
        url: where it speaks MQTT 5.
        url_v311: where it speaks MQTT 3.1.1. What carries MQTT 5 properties never gets there from the
            embedded broker; with mosquitto both are the same.
    """

    def __init__(self, launch: Launch, directory: Path) -> None:
        self.kind: Kind = launch.kind
        self.version = launch.version
        self.url = f"mqtt://127.0.0.1:{launch.port}"
        self.url_v311 = f"mqtt://127.0.0.1:{launch.port_v311}"
        self.log_path = directory / f"{launch.kind}.log"
        self._launch = launch
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The process; None while it does not run."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the process and return when it accepts connections; it must not run already.

        Raises:
            BrokerUnavailable: it does not start; what is left of it is for `stop` to end.
        """
        with self.log_path.open("ab") as log:
            # A session of its own, so that Ctrl-C in a terminal reaches us alone; the embedded broker ends
            # when its standard input closes.
            self._process = process = await asyncio.create_subprocess_exec(
                *self._launch.argv, stdin=PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                for port in {self._launch.port, self._launch.port_v311}:
                    await self._wait_for(process, port)
        except TimeoutError:
            raise BrokerUnavailable(f"{self.kind} does not listen: {self._log_tail()}") from None

    async def stop(self) -> None:
        """End the process in good order, or with SIGKILL when it takes too long; without one, do nothing."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        await self.kill()

    async def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; without one, do nothing."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._process = None

    async def _wait_for(self, process: Process, port: int) -> None:
        while process.returncode is None:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(_POLL_S)
        raise BrokerUnavailable(f"{self.kind} ended at once: {self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()


@asynccontextmanager
async def local_broker(
    kind: Kind | Literal["auto"], directory: Path, overrides: Mapping[str, str | None] | None = None
) -> AsyncIterator[LocalBroker]:
    """Run a broker that lets anyone in, on a free port of 127.0.0.1, and stop it in the end.

    Args:
        kind: `auto` takes mosquitto when it is installed, else the embedded broker.
        directory: for its configuration, log and database; it must exist.
        overrides: directives of `mosquitto.conf` to replace, or with None to leave out. The embedded
            broker has none of them.

    Raises:
        BrokerUnavailable: that broker is not installed, or does not start.
    """
    launch = await find_broker(kind, directory, overrides or {})
    async with AsyncExitStack() as stack:
        broker = LocalBroker(launch, directory)
        stack.push_async_callback(broker.stop)
        await broker.start()
        yield broker


async def find_broker(kind: Kind | Literal["auto"], directory: Path, overrides: Mapping[str, str | None]) -> Launch:
    """Say how to start a broker of this kind, and write its configuration. Raises BrokerUnavailable."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if kind != "embedded" and binary:
        return await _mosquitto(binary, directory, overrides)
    if kind != "mosquitto":
        with suppress(metadata.PackageNotFoundError):
            return _embedded(metadata.version("iotcore"), directory)
    missing = {
        "auto": "neither mosquitto nor the embedded broker is installed",
        "mosquitto": "mosquitto is not installed",
        "embedded": "the embedded broker is not installed",
    }[kind]
    raise BrokerUnavailable(
        f"{missing}: install mosquitto with your system's packages, or pip install "
        "'socketio-mqtt-gateway[demo]', which brings the embedded broker"
    )


def mosquitto_config(overrides: Mapping[str, str | None]) -> str:
    """Return the project's `mosquitto.conf` without comments, each directive of `overrides` replaced."""
    shipped = Path(__file__).with_name("mosquitto.conf")  # in a wheel; in a checkout it is one level up
    path = shipped if shipped.exists() else shipped.parent.parent / shipped.name
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    kept = [line for line in lines if line.split()[0] not in overrides]
    added = [f"{directive} {value}" for directive, value in overrides.items() if value is not None]
    return "\n".join([*kept, *added, ""])


async def _mosquitto(binary: str, directory: Path, overrides: Mapping[str, str | None]) -> Launch:
    (port,) = free_ports(1)
    config = directory / "mosquitto.conf"
    local = {
        "listener": f"{port} 127.0.0.1",
        "persistence_location": f"{directory}/",
        "allow_anonymous": "true",
        "password_file": None,
        "acl_file": None,
        # Started by root it becomes the user mosquitto, who cannot write here.
        "user": "root" if os.geteuid() == 0 else None,
    }
    config.write_text(mosquitto_config(local | dict(overrides)), "utf-8")
    process = await asyncio.create_subprocess_exec(binary, "-h", stdout=PIPE, stderr=DEVNULL)
    usage, _ = await process.communicate()
    version = usage.decode(errors="replace").partition("\n")[0].removeprefix("mosquitto version ").strip()
    return Launch("mosquitto", version, (binary, "-c", str(config)), port, port)


def _embedded(version: str, directory: Path) -> Launch:
    port, port_v311 = free_ports(2)
    config = directory / "rumqttd.toml"
    config.write_text(_rumqttd_config(port, port_v311), "utf-8")
    # -P: a directory `iotcore` where we were started must not stand in for the package.
    command = (sys.executable, "-P", "-m", "iotcore._serve", json.dumps({"config_path": str(config)}))
    return Launch("embedded", version, command, port, port_v311)


def _rumqttd_config(port: int, port_v311: int) -> str:
    """A rumqttd listener speaks one version of MQTT, so there are two."""
    router = """
        id = 0
        [router]
        id = 0
        max_connections = 10000
        max_outgoing_packet_count = 200
        max_segment_size = 104857600
        max_segment_count = 10
        """
    listeners = [
        f"""
        [{version}.1]
        name = "{version}"
        listen = "127.0.0.1:{number}"
        next_connection_delay_ms = 0
        [{version}.1.connections]
        connection_timeout_ms = 10000
        max_payload_size = 1179648
        max_inflight_count = 200
        dynamic_filters = true
        """
        for version, number in (("v5", port), ("v4", port_v311))
    ]
    return "".join([router, *listeners])


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now, all different."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = secrets.choice(_PORTS)
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError as problem:
                if problem.errno != errno.EADDRINUSE:
                    raise
            else:
                ports.append(port)
    return ports
