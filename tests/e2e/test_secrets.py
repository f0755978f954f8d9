"""A node that has every kind of secret shows none of them: not in its log, its pages, its topics, or to `ps`."""

import base64
from pathlib import Path

import aiohttp
import pytest

from gateway import keyfile
from gateway.addresses import BrokerUrl
from gateway.auth.base import DeviceKey
from gateway.auth.file import hash_key
from gateway.auth.http import Service
from gateway.brokers import LocalBroker
from gateway.config import load
from gateway.mqtt.values import Credentials
from gateway.tokens import mint
from tests.e2e.hostile import RawSocket
from tests.e2e.world import Node, gateway, service

SECRETS = {
    "GATEWAY_PEPPER": "pepper-of-the-hashes-0123456789",
    "GATEWAY_TOKEN_SECRET": "secret-of-the-tokens-0123456789abcdef",
    "GATEWAY_ADMIN_TOKEN": "token-of-the-admin-port-0123456789",
    "GATEWAY_RELAY_SECRET": "secret-of-the-relay-0123456789abcdef",
}
PASSWORD, DEVICE_KEY, WRONG_KEY = "password-of-the-broker", "device-key-0123456789", "guessed-key-9876543210"
SETTINGS = """
[auth]
mode = "file"
file = "{keys}"
[tokens]
algorithm = "HS256"
[admin]
token_env = "GATEWAY_ADMIN_TOKEN"
[relay]
advertise = "http://127.0.0.1:1"
[log]
level = "debug"
"""


@pytest.fixture
def kind() -> str:
    return "mosquitto"


async def test_a_node_shows_no_secret(broker: LocalBroker, tmp_path: Path) -> None:
    keys, config = tmp_path / "keys", tmp_path / "gateway.toml"
    keyfile.put(keys, {"AC1": hash_key("AC1", DEVICE_KEY, SECRETS["GATEWAY_PEPPER"].encode())})
    config.write_text(SETTINGS.format(keys=keys))
    url = broker.url.replace("mqtt://", f"mqtt://gateway:{PASSWORD}@")
    environ = SECRETS | {"GATEWAY_MQTT_URL": url}
    token = mint({"exp": 4_000_000_000, "rooms": ["AC1"]}, SECRETS["GATEWAY_TOKEN_SECRET"].encode())
    signatures = [base64.b64encode(f"AC1:{key}".encode()).decode() for key in (DEVICE_KEY, WRONG_KEY)]
    secrets = [*SECRETS.values(), PASSWORD, DEVICE_KEY, WRONG_KEY, *signatures, token, token.rpartition(".")[2]]
    async with (
        service(broker.url, sees=("#",)) as api,
        gateway(None, "--auth", f"file:{keys}", config=str(config), environ=environ, forked=False) as node,
    ):
        await use(node, token)
        await api.presence("AC1", online=False)
        shown = [Path(f"/proc/{node.process.pid}/cmdline").read_text(), *await pages(node)]
        shown += [f"{message.topic} {message.payload!r} {message.properties}" for message in api._messages]
        shown += [repr(load(config, environ, {})), str(load(config, environ, {}))]
    shown.append(node.said.decode())
    assert {"debug", "info"} <= {line["level"] for line in node.lines}
    assert len(shown) > 10
    for secret in secrets:
        assert [text for text in shown if secret in text] == [], "no secret, in any form"


async def use(node: Node, token: str) -> None:
    """Right and wrong keys, one where a serial belongs, right and wrong tokens, an event of its own with all of it."""
    async with RawSocket.open(node) as peer:
        assert await peer.authenticate("AC1", WRONG_KEY) == "auth:fail"
        peer.text(f'42["authentication",{{"signature":"{base64.b64encode(WRONG_KEY.encode()).decode()}"}}]')
        await peer.until('42["auth:fail"')
        peer.text(f'42["authentication",["{WRONG_KEY}"]]')
        await peer.until('42["auth:fail"')
        assert await peer.authenticate("AC1", DEVICE_KEY) == "auth:ok"
        peer.text("4399[]")  # an ack of nothing, which is worth a line for debugging
        await node.logged("ignored: unknown_ack")
    await node.logged("device gone")
    async with aiohttp.ClientSession() as http:
        for given in (token, token[:-4], "x" + token):
            for query, header in (({"token": given}, {}), ({}, {"Authorization": f"Bearer {given}"})):
                url = f"{node.devices}/socket/socket.io/"
                async with http.ws_connect(
                    url, params={"EIO": "4", "transport": "websocket"} | query, headers=header
                ) as socket:
                    await socket.receive()
                    await socket.send_str("40")
                    await socket.receive()


async def pages(node: Node) -> list[str]:
    """Everything on the admin port, and what is said without its token, or with a wrong one."""
    texts = []
    async with aiohttp.ClientSession(node.admin) as http:
        for given in ("", "wrong", SECRETS["GATEWAY_ADMIN_TOKEN"]):
            for page in ("/", "/healthz", "/readyz", "/metrics", "/asyncapi.yaml"):
                async with http.get(page, headers={"Authorization": f"Bearer {given}"}) as response:
                    texts.append(f"{response.headers} {await response.text()}")
    return texts


@pytest.mark.parametrize(
    "what",
    [
        DeviceKey("AC1", PASSWORD),
        Credentials("gateway", PASSWORD.encode()),
        BrokerUrl("h", 1883, username="gateway", password=PASSWORD),
        Service("https://h", 1.0, 1, PASSWORD),
        {"nested": [BrokerUrl("h", 1883, username="gateway", password=PASSWORD)]},
    ],
    ids=lambda what: type(what).__name__,
)
def test_what_holds_a_secret_shows_itself_without(what: object) -> None:
    for text in (repr(what), str(what), f"{what}", f"{what!r}"):
        assert PASSWORD not in text
