"""One HTTP port: an aiohttp application on it, with or without TLS, and watched connections."""

import os
from asyncio import Server, get_running_loop
from collections.abc import Callable
from typing import Final

from aiohttp import web

from gateway.addresses import Listen
from gateway.admission import Refusal
from gateway.engine.peers import PeerLimits, Peers, watched
from gateway.proxies import Proxies
from gateway.tls import Certificate

BACKLOG: Final = 1024  # connections that the kernel holds while the loop is busy
TLS_HANDSHAKE_S: Final = 10.0  # asyncio would give a minute
SHUTDOWN_S: Final = 1.0


class Listener:
    """A port, from `start` to `close`.

    Args:
        name: of the setting that says where, for problems.
        refused: told of every connection that had to go before it was served.
    """

    def __init__(
        self,
        name: str,
        where: Listen,
        app: web.Application,
        refused: Callable[[Refusal], None],
        *,
        limits: PeerLimits = PeerLimits(),  # noqa: B008 - it is frozen
        proxies: Proxies | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self._name = name
        self._where = where
        self._app = app
        self._refused = refused
        self._limits = limits
        self._proxies = proxies or Proxies()
        self._tls = certificate.context if certificate is not None else None
        self._runner: web.AppRunner | None = None
        self._peers: Peers | None = None
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{'https' if self._tls else 'http'}://{Listen(host, port)}"

    async def start(self) -> None:
        """Listen. Raises OSError with the setting that names the port."""
        self._app.middlewares.insert(0, watched)
        self._runner = runner = web.AppRunner(
            self._app, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        assert runner.server is not None
        self._peers = Peers(runner.server, self._limits, self._proxies, self._refused)
        try:
            self._server = await get_running_loop().create_server(
                self._peers,
                self._where.host,
                self._where.port,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=TLS_HANDSHAKE_S if self._tls else None,
            )
        except OSError as problem:
            why = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else problem
            raise OSError(f"{self._name}: {self._where}: {why}") from None

    async def stop_accepting(self) -> None:
        """Take no more connections; those that are there go on."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """End every connection, after a moment for the requests under way."""
        await self.stop_accepting()
        if self._peers is not None:
            self._peers.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
