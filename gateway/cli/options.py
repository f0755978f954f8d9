"""What several commands share: types of options, where the broker is, and the one line that refuses."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ssl import SSLContext

FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
BROKER = click.option(
    "--mqtt",
    "url",
    metavar="URL",
    envvar="GATEWAY_MQTT_URL",
    default="mqtt://127.0.0.1:1883",
    show_default=True,
    show_envvar=True,
    help="The broker.",
)
PREFIX = click.option(
    "--prefix",
    envvar="GATEWAY_MQTT_PREFIX",
    default="gw/v1",
    show_default=True,
    show_envvar=True,
    help="Where the gateway's topics begin.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for scripts.")


class Refused(click.ClickException):
    """The command cannot be carried out as given: one line on stderr, and exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print the message to stderr, whatever `file` is."""
        click.echo(self.message, err=True)


def check_broker(url: str) -> None:
    """Refuse a URL that is none."""
    from gateway.addresses import BrokerUrl

    try:
        BrokerUrl.parse(url)
    except ValueError as error:
        raise Refused(f"--mqtt: expected {error}") from None


def broker_tls(url: str) -> "SSLContext | None":
    """How to connect by TLS, with the files that a gateway's environment names; None if not by TLS."""
    from gateway.addresses import BrokerUrl

    address = BrokerUrl.parse(url)
    if not address.tls:
        return None
    from gateway.config import Mqtt
    from gateway.settings import ConfigError
    from gateway.tls import to_broker
    from gateway.watched import Files

    ca, certificate, key = (os.environ.get(f"GATEWAY_MQTT_{name}_FILE", "") for name in ("CA", "CERT", "KEY"))
    try:
        return to_broker(Mqtt(url=address, ca_file=ca, cert_file=certificate, key_file=key), Files())
    except ConfigError as error:
        raise Refused(str(error)) from None
