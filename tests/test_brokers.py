"""The brokers that the demo and the tests start for themselves."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.brokers import BrokerUnavailable, Kind, find_broker, local_broker, mosquitto_config

PRODUCTION_ACL = Path(__file__).parent.parent / "deploy" / "mosquitto" / "acl"


async def require(kind: Kind, tmp_path: Path) -> None:
    """Skip the test where the broker is not installed, or fail where everything must be."""
    try:
        await find_broker(kind, tmp_path, {})
    except BrokerUnavailable as missing:
        if os.environ.get("GATEWAY_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(missing))


def client(url: str, identifier: str, *, resume: bool = False, v311: bool = False) -> aiomqtt.Client:
    """An independent MQTT client; with `resume` its session outlives the connection by an hour."""
    broker = BrokerUrl.parse(url)
    properties = None
    if not v311:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if resume else 0
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.password,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V311 if v311 else aiomqtt.ProtocolVersion.V5,
        clean_start=MQTT_CLEAN_START_FIRST_ONLY if v311 else not resume,
        properties=properties,
    )


async def first(subscriber: aiomqtt.Client) -> str:
    """The next message, as `topic payload`."""
    message = await anext(aiter(subscriber.messages))
    assert isinstance(message.payload, bytes)
    return f"{message.topic} {message.payload.decode()}"


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_serves_both_versions_of_mqtt(kind: Kind, tmp_path: Path) -> None:
    await require(kind, tmp_path)
    async with local_broker(kind, tmp_path) as broker:
        assert broker.kind == kind
        assert broker.version[0].isdigit()
        async with client(broker.url, "new") as new, client(broker.url_v311, "old", v311=True) as old:
            await new.subscribe("to/new", qos=1)
            await old.subscribe("to/old", qos=1)
            await old.publish("to/new", "hello", qos=1)
            await new.publish("to/old", "world", qos=1)
            assert await first(new) == "to/new hello"
            assert await first(old) == "to/old world"
    with pytest.raises(aiomqtt.MqttError):
        await client(broker.url, "late").__aenter__()


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_starts_again_on_the_same_port(kind: Kind, tmp_path: Path) -> None:
    await require(kind, tmp_path)
    async with local_broker(kind, tmp_path) as broker:
        await broker.kill()
        with pytest.raises(aiomqtt.MqttError):
            await client(broker.url, "early").__aenter__()
        await broker.start()
        await broker.stop()
        await broker.stop()
        await broker.start()
        async with client(broker.url, "late"):
            pass


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_mosquitto_keeps_what_a_session_is_owed(how: str, tmp_path: Path) -> None:
    await require("mosquitto", tmp_path)
    save_each_change = {"autosave_on_changes": "true", "autosave_interval": "1"}
    async with local_broker("mosquitto", tmp_path, save_each_change) as broker:
        async with client(broker.url, "device", resume=True) as device:
            await device.subscribe("commands", qos=1)
        async with client(broker.url, "service") as service:
            await service.publish("commands", "hello", qos=1)
            # The broker saves at the end of each turn of its loop, and answers this one a turn later.
            await service.publish("nobody", "listens", qos=1)
        await (broker.kill() if how == "kill" else broker.stop())
        await broker.start()
        async with client(broker.url, "device", resume=True) as device:
            assert await first(device) == "commands hello"


async def test_a_broker_that_does_not_start_says_why(tmp_path: Path) -> None:
    await require("mosquitto", tmp_path)
    with pytest.raises(BrokerUnavailable, match="no_such_directive"):
        async with local_broker("mosquitto", tmp_path, {"no_such_directive": "1"}):
            pass


@pytest.mark.parametrize("kind", ["auto", "mosquitto", "embedded"])
async def test_a_missing_broker_is_named(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("gateway.brokers.shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("gateway.brokers.metadata.version", not_installed)
    with pytest.raises(BrokerUnavailable, match="installed: install mosquitto"):
        await find_broker(kind, tmp_path, {})


def test_overrides_replace_and_remove_directives() -> None:
    lines = mosquitto_config({"listener": "1 ::1", "acl_file": None, "memory_limit": "9"}).splitlines()
    assert [line for line in lines if line.startswith("listener")] == ["listener 1 ::1"]
    assert not [line for line in lines if line.startswith("acl_file")]
    assert "memory_limit 9" in lines
    assert "set_tcp_nodelay true" in lines


WRITABLE: Mapping[str, set[str]] = {
    "gateway": {
        "devices/SN1/acks/class:update",
        "devices/SN1/events/question/7",
        "devices/SN1/presence",
        "devices/SN2/presence",
        "rooms/bp_student_1/events/memos_update",
        "nodes/gw-1/status",
        "inbox/service/1",
    },
    "service": {
        "devices/SN1/commands/class:update",
        "devices/SN1/replies/question/7",
        "devices/SN2/commands/class:update/7",
        "rooms/bp_student_1/events/memos_update",
        "inbox/service/1",  # as every user: the pattern for devices that answer there holds for all
    },
    "SN1": {
        "devices/SN1/acks/class:update",
        "devices/SN1/events/question/7",
        "devices/SN1/presence",
        "inbox/service/1",
    },
    "stranger": {"inbox/service/1"},
}
"""Who may publish where, by the access control list that production starts from."""

READABLE: Mapping[str, set[str]] = {
    "gateway": {
        "devices/SN1/commands/class:update",
        "devices/SN1/replies/question/7",
        "devices/SN1/presence",
        "devices/SN2/commands/class:update/7",
        "devices/SN2/presence",
        "rooms/bp_student_1/events/memos_update",
        "nodes/gw-1/status",
    },
    "service": {
        "devices/SN1/acks/class:update",
        "devices/SN1/events/question/7",
        "devices/SN1/presence",
        "devices/SN2/presence",
        "rooms/bp_student_1/events/memos_update",
        "nodes/gw-1/status",
        "inbox/service/1",
    },
    "SN1": {
        "devices/SN1/commands/class:update",
        "devices/SN1/replies/question/7",
        "devices/SN1/presence",
    },
    "stranger": set(),
}
"""Who receives what, having subscribed to everything."""

TOPICS = sorted(set().union(*WRITABLE.values(), *READABLE.values()))


@asynccontextmanager
async def guarded_broker(tmp_path: Path) -> AsyncIterator[str]:
    """mosquitto with the production access control list, and a user `root` who may do everything.

    Yields its address, less the scheme. Passwords are not asked for.
    """
    await require("mosquitto", tmp_path)
    acl = tmp_path / "acl"
    acl.write_text(PRODUCTION_ACL.read_text("utf-8") + "user root\ntopic readwrite #\n", "utf-8")
    acl.chmod(0o600)
    async with local_broker("mosquitto", tmp_path, {"acl_file": str(acl)}) as broker:
        yield broker.url.removeprefix("mqtt://")


async def until_end(subscriber: aiomqtt.Client) -> set[str]:
    """The topics of the messages up to the one that says `end`."""
    topics = set()
    async for message in subscriber.messages:
        if message.payload == b"end":
            break
        topics.add(message.topic.value.removeprefix("gw/v1/"))
    return topics


@pytest.mark.parametrize("user", WRITABLE)
async def test_each_user_writes_its_own_topics_only(user: str, tmp_path: Path) -> None:
    async with (
        guarded_broker(tmp_path) as address,
        client(f"mqtt://root@{address}", "root") as root,
        client(f"mqtt://{user}@{address}", "user") as publisher,
    ):
        await root.subscribe("#", qos=1)
        for topic in TOPICS:
            await publisher.publish(f"gw/v1/{topic}", "x", qos=1)
        await root.publish("the", "end", qos=1)
        assert await until_end(root) == WRITABLE[user]


@pytest.mark.parametrize("user", READABLE)
async def test_each_user_reads_its_own_topics_only(user: str, tmp_path: Path) -> None:
    async with (
        guarded_broker(tmp_path) as address,
        client(f"mqtt://root@{address}", "root") as root,
        client(f"mqtt://{user}@{address}", "user") as subscriber,
    ):
        await subscriber.subscribe("#", qos=1)
        for topic in TOPICS:
            await root.publish(f"gw/v1/{topic}", "x", qos=1)
        for topic in ("nodes/gw-1/status", f"devices/{user}/commands/end"):  # each may read one of them
            await root.publish(f"gw/v1/{topic}", "end", qos=1)
        assert await until_end(subscriber) == READABLE[user]
