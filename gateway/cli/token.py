"""`token`: signs what lets a viewer join rooms."""

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli.options import FILE, Refused

if TYPE_CHECKING:
    from gateway.tokens import PrivateKey

SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A time such as 90, 90s, 15m, 8h or 7d, in seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; at least a second."""
        parts = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value))
        if parts is None or int(parts[1]) == 0:
            self.fail("expected a time such as 90s, 15m, 8h or 7d", param, ctx)
        return int(parts[1]) * SECONDS[parts[2]]


@click.command()
@click.option("--room", "rooms", metavar="PATTERN", multiple=True, required=True, help="A room; * is any text.")
@click.option("--ttl", "ttl_s", metavar="TIME", type=Duration(), default="1h", show_default=True, help="8h, 30m, 7d.")
@click.option("--sub", default="", help="Who it is for; goes to the gateway's log.")
@click.option("--key", "key_file", metavar="PATH", type=FILE, help="Sign with this private key: RS256 or ES256.")
@click.option("--kid", default="", help="The key's id in the JWKS.")
@click.option(
    "--secret-env",
    metavar="NAME",
    default="GATEWAY_TOKEN_SECRET",
    show_default=True,
    help="Without --key, the environment variable with the secret: HS256.",
)
@click.option("--aud", default="", help="What tokens.audience of the gateway is.")
@click.option("--iss", default="", help="What tokens.issuer of the gateway is.")
def token(
    rooms: tuple[str, ...], ttl_s: int, sub: str, key_file: Path | None, kid: str, secret_env: str, aud: str, iss: str
) -> None:
    """Print a token that lets a viewer join rooms.

    The room of a device is named by its serial. Whoever has the token may join until it expires: it cannot be
    taken back, so keep --ttl short. Exit status 0 or 2.

    \b
    gateway token --room AC4178234411 --ttl 30m --sub alice
    gateway token --room 'wxa_student_*' --ttl 8h --key private.pem --kid 2026
    """
    from gateway.settings import ConfigError
    from gateway.tokens import mint, read_private_key, rooms_of, secret_of

    try:
        key: bytes | PrivateKey = read_private_key(key_file) if key_file else secret_of(secret_env, os.environ)
    except (ConfigError, ValueError) as error:
        raise Refused(str(error)) from None
    try:
        allowed = rooms_of(list(rooms))
    except ValueError:
        raise Refused("--room: expected 1 to 64 room names, or patterns with at most two *") from None
    now = int(time.time())
    optional = {"sub": sub, "aud": aud, "iss": iss}
    claims = {"rooms": allowed, "iat": now, "exp": now + ttl_s} | {k: v for k, v in optional.items() if v}
    click.echo(mint(claims, key, kid))
