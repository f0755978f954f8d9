"""Where a server listens, where the broker is, which networks: what a person writes, parsed. Pure."""

import re
from ipaddress import ip_network
from typing import ClassVar, Self
from urllib.parse import unquote, urlsplit

from msgspec import Struct


class Listen(Struct, frozen=True):
    """Where a server listens. Port 0 lets the system choose; an IPv6 host stands here without brackets."""

    host: str
    port: int
    expected: ClassVar = "HOST:PORT such as 127.0.0.1:8080 or [::1]:8080"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT`; raises ValueError."""
        parts = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
        if parts is None or int(parts[3]) > 65535:
            raise ValueError(cls.expected)
        return cls(parts[1] or parts[2], int(parts[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Network(Struct, frozen=True):
    """A network, or one address, as `10.0.0.0/8` or `::1`."""

    text: str
    expected: ClassVar = "an address or a network such as 10.0.0.0/8"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it; raises ValueError, also where bits beyond the prefix are set."""
        try:
            return cls(str(ip_network(text)))
        except ValueError:
            raise ValueError(cls.expected) from None

    def __str__(self) -> str:
        return self.text


class BrokerUrl(Struct, frozen=True):
    """Where the broker is: a host and port, or a unix socket. Shows itself with the password masked."""

    host: str = ""
    port: int = 0
    tls: bool = False
    unix_path: str = ""
    username: str | None = None
    password: str | None = None
    expected: ClassVar = (
        "mqtt://[USER:PASSWORD@]HOST[:PORT], mqtts://… or mqtt+unix://[…@]/PATH, "
        "with # / ? @ % in a password as %23 %2F %3F %40 %25"
    )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL; raises ValueError. The port defaults to 1883, or 8883 for `mqtts`."""
        try:
            url = urlsplit(text if text.isprintable() and not re.search("[ ?#]", text) else "")
            user, password = (part and unquote(part, errors="strict") for part in (url.username, url.password))
            path = unquote(url.path, errors="strict").rstrip("/")
            port = url.port if url.port is not None else {"mqtt": 1883, "mqtts": 8883}.get(url.scheme)
        except ValueError:
            raise ValueError(cls.expected) from None  # the cause would show what may be a password
        if url.scheme == "mqtt+unix" and path and not url.hostname and not port:
            return cls(unix_path=path, username=user, password=password)
        if url.scheme in ("mqtt", "mqtts") and url.hostname and port and not path:
            return cls(url.hostname, port, tls=url.scheme == "mqtts", username=user, password=password)
        raise ValueError(cls.expected)

    def __str__(self) -> str:
        user = "" if self.username is None else f"{self.username}{'' if self.password is None else ':***'}@"
        scheme = "mqtt+unix" if self.unix_path else "mqtts" if self.tls else "mqtt"
        return f"{scheme}://{user}{self.unix_path or Listen(self.host, self.port)}"

    __repr__ = __str__
