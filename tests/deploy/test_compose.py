"""The stack of `deploy/compose.yaml`: as docker-compose reads it, and run without Docker, file by file."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.brokers import mosquitto_config
from gateway.config import Config
from gateway.settings import settings_of
from tests.clients.install import program
from tests.e2e.proxies import DEPLOY, running_nginx, write_nginx
from tests.e2e.world import POLL_S, WAIT_S, Node

COMPOSE = DEPLOY / "compose.yaml"
STACK = yaml.safe_load(COMPOSE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
NODES = ("gateway-1", "gateway-2")


def compose(text: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Let docker-compose check a file; without Docker it can do that much."""
    path = directory / "compose.yaml"
    path.write_text(text, "utf-8")
    command = (program("docker-compose"), "-f", str(path), "config", "--quiet")
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_docker_compose_takes_it(tmp_path: Path) -> None:
    done = compose(COMPOSE.read_text("utf-8"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert compose(COMPOSE.read_text("utf-8").replace("read_only:", "readonly:"), tmp_path).returncode == 1


def mounts(service: str) -> dict[str, str]:
    """Where each path in a container comes from: a volume's name, or a path beside compose.yaml."""
    triples = (volume.split(":") for volume in SERVICES[service].get("volumes", ()))
    return {target: source for source, target, *_ in triples}


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_mounts_is_there_and_nothing_that_is_shipped_is_written_to(service: str) -> None:
    for volume in SERVICES[service].get("volumes", ()):
        source, _, *mode = volume.split(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), volume
            assert mode == ["ro"], volume
        else:
            assert source in STACK["volumes"], volume


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_a_version(service: str) -> None:
    image = SERVICES[service]["image"]
    assert "build" in SERVICES[service] or re.search(r":v?\d+\.\d+", image), image


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"setup"}))
def test_a_container_can_do_little(service: str) -> None:
    limits = {name: SERVICES[service].get(name) for name in ("read_only", "cap_drop", "security_opt")}
    assert limits == {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


@pytest.mark.parametrize("service", NODES)
def test_every_variable_is_a_setting(service: str) -> None:
    known = {"GATEWAY_" + path.replace(".", "_").upper() for path in settings_of(Config)} | {Config().relay.secret_env}
    assert {name.removesuffix("_FILE") for name in SERVICES[service]["environment"]} <= known


def test_a_node_has_time_to_drain() -> None:
    assert all(int(SERVICES[node]["stop_grace_period"].removesuffix("s")) > Config().devices.drain_s for node in NODES)


def test_the_broker_of_a_container_differs_where_it_says_so() -> None:
    shipped = [line for line in container_conf().splitlines() if line and not line.startswith("#")]
    paths = {"password_file": "/mosquitto/secrets/passwd", "acl_file": "/mosquitto/config/acl"}
    own = {"listener": "1883", "persistence_location": "/mosquitto/data/", **paths}
    assert sorted(shipped) == sorted(filter(None, mosquitto_config(own).splitlines()))


def container_conf() -> str:
    return (DEPLOY / "mosquitto/container.conf").read_text("utf-8")


class Host:
    """What stands for the containers: directories for volumes, ports of 127.0.0.1 for names."""

    def __init__(self, directory: Path, free_port: Callable[[], int]) -> None:
        self.directory = directory
        self.addresses = {
            f"{name}:{port}": f"127.0.0.1:{free_port()}"
            for name, port in (("mosquitto", 1883), ("gateway-1", 8080), ("gateway-2", 8080), ("proxy", 8080))
        }
        for volume in STACK["volumes"]:
            (directory / volume).mkdir()

    def here(self, service: str, text: str) -> str:
        """The same on this machine."""
        for name, address in self.addresses.items():
            text = text.replace(name, address)
        for target, source in mounts(service).items():
            path = (DEPLOY if source.startswith(".") else self.directory) / source
            text = text.replace(target, str(path))
        return text

    def environ(self, service: str) -> dict[str, str]:
        """The environment of a service, secrets too: these are read from their files with the addresses in them."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        for name, value in SERVICES[service]["environment"].items():
            clean[name] = self.here(service, value)
            if name.endswith("_FILE"):
                path = Path(clean[name])
                path.write_text(self.here(service, path.read_text()))
        return clean

    async def setup(self) -> None:
        """Run the script of the service `setup`, twice: the second time it has nothing to do."""
        (secrets := self.directory / "secrets").mkdir()
        for target, source in mounts("setup").items():
            if target.startswith("/secrets/"):
                (secrets / Path(target).name).symlink_to(self.directory / source)
        for _ in range(2):
            script = self.here("setup", SERVICES["setup"]["entrypoint"][-1])
            environ = {
                "SECRETS": str(secrets),
                "PATH": f"{os.environ['PATH']}:{Path(program('mosquitto_passwd')).parent}",
            }
            process = await asyncio.create_subprocess_exec("sh", script, env=environ)
            assert await asyncio.wait_for(process.wait(), WAIT_S) == 0

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[None]:
        """mosquitto, with the container's configuration."""
        host, _, port = self.addresses["mosquitto:1883"].rpartition(":")
        text = self.here("mosquitto", container_conf()).replace("listener 1883", f"listener {port} {host}")
        config = self.directory / "container.conf"
        config.write_text(f"{text}\n{'user root' if os.geteuid() == 0 else ''}\n")
        async with running(program("mosquitto"), "-c", str(config), environ={}, stderr=DEVNULL):
            yield

    @asynccontextmanager
    async def node(self, service: str) -> AsyncIterator[Node]:
        """A node with the environment of its service, on a port of its own."""
        listen = ("--listen", self.addresses[f"{service}:8080"], "--admin", "127.0.0.1:0", "--log-format", "json")
        async with running(*gateway("serve", *listen), environ=self.environ(service), stderr=PIPE) as process:
            node = Node(process)
            node.admin = (await node.logged("gateway started"))["admin"]
            await node.logged("gateway ready")
            yield node
            assert await node.end() == 0

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[None]:
        """nginx, with the two files of the stack."""
        _, _, port = self.addresses["proxy:8080"].rpartition(":")
        own = mounts("proxy")
        listen, nodes = ((DEPLOY / own[f"/etc/nginx/{name}.conf"]).read_text("utf-8") for name in ("listen", "nodes"))
        write_nginx(self.directory, listen.replace("8080", port), self.here("proxy", nodes))
        async with running_nginx(self.directory, int(port)):
            yield


def gateway(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gateway", *arguments)


@asynccontextmanager
async def running(
    *command: str, environ: Mapping[str, str], stdout: int | None = None, stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), WAIT_S)


async def online(nodes: Iterable[Node]) -> float:
    return sum([await node.metric("gateway_devices", presence="online") for node in nodes])


async def test_the_stack_works(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> None:
    """Passwords, broker, two nodes, proxy, fleet and service are those of compose.yaml; the containers are not.

    Devices come to both nodes, and the service commands one with its own password.
    """
    host = Host(tmp_path, unused_tcp_port_factory)
    await host.setup()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(host.broker())
        nodes = [await stack.enter_async_context(host.node(service)) for service in NODES]
        await stack.enter_async_context(host.proxy())
        fleet = shlex.split(host.here("simulate", shlex.join(SERVICES["simulate"]["command"])))
        devices = int(fleet[fleet.index("--devices") + 1])
        environ = host.environ("simulate")
        playing = await stack.enter_async_context(running(*gateway(*fleet, "--json"), environ=environ, stdout=PIPE))
        for node in nodes:
            await node.logged("device here")
        here = [asyncio.create_task(node.logged("device here", serial="SIM1")) for node in nodes]
        _, pending = await asyncio.wait(here, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        for task in pending:
            task.cancel()
        call = ("call", "SIM1", "device_status", "--timeout", str(WAIT_S), "--qos", "1", "--json")
        asked = await stack.enter_async_context(running(*gateway(*call), environ=host.environ("cli"), stdout=PIPE))
        answer, _ = await asyncio.wait_for(asked.communicate(), WAIT_S)
        assert json.loads(answer)["status"] == "acked"
        async with asyncio.timeout(WAIT_S):
            while await online(nodes) < devices:  # noqa: ASYNC110 - they are other processes
                await asyncio.sleep(POLL_S)
        playing.terminate()
        played, _ = await asyncio.wait_for(playing.communicate(), WAIT_S)
        summary = json.loads(played)
        assert summary["authenticated"] == summary["devices"] == devices
