"""Real clients of every generation against the Socket.IO server."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from gateway.engine.options import EngineOptions
from tests.clients.install import HERE, installed, old_python_client, program
from tests.clients.server import answering

MODES = ["polling", "websocket", "upgrade"]
MATRIX = [(client, mode) for client in ("sio17", "sio25", "sio31", "sio48") for mode in MODES]
MATRIX.append(("weapp", "websocket"))  # mini-programs have nothing else
CHECKS = 8


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with answering() as origin:
        yield origin


async def run(*command: str) -> list[str]:
    """Run a client to its end, which must be a good one; return what it printed."""
    process = await asyncio.create_subprocess_exec(*command, cwd=HERE, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (out + err).decode()
    return out.decode().splitlines()


@pytest.mark.parametrize(("client", "mode"), MATRIX)
async def test_a_client_from_npm(url: str, client: str, mode: str) -> None:
    installed(client)
    assert len(await run(program("node"), "driver.js", client, url, mode)) == CHECKS


@pytest.mark.parametrize("mode", ["polling", "websocket"])
async def test_the_last_python_client_of_engine_io_3(mode: str) -> None:
    """It gives up when a pong takes longer than the interval, so that is long."""
    async with answering(EngineOptions(ping_interval_s=3.0, ping_timeout_s=2.0)) as url:
        assert len(await run(old_python_client(), "old_python_client.py", url, mode)) == 5
