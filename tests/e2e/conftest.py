"""Brokers: one suite over mosquitto, from the project's own configuration, and the embedded one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.brokers import BrokerUnavailable, Kind, LocalBroker, local_broker
from tests.clients.install import missing
from tests.e2e.world import Node, Service, gateway, service

EMBEDDED_CANNOT = "the embedded broker forgets sessions and messages when it or its client stops"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes a broker on both; what only mosquitto can do is marked `mosquitto_only`."""
    if "kind" not in metafunc.fixturenames or hasattr(metafunc.module, "kind"):  # a module may choose for itself
        return
    only = metafunc.definition.get_closest_marker("mosquitto_only")
    embedded = pytest.param("embedded", marks=pytest.mark.xfail(reason=str(only and only.args[0]), run=False))
    metafunc.parametrize("kind", ["mosquitto", embedded if only else "embedded"], scope="function")


@pytest.fixture
async def broker(kind: Kind, tmp_path: Path) -> AsyncIterator[LocalBroker]:
    try:
        async with local_broker(kind, tmp_path) as running:
            yield running
    except BrokerUnavailable as problem:
        missing(str(problem))


@pytest.fixture
async def node(broker: LocalBroker) -> AsyncIterator[Node]:
    async with gateway(broker.url, "--node", "gw-1") as running:
        yield running


@pytest.fixture
async def api(broker: LocalBroker) -> AsyncIterator[Service]:
    async with service(broker.url) as client:
        yield client
