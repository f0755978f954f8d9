"""What counting costs: commands with the metrics as they are and without any, in turns in one process.

    python -m tests.bench.metrics_cost            # 50,000 commands each; a minute

Without: nothing is observed of sessions and links, and no clock is read for it. The gateway is the same otherwise, and
so are its process, its devices and their connections: all that changes from one block of commands to the next are the
methods that observe, which do nothing then. It ends with an assertion if other commands were counted than those with.

Beside it, the time of counting alone: what one command is to the metrics, observed again and again.
"""

import asyncio
import re
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from os import kill
from time import monotonic
from typing import Final

import click
import uvloop

from gateway import facts as f
from gateway import is_compiled
from gateway.bodies import Client, Life
from gateway.brokers import free_ports
from gateway.catalog import EVENTS, Catalog
from gateway.limits import Limits, Shared
from gateway.metrics import Metrics
from gateway.mqtt import Published
from gateway.session import DeviceSession
from gateway.topics import Topics
from tests.bench import contenders, parts, workloads
from tests.bench.contenders import CONTENDERS, Contender, Timers
from tests.bench.plan import QUICK

PAIRS: Final = 50
COMMANDS: Final = 1_000  # of each in a pair
WARM_UP: Final = 300  # commands before those, which let the interpreter get used to what has changed
DEVICES: Final = 200
WINDOW: Final = 64
WITH, WITHOUT = signal.SIGUSR1, signal.SIGUSR2
ALONE: Final = 100_000  # commands that are observed only


def switched() -> None:
    """Run a gateway that counts nothing from WITHOUT on, and again from WITH on."""
    from gateway.__main__ import main
    from gateway.edge_metrics import LinkMetrics
    from gateway.session_metrics import SessionMetrics

    methods = [(SessionMetrics, "observe"), (LinkMetrics, "observe"), (LinkMetrics, "published")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in methods]

    def count(*_: object) -> None:
        for owner, name, method in originals:
            setattr(owner, name, method)

    def count_nothing(*_: object) -> None:
        for owner, name in methods:
            setattr(owner, name, _observe_nothing)

    signal.signal(WITH, count)
    signal.signal(WITHOUT, count_nothing)
    main(prog_name="gateway")


def _observe_nothing(*_: object) -> None:
    return None


def gateway(admin_port: int) -> Contender:
    """The gateway of this checkout, as `switched` runs it."""
    ours = CONTENDERS["gateway"]

    def command(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
        assert ours.command is not None
        _, _, _, *words = ours.command(port, mqtt, timers)
        admin = ("--admin", f"127.0.0.1:{admin_port}")
        return (sys.executable, "-c", "from tests.bench.metrics_cost import switched; switched()", *words, *admin)

    return ours._replace(command=command)


async def measure(pairs: int) -> dict[signal.Signals, list[float]]:
    """Microseconds of CPU for a command, with and without, in pairs; who is first changes with each."""
    figures: dict[signal.Signals, list[float]] = {WITH: [], WITHOUT: []}
    (admin_port,) = free_ports(1)
    async with parts.stage(gateway(admin_port), QUICK, Timers()) as on:
        await on.fleet.connect(DEVICES)
        counted = 0
        for number in range(pairs):
            for mode in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
                kill(on.gateway[0], mode)
                commands = await _block(on)
                figures[mode].append(on.meter.reading.per(COMMANDS)["us"])
                counted += commands if mode is WITH else 0
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{admin_port}/metrics")
        received = re.findall(r"^gateway_commands_total{.*} (.*)$", page.read().decode(), re.MULTILINE)
        assert sum(map(float, received)) == counted, "what is compared is not with and without"
    return figures


async def _block(on: parts.Stage) -> int:
    """Measure COMMANDS commands, after WARM_UP of them; how many there were in all."""
    commands = workloads.Commands(on.service, DEVICES)
    commands.saturate(WINDOW)
    for count in (WARM_UP, WARM_UP + COMMANDS):
        on.meter.start()
        while commands.done < count:  # noqa: ASYNC110 - it counts, and tells nobody
            await asyncio.sleep(0.001)
        on.meter.stop()
    await commands.finish()
    assert not commands.wrong
    return commands.done


def alone() -> tuple[Callable[[], None], Callable[[], None]]:
    """What makes metrics observe one command, which comes, is acked, and whose outcome the broker has; and count it."""
    metrics, now = Metrics(), monotonic()
    session = DeviceSession("1", Life("gw", ""), Topics("gw/v1"), Catalog(), Limits(), Shared(1, 1), "")
    session.handle(f.LinkOpened(resumed=False), now)
    session.handle(f.Attached(1, Client(4, "websocket", ""), ""), now)
    answer = f.Answer("acks")
    command = f.Command("1", EVENTS["bind_class"], (), answer, qos=1, lifetime_s=60, ack_timeout_s=10, delivery=1)
    acked, published = f.Acked(1, 1, ({"ack": True},)), f.Published(1)
    emit, conclude, puback = (session.handle(fact, now) for fact in (command, acked, published))
    answered = Published(1, 0, now)
    observe, observe_puback = metrics.sessions.observe, metrics.links.published

    def once() -> None:
        for fact, effects in (command, emit), (acked, conclude), (published, puback):
            overhead = observe(fact, effects, now)
            if overhead is not None:  # as in `Device.handle`
                overhead.observe(monotonic() - now)
        observe_puback(answered, now)

    return once, metrics.instruments.fold


def alone_us(blocks: int = 100) -> float:
    """Microseconds of CPU that a command takes to be observed, and its values to be counted; the median of blocks."""
    once, fold = alone()

    def block(observe: Callable[[], object], count: Callable[[], object]) -> float:
        start = time.process_time()
        for _ in range(ALONE // blocks):
            observe()
        count()
        return (time.process_time() - start) / (ALONE // blocks) * 1e6

    return statistics.median(block(once, fold) - block(_observe_nothing, _observe_nothing) for _ in range(blocks))


@click.command()
@click.option("--pairs", default=PAIRS, show_default=True, help=f"Each has {COMMANDS} commands with and without.")
def main(pairs: int) -> None:
    """Print what a command costs with and without metrics, the median of the differences, and counting alone."""
    click.echo(f"counting alone: {alone_us():.2f} µs a command ({ALONE:,} times)")
    if is_compiled():
        raise click.ClickException("compiled methods cannot be switched off: compare where the gateway is not compiled")
    try:
        figures = uvloop.run(measure(pairs))
    except contenders.Unusable as problem:
        raise click.ClickException(str(problem)) from None
    for name, values in zip(("with", "without"), figures.values(), strict=True):
        low, middle, high = statistics.quantiles(values)
        click.echo(f"{name:<8}{middle:6.1f} µs of CPU a command (half of {pairs} blocks: {low:.1f} to {high:.1f})")
    more = [one - other for one, other in zip(*figures.values(), strict=True)]
    ratios = [one / other for one, other in zip(*figures.values(), strict=True)]
    low, middle, high = statistics.quantiles(more)
    click.echo(
        f"metrics cost {middle:.1f} µs a command, the median of the differences in pairs (half of them: {low:.1f} to "
        f"{high:.1f}); ratio {statistics.median(ratios):.3f}; {pairs * COMMANDS:,} commands each"
    )


if __name__ == "__main__":
    main()
