"""What counting costs: commands that are counted once, as they are, and twice, in turns in one process.

    python -m tests.bench.metrics_cost            # 50,000 commands each; a minute

Twice: a second set of metrics observes sessions and links as the first does, with a clock read where the first has one.
So the difference is what one set costs in its place, in between all else that a command takes; that it cannot be taken
away instead is because functions may be compiled, which nobody can replace. The gateway is the same otherwise, and so
are its process, its devices and their connections. It ends with an assertion if the second set counted other commands
than those that were to be counted twice.

Beside it, the time of counting alone: what one command is to the metrics, observed again and again.
"""

import asyncio
import re
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from os import kill
from time import monotonic
from typing import Any, Final

import click
import uvloop
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import facts as f
from gateway import is_compiled
from gateway.bodies import Client, Life
from gateway.brokers import free_ports
from gateway.catalog import EVENTS, Catalog
from gateway.limits import Limits, Shared
from gateway.metrics import Metrics
from gateway.mqtt import Published
from gateway.session import DeviceSession
from gateway.surroundings import Surroundings
from gateway.topics import Topics
from tests.bench import contenders, parts, workloads
from tests.bench.contenders import CONTENDERS, Contender, Timers
from tests.bench.plan import QUICK

PAIRS: Final = 50
COMMANDS: Final = 1_000  # of each in a pair
WARM_UP: Final = 300  # commands before those, which let the interpreter get used to what has changed
DEVICES: Final = 200
WINDOW: Final = 64
TWICE, ONCE = signal.SIGUSR1, signal.SIGUSR2
ANSWERED: Final = Published(1, 0, 0.0)
COUNTED: Final = "commands_counted_twice"
ALONE: Final = 100_000  # commands that are observed only


class Second(Collector):
    """A second set of metrics, which observes what the first does while it is `on`; it exposes how many commands."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.on = False
        self._observe = self.metrics.sessions.observe
        self._answered = self.metrics.links.published

    def observe(self, _: str, fact: f.Fact, effects: list[f.Effect], now: float) -> None:
        """See `gateway.surroundings.Observer`."""
        if not self.on:
            return
        overhead = self._observe(fact, effects, now)
        if overhead is not None:  # as in `Device.handle`
            overhead.observe(monotonic() - now)
        if type(fact) is f.Published:
            self._answered(ANSWERED, now)

    def switch(self, number: int, _: object) -> None:
        """Take a signal."""
        self.on = number == TWICE
        self.metrics.instruments.fold()

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        for metric in self.metrics.instruments.collect():
            if metric.name == "gateway_commands":
                yield GaugeMetricFamily(COUNTED, "Commands.", sum(sample.value for sample in metric.samples))


def switched() -> None:
    """Run a gateway that counts twice from TWICE on, and once again from ONCE on."""
    from gateway import admin, app
    from gateway.__main__ import main

    second, registry = Second(), admin.registry

    def surroundings(**shared: Any) -> Surroundings:
        return Surroundings(**shared | {"observers": (second,)})

    vars(app)["Surroundings"] = surroundings
    admin.registry = lambda *collectors: registry(*collectors, second)
    for number in (TWICE, ONCE):
        signal.signal(number, second.switch)
    main(prog_name="gateway")


def _observe_nothing() -> None:
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
    """Microseconds of CPU for a command, counted twice and once, in pairs; who is first changes with each."""
    figures: dict[signal.Signals, list[float]] = {TWICE: [], ONCE: []}
    (admin_port,) = free_ports(1)
    async with parts.stage(gateway(admin_port), QUICK, Timers()) as on:
        await on.fleet.connect(DEVICES)
        counted = 0
        for number in range(pairs):
            for mode in (TWICE, ONCE) if number % 2 else (ONCE, TWICE):
                kill(on.gateway[0], mode)
                commands = await _block(on)
                figures[mode].append(on.meter.reading.per(COMMANDS)["us"])
                counted += commands if mode is TWICE else 0
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{admin_port}/metrics")
        twice = re.findall(rf"^{COUNTED} (.*)$", page.read().decode(), re.MULTILINE)
        assert [float(value) for value in twice] == [counted], "what is compared is not twice and once"
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
@click.option(
    "--pairs", default=PAIRS, show_default=True, help=f"Each has {COMMANDS} commands counted twice, and once."
)
def main(pairs: int) -> None:
    """Print what a command costs counted twice and once, the median of the differences, and counting alone."""
    click.echo(f"the gateway is {'' if is_compiled() else 'not '}compiled")
    click.echo(f"counting alone: {alone_us():.2f} µs a command ({ALONE:,} times)")
    try:
        figures = uvloop.run(measure(pairs))
    except contenders.Unusable as problem:
        raise click.ClickException(str(problem)) from None
    for name, values in zip(("twice", "once"), figures.values(), strict=True):
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
