"""Who may publish and receive what: the mosquitto.conf, ACL and users that production starts from, each rule tried."""

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiomqtt
import mqtt5
import pytest
from paho.mqtt.client import topic_matches_sub
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.brokers import BrokerUnavailable, local_broker
from tests.clients.install import missing, program
from tests.e2e.world import WAIT_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ROLES: Final = {"G": "gateway", "C": "commander", "D": "debugger", "O": "observer", "V": "AC1", "S": "stranger"}
"""V is a device in auth mode `broker`, S somebody with a password and nothing else."""

RIGHTS: Final[Mapping[str, tuple[str, str]]] = {  # topic under the prefix: who may write it, who may read it
    "devices/AC1/commands/media_stop": ("CD", "GV"),
    "devices/AC1/commands/media_stop/7": ("CD", "GV"),
    "devices/AC2/commands/media_stop": ("CD", "G"),
    "devices/AC1/commands/not/even/malformed": ("CD", "GV"),  # is owed a refusal
    **{
        f"devices/AC1/commands/{event}{id}": ("D", "GV")
        for event in ("remote_cmd", "enable_remote_cmd", "disable_remote_cmd")
        for id in ("", "/7")
    },
    "devices/AC1/replies/question/7": ("CD", "GV"),
    "devices/AC2/replies/question/7": ("CD", "G"),
    "devices/AC1/replies/question": ("", ""),
    "devices/AC1/acks/media_stop": ("GV", "CDO"),
    "devices/AC1/acks/media_stop/7": ("GV", "CDO"),
    "devices/AC2/acks/media_stop/7": ("G", "CDO"),
    "devices/AC1/acks/remote_cmd": ("GV", "D"),
    "devices/AC1/acks/remote_cmd/7": ("GV", "D"),
    "devices/AC1/acks/a/b/c": ("", "CDO"),
    "devices/AC1/events/question": ("GV", "CDO"),
    "devices/AC1/events/question/7": ("GV", "CDO"),
    "devices/AC2/events/question": ("G", "CDO"),
    "devices/AC1/events/cmd_result": ("GV", "D"),
    "devices/AC1/events/cmd_result/7": ("GV", "D"),
    "devices/AC1/presence": ("GV", "GCDO"),
    "devices/AC2/presence": ("G", "GCDO"),
    "devices/AC1/anything": ("", ""),
    "rooms/bp_student_1/events/memos_update": ("GCD", "G"),
    "rooms/wxa_student_1/events/memos_read": ("GCD", "G"),
    "rooms/AC1/events/remote_cmd": ("GD", "G"),
    "rooms/AC1/events/cmd_result": ("G", "GD"),
    "rooms/AC1/events/enable_remote_cmd": ("G", "G"),
    "rooms/AC1/events/restart_device": ("G", "G"),
    "rooms/AC1/anything": ("", ""),
    "nodes/gw-1/status": ("G", "GCDO"),
    "inbox/commander/outcomes": ("GCDVS", "CD"),  # the patterns for devices hold for every user
    "anything": ("", ""),
}


def rights(kind: int, role: str) -> set[str]:
    """The topics that a role may write (0) or read (1)."""
    return {topic for topic, who in RIGHTS.items() if role in who[kind]}


def client(address: str, user: str, password: str | None = None, **options: Any) -> aiomqtt.Client:
    host, _, port = address.removeprefix("mqtt://").rpartition(":")
    return aiomqtt.Client(
        host, int(port), username=user, password=password, protocol=aiomqtt.ProtocolVersion.V5, **options
    )


@asynccontextmanager
async def mosquitto(tmp_path: Path, overrides: Mapping[str, str | None]) -> AsyncIterator[str]:
    """mosquitto with the production ACL, and a user `root` who may do everything; gives its address."""
    acl = tmp_path / "acl"
    acl.write_text((DEPLOY / "mosquitto" / "acl").read_text("utf-8") + "user root\ntopic readwrite #\n", "utf-8")
    acl.chmod(0o600)
    try:
        async with local_broker("mosquitto", tmp_path, {"acl_file": str(acl), **overrides}) as broker:
            yield broker.url
    except BrokerUnavailable as problem:
        missing(str(problem))


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A broker that asks for no passwords."""
    async with mosquitto(tmp_path, {}) as found:
        yield found


@pytest.fixture
async def root(address: str) -> AsyncIterator[aiomqtt.Client]:
    async with client(address, "root") as found:
        yield found


async def until_end(subscriber: aiomqtt.Client) -> set[str]:
    """The topics of the messages up to the one that says `end`."""
    topics = set()
    async with asyncio.timeout(WAIT_S):
        async for message in subscriber.messages:
            if message.payload == b"end":
                break
            topics.add(message.topic.value.removeprefix("gw/v1/"))
    return topics


@pytest.mark.parametrize("retain", [False, True], ids=["", "retained"])
@pytest.mark.parametrize("role", ROLES)
async def test_each_role_writes_its_own_topics_only(
    role: str, retain: bool, address: str, root: aiomqtt.Client
) -> None:
    await root.subscribe("#", qos=1)
    async with client(address, ROLES[role]) as publisher:
        for topic in RIGHTS:
            await publisher.publish(f"gw/v1/{topic}", "x", qos=1, retain=retain)
    await root.publish("the", "end", qos=1)
    assert await until_end(root) == rights(0, role)


@pytest.mark.parametrize("role", ROLES)
async def test_nor_does_it_write_others_by_its_will(role: str, address: str, root: aiomqtt.Client) -> None:
    """A Will is published by the broker, when its owner is gone."""
    await root.subscribe("#", qos=1)
    host, _, port = address.removeprefix("mqtt://").rpartition(":")
    for topic in RIGHTS:
        will = mqtt5.Will(f"gw/v1/{topic}", payload=b"x", qos=mqtt5.QoS.AT_LEAST_ONCE)
        connect = mqtt5.ConnectPacket("", username=ROLES[role], will=will).write()
        reason = mqtt5.DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(connect + mqtt5.DisconnectPacket(reason_code=reason).write())
        assert (await reader.read())[0] == 0x20, "a CONNACK, and then the end"
        writer.close()
    await root.publish("the", "end", qos=1)
    assert await until_end(root) == rights(0, role)


ALL: Final = [["#"], ["$share/group/gw/v1/#"], [f"gw/v1/{topic}" for topic in RIGHTS]]


@pytest.mark.parametrize("filters", ALL, ids=["#", "shared", "each"])
@pytest.mark.parametrize("role", ROLES)
async def test_each_role_reads_its_own_topics_only(
    role: str, filters: list[str], address: str, root: aiomqtt.Client
) -> None:
    own_end = f"gw/v1/devices/{ROLES[role]}/commands/end"  # the pattern: each may read one such
    async with client(address, ROLES[role]) as subscriber:
        await subscriber.subscribe([(topic, 1) for topic in (*filters, own_end)])
        for topic in RIGHTS:
            await root.publish(f"gw/v1/{topic}", "x", qos=1)
        await root.publish(own_end, "end", qos=1)
        assert await until_end(subscriber) == rights(1, role)


@pytest.mark.parametrize("role", ROLES)
async def test_nor_does_it_read_what_was_retained(role: str, address: str, root: aiomqtt.Client) -> None:
    for topic in RIGHTS:
        await root.publish(f"gw/v1/{topic}", "x", qos=1, retain=True)
    async with client(address, ROLES[role]) as subscriber:
        own_end = f"gw/v1/devices/{ROLES[role]}/commands/end"
        await subscriber.subscribe([("gw/v1/#", 1), (own_end, 1)])
        await root.publish(own_end, "end", qos=1)
        assert await until_end(subscriber) == rights(1, role)


async def test_a_refused_publisher_is_told(address: str) -> None:
    host, _, port = address.removeprefix("mqtt://").rpartition(":")
    arguments = ("-V", "5", "-h", host, "-p", port, "-u", "observer", "-q", "1", "-t", "gw/v1/inbox/x", "-m", "1")
    process = await asyncio.create_subprocess_exec(
        program("mosquitto_pub"), *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert b"Not authorized" in said


def make_users(folder: Path, *devices: str) -> dict[str, str]:
    """Make `passwd` in a folder as deploy/README.md says, with devices (whose key is `right`); give the passwords."""
    recipe = re.search(r"<!-- users -->\n```sh\n(.*?)```", (DEPLOY / "README.md").read_text("utf-8"), re.DOTALL)
    assert recipe
    path = str(Path(program("mosquitto_passwd")).parent)
    environ = {"PATH": f"/usr/bin:/bin:{path}"}
    subprocess.run(["sh", "-euc", recipe[1]], cwd=folder, env=environ, check=True, timeout=WAIT_S)
    with (folder / "devices").open("w") as file:
        file.writelines(f"{serial}:right\n" for serial in devices)
    if devices:
        subprocess.run([program("mosquitto_passwd"), "-U", "devices"], cwd=folder, check=True, timeout=WAIT_S)
    with (folder / "passwd").open("a") as file:
        file.write((folder / "devices").read_text())
    return dict(line.split(":") for line in (folder / "users").read_text().splitlines())


async def test_nobody_connects_without_the_right_password(tmp_path: Path) -> None:
    passwords = make_users(tmp_path, "AC1")
    assert "commander" in passwords
    assert not set(passwords.values()) & set(re.split("[:\n]", (tmp_path / "passwd").read_text())), "hashed"
    assert (tmp_path / "passwd").stat().st_mode & 0o077 == 0
    overrides = {"allow_anonymous": "false", "password_file": str(tmp_path / "passwd")}
    async with mosquitto(tmp_path, overrides) as address:
        for user, password in (("", None), ("commander", None), ("commander", "right"), ("nobody", ""), ("AC1", "")):
            with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authorized|bad user"):
                async with client(address, user, password):
                    pass
        for user, password in (*passwords.items(), ("AC1", "right")):
            async with client(address, user, password):
                pass


async def test_a_session_that_is_stolen_tells_the_thief_nothing(address: str, root: aiomqtt.Client) -> None:
    """mosquitto binds no client id to a user: the victim is cut off. What was held for it goes to nobody."""
    expiry = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    expiry.SessionExpiryInterval = 60
    async with client(address, "gateway", identifier="gw-v1:AC2", clean_start=False, properties=expiry) as link:
        await link.subscribe("gw/v1/devices/AC2/commands/#", qos=1)
    await root.publish("gw/v1/devices/AC2/commands/held", "x", qos=1)
    async with client(address, "AC1", identifier="gw-v1:AC2", clean_start=False, properties=expiry) as thief:
        await root.publish("gw/v1/devices/AC2/commands/live", "x", qos=1)
        await thief.subscribe("gw/v1/devices/AC1/commands/#", qos=1)
        await root.publish("gw/v1/devices/AC1/commands/end", "end", qos=1)
        assert await until_end(thief) == set()


def certify(folder: Path) -> None:
    """Make a CA, and with it the certificates `server`, for 127.0.0.1, and `client`."""
    openssl = program("openssl")

    def run(arguments: str) -> None:
        subprocess.run([openssl, *arguments.split()], cwd=folder, check=True, capture_output=True, timeout=WAIT_S)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout"
    run(f"req -x509 {key} ca.key -out ca.pem -subj /CN=CA -days 1")
    for name in ("server", "client"):
        run(f"req {key} {name}.key -out {name}.csr -subj /CN={name} -addext subjectAltName=IP:127.0.0.1")
        run(f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -out {name}.pem -days 1 -copy_extensions copy")


def tls_listener(folder: Path, port: int) -> dict[str, str | None]:
    """The second listener that mosquitto.conf has as a comment."""
    lines = re.findall("^#([a-z].*)$", (ROOT / "mosquitto.conf").read_text("utf-8"), re.MULTILINE)
    assert lines[0] == "listener 8883"
    others = (line.replace("/etc/mosquitto/", f"{folder}/").split() for line in lines[1:])
    return {f"listener {port}": "127.0.0.1", **dict(others)}


async def test_without_a_certificate_a_password_is_not_even_asked_for(tmp_path: Path) -> None:
    certify(tmp_path)
    passwords = make_users(tmp_path, "AC1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    overrides = {"allow_anonymous": "false", "password_file": str(tmp_path / "passwd")}
    async with mosquitto(tmp_path, overrides | tls_listener(tmp_path, port)):
        address = f"mqtt://127.0.0.1:{port}"
        without = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        with suppress(ssl.SSLError, ConnectionError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=without)
            writer.write(mqtt5.ConnectPacket("", username="AC1", password=b"right").write())
            assert not await reader.read(), "cut off without a CONNACK"
        allowed = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        allowed.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authorized"):
            async with client(address, "commander", "wrong", tls_context=allowed):
                pass
        async with client(address, "commander", passwords["commander"], tls_context=allowed):
            pass


@pytest.mark.parametrize("role", ROLES)
def test_the_rules_for_emqx_say_the_same_of_publishers(role: str) -> None:
    """Of subscribers they cannot: EMQX checks filters. The first rule that matches decides."""
    text = re.sub("%%.*", "", (DEPLOY / "emqx" / "acl.conf").read_text("utf-8"))
    rules = re.findall(r'\{(allow|deny), (?:all|\{username, "(\w+)"\})(?:, (\w+), \[(.*?)\])?\}\.', text, re.DOTALL)
    assert len(rules) == text.count("}.")
    written = set()
    for topic in RIGHTS:
        for verdict, user, action, filters in rules:
            patterns = re.findall('"(.*?)"', filters.replace("${username}", ROLES[role])) if action else ["#"]
            concerns = user in ("", ROLES[role]) and action in ("", "publish")
            if concerns and any(topic_matches_sub(pattern, f"gw/v1/{topic}") for pattern in patterns):
                written |= {topic} if verdict == "allow" else set()
                break
    assert written == rights(0, role)
