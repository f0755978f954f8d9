"""TLS on both sides, with real devices and a real mosquitto."""

import asyncio
import json
import os
import signal
import ssl
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.client import Disconnected, Fleet
from tests.certificates import Authority, Files
from tests.clients.install import missing
from tests.e2e.hostile import bear, counted
from tests.e2e.world import WAIT_S, Device, Node, Service, device, gateway


@pytest.fixture
def kind() -> str:
    return "mosquitto"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "one")


@pytest.fixture
def files(authority: Authority) -> Files:
    return authority.issue("gateway")


@pytest.fixture
async def node(broker: LocalBroker, files: Files) -> AsyncIterator[Node]:
    environ = {"GATEWAY_DEVICES_TLS_CERT": str(files.certificate), "GATEWAY_DEVICES_TLS_KEY": str(files.key)}
    async with gateway(broker.url, environ=environ) as running:
        yield running


@asynccontextmanager
async def plate(node: Node, serial: str, trusting: ssl.SSLContext, *transports: str) -> AsyncIterator[Device]:
    """A device that trusts one authority."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http:
        one = Device(serial, http=http)
        try:
            await one.connect(node.devices, transports=list(transports) or None)
            assert await one.authenticate() == "auth:ok"
            yield one
        finally:
            await one.disconnect()


async def served(api: Service, one: Device) -> None:
    await api.send(f"devices/{one.serial}/commands/media_stop", {"stop": True})
    assert (await api.json(f"devices/{one.serial}/acks/media_stop"))["status"] == "acked"
    assert not one.gone.is_set()


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")], ids="+".join)
async def test_a_device_over_tls(node: Node, api: Service, authority: Authority, transports: tuple[str, ...]) -> None:
    assert node.devices.startswith("https://")
    async with plate(node, "AC1", authority.trusting, *transports) as one:
        await served(api, one)


async def test_the_certificate_is_replaced_on_disk(
    node: Node, api: Service, authority: Authority, files: Files, tmp_path: Path
) -> None:
    """Who comes next sees the new one, sockets that are open live on; a pair that is none changes nothing."""
    async with plate(node, "OLD", authority.trusting) as old:
        other = Authority(tmp_path, "two")
        other.issue("new", over=files)
        await node.logged("certificate read again")
        async with plate(node, "NEW", other.trusting) as new:
            for one in (old, new):
                await served(api, one)
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await fetch(node, authority.trusting)
            files.key.write_bytes(authority.issue("stray").key.read_bytes())
            await node.logged("file not usable, its last good content counts")
            async with plate(node, "NEWER", other.trusting) as newer:
                for one in (old, new, newer):
                    await served(api, one)


async def test_a_signal_reads_the_certificate_at_once(node: Node, files: Files, tmp_path: Path) -> None:
    Authority(tmp_path, "two").issue("new", over=files)
    node.process.send_signal(signal.SIGHUP)
    await node.logged("reading files again")
    await node.logged("certificate read again")


async def test_what_is_no_tls_is_closed_and_not_logged(node: Node, api: Service, authority: Authority) -> None:
    """A stranger fills the log with nothing: not with tracebacks of handshakes that fail."""
    port = int(node.devices.rpartition(":")[2])
    for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05nonsense", b"\x00" * 100):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        async with asyncio.timeout(WAIT_S):
            await reader.read()
        writer.close()
    untrusting = ssl.create_default_context()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await fetch(node, untrusting)
    async with plate(node, "AC1", authority.trusting) as one:
        await served(api, one)
    assert [line for line in node.lines if line["level"] in ("warning", "error")] == []


@pytest.mark.parametrize(("peers", "reason"), [(80, "crowded-out"), (30, "slow-request")])
async def test_handshakes_that_never_end(
    broker: LocalBroker, api: Service, authority: Authority, files: Files, peers: int, reason: str
) -> None:
    """More than there are places for an address, or so few that each has its time: they are strangers like others."""
    environ = {
        "GATEWAY_DEVICES_TLS_CERT": str(files.certificate),
        "GATEWAY_DEVICES_TLS_KEY": str(files.key),
        "GATEWAY_ADMISSION_REQUEST_TIMEOUT_S": "1",
        "GATEWAY_ADMISSION_MAX_UNAUTHENTICATED_PER_ADDRESS": "50",
    }
    numbers = count()
    async with (
        gateway(broker.url, environ=environ) as node,
        plate(node, "BYSTANDER", authority.trusting, "websocket") as bystander,
    ):
        port = int(node.devices.rpartition(":")[2])

        async def attack() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            try:
                writer.write(b"\x16\x03\x01")
                assert await reader.read() == b""
            finally:
                writer.transport.abort()

        async def seen() -> bool:
            async with plate(node, f"NEW{next(numbers)}", authority.trusting, "websocket"):
                return await counted(node, "gateway_refusals_total", reason=reason) > 50

        await bear(node, api, bystander, attack, seen, peers=peers)


async def fetch(node: Node, context: ssl.SSLContext) -> int:
    async with aiohttp.ClientSession() as http, http.get(node.devices, ssl=context) as response:
        return response.status


async def test_the_admin_port_over_tls_with_a_token(broker: LocalBroker, authority: Authority, files: Files) -> None:
    token = "a-token-of-sixteen-or-more"
    environ = {
        "GATEWAY_ADMIN_TLS_CERT": str(files.certificate),
        "GATEWAY_ADMIN_TLS_KEY": str(files.key),
        "GATEWAY_ADMIN_TOKEN_ENV": "GATEWAY_ADMIN_TOKEN",
        "GATEWAY_ADMIN_TOKEN": token,
    }
    async with gateway(broker.url, environ=environ) as node, aiohttp.ClientSession(node.admin) as http:
        assert node.admin.startswith("https://")
        for page, headers, status in (
            ("/metrics", {}, 401),
            ("/metrics", {"Authorization": "Bearer wrong"}, 401),
            ("/metrics", {"Authorization": f"Bearer {token}"}, 200),
            ("/healthz", {}, 200),
            ("/readyz", {}, 200),
        ):
            async with http.get(page, headers=headers, ssl=authority.trusting) as response:
                assert response.status == status
                text = await response.text()
            assert ('gateway_refusals_total{reason="admin-token"} 2.0' in text) is (
                status == 200 and page == "/metrics"
            )


# the broker


@pytest.fixture
async def tls_broker(tmp_path: Path, authority: Authority) -> AsyncIterator[LocalBroker]:
    """A mosquitto that speaks TLS only, and to those only who have a certificate."""
    files = authority.issue("broker")
    overrides = {
        "cafile": str(authority.path),
        "certfile": str(files.certificate),
        "keyfile": str(files.key),
        "require_certificate": "true",
    }
    for path in files:
        path.chmod(0o644)
    try:
        async with local_broker("mosquitto", tmp_path, overrides) as running:
            running.url = running.url.replace("mqtt://", "mqtts://")
            yield running
    except BrokerUnavailable as problem:
        missing(str(problem))


def environment(authority: Authority, client: Files) -> dict[str, str]:
    return {
        "GATEWAY_MQTT_CA_FILE": str(authority.path),
        "GATEWAY_MQTT_CERT_FILE": str(client.certificate),
        "GATEWAY_MQTT_KEY_FILE": str(client.key),
    }


async def test_links_services_and_the_shell_show_a_certificate(tls_broker: LocalBroker, authority: Authority) -> None:
    client = authority.issue("client")
    environ = environment(authority, client)
    context = authority.trusting
    context.load_cert_chain(*client)
    async with gateway(tls_broker.url, environ=environ) as node, device(node, "AC1") as one:
        async with Fleet(tls_broker.url, tls=context) as fleet:
            assert (await fleet.call("AC1", "media_stop", {"stop": True})).status == "acked"
            async with fleet.presence() as devices:
                assert devices["AC1"].online
        one.answers["device_status"] = lambda: {"ack": True, "status": "on"}
        status, output, _ = await shell(tls_broker, environ, "call", "AC1", "device_status")
        assert (status, json.loads(output)["status"]) == (0, "acked")


async def shell(broker: LocalBroker, environ: dict[str, str], *words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words),
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | environ | {"GATEWAY_MQTT_URL": broker.url},
    )
    output, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho forgets to close its socket
async def test_who_shows_none_or_trusts_another_does_not_get_to_the_broker(
    tls_broker: LocalBroker, authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(Disconnected):
        async with Fleet(tls_broker.url, tls=authority.trusting):
            pass
    with pytest.raises(Disconnected, match="CERTIFICATE_VERIFY_FAILED"):
        async with Fleet(tls_broker.url):
            pass
    environ = environment(Authority(tmp_path, "two"), authority.issue("client"))
    status, output, errors = await shell(tls_broker, environ, "call", "AC1", "device_status")
    assert (status, output) == (2, "")
    assert "CERTIFICATE_VERIFY_FAILED" in errors
    environ["GATEWAY_MQTT_CA_FILE"] = "/none"
    status, _, errors = await shell(tls_broker, environ, "presence")
    assert (status, errors) == (2, "mqtt.ca_file: /none: No such file or directory\n")


async def test_a_unix_socket_to_the_broker(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    try:
        async with local_broker("mosquitto", tmp_path, {"max_keepalive": f"300\nlistener 0 {path}"}):
            url = f"mqtt+unix://{path}"
            async with gateway(url) as node, device(node, "AC1"), Fleet(url) as fleet:
                assert (await fleet.call("AC1", "media_stop", {"stop": True})).status == "acked"
    except BrokerUnavailable as problem:
        missing(str(problem))
