"""What several commands share: types of options, where the broker is, and the one line that refuses."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ssl import SSLContext


FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)


def _prefix(_: click.Context, __: click.Parameter, prefix: str) -> str:
    """Refuse what no topic may begin with."""
    from gateway.topics import PREFIX as ALLOWED

    if not re.fullmatch(ALLOWED, prefix):
        raise Refused(f"--prefix: expected levels such as gw/v1, no + # or blanks, got {prefix!r}")
    return prefix


BROKER = click.option(
    "--mqtt",
    "url",
    metavar="URL",
    envvar="GATEWAY_MQTT_URL",
    default="mqtt://127.0.0.1:1883",
    show_default=True,
    show_envvar=True,
    help="The broker, as mqtt://USER:PASSWORD@HOST:PORT.",
)
PREFIX = click.option(
    "--prefix",
    metavar="TOPIC",
    envvar="GATEWAY_MQTT_PREFIX",
    default="gw/v1",
    show_default=True,
    show_envvar=True,
    callback=_prefix,
    help="Where the gateway's topics begin.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


class Refused(click.ClickException):
    """The command cannot be carried out as given: one line on stderr, and exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print the message to stderr, whatever `file` is."""
        click.echo(self.message, err=True)


def check_serial(serial: str) -> None:
    """Refuse what cannot name a device."""
    from gateway.topics import is_serial

    if not is_serial(serial):
        raise Refused(f"SERIAL: {serial!r} is none, expected 1 to 64 of A-Z a-z 0-9 . _ -")


def check_event(event: str) -> None:
    """Refuse what cannot name an event."""
    from gateway.topics import BadName, encode_level

    try:
        encode_level(event)
    except BadName as error:
        raise Refused(f"EVENT: {error}") from None


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
        context, _ = to_broker(Mqtt(url=address, ca_file=ca, cert_file=certificate, key_file=key), Files())
    except ConfigError as error:
        raise Refused(str(error)) from None
    return context


@contextmanager
def asking_the_broker() -> Iterator[None]:
    """Say in one line that a broker cannot be reached, or does not let us in."""
    try:
        yield
    except BrokenPipeError:  # whoever reads what we print has gone, as `head` does: click ends us without a word
        raise
    except OSError as error:
        reason = re.sub(r"\[(Errno -?\d+|code:\d+)\] ", "", str(error))
        where = "--mqtt or GATEWAY_MQTT_URL says where, with user and password"
        raise Refused(f"{reason}; is a broker there? {where}") from None


class Commands(click.Group):
    """A group whose errors of usage are one line, too."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the words of the group itself."""
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Read the words of a command, and run it."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "gateway"
        raise Refused(f"{error.format_message().rstrip('.')}; see `{where} --help`") from None
