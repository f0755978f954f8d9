"""`simulate`: plays devices."""

import asyncio

import click

from gateway.cli.options import Refused


@click.command()
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
