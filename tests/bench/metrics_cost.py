"""What counting costs: commands with the metrics as they are and without any, in turns in one run.

    python -m tests.bench.metrics_cost            # 50,000 commands each; about a minute

Without: nothing is observed of sessions and links, and no clock is read for it. The gateway is the same otherwise.
"""

import asyncio
import statistics
import sys
from typing import Final

import click
import uvloop

from gateway.mqtt import LinkEvent
from tests.bench import contenders, parts, workloads
from tests.bench.contenders import CONTENDERS, Contender, Timers
from tests.bench.plan import QUICK

ROUNDS: Final = 10
COMMANDS: Final = 5_000  # of each in a round
WARM_UP: Final = 1_000
DEVICES: Final = 200
WINDOW: Final = 64


def without() -> None:
    """Run a gateway that counts nothing."""
    from gateway.__main__ import main
    from gateway.edge_metrics import LinkMetrics
    from gateway.session_metrics import SessionMetrics

    def observe_nothing(_self: SessionMetrics, _fact: object, _effects: object, _now: float) -> None:
        return None

    def hear_nothing(_self: LinkMetrics, _event: LinkEvent, _owner: str) -> None:
        return None

    SessionMetrics.observe = observe_nothing  # type: ignore[method-assign, assignment]
    LinkMetrics.observe = hear_nothing  # type: ignore[method-assign, assignment]
    main(prog_name="gateway")


def quiet() -> Contender:
    """The gateway of this checkout, without metrics."""
    ours = CONTENDERS["gateway"]

    def command(port: int, mqtt: str, timers: Timers) -> tuple[str, ...]:
        assert ours.command is not None
        _, _, _, *words = ours.command(port, mqtt, timers)
        return (sys.executable, "-c", "from tests.bench.metrics_cost import without; without()", *words)

    return ours._replace(name="without", title="without metrics", command=command)


async def cpu_us(contender: Contender) -> float:
    """Microseconds of CPU that the gateway takes for a command."""
    async with parts.stage(contender, QUICK, Timers()) as on:
        await on.fleet.connect(DEVICES)
        for count in (WARM_UP, COMMANDS):
            commands = workloads.Commands(on.service, DEVICES)
            on.meter.start()
            commands.saturate(WINDOW)
            while commands.done < count:  # noqa: ASYNC110 - it counts, and tells nobody
                await asyncio.sleep(0.001)
            await commands.finish()
            on.meter.stop()
            assert not commands.wrong
        return on.meter.reading.per(commands.done)["us"]


async def measure(rounds: int) -> dict[str, list[float]]:
    """The figures of both, in turns; who is first changes with each round."""
    both = [CONTENDERS["gateway"], quiet()]
    figures: dict[str, list[float]] = {contender.name: [] for contender in both}
    for number in range(rounds):
        for contender in both if number % 2 else reversed(both):
            figures[contender.name].append(await cpu_us(contender))
        click.echo("  ".join(f"{name} {values[-1]:.1f}" for name, values in figures.items()), err=True)
    return figures


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help=f"Each has {COMMANDS} commands of either.")
def main(rounds: int) -> None:
    """Print what a command costs with and without metrics, and the ratio of the medians."""
    try:
        figures = uvloop.run(measure(rounds))
    except contenders.Unusable as problem:
        raise click.ClickException(str(problem)) from None
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, values in figures.items():
        click.echo(f"{name:<8}{medians[name]:6.1f} µs of CPU a command ({min(values):.1f} to {max(values):.1f})")
    ratio, more = medians["gateway"] / medians["without"], medians["gateway"] - medians["without"]
    click.echo(f"ratio {ratio:.3f}: metrics cost {more:.1f} µs a command, {rounds * COMMANDS} commands each")


if __name__ == "__main__":
    main()
