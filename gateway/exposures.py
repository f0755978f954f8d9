"""What a configuration leaves open to strangers: `serve` and `check` refuse it unless it is accepted by name. Pure."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.config import Accepted, Config

# Names that only mean something within one's own network: RFC 6761, 6762, 8375, 9476, and Kubernetes' own.
PRIVATE_SUFFIXES: Final = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc", ".cluster.local")


class Exposure(Struct, frozen=True):
    """One thing that is open: the setting that opens it, what that means, and what to do instead."""

    name: Accepted
    setting: str
    what: str
    instead: str

    def __str__(self) -> str:
        """One line for the one who configures."""
        return f'{self.setting}: {self.what}; {self.instead}, or accept it with accept = ["{self.name}"]'


def refused(config: Config) -> list[str]:
    """The exposures that nobody accepted, one line each."""
    return [str(exposure) for exposure in exposures(config) if exposure.name not in config.accept]


def exposures(config: Config) -> list[Exposure]:
    """Everything that is open, accepted or not."""
    return [*_devices(config), *_rooms(config), *_admin(config), *_broker(config), *_http(config)]


def _devices(config: Config) -> Iterator[Exposure]:
    listen = config.devices.listen
    if config.auth.mode == "open" and not is_loopback(listen.host):
        yield Exposure(
            "open-auth",
            "auth.mode",
            f'"open" lets anybody be any device, and devices.listen {listen} is reached from elsewhere',
            "use another mode, or listen on 127.0.0.1",
        )


def _rooms(config: Config) -> Iterator[Exposure]:
    for number, rule in enumerate(config.rooms.rules):
        if rule.allow == "anyone":
            yield Exposure(
                "anonymous-rooms",
                f"rooms.rules[{number}]",
                f'"anyone" lets every web page and every stranger read the rooms "{rule.match}"',
                'use "token", "device" or "self"',
            )


def _admin(config: Config) -> Iterator[Exposure]:
    listen = config.admin.listen
    if not config.admin.token_env and not is_loopback(listen.host):
        yield Exposure(
            "admin-without-token",
            "admin.listen",
            f"{listen} shows metrics and health to whoever reaches it",
            "set admin.token_env, or listen on 127.0.0.1",
        )


def _broker(config: Config) -> Iterator[Exposure]:
    url = config.mqtt.url
    if not url.tls and not url.unix_path and not is_private(url.host):
        yield Exposure(
            "plain-mqtt",
            "mqtt.url",
            f"mqtt:// sends passwords, device keys and commands in clear to {url.host}, which is not a private address",
            "use mqtts://",
        )


def _http(config: Config) -> Iterator[Exposure]:
    carried = {
        "auth.url": (config.auth.url if config.auth.mode == "http" else "", "the keys of devices"),
        "relay.advertise": (config.relay.advertise, "what devices say, their keys included,"),
    }
    for setting, (url, what) in carried.items():
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_private(parts.hostname or ""):
            yield Exposure(
                "plain-http",
                setting,
                f"http:// sends {what} in clear to {parts.hostname}, which is not a private address",
                "use https://",
            )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine gets there; other names than localhost are not looked up."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_private(host: str) -> bool:
    """Whether an address is of a private network, or a name can only be of one; it is not looked up."""
    try:
        return ip_address(host).is_private
    except ValueError:
        name = host.lower().removesuffix(".")
        return "." not in name or name.endswith(PRIVATE_SUFFIXES)
