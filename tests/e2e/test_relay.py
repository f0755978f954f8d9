"""Two nodes behind a balancer that sends every request to the other one: no sticky sessions are needed."""

import asyncio
import base64
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.brokers import LocalBroker
from tests.clients.install import HERE, installed, program
from tests.e2e.proxies import Proxy, Upstream, haproxy, nginx
from tests.e2e.world import PATH, Node, Service, gateway

SECRET = "0123456789abcdef0123456789abcdef"
CLIENTS = [(client, mode) for client in ("sio17", "sio25", "sio48") for mode in ("polling", "upgrade")]


@pytest.fixture
def kind() -> str:
    """The embedded broker knows no takeover."""
    return "mosquitto"


@asynccontextmanager
async def fleet(
    broker: LocalBroker, directory: Path, free_port: Callable[[], int], proxy: Proxy = nginx
) -> AsyncIterator[tuple[str, dict[str, Node]]]:
    """Two nodes that relay to each other, and the URL of a balancer in front of them."""
    ports = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, port in zip(("gw-1", "gw-2"), ports[:2], strict=True):
            environ = {"GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{port}", "GATEWAY_RELAY_SECRET": SECRET}
            node = gateway(broker.url, "--node", name, listen=f"127.0.0.1:{port}", environ=environ)
            nodes[name] = await stack.enter_async_context(node)
        balancer = proxy(directory, ports[2], [Upstream(port) for port in ports[:2]])
        yield await stack.enter_async_context(balancer), nodes


async def plate(client: str, url: str, mode: str, serial: str) -> Process:
    """A device of a client from npm, as a process."""
    installed(client)
    signature = base64.b64encode(f"{serial}:key".encode()).decode()
    command = (program("node"), "plate.js", client, url, mode, signature)
    return await asyncio.create_subprocess_exec(*command, cwd=HERE, stdin=PIPE)


@asynccontextmanager
async def plates(url: str, modes: Mapping[str, tuple[str, str]]) -> AsyncIterator[None]:
    """Devices by their serials, each of a client in a mode, while this is entered."""
    async with AsyncExitStack() as stack:
        for serial, (client, mode) in modes.items():
            process = await plate(client, url, mode, serial)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        yield


async def relayed(nodes: dict[str, Node], what: str) -> float:
    return sum([await node.metric("gateway_relayed_total", what=what) for node in nodes.values()])


async def command(api: Service, serial: str, number: int) -> str:
    """Send a command and return the node that its device acked at."""
    await api.send(f"devices/{serial}/commands/bind_class/{number}", {"id": number})
    outcome = await api.outcome(f"devices/{serial}/acks/bind_class/{number}")
    assert outcome["status"] == "acked"
    return str(outcome["node"])


@pytest.mark.parametrize("proxy", [nginx, haproxy])
async def test_every_client_works_without_sticky_sessions(
    broker: LocalBroker, api: Service, tmp_path: Path, unused_tcp_port_factory: Callable[[], int], proxy: Proxy
) -> None:
    async with fleet(broker, tmp_path, unused_tcp_port_factory, proxy) as (url, nodes):
        serials = {f"{client}-{mode}": (client, mode) for client, mode in CLIENTS}
        async with plates(url, serials):
            for serial in serials:
                await api.presence(serial, online=True)
            for number in range(3):
                for serial in serials:
                    await command(api, serial, number)
            assert await relayed(nodes, "poll") > len(CLIENTS)
            assert await relayed(nodes, "failed") == 0


async def test_a_node_that_is_gone_sends_its_devices_to_another_at_once(
    broker: LocalBroker, api: Service, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    async with fleet(broker, tmp_path, unused_tcp_port_factory) as (url, nodes):
        process = await plate("sio48", url, "polling", "AC1")
        try:
            await api.presence("AC1", online=True)
            owner = await command(api, "AC1", 1)
            await nodes[owner].end(kill=True)
            other = next(name for name in nodes if name != owner)
            while (await api.presence("AC1", online=True))["node"] != other:
                pass
            assert await command(api, "AC1", 2) == other
        finally:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("claim", ["", "1700000000 00", "9999999999999999999999 x", "x"])
async def test_a_request_that_only_claims_to_be_relayed_is_refused(
    broker: LocalBroker, tmp_path: Path, unused_tcp_port_factory: Callable[[], int], claim: str
) -> None:
    async with fleet(broker, tmp_path, unused_tcp_port_factory) as (_, nodes), aiohttp.ClientSession() as http:
        url = f"{nodes['gw-1'].devices}{PATH}/?EIO=4&transport=polling"
        async with http.get(url, headers={"X-Gateway-Relay": claim}) as answer:
            assert answer.status == 403


async def test_what_no_node_has_is_unknown_and_is_not_passed_around(
    broker: LocalBroker, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    async with fleet(broker, tmp_path, unused_tcp_port_factory) as (_, nodes), aiohttp.ClientSession() as http:
        url = f"{nodes['gw-1'].devices}{PATH}/?EIO=4&transport=polling"
        async with http.get(url) as answer:
            sid = json.loads((await answer.text())[1:])["sid"]
        tag = sid.rpartition(".")[0]
        for unknown, polls, gone in ((f"{tag}.guessed", 1, 0), ("0123456789.guessed", 1, 1), ("guessed", 1, 1)):
            async with http.get(f"{nodes['gw-2'].devices}{PATH}/?EIO=4&transport=polling&sid={unknown}") as answer:
                assert answer.status == 400
                assert (await answer.json())["message"] == "Session ID unknown"
            assert (await relayed(nodes, "poll"), await relayed(nodes, "gone")) == (polls, gone)
