"""What is refused unless it is accepted: a table of configurations and what they open."""

from typing import Any

import pytest

from gateway import exposures
from gateway.config import Config, resolve

OPEN = ["open-auth"]
ADMIN = ["admin-without-token"]
PLAIN = ["plain-mqtt"]
HTTP = ["plain-http"]


def names(table: dict[str, Any]) -> list[str]:
    return [exposure.name for exposure in exposures.exposures(resolve(table, {}, {}))]


def listening(host: str, section: str = "devices", **more: Any) -> dict[str, Any]:
    return {section: {"listen": f"{host}:8080", **more}}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, []),
        # who checks keys
        (listening("127.0.0.1") | {"auth": {"mode": "open"}}, []),
        (listening("127.8.9.10") | {"auth": {"mode": "open"}}, []),
        (listening("[::1]") | {"auth": {"mode": "open"}}, []),
        (listening("localhost") | {"auth": {"mode": "open"}}, []),
        (listening("0.0.0.0") | {"auth": {"mode": "open"}}, OPEN),
        (listening("[::]") | {"auth": {"mode": "open"}}, OPEN),
        (listening("192.168.1.7") | {"auth": {"mode": "open"}}, OPEN),
        (listening("localhost.example") | {"auth": {"mode": "open"}}, OPEN),
        ({"auth": {"mode": "open"}}, OPEN),
        (listening("0.0.0.0"), []),
        ({"auth": {"mode": "file", "file": "keys"}}, []),
        # rooms
        ({"rooms": {"rules": [{"match": "a", "allow": "device"}, {"match": "b", "allow": "nobody"}]}}, []),
        ({"rooms": {"rules": [{"match": "a", "allow": "anyone"}]}}, ["anonymous-rooms"]),
        ({"rooms": {"rules": [{"match": name, "allow": "anyone"} for name in "ab"]}}, ["anonymous-rooms"] * 2),
        # the admin port
        (listening("127.0.0.1", "admin"), []),
        (listening("0.0.0.0", "admin"), ADMIN),
        (listening("gateway.example", "admin"), ADMIN),
        (listening("10.0.0.1", "admin"), ADMIN),
        (listening("0.0.0.0", "admin", token_env="TOKEN"), []),
        # the broker
        ({"mqtt": {"url": "mqtt://localhost"}}, []),
        ({"mqtt": {"url": "mqtt://[::1]"}}, []),
        ({"mqtt": {"url": "mqtt://10.1.2.3"}}, []),
        ({"mqtt": {"url": "mqtt://172.31.0.1"}}, []),
        ({"mqtt": {"url": "mqtt://192.168.1.1"}}, []),
        ({"mqtt": {"url": "mqtt://[fd12::1]"}}, []),
        ({"mqtt": {"url": "mqtt://[fe80::1]"}}, []),
        ({"mqtt": {"url": "mqtt://mosquitto"}}, []),
        ({"mqtt": {"url": "mqtt://mosquitto.mqtt.svc.cluster.local"}}, []),
        ({"mqtt": {"url": "mqtt://broker.internal"}}, []),
        ({"mqtt": {"url": "mqtt://Broker.Local."}}, []),
        ({"mqtt": {"url": "mqtt://broker.example.org"}}, PLAIN),
        ({"mqtt": {"url": "mqtt://local.example.org"}}, PLAIN),
        ({"mqtt": {"url": "mqtt://8.8.8.8"}}, PLAIN),
        ({"mqtt": {"url": "mqtt://172.32.0.1"}}, PLAIN),
        ({"mqtt": {"url": "mqtt://[2600::1]"}}, PLAIN),
        ({"mqtt": {"url": "mqtts://broker.example.org"}}, []),
        ({"mqtt": {"url": "mqtt+unix:///run/mosquitto/mqtt.sock"}}, []),
        # the service that checks keys, and the other nodes
        ({"auth": {"mode": "http", "url": "http://keys:8000/check"}}, []),
        ({"auth": {"mode": "http", "url": "http://[fd12::1]/check"}}, []),
        ({"auth": {"mode": "http", "url": "https://keys.example.org/check"}}, []),
        ({"auth": {"mode": "http", "url": "http://keys.example.org/check"}}, HTTP),
        ({"auth": {"mode": "http", "url": "http://8.8.8.8:80/check"}}, HTTP),
        ({"auth": {"mode": "broker", "url": "http://keys.example.org/check"}}, []),
        ({"relay": {"advertise": "http://10.0.0.5:8080"}}, []),
        ({"relay": {"advertise": "http://gw-1.example.org:8080"}}, HTTP),
        ({"relay": {"advertise": "https://gw-1.example.org:8080"}}, []),
    ],
    ids=repr,
)
def test_what_a_configuration_opens(table: dict[str, Any], expected: list[str]) -> None:
    assert names(table) == expected


EVERYTHING: dict[str, Any] = {
    "auth": {"mode": "open"},
    "rooms": {"rules": [{"match": "bp_*", "allow": "anyone"}]},
    "admin": {"listen": "0.0.0.0:9464"},
    "mqtt": {"url": "mqtt://user:s3cret@broker.example"},
    "relay": {"advertise": "http://gw-1.example:8080"},
}
LINES = {
    "open-auth": (
        'auth.mode: "open" lets anybody be any device, and devices.listen 0.0.0.0:8080 is reached from elsewhere; '
        'use another mode, or listen on 127.0.0.1, or accept it with accept = ["open-auth"]'
    ),
    "anonymous-rooms": (
        'rooms.rules[0]: "anyone" lets every web page and every stranger read the rooms "bp_*"; '
        'use "token", "device" or "self", or accept it with accept = ["anonymous-rooms"]'
    ),
    "admin-without-token": (
        "admin.listen: 0.0.0.0:9464 shows metrics and health to whoever reaches it; "
        'set admin.token_env, or listen on 127.0.0.1, or accept it with accept = ["admin-without-token"]'
    ),
    "plain-mqtt": (
        "mqtt.url: mqtt:// sends passwords, device keys and commands in clear to broker.example, which is not a "
        'private address; use mqtts://, or accept it with accept = ["plain-mqtt"]'
    ),
    "plain-http": (
        "relay.advertise: http:// sends what devices say, their keys included, in clear to gw-1.example, which is not "
        'a private address; use https://, or accept it with accept = ["plain-http"]'
    ),
}


def test_each_line_says_what_why_and_what_to_do() -> None:
    assert exposures.refused(resolve(EVERYTHING, {}, {})) == list(LINES.values())


@pytest.mark.parametrize("name", LINES)
def test_what_is_accepted_is_not_refused_and_the_rest_is(name: str) -> None:
    refused = exposures.refused(resolve(EVERYTHING | {"accept": [name]}, {}, {}))
    assert refused == [line for other, line in LINES.items() if other != name]


def test_everything_can_be_accepted() -> None:
    config = resolve(EVERYTHING | {"accept": list(LINES)}, {}, {})
    assert exposures.refused(config) == []
    assert [exposure.name for exposure in exposures.exposures(config)] == list(LINES)


def test_the_defaults_open_nothing() -> None:
    assert exposures.exposures(Config(node="gw")) == []
