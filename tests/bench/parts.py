"""The measurements: what one process of a contender goes through in one round, as named figures."""

import asyncio
import gc
import statistics
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from gateway.brokers import local_broker
from tests.bench import contenders, usage, workloads
from tests.bench.broker_peer import Service
from tests.bench.contenders import Contender, Timers
from tests.bench.fleet import Fleet, connect_service
from tests.bench.plan import Plan
from tests.bench.usage import Meter

Figures = dict[str, float]
Profiler = Callable[[str, int], AbstractAsyncContextManager[None]]

WARM_UP: Final = 0.4  # of a measurement's time, before it
FIRST: Final = 0.1  # of the devices, before memory and connects are measured: what is loaded once is not a device's
IDLE_SCALE: Final = 5  # heartbeats and keep-alives come so many times as often, and each is counted
SETTLE_S: Final = 1.0
UNIT_TIMEOUT_S: Final = 180.0


class Stage(NamedTuple):
    """A contender with its devices and its service, and what measures them."""

    fleet: Fleet
    service: Service
    meter: Meter
    gateway: list[int]
    broker: list[int]
    plan: Plan
    profiler: Profiler

    @property
    def measured(self) -> list[int]:
        """The processes that devices are a burden to."""
        return self.gateway or self.broker


def _no_profile(_: str, __: int) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@asynccontextmanager
async def stage(
    contender: Contender, plan: Plan, timers: Timers, profiler: Profiler = _no_profile
) -> AsyncIterator[Stage]:
    """A fresh broker and a fresh process of a contender, without devices; all is gone afterwards."""
    with TemporaryDirectory(prefix="gateway-bench-") as folder:
        directory = Path(folder)
        async with local_broker("mosquitto", directory) as broker:
            async with contenders.running(contender, broker.url, timers, directory / "log") as running:
                assert broker.pid is not None
                service = await connect_service(broker.url)
                fleet = Fleet(running, timers)
                gateway = usage.tree(running.pid) if running.pid else []
                brokers = usage.tree(broker.pid)
                meter = Meter(gateway, brokers)
                gc.collect()
                gc.disable()  # of ours: no pauses that are not the contender's
                try:
                    with _telling_what_was_lost(fleet, service):
                        yield Stage(fleet, service, meter, gateway, brokers, plan, profiler)
                finally:
                    gc.enable()
                    fleet.close()
                    service.close()
            await broker.kill()  # nothing of it is to be kept


@contextmanager
def _telling_what_was_lost(fleet: Fleet, service: Service) -> Iterator[None]:
    """Raises Stuck if a connection was lost, also where it is what something else got stuck by."""
    stuck: str | None = None
    try:
        yield
    except workloads.Stuck as problem:
        stuck = str(problem)
    lost = f"{fleet.tally.lost} devices lost their connection" if fleet.tally.lost else None
    gone = "the service lost its connection" if service.lost else None
    if texts := [text for text in (stuck, lost, gone) if text]:
        raise workloads.Stuck("; ".join(texts))


async def run(group: str, contender: Contender, plan: Plan, profiler: Profiler = _no_profile) -> Figures:
    """One round of a group of parts with one contender. Raises Unusable, Stuck, TimeoutError."""
    work = {"work": _work, "idle": _idle, "scale": _scale}[group]
    timers = Timers()
    if group == "idle":
        timers = Timers(timers.ping_interval_s / IDLE_SCALE, timers.keep_alive_s // IDLE_SCALE)
    async with asyncio.timeout(UNIT_TIMEOUT_S), stage(contender, plan, timers, profiler) as ready:
        return await work(ready)


async def _work(on: Stage) -> Figures:
    figures = await _connect(on, on.plan.devices)
    parts = {"commands": _commands, "latency": _latency, "events": _events, "rooms": _rooms}
    for name, measure in parts.items():
        if name in on.plan.parts:
            figures |= await measure(on)
    return figures


async def _idle(on: Stage) -> Figures:
    devices = on.plan.idle_devices
    connected = await _connect(on, devices)
    await asyncio.sleep(SETTLE_S)
    beats = on.fleet.tally.heartbeats
    async with _measuring(on, "idle"):
        await asyncio.sleep(on.plan.idle_s)
    beats = on.fleet.tally.heartbeats - beats
    per_beat = _named("heartbeat", beats, on)
    a_second = devices / Timers().ping_interval_s  # the heartbeats that there are without the scale
    us = per_beat["heartbeat_us"]
    memory = {"memory_kb": connected["memory_kb"]}
    return per_beat | memory | {"idle_percent": us * a_second / 1e4}


async def _scale(on: Stage) -> Figures:
    figures: Figures = {}
    for devices in on.plan.scale:
        if devices > len(on.fleet):
            at = await _connect(on, devices, first=0 if len(on.fleet) else FIRST)
            at |= await _commands(on)
            figures |= {
                f"{name}@{devices}": at[name] for name in ("connect_us", "memory_kb", "command_us", "command_broker_us")
            }
    return figures


async def _connect(on: Stage, devices: int, *, first: float = FIRST) -> Figures:
    """Connect until there are so many devices; what each of them costs."""
    await on.fleet.connect(len(on.fleet) + int(first * devices))
    await asyncio.sleep(SETTLE_S / 5)
    before, memory = len(on.fleet), usage.memory_bytes(on.measured)
    async with _measuring(on, "connects"):
        await on.fleet.connect(devices)
    count = devices - before
    await asyncio.sleep(SETTLE_S / 5)
    kept = (usage.memory_bytes(on.measured) - memory) / count / 1024
    return _named("connect", count, on) | {"memory_kb": kept}


async def _commands(on: Stage) -> Figures:
    commands = workloads.Commands(on.service, len(on.fleet))
    commands.saturate(min(on.plan.window, len(on.fleet)))
    await asyncio.sleep(on.plan.seconds * WARM_UP)
    done = commands.done
    async with _measuring(on, "commands"):
        await asyncio.sleep(on.plan.seconds)
    done = commands.done - done
    await commands.finish()
    _all_acked(commands)
    return _named("command", done, on)


async def _latency(on: Stage) -> Figures:
    figures: Figures = {}
    for rate in on.plan.rates:
        commands = workloads.Commands(on.service, len(on.fleet))
        await commands.pace(rate, on.plan.seconds * WARM_UP)
        commands.latencies_s.clear()
        done = commands.done
        async with _measuring(on, f"latency-{rate}"):
            await commands.pace(rate, on.plan.seconds)
        done = commands.done - done
        await commands.finish()
        _all_acked(commands)
        figures |= _named(f"paced_{rate}", done, on)
        for percent, text in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            figures[f"{text}_ms_{rate}"] = quantile(commands.latencies_s, percent) * 1000
    return figures


async def _events(on: Stage) -> Figures:
    events = workloads.Events(on.service, on.fleet)
    events.saturate(min(on.plan.window, len(on.fleet)))
    await asyncio.sleep(on.plan.seconds * WARM_UP)
    done = events.done
    async with _measuring(on, "events"):
        await asyncio.sleep(on.plan.seconds)
    done = events.done - done
    await events.finish()
    return _named("event", done, on)


async def _rooms(on: Stage) -> Figures:
    await on.fleet.join()
    await workloads.room_events(on.service, on.fleet, on.plan.seconds * WARM_UP)
    async with _measuring(on, "rooms"):
        took = await workloads.room_events(on.service, on.fleet, on.plan.seconds)
    return _named("room", len(took) * len(on.fleet), on) | {"room_ms": statistics.median(took) * 1000}


@asynccontextmanager
async def _measuring(on: Stage, part: str) -> AsyncIterator[None]:
    """Measure what happens within: afterwards it is the meter's reading."""
    gc.collect()
    async with on.profiler(part, on.measured[0]):
        on.meter.start()
        yield
        on.meter.stop()


def _named(what: str, count: int, on: Stage) -> Figures:
    """The figures of what was measured last, of which there were so many; without a gateway the broker's."""
    figures = {f"{what}_{name}": value for name, value in on.meter.reading.per(count).items()}
    if not on.gateway:
        figures[f"{what}_us"] = figures[f"{what}_broker_us"]
    return figures


def _all_acked(commands: workloads.Commands) -> None:
    if commands.wrong:
        raise workloads.Stuck(f"{commands.wrong} of {commands.done} commands did not end in acked")


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which that share of the values lies; not a number if there are none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
