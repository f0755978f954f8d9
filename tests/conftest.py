"""For every test: the same examples of Hypothesis each time, no deadline on a shared machine, and ports of its own."""

from collections.abc import Callable

import pytest
from hypothesis import settings

from gateway.brokers import free_ports

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def unused_tcp_port_factory() -> Callable[[], int]:
    """Another free port each time; that of pytest-asyncio gives those that connections of other tests may take."""
    given: set[int] = set()

    def factory() -> int:
        while (port := free_ports(1)[0]) in given:
            pass
        given.add(port)
        return port

    return factory
