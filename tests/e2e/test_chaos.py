"""Everything at once: nodes and the broker die, sockets break and devices roam while commands go on.

`GATEWAY_TEST_CHAOS_S` and `GATEWAY_TEST_SEED` make it longer, or another.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from gateway.relay import tag_of
from tests.clients.install import missing
from tests.e2e.chaos import Box, Dispatcher, Plate
from tests.e2e.chaos_proxied import CLIENTS, ProxiedPlate
from tests.e2e.chaos_tally import Tally
from tests.e2e.chaos_world import World
from tests.e2e.proxies import Proxy, Upstream, haproxy, nginx
from tests.e2e.world import PATH

CHAOS_S: Final = float(os.environ.get("GATEWAY_TEST_CHAOS_S", "20"))
SEED: Final = os.environ.get("GATEWAY_TEST_SEED", "1")
DEVICES: Final = 200
PROXIED_DEVICES: Final = 100  # polls cost more
PROXIES: Final[Mapping[str, Proxy]] = {"nginx": nginx, "haproxy": haproxy}
REST_S: Final = 60.0  # for what must come to rest; it takes seconds
# mosquitto saves everything at the end of a round of its loop in which anything changed, so that what a kill -9
# takes with it are the messages of the last round; with the saves of the shipped configuration, it is 10 s of them.
SAVES: Final = {"autosave_on_changes": "true", "autosave_interval": "1"}
ENVIRON: Final = {
    "GATEWAY_COMMANDS_ACK_TIMEOUT_S": "2",
    "GATEWAY_DEVICES_DRAIN_S": "3",
    "GATEWAY_MQTT_RECONNECT_MAX_S": "2",
}


@asynccontextmanager
async def broker_and_http(directory: Path) -> AsyncIterator[tuple[LocalBroker, aiohttp.ClientSession]]:
    """A broker that loses little when it is killed, and what all devices connect with."""
    try:
        async with (
            local_broker("mosquitto", directory, SAVES) as broker,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            yield broker, http
    except BrokerUnavailable as problem:
        missing(str(problem))


@asynccontextmanager
async def direct(directory: Path) -> AsyncIterator[World]:
    """A broker, two nodes, a service, and devices that know the nodes."""
    async with broker_and_http(directory) as (broker, http), AsyncExitStack() as stack:
        boxes = [Box(name, broker.url, ENVIRON) for name in ("gw-1", "gw-2")]
        service = Dispatcher(broker.url, boxes)
        plates = [Plate(f"AC{number:03}", http, boxes, service, SEED) for number in range(DEVICES)]
        for box in boxes:
            await stack.enter_async_context(box)
            await box.start()
        yield World(broker, boxes, service, plates, SEED)


@asynccontextmanager
async def proxied(directory: Path, proxy: Proxy, free_port: Callable[[], int]) -> AsyncIterator[World]:
    """A broker, two nodes that relay to each other behind a proxy, a service, and devices of every kind."""
    front, *ports = (free_port() for _ in range(5))
    upstreams = {"gw-1": Upstream(*ports[:2]), "gw-2": Upstream(*ports[2:])}
    async with broker_and_http(directory) as (broker, http), AsyncExitStack() as stack:
        boxes = [
            Box(name, broker.url, ENVIRON | relaying(at), port=at.port, admin_port=at.admin_port)
            for name, at in upstreams.items()
        ]
        service = Dispatcher(broker.url, boxes)
        for box in boxes:
            await stack.enter_async_context(box)
            await box.start()
        url = await stack.enter_async_context(proxy(directory, front, tuple(upstreams.values())))
        by_tag = {tag_of(box.name): box for box in boxes}
        plates = [
            ProxiedPlate(f"AC{number:03}", http, f"{url}{PATH}/", client, by_tag, service, SEED)
            for number, client in zip(range(PROXIED_DEVICES), cycle(CLIENTS), strict=False)
        ]
        yield World(broker, boxes, service, plates, SEED)


def relaying(at: Upstream) -> dict[str, str]:
    """The settings of a node that relays."""
    return {
        "GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{at.port}",
        "GATEWAY_RELAY_SECRET": "0123456789abcdef0123456789abcdef",
    }


async def lived(title: str, it: World, disturb: Callable[[World], Awaitable[None]]) -> Tally:
    """Let everybody live, under load and while it is disturbed, then come to rest; what came of it."""
    async with asyncio.TaskGroup() as group:
        living = [group.create_task(it.service.run()), *(group.create_task(plate.run()) for plate in it.plates)]
        async with asyncio.timeout(REST_S):
            await it.service.connected.wait()
            await it.all_at_home()
        began_at = time.monotonic()
        disturbing = [group.create_task(work) for work in (it.command(), it.disturb_devices(), it.weigh())]
        await disturb(it)
        for task in disturbing:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                await it.service.connected.wait()
                await it.all_at_home()
                await it.rest()
                await it.presences()
        for task in living:
            task.cancel()
    return Tally(title, it, began_at)


async def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every promise about delivery and presence, at once."""

    def disturb(it: World) -> Awaitable[None]:
        return it.disturb_machines(time.monotonic() + CHAOS_S)

    async with direct(tmp_path) as it:
        tally = await lived(f"chaos of {CHAOS_S:g} s", it, disturb)
    with capsys.disabled():
        print(f"\n{tally}")
    assert not tally.wrong, str(tally)


@pytest.mark.parametrize("name", PROXIES)
async def test_chaos_behind_a_proxy(
    name: str, tmp_path: Path, unused_tcp_port_factory: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same promises without sticky sessions, while each node is away once: one is drained, the other is killed."""
    async with proxied(tmp_path, PROXIES[name], unused_tcp_port_factory) as it:
        tally = await lived(f"chaos behind {name}", it, World.drain_then_kill)
    with capsys.disabled():
        print(f"\n{tally}")
    assert not tally.wrong, str(tally)
