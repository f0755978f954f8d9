"""One HTTP port: an aiohttp application on it, with or without TLS, and watched connections."""

import os
import socket
from asyncio import Server, get_running_loop
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway.addresses import Listen
from gateway.admission import Refusal
from gateway.engine.peers import Arrival, PeerLimits, Peers, Taker, watched
from gateway.proxies import Proxies
from gateway.tls import Certificate

BACKLOG: Final = 1024  # connections that the kernel holds while the loop is busy
SHUTDOWN_S: Final = 1.0


class Listener:
    """A port, from `start` to `close`.

    Args:
        name: of the setting that says where, for problems.
        where: a host and port, or a unix socket.
        take: asked to have each connection, with what it says first, before it is the application's; see `Peers`.
        also: another unix socket.
        refused: told of every connection that had to go before it was served.
        shared: whether other processes may listen at the same host and port, and take their part of the connections.
    """

    def __init__(
        self,
        name: str,
        where: Listen | Path,
        app: web.Application,
        refused: Callable[[Refusal], None],
        *,
        take: Taker = lambda _transport, _said: False,
        limits: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
        proxies: Proxies | None = None,
        certificate: Certificate | None = None,
        shared: bool = False,
        also: Path | None = None,
    ) -> None:
        self._name = name
        self._where = (where,) if also is None else (where, also)
        self._app = app
        self._refused = refused
        self._take = take
        self._limits = limits
        self._proxies = proxies or Proxies()
        self._tls = certificate.context if certificate is not None else None
        self._shared = shared
        self._runner: web.AppRunner | None = None
        self._peers: Peers | None = None
        self._servers: list[Server] = []

    @property
    def url(self) -> str:
        """Where it listens, once started; `also` is left out."""
        name = self._servers[0].sockets[0].getsockname()
        if isinstance(name, str):
            return f"http+unix://{name}"
        return f"{'https' if self._tls else 'http'}://{Listen(*name[:2])}"

    async def start(self) -> None:
        """Listen. Raises OSError with the setting that names the port."""
        self._app.middlewares.insert(0, watched)
        self._runner = runner = web.AppRunner(
            self._app, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        assert runner.server is not None
        self._peers = Peers(runner.server, self._take, self._limits, self._proxies, self._refused)
        for where in self._where:
            try:
                self._servers.append(await self._listen(where, self._peers))
            except OSError as problem:
                why = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else problem
                raise OSError(f"{self._name}: {where}: {why}") from None

    async def _listen(self, where: Listen | Path, peers: Peers) -> Server:
        loop = get_running_loop()
        if isinstance(where, Path):
            return await loop.create_unix_server(peers, where, backlog=BACKLOG)
        server = await loop.create_server(
            partial(Arrival, peers, self._tls) if self._tls else peers,
            where.host,
            where.port,
            backlog=BACKLOG,
            reuse_port=self._shared or None,
            start_serving=False,
        )
        for listening in server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit it
        await server.start_serving()
        return server

    async def stop_accepting(self) -> None:
        """Take no more connections; those that are there go on."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """End every connection, after a moment for the requests under way."""
        await self.stop_accepting()
        if self._peers is not None:
            await self._peers.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
