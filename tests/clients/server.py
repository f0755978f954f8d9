"""The server that the real clients talk to: ours, with a few answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.engine.options import EngineOptions
from gateway.socketio_server import Server
from tests.engine.harness import serving

OPTIONS = EngineOptions(ping_interval_s=0.3, ping_timeout_s=2.0)  # clients on a busy machine answer late


@asynccontextmanager
async def answering(options: EngineOptions = OPTIONS) -> AsyncIterator[str]:
    """A Socket.IO server with the answers that `driver.js` expects; yields its origin."""
    sockets = Server(options)
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
        yield url.removesuffix("/socket/socket.io/")
