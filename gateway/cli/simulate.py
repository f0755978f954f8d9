"""`simulate`: plays devices."""

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import click

from gateway.cli.keys import read_keys
from gateway.cli.options import FILE, POSITIVE, Refused

if TYPE_CHECKING:
    from ssl import SSLContext

    from gateway.simulate.fleet import SimulatedFleet
    from gateway.simulate.profiles import Behaviour
    from gateway.simulate.tally import Summary

TELLING = 10  # devices at most, of which each event gets a line
REFRESH_S = 1.0
PROFILES = ("steady", "modern", "old", "slow", "flapping", "mixed")  # of gateway.simulate.profiles, not to import it


@click.command()
@click.argument("serials", metavar="[SERIAL]...", nargs=-1)
@click.option("--url", metavar="URL", default="http://127.0.0.1:8080", show_default=True, help="The gateway.")
@click.option("--ca", metavar="PEM", type=FILE, help="Who signed its certificate, if the system does not know them.")
@click.option("--devices", "number", metavar="N", type=click.IntRange(min=1), help="Play N devices: SIM1, SIM2 and on.")
@click.option(
    "--serial-prefix", metavar="TEXT", default="SIM", show_default=True, help="What the serials of these begin with."
)
@click.option(
    "--profile", type=click.Choice(PROFILES), default="steady", show_default=True, help="How they behave, see above."
)
@click.option(
    "--key",
    metavar="KEY",
    default="demo",
    show_default=True,
    envvar="GATEWAY_SIMULATE_KEY",
    show_envvar=True,
    help="The key of each; {serial} in it stands for the serial. Every user of the machine sees it.",
)
@click.option(
    "--keys",
    metavar="CSV",
    type=click.File("r", encoding="utf-8"),
    help="Play the devices in this file, lines of SERIAL,KEY; with --devices the first N.",
)
@click.option(
    "--connects-per-s",
    metavar="R",
    type=POSITIVE,
    default=50.0,
    show_default=True,
    help="How many connect in a second at the beginning; see admission.handshakes_per_address_per_s of the gateway.",
)
@click.option(
    "--events-per-s",
    metavar="R",
    type=POSITIVE,
    help="How many events all together emit in a second, one in ten of them a question.",
)
@click.option(
    "--drop-every", "drop_every_s", metavar="S", type=POSITIVE, help="Cut all connections at once every S seconds."
)
@click.option("--seconds", metavar="S", type=POSITIVE, help="End by itself after S seconds.")
@click.option("--seed", metavar="N", type=int, help="Draw the same random numbers each time.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as a JSON object, and nothing else.")
def simulate(
    serials: tuple[str, ...],
    url: str,
    ca: Path | None,
    number: int | None,
    serial_prefix: str,
    profile: str,
    key: str,
    keys: TextIO | None,
    connects_per_s: float,
    events_per_s: float | None,
    drop_every_s: float | None,
    seconds: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Play devices until Ctrl-C, then print what became of them.

    They authenticate, ack each event as the device protocol says, and connect again when they are cut off,
    after the pauses of socket.io-client. Up to ten print one line per event; more show on a terminal how they
    stand. One process is good for 5,000.

    \b
    Profiles:
      steady    socket.io 4 on WebSockets
      modern    socket.io 4, some of which poll first
      old       socket.io 1 and 2: poll first, only poll, or a WebSocket at once
      slow      both, which ack after 1 to 15 s
      flapping  both, which drop their socket every 10 to 30 s
      mixed     all of these, and some that emit events

    Exit status 0 if every device was authenticated at some time, 1 if not, 2 if it cannot be played.

    \b
    gateway simulate AC4178234411 AC4178234412
    gateway simulate --url https://gateway.example --devices 5000 --profile mixed
    gateway simulate --keys plates.csv --events-per-s 100
    gateway simulate --devices 1000 --key 'key-of-{serial}' --drop-every 30 --json
    """
    _check_url(url)
    tls = _trusting(ca) if ca is not None else None
    known = read_keys(keys) if keys is not None else {}
    names = _names(serials, number, serial_prefix, known)
    _raise_file_limit(2 * len(names) + 100)

    import uvloop

    from gateway.simulate.fleet import SimulatedFleet, cast
    from gateway.simulate.profiles import PROFILES as BEHAVIOURS

    behaviours: Sequence[Behaviour] = BEHAVIOURS[profile]
    if events_per_s is not None:
        behaviours = [_emitting(behaviour, len(names) / events_per_s) for behaviour in behaviours]
    devices = cast(names, behaviours, lambda serial: known.get(serial, key.replace("{serial}", serial)))
    telling = len(names) <= TELLING and not as_json

    async def run() -> "Summary":
        fleet = SimulatedFleet(
            url, devices, connects_per_s=connects_per_s, seed=seed, tls=tls, tell=click.echo if telling else None
        )
        return await _play(fleet, seconds, drop_every_s, shows=sys.stderr.isatty() and not telling)

    summary = uvloop.run(run())
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(summary).decode())
    else:
        click.echo("\n".join(["", *summary.lines()]))
    sys.exit(0 if summary.authenticated == summary.devices else 1)


async def _play(
    fleet: "SimulatedFleet", seconds: float | None, drop_every_s: float | None, *, shows: bool
) -> "Summary":
    """Let them live until the time is up, or a signal ends it; a second signal breaks it off."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def stopped(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped, number)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    async with fleet:
        beside = [asyncio.create_task(stop.wait())]
        if shows:
            beside.append(asyncio.create_task(_every(REFRESH_S, lambda: _show(str(fleet.tally)))))
        if drop_every_s is not None:
            beside.append(asyncio.create_task(_every(drop_every_s, fleet.drop)))
        await asyncio.wait({*beside, fleet.life}, return_when=asyncio.FIRST_COMPLETED)
        for task in beside:
            task.cancel()
        summary = fleet.summary()
    if shows:
        _show("")
    return summary


async def _every(pause_s: float, do: Callable[[], None]) -> Literal[True]:
    """Do it again and again; never returns."""
    while True:
        await asyncio.sleep(pause_s)
        do()


def _show(text: str) -> None:
    """Replace the last line of the terminal."""
    click.echo(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)


def _check_url(url: str) -> None:
    from urllib.parse import urlsplit

    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise Refused("--url: expected http://HOST:PORT or https://HOST:PORT")


def _trusting(ca: Path) -> "SSLContext":
    from gateway.tls import client_context

    try:
        return client_context(str(ca))
    except ValueError as problem:
        raise Refused(f"--ca: {problem}") from None


def _names(serials: Sequence[str], number: int | None, prefix: str, keys: Mapping[str, str]) -> list[str]:
    """Who is played: those that are named, and so many of the file, or of those that are made up."""
    from gateway.topics import is_serial

    if keys:
        more = list(islice((serial for serial in keys if serial not in serials), number))
        if len(more) < (number or 0):
            raise Refused(f"--keys: has {len(more)} devices, expected {number}")
    else:
        more = [f"{prefix}{n}" for n in range(1, (number or 0) + 1)]
    names = list(dict.fromkeys((*serials, *(more if number or not serials else ()))))
    if not names:
        raise Refused("expected a SERIAL, --devices N or --keys CSV")
    wrong = next((name for name in names if not is_serial(name)), None)
    if wrong is not None:
        raise Refused(f"{wrong!r} is no serial: expected 1 to 64 of A-Z a-z 0-9 . _ -")
    return names


def _emitting(behaviour: "Behaviour", every_s: float) -> "Behaviour":
    """The same, but emitting an event every so often, of which one in ten is a question."""
    import msgspec

    from gateway.simulate.profiles import QUESTION, RESULT

    reports = (
        msgspec.structs.replace(RESULT, every_s=every_s / 0.9),
        msgspec.structs.replace(QUESTION, every_s=every_s / 0.1),
    )
    return msgspec.structs.replace(behaviour, reports=reports)


def _raise_file_limit(files: int) -> None:
    """Ask the system for as many open files as there will be connections."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < files:
        click.echo(f"warning: may open {wanted} files only, and may need {files}: see `ulimit -Hn`", err=True)
