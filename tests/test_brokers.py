"""The brokers that the demo and the tests start for themselves."""

import os
from importlib import metadata
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.addresses import BrokerUrl
from gateway.brokers import BrokerUnavailable, Kind, find_broker, free_ports, local_broker, mosquitto_config


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


def test_free_ports_are_none_that_the_system_gives_to_connections() -> None:
    """Between the search and the broker's start such a port was taken, on a busy machine."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("utf-8").split())
    ports = free_ports(100)
    assert len(set(ports)) == 100
    assert not set(ports) & set(range(first, last + 1))
