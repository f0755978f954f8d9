"""`call`: sends a command to one device or many, and tells how each ended."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gateway.cli.options import (
    AS_JSON,
    BROKER,
    FILE,
    POSITIVE,
    PREFIX,
    Refused,
    asking_the_broker,
    broker_tls,
    check_broker,
    check_event,
    check_serial,
)
from gateway.cli.terminal import printable

if TYPE_CHECKING:
    from gateway.client import Called, Fleet


BAR_STEPS = 200  # so often a bar is drawn anew


class Command(NamedTuple):
    """What to send, and how."""

    event: str
    payload: Any
    qos: int
    ttl_s: float | None
    timeout_s: float


def _events(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """For the shell: events that begin so. Serials are not known here."""
    from gateway.catalog import EVENTS

    return [event.name for event in EVENTS.values() if event.name.startswith(incomplete) and not event.from_device]


@click.command()
@click.argument("words", metavar="SERIAL[,SERIAL]... EVENT [JSON]", nargs=-1, shell_complete=_events)
@click.option("--online", is_flag=True, help="Call every device that is connected, instead of SERIAL.")
@click.option(
    "--from-file",
    "source",
    metavar="PATH",
    type=FILE,
    help="Call the serials in this file, one a line, instead of SERIAL.",
)
@BROKER
@PREFIX
@click.option(
    "--qos",
    metavar="0|1",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="0: now or never. 1: held while the device is away, until its TTL ends.",
)
@click.option(
    "--ttl",
    "ttl_s",
    metavar="S",
    type=POSITIVE,
    help="Seconds for which a command of QoS 1 is held.  [default: what the gateway says, 1 h]",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=POSITIVE,
    default=15.0,
    show_default=True,
    help="Seconds to wait for each outcome; longer than --ttl to be told how it ended.",
)
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many calls at once.",
)
@AS_JSON
def call(
    words: tuple[str, ...],
    online: bool,
    source: Path | None,
    url: str,
    prefix: str,
    qos: int,
    ttl_s: float | None,
    timeout_s: float,
    concurrency: int,
    as_json: bool,
) -> None:
    """Send a command to devices, print the outcomes.

    SERIAL names a device, EVENT what it is to do, JSON the argument, if the event takes one. The README lists the
    events of the protocol, and `gateway asyncapi` what each takes.

    The outcome of one device is printed as JSON; that it is queued is told on stderr. Of several devices
    those that did not ack are printed, one a line, and then how many ended how, also after Ctrl-C; with --json each
    outcome.
    A password in --mqtt is visible to every user of the machine: put the URL into GATEWAY_MQTT_URL.

    Exit status 0 if every device acked, 1 if one did not or nothing was heard, 2 if it cannot be sent.

    \b
    gateway call AC4178234411 device_status
    gateway call AC4178234411 bind_class '{"id": 7}' --qos 1 --ttl 60 --timeout 70
    gateway call AC4178234411,AC4178234412 text_stop '{"stop": true}'
    gateway call --online device_status --json
    gateway call --from-file serials.txt upgrade_watcher "$(cat upgrade.json)"
    """
    serials, event, payload = _read(words, online=online, source=source)
    for serial in serials:
        check_serial(serial)
    check_event(event)
    command = Command(event, _argument(payload), qos, ttl_s, timeout_s)
    check_broker(url)
    tls = broker_tls(url)

    from gateway.client import Fleet

    async def send() -> bool:
        async with Fleet(url, prefix=prefix, tls=tls) as fleet:
            if len(serials) == 1 and not online and source is None:
                return await _one(fleet, serials[0], command)
            if online:
                async with fleet.presence() as devices:
                    serials[:] = sorted(devices.online())
            return await _many(fleet, serials, command, concurrency, as_json=as_json)

    with asking_the_broker():
        acked = asyncio.run(send())
    sys.exit(0 if acked else 1)


def _read(words: tuple[str, ...], *, online: bool, source: Path | None) -> tuple[list[str], str, str | None]:
    """Which serials, which event, and the JSON."""
    if online and source is not None:
        raise Refused("expected --online or --from-file, not both")
    chosen = online or source is not None
    expected = "EVENT [JSON]" if chosen else "SERIAL[,SERIAL]... EVENT [JSON]"
    most = 2 if chosen else 3
    if not most - 1 <= len(words) <= most:
        raise Refused(f"expected {expected}; `gateway call --help` has examples")
    event, payload = words[most - 2], words[most - 1] if len(words) == most else None
    if source is not None:
        return _serials(source), event, payload
    return [] if online else words[0].split(","), event, payload


def _serials(source: Path) -> list[str]:
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"--from-file: {source}: cannot be read: {getattr(error, 'strerror', error)}") from None
    serials = [serial for line in lines if (serial := line.partition("#")[0].strip())]
    if not serials:
        raise Refused(f"--from-file: {source}: has no serial, expected one a line")
    return serials


def _argument(payload: str | None) -> Any:
    import msgspec

    try:
        return None if payload is None else msgspec.json.decode(payload)
    except ValueError as error:
        raise Refused(f"JSON: {error}; quote it for the shell, as in '{{\"id\": 7}}'") from None


async def _one(fleet: "Fleet", serial: str, command: Command) -> bool:
    """Call one device, print its outcome or what explains that there is none, and return whether it acked."""
    from gateway.client import NoOutcome

    event, payload, qos, ttl_s, timeout_s = command
    try:
        outcome = await fleet.call(
            serial,
            event,
            payload,
            qos=qos,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            on_queued=lambda outcome: click.echo(_json(outcome), err=True),
        )
    except NoOutcome:
        click.echo(f"no outcome within {timeout_s:g} s: {await fleet.why_silent(serial)}", err=True)
        return False
    click.echo(_json(outcome))
    return outcome.status == "acked"


async def _many(fleet: "Fleet", serials: list[str], command: Command, concurrency: int, *, as_json: bool) -> bool:
    """Call many devices, print how each ended, and return whether there were any and all acked."""
    event, payload, qos, ttl_s, timeout_s = command
    statuses: Counter[str] = Counter()
    try:
        with _progress(len(serials), statuses) as (echo, advance):
            async for called in fleet.call_many(
                serials, event, payload, concurrency=concurrency, qos=qos, ttl_s=ttl_s, timeout_s=timeout_s
            ):
                statuses[called.status] += 1
                if as_json:
                    echo(_json(called.outcome or {"serial": called.serial, "event": event, "status": called.status}))
                elif called.status != "acked":
                    echo(_line(called))
                advance()
    finally:  # also after Ctrl-C
        if statuses:
            click.echo(_summary(statuses), err=as_json)
    if not serials:
        click.echo("no device is connected", err=True)
    return bool(serials) and statuses["acked"] == len(serials)


def _summary(statuses: Counter[str]) -> str:
    """How many of each, the most frequent first."""
    ranked = sorted(statuses.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {status}" for status, number in ranked)


def _line(called: "Called") -> str:
    error = called.outcome.error if called.outcome else None
    return printable(f"{called.serial}  {called.status}{f': {error}' if error else ''}")


def _json(value: Any) -> str:
    import msgspec

    return printable(msgspec.json.encode(value).decode())


@contextmanager
def _progress(total: int, statuses: Counter[str]) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A bar on stderr if that is a terminal; yields what prints a line beside it, and what advances it by one."""
    if not sys.stderr.isatty():
        yield click.echo, lambda: None
        return
    with click.progressbar(
        range(total),
        file=sys.stderr,
        show_pos=True,
        item_show_func=lambda _: _summary(statuses),
        update_min_steps=max(1, total // BAR_STEPS),
    ) as bar:

        def echo(line: str) -> None:
            click.echo("\r\x1b[K", file=sys.stderr, nl=False)
            click.echo(line)

        yield echo, lambda: bar.update(1)
