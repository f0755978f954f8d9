"""`serve`, `check` and `demo`: what runs a gateway."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gateway.cli.options import FILE, POSITIVE, Refused

if TYPE_CHECKING:
    from gateway.config import Config


@click.command()
@click.option("--config", "path", type=FILE, help="TOML file; `gateway check --example` prints one.")
@click.option("--listen", metavar="HOST:PORT", help="Where devices connect.  [default: 0.0.0.0:8080]")
@click.option("--admin", metavar="HOST:PORT", help="Health and metrics.  [default: 127.0.0.1:9464]")
@click.option("--mqtt", metavar="URL", help="mqtt://HOST:PORT, mqtts://HOST:PORT or mqtt+unix:///PATH.")
@click.option("--node", metavar="NAME", help="A name that no other node has.  [default: gw- and the host]")
@click.option("--workers", metavar="N", help="Processes, one for each core.  [default: 1]")
@click.option("--auth", metavar="open|file:PATH|http|broker", help="Who checks the key of a device.")
@click.option("--log-format", metavar="human|json", help="For people or for machines.")
def serve(
    path: Path | None,
    listen: str | None,
    admin: str | None,
    mqtt: str | None,
    node: str | None,
    workers: str | None,
    auth: str | None,
    log_format: str | None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    Flags override the environment (GATEWAY_MQTT_URL and so on), which overrides the file. A password in
    --mqtt is visible to every user of the machine: prefer the environment or the file. With --workers each
    process is a node, gw-1.1 and so on; they share the ports, and one more keeps them running.

    Exit status 0 after SIGTERM or Ctrl-C, 2 if it cannot serve as it is told to.

    \b
    gateway serve --mqtt mqtt://127.0.0.1:1883 --auth open
    gateway serve --config gateway.toml --listen 0.0.0.0:8080 --log-format json
    gateway serve --config gateway.toml --workers 4
    """
    mode, colon, keys = (auth or "").partition(":")
    flags = {
        "devices.listen": listen,
        "admin.listen": admin,
        "mqtt.url": mqtt,
        "node": node,
        "workers": workers,
        "auth.mode": mode if auth is not None else None,
        "auth.file": keys if colon else None,
        "log.format": log_format,
    }
    config = _load(path, {setting: value for setting, value in flags.items() if value is not None})

    if config.workers > 1:
        from gateway.supervisor import run
    else:
        from gateway.app import run

    with refusals():
        run(config)


@contextmanager
def refusals() -> Iterator[None]:
    """Say in a line each what is in the way of serving, and that it is not tried again: exit status 2."""
    from gateway.settings import ConfigError

    try:
        yield
    except ConfigError as error:  # a file of keys that cannot be read
        raise Refused(str(error)) from None
    except OSError as error:  # a port in use
        raise Refused(f"cannot serve: {error}") from None


@click.command()
@click.option("--config", "path", type=FILE, help="TOML file; without one, the environment is checked.")
@click.option("--example", is_flag=True, help="Print every setting with its default instead.")
def check(path: Path | None, example: bool) -> None:
    """Check a configuration and print every problem at once.

    It is read as `serve` reads it, with the environment and the file of keys. Exit status 0 or 2.

    \b
    gateway check --config gateway.toml
    gateway check --example > gateway.toml
    """
    if example:
        from gateway import config

        click.echo(config.example(), nl=False)
        return
    from gateway import tls
    from gateway.auth.choice import authenticator
    from gateway.bearer import admin_token
    from gateway.observers import tracer_of
    from gateway.settings import ConfigError
    from gateway.tokens import token_reader
    from gateway.watched import Files

    loaded, files = _load(path, {}), Files()
    problems: list[str] = []
    for open_files in (
        lambda: authenticator(loaded.auth, os.environ, files, lambda _: None),
        lambda: token_reader(loaded.tokens, os.environ, files),
        lambda: admin_token(loaded.admin.token_env, os.environ),
        lambda: tls.of_server("devices", loaded.devices.tls_cert, loaded.devices.tls_key, files),
        lambda: tls.of_server("admin", loaded.admin.tls_cert, loaded.admin.tls_key, files),
        lambda: tls.to_broker(loaded.mqtt, files),
        lambda: tracer_of(loaded.tracing, loaded.node),
    ):
        try:
            open_files()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise Refused("\n".join(problems))
    click.echo(f"{path or 'the environment'}: ok")


@click.command()
@click.option("--seconds", metavar="S", type=POSITIVE, help="End by itself after so long, with a summary.")
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="auto is mosquitto if it is installed.",
)
@click.option("--tls", is_flag=True, help="Devices connect by TLS; they trust an authority made for the occasion.")
def demo(seconds: float | None, broker: Literal["auto", "mosquitto", "embedded"], tls: bool) -> None:
    """See it work: a broker, a gateway, devices and a service.

    All of it runs on this machine and ends with Ctrl-C. Exit status 0 if every command got its final outcome
    and one at least was acked, 1 if not, 2 if it cannot be set up.

    \b
    gateway demo
    gateway demo --seconds 10 --broker embedded
    gateway demo --tls
    """
    try:
        from gateway import demo as show

        status = show.run(seconds, broker, tls=tls)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("iotcore", "rich", "trustme"):
            raise
        hint = "pip install 'socketio-mqtt-gateway[demo]'"
        raise Refused(f"the demo needs {error.name}, which is not installed: {hint}") from None
    sys.exit(status)


def _load(path: Path | None, overrides: dict[str, str]) -> "Config":
    """The configuration, or every problem on a line of its own and exit status 2; warnings either way."""
    from gateway import config, exposures
    from gateway.settings import ConfigError

    try:
        loaded = config.load(path, os.environ, overrides)
    except ConfigError as error:
        raise Refused("\n".join([*error.problems, *config.unknown_variables(os.environ, config.Config())])) from None
    if open_to_strangers := exposures.refused(loaded):
        raise Refused("\n".join(open_to_strangers))
    for warning in config.unknown_variables(os.environ, loaded):
        click.echo(f"warning: {warning}", err=True)
    return loaded
