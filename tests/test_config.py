import datetime
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from gateway import config
from gateway.addresses import BrokerUrl, Listen
from gateway.config import Config, RoomRule
from gateway.settings import ConfigError

URL = "a URL such as https://a.example/check, without a password"


def problems(
    table: dict[str, Any], environ: dict[str, str] | None = None, overrides: dict[str, object] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.resolve(table, environ or {}, overrides or {})
    return caught.value.problems


def test_nothing_given_is_the_defaults() -> None:
    loaded = config.load(None, {}, {})
    assert loaded == Config()
    assert loaded.devices.listen == Listen("0.0.0.0", 8080)
    assert loaded.mqtt.url == BrokerUrl("127.0.0.1", 1883)
    rules = (RoomRule("{serial}", "self"), RoomRule("bp_student_*", "device"), RoomRule("*", "token"))
    assert loaded.rooms.rules == rules


def test_the_example_loads_to_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(config.example(), "utf-8")
    assert config.load(path, {}, {}) == Config()


def test_the_example_describes_every_setting() -> None:
    lines = config.example().splitlines()
    settings = [number for number, line in enumerate(lines) if " = " in line]
    sections = [
        getattr(Config(), name) for name in Config.__struct_fields__ if name not in ("node", "workers", "accept")
    ]
    assert len(settings) == 3 + sum(len(section.__struct_fields__) for section in sections)
    assert all(lines[number - 1].startswith("# ") for number in settings)


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        """
        node = "gw-7"
        [devices]
        listen = "[::1]:0"
        origins = ["https://debug.example.org", "*"]
        ping_interval_s = 5
        [mqtt]
        url = "mqtts://user:p%40ss@broker.example.org"
        response_topics = []
        [auth]
        mode = "file"
        file = "/etc/gateway/devices"
        [[rooms.rules]]
        match = "wxa_*"
        allow = "anyone"
        """
    )
    loaded = config.load(path, {}, {})
    assert loaded.node == "gw-7"
    assert loaded.devices.listen == Listen("::1", 0)
    assert str(loaded.devices.listen) == "[::1]:0"
    assert loaded.devices.origins == ("https://debug.example.org", "*")
    assert loaded.devices.ping_interval_s == 5.0
    assert loaded.mqtt.url == BrokerUrl("broker.example.org", 8883, tls=True, username="user", password="p@ss")
    assert loaded.mqtt.response_topics == ()
    assert loaded.rooms.rules == (RoomRule("wxa_*", "anyone"),)


def test_all_problems_come_at_once() -> None:
    table = {
        "mqtt": {"urll": "mqtt://h", "reconnect_min_s": 99.0},
        "devices": {"ping_interval_s": "abc", "origins": ["https://a.example", 1]},
        "rooms": {"rules": [{"match": "a", "alow": "self"}, 3]},
        "log": 4,
        "auth": {"mode": "file"},
    }
    assert problems(table) == [
        'mqtt.urll: unknown key, did you mean "url"?',
        'devices.ping_interval_s: expected a number > 0, got "abc"',
        "devices.origins[1]: expected an origin such as https://a.example, or *, got 1",
        'rooms.rules[0].alow: unknown key, did you mean "allow"?',
        'rooms.rules[0].allow: missing, expected "device" or "self" or "token" or "anyone" or "nobody"',
        "rooms.rules[1]: expected a table, got 3",
        "log: expected a table, got 4",
        'auth.file: missing, expected the path of the keys because auth.mode is "file"; as a flag --auth file:PATH',
        "mqtt.reconnect_max_s: expected at least mqtt.reconnect_min_s, 99.0, got 30.0",
    ]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("node", "a b", '1 to 64 of A-Z a-z 0-9 . _ -, got "a b"'),
        ("node", "x" * 65, f'1 to 64 of A-Z a-z 0-9 . _ -, got "{"x" * 58}…'),
        ("node", "gw\n", r'1 to 64 of A-Z a-z 0-9 . _ -, got "gw\n"'),
        ("devices.listen", "8080", 'HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "8080"'),
        ("devices.listen", "::1:8080", 'HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "::1:8080"'),
        ("admin.listen", "h:65536", 'HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "h:65536"'),
        ("devices.path", "socket.io", 'a path such as /socket/socket.io, got "socket.io"'),
        ("devices.path", "/socket.io/", 'a path such as /socket/socket.io, got "/socket.io/"'),
        ("devices.origins", "*", 'a list, each an origin such as https://a.example, or *, got "*"'),
        ("devices.ping_timeout_s", 0, "a number > 0, got 0"),
        ("devices.ping_timeout_s", math.nan, "a number > 0, got NaN"),
        ("devices.ping_timeout_s", math.inf, "a number > 0, got Infinity"),
        ("devices.ping_timeout_s", True, "a number > 0, got true"),
        ("commands.max_attempts", 1.5, "a whole number from 1 to 1000000, got 1.5"),
        ("commands.max_attempts", 0, "a whole number from 1 to 1000000, got 0"),
        ("mqtt.keep_alive_s", 65536, "a whole number from 1 to 65535, got 65536"),
        ("mqtt.keep_alive_s", datetime.date(2024, 1, 2), 'a whole number from 1 to 65535, got "2024-01-02"'),
        ("log.level", "loud", '"debug" or "info" or "warning" or "error", got "loud"'),
        ("auth.mode", ["open"], '"open" or "file" or "http" or "broker", got a list'),
        ("auth.pepper_env", "A B", 'the name of an environment variable, got "A B"'),
        ("admin.token_env", "A B", 'the name of an environment variable, or nothing, got "A B"'),
        ("admission.handshakes_per_s", 0, "a number from 0.01 to 1000000000, got 0"),
        ("auth.token_env", "1", 'the name of an environment variable, or nothing, got "1"'),
        ("auth.cache_s", -1, "a number >= 0, got -1"),
        ("auth.url", "ftp://h/", f'{URL}, got "ftp://h/"'),
        ("auth.url", "https://user:secret@h/", URL),
        ("auth.url", "https://h/#x", f'{URL}, got "https://h/#x"'),
        ("tokens.algorithm", "none", '"off" or "HS256" or "RS256" or "ES256", got "none"'),
    ],
)
def test_a_bad_value_says_what_is_expected(path: str, value: object, expected: str) -> None:
    section, _, key = path.rpartition(".")
    assert problems({section: {key: value}} if section else {key: value}) == [f"{path}: expected {expected}"]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("mqqt", 'mqqt: unknown section, did you mean "mqtt"?'),
        ("device", 'device: unknown section, did you mean "devices"?'),
        (
            "broker",
            "broker: unknown section, expected one of devices, relay, admission, admin, mqtt, auth, "
            "tokens, commands, catalog, rooms, log, tracing",
        ),
    ],
)
def test_an_unknown_section_says_which_are_known(section: str, problem: str) -> None:
    assert problems({section: {"url": "mqtt://h"}}) == [problem]


def test_a_number_too_long_for_python_to_print() -> None:
    """TOML takes it in hexadecimal; `str` of it raises ValueError, though not under Hypothesis."""
    (problem,) = problems({"commands": {"max_attempts": 16**5000}})
    assert problem.endswith("got 0x" + "1".ljust(57, "0") + "…")


@pytest.mark.parametrize("prefix", ["", "/gw", "gw/", "gw//v1", "$SYS", "gw/+", "gw/#", "gw v1", "gw\n", "g\0w"])
def test_a_prefix_is_plain_topic_levels(prefix: str) -> None:
    assert len(problems({"mqtt": {"prefix": prefix}})) == 1


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a#", "a/b+", "/a", "a b"])
def test_a_response_topic_is_a_filter(topic_filter: str) -> None:
    assert problems({"mqtt": {"response_topics": ["inbox/#", "+/a/#", topic_filter]}})[0].startswith(
        "mqtt.response_topics[2]: expected a filter such as inbox/#"
    )


def test_networks_of_proxies_are_networks() -> None:
    loaded = config.resolve({"admission": {"trusted_proxies": ["10.0.0.0/8", "::1", "192.0.2.7"]}}, {}, {})
    assert [str(network) for network in loaded.admission.trusted_proxies] == ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]
    assert problems({"admission": {"trusted_proxies": ["10.0.0.1/8", "proxy"]}}) == [
        'admission.trusted_proxies[0]: expected an address or a network such as 10.0.0.0/8, got "10.0.0.1/8"',
        'admission.trusted_proxies[1]: expected an address or a network such as 10.0.0.0/8, got "proxy"',
    ]


def test_what_is_accepted_has_a_name() -> None:
    assert problems({"accept": ["open-auth", "all"]}) == [
        'accept[1]: expected "open-auth" or "anonymous-rooms" or "admin-without-token" or "plain-mqtt" or '
        '"plain-http", got "all"'
    ]
    assert config.resolve({}, {"GATEWAY_ACCEPT": "open-auth,plain-mqtt"}, {}).accept == ("open-auth", "plain-mqtt")


def test_a_conflict_is_not_reported_when_one_side_is_already_wrong() -> None:
    table = {"mqtt": {"reconnect_min_s": 99.0, "reconnect_max_s": "soon"}}
    assert problems(table) == ['mqtt.reconnect_max_s: expected a number > 0, got "soon"']


@pytest.mark.parametrize("key", ["a\nb", "", "é", "x" * 200])
def test_an_odd_key_stays_on_one_line(key: str) -> None:
    (problem,) = problems({"mqtt": {key: 1}})
    assert problem.startswith("mqtt.")
    assert problem.splitlines() == [problem]
    assert len(problem) < 100 or key.isalnum()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[mqtt\n", "at line 1"),
        (b"node = \n", "at line 1"),
        (b'node = "a"\nnode = "b"\n', "at line 2"),
        (b"node = '\xff'", "utf-8"),
        (b"node = " + b"9" * 5000, "digits"),
    ],
)
def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path, {}, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert expected in problem
    assert "\n" not in problem


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "none.toml", {}, {})
    assert caught.value.problems == [f"{tmp_path}/none.toml: cannot be read: No such file or directory"]


def test_the_environment_overrides_the_file_and_flags_override_both() -> None:
    table = {"node": "file", "mqtt": {"url": "mqtt://file", "keep_alive_s": 1, "prefix": "file"}}
    environ = {"GATEWAY_NODE": "env", "GATEWAY_MQTT_URL": "mqtt://env", "GATEWAY_MQTT_KEEP_ALIVE_S": "2"}
    loaded = config.resolve(table, environ, {"mqtt.url": "mqtt://flag"})
    assert (loaded.node, loaded.mqtt.prefix, loaded.mqtt.keep_alive_s) == ("env", "file", 2)
    assert loaded.mqtt.url.host == "flag"


def test_a_bad_value_that_is_overridden_does_not_matter() -> None:
    assert config.resolve({"mqtt": {"url": 5}}, {"GATEWAY_MQTT_URL": "mqtt://h"}, {}).mqtt.url.host == "h"


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("GATEWAY_DEVICES_PING_INTERVAL_S", "2.5", "ping_interval_s", 2.5),
        ("GATEWAY_DEVICES_MAX_PAYLOAD_BYTES", "2_000", "max_payload_bytes", 2000),
        ("GATEWAY_DEVICES_ORIGINS", "https://a.example, *", "origins", ("https://a.example", "*")),
        ("GATEWAY_DEVICES_ORIGINS", "", "origins", ()),
        ("GATEWAY_DEVICES_ORIGINS", '["*"]', "origins", ("*",)),
        ("GATEWAY_DEVICES_PATH", "/5", "path", "/5"),
    ],
)
def test_the_environment_is_text(name: str, text: str, path: str, value: object) -> None:
    assert getattr(config.resolve({}, {name: text}, {}).devices, path) == value


def test_rules_come_from_the_environment_as_toml() -> None:
    environ = {"GATEWAY_ROOMS_RULES": '[{match = "*", allow = "nobody"}]'}
    assert config.resolve({}, environ, {}).rooms.rules == (RoomRule("*", "nobody"),)


def test_a_problem_says_where_the_value_came_from() -> None:
    environ = {
        "GATEWAY_COMMANDS_MAX_ATTEMPTS": "many",
        "GATEWAY_MQTT_RESPONSE_TOPICS": "inbox/#,a#",
        "GATEWAY_NODE": "",
    }
    overrides: dict[str, object] = {"devices.listen": "here", "auth.mode": "none", "mqtt.urll": 1}
    assert sorted(problems({}, environ, overrides)) == [
        '--auth: expected "open" or "file" or "http" or "broker", got "none"',
        '--listen: expected HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got "here"',
        'environment GATEWAY_COMMANDS_MAX_ATTEMPTS: expected a whole number from 1 to 1000000, got "many"',
        'environment GATEWAY_MQTT_RESPONSE_TOPICS[1]: expected a filter such as inbox/#, got "a#"',
        'environment GATEWAY_NODE: expected 1 to 64 of A-Z a-z 0-9 . _ -, got ""',
        'mqtt.urll: unknown key, did you mean "url"?',
    ]


def test_every_flag_names_a_setting() -> None:
    names = {line.split(" = ")[0].lstrip("# ") for line in config.example().splitlines() if " = " in line}
    assert {path.rpartition(".")[2] for path in config.FLAGS} <= names


def test_overrides_may_be_values_already() -> None:
    overrides = {
        "devices.listen": Listen("h", 1),
        "mqtt.url": BrokerUrl("b", 2),
        "mqtt.response_topics": ("a",),
    }
    loaded = config.resolve({}, {}, overrides)
    assert (loaded.devices.listen, loaded.mqtt.url) == (Listen("h", 1), BrokerUrl("b", 2))
    assert loaded.mqtt.response_topics == ("a",)


def test_unknown_variables_are_warnings() -> None:
    environ = {
        "GATEWAY_MQTT_URL": "mqtt://h",
        "GATEWAY_MQTT_URLL": "mqtt://u:secret@h",
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "GATEWAY_PEPPER": "secret",
        "GATEWAY_TEST_REQUIRE_ALL": "1",
        "HOME": "/",
    }
    assert config.unknown_variables(environ, Config()) == [
        'environment GATEWAY_MQTT_URLL: not a setting, ignored, did you mean "GATEWAY_MQTT_URL"?',
        "environment GATEWAY_SERVICE_HOST: not a setting, ignored",
    ]
    named = {
        "auth": {"pepper_env": "GATEWAY_SALT", "token_env": "GATEWAY_ASK"},
        "tokens": {"secret_env": "GATEWAY_S"},
        "admin": {"token_env": "GATEWAY_DOOR"},
    }
    secrets = dict.fromkeys(("GATEWAY_SALT", "GATEWAY_ASK", "GATEWAY_S", "GATEWAY_DOOR"), "secret")
    assert config.unknown_variables(secrets, config.resolve(named, {}, {})) == []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("mqtt://h", BrokerUrl("h", 1883)),
        ("mqtts://h/", BrokerUrl("h", 8883, tls=True)),
        ("mqtt://[::1]:99", BrokerUrl("::1", 99)),
        ("mqtt://u@h", BrokerUrl("h", 1883, username="u")),
        ("mqtt://u:a%2Fb@h", BrokerUrl("h", 1883, username="u", password="a/b")),
        ("mqtt+unix:///run/m.sock", BrokerUrl(unix_path="/run/m.sock")),
        ("mqtt+unix://u:p@/run/m.sock", BrokerUrl(unix_path="/run/m.sock", username="u", password="p")),
    ],
)
def test_urls_of_brokers(text: str, url: BrokerUrl) -> None:
    assert BrokerUrl.parse(text) == url
    if url.password is None:
        assert BrokerUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        *(
            "h",
            "h:1883",
            "http://h",
            "mqtt:h",
            "mqtt://",
            "mqtt://h:0",
            "mqtt://h:65536",
            "mqtt://h/x",
            "mqtt://h?x",
        ),
        *(
            "mqtt://h:x",
            "mqtt://[::1",
            "mqtt://%ff@h",
            "mqtt://a b",
            "mqtt://a\tb",
            "mqtt://u:p#@h",
            "mqtt://u:p/s@h",
        ),
        *("mqtt+unix://", "mqtt+unix:///", "mqtt+unix://h/x"),
    ],
)
def test_what_is_no_url_of_a_broker(text: str) -> None:
    with pytest.raises(ValueError, match=r"^mqtt://"):
        BrokerUrl.parse(text)


def test_a_url_with_an_odd_password_is_told_how_to_write_it() -> None:
    (problem,) = problems({"mqtt": {"url": "mqtt://user:s3#cret@h"}})
    assert problem.endswith("with # / ? @ % in a password as %23 %2F %3F %40 %25")


@pytest.mark.parametrize("url", ["mqtt://user:s3cret@h", "mqtt://user:s3cret", "user:s3cret@h", "mqtt://u:s3cret/@h"])
def test_a_password_is_never_shown(url: str) -> None:
    """A typing error in the URL must not print the password that it holds."""
    try:
        shown = [str(config.resolve({}, {}, {"mqtt.url": url}))]
    except ConfigError as error:
        shown = [*error.problems, str(error)]
    assert not [line for line in shown if "s3cret" in line]
    for source in ({"mqtt": {"url": [url]}}, {"mqtt": {"url": {url: 1}}}):
        assert "s3cret" not in problems(source)[0]


def test_the_default_node_is_a_valid_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ä b" + "x" * 80)
    node = Config().node
    assert node == "gw---b" + "x" * 58
    assert config.resolve({"node": node}, {}, {}).node == node


SECTIONS = ["devices", "admin", "mqtt", "auth", "commands", "rooms", "log", "node", "other"]
KEYS = [
    "listen",
    "url",
    "prefix",
    "origins",
    "response_topics",
    "rules",
    "mode",
    "file",
    "level",
    "max_attempts",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.datetimes() | st.times()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["match", "allow"]) | st.text(), inner),
    max_leaves=8,
)
TABLES = st.dictionaries(
    st.sampled_from(SECTIONS) | st.text(),
    st.dictionaries(st.sampled_from(KEYS) | st.text(), VALUES, max_size=6) | VALUES,
    max_size=6,
)
VARIABLES = st.sampled_from(
    [
        "GATEWAY_NODE",
        "GATEWAY_MQTT_URL",
        "GATEWAY_ROOMS_RULES",
        "GATEWAY_DEVICES_ORIGINS",
        "GATEWAY_LOG_LEVEL",
    ]
)


def found_by(loading: Callable[[], Config]) -> list[str]:
    """The problems of a configuration; none if it loads."""
    try:
        loading()
    except ConfigError as error:
        return error.problems or ["a ConfigError without a problem", ""]
    return []


@given(TABLES, st.dictionaries(VARIABLES, st.text() | st.just("[" * 3000)))
@case({"devices": {"ping_interval_s": -(10**400)}}, {})
@case({"rooms": {"rules": [{"match": {}, "allow": []}, {}]}}, {"GATEWAY_ROOMS_RULES": "[1, {}"})
def test_nothing_but_config_errors_of_one_line_each(table: dict[str, Any], environ: dict[str, str]) -> None:
    found = found_by(lambda: config.resolve(table, environ, {}))
    assert [problem for problem in found if len(problem.splitlines()) != 1] == []


@given(st.binary() | st.text().map(str.encode))
@case(b"a = " + b"[" * 5000)
def test_any_file_loads_or_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    found = found_by(lambda: config.load(path, {}, {}))
    assert "" not in found
