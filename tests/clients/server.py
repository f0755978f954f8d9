"""The server that the real clients talk to: the gateway's own sockets, whose owner echoes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.engine.options import EngineOptions
from tests.engine.echo import Echo
from tests.engine.harness import serving

OPTIONS = EngineOptions(ping_interval_s=0.3, ping_timeout_s=2.0)  # clients on a busy machine answer late


@asynccontextmanager
async def answering(options: EngineOptions = OPTIONS) -> AsyncIterator[str]:
    """A Socket.IO server with the answers that `driver.js` expects; yields its origin."""
    async with serving(Echo(options).engine, path="socket/socket.io") as url:
        yield url.removesuffix("/socket/socket.io/")
