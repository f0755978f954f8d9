"""The settings: one frozen tree from TOML and the environment, with every problem found in one pass.

Decides which settings are valid and their defaults; whether a host answers or a file exists, their users do.
"""

import re
import socket
import sys
import tomllib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from msgspec import Meta, Struct, field

from gateway.addresses import BrokerUrl, Listen, Network
from gateway.catalog import Catalog
from gateway.own_events import BadEvents, read_events
from gateway.settings import ConfigError, Reading, as_toml, expected, merged, settings_of, suggestion
from gateway.topics import LEVEL, PREFIX

FLAGS: Final = {  # which flag of the command line overrides which setting
    "node": "--node",
    "workers": "--workers",
    "devices.listen": "--listen",
    "admin.listen": "--admin",
    "mqtt.url": "--mqtt",
    "auth.mode": "--auth",
    "auth.file": "--auth",
    "log.format": "--log-format",
}


def _about(description: str) -> Meta:
    return Meta(description=description)


def _whole(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, extra={"expected": f"a whole number from {least} to {most}"})


def _text(expected: str, pattern: str) -> Meta:
    return Meta(pattern=rf"^(?:{pattern})\Z", max_length=256, extra={"expected": expected})


Seconds = Annotated[float, Meta(gt=0, le=sys.float_info.max, extra={"expected": "a number > 0"})]
Accepted = Literal["open-auth", "anonymous-rooms", "admin-without-token", "plain-mqtt", "plain-http"]
Rate = Annotated[float, Meta(ge=0.01, le=1e9, extra={"expected": "a number from 0.01 to 1000000000"})]
Count = Annotated[int, _whole(1, 1_000_000)]
Workers = Annotated[int, _whole(1, 99)]
UInt16 = Annotated[int, _whole(1, 65_535)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=sys.float_info.max, extra={"expected": "a number >= 0"})]
WillDelay = Annotated[int, _whole(0, 86_400)]
SessionExpiry = Annotated[int, _whole(1, 4_294_967_294)]  # one more is for ever [MQTT 5.0, 3.1.2.11.2]
Bytes = Annotated[int, _whole(1024, 268_435_455)]  # the largest Remaining Length [MQTT 5.0, 2.1.4]
Memory = Annotated[int, _whole(1024, 1 << 50)]
MAX_NODE_OF_WORKERS: Final = 64 - len(".99")
NodeName = Annotated[str, _text("1 to 64 of A-Z a-z 0-9 . _ -", "[A-Za-z0-9._-]{1,64}")]
UrlPath = Annotated[str, _text("a path such as /socket/socket.io", r"(/[^/?#\s]+)+")]
Origin = Annotated[str, _text("an origin such as https://a.example, or *", r"\*|null|[a-z][\w+.-]*://[^/\s]+")]
RelayUrl = Annotated[str, _text("a URL such as http://10.0.0.5:8080, or nothing", r"(https?://[^/?#\s]+)?")]
Variable = Annotated[str, _text("the name of an environment variable", "[A-Za-z_][A-Za-z0-9_]*")]
VariableOrNone = Annotated[str, _text("the name of an environment variable, or nothing", "([A-Za-z_][A-Za-z0-9_]*)?")]
HttpUrl = Annotated[
    str, _text("a URL such as https://a.example/check, without a password", r"(https?://[^/?#@\s]+(/[^#\s]*)?)?")
]
RoomPattern = Annotated[str, _text("a room name, or a pattern with at most two *", r"(?=.)[^*]*(\*[^*]*){0,2}")]
Filter = Annotated[str, _text("a filter such as inbox/#", rf"#|({LEVEL}|\+)(/({LEVEL}|\+))*(/#)?")]
TopicPrefix = Annotated[str, _text("levels such as gw/v1, no + # or blanks", PREFIX)]


class Devices(Struct, frozen=True, forbid_unknown_fields=True):
    """The device side: the socket.io server."""

    listen: Annotated[Listen, _about("Where devices connect")] = Listen("0.0.0.0", 8080)  # noqa: S104
    path: Annotated[UrlPath, _about("URL path of socket.io")] = "/socket/socket.io"
    tls_cert: Annotated[str, _about("PEM of the certificate, its chain after it; plain HTTP if empty")] = ""
    tls_key: Annotated[str, _about("PEM of its key, not encrypted; in tls_cert if empty")] = ""
    origins: Annotated[tuple[Origin, ...], _about("Origins of other web pages that may connect")] = ()
    ping_interval_s: Annotated[Seconds, _about("Time between heartbeats")] = 25.0
    ping_timeout_s: Annotated[Seconds, _about("How late a heartbeat may be")] = 20.0
    max_payload_bytes: Annotated[Bytes, _about("The largest message taken from a device")] = 1_000_000
    drain_s: Annotated[Seconds, _about("Time that a node takes to let its devices go when it stops")] = 10.0
    max_buffer_bytes: Annotated[Bytes, _about("What may wait for a device before it is closed as slow")] = 1_048_576
    auth_timeout_s: Annotated[Seconds, _about("Time to authenticate, or to join a room, before it is closed")] = 30.0
    max_devices: Annotated[Count, _about("Devices whose links one node has; more are sent away")] = 50_000
    upgrade_timeout_s: Annotated[Seconds, _about("Time to move from polling to a WebSocket")] = 10.0
    missing_eio_is_3: Annotated[bool, _about("Take clients that name no Engine.IO version for version 3")] = False
    compress_polls: Annotated[bool, _about("Compress long polls of clients that accept it")] = True
    deflate_websockets: Annotated[bool, _about("permessage-deflate, which takes a socket from 16 to 52 KB")] = False
    cookie: Annotated[str, _about("A cookie that names the session, such as io; none if empty")] = ""


class Relay(Struct, frozen=True, forbid_unknown_fields=True):
    """Nodes that hand each other the requests of their sessions: then a balancer needs no sticky sessions."""

    advertise: Annotated[RelayUrl, _about("Where other nodes reach this node's device port; no relay if empty")] = ""
    secret_env: Annotated[Variable, _about("What holds the secret that all nodes share")] = "GATEWAY_RELAY_SECRET"  # noqa: S105 - a name
    max_requests: Annotated[Count, _about("Polls and WebSockets that are relayed at a time")] = 10_000


class Admission(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may come in, how fast, and how many."""

    trusted_proxies: Annotated[tuple[Network, ...], _about("Networks whose X-Forwarded-For is believed")] = ()
    handshakes_per_s: Annotated[Rate, _about("Handshakes of all clients; 20 s' worth at once, over it 503")] = 1000.0
    handshakes_per_address_per_s: Annotated[Rate, _about("The same for one address, or /64 of IPv6")] = 50.0
    max_unauthenticated: Annotated[Count, _about("Sockets that are nobody yet, and connections without a request")] = (
        10_000
    )
    max_unauthenticated_per_address: Annotated[Count, _about("The same from one address: the oldest are closed")] = 1000
    max_viewers: Annotated[Count, _about("Sockets in rooms that are no devices; more may not join")] = 10_000
    max_viewers_per_address: Annotated[Count, _about("The same from one address")] = 1000
    request_timeout_s: Annotated[Seconds, _about("Time for a request's head, and for what a stranger posts")] = 20.0
    messages_per_s: Annotated[Rate, _about("Messages of one device; 10 s' worth at once, over it it is slowed")] = 500.0
    bytes_per_s: Annotated[Rate, _about("The same for their size")] = 1_000_000.0


class Admin(Struct, frozen=True, forbid_unknown_fields=True):
    """The operator's side: health and metrics."""

    listen: Annotated[Listen, _about("Where /healthz, /readyz and /metrics are")] = Listen("127.0.0.1", 9464)
    token_env: Annotated[VariableOrNone, _about("What holds the bearer token of the pages; none if empty")] = ""
    tls_cert: Annotated[str, _about("PEM of the certificate, its chain after it; plain HTTP if empty")] = ""
    tls_key: Annotated[str, _about("PEM of its key, not encrypted; in tls_cert if empty")] = ""


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True):
    """The broker, and the sessions that stand for devices there."""

    url: Annotated[BrokerUrl, _about("The MQTT 5 broker")] = BrokerUrl(host="127.0.0.1", port=1883)
    ca_file: Annotated[str, _about("PEM of authorities for mqtts://; the system's if empty")] = ""
    cert_file: Annotated[str, _about("PEM of a client certificate for mqtts://; none if empty")] = ""
    key_file: Annotated[str, _about("PEM of its key, not encrypted; in cert_file if empty")] = ""
    prefix: Annotated[TopicPrefix, _about("Where every topic of the gateway begins")] = "gw/v1"
    keep_alive_s: Annotated[UInt16, _about("Keep-alive of each link")] = 60
    session_s: Annotated[SessionExpiry, _about("How long the session of an absent device is kept")] = 86_400
    receive_maximum: Annotated[UInt16, _about("QoS 1 commands of a device that are in flight")] = 128
    will_delay_s: Annotated[WillDelay, _about("How long the broker waits before it says offline")] = 5
    connect_timeout_s: Annotated[Seconds, _about("Time for one attempt to connect")] = 10.0
    reconnect_min_s: Annotated[Seconds, _about("The first pause before a reconnect")] = 0.5
    reconnect_max_s: Annotated[Seconds, _about("The longest pause before a reconnect")] = 30.0
    max_waiting_bytes: Annotated[
        Memory, _about("Events of all devices that wait while the broker is away; the oldest are dropped")
    ] = 268_435_456
    response_topics: Annotated[tuple[Filter, ...], _about("Response Topics, under prefix")] = ("inbox/#",)


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """Who checks the key of a device: nobody (`open`, for a laboratory), a file, a service of yours, or the broker."""

    mode: Annotated[Literal["open", "file", "http", "broker"], _about("Who checks the key of a device")] = "broker"
    file: Annotated[str, _about("The keys, for mode file; see gateway devices add --help")] = ""
    pepper_env: Annotated[Variable, _about("What holds the secret of the hashes")] = "GATEWAY_PEPPER"
    url: Annotated[HttpUrl, _about("Where keys are checked, for mode http")] = ""
    token_env: Annotated[VariableOrNone, _about("What holds the bearer token for url; none if empty")] = ""
    timeout_s: Annotated[Seconds, _about("Time for one answer of url")] = 5.0
    max_requests: Annotated[Count, _about("Requests to url at once")] = 64
    cache_s: Annotated[SecondsOrNone, _about("How long a right key is remembered, for mode http")] = 60.0
    negative_cache_s: Annotated[SecondsOrNone, _about("The same for a wrong key")] = 5.0
    max_cached: Annotated[Count, _about("Keys of each kind that are remembered at most")] = 100_000


class Tokens(Struct, frozen=True, forbid_unknown_fields=True):
    """The signed tokens with which viewers join rooms."""

    algorithm: Annotated[Literal["off", "HS256", "RS256", "ES256"], _about("How tokens are signed")] = "off"
    secret_env: Annotated[Variable, _about("What holds the secret, for HS256")] = "GATEWAY_TOKEN_SECRET"  # noqa: S105
    key_file: Annotated[str, _about("The public key, PEM or a JWKS, for RS256 and ES256")] = ""
    audience: Annotated[str, _about("The `aud` that a token must have; with none here, it must have none")] = ""
    issuer: Annotated[str, _about("The `iss` that a token must have; any if empty")] = ""
    leeway_s: Annotated[SecondsOrNone, _about("How much the clocks may differ")] = 10.0


class Commands(Struct, frozen=True, forbid_unknown_fields=True):
    """Commands to devices, and the questions that devices ask."""

    ack_timeout_s: Annotated[Seconds, _about("Time that a device has to ack")] = 10.0
    lifetime_s: Annotated[Seconds, _about("Lifetime of a QoS 1 command that names none")] = 3600.0
    max_attempts: Annotated[Count, _about("How often a QoS 1 command is emitted at most")] = 3
    max_per_device: Annotated[Count, _about("Commands held for one device; more are rejected")] = 256
    max_payload_bytes: Annotated[Bytes, _about("The largest command; larger ones are rejected")] = 1_000_000
    max_bytes_per_device: Annotated[Bytes, _about("Payload held for one device; more is rejected")] = 8_388_608
    max_per_node: Annotated[Count, _about("Commands held for all devices of a node; more are rejected")] = 500_000
    max_bytes_per_node: Annotated[Memory, _about("Payload held for all of them; more is rejected")] = 1_073_741_824
    replays_per_s: Annotated[Count, _about("Devices a second that get what was held for them, when many return")] = 500
    reply_timeout_s: Annotated[Seconds, _about("Time that a service has to reply to a device")] = 30.0
    max_questions_per_device: Annotated[Count, _about("Questions of one device that wait for a reply")] = 64


class CatalogSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The events that services and devices may use."""

    unknown: Annotated[Literal["allow", "reject"], _about("Events that are not in the catalogue")] = "allow"
    file: Annotated[str, _about("TOML with events of your own; none if empty")] = ""


class RoomRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may join the rooms whose name matches: `*` is anything, `{serial}` a device's serial."""

    match: RoomPattern
    allow: Literal["device", "self", "token", "anyone", "nobody"]


class Rooms(Struct, frozen=True, forbid_unknown_fields=True):
    """The policy of rooms."""

    rules: Annotated[
        tuple[RoomRule, ...], _about("Who may join a room: the first match decides, without one nobody may")
    ] = (RoomRule("{serial}", "self"), RoomRule("bp_student_*", "device"), RoomRule("*", "token"))


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged to stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _about("The least to log")] = "info"
    format: Annotated[Literal["human", "json"], _about("For people or for machines")] = "human"
    lines_per_s: Annotated[Count, _about("Lines of one message, on average over ten seconds; more are counted")] = 50


def _node_of_host() -> str:
    return "gw-" + re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:61]


class Tracing(Struct, frozen=True, forbid_unknown_fields=True):
    """Spans of commands whose traceparent says that their trace is recorded."""

    endpoint: Annotated[
        HttpUrl, _about("An OpenTelemetry collector: OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces")
    ] = ""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting of one node; the sections are those of the file."""

    node: Annotated[NodeName, _about("A name that no other node has")] = field(default_factory=_node_of_host)
    workers: Annotated[
        Workers, _about("Processes that share the ports, each a node: gw-1.1, gw-1.2 …; 1 is one process, gw-1")
    ] = 1
    accept: Annotated[tuple[Accepted, ...], _about("What is open on purpose, and not refused")] = ()
    devices: Devices = Devices()
    relay: Relay = Relay()
    admission: Admission = Admission()
    admin: Admin = Admin()
    mqtt: Mqtt = Mqtt()
    auth: Auth = Auth()
    tokens: Tokens = Tokens()
    commands: Commands = Commands()
    catalog: CatalogSettings = CatalogSettings()
    rooms: Rooms = Rooms()
    log: Log = Log()
    tracing: Tracing = Tracing()


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Read the file; the environment overrides it, and `overrides`, by path such as `mqtt.url`, both.

    Raises ConfigError with every problem there is.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8")) if path else {}
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, nested beyond reason
        raise ConfigError([f"{path}: {error}"]) from None
    config = resolve(table, environ, overrides)
    catalog_of(config.catalog)
    return config


def catalog_of(settings: CatalogSettings) -> Catalog:
    """The protocol's events and the deployment's own. Raises ConfigError with every problem of the file."""
    try:
        own = read_events(Path(settings.file)) if settings.file else ()
    except BadEvents as bad:
        raise ConfigError(bad.problems) from None
    return Catalog(own, rejects_unknown=settings.unknown == "reject")


def resolve(table: Mapping[str, Any], environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Like `load`, with the content of the file as tomllib returns it."""
    variables = {path: name for path in settings_of(Config) if (name := _variable(path)) in environ}
    values = {path: environ[name] for path, name in variables.items()} | dict(overrides)
    labels = {path: f"environment {name}" for path, name in variables.items()}
    reading = Reading(labels | {path: FLAGS.get(path, path) for path in overrides})
    config: Config = reading.struct(Config, merged(Config, table, values), "")
    for path, other, text in _conflicts(config):
        if not {path, other} & reading.problems.keys():
            reading.problem(path, text)
    if reading.problems:
        raise ConfigError(list(reading.problems.values()))
    return config


def unknown_variables(environ: Mapping[str, str], config: Config) -> list[str]:
    """Warn of each GATEWAY_… variable that is no setting, nor named by one: a slip, or what Kubernetes injects."""
    known = {_variable(path) for path in settings_of(Config)}
    named = {attrgetter(path)(config) for path in settings_of(Config) if path.endswith("_env")}
    return [
        f"environment {name}: not a setting, ignored{suggestion(name, known)}"
        for name in sorted(environ.keys() - known - named)
        if name.startswith("GATEWAY_") and not name.startswith("GATEWAY_TEST_")
    ]


def example() -> str:
    """Every setting with its default and what it means: a TOML file that loads to the defaults."""
    lines = ["# Every setting and its default. In the environment, [mqtt] url is GATEWAY_MQTT_URL."]
    for path, annotation in settings_of(Config).items():
        section, _, key = path.rpartition(".")
        if section and f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        lines.append(f"# {get_args(annotation)[-1].description}: {expected(annotation)}.")
        value = as_toml(attrgetter(path)(Config()))
        lines.append('# node = "gw-1"  # gw- and the name of the host' if path == "node" else f"{key} = {value}")
    return "\n".join(lines) + "\n"


def _conflicts(config: Config) -> Iterator[tuple[str, str, str]]:
    """Settings that are good each but not together: path, the other path, and the problem of the first."""
    if config.workers > 1 and len(config.node) > MAX_NODE_OF_WORKERS:
        yield "node", "workers", f"expected at most {MAX_NODE_OF_WORKERS} characters, to which workers add their number"
    if config.auth.mode == "file" and not config.auth.file:
        text = 'missing, expected the path of the keys because auth.mode is "file"; as a flag --auth file:PATH'
        yield "auth.file", "auth.mode", text
    if config.auth.mode == "http" and not config.auth.url:
        yield "auth.url", "auth.mode", 'missing, expected where keys are checked because auth.mode is "http"'
    if config.tokens.algorithm in ("RS256", "ES256") and not config.tokens.key_file:
        text = f'missing, expected the public key because tokens.algorithm is "{config.tokens.algorithm}"'
        yield "tokens.key_file", "tokens.algorithm", text
    for section, certificate, key in (
        ("devices", "tls_cert", "tls_key"),
        ("admin", "tls_cert", "tls_key"),
        ("mqtt", "cert_file", "key_file"),
    ):
        if attrgetter(f"{section}.{key}")(config) and not attrgetter(f"{section}.{certificate}")(config):
            yield f"{section}.{certificate}", f"{section}.{key}", f"missing, expected because {section}.{key} is set"
    for key in ("ca_file", "cert_file"):
        if attrgetter(key)(config.mqtt) and not config.mqtt.url.tls:
            yield f"mqtt.{key}", "mqtt.url", f"of no use, expected mqtts:// in mqtt.url, got {config.mqtt.url}"
    if config.mqtt.reconnect_max_s < (least := config.mqtt.reconnect_min_s):
        text = f"expected at least mqtt.reconnect_min_s, {least}, got {config.mqtt.reconnect_max_s}"
        yield "mqtt.reconnect_max_s", "mqtt.reconnect_min_s", text


def _variable(path: str) -> str:
    return "GATEWAY_" + path.replace(".", "_").upper()
