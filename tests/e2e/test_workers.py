"""`gateway serve --workers`: several processes behind one port, each a node, and one that keeps them running."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway import keyfile, logs
from gateway.addresses import Listen
from gateway.auth.file import hash_key
from gateway.brokers import LocalBroker
from gateway.config import Log, resolve
from gateway.relay import tag_of
from gateway.supervisor import Supervisor, reserved
from tests.e2e.proxies import Upstream, nginx
from tests.e2e.test_relay import CLIENTS, SECRET, command, plates, relayed
from tests.e2e.world import PATH, POLL_S, WAIT_S, Node, Service, device, gateway, workers_of


@pytest.fixture
def kind() -> str:
    """The embedded broker knows no takeover."""
    return "mosquitto"


@asynccontextmanager
async def workers(broker_url: str, *arguments: str, node: str = "gw-1", **more: object) -> AsyncIterator[Node]:
    """Two workers that are ready, and their supervisor."""
    flags = ("--workers", "2", "--node", node, *arguments)
    async with gateway(broker_url, *flags, await_ready=False, **more) as running:  # type: ignore[arg-type]
        running.admin = (await running.logged("workers started"))["admin"]
        for number in (1, 2):
            await running.logged("gateway ready", node=f"{node}.{number}")
        yield running


async def until(node: Node, value: float, name: str, **labels: str) -> None:
    """Wait for a metric to have this value."""
    async with asyncio.timeout(WAIT_S):
        while await node.metric(name, **labels) != value:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_S)


async def test_every_client_works_whatever_worker_its_requests_come_to(broker: LocalBroker, api: Service) -> None:
    async with workers(broker.url) as node:
        serials = {f"{client}-{mode}": (client, mode) for client, mode in CLIENTS}
        async with plates(node.devices, serials):
            for serial in serials:
                await api.presence(serial, online=True)
            owners = {await command(api, serial, number) for number in range(3) for serial in serials}
            assert owners <= {"gw-1.1", "gw-1.2"}
            assert await relayed({"": node}, "poll") > 0
            assert await relayed({"": node}, "failed") == 0


async def test_what_another_host_relays_reaches_the_right_worker(
    broker: LocalBroker, api: Service, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Two hosts with two workers each behind a balancer in plain round robin: a poll may take both steps."""
    ports = [unused_tcp_port_factory() for _ in range(3)]
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, port in zip(("gw-1", "gw-2"), ports[:2], strict=True):
            environ = {"GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{port}", "GATEWAY_RELAY_SECRET": SECRET}
            host = workers(broker.url, node=name, listen=f"127.0.0.1:{port}", environ=environ)
            nodes[name] = await stack.enter_async_context(host)
        url = await stack.enter_async_context(nginx(tmp_path, ports[2], [Upstream(port) for port in ports[:2]]))
        serials = {f"{client}-{n}": (client, "polling") for client in ("sio17", "sio48") for n in "12"}
        async with plates(url, serials):
            for serial in serials:
                await api.presence(serial, online=True)
                for number in range(3):
                    await command(api, serial, number)
            assert await relayed(nodes, "poll") > 0
            assert await relayed(nodes, "failed") == 0


async def test_one_page_has_the_metrics_of_all_and_the_broker_knows_each(broker: LocalBroker, api: Service) -> None:
    async with workers(broker.url) as node:
        async with device(node, "AC1"):
            owner = (await api.presence("AC1", online=True))["node"]
            assert await node.metric("gateway_devices", presence="online") == 1
            assert await node.metric("gateway_devices", presence="online", instance=owner) == 1
        for instance in ("gw-1.1", "gw-1.2"):
            assert await node.metric("gateway_worker_up", instance=instance) == 1
            assert await node.metric("gateway_ready", instance=instance) == 1
            assert await node.metric("process_resident_memory_bytes", instance=instance) > 0
            status = await api.json(f"nodes/{instance}/status")
            assert status["online"]
        async with aiohttp.ClientSession(node.admin) as http:
            for page in ("/healthz", "/readyz", "/asyncapi.yaml"):
                async with http.get(page) as answer:
                    assert answer.status == 200
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            async with http.get("/metrics", headers=accept) as answer:
                text = await answer.text()
        assert text.endswith("# EOF\n")
        assert text.count("# TYPE gateway_ready gauge\n") == 1


async def test_a_worker_that_dies_is_started_again_and_has_its_devices(broker: LocalBroker, api: Service) -> None:
    async with workers(broker.url, errors={"worker ended"}) as node, device(node, "AC1") as first:
        owner = (await api.presence("AC1", online=True))["node"]
        (pid,) = workers_of(node, owner)
        os.kill(pid, signal.SIGKILL)
        ended = await node.logged("worker ended", node=owner)
        assert ended["status"] == -signal.SIGKILL
        await asyncio.wait_for(first.gone.wait(), WAIT_S)
        async with device(node, "AC1"):  # the other has the port
            assert await command(api, "AC1", 1) in {"gw-1.1", "gw-1.2"}
            await until(node, 1, "gateway_worker_up", instance=owner)
            other = next(name for name in ("gw-1.1", "gw-1.2") if name != owner)
            assert await node.metric("gateway_ready", instance=other) == 1


async def test_all_drain_and_sessions_survive(broker: LocalBroker, api: Service) -> None:
    async with workers(broker.url) as node, device(node, "AC1") as first, device(node, "AC2") as second:
        for serial in ("AC1", "AC2"):
            await api.presence(serial, online=True)
        assert await node.end() == 0
        for serial in ("AC1", "AC2"):
            assert (await api.presence(serial, online=False))["reason"] == "shutdown"
        await asyncio.wait_for(first.gone.wait(), WAIT_S)
        await asyncio.wait_for(second.gone.wait(), WAIT_S)


async def test_a_second_signal_ends_them_at_once(broker: LocalBroker, api: Service) -> None:
    """They wait for an ack until then."""
    async with workers(broker.url, environ={"GATEWAY_DEVICES_DRAIN_S": "600"}) as node, device(node, "AC1") as plate:

        async def silent(*_: object) -> None:
            await asyncio.Event().wait()

        plate.client.on("*", silent)
        owner = (await api.presence("AC1", online=True))["node"]
        await api.send("devices/AC1/commands/media_stop", {"stop": True})
        await until(node, 1, "gateway_commands_in_flight", instance=owner)
        node.process.terminate()
        await node.logged("gateway stopped", node="gw-1.1" if owner == "gw-1.2" else "gw-1.2")  # it had nobody
        assert node.process.returncode is None
        node.process.terminate()
        assert await asyncio.wait_for(node.process.wait(), WAIT_S) == 1


async def test_workers_end_with_their_supervisor(broker: LocalBroker, api: Service) -> None:
    async with workers(broker.url) as node, device(node, "AC1") as plate:
        pids = [*workers_of(node, "gw-1.1"), *workers_of(node, "gw-1.2")]
        handles = [os.pidfd_open(pid) for pid in pids]
        assert len(handles) == 2
        await node.end(kill=True)
        await asyncio.wait_for(plate.gone.wait(), WAIT_S)
        loop = asyncio.get_running_loop()
        for handle in handles:
            gone = asyncio.Event()
            loop.add_reader(handle, gone.set)
            await asyncio.wait_for(gone.wait(), WAIT_S)
            loop.remove_reader(handle)
            os.close(handle)
        assert (await api.presence("AC1", online=False))["reason"] == "shutdown"


async def test_a_reload_reaches_every_worker(broker: LocalBroker, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keyfile.put(keys, {"AC1": hash_key("AC1", "key", b"pepper"), "AC2": hash_key("AC2", "key", b"pepper")})
    environ = {"GATEWAY_PEPPER": "pepper"}
    async with (
        workers(broker.url, "--auth", f"file:{keys}", environ=environ) as node,
        device(node, "AC1") as first,
        device(node, "AC2") as second,
    ):
        for serial in ("AC1", "AC2"):
            keyfile.remove(keys, serial)
        node.process.send_signal(signal.SIGHUP)
        await asyncio.wait_for(first.gone.wait(), WAIT_S)
        await asyncio.wait_for(second.gone.wait(), WAIT_S)
        for instance in ("gw-1.1", "gw-1.2"):
            assert await node.metric("gateway_config_reloads_total", result="ok", instance=instance) == 1


async def serve(*arguments: str) -> tuple[int | None, str]:
    command = (sys.executable, "-m", "gateway", "serve", "--workers", "2", "--admin", "127.0.0.1:0", *arguments)
    environ = os.environ | {"GATEWAY_PEPPER": "pepper"}
    process: Process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environ)
    _, said = await asyncio.wait_for(process.communicate(), WAIT_S)
    return process.returncode, said.decode()


async def test_a_port_that_another_program_has_is_refused(unused_tcp_port: int) -> None:
    """Also where it would share it: half of the devices would go there."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", unused_tcp_port))
        other.listen()
        status, said = await serve("--auth", "open", "--listen", f"127.0.0.1:{unused_tcp_port}")
    assert status == 2
    assert said.splitlines() == [f"cannot serve: devices.listen: 127.0.0.1:{unused_tcp_port}: Address already in use"]


async def test_what_no_worker_can_start_with_is_said_once() -> None:
    """And it is not tried again."""
    status, said = await serve("--listen", "127.0.0.1:0", "--auth", "file:/nowhere")
    assert (status, said) == (2, "auth.file: /nowhere: cannot be read: No such file or directory\n")


@asynccontextmanager
async def supervised(broker_url: str, directory: Path, **more: float) -> AsyncIterator[Supervisor]:
    """A supervisor in this process, whose workers have their sockets in a directory."""
    flags = {"node": "gw-1", "workers": "2", "auth.mode": "open", "mqtt.url": broker_url, "admin.listen": "127.0.0.1:0"}
    with reserved(Listen("127.0.0.1", 0)) as listen:
        config = resolve({}, {}, {**flags, "devices.listen": str(listen)})
        supervisor = Supervisor(config, str(directory), logs.LogHandler(Log()), **more)
        await supervisor.start()
        try:
            yield supervisor
        finally:
            await supervisor.stop()


async def test_a_worker_that_hangs_is_killed_and_started_again(broker: LocalBroker, tmp_path: Path) -> None:
    async with supervised(broker.url, tmp_path, hung_s=1.0) as supervisor:
        hung = supervisor._processes[0]
        assert hung._process is not None
        before = hung._process
        before.send_signal(signal.SIGSTOP)
        assert await asyncio.wait_for(before.wait(), WAIT_S) == -signal.SIGKILL
        async with asyncio.timeout(WAIT_S):
            while (page := await hung.page("/healthz")) is None:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(POLL_S)
        assert page[0] == 200
        assert hung._process is not before


async def test_what_comes_from_a_worker_is_not_relayed_again(broker: LocalBroker, tmp_path: Path) -> None:
    """Whatever the session id names: there is no way round in circles."""
    async with supervised(broker.url, tmp_path) as supervisor:
        url = f"http://worker{PATH}/?EIO=4&transport=polling&sid={tag_of('gw-1.2')}.guessed"
        connector = aiohttp.UnixConnector(str(tmp_path / "relay-1"))
        async with aiohttp.ClientSession(connector=connector) as http, http.get(url) as answer:
            assert (answer.status, (await answer.json())["message"]) == (400, "Session ID unknown")
        pages = [page for process in supervisor._processes if (page := await process.page("/metrics"))]
        for _, text in pages:
            assert 'gateway_relayed_total{what="poll"} 0.0' in text
        assert len(pages) == 2
