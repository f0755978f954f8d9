"""The command line: reads flags, answers in one line when something is wrong, and leaves the work to others.

Exit status: 0 done, 1 the answer is no, 2 the command cannot be carried out as given.
"""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gateway import __version__, asyncapi_command

if TYPE_CHECKING:
    from gateway.config import Config

FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
KEYS = click.option("--file", "path", metavar="PATH", type=FILE, required=True, help="Where the keys are.")


class Refused(click.ClickException):
    """The command cannot be carried out as given: one line on stderr, and exit status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        """Print the message to stderr, whatever `file` is."""
        click.echo(self.message, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Connect Socket.IO devices to MQTT: every device becomes an MQTT session of its own.

    \b
    gateway demo                               see it work, with nothing to set up
    gateway check --example > gateway.toml     start a configuration
    gateway serve --config gateway.toml        run a node
    """


@main.command()
@click.option("--config", "path", type=FILE, help="TOML file; `gateway check --example` prints one.")
@click.option("--listen", metavar="HOST:PORT", help="Where devices connect.  [default: 0.0.0.0:8080]")
@click.option("--admin", metavar="HOST:PORT", help="Health and metrics.  [default: 127.0.0.1:9464]")
@click.option("--mqtt", metavar="URL", help="mqtt://HOST:PORT, mqtts://HOST:PORT or mqtt+unix:///PATH.")
@click.option("--node", metavar="NAME", help="A name that no other node has.  [default: gw- and the host]")
@click.option("--auth", metavar="open|file:PATH|broker", help="Who checks the key of a device.")
@click.option("--log-format", metavar="human|json", help="For people or for machines.")
def serve(
    path: Path | None,
    listen: str | None,
    admin: str | None,
    mqtt: str | None,
    node: str | None,
    auth: str | None,
    log_format: str | None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    Flags override the environment (GATEWAY_MQTT_URL and so on), which overrides the file. A password in
    --mqtt is visible to every user of the machine: prefer the environment or the file.

    Exit status 0 after SIGTERM or Ctrl-C, 2 if it cannot serve as it is told to.

    \b
    gateway serve --mqtt mqtt://127.0.0.1:1883 --auth open
    gateway serve --config gateway.toml --listen 0.0.0.0:8080 --log-format json
    """
    mode, colon, keys = (auth or "").partition(":")
    flags = {
        "devices.listen": listen,
        "admin.listen": admin,
        "mqtt.url": mqtt,
        "node": node,
        "auth.mode": mode if auth is not None else None,
        "auth.file": keys if colon else None,
        "log.format": log_format,
    }
    config = _load(path, {setting: value for setting, value in flags.items() if value is not None})

    from gateway import app
    from gateway.config import ConfigError

    try:
        app.run(config)
    except ConfigError as error:  # a file of keys that cannot be read
        raise Refused(str(error)) from None
    except OSError as error:  # a port in use
        raise Refused(f"cannot serve: {error}") from None


@main.command()
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
    from gateway.auth import authenticator
    from gateway.config import ConfigError

    try:
        authenticator(_load(path, {}).auth, os.environ)
    except ConfigError as error:
        raise Refused(str(error)) from None
    click.echo(f"{path or 'the environment'}: ok")


@main.command()
@click.option("--seconds", metavar="S", type=POSITIVE, help="End by itself after so long, with a summary.")
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="auto is mosquitto if it is installed.",
)
def demo(seconds: float | None, broker: Literal["auto", "mosquitto", "embedded"]) -> None:
    """See it work: a broker, a gateway, devices and a service.

    All of it runs on this machine and ends with Ctrl-C. Exit status 0 if every command got its final outcome
    and one at least was acked, 1 if not, 2 if it cannot be set up.

    \b
    gateway demo
    gateway demo --seconds 10 --broker embedded
    """
    try:
        from gateway import demo as show

        status = show.run(seconds, broker=broker)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("iotcore", "rich"):
            raise
        hint = "pip install 'socketio-mqtt-gateway[demo]'"
        raise Refused(f"the demo needs {error.name}, which is not installed: {hint}") from None
    sys.exit(status)


@main.command()
@click.argument("serial")
@click.argument("event")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option(
    "--mqtt",
    "url",
    metavar="URL",
    envvar="GATEWAY_MQTT_URL",
    default="mqtt://127.0.0.1:1883",
    show_default=True,
    show_envvar=True,
    help="The broker.",
)
@click.option(
    "--prefix",
    envvar="GATEWAY_MQTT_PREFIX",
    default="gw/v1",
    show_default=True,
    show_envvar=True,
    help="Where the gateway's topics begin.",
)
@click.option(
    "--qos",
    metavar="0|1",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="0: now or never. 1: held while the device is away.",
)
@click.option("--ttl", "ttl_s", metavar="S", type=POSITIVE, help="How long it is worth delivering.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=POSITIVE,
    default=15.0,
    show_default=True,
    help="How long to wait for the outcome.",
)
def call(
    serial: str,
    event: str,
    payload: str | None,
    url: str,
    prefix: str,
    qos: int,
    ttl_s: float | None,
    timeout_s: float,
) -> None:
    """Send a command to a device and print its outcome as JSON.

    That it is queued is told on stderr. A password in --mqtt is visible to every user of the machine: put the
    URL into GATEWAY_MQTT_URL.

    Exit status 0 if the device acked, 1 if it did not or nothing was heard, 2 if it cannot be sent.

    \b
    gateway call AC4178234411 device_status
    gateway call AC4178234411 class:update '{"class_id": 7}' --qos 1 --ttl 60 --timeout 70
    """
    import msgspec

    from gateway.addresses import BrokerUrl

    try:
        argument = None if payload is None else msgspec.json.decode(payload)
    except ValueError as error:
        raise Refused(f"JSON: {error}; quote it for the shell, as in '{{\"id\": 7}}'") from None
    try:
        BrokerUrl.parse(url)
    except ValueError as error:
        raise Refused(f"--mqtt: expected {error}") from None

    from gateway.client import Fleet, NoOutcome

    def show(outcome: Any, *, err: bool = False) -> None:
        click.echo(msgspec.json.encode(outcome).decode(), err=err)

    async def ask() -> Any:
        async with Fleet(url, prefix=prefix) as fleet:
            told = partial(show, err=True)
            try:
                return await fleet.call(
                    serial, event, argument, qos=qos, ttl_s=ttl_s, timeout_s=timeout_s, on_queued=told
                )
            except NoOutcome:
                return await fleet.why_silent(serial)

    try:
        outcome = asyncio.run(ask())
    except (OSError, ValueError) as error:
        raise Refused(f"cannot call {serial}: {error}") from None
    if isinstance(outcome, str):
        click.echo(f"no outcome within {timeout_s:g} s: {outcome}", err=True)
        sys.exit(1)
    show(outcome)
    sys.exit(0 if outcome.status == "acked" else 1)


@main.command()
@click.argument("serials", metavar="[SERIAL]...", nargs=-1)
@click.option("--url", metavar="URL", default="http://127.0.0.1:8080", show_default=True, help="The gateway.")
@click.option("--devices", "number", metavar="N", type=click.IntRange(min=1), help="N more: SIM1, SIM2 and so on.")
@click.option(
    "--key", metavar="KEY", default="demo", show_default=True, help="Of each; every user of the machine sees it."
)
def simulate(serials: tuple[str, ...], url: str, number: int | None, key: str) -> None:
    """Play devices until Ctrl-C, one line per event.

    They authenticate, ack each event as the device protocol says, and connect again when they are cut off.

    \b
    gateway simulate AC4178234411 AC4178234412
    gateway simulate --url https://gateway.example --devices 100
    """
    from urllib.parse import urlsplit

    names = (*serials, *(f"SIM{n}" for n in range(1, (number or 0) + 1)))
    if not names:
        raise Refused("expected a SERIAL, or --devices N")
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise Refused("--url: expected http://HOST:PORT or https://HOST:PORT")

    from gateway import simulate as play

    asyncio.run(play.simulate([play.SimulatedDevice(url, name, key=key, tell=click.echo) for name in names]))


@main.group()
def devices() -> None:
    """Keep the file of devices that `serve --auth file:PATH` reads.

    A gateway that runs notices changes by itself, when the next device authenticates.
    """


@devices.command()
@click.argument("serial")
@KEYS
@click.option(
    "--pepper-env",
    metavar="NAME",
    default="GATEWAY_PEPPER",
    show_default=True,
    help="The environment variable with the secret of the hashes.",
)
def add(serial: str, path: Path, pepper_env: str) -> None:
    """Add a device to the file, or give it another key.

    The key is asked for, or read from stdin: never a flag, which every user of the machine could see. Only
    a hash of it is kept; the secret in the environment variable GATEWAY_PEPPER is part of the hash. The file
    is made if it is missing.

    \b
    gateway devices add --file devices.txt AC4178234411
    pass show plates/AC4178234411 | gateway devices add --file devices.txt AC4178234411
    """
    from gateway import keyfile
    from gateway.auth import hash_key
    from gateway.topics import is_serial

    pepper = os.environ.get(pepper_env, "")
    if not pepper:
        raise Refused(f"{pepper_env} is not set: export the secret that the gateway runs with")
    if not is_serial(serial):
        raise Refused("SERIAL: expected 1 to 64 of A-Z a-z 0-9 . _ -")
    try:
        terminal = sys.stdin.isatty()
        key = click.prompt("Key", hide_input=True) if terminal else sys.stdin.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Refused("the key is not UTF-8 text") from None
    if not key:
        raise Refused("the key is empty: type it when asked, or pipe it in as one line")
    try:
        keyfile.put(path.resolve(), serial, hash_key(serial, key, pepper.encode()))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be written: {error}") from None
    click.echo(f"{path}: {serial} may connect")


@devices.command()
@click.argument("serial")
@KEYS
def remove(serial: str, path: Path) -> None:
    """Remove a device from the file.

    If it is connected it stays so until its socket closes. Exit status 1 if it is not in the file.
    """
    from gateway import keyfile

    try:
        found = keyfile.remove(path.resolve(), serial)
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be written: {error}") from None
    click.echo(f"{path}: {serial} may {'no longer connect' if found else 'not connect: it is not in the file'}")
    sys.exit(0 if found else 1)


@devices.command("list")
@KEYS
def list_(path: Path) -> None:
    """Print the serial of each device in the file."""
    from gateway import keyfile

    try:
        serials = keyfile.read(path)
    except ValueError as error:
        raise Refused(str(error)) from None
    for serial in serials:
        click.echo(serial)


def _load(path: Path | None, overrides: dict[str, str]) -> "Config":
    """The configuration, or every problem on a line of its own and exit status 2; warnings either way."""
    from gateway import config

    try:
        loaded = config.load(path, os.environ, overrides)
    except config.ConfigError as error:
        raise Refused("\n".join([*error.problems, *config.unknown_variables(os.environ)])) from None
    for warning in config.unknown_variables(os.environ, loaded.auth.pepper_env):
        click.echo(f"warning: {warning}", err=True)
    return loaded


main.add_command(asyncapi_command.asyncapi)

if __name__ == "__main__":
    main(prog_name="gateway")
