"""`watch` and `presence`: what devices emit, and who is connected."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.options import (
    AS_JSON,
    BROKER,
    PREFIX,
    asking_the_broker,
    broker_tls,
    check_broker,
    check_event,
    check_serial,
)
from gateway.cli.terminal import printable

if TYPE_CHECKING:
    from gateway.bodies import Presence


@click.command()
@click.option("--serial", metavar="SERIAL", help="Only events of this device.")
@click.option("--event", metavar="EVENT", help="Only events of this name, such as cmd_result.")
@BROKER
@PREFIX
@AS_JSON
def watch(serial: str | None, event: str | None, url: str, prefix: str, as_json: bool) -> None:
    """Print what devices emit, until Ctrl-C.

    One line an event: serial, event, its arguments as JSON. `?` marks a device that waits for an ack. A
    connection that is lost is made again. Exit status 0 after Ctrl-C, 2 if there is no broker at first.

    \b
    gateway watch
    gateway watch --serial AC4178234411 --json
    gateway watch --event cmd_result
    """
    if serial is not None:
        check_serial(serial)
    if event is not None:
        check_event(event)
    check_broker(url)
    tls = broker_tls(url)

    async def follow() -> None:
        from gateway.client import Fleet

        async with Fleet(url, prefix=prefix, tls=tls) as fleet:
            async for found in fleet.events(serial, event):
                if as_json:
                    click.echo(printable(_json(found)))
                    continue
                mark = "?" if found.question is not None else ""
                click.echo(printable(" ".join((f"{found.serial}  {found.event}{mark}", *map(_json, found.args)))))

    _run(follow())


@click.command()
@click.option("--all", "everybody", is_flag=True, help="Print those that are away, too.")
@click.option("--follow", is_flag=True, help="Then print each change, until Ctrl-C.")
@BROKER
@PREFIX
@AS_JSON
def presence(everybody: bool, follow: bool, url: str, prefix: str, as_json: bool) -> None:
    """Print who is connected.

    One line a device: serial, online or away, the node, since when, how and from where, and why it is away.
    Exit status 0, also when nobody is connected; 2 if there is no broker.

    \b
    gateway presence
    gateway presence --all --json
    gateway presence --follow
    """
    check_broker(url)
    tls = broker_tls(url)

    def show(serial: str, what: "Presence") -> None:
        if as_json:
            import msgspec

            click.echo(printable(_json({"serial": serial, **msgspec.to_builtins(what)})))
            return
        client = f"{what.client.transport} EIO{what.client.engine} {what.client.address}" if what.client else ""
        state = "online" if what.online else "away"
        click.echo(printable("  ".join(filter(None, (serial, state, what.node, what.since, client, what.reason)))))

    async def look() -> None:
        from gateway.client import Fleet

        async with Fleet(url, prefix=prefix, tls=tls) as fleet, fleet.presence() as devices:
            for serial, what in sorted(devices.items()):
                if what.online or everybody:
                    show(serial, what)
            if follow:
                async for serial, what in devices.changes():
                    show(serial, what)

    _run(look())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run until it ends, or Ctrl-C ends it, which is its good end."""
    with asking_the_broker(), suppress(KeyboardInterrupt):
        asyncio.run(work)


def _json(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()
