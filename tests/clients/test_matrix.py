"""Real clients of every generation against the Socket.IO server."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.engine.options import EngineOptions
from gateway.socketio_server import Server
from tests.clients.install import HERE, installed, old_python_client, program
from tests.engine.harness import serving

OPTIONS = EngineOptions(ping_interval_s=0.3, ping_timeout_s=0.5)
MODES = ["polling", "websocket", "upgrade"]
MATRIX = [(client, mode) for client in ("sio17", "sio25", "sio31", "sio48") for mode in MODES]
MATRIX.append(("weapp", "websocket"))  # mini-programs have nothing else
CHECKS = 9


@pytest.fixture
async def url() -> AsyncIterator[str]:
    sockets = Server(OPTIONS)
    burst: dict[str, list[int]] = {}

    async def echo(_: str, *args: Any) -> tuple[Any, ...]:
        return args

    async def ask_me(sid: str, text: str) -> None:
        async def answered(*answer: Any) -> None:
            await sockets.emit("answered", answer, to=sid)

        await sockets.emit("question", text, to=sid, callback=answered)

    async def on_burst(sid: str, number: int) -> None:
        seen = burst.setdefault(sid, [])
        seen.append(number)
        if len(seen) == 40:
            for one in seen:
                await sockets.emit("burst", one, to=sid)

    async def kick_me(sid: str) -> None:
        await sockets.disconnect(sid)

    async def drop_me(sid: str) -> None:
        await sockets.eio.disconnect(sockets.manager.eio_sid_from_sid(sid, "/"))

    for handler in (echo, kick_me, drop_me, ask_me):
        sockets.on(handler.__name__.replace("_", " "), handler)
    sockets.on("burst", on_burst)
    async with serving(sockets.eio, path="socket/socket.io") as url:
        yield url


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
    origin = url.removesuffix("/socket/socket.io/")
    assert len(await run(program("node"), "driver.js", client, origin, mode)) == CHECKS


@pytest.mark.parametrize("mode", ["polling", "websocket"])
async def test_the_last_python_client_of_engine_io_3(url: str, mode: str) -> None:
    origin = url.removesuffix("/socket/socket.io/")
    assert len(await run(old_python_client(), "old_python_client.py", origin, mode)) == 5
