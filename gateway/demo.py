"""`gateway demo`: a broker, a gateway, five devices and a service on this machine, and what they say.

Decides who takes part and what the service asks; everything it starts, it ends. Shows a live table on a
terminal, and one line for each outcome elsewhere.
"""

import asyncio
import shlex
import shutil
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import click
import msgspec
import trustme
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gateway.addresses import BrokerUrl
from gateway.app import Gateway
from gateway.bodies import Outcome
from gateway.brokers import BrokerUnavailable, Kind, LocalBroker, local_broker
from gateway.client import Disconnected, Fleet, NoOutcome
from gateway.config import load
from gateway.simulate.device import SimulatedDevice
from gateway.simulate.fleet import SimulatedFleet
from gateway.simulate.profiles import OLD_UPGRADE, Behaviour, Flapping, Report
from gateway.tls import client_context

ACK_TIMEOUT_S: Final = 3.0  # a newcomer does not wait the usual ten seconds to see a timeout
TTL_S: Final = 10  # how long a QoS 1 command is held for the device that comes and goes
OUTCOME_TIMEOUT_S: Final = 30.0  # longer than a lifetime and three attempts: every outcome must be there
START_TIMEOUT_S: Final = 20.0
PAUSE_S: Final = 0.3  # between two commands to the same device
REFRESH_S: Final = 0.25
MAX_COLUMNS: Final = 80  # of a terminal that nobody has made larger
SAMPLES: Final = 10_000  # latencies kept for each status; the oldest go first

COLOURS: Final = {
    "online": "default",
    "acked": "green",
    "sent": "dim",
    "queued": "cyan",
    "offline": "yellow",
    "expired": "yellow",
}
WHY: Final = {"mosquitto": "it is installed", "embedded": "mosquitto is not installed"}


class Part(msgspec.Struct, frozen=True):
    """A device of the demo."""

    serial: str
    about: str
    behaviour: Behaviour = Behaviour()


class Command(msgspec.Struct, frozen=True):
    """What the service sends."""

    event: str
    payload: Any = None
    qos: int = 0


CAST: Final = (
    Part("AC4178234411", ""),
    Part("AC4178234412", "old", OLD_UPGRADE),
    Part("AC4178234413", "emits", Behaviour(reports=(Report("cmd_result", {"result": "ok"}, 5.0),))),
    Part("AC4178234414", "slow", Behaviour(ack_delay_s=(1.0, 2.0))),
    Part("AC4178234415", "on/off", Behaviour(flapping=Flapping(online_s=4.0, away_s=2.0))),
)

NEWCOMER: Final = "AC4178234416"

COMMANDS: Final = (
    Command("device_status"),
    Command(
        "text_notifications",
        {"notifications": [{"content": "滚动通知1"}], "ended_at": "2099-12-31T23:59:59+08:00"},
        qos=1,
    ),
    Command("face_data_count"),
    Command("class:update", {"id": 1}, qos=1),
    Command("memos_unread", {"updated_at": "2018-01-01T09:00"}),
    Command("media_stop", {"stop": True}, qos=1),
    Command("bind_class", {"id": 1, "name": "初三1班"}, qos=1),
)


class Certified(msgspec.Struct, frozen=True):
    """PEM files: who is to be trusted, and the certificate for this machine that they signed, with its key."""

    authority: Path
    certificate: Path


class Row:
    """One device in the table: what was sent to it last, and what became of it."""

    def __init__(self, device: SimulatedDevice, about: str) -> None:
        self.device = device
        self.about = about
        self.command = Command("")
        self.status = ""
        self.latency_ms: float | None = None
        self.commands = 0
        self.acked = 0

    def send(self, command: Command) -> None:
        """Show a command on its way."""
        self.command, self.status, self.latency_ms = command, "sent", None
        self.commands += 1

    def show(self, outcome: Outcome) -> None:
        """Show an outcome; one that is not final has no latency yet."""
        self.status = outcome.status
        self.latency_ms = outcome.latency_ms if outcome.final else None
        self.acked += outcome.status == "acked"


class Tally:
    """What became of all commands."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # final outcomes, by status
        self.missing = 0  # commands without one
        self._latencies_ms: dict[str, deque[float]] = {}

    def add(self, outcome: Outcome) -> None:
        """Count a final outcome."""
        self.counts[outcome.status] += 1
        self._latencies_ms.setdefault(outcome.status, deque(maxlen=SAMPLES)).append(outcome.latency_ms)

    def __str__(self) -> str:
        """The statuses, the most frequent first."""
        return ", ".join(f"{number} {status}" for status, number in self.counts.most_common())

    @property
    def good(self) -> bool:
        """Whether every command got its final outcome, and at least one was acked."""
        return self.missing == 0 and self.counts["acked"] > 0

    def summary(self) -> list[str]:
        """One line for each status, and the verdict."""
        lines = [
            f"  {status:9}{number:6}   p50 {self._quantile(status, 0.50):8.1f} ms"
            f"   p99 {self._quantile(status, 0.99):8.1f} ms"
            for status, number in self.counts.most_common()
        ]
        verdict = f"{self.missing} got none" if self.missing else "each got its final outcome"
        return [*lines, f"{self.counts.total() + self.missing} commands, {verdict}"]

    def _quantile(self, status: str, share: float) -> float:
        ordered = sorted(self._latencies_ms[status])
        return ordered[max(0, ceil(share * len(ordered)) - 1)]


def run(seconds: float | None, broker: Literal["auto"] | Kind = "auto", *, tls: bool = False) -> int:
    """Run the demo for `seconds`, or until Ctrl-C; with `tls` devices connect by TLS.

    Returns:
        The exit status: 0 if every command got its final outcome and one at least was acked, 1 if not, 2 if
        it cannot be set up.
    """
    try:
        return asyncio.run(main(seconds, broker, tls=tls))
    except BrokerUnavailable as problem:
        click.echo(f"gateway demo: {problem}", err=True)
    except TimeoutError:
        click.echo(f"gateway demo: not every device could connect within {START_TIMEOUT_S:g} s", err=True)
    return 2


async def main(seconds: float | None, broker: Literal["auto"] | Kind, *, tls: bool) -> int:
    """Start everything, let it play, and say what became of it; returns the exit status."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    tally = Tally()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-demo-")))
        certified = _certify(directory) if tls else None
        running = await stack.enter_async_context(local_broker(broker, directory))
        gateway = await stack.enter_async_context(_gateway(running, certified))
        async with asyncio.timeout(START_TIMEOUT_S):
            rows = [Row(SimulatedDevice(part.serial, behaviour=part.behaviour), part.about) for part in CAST]
            trusting = client_context(str(certified.authority)) if certified else None
            plates = SimulatedFleet(gateway.device_url, [row.device for row in rows], tls=trusting)
            await stack.enter_async_context(plates)
            await plates.online()
            fleet = await stack.enter_async_context(Fleet(running.url))
        click.echo("\n".join([*_addresses(broker, running, gateway, certified), ""]))
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, stop.set)
        await _play(fleet, rows, tally, stop)
    click.echo("\n".join(["", *tally.summary()]))
    return 0 if tally.good else 1


async def _play(fleet: Fleet, rows: list[Row], tally: Tally, stop: asyncio.Event) -> None:
    """Send commands until told to stop, and wait for the outcome of each."""
    live = sys.stdout.isatty() and not Console().is_dumb_terminal
    async with asyncio.TaskGroup() as group:
        work = [group.create_task(_send(fleet, row, start, tally, stop, quiet=live)) for start, row in enumerate(rows)]
        if live:
            await _show(rows, tally, work)


async def _send(fleet: Fleet, row: Row, start: int, tally: Tally, stop: asyncio.Event, *, quiet: bool) -> None:
    """Send one command after the other to one device."""
    for number in count(start):
        row.send(COMMANDS[number % len(COMMANDS)])
        try:
            outcome = await _call(fleet, row)
            row.show(outcome)
            tally.add(outcome)
            if not quiet:
                click.echo(_line(row))
        except (NoOutcome, Disconnected) as problem:
            row.status = "no outcome"
            tally.missing += 1
            click.echo(str(problem), err=True)
            if isinstance(problem, Disconnected):
                stop.set()
        except BrokenPipeError:  # nobody reads any more
            stop.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSE_S)
        if stop.is_set():
            return


async def _call(fleet: Fleet, row: Row) -> Outcome:
    return await fleet.call(
        row.device.serial,
        row.command.event,
        row.command.payload,
        qos=row.command.qos,
        ttl_s=TTL_S if row.command.qos else None,
        timeout_s=OUTCOME_TIMEOUT_S,
        on_queued=row.show,
    )


async def _show(rows: list[Row], tally: Tally, work: list[asyncio.Task[None]]) -> None:
    """Draw the table until the work is done."""
    with Live(_table(rows, tally), auto_refresh=False) as live:
        pending = set(work)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=REFRESH_S)
            live.update(_table(rows, tally), refresh=True)


def _table(rows: list[Row], tally: Tally) -> Table:
    """As wide whatever is in it, and narrower than 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left", caption=f"\n{tally}")
    for heading, width in (("device", 12), ("", 6), ("state", 10), ("last event", 18), ("status", 10)):
        table.add_column(heading, no_wrap=True, width=width)
    for heading, width in (("ms", 5), ("acked", 11)):
        table.add_column(heading, no_wrap=True, width=width, justify="right")
    for row in rows:
        table.add_row(
            row.device.serial,
            f"[dim]{row.about}[/]",
            f"[{COLOURS.get(row.device.state, 'yellow')}]{row.device.state}[/]",
            row.command.event,
            f"[{COLOURS.get(row.status, 'red')}]{row.status}[/]",
            "" if row.latency_ms is None else f"{row.latency_ms:.{1 if row.latency_ms < 1000 else 0}f}",
            f"{row.acked}/{row.commands}",
        )
    return table


def _line(row: Row) -> str:
    return (
        f"{row.device.serial}  {row.command.event:18}  QoS {row.command.qos}  {row.status:8}"
        f"  {row.latency_ms or 0.0:8.1f} ms"
    )


def _addresses(wanted: str, running: LocalBroker, gateway: Gateway, certified: Certified | None) -> list[str]:
    """Where everything is, and commands to paste into a second terminal; printed above what moves."""
    why = WHY[running.kind] if wanted == "auto" else "as asked"
    url = BrokerUrl.parse(running.url)
    serial = CAST[0].serial
    at = ("-V", "5", "-h", url.host, "-p", str(url.port))
    watch = ("mosquitto_sub", *at, "-v", "-t", "gw/v1/#")
    ask = ("mosquitto_pub", *at, "-n", "-t", f"gw/v1/devices/{serial}/commands/device_status")
    trust = ("--ca", str(certified.authority)) if certified else ()
    return [
        f"broker   {running.kind} {running.version} ({why})  {running.url}",
        f"devices  {gateway.device_url}/socket/socket.io",
        f"metrics  {gateway.admin_url}/metrics",
        "",
        "Ctrl-C ends it. In a second terminal, ask a device something:",
        _pasteable(*_gateway_command(), "call", serial, "device_status", "--mqtt", running.url),
        *(_pasteable(*command) for command in (watch, ask) if shutil.which(command[0])),
        "",
        "Or play one more device:",
        _pasteable(*_gateway_command(), "simulate", NEWCOMER, "--url", gateway.device_url, *trust),
    ]


def _pasteable(*words: str) -> str:
    """A shell command in lines of at most 80 columns, as far as its words allow."""
    lines = [" "]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > MAX_COLUMNS - len("  \\"):
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _gateway_command() -> tuple[str, ...]:
    """How to run this program in another terminal, where no virtual environment may be active."""
    started = Path(sys.argv[0])
    return (str(started.absolute()),) if started.name == "gateway" else (sys.executable, "-m", "gateway")


def _certify(directory: Path) -> Certified:
    """Make an authority that only those trust who are told its file, and a certificate by it."""
    authority = trustme.CA(organization_name="gateway demo")
    files = Certified(directory / "ca.pem", directory / "gateway.pem")
    authority.cert_pem.write_to_path(files.authority)
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(files.certificate)
    return files


@asynccontextmanager
async def _gateway(broker: LocalBroker, certified: Certified | None) -> AsyncIterator[Gateway]:
    overrides = {
        "node": "demo",
        "devices.listen": "127.0.0.1:0",
        "devices.tls_cert": str(certified.certificate) if certified else "",
        "admin.listen": "127.0.0.1:0",
        "mqtt.url": broker.url,
        "auth.mode": "open",
        "commands.ack_timeout_s": ACK_TIMEOUT_S,
    }
    gateway = Gateway(load(None, {}, overrides))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Ctrl-C ends the demo in good order; a second Ctrl-C breaks it off."""
    loop = asyncio.get_running_loop()

    def stopped(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped, number)
