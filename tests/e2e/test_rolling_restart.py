"""Two nodes behind a real proxy are restarted one after the other, under load: nothing is lost."""

import asyncio
import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
import socketio

from gateway.brokers import LocalBroker
from tests.e2e.proxies import Proxy, Upstream, haproxy, nginx
from tests.e2e.world import PATH, WAIT_S, Node, Service, gateway

DEVICES = 8
COMMANDS = 40  # to each device


@pytest.fixture
def kind() -> str:
    """The embedded broker loses sessions."""
    return "mosquitto"


class Plate:
    """A device that reconnects by itself, as real ones do, and remembers what it got."""

    def __init__(self, number: int) -> None:
        self.serial = f"AC{number}"
        self.got: list[int] = []
        self.client = socketio.AsyncClient(reconnection_delay=0.1, reconnection_delay_max=0.5, randomization_factor=0.5)
        self.client.on("connect", self._connected)
        self.client.on("bind_class", self._bind)
        self.here = asyncio.Event()
        self.client.on("auth:ok", self.here.set)

    async def _connected(self) -> None:
        signature = base64.b64encode(f"{self.serial}:key".encode()).decode()
        await self.client.emit("authentication", {"signature": signature})

    def _bind(self, data: dict[str, int]) -> dict[str, bool]:
        self.got.append(data["id"])
        return {"ack": True}


@pytest.mark.parametrize("proxy", [nginx, haproxy])
async def test_nothing_is_lost(
    proxy: Proxy, broker: LocalBroker, api: Service, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    front, *ports = (unused_tcp_port_factory() for _ in range(5))
    upstreams = {"gw-1": Upstream(*ports[:2]), "gw-2": Upstream(*ports[2:])}
    plates = [Plate(number) for number in range(DEVICES)]
    async with AsyncExitStack() as stack:
        nodes = {name: await stack.enter_async_context(node(broker, name, at)) for name, at in upstreams.items()}
        url = await stack.enter_async_context(proxy(tmp_path, front, [*upstreams.values()]))
        for plate in plates:
            await plate.client.connect(url, socketio_path=PATH, retry=True)
            await asyncio.wait_for(plate.here.wait(), WAIT_S)
        sending = asyncio.create_task(send(api))
        for name, at in upstreams.items():
            await api.outcome("devices/AC0/acks/#")  # some traffic between the restarts
            assert await nodes[name].end() == 0
            await stack.enter_async_context(node(broker, name, at))
        await sending
        outcomes: dict[str, str] = {}
        while len(outcomes) < DEVICES * COMMANDS - 2:
            outcome = await api.outcome("devices/+/acks/bind_class/+")
            outcomes[outcome["id"]] = outcome["status"]
        for plate in plates:
            await plate.client.disconnect()
            await plate.client.shutdown()
    assert set(outcomes.values()) == {"acked"}
    for plate in plates:
        assert sorted(set(plate.got)) == list(range(COMMANDS)), "a command was lost"
        first = list(dict.fromkeys(plate.got))
        assert first == sorted(first), "out of order"


def node(broker: LocalBroker, name: str, at: Upstream) -> AbstractAsyncContextManager[Node]:
    flags = ("--node", name, "--admin", f"127.0.0.1:{at.admin_port}")
    environ = {
        "GATEWAY_DEVICES_DRAIN_S": "2",
        "GATEWAY_RELAY_ADVERTISE": f"http://127.0.0.1:{at.port}",
        "GATEWAY_RELAY_SECRET": "0123456789abcdef0123456789abcdef",
    }
    return gateway(broker.url, *flags, listen=f"127.0.0.1:{at.port}", environ=environ)


async def send(api: Service) -> None:
    """Commands to every device, from before the first restart to after the last."""
    for number in range(COMMANDS):
        for device in range(DEVICES):
            await api.send(f"devices/AC{device}/commands/bind_class/{device}-{number}", {"id": number})
        await asyncio.sleep(0.2)
