"""What happens to a whole fleet at once: memory of its links, a reconnect storm, a broker that restarts.

The command: `python -m tests.bench.storms`, from the root of a checkout; prints one JSON object. The devices are in
this process, which shares the machine with gateway and broker: times are upper bounds, memory is not affected.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import aiohttp
import click
import uvloop

from gateway.brokers import LocalBroker, local_broker
from gateway.simulate.fleet import SimulatedFleet, cast
from gateway.simulate.profiles import PROFILES
from tests.bench.plan import Plan, fitting
from tests.bench.usage import memory_bytes
from tests.certificates import Authority

FIRST: Final = 100  # devices before memory is counted: what is loaded once is not a device's
CONNECTS_PER_S: Final = 300.0
WAIT_S: Final = 120.0
LOOK_EVERY_S: Final = 0.05
ENVIRON: Final = {
    "GATEWAY_AUTH_MODE": "open",
    "GATEWAY_DEVICES_LISTEN": "127.0.0.1:0",
    "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
    "GATEWAY_LOG_FORMAT": "json",
    "GATEWAY_ADMISSION_HANDSHAKES_PER_ADDRESS_PER_S": "1000000",  # all devices are here; the pace of all is as it is
    "GATEWAY_ADMISSION_MAX_UNAUTHENTICATED_PER_ADDRESS": "1000000",
}


class Watched:
    """A gateway process, seen through its metrics."""

    def __init__(self, process: Process, devices: str, admin: str, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.url = devices
        self.admin = admin
        self._http = http

    async def metric(self, series: str) -> float:
        """The value of one series."""
        async with self._http.get(f"{self.admin}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} "))

    async def until(self, series: str, reached: Callable[[float], bool]) -> float:
        """Wait until a series has reached something; how long that took."""
        began = time.perf_counter()
        async with asyncio.timeout(WAIT_S):
            while not reached(await self.metric(series)):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(LOOK_EVERY_S)
        return time.perf_counter() - began


@asynccontextmanager
async def running_broker(directory: Path, *, tls: bool) -> AsyncIterator[tuple[LocalBroker, dict[str, str]]]:
    """mosquitto from the project's configuration, and what a gateway must be told to reach it."""
    overrides: dict[str, str | None] = {}
    told: dict[str, str] = {}
    if tls:
        authority = Authority(directory, "storms")
        files = authority.issue("broker")
        overrides = {"certfile": str(files.certificate), "keyfile": str(files.key)}
        told = {"GATEWAY_MQTT_CA_FILE": str(authority.path)}
    async with local_broker("mosquitto", directory, overrides) as broker:
        url = broker.url.replace("mqtt://", "mqtts://") if tls else broker.url
        yield broker, told | {"GATEWAY_MQTT_URL": url}


@asynccontextmanager
async def running_gateway(told: dict[str, str]) -> AsyncIterator[Watched]:
    """A node, as `gateway serve` runs it."""
    command = (sys.executable, "-m", "gateway", "serve")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    process = await asyncio.create_subprocess_exec(*command, env=environ | ENVIRON | told, stderr=PIPE, stdout=DEVNULL)
    assert process.stderr is not None
    started: dict[str, str] = {}
    async for line in process.stderr:
        if (entry := json.loads(line))["message"] == "gateway started":
            started = entry
        elif entry["message"] == "gateway ready":
            break
    draining = asyncio.create_task(_drain(process.stderr))
    try:
        async with aiohttp.ClientSession() as http:
            yield Watched(process, started["devices"], started["admin"], http)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await draining


async def _drain(lines: asyncio.StreamReader) -> None:
    while await lines.read(65_536):
        pass


async def measure(devices: int, *, tls: bool) -> dict[str, float | str | bool]:
    """Connect a fleet, cut it off, and restart the broker under it."""
    online, up = 'gateway_devices{presence="online"}', 'gateway_links{state="up"}'
    accepted = 'gateway_authentications_total{outcome="accepted"}'
    with tempfile.TemporaryDirectory(prefix="gateway-storms-") as name:
        async with running_broker(Path(name), tls=tls) as (broker, told), running_gateway(told) as gateway:
            assert broker._process is not None

            def memory() -> tuple[int, int]:
                assert broker._process is not None
                return memory_bytes([gateway.process.pid]), memory_bytes([broker._process.pid])

            plates = cast([f"STORM{n}" for n in range(devices)], PROFILES["steady"], lambda _: "key")
            first = SimulatedFleet(gateway.url, plates[:FIRST], connects_per_s=CONNECTS_PER_S)
            rest = SimulatedFleet(gateway.url, plates[FIRST:], connects_per_s=CONNECTS_PER_S)
            async with first:
                await gateway.until(online, lambda found: found == FIRST)
                before = memory()
                async with rest:
                    await gateway.until(online, lambda found: found == devices)
                    after = memory()
                    known = await gateway.metric(accepted)
                    for fleet in (first, rest):
                        fleet.drop()
                    storm_s = await gateway.until(accepted, lambda found: found >= known + devices)
                    storm_s += await gateway.until(online, lambda found: found == devices)
                    await broker.kill()
                    await gateway.until(up, lambda found: found == 0)
                    await broker.start()
                    restart_s = await gateway.until(up, lambda found: found >= devices)
            counted = devices - FIRST
            return {
                "devices": devices,
                "tls_to_the_broker": tls,
                "broker": broker.version,
                "gateway_kb_per_device": round((after[0] - before[0]) / counted / 1024, 2),
                "broker_kb_per_link": round((after[1] - before[1]) / counted / 1024, 2),
                "storm_s": round(storm_s, 2),
                "broker_restart_s": round(restart_s, 2),
            }


@click.command()
@click.option("--devices", type=click.IntRange(min=FIRST + 1), default=5_000, show_default=True, help="How many.")
@click.option("--tls", is_flag=True, help="Between the gateway and the broker.")
def main(devices: int, tls: bool) -> None:
    """Measure what happens to a whole fleet at once, on this machine."""
    plan, problem = fitting(Plan(devices=devices, idle_devices=devices, scale=(devices,)))
    if problem:
        click.echo(problem, err=True)
    click.echo(json.dumps(uvloop.run(measure(plan.devices, tls=tls)), indent=2))


if __name__ == "__main__":
    main()
