"""The broker that production starts from, for what is deployed in front of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.brokers import BrokerUnavailable, LocalBroker, local_broker
from tests.clients.install import missing


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    try:
        async with local_broker("mosquitto", tmp_path) as running:
            yield running
    except BrokerUnavailable as problem:
        missing(str(problem))
