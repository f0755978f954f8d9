"""Whether what befalls one node is felt at another: two nodes on one broker, and a proxy that prefers the first.

The command: `python -m tests.bench.neighbours`, from the root of a checkout; prints one JSON object. First all devices
of the first node are cut off at once; then that node is killed, and the second takes them over. Meanwhile the devices
of the second get one command after the other. All devices, the service and the proxy are on this machine with the nodes
and the broker: times are upper bounds.
"""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import click
import msgspec
import uvloop

from gateway.brokers import free_ports
from gateway.client import Fleet
from gateway.simulate.fleet import SimulatedFleet, cast
from gateway.simulate.profiles import PROFILES
from tests.bench.plan import Plan, fitting
from tests.bench.storms import CONNECTS_PER_S, WAIT_S, Watched, running_broker, running_gateway
from tests.e2e.proxies import NODE_FLAGS, running_nginx, write_nginx

NEIGHBOURS: Final = 200  # devices of the second node
AT_ONCE: Final = 10  # commands to them under way
COMMAND: Final = ("media_stop", {"stop": True})


class Served(msgspec.Struct):
    """What the devices of the second node, and whoever asks for its readiness, have seen of the trouble."""

    commands: Counter[str] = msgspec.field(default_factory=Counter)  # by status
    readiness: Counter[int] = msgspec.field(default_factory=Counter)  # by HTTP status


class Figures(msgspec.Struct):
    """What was measured. `neighbours_` are of the second node's own devices, in both faults together."""

    devices: int
    neighbours: int
    storm_s: float
    storm_refusals: int  # handshakes that the first node put off, to keep its pace
    takeover_s: float
    taken_over: int  # devices that acked a command at the second node
    neighbours_disconnected: int
    neighbours_commands: dict[str, int]
    readiness: dict[int, int]


@asynccontextmanager
async def served(fleet: Fleet, node: Watched, serials: Sequence[str], seen: Served) -> AsyncIterator[None]:
    """While it is entered each device gets commands in turn, and each at least one; readiness is asked for as often."""
    over = asyncio.Event()

    async def rounds() -> None:
        async with aiohttp.ClientSession() as http:
            while not over.is_set():
                async for called in fleet.call_many(serials, *COMMAND, qos=1, concurrency=AT_ONCE):
                    seen.commands[called.status] += 1
                    async with http.get(f"{node.admin}/readyz") as answer:
                        seen.readiness[answer.status] += 1

    serving = asyncio.create_task(rounds())
    try:
        yield
    finally:
        over.set()
        await serving


async def all_back(fleet: SimulatedFleet) -> float:
    """Wait until all devices are online, of which some have just been cut off; how long that took."""
    began = time.perf_counter()
    async with asyncio.timeout(WAIT_S):
        while fleet.tally.online == len(fleet.devices):  # noqa: ASYNC110 - each notices for itself
            await asyncio.sleep(0.001)
        await fleet.online()
    return time.perf_counter() - began


async def measure(devices: int, neighbours: int, settings: Mapping[str, str] | None = None) -> Figures:
    """Let both faults happen; `settings` are of the nodes, as environment variables."""
    front, *ports = free_ports(3)
    serials = [f"STORM{n}" for n in range(devices)], [f"CALM{n}" for n in range(neighbours)]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-neighbours-")))
        broker, told = await enter(running_broker(directory, tls=False))
        told = {**told, **(settings or {})}
        first, second = [
            await enter(running_gateway({**told, "GATEWAY_NODE": name, "GATEWAY_DEVICES_LISTEN": f"127.0.0.1:{port}"}))
            for name, port in zip(("gw-1", "gw-2"), ports, strict=True)
        ]
        write_nginx(
            directory,
            f"listen {front} backlog=4096;",
            f"server 127.0.0.1:{ports[0]} {NODE_FLAGS}; server 127.0.0.1:{ports[1]} backup {NODE_FLAGS};",
        )
        await enter(running_nginx(directory, front))
        fleets = [
            SimulatedFleet(url, cast(names, PROFILES["steady"], lambda _: "key"), connects_per_s=CONNECTS_PER_S)
            for url, names in zip((f"http://127.0.0.1:{front}", second.url), serials, strict=True)
        ]
        for fleet in fleets:
            await enter(fleet)
            await fleet.online()
        service, seen = await enter(Fleet(broker.url)), Served()
        storming, calm = fleets
        async with served(service, second, serials[1], seen):
            storming.drop()
            storm_s = await all_back(storming)
        refusals = await first.metric('gateway_refusals_total{reason="handshake-rate"}')
        async with served(service, second, serials[1], seen):
            first.process.kill()
            takeover_s = await all_back(storming)
        nodes = [called.outcome async for called in service.call_many(serials[0], *COMMAND, qos=1)]
        return Figures(
            devices=devices,
            neighbours=neighbours,
            storm_s=round(storm_s, 2),
            storm_refusals=int(refusals),
            takeover_s=round(takeover_s, 2),
            taken_over=sum(it is not None and (it.node, it.status) == ("gw-2", "acked") for it in nodes),
            neighbours_disconnected=calm.tally.ended.total(),
            neighbours_commands=dict(seen.commands),
            readiness=dict(seen.readiness),
        )


@click.command()
@click.option("--devices", type=click.IntRange(min=1), default=5_000, show_default=True, help="Of the first node.")
@click.option("--handshakes-per-s", type=int, help="The pace of a node, if it is to be another than the default.")
def main(devices: int, handshakes_per_s: int | None) -> None:
    """Measure what a node's devices feel of a storm at another, and of its death, on this machine."""
    everybody = devices + NEIGHBOURS
    plan, problem = fitting(Plan(devices=everybody, idle_devices=everybody, scale=(everybody,)))
    if problem:
        click.echo(problem, err=True)
    pace = {} if handshakes_per_s is None else {"GATEWAY_ADMISSION_HANDSHAKES_PER_S": str(handshakes_per_s)}
    figures = uvloop.run(measure(plan.devices - NEIGHBOURS, NEIGHBOURS, pace))
    click.echo(json.dumps(msgspec.to_builtins(figures, str_keys=True), indent=2))


if __name__ == "__main__":
    main()
