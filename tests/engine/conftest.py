"""Fixtures of the Engine.IO tests."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from .harness import CALM, FAST, Bench, Peer, bench


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def calm() -> AsyncIterator[Bench]:
    """A server whose heartbeats never matter."""
    async with bench(CALM) as server:
        yield server


@pytest.fixture
async def fast() -> AsyncIterator[Bench]:
    """A server with the sub-second heartbeats of the official suites."""
    async with bench(FAST) as server:
        yield server


@pytest.fixture(params=["3", "4"])
def eio(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def peer(calm: Bench, http: aiohttp.ClientSession, eio: str) -> Peer:
    """A peer of either generation, on the calm server."""
    return Peer(calm.url, http, eio)


@pytest.fixture
def quick(fast: Bench, http: aiohttp.ClientSession, eio: str) -> Peer:
    """A peer of either generation, on the fast server."""
    return Peer(fast.url, http, eio)
