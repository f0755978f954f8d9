"""The command line: reads flags, answers in one line when something is wrong, and leaves the work to others.

Exit status: 0 done, 1 the answer is no, 2 the command cannot be carried out as given.
"""

import os

import click

from gateway import __version__, is_compiled
from gateway.cli.asyncapi import asyncapi
from gateway.cli.call import call
from gateway.cli.devices import devices
from gateway.cli.options import Commands, Refused
from gateway.cli.serve import check, demo, serve
from gateway.cli.simulate import simulate
from gateway.cli.status import status
from gateway.cli.token import token
from gateway.cli.watch import presence, watch


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(f"{__version__}, {'compiled' if is_compiled() else 'not compiled'}", prog_name="gateway")
def main() -> None:
    """Connect Socket.IO devices to MQTT: every device becomes an MQTT session of its own.

    \b
    gateway demo                               see it work, with nothing to set up
    gateway check --example > gateway.toml     start a configuration
    gateway serve --config gateway.toml        run a node
    gateway simulate --devices 100             play devices that connect to it
    gateway call --online device_status        ask each device something

    A variable GATEWAY_X may be in a file that GATEWAY_X_FILE names: secrets of containers, credentials of systemd.
    """
    if any(name.startswith("GATEWAY_") and name.endswith("_FILE") for name in os.environ):
        _read_secret_files()


def _read_secret_files() -> None:
    from gateway.secret_files import read_secret_files
    from gateway.settings import ConfigError

    try:
        read_secret_files(os.environ)
    except ConfigError as error:
        raise Refused(str(error)) from None


for command in (serve, check, demo, status, call, watch, presence, devices, token, simulate, asyncapi):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="gateway")
