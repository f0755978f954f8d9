"""The command line: reads flags, answers in one line when something is wrong, and leaves the work to others.

Exit status: 0 done, 1 the answer is no, 2 the command cannot be carried out as given.
"""

import asyncio
import fcntl
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gateway import __version__

if TYPE_CHECKING:
    from gateway.config import Config

FILE = click.Path(dir_okay=False, path_type=Path)


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
    gateway demo                          see it work, with nothing to set up
    gateway check --example > gw.toml     start a configuration
    gateway serve --config gw.toml        run a node
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

    \b
    gateway serve --mqtt mqtt://127.0.0.1:1883 --auth open
    gateway serve --config gw.toml --listen 0.0.0.0:8080 --log-format json
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
    except (OSError, ConfigError) as error:  # a port in use, a file of keys that cannot be read
        raise Refused(f"cannot serve: {error}") from None


@main.command()
@click.option("--config", "path", type=FILE, help="TOML file; without one, the environment is checked.")
@click.option("--example", is_flag=True, help="Print every setting with its default instead.")
def check(path: Path | None, example: bool) -> None:
    """Check a configuration as `serve` would read it, and print every problem at once.

    \b
    gateway check --config gw.toml
    gateway check --example > gw.toml
    """
    if example:
        from gateway import config

        click.echo(config.example(), nl=False)
        return
    _load(path, {})
    click.echo(f"{path or 'the environment'}: ok")


@main.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="End by itself, with a summary.")
@click.option("--broker", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
def demo(seconds: float | None, broker: Literal["auto", "mosquitto", "embedded"]) -> None:
    """Run a broker, a gateway, five devices and a service on this machine, and show what they say.

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
)
@click.option("--prefix", envvar="GATEWAY_MQTT_PREFIX", default="gw/v1", show_default=True, show_envvar=True)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="Seconds to wait for the outcome.",
)
def call(serial: str, event: str, payload: str | None, url: str, prefix: str, timeout_s: float) -> None:
    """Send a command to a device and print its outcome as JSON.

    Exit status 0 if the device acked, 1 if it did not.

    \b
    gateway call AC4178234415 device_status
    gateway call AC4178234415 class:update '{"class_id": 7}' --timeout 60
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

    from gateway.client import Fleet

    async def ask() -> Any:
        async with Fleet(url, prefix=prefix) as fleet:
            return await fleet.call(serial, event, argument, timeout_s=timeout_s)

    try:
        outcome = asyncio.run(ask())
    except TimeoutError:
        click.echo(f"no outcome within {timeout_s:g} s: is a gateway running with prefix {prefix}?", err=True)
        sys.exit(1)
    except (OSError, ValueError) as error:
        raise Refused(f"cannot call {serial}: {error}") from None
    click.echo(msgspec.json.encode(outcome).decode())
    sys.exit(0 if outcome.status == "acked" else 1)


@main.group()
def devices() -> None:
    """Keep the file of devices that `serve --auth file:PATH` reads."""


@devices.command()
@click.argument("serial")
@click.option("--file", "path", type=FILE, required=True, help="Where the keys are; made if it is missing.")
@click.option("--pepper-env", metavar="NAME", default="GATEWAY_PEPPER", show_default=True)
def add(serial: str, path: Path, pepper_env: str) -> None:
    """Add a device to the file, or give it another key.

    The key is asked for, or read from stdin: never a flag, which every user of the machine could see. Only
    a hash of it is kept; the secret in the environment variable GATEWAY_PEPPER is part of the hash.

    \b
    gateway devices add --file devices.txt AC4178234415
    pass show plates/AC4178234415 | gateway devices add --file devices.txt AC4178234415
    """
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
        _put(path.resolve(), serial, hash_key(serial, key, pepper.encode()))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be written: {error}") from None
    click.echo(f"{path}: {serial} may connect")


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


def _put(path: Path, serial: str, hashed: str) -> None:
    """Replace the line of the serial, or append one; readers see the old file or the new, never a part.

    The lock on the directory keeps two that write at once from losing a line.
    """
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.partition(":")[0].strip() != serial]
        _replace(path, "\n".join([*kept, f"{serial}:{hashed}", ""]))
    finally:
        os.close(directory)


def _replace(path: Path, text: str) -> None:
    """Write the file anew under mode 0600, for its old owner, and only then give it its name."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as new:
        try:
            new.write(text)
            new.flush()
            if path.exists() and os.geteuid() == 0:
                os.fchown(new.fileno(), path.stat().st_uid, path.stat().st_gid)
            os.fsync(new.fileno())
            Path(new.name).replace(path)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


if __name__ == "__main__":
    main(prog_name="gateway")
