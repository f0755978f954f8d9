"""What counting costs a command: alone, in its place, and in commands that are counted twice.

    python -m tests.bench.metrics_cost            # 50,000 commands each; a minute

Alone: the time that the metrics take for one command, observed again and again.

In its place: the part of the samples of py-spy, while commands never stop coming, in which a function of the metrics is
on the stack, of the CPU of a command; reads of the clock included.

Twice: a second set of metrics observes sessions and links as the first does, with a clock read where the first has one.
What lets it in is not compiled, and lets in what does nothing where commands are counted once. So the difference is
what one set costs in its place, in between all else that a command takes; that the first cannot be taken away instead
is because functions may be compiled, which nobody can replace. Blocks of commands are counted twice, once, once, twice
and so on while commands never stop coming, and the gateway itself reads the CPU of its thread between them: nothing
else changes. It ends with an assertion if the second set counted other commands than those that were to be counted
twice.
"""

import asyncio
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Final

import click
import uvloop
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway import facts as f
from gateway import is_compiled
from gateway.bodies import Client, Life
from gateway.brokers import free_ports
from gateway.catalog import EVENTS, Catalog
from gateway.instruments import Histogram
from gateway.limits import Limits, Shared
from gateway.metrics import Metrics
from gateway.mqtt.values import Published
from gateway.session import DeviceSession
from gateway.surroundings import Surroundings
from gateway.topics import Topics
from tests.bench import contenders, parts, profile, workloads
from tests.bench.contenders import CONTENDERS, Contender, Timers
from tests.bench.plan import QUICK

BLOCK: Final = 250  # commands
PAIRS: Final = 200  # of blocks
WARM_UP: Final = 20  # blocks before those
DEVICES: Final = 200
WINDOW: Final = 64
ANSWERED: Final = Published(1, 0, 0.0)
COUNTED: Final = "commands_counted_twice"
CPU: Final = "command_cpu_microseconds"
ALONE: Final = 100_000  # commands that are observed only
SAMPLED_S: Final = 40.0
COUNTS: Final = re.compile(r"(session_metrics|edge_metrics|instruments)(___|\.py)")  # in a stack, compiled or not


def _observe_nothing(_: f.Fact, __: list[f.Effect], ___: float) -> None:
    return None


def _answer_nothing(_: Published, __: float) -> None:
    return None


def _do_nothing() -> None:
    return None


class Second(Collector):
    """A second set of metrics, which observes what the first does in every other block of commands.

    It exposes the CPU of a command in each block, and how many commands it has counted.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._twice = False
        self._observe: Callable[[f.Fact, list[f.Effect], float], Histogram | None] = _observe_nothing
        self._answered: Callable[[Published, float], None] = _answer_nothing
        self._left = BLOCK  # commands of this block
        self._began_at = 0.0
        self._blocks: list[tuple[bool, float]] = []  # counted twice, microseconds a command

    def observe(self, _: str, fact: f.Fact, effects: list[f.Effect], now: float) -> None:
        """See `gateway.surroundings.Observer`."""
        stage = self._observe(fact, effects, now)
        if stage is not None:  # as in `Device.handle`
            self.metrics.sessions.done(stage, now)
        if isinstance(fact, f.Published) and fact.token > 0:  # of an outcome, not of presence: a command is done
            self._answered(ANSWERED, now)
            self._left -= 1
            if not self._left:
                self._turn()

    def _turn(self) -> None:
        """Note what a block has taken, and begin the next one."""
        cpu_s = time.thread_time()
        self._blocks.append((self._twice, (cpu_s - self._began_at) / BLOCK * 1e6))
        self._left, self._began_at = BLOCK, cpu_s
        number = len(self._blocks) - WARM_UP
        self._twice = number >= 0 and number % 4 in {0, 3}
        self._observe = self.metrics.sessions.observe if self._twice else _observe_nothing
        self._answered = self.metrics.links.published if self._twice else _answer_nothing

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        family = GaugeMetricFamily(CPU, "Of a command.", labels=["block", "twice"])
        for number, (twice, us) in enumerate(self._blocks[WARM_UP:]):
            family.add_metric([str(number), str(twice)], us)
        yield family
        for metric in self.metrics.instruments.collect():
            for sample in metric.samples:
                if sample.name == "gateway_publish_duration_seconds_count":
                    yield GaugeMetricFamily(COUNTED, "Commands.", sample.value)


def observed() -> None:
    """Run a gateway that counts every other block of commands twice."""
    from gateway import admin, app
    from gateway.__main__ import main

    second, registry = Second(), admin.registry

    def surroundings(**shared: Any) -> Surroundings:
        return Surroundings(**shared | {"observers": (second,)})

    vars(app)["Surroundings"] = surroundings
    admin.registry = lambda *collectors: registry(*collectors, second)
    main(prog_name="gateway")


def gateway(admin_port: int) -> Contender:
    """The gateway of this checkout, as `observed` runs it."""
    ours = CONTENDERS["gateway"]

    def command(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
        assert ours.command is not None
        _, _, _, *words = ours.command(port, mqtt, timers)
        admin = ("--admin", f"127.0.0.1:{admin_port}")
        return (sys.executable, "-c", "from tests.bench.metrics_cost import observed; observed()", *words, *admin)

    return ours._replace(command=command)


async def measure(pairs: int) -> tuple[list[float], list[float]]:
    """Microseconds of CPU for a command, counted twice and once, in pairs of blocks."""
    (admin_port,) = free_ports(1)
    async with parts.stage(gateway(admin_port), QUICK, Timers()) as on:
        await on.fleet.connect(DEVICES)
        commands = workloads.Commands(on.service, DEVICES)
        commands.saturate(WINDOW)
        while commands.done < (WARM_UP + 2 * pairs) * BLOCK:  # noqa: ASYNC110 - it counts, and tells nobody
            await asyncio.sleep(0.01)
        await commands.finish()
        assert not commands.wrong
        page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{admin_port}/metrics")
        text = page.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    figures: dict[str, list[float]] = {"True": [], "False": []}
    for sample in samples:
        if sample.name == CPU:
            figures[sample.labels["twice"]].append(sample.value)
    counted = sum(sample.value for sample in samples if sample.name == COUNTED)
    blocks = len(figures["True"])
    assert blocks * BLOCK <= counted < (blocks + 1) * BLOCK, "what is compared is not twice and once"
    return figures["True"][:pairs], figures["False"][:pairs]


def alone() -> Callable[[], None]:
    """What makes metrics observe one command, which comes, is acked, and whose outcome the broker has."""
    metrics, now = Metrics(), monotonic()
    session = DeviceSession("1", Life("gw", ""), Topics("gw/v1"), Catalog(), Limits(), Shared(1, 1), "")
    session.handle(f.LinkOpened(resumed=False), now)
    session.handle(f.Attached(1, Client(4, "websocket", ""), ""), now)
    answer = f.Answer("acks")
    command = f.Command("1", EVENTS["bind_class"], (), answer, qos=1, lifetime_s=60, ack_timeout_s=10, delivery=1)
    acked, published = f.Acked(1, 1, ({"ack": True},)), f.Published(1)
    emit, conclude, nothing = (session.handle(fact, now) for fact in (command, acked, published))
    answered = Published(1, 0, now)
    observe, observe_puback = metrics.sessions.observe, metrics.links.published

    def once() -> None:
        for fact, effects in (command, emit), (acked, conclude), (published, nothing):
            stage = observe(fact, effects, now)
            if stage is not None:  # as in `Device.handle`
                metrics.sessions.done(stage, now)
        observe_puback(answered, now)

    return once


def alone_us(blocks: int = 100) -> float:
    """Microseconds of CPU that a command takes to be observed; the median of blocks."""
    once = alone()

    def block(observe: Callable[[], object]) -> float:
        start = time.process_time()
        for _ in range(ALONE // blocks):
            observe()
        return (time.process_time() - start) / (ALONE // blocks) * 1e6

    return statistics.median(block(once) - block(_do_nothing) for _ in range(blocks))


async def sampled(us: float) -> str:
    """What counting takes in its place of a command that takes `us` microseconds, and how it was found."""
    with TemporaryDirectory() as directory:
        samples = Path(directory, "samples")
        async with parts.stage(CONTENDERS["gateway"], QUICK, Timers()) as on:
            await on.fleet.connect(DEVICES)
            commands = workloads.Commands(on.service, DEVICES)
            commands.saturate(WINDOW)
            async with profile.recorded(on.gateway[0], samples):
                await asyncio.sleep(SAMPLED_S)
            await commands.finish()
        part, count = profile.share(samples.read_text().splitlines(), COUNTS.search)
    doubt = 2 * sqrt(part * (1 - part) / count)
    return (
        f"counting in its place: {part * us:.2f} µs a command, {part:.2%} of {count:,} samples "
        f"({doubt * us:.2f} µs either way is by chance)"
    )


@click.command()
@click.option("--pairs", default=PAIRS, show_default=True, help=f"Each has {BLOCK} commands counted twice, and once.")
def main(pairs: int) -> None:
    """Print what a command costs counted twice and once, the median of the differences, and counting alone."""
    click.echo(f"the gateway is {'' if is_compiled() else 'not '}compiled")
    click.echo(f"counting alone: {alone_us():.2f} µs a command ({ALONE:,} times)")
    try:
        figures = uvloop.run(measure(pairs))
    except contenders.Unusable as problem:
        raise click.ClickException(str(problem)) from None
    click.echo(uvloop.run(sampled(statistics.median(figures[1]))))
    for name, values in zip(("twice", "once"), figures, strict=True):
        low, middle, high = statistics.quantiles(values)
        click.echo(f"{name:<8}{middle:6.1f} µs of CPU a command (half of {pairs} blocks: {low:.1f} to {high:.1f})")
    more = [one - other for one, other in zip(*figures, strict=True)]
    ratios = [one / other for one, other in zip(*figures, strict=True)]
    low, middle, high = statistics.quantiles(more)
    click.echo(
        f"a second set: {middle:.1f} µs a command, the median of the differences in pairs (half of them: {low:.1f} to "
        f"{high:.1f}; {_doubt(more):.1f} either way is by chance); ratio {statistics.median(ratios):.3f}; "
        f"{pairs * BLOCK:,} commands each"
    )


def _doubt(values: list[float]) -> float:
    """Twice the standard error of a median, from the middle half of the values, as if they were normal."""
    low, _, high = statistics.quantiles(values)
    return 2 * 1.2533 * (high - low) / 1.349 / sqrt(len(values))


if __name__ == "__main__":
    main()
