"""What several commands share: types of options, where the broker is, and the one line that refuses."""

from pathlib import Path

import click

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
