"""The proxies of `deploy/`, run for real: every generation of clients, what they let in, and what they wait for."""

import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from gateway.brokers import LocalBroker
from gateway.config import Config
from tests.clients.install import installed, program
from tests.clients.server import answering
from tests.clients.test_matrix import CHECKS, run
from tests.e2e.proxies import (
    DEPLOY,
    NODE_FLAGS,
    Proxy,
    Upstream,
    haproxy,
    haproxy_command,
    haproxy_config,
    nginx,
    nginx_command,
    nginx_listen,
    write_nginx,
)
from tests.e2e.world import PATH, Device, gateway

MATRIX = [("sio17", "polling"), ("sio17", "upgrade"), ("sio48", "upgrade")]
proxies = pytest.mark.parametrize("proxy", [nginx, haproxy])
TWO = [Upstream(8080), Upstream(8081)]


def checked(command: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_nginx_takes_what_is_shipped(tmp_path: Path, unused_tcp_port: int) -> None:
    nodes = (DEPLOY / "nginx/nodes.conf").read_text("utf-8")
    assert set(re.findall(r"(?m)^server \S+ (.*);$", nodes)) == {NODE_FLAGS}
    write_nginx(tmp_path, nginx_listen(tmp_path, unused_tcp_port), nodes)
    done = checked(nginx_command(tmp_path, "-t"))
    assert (done.returncode, re.findall("warn|emerg", done.stderr)) == (0, []), done.stderr
    write_nginx(tmp_path, nginx_listen(tmp_path, unused_tcp_port), f"{nodes}\nserver;")
    assert checked(nginx_command(tmp_path, "-t")).returncode == 1


def test_haproxy_takes_what_is_shipped(tmp_path: Path, unused_tcp_port: int) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(haproxy_config(tmp_path, unused_tcp_port, TWO), "utf-8")
    done = checked(haproxy_command(config, "-c"))
    assert (done.returncode, re.findall("WARNING|ALERT", done.stderr)) == (0, []), done.stderr
    config.write_text(haproxy_config(tmp_path, unused_tcp_port, TWO).replace("balance leastconn", "balance evenly"))
    assert checked(haproxy_command(config, "-c")).returncode == 1


def seconds(text: str, pattern: str) -> float:
    (found,) = re.findall(rf"^\s*{pattern}\s+(\d+)s;?$", text, re.MULTILINE)
    return float(found)


def test_the_proxies_wait_longer_than_a_heartbeat_may_take() -> None:
    devices = Config().devices
    silent_s = devices.ping_interval_s + devices.ping_timeout_s
    text = (DEPLOY / "nginx/nginx.conf").read_text("utf-8")
    waits = [seconds(text, name) for name in ("proxy_read_timeout", "proxy_send_timeout", "send_timeout")]
    text = (DEPLOY / "haproxy/haproxy.cfg").read_text("utf-8")
    waits += [seconds(text, f"timeout {name}") for name in ("client", "server", "tunnel")]
    assert min(waits) > silent_s


@pytest.fixture
async def origins() -> AsyncIterator[list[Upstream]]:
    """Two servers that answer real clients."""
    async with answering() as one, answering() as two:
        yield [Upstream(urlsplit(origin).port or 0) for origin in (one, two)]


@proxies
async def test_clients_of_every_generation(
    proxy: Proxy, origins: list[Upstream], tmp_path: Path, unused_tcp_port: int
) -> None:
    """Each client does all that it can do without a proxy: nothing is held back, cut off or sent elsewhere."""
    node = program("node")
    async with proxy(tmp_path, unused_tcp_port, origins[:1]) as url:  # two need a relay
        for client, mode in MATRIX:
            installed(client)
            assert len(await run(node, "driver.js", client, url, mode)) == CHECKS, (client, mode)


@proxies
async def test_what_comes_in(proxy: Proxy, origins: list[Upstream], tmp_path: Path, unused_tcp_port: int) -> None:
    """Nothing but Socket.IO, and no more than a message may have."""
    async with proxy(tmp_path, unused_tcp_port, origins) as url, aiohttp.ClientSession(url) as client:
        for path in ("/", "/metrics", "/readyz", "/socket", "/socket/socket.iox/"):
            assert (await client.get(path)).status == 404, path
        poll = f"{PATH}/?EIO=4&transport=polling"
        assert (await client.get(poll)).status == 200
        for length, status in ((Config().devices.max_payload_bytes, 400), (1_100_000, 413)):  # 400: the node's answer
            body = BytesIO(b"4" * length)
            response = await client.post(f"{poll}&sid=unknown", data=body, expect100=True)
            assert response.status == status, length


@proxies
async def test_a_node_that_is_gone_or_does_not_answer_is_passed_over(
    proxy: Proxy, origins: list[Upstream], tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Every handshake succeeds while one node is there."""
    front, closed = unused_tcp_port_factory(), unused_tcp_port_factory()
    async with proxy(tmp_path, front, [Upstream(closed), origins[0]]) as url, aiohttp.ClientSession(url) as client:
        for _ in range(20):
            assert (await client.get(f"{PATH}/?EIO=4&transport=polling")).status == 200


@proxies
async def test_nodes_that_were_all_gone_get_devices_as_soon_as_they_are_back(
    proxy: Proxy, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """WebSockets never end: a proxy must not wait for the first to end before it sends the next."""
    front, back, closed = (unused_tcp_port_factory() for _ in range(3))
    address = f"{PATH}/?EIO=4&transport=websocket"

    async def stay(request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(proxy(tmp_path, front, [Upstream(back), Upstream(closed)]))
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        for _ in range(10):
            assert (await client.get(address)).status in (502, 503)
        runner = web.ServerRunner(web.Server(stay))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", back).start()
        for _ in range(10):
            await stack.enter_async_context(client.ws_connect(address))


@proxies
async def test_a_device_comes_in_over_tls_with_its_own_address(
    proxy: Proxy, broker: LocalBroker, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """The files as they are shipped, certificate included: the Origin is the proxy's host, the address the client's."""
    front, admin = unused_tcp_port_factory(), unused_tcp_port_factory()
    environ = {"GATEWAY_ADMISSION_TRUSTED_PROXIES": "127.0.0.1"}
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(gateway(broker.url, "--admin", f"127.0.0.1:{admin}", environ=environ))
        at = Upstream(urlsplit(node.devices).port or 0, admin)
        url = await stack.enter_async_context(proxy(tmp_path, front, [at], tls=True))
        trusted = ssl.create_default_context(cafile=str(tmp_path / "gateway.pem"))
        for number, transport in enumerate(("polling", "websocket"), 2):
            here = aiohttp.TCPConnector(ssl=trusted, local_addr=(f"127.0.0.{number}", 0))
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=here))
            plate = Device(f"AC{number}", http=http)
            headers = {"Origin": url, "X-Forwarded-For": "192.0.2.1"}
            await plate.connect(url, transports=[transport], headers=headers)
            assert await plate.authenticate() == "auth:ok"
            await node.logged("device here", serial=f"AC{number}", address=f"127.0.0.{number}")
            await plate.disconnect()
